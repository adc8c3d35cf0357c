"""Scenes as data sets: built on first use, read at random. No download, no TensorFlow.

    source = open_source("one", "train", size=16)
    source[0]  # {"inputs": uint8 (1, 16, 16, 3), "text": "a large red star ...", "attributes": "{...}"}

Names: `one`, `pairs`, `full`, `video_one` and `video` (see `zoo.scenes.world`), the last two of videos, or of their
first frames for images; `modes`: 1,152 scenes, all equally likely; and `entropy`: the same with noise in their low
bits, so that their entropy is known.
Example i of a split is a function of (split, i) alone: at every size, number of frames and frame rate it shows the
same scene under the same caption (of one frame, without its motion), and more examples only add to fewer.
"""

import contextlib
import dataclasses
import fcntl
import functools
import io
import logging
import math
import os
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging as absl_logging
from PIL import Image

from zoo import cache as caches
from zoo import errors
from zoo.scenes import world as worlds
from zoo.scenes.grammar import describe
from zoo.scenes.world import Scene

# To be raised with any change of what is drawn or written: a cached data set of another version is not used.
VERSION = "1.2.1"
EXAMPLES = dict.fromkeys(("one", "pairs", "video", "video_one", "modes", "entropy"), 20_000) | {"full": 100_000}
MOST_TEST_EXAMPLES = 2_048  # as many as a Frechet distance of videos needs
MEMORY = 2**30  # bytes of decoded examples that a source keeps: decoding is most of the cost of a small one

# ---- the data sets `modes` and `entropy`

NOISE_LEVELS = 16


@functools.cache
def equal_scenes(name: str) -> tuple[Scene, ...]:
    """Returns the equiprobable scenes of `modes` or `entropy`; no two of them look the same, at any size >= 16."""
    return tuple(worlds.all_still_scenes(worlds.UNIFORM[name]))


