"""How probable real pictures are under a run: python -m zoo.scoring.likelihood --workdir RUN --num 256 --split test

Bits per dimension, or an upper bound of them, under each picture's own caption. Of scenes/entropy the truth is known,
and a mean below it is a bug. An ODE's steps are its error: `--tolerance 0.01` doubles them until it is small.
"""

import functools
import json
from pathlib import Path

from absl import app, flags

from zoo import sampling_flags
from zoo.config import ability, parse_flags
from zoo.errors import BadInput, exit_on_bad_input
from zoo.scoring import ask
from zoo.scoring.measures import first_of, known_entropy, mean_score
from zoo.scoring.report import show
from zoo.training import parallel

FLAGS = flags.FLAGS

sampling_flags.define()
flags.DEFINE_integer("num", 256, "Pictures.", lower_bound=2)
flags.DEFINE_string("split", "test", "Of the run's data.")
flags.DEFINE_bool("no_captions", False, "Under the empty caption instead of each picture's own.")
flags.DEFINE_float("tolerance", None, "Double the ODE's steps until no picture changes by more bits per dimension.")
flags.DEFINE_string("out", None, "JSON file; by default WORKDIR/likelihood.json.")


def main(argv):
    if argv[1:]:
        raise BadInput(f"no such argument: {argv[1]!r}; flags begin with --")
    parallel.use_compilation_cache()
    run, options = sampling_flags.open_run(), sampling_flags.options()
    if sampling_flags.traced_options(run):
        raise BadInput("a likelihood is of the run alone: drop the --guide_ flags")
    defaults = ability(run.recipe.method, "bits_per_dim").__kwdefaults__ or {}
    real = first_of(run.recipe.data, FLAGS.split, FLAGS.num)
    captions = [""] * FLAGS.num if FLAGS.no_captions else real.captions
    bits = functools.partial(ask.bits_per_dim, run, real.pictures, captions, FLAGS.seed, FLAGS.per_device)
    options, change = defaults | options, None
    if FLAGS.tolerance is None:
        values = bits(**options)
    else:
        if "steps" not in defaults:
            raise BadInput(f"--tolerance is of an ODE's steps, and {type(run.recipe.method).__name__} has none")
        at = lambda steps: bits(**options | {"steps": steps})
        values, options["steps"], change = ask.settled(at, options["steps"], FLAGS.tolerance)
    score = mean_score(values)
    entropy = known_entropy(run.recipe.data, bool(FLAGS.no_captions))
    report = {
        "bits_per_dim": score.value,
        "interval": score.interval,
        "entropy": entropy,
        "gap": None if entropy is None else score.value - entropy,
        "change_by_doubling": change,
        "run": FLAGS.workdir,
        "checkpoint": run.step,
        "ema": FLAGS.ema,
        "split": FLAGS.split,
        "num": FLAGS.num,
        "captions": not FLAGS.no_captions,
        "seed": FLAGS.seed,
        "options": options,
    }
    out = Path(FLAGS.out or f"{FLAGS.workdir}/likelihood.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"{show(score)} bits per dimension of {FLAGS.num} pictures -> {out}")
    if entropy is not None:
        print(f"the entropy is {entropy:.4f}, {report['gap']:.4f} below")
    if change is not None:
        print(f"{options['steps']} steps; half as many change no picture by more than {change:.4f}")


if __name__ == "__main__":
    with exit_on_bad_input():
        app.run(main, flags_parser=parse_flags)
