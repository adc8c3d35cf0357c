"""One table over runs: python -m zoo.scoring.compare runs/a runs/b --out runs/compare.md

Each run was scored before, by python -m zoo.scoring or zoo.scoring.likelihood, whose bits per dimension are of more
pictures; the rest is read from its metrics and its checkpoint.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
from absl import app, flags

from zoo.config import parse_flags
from zoo.errors import BadInput, exit_on_bad_input
from zoo.run import Run
from zoo.scoring.measures import Score
from zoo.scoring.report import names_of, show, to_chart, to_markdown

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Only where this is the command: others share the names."""
    flags.DEFINE_string("out", "compare.md", "Markdown file, and a chart beside it.")


def main(argv):
    runs = argv[1:]
    if not runs:
        raise BadInput("name at least one run: python -m zoo.scoring.compare runs/a runs/b")
    scores = {run: read_scores(Path(run)) for run in runs}
    facts = {run: facts_of(Path(run)) for run in runs}
    rows = [[name, *(show_fact(facts[run][name]) for run in runs)] for name in next(iter(facts.values()))]
    rows += [[name, *(show(scores[run].get(name)) for run in runs)] for name in names_of(scores)]
    table = to_markdown(["", *runs], rows)
    out = Path(FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(table + "\n")
    to_chart(scores, out.with_suffix(".png"))
    print(f"{table}\n-> {out}, {out.with_suffix('.png')}")


def read_scores(workdir: Path) -> dict[str, Score]:
    """The scores of a run, as `zoo.scoring` and `zoo.scoring.likelihood` wrote them."""
    files = [file for name in ("scores.json", "likelihood.json") if (file := workdir / name).is_file()]
    if not files:
        raise BadInput(f"{workdir} has no scores.json: run python -m zoo.scoring --workdir {workdir} first")
    return {name: score for file in files for name, score in read_file(file).items()}


def read_file(file: Path) -> dict[str, Score]:
    """The scores in one file of either command."""
    try:
        said = json.loads(file.read_text())
        if file.name == "likelihood.json":
            return {"bits_per_dim": Score(said["bits_per_dim"], tuple(said["interval"]))}
        around = said["intervals"]["model"]
        return {name: Score(value, around.get(name) and tuple(around[name])) for name, value in said["model"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{file} is no file of zoo.scoring: score {file.parent} again") from None


def facts_of(workdir: Path) -> dict[str, Any]:
    """What a run cost: its size, what it saw, how long it trained and how fast it samples."""
    run = Run.open(workdir)
    recipe = run.recipe
    file = workdir / "scores.json"
    said = json.loads(file.read_text()).get("about", {}) if file.is_file() else {}
    return {
        "family": type(recipe.method).__name__,
        "data": f"{recipe.data.source}, {recipe.data.size} px",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(run.params)),
        "pictures seen": run.step * recipe.data.batch_size,
        "seconds of training": trained_seconds(workdir, recipe.data.batch_size),
        "evaluations a sample": said.get("evaluations"),
        "samples/s": said.get("samples_per_second"),
    }


def trained_seconds(workdir: Path, batch_size: int) -> float | None:
    """Training time by the rates in metrics.jsonl: each window's steps over its pictures a second.

    Compilation, checkpoints and sample grids are left out, and so is all time between two starts.
    """
    file = workdir / "metrics.jsonl"
    if not file.is_file():
        return None
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rates = {
        row["step"]: row["images_per_second"] for row in rows if row.get("images_per_second")
    }  # the last of a step
    seconds, last = 0.0, 0
    for step, rate in sorted(rates.items()):
        seconds, last = seconds + (step - last) * batch_size / rate, step
    return seconds or None


def show_fact(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 and math.isfinite(value) else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    define_flags()
    with exit_on_bad_input():
        app.run(main, flags_parser=parse_flags)