def noisy(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns uint8 pixels with their low bits, `value % NOISE_LEVELS`, replaced by uniform noise."""
    noise = rng.integers(NOISE_LEVELS, size=pixels.shape, dtype=np.uint8)
    return pixels - pixels % NOISE_LEVELS + noise


def entropy_bits_per_dim(size: int) -> float:
    """Returns the exact entropy of an `entropy` image of size x size pixels, in bits per dimension.

    An image x determines its noise (x % m) and, as the scenes stay different without their low bits, its scene.
    Its entropy is therefore the sum of both: log2(scenes) + D log2(m) bits over D = 3 size^2 dimensions. No
    model can have a lower mean of -log2 p(x) / D than this, given no caption.
    """
    dimensions = 3 * size**2
    return (np.log2(len(equal_scenes("entropy"))) + dimensions * np.log2(NOISE_LEVELS)) / dimensions


# ---- examples


def make_example(
    name: str,
    split: str,
    index: int,
    size: int,
    frames: int,
    frame_rate: float | None = None,
    omit: float | None = None,
) -> tuple[np.ndarray, str, Scene]:
    """Returns example `index`: pixels uint8 (frames, size, size, 3), its caption, and the scene behind it."""
    scene, rng = _draw(name, split, index)
    if name in worlds.UNIFORM:
        text, pixels = describe(scene, rng, omit=0.0), worlds.render(scene, size, frames)
        return noisy(pixels, rng) if name == "entropy" else pixels, text, scene
    return worlds.render(scene, size, frames, frame_rate), describe(scene, rng, omit, still=frames == 1), scene


def _draw(name: str, split: str, index: int) -> tuple[Scene, np.random.Generator]:
    """Returns the scene of an example, and what draws the rest of it."""
    rng = np.random.default_rng([worlds.SPLITS.index(split), index])
    if name in worlds.UNIFORM:
        scenes = equal_scenes(name)
        return scenes[int(rng.integers(len(scenes)))], rng
    return worlds.draw_scene(rng, name, split), rng


@dataclasses.dataclass(kw_only=True)
class ScenesConfig(tfds.core.BuilderConfig):
    """Which scenes: a name of `EXAMPLES`, pixels a side, frames and their rate, examples, how often captions omit."""

    world: str = "one"
    size: int = 16
    frames: int = 1
    frame_rate: float | None = None
    examples: int = EXAMPLES["one"]
    omit: float | None = None


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Captioned scenes as a TFDS data set: one PNG for an image, a uint8 tensor for a video.

    `attributes` holds `Scene.to_json()`.
    """

    builder_config: ScenesConfig
    VERSION = tfds.core.Version(VERSION)
    BUILDER_CONFIGS = [ScenesConfig(name="one-16px")]

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        shape = (config.size, config.size, 3)
        if config.frames == 1:
            pixels = tfds.features.Image(shape=shape, encoding_format="png")
        else:
            pixels = tfds.features.Tensor(shape=(config.frames, *shape), dtype=np.uint8, encoding="zlib")
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict({"inputs": pixels, "text": text, "attributes": text}),
            disable_shuffling=True,  # examples are drawn independently of each other
        )

    def _split_generators(self, dl_manager) -> dict:
        return {split: self._generate_examples(split) for split in splits_of(self.builder_config.world)}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        config = self.builder_config
        count = config.examples
        if split != "train":
            count = min(MOST_TEST_EXAMPLES, max(1, count // 10))
        for i in tqdm.tqdm(range(count), desc=split, unit=" examples", leave=False, disable=None):
            pixels, text, scene = make_example(
                config.world, split, i, config.size, config.frames, config.frame_rate, config.omit
            )
            if config.frames == 1:
                pixels = _to_png(pixels[0])
            yield i, {"inputs": pixels, "text": text, "attributes": scene.to_json()}


def splits_of(name: str) -> tuple[str, ...]:
    """Returns the splits of a data set. Of those that must be uniform nothing is held out."""
    return worlds.SPLITS[:2] if name in worlds.UNIFORM else worlds.SPLITS


def _to_png(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    file.seek(0)
    return file


# ---- opening


class Source:
    """Random access to a split, from any thread or process: it is pickled as the call that opens it.

    `source[i]` is {"inputs": uint8 (T, H, W, 3), "text": str, "attributes": str}, and "frame_rate" of videos.
    """

    def __init__(self, builder: Scenes, split: str, folder: pathlib.Path):
        self._config = config = builder.builder_config
        self._split, self._folder = split, folder
        self._rate = {} if config.frame_rate is None else {"frame_rate": config.frame_rate}
        self._shape = (config.frames, config.size, config.size, 3)
        decoders = {"inputs": tfds.decode.SkipDecoding()} if config.frames == 1 else None
        reader: Any = builder  # the decorator of `as_data_source` loses its arguments
        self._records = reader.as_data_source(split, decoders=decoders)
        self._example = functools.lru_cache(max(1, MEMORY // math.prod(self._shape)))(self._decode)

    def __reduce__(self):
        config = self._config
        options = config.size, config.frames, config.frame_rate, config.examples, config.omit
        return open_source, (config.world, self._split, *options, self._folder)

    def __len__(self) -> int:
        return len(self._records)

    def text(self, index: int) -> str:
        """Returns the caption of an example, without decoding its image."""
        return self._records[index]["text"].decode()

    def learned_text(self, index: int) -> str:
        """Returns the caption of an example as a video, also where the source has first frames alone."""
        world, still = self._config.world, self._config.frames == 1
        if not still or world in worlds.UNIFORM or not worlds.world_named(world).moves:
            return self.text(index)
        scene, rng = _draw(world, self._split, index)
        return describe(scene, rng, self._config.omit)

    def __getitem__(self, index: int) -> dict:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return dict(self._example(index % len(self)))

    def _decode(self, index: int) -> dict:
        example = self._records[index]
        pixels = example["inputs"]
        if isinstance(pixels, bytes):
            pixels = np.asarray(Image.open(io.BytesIO(pixels)))
        return {
            "inputs": pixels.reshape(self._shape),
            "text": example["text"].decode(),
            "attributes": example["attributes"].decode(),
            **self._rate,
        }


def open_source(
    name: str,
    split: str,
    size: int,
    frames: int = 1,
    fps: float | None = None,
    examples: int | None = None,
    omit: float | None = None,
    cache: str | os.PathLike | None = None,
) -> Source:
    """Opens a split of a data set of scenes, after building the data set if the cache does not have it.

    A build that is killed leaves nothing that a later one would use; of two processes that open the same data
    set at once, one builds it and the other waits.

    Args:
      name: of `EXAMPLES`.
      split: `train`, `test_seen` (nothing held out; also called `test`), or `test_unseen` (only scenes with
        something held out).
      size: height and width in pixels.
      frames: number of frames; 1 for images.
      fps: frames/s of a video, which must last at least a second; None for a video of one second.
      examples: of split `train`; the test splits have a tenth as many, at most 2,048. None: as in `EXAMPLES`.
      omit: how often a caption is silent about each attribute, in [0, 1); None: as in `grammar`. Not of
        `modes` and `entropy`, whose captions name everything.
      cache: folder for data sets; None: `$ZOO_CACHE`, else `~/.cache/zoo`.

    Raises:
      UserError: unknown name or split; too few pixels, frames, frames/s or examples for the world; a frame rate of
        images; an `omit` out of range or of those two; a cache folder that cannot be written to.
    """
    split = "test_seen" if split == "test" else split  # the name that all sources share
    config = _config(name, split, size, frames, fps, examples, omit)
    folder = pathlib.Path(cache).expanduser() if cache else caches.folder()
    with _quiet():
        return Source(_prepared(config, folder), split, folder)


def _config(
    name: str,
    split: str,
    size: int,
    frames: int,
    fps: float | None,
    examples: int | None,
    omit: float | None,
) -> ScenesConfig:
    if name not in EXAMPLES:
        raise errors.unknown_name_error("scenes", name, EXAMPLES)
    if split not in splits_of(name):
        raise errors.unknown_name_error("split", split, splits_of(name))
    world = worlds.world_named(worlds.UNIFORM.get(name, name))
    if size < world.smallest_image:
        raise errors.UserError(
            f"scenes {name!r} of {size} px are not all different: use at least {world.smallest_image} px"
        )
    frame_rate = _frame_rate(world, frames, fps)
    examples = EXAMPLES[name] if examples is None else examples
    if examples < 1:
        raise errors.UserError(f"scenes {name!r} need at least 1 example, got {examples}")
    if omit is not None and name in worlds.UNIFORM:
        raise errors.UserError(f"captions of scenes {name!r} name everything: drop omit")
    if omit is not None and not 0 <= omit < 1:
        raise errors.UserError(f"omit is a share of at least 0 and below 1, got {omit}")
    rate = "" if frame_rate is None else f"-{frame_rate:g}fps"
    label = f"{name}-{size}px-{frames}f{rate}-{examples}" + ("" if omit is None else f"-omit{omit}")
    return ScenesConfig(
        name=label, world=name, size=size, frames=frames, frame_rate=frame_rate, examples=examples, omit=omit
    )


def _frame_rate(world: worlds.World, frames: int, fps: float | None) -> float | None:
    """Returns the frame rate of videos of a world, None of images; raises UserError where they cannot be."""
    if frames == 1 or not world.moves:
        if frames > 1:
            raise errors.UserError(f"scenes {world.name!r} stand still: use 1 frame, got {frames}, or 'scenes/video'")
        if fps is not None:
            raise errors.UserError(f"one frame has no frame rate, got fps={fps:g}: drop it, or set data.frames")
        return None
    rate = float(frames if fps is None else fps)
    worlds.check_video(frames, rate)
    return rate


def _prepared(config: ScenesConfig, folder: pathlib.Path) -> Scenes:
    builder = Scenes(config=config, data_dir=folder, file_format="array_record")
    if builder.data_path.exists():  # TFDS gives it this name when it is complete
        return builder
    home = folder / "scenes" / config.name
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / "lock").open("w")
    except OSError as error:
        raise errors.UserError(f"cannot write to {folder} ({error}): set ZOO_CACHE to another") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the system frees it when the process ends, however it ends
        return _build(config, folder, home)


def _build(config: ScenesConfig, folder: pathlib.Path, home: pathlib.Path) -> Scenes:
    builder = Scenes(config=config, data_dir=folder, file_format="array_record")
    if builder.data_path.exists():  # another process built it while this one waited
        return builder
    for leftover in home.glob("incomplete*"):  # of a build that was killed
        shutil.rmtree(leftover)
    print(f"building scenes {config.name} in {home}", file=sys.stderr)
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return builder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what TFDS logs, and its own progress bars."""
    logger = absl_logging.get_absl_logger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        tfds.enable_progress_bar()
