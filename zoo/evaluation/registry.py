"""Samples, the context that they are scored against, and the registry of measures.

A measure is one function (sample, context) -> scores by name. It declares itself by `@measure` in `measures.py`: its
network, its better direction, and its floor. Nothing else needs to be changed to add one.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError, unknown_name_error
from zoo.evaluation import model_eval
from zoo.evaluation.features import Features, of_source
from zoo.method import Upsamples, to_float, to_uint8
from zoo.resize import resize
from zoo.runs.data import Data
from zoo.runs.run import Run
from zoo.scenes import oracle

FEW = 64  # held-out images for evaluations of a run, which are much slower than sampling


@dataclasses.dataclass(frozen=True)
class Score:
    """A score.

    Attributes:
      value: the number.
      interval: 95% confidence interval, or None.
      note: caveat.
      better: see `Measure`; "" for that of the measure.
    """

    value: float
    interval: tuple[float, float] | None = None
    note: str = ""
    better: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """Images that a stage of a cascade was given.

    Attributes:
      stage: the stage's family.
      small: what it upsampled, uint8 (N, t, h, w, 3).
      real: real images of which `small` is the small version, uint8 (N, T, H, W, 3); None for what a run made.
      seams: frames with which another window of a long video begins.
    """

    stage: Upsamples
    small: np.ndarray
    real: np.ndarray | None = None
    seams: tuple[int, ...] = ()

    @classmethod
    def of(cls, method: Any, real: np.ndarray) -> "Pair | None":
        """Returns the pair of real images and their small versions; None if the family is no stage."""
        return cls(method, smaller(method, real), real) if isinstance(method, Upsamples) else None


def smaller(stage: Upsamples, images: np.ndarray) -> np.ndarray:
    """Returns the small versions of images as a stage is given them, uint8 (N, t, h, w, 3)."""
    low_res = stage.given_by(to_float(jnp.asarray(images)))["low_res"]
    return np.asarray(to_uint8(low_res))[:, :: stage.rate]


def enlarged(pair: Pair, frames: int) -> dict[str, np.ndarray]:
    """Returns the small images at the size and frame rate of the stage, as one makes them without a network.

    Args:
      pair: images that were upsampled.
      frames: frames of what came out; what is longer than the small ones repeats the last.

    Returns:
      uint8 (N, frames, H, W, 3) by name: "bicubic", or where the frame rate grows "repeated", in which frames are
      repeated, and "blended", in which they are mixed with the next one.
    """
    scale, rate = pair.stage.scale, pair.stage.rate
    count, there, rows, columns = pair.small.shape[:4]
    flat = pair.small.reshape(count * there, rows, columns, -1)
    made = np.asarray(resize(jnp.asarray(flat), rows * scale, columns * scale))
    made = made.reshape(count, there, *made.shape[1:])
    before = np.minimum(np.arange(frames) // rate, there - 1)
    if rate == 1:
        return {"bicubic": made[:, before]}
    share = (np.arange(frames) % rate / rate)[:, None, None, None]
    blend = (1 - share) * made[:, before] + share * made[:, np.minimum(before + 1, there - 1)]
    return {"repeated": made[:, before], "blended": np.round(blend).astype(np.uint8)}


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Images to be scored.

    Attributes:
      images: uint8 (N, T, H, W, 3).
      captions: the N captions that they were made from, or None.
      references: other captions of each, at least one, or None.
      frame_rate: frames/s of videos; None for images.
      pair: what they were upsampled from; None if they were not.
    """

    images: np.ndarray
    captions: Sequence[str] | None
    references: Sequence[Sequence[str]] | None = None
    frame_rate: float | None = None
    pair: Pair | None = None

    @functools.cached_property
    def _features(self) -> dict[str, np.ndarray]:
        return {}

    def features(self, network: Features) -> np.ndarray:
        """Returns the features of the images, (N, D), computed once."""
        if network.identity not in self._features:
            self._features[network.identity] = network.images(self.images, self.frame_rate)
        return self._features[network.identity]

    def require_videos(self) -> np.ndarray:
        """Returns the videos. Raises UserError where they are images."""
        if self.images.shape[1] == 1:
            raise UserError("needs videos, and these are images")
        return self.images

    def require_pair(self) -> Pair:
        """Returns what the images were upsampled from. Raises UserError if they were not."""
        if self.pair is None:
            raise UserError("needs images that a stage of a cascade upsampled")
        return self.pair

    def require_captions(self) -> Sequence[str]:
        """Returns the captions. Raises UserError where there are none."""
        if self.captions is None:
            raise UserError("needs the captions of the images: give them by --prompts")
        return self.captions


