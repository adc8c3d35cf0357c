"""Samples a run.

python -m zoo sample --workdir runs/demo --prompt "a large red star at the top left on a grey background" --num 16
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import einops
import numpy as np
from absl import flags

from zoo import media
from zoo.commands import sampling_flags
from zoo.commands.scaffold import Command
from zoo.data import pipeline
from zoo.errors import UserError, named
from zoo.evaluation.rerank import best_of, clip_reward, get_reward
from zoo.files import read_text
from zoo.scenes import oracle

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    sampling_flags.define()
    flags.DEFINE_multi_string("prompt", [], "A caption; may be given several times.")
    flags.DEFINE_string("prompts_file", None, "A file with a caption on each line.")
    flags.DEFINE_integer(
        "num", None, "Number of images, the prompts in turn; by default one per prompt.", lower_bound=1
    )
    flags.DEFINE_string(
        "out", "out.png", "File of the labelled grid: .png, of videos a sheet of all frames; .gif, .mp4 or .webm."
    )
    flags.DEFINE_bool("score", False, "Also print the images' CLIPScore.")
    flags.DEFINE_integer("best_of", 1, "Make so many images of each prompt and keep the best.", lower_bound=1)
    flags.DEFINE_string(
        "reward",
        "zoo:clip",
        "Reward for --best_of: oracle, zoo:clip, the folder of a CLIP, or the workdir of a run that scores.",
    )
    flags.DEFINE_string("clip", "zoo:clip", "Folder of a CLIP for --score; by default one trained on scenes.")
    flags.DEFINE_bool("each", False, "Also write each image by itself, into the folder --out without its suffix.")


def read_prompts(
    given: Sequence[str], file: str | None, num: int | None, source: Callable[[], pipeline.Source]
) -> list[str]:
    """Returns the captions to sample, `num` of them; without any given, those of a source."""
    prompts = list(given)
    if file:
        lines = named("--prompts_file", lambda: read_text(file)).splitlines()
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts:
        prompts = pipeline.captions(source(), limit=num or 16)
    num = num or len(prompts)
    if num < len(prompts):
        raise UserError(f"--num {num} is fewer than the {len(prompts)} prompts; give more, or fewer prompts")
    return [prompts[i % len(prompts)] for i in range(num)]


def main(_: list[str]) -> None:
    """Runs the command on parsed flags."""
    sampling = sampling_flags.read()
    run, data = sampling.run, sampling.run.recipe.data
    media.check_file(FLAGS.out)
    prompts = read_prompts(FLAGS.prompt, FLAGS.prompts_file, FLAGS.num, lambda: data.open("test"))
    world, count = oracle.world_of(data.source), FLAGS.best_of
    fps = sampling.frame_rate
    reward = get_reward(FLAGS.reward, world, fps) if count > 1 else None
    unread = oracle.unreadable(world, sampling.frames or data.frames, fps) if world else ""
    if count > 1 and FLAGS.reward == "oracle" and unread:
        raise UserError(f"--reward oracle: {unread}")
    sampler, cond = sampling.sampler(), sampling.conditions([prompt for prompt in prompts for _ in range(count)])

    sampler.compile(run.params, cond)
    began = time.perf_counter()
    images = sampler(run.params, cond, sampling.seed)
    seconds = time.perf_counter() - began
    rate = f"{len(images)} images in {seconds:.2f} s, {len(images) / seconds:.1f} images/s"
    numbers = np.arange(len(images))
    if reward:
        numbers, rewards = best_of(images, prompts, count, reward)
        rate += f"; mean {FLAGS.reward} of all {rewards.mean():.4f}, of the best {rewards[numbers].mean():.4f}"
    images = images[numbers]

    about = sampling.about() | ({"best_of": count, "reward": FLAGS.reward} if reward else {})
    out = Path(FLAGS.out)
    media.save(out, media.lay_out(out, images, prompts), fps, media.note(about | {"prompts": prompts}))
    print(f"{rate} -> {out}")
    if FLAGS.each:
        for i, (image, prompt, number) in enumerate(zip(images, prompts, numbers, strict=True)):
            note = {"prompt": prompt} | media.note(about | {"number": int(number)})
            side_by_side = out.suffix.lower() == ".png"  # the frames of a video; an image has one
            frames = einops.rearrange(image, "t h w c -> 1 h (t w) c") if side_by_side else image
            media.save(out.with_suffix("") / f"{i:04d}{out.suffix}", frames, fps, note)
        print(f"each by itself -> {out.with_suffix('')}/")
    if FLAGS.score:
        print(f"CLIPScore: {clip_reward(FLAGS.clip)(images, prompts).mean():.4f}")
    known = [i for i, prompt in enumerate(prompts) if oracle.understands(prompt)]
    strange = [prompts[i] for i in sorted(set(range(len(prompts))) - set(known))]
    if world and strange:
        print(
            f"{len(strange)} of {len(prompts)} prompts are not like the captions of {data.source}: "
            f"{strange[0]!r}; a caption is e.g. {pipeline.captions(data.open('test'), limit=1)[0]!r}"
        )
    if unread:
        print(f"no oracle: {unread}")
    elif world and known:
        table = oracle.table(images[known], [prompts[i] for i in known], world, fps)
        scores = ", ".join(f"{name} {right.mean():.1%}" for name, right in table.items())
        print(f"oracle on {len(known)} captions: {scores}")


COMMAND = Command(main, define_flags, hint="a caption is given by --prompt")
