"""Computes bits per dimension of real images under a run.

    python -m zoo likelihood --workdir RUN --num 256 --split test

Those of a run on the codes of a tokenizer are bits per code. They are exact, or an upper bound, under each image's own
caption. The entropy of scenes/entropy is known, and a mean below it is a bug. More steps of the ODE give a smaller
error: `--tolerance 0.01` doubles them until no image's bits change by more.
"""

import dataclasses
import functools
from pathlib import Path

from absl import flags

from zoo.commands import sampling_flags
from zoo.commands.scaffold import Command, refuse
from zoo.errors import UserError
from zoo.evaluation import model_eval
from zoo.evaluation.measures import known_entropy, mean_score
from zoo.evaluation.registry import first_of
from zoo.evaluation.report import show
from zoo.families import require
from zoo.files import write_json
from zoo.method import HasLikelihood

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    sampling_flags.define()
    flags.DEFINE_integer("num", 256, "Number of images.", lower_bound=2)
    flags.DEFINE_string("split", "test", "Split of the run's data.")
    flags.DEFINE_bool("no_captions", False, "Under the empty caption instead of each image's own.")
    about = "Double the ODE's steps until no image changes by more bits per dimension."
    flags.DEFINE_float("tolerance", None, about, lower_bound=0)
    flags.DEFINE_string("out", None, "JSON file; by default WORKDIR/likelihood.json.")


def main(_: list[str]) -> None:
    """Runs the command on parsed flags."""
    sampling = sampling_flags.read()
    run, options = sampling.run, dict(sampling.options)
    if sampling.guided or sampling.negative:
        raise UserError("a likelihood uses no guidance: drop --negative, the --guide_ flags and --speculate")
    refuse(("frames", "fps"), "is for samples, and likelihoods are of the data: drop it")
    method = require(run.method, HasLikelihood)
    defaults = dataclasses.asdict(method.LikelihoodOptions())
    real = first_of(run.recipe.data, FLAGS.split, FLAGS.num)
    captions = [""] * FLAGS.num if FLAGS.no_captions else real.require_captions()
    bits = functools.partial(model_eval.bits_per_dim, run, real.images, captions, sampling.seed, sampling.per_device)
    options, change = defaults | options, None
    if FLAGS.tolerance is None:
        values = bits(**options)
    else:
        if "steps" not in defaults:
            raise UserError(f"--tolerance needs an ODE, and {type(method).__name__} has none")
        at = lambda steps: bits(**options | {"steps": steps})
        values, options["steps"], change = model_eval.settled(at, options["steps"], FLAGS.tolerance)
    score = mean_score(values)
    entropy = known_entropy(run.recipe.data, bool(FLAGS.no_captions))
    kind = model_eval.dimension(run)
    result = {
        kind: score.value,
        "interval": score.interval,
        "entropy": entropy,
        "gap": None if entropy is None else score.value - entropy,
        "change_by_doubling": change,
        "run": sampling.workdir,
        "checkpoint": run.step,
        "ema": sampling.ema,
        "split": FLAGS.split,
        "num": FLAGS.num,
        "captions": not FLAGS.no_captions,
        "seed": sampling.seed,
        "options": options,
    }
    out = Path(FLAGS.out or f"{sampling.workdir}/likelihood.json")
    write_json(out, result)
    print(f"{show(score)} {model_eval.BITS[kind]} of {FLAGS.num} images -> {out}")
    if entropy is not None:
        print(f"the entropy is {entropy:.4f}; bits per dimension minus entropy is {result['gap']:.4f}")
    if change is not None:
        print(f"{options['steps']} steps; half as many change no image by more than {change:.4f}")


COMMAND = Command(main, define_flags, suffixes=(".json",))
