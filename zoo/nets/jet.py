"""A flow of affine couplings by vision transformers (Jet 2412.15129), conditioned on the pooled text."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.nets.conditioning import Text
from zoo.nets.flow_layers import (
    Affine,
    Grid,
    Head,
    Positions,
    apply_guidance,
    duplicate_for_guidance,
    from_sequence,
    to_sequence,
)
from zoo.nets.layers import stack, within
from zoo.nets.transformer import Block


def coupling_mask(i: int, grid: Grid, channels: int) -> np.ndarray:
    """The half of (N, P) that coupling i reads and keeps: True there. Couplings 2 j and 2 j + 1 keep opposite halves.

    Of four couplings, two split the channels of all patches, drawn by j, and two the patches like a chessboard.
    """
    if i % 4 < 2:
        order = np.random.default_rng(i // 2).permutation(channels)
        half = np.broadcast_to(order < channels // 2, (math.prod(grid), channels))
    else:
        colour = np.indices(grid).sum(axis=0) % 2  # (T, h, w)
        half = np.broadcast_to(colour.reshape(-1, 1) == 0, (math.prod(grid), channels))
    return half ^ bool(i % 2)


class Coupling(nn.Module):
    """One half decides an affine of the other (2412.15129, where the scale is below 2)."""

    width: int
    depth: int
    heads: int
    remat: str
    attention: str
    dtype: Any

    @nn.compact
    def predict(self, x: jax.Array, grid: Grid, text: Text, guidance: float, kept: jax.Array) -> Affine:
        """The affine of x, (B, N, P), read from its half `kept`, (N, P), and the identity there."""
        y = duplicate_for_guidance(jnp.where(kept, x, 0), guidance)
        places = Positions(self.width, self.dtype, name="positions")(grid, text.frame_rate)
        y = nn.Dense(self.width, dtype=self.dtype, name="embed")(y) + places  # (B, N, D)
        condition = nn.Dense(self.width, dtype=self.dtype, name="caption")(text.pooled)  # (B, D)
        layers = stack(Block, self.depth, within(self.remat), in_axes=nn.broadcast)
        y, _ = layers(self.heads, "joint", self.dtype, self.attention, name="layers")(
            y, condition, text.embeddings, text.lengths, None, None
        )
        affine = apply_guidance(Head(self.dtype, name="head")(y, x.shape[-1]), guidance)
        return Affine(*(jnp.where(kept, 0, part) for part in affine))


class Jet(nn.Module):
    """Couplings over halves that are channels and patches in turn.

    Attributes:
      couplings: how many; four change every value twice.
      width, depth, heads: of the transformer of each coupling.
      patch_size: pixels along a patch's side; must divide the image's. All patches of a video are one sequence.
      remat: see `layers.stack`.
      attention: see `layers.attend`.
    """

    couplings: int = 32
    width: int = 384
    depth: int = 2
    heads: int = 6
    patch_size: int = 4
    remat: str = "cheap"
    attention: str = "auto"
    dtype: Any = jnp.float32

    def setup(self):
        """Builds the layers."""
        self.steps = Coupling(self.width, self.depth, self.heads, self.remat, self.attention, self.dtype)

    def __call__(self, x: jax.Array, guidance: float = 0.0, *, text: Text) -> tuple[jax.Array, jax.Array]:
        """Images to noise: z like x, and the log-determinant of dz/dx, (B,), both float32.

        Args:
          x: (B, T, H, W, C).
          guidance: see `apply_guidance`.
          text: encoded conditions; with guidance, of twice as many samples, see `conditions.duplicate`.
        """
        x, grid = to_sequence(x, self.patch_size)  # (B, N, P)
        forward = lambda coupling, x, kept: coupling.predict(x, grid, text, guidance, kept).forward(x)
        z, log_dets = stack(forward, self.couplings, self.remat)(self.steps, x, self._halves(grid, x.shape[-1]))
        return from_sequence(z, self.patch_size, grid), log_dets.sum(axis=0)

    def inverse(
        self, z: jax.Array, guidance: float = 0.0, how: str = "cached", tolerance: float = 0.0, *, text: Text
    ) -> jax.Array:
        """The x from which `__call__` with the same text and guidance makes z, in one pass: the rest has no use.

        The half that a coupling reads is the same in z as in x.
        """
        del how, tolerance
        z, grid = to_sequence(z, self.patch_size)  # (B, N, P)
        backward = lambda coupling, z, kept: (coupling.predict(z, grid, text, guidance, kept).reverse(z), None)
        loop = stack(backward, self.couplings, self.remat, reverse=True)
        x, _ = loop(self.steps, z, self._halves(grid, z.shape[-1]))
        return from_sequence(x, self.patch_size, grid)

    def _halves(self, grid: Grid, channels: int) -> jax.Array:
        """Masks of all couplings, (couplings, N, P)."""
        return jnp.array([coupling_mask(i, grid, channels) for i in range(self.couplings)])