@dataclasses.dataclass(frozen=True, eq=False)
class EvalContext:
    """Data and networks that samples are scored against.

    Attributes:
      networks: by name: "clip", and "inception" and "motion" where they were given.
      reference: features of real images by network, (M, D); empty where no reference was given.
      held_out: real images that were not trained on, with their captions; None where there are none.
      world: world of scenes that the oracle can read, or None.
      seed: seed of subsets and resamples.
      run: run that made the sample; None where it is not at hand.
    """

    networks: Mapping[str, Features]
    reference: Mapping[str, np.ndarray]
    held_out: Sample | None
    world: str | None
    seed: int = 0
    run: Run | None = None

    def require_run(self) -> Run:
        """Returns the run. Raises UserError where there is none."""
        if self.run is None:
            raise UserError("needs a run to evaluate on real images: give it by --workdir, without --upsample")
        return self.run

    def require_held_out(self) -> Sample:
        """Returns the held-out images. Raises UserError where there are none."""
        if self.held_out is None:
            raise UserError("needs real images that were not trained on: give data with a test split")
        return self.held_out

    @functools.cached_property
    def few_held_out(self) -> Sample:
        """The first held-out images with captions, for evaluations of the run that take long."""
        self.require_run()
        real = self.require_held_out()
        return Sample(real.images[:FEW], real.require_captions()[:FEW], frame_rate=real.frame_rate)

    @functools.cached_property
    def reconstructed(self) -> np.ndarray:
        """`few_held_out`, reconstructed by the run."""
        real = self.few_held_out
        captions, rate = real.require_captions(), real.frame_rate
        return model_eval.reconstruct(self.require_run(), real.images, captions, self.seed, frame_rate=rate)

    def network(self, name: str) -> Features:
        """Returns a feature network. Raises UserError where it was not given."""
        if name not in self.networks:
            raise UserError(f"needs {name}: give its network by --{name}")
        return self.networks[name]

    def real(self, name: str) -> np.ndarray:
        """Returns the features of real images, (M, D). Raises UserError where there are none."""
        if name not in self.reference:
            raise UserError("needs real images to compare with: give them by --reference")
        return self.reference[name]


def make_context(
    networks: Mapping[str, Features], data: Data, held_out: Sample, num_reference: int, seed: int = 0
) -> EvalContext:
    """Returns the context of a data set.

    Args:
      networks: see `EvalContext`.
      data: data set.
      held_out: real images that were not trained on.
      num_reference: most items of split `train` to compare with, evenly spread.
      seed: see `EvalContext`.
    """
    source = data.open("train")
    count = min(num_reference, len(source))
    indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    about = {"source": data.source, "split": "train", "size": data.size, "frames": data.frames}
    reference = {name: of_source(network, source, about, indices) for name, network in networks.items()}
    world = oracle.world_of(data.source)
    readable = held_out.captions is not None and all(map(oracle.understands, held_out.captions))
    return EvalContext(networks, reference, held_out, world if readable else None, seed)


def first_of(data: Data, split: str, num: int) -> Sample:
    """Returns the first images of a split, with their captions. Raises UserError where there are fewer."""
    source = data.open(split)
    if num > len(source):
        raise UserError(
            f"split {split!r} has {len(source)} items, fewer than {num}: lower --num (in training loop.score_num)"
        )
    real = [source[i] for i in range(num)]
    rate = real[0].get("frame_rate")
    return Sample(np.stack([item["inputs"] for item in real]), [item["text"] for item in real], frame_rate=rate)


