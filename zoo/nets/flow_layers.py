"""Parts that the networks of flows share: the affine step, guidance on it, and images as sequences of patches."""

from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.conditions import guide
from zoo.distributions import sum_except_batch
from zoo.nets.layers import RMSNorm, patchify, unpatchify
from zoo.nets.time import WAVES, seconds_of, time_waves

Grid = tuple[int, int, int]  # frames, rows and columns of a sequence of patches

# Largest |log_scale| of a step, approached by tanh: a scale may be e^-3 = 1/20 and no float32 runs over. The noise in
# the images needs less: what a flat patch needs is log_scale = log(noise_std). A bound of 2 = 2 sigmoid(inf), as
# in Jet's paper, leaves a short stack busy with making flat patches wide (see configs/flow.py).
LOG_SCALE_LIMIT = 3.0


class Affine(NamedTuple):
    """The map x -> (x - shift) exp(-log_scale), elementwise in float32 (RealNVP 1605.08803, section 3.2)."""

    shift: jax.Array
    log_scale: jax.Array

    def forward(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """x: (B, ...) -> z like x, and the log-determinant of dz/dx, (B,)."""
        return (x - self.shift) * jnp.exp(-self.log_scale), -sum_except_batch(self.log_scale)

    def reverse(self, z: jax.Array) -> jax.Array:
        """The inverse of `forward`."""
        return z * jnp.exp(self.log_scale) + self.shift


def duplicate_for_guidance(x: jax.Array, guidance: float) -> jax.Array:
    """With guidance, x for the conditions and again for the negative ones: (B, ...) -> (2 B, ...)."""
    return jnp.concatenate([x, x]) if guidance else x


def apply_guidance(affine: Affine, guidance: float) -> Affine:
    """Guides the affine maps of a doubled batch (2 B, ...) to (B, ...), shift and log_scale alike.

    This is TarFlow's guidance (2412.06329, section 2.6) without its ramp over the sequence. The
    result depends on the same patches as its two parts, so a guided flow is a flow with an exact inverse.
    """
    if not guidance:
        return affine

    def push(both):
        good, bad = jnp.split(both, 2)
        return guide(good, bad, guidance)

    return Affine(push(affine.shift), push(affine.log_scale))


class Head(nn.Module):
    """A transformer's output, (B, N, D) -> the affine of each patch, (B, N, channels), which starts as the identity."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, channels: int) -> Affine:
        """x: (B, N, D) -> maps of (B, N, channels)."""
        x = RMSNorm(self.dtype, name="norm")(x)
        both = nn.Dense(2 * channels, kernel_init=nn.initializers.zeros, dtype=jnp.float32, name="out")(x)
        shift, raw = jnp.split(both, 2, axis=-1)
        return Affine(shift, LOG_SCALE_LIMIT * jnp.tanh(raw / LOG_SCALE_LIMIT))


class Positions(nn.Module):
    """Learned vectors of places within a frame, and a linear map of a frame's seconds that starts at zero."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, grid: Grid, frame_rate: jax.Array | None) -> jax.Array:
        """Grid of the sequence; frame_rate: (B,) frames/s, None for one frame -> (B or 1, N, width)."""
        frames, places = grid[0], grid[1] * grid[2]
        table = self.param("table", nn.initializers.normal(0.02), (places, self.width)).astype(self.dtype)
        if frames == 1:
            return table[None]
        waves = time_waves(seconds_of((1 if frame_rate is None else len(frame_rate), frames), frame_rate), WAVES)
        times = nn.Dense(self.width, False, self.dtype, kernel_init=nn.initializers.zeros, name="seconds")(waves)
        return einops.rearrange(times[:, :, None] + table, "b t n d -> b (t n) d")


def to_sequence(x: jax.Array, size: int) -> tuple[jax.Array, Grid]:
    """(B, T, H, W, C) -> (B, N, P), frame by frame and row by row, and the grid (T, H/size, W/size); N is its size."""
    patches = patchify(x, size)  # (B, T, h, w, P)
    _, frames, rows, columns, _ = patches.shape
    return einops.rearrange(patches, "b t h w p -> b (t h w) p"), (frames, rows, columns)


def from_sequence(x: jax.Array, size: int, grid: Grid) -> jax.Array:
    """The inverse of `to_sequence`."""
    frames, rows, _ = grid
    return unpatchify(einops.rearrange(x, "b (t h w) p -> b t h w p", t=frames, h=rows), size)
