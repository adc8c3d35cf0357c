"""Measures how often the oracle is right on damaged images.

python -m zoo oracle_eval --world full --size 32
"""

import numpy as np
from absl import flags

from zoo.commands.scaffold import Command
from zoo.scenes import world as worlds
from zoo.scenes.grammar import describe
from zoo.scenes.oracle import table

FLAGS = flags.FLAGS

BLURS = (0, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0)
NOISES = (0.02, 0.05, 0.1, 0.15, 0.2)


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_enum("world", "full", list(worlds.WORLDS), "World of the scenes.")
    flags.DEFINE_integer("size", 32, "Side of the images, in pixels.", lower_bound=1)
    flags.DEFINE_integer("num", 500, "Number of images or videos.", lower_bound=1)
    flags.DEFINE_integer("frames", None, "Frames of a video; by default 8 where things move, else 1.", lower_bound=1)
    flags.DEFINE_float("fps", None, "Frames per second; by default such that a video lasts a second.")


def main(_: list[str]) -> None:
    """Runs the command on parsed flags."""
    rng = np.random.default_rng(0)
    world, size = FLAGS.world, FLAGS.size
    moves = worlds.world_named(world).moves
    frames, fps = FLAGS.frames or (8 if moves else 1), FLAGS.fps
    scenes = [worlds.draw_scene(rng, world, "test_seen") for _ in range(FLAGS.num)]
    texts = [describe(scene, rng, omit=0.0, still=frames == 1) for scene in scenes]
    clean = [worlds.render(scene, size, frames, fps) for scene in scenes]
    damages = [(f"blur {sigma}", [blur(p, sigma) for p in clean]) for sigma in BLURS]
    damages += [(f"noise {std}", [add_noise(p, std, rng) for p in clean]) for std in NOISES]
    if frames > 1:
        damages += [("shuffled", [rng.permutation(p) for p in clean]), ("reversed", [p[::-1] for p in clean])]
    for damage, images in damages:
        row = {name: right.mean() for name, right in table(images, texts, world, fps).items()}
        print(f"{damage:<12}" + "  ".join(f"{name} {value:.3f}" for name, value in row.items()))


COMMAND = Command(main, define_flags)


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Returns uint8 (T, H, W, 3) after a Gaussian blur, sigma in pixels; edges repeat."""
    if not sigma:
        return pixels
    half = int(np.ceil(3 * sigma))
    kernel = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    blurred = np.pad(pixels.astype(np.float32), ((0, 0), (half, half), (half, half), (0, 0)), mode="edge")
    for axis in (1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(blurred, 2 * half + 1, axis)
        blurred = windows @ (kernel / kernel.sum()).astype(np.float32)
    return np.rint(blurred).astype(np.uint8)


def add_noise(pixels: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    """Returns uint8 pixels plus Gaussian noise, std as a part of the full range, clipped."""
    return np.rint(np.clip(pixels + rng.normal(0, 255 * std, pixels.shape), 0, 255)).astype(np.uint8)
