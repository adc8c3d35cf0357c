"""Counts how many kinds of images a run makes.

    python -m zoo mode_coverage --workdir RUN --num 5000

The run was trained on scenes/modes, 1,152 scenes that are all equally likely, without captions: by
`--config.method.caption_drop=1.0`, under a critic by `--config.method.base.caption_drop=1.0` and
`--config.method.mismatch=0.0`. It is sampled under the empty caption, which needs no guidance. See
`evaluation.mode_coverage` for the scores. As many real images give the ceiling, since a small sample of equal shares is
uneven too.
"""

from pathlib import Path

from absl import flags

from zoo.commands import sampling_flags
from zoo.commands.scaffold import Command
from zoo.errors import UserError
from zoo.evaluation import report
from zoo.evaluation.mode_coverage import coverage
from zoo.evaluation.registry import first_of
from zoo.files import write_json
from zoo.scenes.world import UNIFORM

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    sampling_flags.define()
    flags.DEFINE_integer("num", 5000, "Number of images.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON file; by default WORKDIR/mode_coverage.json.")


def main(_: list[str]) -> None:
    """Runs the command on parsed flags."""
    sampling = sampling_flags.read()
    run = sampling.run
    name = run.recipe.data.source.partition("?")[0].removeprefix("scenes/")
    if name not in UNIFORM:
        raise UserError(f"modes are counted of runs on scenes/{' and scenes/'.join(UNIFORM)}, not on {name}")
    method = run.recipe.config.method
    if not method.get("base", method).caption_drop:
        raise UserError(f"{sampling.workdir} was never trained on the empty caption: train it with caption_drop=1")
    real = first_of(run.recipe.data, "train", FLAGS.num).images
    made = sampling.sampler()(run.params, sampling.conditions([""] * FLAGS.num), sampling.seed)
    scores = {"model": coverage(made, UNIFORM[name]), "ceiling": coverage(real, UNIFORM[name])}
    print(report.to_table(scores))
    out = Path(FLAGS.out or f"{sampling.workdir}/mode_coverage.json")
    write_json(out, report.to_json(scores, sampling.about() | {"num": FLAGS.num}))
    print(f"{FLAGS.num} images -> {out}")


COMMAND = Command(main, define_flags, suffixes=(".json",))
