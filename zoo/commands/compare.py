"""Writes one table over runs.

    python -m zoo compare runs/a runs/b --out runs/compare.md

Each run was scored before, by `zoo score` or by `zoo likelihood`, whose bits per dimension are of more images; the rest
is read from its metrics and its checkpoint.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
from absl import flags

from zoo.commands.scaffold import Command
from zoo.errors import UserError
from zoo.evaluation import model_eval
from zoo.evaluation.registry import Score
from zoo.evaluation.report import names_of, show, to_chart, to_markdown
from zoo.files import atomic, read_text
from zoo.method import without_frozen
from zoo.runs.dependencies import open_run
from zoo.training import metrics

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("out", "compare.md", "Markdown file, and a chart beside it.")


def main(runs: list[str]) -> None:
    """Runs the command on parsed flags."""
    scores = {run: read_scores(Path(run)) for run in runs}
    facts = {run: facts_of(Path(run)) for run in runs}
    rows = [[name, *(show_fact(facts[run][name]) for run in runs)] for name in next(iter(facts.values()))]
    rows += [[name, *(show(scores[run].get(name)) for run in runs)] for name in names_of(scores)]
    table = to_markdown(["", *runs], rows)
    out = Path(FLAGS.out)
    with atomic(out) as unfinished:
        unfinished.write_text(table + "\n")
    to_chart(scores, out.with_suffix(".png"))
    print(f"{table}\n-> {out}, {out.with_suffix('.png')}")


COMMAND = Command(main, define_flags, "name at least one run: python -m zoo compare runs/a runs/b", suffixes=(".md",))


def read_scores(workdir: Path) -> dict[str, Score]:
    """The scores of a run, as `zoo score` and `zoo likelihood` wrote them."""
    files = [file for name in ("scores.json", "likelihood.json") if (file := workdir / name).is_file()]
    if not files:
        raise UserError(f"{workdir} has no scores.json: run python -m zoo score --workdir {workdir} first")
    return {name: score for file in files for name, score in read_file(file).items()}


def read_file(file: Path) -> dict[str, Score]:
    """The scores in one file of either command."""
    try:
        content = json.loads(read_text(file))
        if file.name == "likelihood.json":
            (kind,) = [kind for kind in model_eval.BITS if kind in content]
            return {kind: Score(content[kind], tuple(content["interval"]))}
        around = content["intervals"]["model"]
        return {
            name: Score(value, around.get(name) and tuple(around[name])) for name, value in content["model"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} is no file of scores: score {file.parent} again") from None


def facts_of(workdir: Path) -> dict[str, Any]:
    """Returns the costs of a run: its size, images seen in training, time of training, and rate of sampling."""
    run = open_run(workdir)
    recipe = run.recipe
    trained, base = without_frozen(run.params), run.params["frozen"].get("base")
    file = workdir / "scores.json"
    content = json.loads(read_text(file)).get("about", {}) if file.is_file() else {}
    return {
        "family": type(recipe.method).__name__,
        "data": f"{recipe.data.source}, {recipe.data.size} px",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves((trained, base))),
        "images seen": run.step * recipe.data.batch_size,
        "seconds of training": trained_seconds(workdir, recipe.data.batch_size),
        "evaluations a sample": content.get("evaluations"),
        "samples/s": content.get("samples_per_second"),
    }


def trained_seconds(workdir: Path, batch_size: int) -> float | None:
    """Training time by the rates in metrics.jsonl: each window's steps over its images a second.

    Compilation, checkpoints and sample grids are left out, and so is all time between two starts.
    """
    if not (workdir / metrics.FILE).is_file():
        return None
    rows = metrics.read(workdir)
    rates = {
        row["step"]: row["images_per_second"] for row in rows if row.get("images_per_second")
    }  # the last of a step
    seconds, last = 0.0, 0
    for step, rate in sorted(rates.items()):
        seconds, last = seconds + (step - last) * batch_size / rate, step
    return seconds or None


def show_fact(value: Any) -> str:
    """Returns a fact as a cell of a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if value < 1000 and math.isfinite(value) else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
