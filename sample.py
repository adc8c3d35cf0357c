"""Samples a run:

python sample.py --workdir runs/demo --prompt "a large red star at the top left on a grey background" --num 16
"""

import json
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from zoo import media, sampling_flags
from zoo.config import parse_flags
from zoo.data import pipeline
from zoo.errors import BadInput, exit_on_bad_input
from zoo.scoring import oracle
from zoo.scoring.judge import best_of, get_judge
from zoo.training import parallel

FLAGS = flags.FLAGS
sampling_flags.define()
flags.DEFINE_multi_string("prompt", [], "A caption; may be given several times.")
flags.DEFINE_string("prompts_file", None, "A file with a caption on each line.")
flags.DEFINE_integer("num", None, "Pictures in all, the prompts taken in turn; by default one a prompt.", lower_bound=1)
flags.DEFINE_string("out", "out.png", "Where to write the labelled grid: .png, .gif or .mp4.")
flags.DEFINE_bool("score", False, "Also print the pictures' CLIPScore.")
flags.DEFINE_integer("best_of", 1, "Make so many pictures of each prompt and keep the best.", lower_bound=1)
flags.DEFINE_string("judge", "clip", "Who says which is best: clip, oracle, or the workdir of a run that can rate.")
flags.DEFINE_string("clip", None, "Folder of a CLIP for --score and --judge; by default one that knows scenes alone.")
flags.DEFINE_bool("each", False, "Also write each picture by itself, into a folder named as --out.")


def read_prompts(source) -> list[str]:
    """The captions to sample, `num` of them; without any given, those of the test split."""
    prompts = list(FLAGS.prompt)
    if FLAGS.prompts_file:
        if not Path(FLAGS.prompts_file).is_file():
            raise BadInput(f"--prompts_file: no such file: {FLAGS.prompts_file!r}")
        prompts += [line.strip() for line in Path(FLAGS.prompts_file).read_text().splitlines() if line.strip()]
    if not prompts:
        prompts = pipeline.captions(source(), limit=FLAGS.num or 16)
    num = FLAGS.num or len(prompts)
    if num < len(prompts):
        raise BadInput(f"--num {num} is fewer than the {len(prompts)} prompts; give more, or fewer prompts")
    return [prompts[i % len(prompts)] for i in range(num)]


def main(argv):
    if argv[1:]:
        raise BadInput(f"no such argument: {argv[1]!r}; a caption is given by --prompt")
    parallel.use_compilation_cache()
    run = sampling_flags.open_run()
    recipe, options, traced = run.recipe, sampling_flags.options(), sampling_flags.traced_options(run)
    prompts = read_prompts(lambda: recipe.data.open("test"))
    world = oracle.world_of(recipe.data.source)
    judge = get_judge(FLAGS.judge, world, FLAGS.clip) if FLAGS.best_of > 1 else None
    sampler = run.sampler(FLAGS.per_device, **options)
    tokens = recipe.tokenizer.encode([prompt for prompt in prompts for _ in range(FLAGS.best_of)])

    sampler.compile(run.params, tokens, **traced)
    began = time.perf_counter()
    pictures = sampler(run.params, tokens, FLAGS.seed, **traced)
    seconds = time.perf_counter() - began
    rate = f"{len(pictures)} pictures in {seconds:.2f} s, {len(pictures) / seconds:.1f} pictures/s"
    numbers = best_of(pictures, prompts, FLAGS.best_of, judge) if judge else np.arange(len(pictures))
    pictures = pictures[numbers]

    settings = dict(recipe.config.sample) | options
    about = {"run": FLAGS.workdir, "checkpoint": run.step, "ema": FLAGS.ema, "seed": FLAGS.seed, "settings": settings}
    if judge:
        about |= {"best_of": FLAGS.best_of, "judge": FLAGS.judge}
    out = Path(FLAGS.out)
    media.save(out, media.grid(pictures, labels=prompts), metadata={"zoo": json.dumps(about | {"prompts": prompts})})
    print(f"{rate} -> {out}")
    if FLAGS.each:
        for i, (picture, prompt, number) in enumerate(zip(pictures, prompts, numbers, strict=True)):
            note = {"prompt": prompt, "zoo": json.dumps(about | {"number": int(number)})}
            media.save(out.with_suffix("") / f"{i:04d}{out.suffix}", picture, metadata=note)
        print(f"each by itself -> {out.with_suffix('')}/")
    if FLAGS.score:
        print(f"CLIPScore: {get_judge('clip', world, FLAGS.clip)(pictures, prompts).mean():.4f}")
    known = [i for i, prompt in enumerate(prompts) if world and oracle.understands(prompt)]
    if known:
        table = oracle.table(pictures[known], [prompts[i] for i in known], world)
        scores = ", ".join(f"{name} {right.mean():.1%}" for name, right in table.items())
        print(f"oracle on {len(known)} captions: {scores}")


if __name__ == "__main__":
    with exit_on_bad_input():
        app.run(main, flags_parser=parse_flags)
