"""Compares a tokenizer with small images of as many bits, as Markdown.

    python -m benchmarks.equal_bits --workdir RUN

RUN is a patch tokenizer; the bits of a sample are its codes times log2 of how many there are. Its rivals are the area
mean of the sample at fewer pixels, of videos also at fewer frames, with so many levels for each number that the bits
are no more, and back by bicubic interpolation, of frames by repeating. All sizes are tried, and the one that is best by
PSNR on the same samples is printed: the rival is chosen after the fact, the tokenizer is not.
"""

import argparse
import math
from collections.abc import Iterator

import einops
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError, exit_on_user_error, named
from zoo.evaluation.bootstrap import interval
from zoo.evaluation.measures import capped_psnr
from zoo.evaluation.model_eval import reconstruct
from zoo.evaluation.reconstruction import ssim
from zoo.evaluation.registry import first_of
from zoo.families import require
from zoo.method import Tokenizes
from zoo.resize import resize
from zoo.runs.dependencies import open_run
from zoo.scenes import oracle


def rivals(frames: int, side: int, bits: float) -> Iterator[tuple[int, int, int]]:
    """Yields frames, side and levels of small versions that need at most so many bits; fewer frames divide all."""
    for t in (t for t in range(1, frames + 1) if frames % t == 0):
        for s in range(1, side + 1):
            levels = int(2 ** min(8.0, bits / (3 * t * s * s)) + 1e-9)
            if levels > 1:
                yield t, s, levels


def through(samples: np.ndarray, frames: int, side: int, levels: int) -> np.ndarray:
    """Returns samples as they are after they were so small, uint8 (N, T, H, W, 3)."""
    count, total, size = samples.shape[:3]
    fewer = einops.reduce(samples.astype(np.float64), "n (t r) h w c -> (n t) h w c", "mean", t=frames)
    small = np.asarray(resize(jnp.asarray(np.rint(fewer).astype(np.uint8)), side, side, "box"), np.float64)
    coarse = np.rint(np.rint(small / 255 * (levels - 1)) / (levels - 1) * 255).astype(np.uint8)
    large = np.asarray(resize(jnp.asarray(coarse), size, size, "bicubic"))
    return einops.repeat(large, "(n t) h w c -> n (t r) h w c", n=count, r=total // frames)


def bits_of(run) -> float:
    """Returns the bits of the codes of one sample."""
    codes = named("--workdir", lambda: require(run.method, Tokenizes)).codes
    if codes is None:
        raise UserError("--workdir: it makes vectors, which have no number of bits: name a tokenizer with codes")
    places = run.method.to_codes(run.params, jnp.zeros((1, *run.shape))).size
    return places * math.log2(codes)


def row(name: str, made: np.ndarray, real, world: str | None, frame_rate: float | None) -> str:
    """A line of the table."""
    cells = [name]
    for values in (capped_psnr(made, real.images), ssim(made, real.images)):
        low, high = interval(values)
        cells.append(f"{values.mean():.3g} [{low:.3g}, {high:.3g}]")
    if world:
        right = oracle.table(made, real.require_captions(), world, frame_rate)["all"]
        low, high = interval(right)
        cells.append(f"{right.mean():.1%} [{low:.1%}, {high:.1%}]")
    return f"| {' | '.join(cells)} |"


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="folder of a patch tokenizer")
    parser.add_argument("--num", type=int, default=256, help="test samples")
    chosen = parser.parse_args()
    if chosen.num < 2:
        raise UserError(f"--num must be at least 2, got {chosen.num}")
    run = open_run(chosen.workdir)
    bits, real, rate = bits_of(run), first_of(run.recipe.data, "test", chosen.num), run.recipe.frame_rate
    frames, side = run.shape[:2]
    own = reconstruct(run, real.images, real.require_captions(), frame_rate=real.frame_rate)
    of_rival = lambda small: float(capped_psnr(through(real.images, *small), real.images).mean())
    best = max(rivals(frames, side, bits), key=of_rival)
    world = oracle.world_of(run.recipe.data.source)
    print(f"| {bits:.0f} bits | PSNR | SSIM |{' oracle, all |' if world else ''}")
    print("|---|---|---|" + ("---|" if world else ""))
    print(row("tokenizer", own, real, world, rate))
    t, s, levels = best
    name = f"area and bicubic: {t} x {s} x {s}, {levels} levels, {3 * t * s * s * math.log2(levels):.0f} bits"
    print(row(name, through(real.images, *best), real, world, rate))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
