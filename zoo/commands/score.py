"""Scores a run or a folder of images.

python -m zoo score --workdir runs/demo --num 256
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from PIL import Image

import zoo.evaluation.measures  # noqa: F401, which registers them
from zoo import media
from zoo.commands import sampling_flags
from zoo.commands.sampling_flags import Sampling
from zoo.commands.scaffold import Command, refuse
from zoo.data import images as files
from zoo.data import pipeline
from zoo.errors import UserError, named
from zoo.evaluation import model_eval, registry, report
from zoo.evaluation.features import Features, clip_features, inception_features, motion_features
from zoo.evaluation.measures import known_entropy
from zoo.evaluation.registry import MEASURES, EvalContext, Pair, Sample, Score, evaluate, first_of, make_context
from zoo.families import require
from zoo.files import read_text, write_json
from zoo.method import Generates, Reconstructs, Upsamples
from zoo.runs.data import Data
from zoo.runs.dependencies import open_run
from zoo.runs.run import Run

FLAGS = flags.FLAGS
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def define_flags() -> None:
    """Defines the flags of this command."""
    sampling_flags.define(workdir_required=False)
    sampling_flags.define_stages()
    flags.DEFINE_string("images", None, "Instead of --workdir: a folder of images.")
    flags.DEFINE_string("prompts", None, "A file with the caption of each image, in the order of the images' names.")
    flags.DEFINE_string("reference", None, "Real images to compare with, as data.source; by default the run's data.")
    flags.DEFINE_integer("num", 256, "Number of captions of --split to sample and score.", lower_bound=2)
    flags.DEFINE_integer("num_reference", 2000, "Most real images of split train to compare with.", lower_bound=2)
    flags.DEFINE_string("split", "test", "Split of the captions and of the held-out images.")
    flags.DEFINE_list("measures", ["all"], "Names of measures, with commas; all is all that can be computed.")
    flags.DEFINE_string(
        "references", None, "Other captions of each image, in order: a JSON list of texts on each line."
    )
    flags.DEFINE_string("clip", "zoo:clip", "Folder of a CLIP, as Hugging Face's; by default one trained on scenes.")
    flags.DEFINE_string("clip_prefix", "", "Text before each caption for CLIP, e.g. 'A photo depicts '.")
    flags.DEFINE_string("inception", None, "Published Inception weights as safetensors, for fid; see docs/score.md.")
    flags.DEFINE_string("inception_resize", "pytorch", "How Inception's images are resized: pytorch or clean.")
    flags.DEFINE_string("motion", None, "A run of configs/clip.py:video, for motion_distance; see docs/score.md.")
    flags.DEFINE_string(
        "out",
        None,
        "JSON file, and a chart beside it; by default WORKDIR/scores.json, with --upsample upsampled_scores.json.",
    )


class Subject(NamedTuple):
    """Images to be scored: the data they are compared with, their origin for the JSON file, and their run."""

    sample: Sample
    data: Data | None
    about: dict[str, Any]
    run: Run | None = None


def main(_: list[str]) -> None:
    """Runs the command on parsed flags."""
    if (FLAGS.workdir is None) == (FLAGS.images is None):
        raise UserError("give either --workdir, a run, or --images, a folder")
    registry.chosen(FLAGS.measures)
    networks = {}
    if registry.needs_clip(FLAGS.measures):
        networks["clip"] = clip_features(FLAGS.clip, FLAGS.clip_prefix)
    if FLAGS.inception:
        networks["inception"] = inception_features(FLAGS.inception, FLAGS.inception_resize)
    if FLAGS.motion:
        networks["motion"] = motion_features(open_run(FLAGS.motion))
    sampling = sampling_flags.read() if FLAGS.workdir else None
    upsampled = sampling is not None and (sampling.is_stage or bool(FLAGS.upsample))
    registry.check(FLAGS.measures, networks, upsampled, bool(FLAGS.workdir) and not FLAGS.upsample)
    if sampling is not None:
        subject = of_run(sampling, FLAGS.split, FLAGS.num, FLAGS.references, FLAGS.reference)
        name, out = FLAGS.workdir, f"{FLAGS.workdir}/{'upsampled_' if FLAGS.upsample else ''}scores.json"
    else:
        refuse(sampling_flags.OF_SAMPLES, "is for runs: drop it, or give --workdir in place of --images")
        if not FLAGS.reference:
            refuse(("split", "num", "num_reference"), "is of real images: drop it, or name them by --reference")
        subject = of_folder(FLAGS.images, FLAGS.prompts, FLAGS.references, FLAGS.reference)
        name, out = FLAGS.images, f"{FLAGS.images.rstrip('/')}_scores.json"  # beside, or the chart would be one of them
    own = FLAGS.reference is None
    context = context_of(subject, networks, own, FLAGS.split, FLAGS.num, FLAGS.num_reference, FLAGS.seed)
    scores, missing = score(subject, context, FLAGS.measures)
    print(report.to_table(scores))
    for measure, reason in missing.items():
        print(f"without {measure}: {reason.removeprefix(f'{measure}: ')}")
    out = Path(FLAGS.out or out)
    write_json(out, report.to_json(scores, subject.about))
    report.to_chart(scores, out.with_suffix(".png"), str(name))
    print(f"{len(subject.sample.images)} images -> {out}, {out.with_suffix('.png')}")


COMMAND = Command(main, define_flags, suffixes=(".json",))


def score(
    subject: Subject, context: EvalContext, names: Sequence[str]
) -> tuple[dict[str, dict[str, Score]], dict[str, str]]:
    """Returns the scores of a model between ceiling and floor, and the reasons of the measures that were left out.

    What a cascade made has beside it what its last stage was given, enlarged without a network.
    """
    sample = subject.sample
    model, missing = evaluate(sample, context, names)
    scores = {"model": model}
    computed = [name for name in registry.chosen(names) if name not in missing]
    if sample.pair:
        measures = [name for name in computed if not MEASURES[name].of_run]
        for how, images in registry.enlarged(sample.pair, sample.images.shape[1]).items():
            scores[how] = evaluate(dataclasses.replace(sample, images=images), context, measures)[0]
    if context.held_out:
        shown = [name for name in computed if MEASURES[name].of_real]
        if context.held_out.references is None:
            shown = [name for name in shown if name != "ref_clip_score"]
        ceiling, floor = evaluate(context.held_out, context, shown)[0], registry.floor(context.held_out, context, shown)
        scores |= {"ceiling": ceiling, "floor": floor}
        if "bits_per_dim" in model and subject.data and (entropy := known_entropy(subject.data)) is not None:
            scores["ceiling"]["bits_per_dim"] = Score(entropy)
    return scores, missing


def of_run(sampling: Sampling, split: str, num: int, references: str | None, reference: str | None) -> Subject:
    """Samples a run from the first captions of a split, and upsamples what it makes by the stages.

    A run that is itself a stage is given the small versions of the split's images, of --frames where it is given. One
    that makes no samples, as a tokenizer, reconstructs the split's images, and those are scored.
    """
    last = sampling.runs[-1][1] if sampling.runs else sampling.run
    recipe, is_stage, evaluations, calls = last.recipe, sampling.is_stage, 0, None
    others = read_references(references, num)
    if reference:
        compared = dataclasses.replace(recipe.data, source=reference, frames=sampling.final_frames)
        named("--reference", lambda: compared.open("test"))
    longer = {"frames": sampling.frames} if is_stage and sampling.frames and recipe.frame_rate else {}
    if longer:
        check_length(sampling, longer["frames"])
    real = first_of(dataclasses.replace(recipe.data, **longer), split, num)
    texts = real.require_captions()
    if is_stage:
        sampling, small = given_small(sampling, real.images, recipe.frame_rate)
        began = time.perf_counter()
        made = [small]
    elif isinstance(recipe.method, Reconstructs) and not isinstance(recipe.method, Generates):
        refuse(("steps", "guidance", "option", "negative", "frames", "fps"), "is for samples: this run reconstructs")
        began = time.perf_counter()
        made = [model_eval.reconstruct(sampling.run, real.images, texts, sampling.seed, sampling.per_device)]
    else:
        sampler, cond = sampling.sampler(), sampling.conditions(list(texts))
        sampler.compile(sampling.run.params, cond)
        began = time.perf_counter()
        drawn = sampler.draw(sampling.run.params, cond, sampling.seed)
        made, evaluations, calls = [drawn.images], sampler.evaluations, drawn.calls
    made += sampling.upsampled(made[0], texts)
    about = sampling.about() | {
        "split": split,
        "num": len(texts),
        "samples_per_second": len(texts) / (time.perf_counter() - began),
        "evaluations": evaluations + (sampling.cascade.evaluations if sampling.cascade else 0),
    }
    about |= {} if calls is None else {"calls": float(calls.mean())}
    rate = sampling.final_frame_rate
    data = dataclasses.replace(recipe.data, source=reference or recipe.data.source, frames=made[-1].shape[1])
    if reference is None and rate not in (None, recipe.frame_rate):  # real videos of the rate that was sampled
        data = dataclasses.replace(data, source=pipeline.with_option(data.source, "fps", f"{rate:g}"))
    exact = real.images if is_stage else None
    cascade = sampling.cascade
    pair = Pair(require(last.method, Upsamples), made[-2], exact, cascade.stages[-1].seams) if cascade else None
    sample = Sample(made[-1], texts, others, rate, pair)
    return Subject(sample, data, about, None if FLAGS.upsample else last)


def check_length(sampling: Sampling, frames: int) -> None:
    """Raises UserError where so many frames have no small version for a stage and those after it."""
    for name, run in sampling.runs[::-1]:
        shape = (frames, *run.shape[1:])
        frames = named(name, lambda run=run, shape=shape: require(run.method, Upsamples).small_shape(shape))[0]


def given_small(sampling: Sampling, real: np.ndarray, frame_rate: float | None) -> tuple[Sampling, np.ndarray]:
    """Gives a stage, and those after it, the small versions of real images; returns these too.

    Args:
      sampling: stage, opened.
      real: what the last stage makes, uint8 (N, T, H, W, C).
      frame_rate: its frames/s; None for images.
    """
    for name, run in sampling.runs[::-1]:
        stage = require(run.method, Upsamples)
        named(name, lambda stage=stage, shape=real.shape[1:]: stage.small_shape(shape))
        real, frame_rate = registry.smaller(stage, real), frame_rate and frame_rate / stage.rate
    return sampling.given("small versions of real images", real.shape[1:], frame_rate), real


def of_folder(name: str, prompts: str | None, references: str | None, reference: str | None) -> Subject:
    """Reads a folder of images. All get the size of the first one's shorter side."""
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"--images: no such folder: {name!r}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"--images: {name} holds no image ({', '.join(SUFFIXES)})")
    strip = next((path for path in paths if path.suffix == ".png" and frames_in(path) > 1), None)
    if strip:
        raise UserError(f"--images: {strip} shows the frames of a video in a row: score the run by --workdir")
    size = min(open_image(paths[0]).size)
    made = np.stack([files.fit(open_image(path), size) for path in paths])[:, None]
    sample = Sample(made, read_prompts(prompts, paths), read_references(references, len(made)))
    return Subject(sample, Data(reference, size) if reference else None, {"images": name, "num": len(paths)})


