"""Samples a run.

python -m zoo sample --workdir runs/demo --prompt "a large red star at the top left on a grey background" --num 16
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import einops
import numpy as np
from absl import flags
from PIL import Image

from zoo import media
from zoo.commands import sampling_flags
from zoo.commands.sampling_flags import Sampling
from zoo.commands.scaffold import Command
from zoo.data import folder, pipeline, videos
from zoo.data import images as files
from zoo.errors import UserError, named
from zoo.evaluation.rerank import best_of, clip_reward, get_reward
from zoo.files import read_text
from zoo.method import Upsamples
from zoo.runs.data import Data, SubjectData
from zoo.scenes import oracle

FLAGS = flags.FLAGS
RATE_OF_FILES = 0.05  # a GIF keeps hundredths of a second


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
    flags.DEFINE_integer("keep", 1, "With --best_of: number of the best that are kept, and upsampled.", lower_bound=1)
    sampling_flags.define_stages()
    flags.DEFINE_string("input", None, "An image or video for the stage --workdir to upsample, in place of a base run.")
    flags.DEFINE_bool("stages", False, "Show what each stage was given beside what came out at the end.")
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


class Made(NamedTuple):
    """Images or videos, and their way.

    Attributes:
      parts: images or videos after the run and each stage, (N, t, h, w, C) each, with their frames/s or None.
      numbers: of each image among all that the run made, (N,).
      prompts: the caption of each.
      rate: how fast, as a sentence.
    """

    parts: list[tuple[np.ndarray, float | None]]
    numbers: np.ndarray
    prompts: list[str]
    rate: str


def main(_: list[str]) -> None:
    """Runs the command on parsed flags."""
    if FLAGS.keep > FLAGS.best_of:
        raise UserError(f"--keep {FLAGS.keep} is more than the {FLAGS.best_of} images of --best_of")
    media.check_file(FLAGS.out)
    if FLAGS.each:
        media.check_file(file_of(0))
    if FLAGS.stages and not (FLAGS.upsample or FLAGS.input):
        raise UserError("--stages shows what stages were given: name one by --upsample, or drop it")
    sampling = sampling_flags.read()
    data = sampling.run.recipe.data
    none = [""] if FLAGS.input and not (FLAGS.prompt or FLAGS.prompts_file) else []  # a file has no caption
    prompts = read_prompts(FLAGS.prompt or none, FLAGS.prompts_file, FLAGS.num, lambda: data.open("test"))
    if isinstance(data, SubjectData):
        prompts = [data.filled(text) for text in prompts]
    elif FLAGS.adapter and any("{}" in text for text in prompts):
        raise UserError("a prompt has {}, which a run fills that has learned a word itself: write [NAME] and its noun")
    small = None
    if FLAGS.input:
        sampling, small = read_input(sampling)
    media.check_file(FLAGS.out, fps=sampling.final_frame_rate)
    clip_score = clip_reward(FLAGS.clip) if FLAGS.score else None
    made = draw(sampling, prompts) if small is None else upsample(sampling, small, prompts)
    images, fps = made.parts[-1]
    prompts = made.prompts

    about = sampling.about() | ({"best_of": FLAGS.best_of, "reward": FLAGS.reward} if FLAGS.best_of > 1 else {})
    about |= {"input": FLAGS.input} if FLAGS.input else {}
    out = Path(FLAGS.out)
    shown = side_by_side(made.parts) if FLAGS.stages else images
    media.save(out, media.lay_out(out, shown, prompts), fps, media.note(about | {"prompts": prompts}))
    print(f"{made.rate} -> {out}")
    if FLAGS.each:
        for i, (image, prompt, number) in enumerate(zip(images, prompts, made.numbers, strict=True)):
            note = {"prompt": prompt} | media.note(about | {"number": int(number)})
            in_a_row = out.suffix.lower() == ".png"  # the frames of a video; an image has one
            frames = einops.rearrange(image, "t h w c -> 1 h (t w) c") if in_a_row else image
            media.save(file_of(i), frames, fps, note)
        print(f"each by itself -> {out.with_suffix('')}/")
    if clip_score:
        print(f"CLIPScore: {clip_score(images, prompts).mean():.4f}")
    plain = [i for i, text in enumerate(prompts) if not sampling.run.recipe.tokenizer.names_in(text)]
    if plain:  # a learned word is none of the oracle's
        print_oracle(images[plain], [prompts[i] for i in plain], data, fps)


def file_of(number: int) -> Path:
    """Returns the file of one image of --each."""
    out = Path(FLAGS.out)
    return out.with_suffix("") / f"{number:04d}{out.suffix}"


def draw(sampling: Sampling, prompts: list[str]) -> Made:
    """Samples the run, keeps the best of each prompt, and upsamples these."""
    run, data, count, fps = sampling.run, sampling.run.recipe.data, FLAGS.best_of, sampling.frame_rate
    world = oracle.world_of(data.source)
    reward = get_reward(FLAGS.reward, world, fps) if count > 1 else None
    unread = oracle.unreadable(world, sampling.frames or data.frames, fps) if world else ""
    if count > 1 and FLAGS.reward == "oracle" and unread:
        raise UserError(f"--reward oracle: {unread}")
    sampler, cond = sampling.sampler(), sampling.conditions([prompt for prompt in prompts for _ in range(count)])
    sampler.compile(run.params, cond)
    began = time.perf_counter()
    images, calls = sampler.draw(run.params, cond, sampling.seed)
    seconds = time.perf_counter() - began
    rate = f"{len(images)} images in {seconds:.2f} s, {len(images) / seconds:.1f} images/s"
    rate += "" if calls is None else f", {calls.mean():.1f} calls of the network an image"
    numbers = np.arange(len(images))
    if reward:
        numbers, rewards = best_of(images, prompts, count, reward, FLAGS.keep)
        rate += f"; mean {FLAGS.reward} of all {rewards.mean():.4f}, of the best {rewards[numbers].mean():.4f}"
    prompts = [prompts[number // count] for number in numbers]
    return finish(sampling, images[numbers], numbers, prompts, rate)


def read_input(sampling: Sampling) -> tuple[Sampling, np.ndarray]:
    """Reads the file --input, uint8 (t, h, w, 3), and gives it to the run, a stage, and to those of --upsample."""
    run = sampling.run
    if FLAGS.best_of > 1:
        raise UserError("--best_of is for images that a base run makes, and --input is one: drop one of them")
    stage = run.method
    if not isinstance(stage, Upsamples):
        raise UserError(f"--input is for a stage of a cascade, and {FLAGS.workdir} draws from text: drop it")
    rate = run.recipe.frame_rate and run.recipe.frame_rate / stage.rate
    small = read_small(FLAGS.input, stage.small_shape(run.shape), rate)
    return sampling.given(FLAGS.input, small.shape, rate), small


def upsample(sampling: Sampling, small: np.ndarray, prompts: list[str]) -> Made:
    """Upsamples an image or a video under each prompt."""
    images = np.repeat(small[None], len(prompts), axis=0)
    return finish(sampling, images, np.arange(len(prompts)), prompts, f"{FLAGS.input} read")


def finish(sampling: Sampling, images: np.ndarray, numbers: np.ndarray, prompts: list[str], rate: str) -> Made:
    """Upsamples images by the stages, if there are any."""
    parts, cascade = [(images, sampling.frame_rate)], sampling.cascade
    if cascade:
        began = time.perf_counter()
        drawn = sampling.upsampled(images, prompts, numbers)
        rate += f"; {len(cascade.stages)} stages in {time.perf_counter() - began:.2f} s with compiling"
        parts += [(part, stage.run.recipe.frame_rate) for part, stage in zip(drawn, cascade.stages, strict=True)]
    return Made(parts, numbers, prompts, rate)


def read_small(name: str, shape: tuple[int, ...], frame_rate: float | None) -> np.ndarray:
    """Returns the image or video in a file, uint8 (t, h, w, 3).

    Args:
      name: path of the file.
      shape: what the stage upsamples, (t, h, w, C).
      frame_rate: frames/s that it upsamples; None for images.

    Raises:
      UserError: there is no such file, or it has another kind, size or frame rate.
    """

    def fit(image):
        width, height = files.size_of(image)
        if (width, height) != (shape[2], shape[1]):
            raise UserError(
                f"--input: {name} is {width} x {height} px, not {shape[2]} x {shape[1]} px: give one of this size"
            )
        return files.fit(image, shape[2])

    path = named("--input", lambda: folder.find_file(name, video=frame_rate is not None))
    try:
        if not frame_rate:
            image: Any = Image.open(path)
            if getattr(image, "n_frames", 1) > 1:
                raise UserError(f"--input: {name} has {image.n_frames} frames, and this stage upsamples images")
            return fit(image)[None]
        video = videos.read(path.suffix.lower(), path.read_bytes(), fit)
    except UserError:
        raise
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise UserError(f"--input: {name} cannot be read ({error}): give another file") from None
    if not math.isclose(video.rate, frame_rate, rel_tol=RATE_OF_FILES):
        raise UserError(
            f"--input: {name} has {video.rate:.3g} frames/s, and this stage upsamples {frame_rate:g}: give one of that"
        )
    return video.frames[video.order]


def side_by_side(parts: list[tuple[np.ndarray, float | None]]) -> np.ndarray:
    """Puts images of each part beside each other, pixels and frames repeated to the size of the last, or larger."""
    last, final_rate = parts[-1]
    frames, stretched = np.arange(last.shape[1]), []
    for images, fps in parts:
        ratio = fps / final_rate if fps and final_rate else 0.0
        shown = images[:, np.minimum((frames * ratio + 1e-6).astype(int), images.shape[1] - 1)]
        times = last.shape[2] // shown.shape[2] * math.ceil(media.VISIBLE / last.shape[2])
        stretched.append(einops.repeat(shown, "n t h w c -> n t (h y) (w x) c", y=times, x=times))
    return np.concatenate(stretched, axis=3)


def print_oracle(images: np.ndarray, prompts: list[str], data: Data, fps: float | None) -> None:
    """Prints what the oracle finds of scenes, or why it cannot."""
    world = oracle.world_of(data.source)
    if not world:
        return
    known = [i for i, prompt in enumerate(prompts) if oracle.understands(prompt)]
    strange = [prompts[i] for i in sorted(set(range(len(prompts))) - set(known)) if prompts[i]]
    if strange:
        print(
            f"{len(strange)} of {len(prompts)} prompts are not like the captions of {data.source}: "
            f"{strange[0]!r}; a caption is e.g. {pipeline.captions(data.open('test'), limit=1)[0]!r}"
        )
    unread = oracle.unreadable(world, images.shape[1], fps)
    if unread:
        print(f"no oracle: {unread}")
    elif known:
        table = oracle.table(images[known], [prompts[i] for i in known], world, fps)
        scores = ", ".join(f"{name} {right.mean():.1%}" for name, right in table.items())
        print(f"oracle on {len(known)} captions: {scores}")


COMMAND = Command(main, define_flags, hint="a caption is given by --prompt")
