"""How runs went: python -m zoo.scoring.curves runs/a runs/b --show adapters/reward --show score/all --out curves.png

A panel for each of the metrics that training wrote to metrics.jsonl, a curve for each run.
"""

import json
from pathlib import Path

from absl import app, flags

from zoo.config import parse_flags
from zoo.errors import BadInput, exit_on_bad_input
from zoo.scoring import report

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Only where this is the command: others share the names."""
    flags.DEFINE_multi_string("show", ["model/loss"], "A metric; may be given several times.")
    flags.DEFINE_string("out", "curves.png", "Where to draw.")


def main(argv):
    if not argv[1:]:
        raise BadInput("name at least one run: python -m zoo.scoring.curves runs/a runs/b")
    rows = {workdir: read_metrics(Path(workdir)) for workdir in argv[1:]}
    report.to_curves(rows, "step", FLAGS.show, Path(FLAGS.out))
    print(f"-> {FLAGS.out}")


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics, by step; of two with the same names, as after resuming, the last."""
    file = workdir / "metrics.jsonl"
    if not file.is_file():
        raise BadInput(f"{workdir} has no metrics.jsonl: train it first")
    by_step: dict[int, dict[str, float]] = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        by_step[row["step"]] = by_step.get(row["step"], {}) | row
    return [by_step[step] for step in sorted(by_step)]


if __name__ == "__main__":
    define_flags()
    with exit_on_bad_input():
        app.run(main, flags_parser=parse_flags)
