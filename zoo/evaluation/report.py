"""Scores as people read them: lines of text, JSON, a chart."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import unknown_name_error
from zoo.evaluation.registry import Score
from zoo.files import atomic

CHARTS = ".png", ".pdf", ".svg"  # that a file of one may end with
BETTER = {"lower": " (lower is better)", "ceiling": " (near the ceiling is better)"}
Scores = Mapping[str, Mapping[str, Score]]  # row -> name -> score


def names_of(scores: Scores) -> list[str]:
    """The names that any row has, in order."""
    return list(dict.fromkeys(name for row in scores.values() for name in row))


def show(score: Score | None) -> str:
    """Returns a score as in "0.984 [0.969, 0.996]"; "-" for none."""
    if score is None:
        return "-"
    around = score.interval and f" [{score.interval[0]:.4g}, {score.interval[1]:.4g}]"
    return f"{score.value:.4g}{around or ''}"


def to_table(scores: Scores) -> str:
    """A line for each name, a column for each row of scores, with the intervals of 95%; notes at the end.

    A name is followed by the direction of better scores: higher ones have none.
    """
    names = names_of(scores)
    better = {name: BETTER.get(score.better, "") for row in scores.values() for name, score in row.items()}
    cells = [["", *scores]]
    cells += [[f"{name}{better[name]}", *(show(row.get(name)) for row in scores.values())] for name in names]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    notes = {f"{name}: {score.note}" for row in scores.values() for name, score in row.items() if score.note}
    return "\n".join(lines + sorted(notes))


def to_json(scores: Scores, about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns {"model": {name: value}, ..., "intervals": {"model": {name: [low, high]}, ...}, "about": ...}."""
    values = {row: {name: score.value for name, score in of.items()} for row, of in scores.items()}
    around = {row: {name: score.interval for name, score in of.items() if score.interval} for row, of in scores.items()}
    return values | {"intervals": around, "about": dict(about)}


def to_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rows))


def to_curves(
    runs: Mapping[str, Sequence[Mapping[str, float]]], x: str, shown: Sequence[str], path: Path, log: bool = False
) -> None:
    """A panel for each name shown, and in it a curve for each run.

    Args:
      runs: run -> rows of {name: value}; a row may lack a name.
      x: the name along the axis, in powers of two where `log`.
      shown: names; a run without one has no curve in its panel.
      path: image file to write.
      log: whether the axis has powers of two.

    Raises:
      UserError: a name that no row has.
    """
    known = {name for rows in runs.values() for row in rows for name in row} - {x}
    for name in shown:
        if name not in known:
            raise unknown_name_error("name to show", name, known)
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, len(shown), figsize=(5 * len(shown), 3.6), squeeze=False)
    for axis, name in zip(axes.flat, shown, strict=True):
        for run, rows in runs.items():
            if points := [(row[x], row[name]) for row in rows if name in row]:
                axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=run)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(x, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(color="0.9")
        if log:
            axis.set_xscale("log", base=2)
    axes.flat[0].legend(fontsize=7)
    _write(figure, path)


def to_chart(scores: Scores, path: Path, title: str = "") -> None:
    """A bar chart, a panel for each name and a bar for each row, with intervals of 95%."""
    pyplot = _pyplot()
    names, columns = names_of(scores), 4
    lines = math.ceil(len(names) / columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(3 * columns, 1 + 0.45 * len(scores) * lines + 0.8 * lines))
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    colours = pyplot.get_cmap("tab10")
    for axis, name in zip(axes.flat, names, strict=False):
        for i, (row, of) in enumerate(reversed(list(scores.items()))):
            if name not in of or not math.isfinite(of[name].value):
                continue
            value, around = of[name].value, of[name].interval
            error = around and [[max(value - around[0], 0)], [max(around[1] - value, 0)]]
            axis.barh(row, value, xerr=error, color=colours((len(scores) - 1 - i) % 10), ecolor="0.4", capsize=2)
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=9)
    _write(figure, path)


def _pyplot():
    import matplotlib  # takes a second

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _write(figure, path: Path) -> None:
    figure.tight_layout()
    with atomic(path) as unfinished:
        figure.savefig(unfinished, dpi=120)
    _pyplot().close(figure)
