"""Scores a run: python -m zoo.scoring --workdir runs/demo --num 256"""

import json
from pathlib import Path

import numpy as np
from absl import app, flags

from zoo import sampling_flags
from zoo.config import parse_flags
from zoo.errors import BadInput, exit_on_bad_input
from zoo.scoring import oracle
from zoo.training import parallel

FLAGS = flags.FLAGS
sampling_flags.define()
flags.DEFINE_integer("num", 256, "Captions of the test split to sample and score.", lower_bound=1)
flags.DEFINE_string("split", "test", "Split of the run's data that the captions come from.")
flags.DEFINE_string("out", None, "JSON file; by default scores.json in the workdir.")


def main(argv):
    if argv[1:]:
        raise BadInput(f"no such argument: {argv[1]!r}; flags begin with --")
    parallel.use_compilation_cache()
    run = sampling_flags.open_run()
    recipe = run.recipe
    world = oracle.world_of(recipe.data.source)
    if world is None:
        raise BadInput(f"the truth of {recipe.data.source!r} is not known: the oracle reads scenes/... alone")
    source = recipe.data.open(FLAGS.split)
    if FLAGS.num > len(source):
        raise BadInput(f"--num {FLAGS.num} is more than the {len(source)} captions of split {FLAGS.split!r}")
    real = [source[i] for i in range(FLAGS.num)]
    texts, pictures = [item["text"] for item in real], np.stack([item["pixels"] for item in real])

    sampler = run.sampler(FLAGS.per_device, **sampling_flags.options())
    made = sampler(run.params, recipe.tokenizer.encode(texts), FLAGS.seed, **sampling_flags.traced_options(run))
    scores = oracle.report(made, texts, pictures, texts, world, FLAGS.seed)
    print(to_table(scores))
    out = Path(FLAGS.out) if FLAGS.out else Path(FLAGS.workdir) / "scores.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(scores, indent=2) + "\n")
    print(f"{FLAGS.num} captions of {FLAGS.split}, checkpoint {run.step} -> {out}")


def to_table(scores: dict[str, dict[str, float]]) -> str:
    """{"model": {"all": 0.9}} as lines of text, an attribute a column."""
    columns = list(next(iter(scores.values())))
    lines = [" " * 8 + "".join(f"{name:>12}" for name in columns)]
    lines += [f"{row:8}" + "".join(f"{values[name]:>12.1%}" for name in columns) for row, values in scores.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    with exit_on_bad_input():
        app.run(main, flags_parser=parse_flags)
