"""Measures how well single attributes can be edited.

    python -m zoo attribute_editing --workdir RUN --num 200

See `evaluation.attribute_editing`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from zoo.commands import sampling_flags
from zoo.commands.scaffold import Command
from zoo.errors import UserError, unknown_name_error
from zoo.evaluation import report
from zoo.evaluation.attribute_editing import KINDS, OUTCOMES, Arithmetic, of_one_thing
from zoo.files import atomic, write_json
from zoo.runs.editor import Editor
from zoo.scenes import oracle

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    sampling_flags.define()
    flags.DEFINE_integer("num", 200, "Images of the test split to edit.", lower_bound=2)
    flags.DEFINE_integer(
        "num_train", 2000, "Most images of split train from which directions are taken.", lower_bound=2
    )
    flags.DEFINE_list("attributes", ["colour", "size", "shape"], f"Of {', '.join(KINDS)}, with commas.")
    flags.DEFINE_list("strengths", ["0.5", "1", "1.5", "2"], "Strengths of the directions, with commas.")
    flags.DEFINE_string("out", None, "JSON file, and a chart beside it; by default WORKDIR/attribute_editing.json.")


def main(_: list[str]) -> None:
    """Runs the command on parsed flags."""
    for kind in FLAGS.attributes:
        if kind not in KINDS:
            raise unknown_name_error("attribute", kind, KINDS)
    strengths, sampling = read_strengths(FLAGS.strengths), sampling_flags.read()
    data = sampling.run.recipe.data
    if sampling.negative:
        raise UserError("editing uses no negative caption: drop --negative")
    if oracle.world_of(data.source) is None:
        raise UserError(f"the oracle reads scenes alone, and this run's data is {data.source}")
    editor = Editor(sampling.run, sampling.per_device, sampling.seed, **sampling.options, **sampling.guided)
    train, test = of_one_thing(data.open("train"), FLAGS.num_train), of_one_thing(data.open("test"), FLAGS.num)
    arithmetic = Arithmetic(editor, train, test, sampling.seed)
    scores: report.Scores = {"direction": {}, "random": {}, "caption": {}}
    for kind in FLAGS.attributes:
        for way, of in arithmetic.scores(kind, strengths).items():
            scores[way] |= of
    print(report.to_table(scores))
    settings = {name: value for name, value in editor.settings.items() if name not in sampling.guided}
    about = sampling.about() | {"settings": settings, "num": len(test.scenes), "num_train": len(train.scenes)}
    out = Path(FLAGS.out or f"{sampling.workdir}/attribute_editing.json")
    write_json(out, report.to_json(scores, about))
    to_chart(scores, FLAGS.attributes, [0.0, *strengths], out.with_suffix(".png"), sampling.workdir)
    print(f"{len(test.scenes)} images -> {out}, {out.with_suffix('.png')}")


COMMAND = Command(main, define_flags, suffixes=(".json",))


def to_chart(scores: report.Scores, kinds: Sequence[str], strengths: Sequence[float], path: Path, title: str) -> None:
    """Shares over strengths, a panel for each attribute, with intervals of 95%; dotted: both, by caption."""
    import matplotlib  # takes a second

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(kinds), figsize=(4 * len(kinds), 3.2), squeeze=False, sharey=True)
    for axis, kind in zip(axes.flat, kinds, strict=True):
        for name, colour in zip(OUTCOMES, ("tab:blue", "tab:green", "black"), strict=True):
            for way, style in (("direction", "-"), ("random", "--")):
                points = [scores[way][f"{kind} {name} @{strength:g}"] for strength in strengths]
                error = np.abs([np.subtract(p.interval or np.nan, p.value) for p in points]).T
                label = f"{name}, {way}"
                axis.errorbar(strengths, [p.value for p in points], error, None, style, color=colour, label=label)
        axis.axhline(scores["caption"][f"{kind} both"].value, color="black", linestyle=":", label="both, caption")
        axis.set(title=kind, xlabel="strength", ylim=(-0.03, 1.03))
    axes[0, 0].set_ylabel("share of images")
    axes[0, -1].legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    with atomic(path) as unfinished:
        figure.savefig(unfinished, dpi=120)
    pyplot.close(figure)


def read_strengths(texts: Sequence[str]) -> list[float]:
    """The numbers of --strengths, each once, in order."""
    try:
        found = sorted({float(text) for text in texts})
    except ValueError:
        raise UserError(f"--strengths {','.join(texts)}: give numbers with commas between them, as 0.5,1") from None
    if not found or not np.isfinite(found).all() or found[0] <= 0:
        raise UserError(f"--strengths {','.join(texts)}: give positive numbers; strength 0 is always there")
    return found
