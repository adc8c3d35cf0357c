"""Draws metrics of training.

    python -m zoo curves runs/a runs/b --show adapters/reward --out curves.png

A panel for each metric of metrics.jsonl, a curve for each run.
"""

from pathlib import Path

from absl import flags

from zoo.commands.scaffold import Command
from zoo.evaluation import report
from zoo.training import metrics

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_multi_string("show", ["model/loss"], "A metric; may be given several times.")
    flags.DEFINE_string("out", "curves.png", "File to draw.")


def main(workdirs: list[str]) -> None:
    """Runs the command on parsed flags."""
    rows = {workdir: read_metrics(Path(workdir)) for workdir in workdirs}
    report.to_curves(rows, "step", FLAGS.show, Path(FLAGS.out))
    print(f"-> {FLAGS.out}")


COMMAND = Command(
    main, define_flags, "name at least one run: python -m zoo curves runs/a runs/b", suffixes=report.CHARTS
)


def read_metrics(workdir: Path) -> list[dict[str, float]]:
    """Returns the rows of a run's metrics, by step; of two with the same names, as after resuming, the last."""
    by_step: dict[int, dict[str, float]] = {}
    for row in metrics.read(workdir):
        by_step[row["step"]] = by_step.get(row["step"], {}) | row
    return [by_step[step] for step in sorted(by_step)]