def frames_in(path: Path) -> int:
    """Returns the frames that a PNG of sample.py --each shows, by its note; 1 for another file."""
    try:
        return int(json.loads(media.read_metadata(path).get("zoo", "{}")).get("frames", 1))
    except (ValueError, TypeError, AttributeError, UserError, OSError, SyntaxError):
        return 1


def open_image(path: Path) -> Image.Image:
    """Opens an image. Raises UserError where it cannot be read."""
    try:
        image = Image.open(path)
        image.load()
        return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it, and its line of --prompts") from None


def read_prompts(name: str | None, paths: list[Path]) -> list[str] | None:
    """Returns the captions of images: lines of a file, else those that sample.py --each wrote into them, else None."""
    if name is None:
        found = [media.read_metadata(path).get("prompt") for path in paths if path.suffix == ".png"]
        inside = [prompt for prompt in found if prompt is not None]
        return inside if len(inside) == len(paths) else None
    lines = [line.strip() for line in named("--prompts", lambda: read_text(name)).splitlines() if line.strip()]
    if len(lines) != len(paths):
        raise UserError(f"--prompts: {name} has {len(lines)} captions for {len(paths)} images; give one each")
    return lines


def read_references(name: str | None, count: int) -> list[list[str]] | None:
    """Returns the lines of a file of other captions, one for each of `count` images; None without a file."""
    if name is None:
        return None
    found = []
    for number, line in enumerate(named("--references", lambda: read_text(name)).rstrip("\n").split("\n"), 1):
        try:
            texts = json.loads(line)
        except ValueError:
            texts = None
        if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
            raise UserError(f"--references: line {number} of {name} is no JSON list of texts: {line[:40]!r}")
        found.append(texts)
    if len(found) != count:
        raise UserError(f"--references: {name} has {len(found)} lines for {count} images; give one each")
    return found


def context_of(
    subject: Subject,
    networks: dict[str, Features],
    own_data: bool,
    split: str,
    num: int,
    num_reference: int,
    seed: int,
) -> EvalContext:
    """Returns the context of a subject; with `own_data` the captions are those of the real images."""
    if subject.data is None:
        return EvalContext(networks, {}, None, None, seed)
    real, made = first_of(subject.data, split, num), subject.sample
    if made.frame_rate and real.frame_rate and not np.isclose(made.frame_rate, real.frame_rate):
        raise UserError(
            f"--reference has {real.frame_rate:g} frames/s and the samples {made.frame_rate:g}: add ?fps= to it"
        )
    real = dataclasses.replace(real, references=subject.sample.references if own_data else None)
    return dataclasses.replace(make_context(networks, subject.data, real, num_reference, seed), run=subject.run)