# ---- the registry


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure.

    Attributes:
      function: sample, context -> scores by name.
      better: "higher", "lower", or "ceiling": near the score of real images.
      network: feature network that it needs: "clip", "inception", "motion" or "".
      floor: what stands beside the score as worthless: real images with "shuffled" captions, "scrambled" images,
        videos with "reordered" frames, "none" for measures of what was upsampled, or "" for measures of the run; real
        images have neither of these two.
    """

    function: Callable[[Sample, EvalContext], dict[str, Score]]
    better: str
    network: str
    floor: str

    @property
    def of_run(self) -> bool:
        """Whether it evaluates the run on real images, and not the sample."""
        return not self.floor

    @property
    def of_real(self) -> bool:
        """Whether real images have it, and something worthless below them."""
        return self.floor not in ("", "none")


MEASURES: dict[str, Measure] = {}


def measure(name: str, *, better: str, network: str = "", floor: str = "scrambled") -> Callable:
    """Registers a function as the measure `name`, see `Measure`."""

    def register(function):
        MEASURES[name] = Measure(function, better, network, floor)
        return function

    return register


def chosen(names: Sequence[str]) -> list[str]:
    """Returns the measures that are named; "all" is all. Raises UserError on one that does not exist, or on none."""
    if not names:
        raise UserError(f"name at least one measure of {', '.join(MEASURES)}, or all")
    for name in names:
        if name not in (*MEASURES, "all"):
            raise unknown_name_error("measure", name, (*MEASURES, "all"))
    return list(MEASURES) if "all" in names else list(names)


def check(names: Sequence[str], networks: Mapping[str, Any], upsampled: bool, has_run: bool) -> None:
    """Raises UserError where a measure that is named cannot be of these images, before they are made.

    Args:
      names: names of measures; with "all", what cannot be computed is left out.
      networks: the feature networks, by name.
      upsampled: whether a stage of a cascade makes the images.
      has_run: whether the run that makes them is at hand.
    """
    for name in [] if "all" in names else chosen(names):
        need = MEASURES[name]
        if need.network and need.network not in networks:
            raise UserError(f"{name}: needs {need.network}: give its network by --{need.network}")
        if need.floor == "none" and not upsampled:
            raise UserError(f"{name}: needs images that a stage of a cascade upsampled")
        if need.of_run and not has_run:
            raise UserError(f"{name}: needs a run to evaluate on real images: give it by --workdir, without --upsample")


def needs_clip(names: Sequence[str]) -> bool:
    """Whether any of the measures needs a CLIP."""
    return any(MEASURES[name].network == "clip" for name in chosen(names))


def evaluate(sample: Sample, context: EvalContext, names: Sequence[str]) -> tuple[dict[str, Score], dict[str, str]]:
    """Scores a sample.

    Args:
      sample: images.
      context: see `EvalContext`.
      names: names of measures, or none, or "all": then what cannot be computed is left out.

    Returns:
      Scores by name, and the reasons of the measures that were left out.

    Raises:
      UserError: a measure that was named lacks what it needs.
    """
    scores, missing = {}, {}
    for name in chosen(names) if names else ():
        try:
            made = MEASURES[name].function(sample, context)
            better = MEASURES[name].better
            scores |= {key: dataclasses.replace(one, better=one.better or better) for key, one in made.items()}
        except UserError as error:
            if "all" not in names:
                raise UserError(f"{name}: {error}") from None
            missing[name] = str(error)
    return scores, missing


def floor(real: Sample, context: EvalContext, names: Sequence[str]) -> dict[str, Score]:
    """Returns the scores of worthless samples made from real ones, see `Measure.floor`."""
    makers = {"shuffled": shuffled, "scrambled": scrambled, "reordered": reordered}
    parts = {kind: makers[kind](real, context.seed) for kind in {MEASURES[name].floor for name in names} if kind}
    scores = {}
    for name in names:
        scores |= evaluate(parts[MEASURES[name].floor], context, [name])[0]
    return scores


def shuffled(sample: Sample, seed: int) -> Sample:
    """Returns the same images with captions moved along one random cycle, so that none keeps its own."""
    count = len(sample.images)
    if count < 2:
        raise UserError("the floor shuffles captions: give at least 2 real images")
    cycle = np.random.default_rng(seed).permutation(count)
    captions = np.empty(count, object)
    captions[cycle] = np.array(sample.captions, object)[np.roll(cycle, 1)]
    return dataclasses.replace(sample, captions=captions.tolist())


def reordered(sample: Sample, seed: int) -> Sample:
    """Returns the same captions and videos, the frames of each in random order."""
    rng = np.random.default_rng(seed)
    return dataclasses.replace(sample, images=np.stack([rng.permutation(video) for video in sample.images]))


def scrambled(sample: Sample, seed: int) -> Sample:
    """Returns the same captions with the pixels of each image in random order: only the colours stay right."""
    rng = np.random.default_rng(seed)
    flat = sample.images.reshape(len(sample.images), -1, sample.images.shape[-1])
    mixed = np.stack([pixels[rng.permutation(flat.shape[1])] for pixels in flat])
    return dataclasses.replace(sample, images=mixed.reshape(sample.images.shape))
