"""An autoregressive flow of causal transformers on patches (TarFlow 2412.06329), conditioned on text by attention."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.nets.causal import CausalTransformer
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
from zoo.nets.layers import scan, stack


class Block(nn.Module):
    """One autoregressive step of the flow (2412.06329, section 2.3): each patch's affine is read from those before it.

    Position i receives patch i - 1 and predicts the affine map of patch i; position 0 receives the text alone. (TarFlow
    leaves the first patch as it is.) In videos of n patches a frame it also receives patch i - n, the same place of the
    frame before, by a layer that starts at zero.
    """

    width: int
    depth: int
    heads: int
    remat: str
    attention: str
    dtype: Any

    def setup(self):
        """Builds the layers."""
        self.embed = nn.Dense(self.width, dtype=self.dtype)
        self.temporal = nn.Dense(self.width, False, self.dtype, kernel_init=nn.initializers.zeros)  # videos' alone
        self.positions = Positions(self.width, self.dtype)
        self.caption = nn.Dense(self.width, dtype=self.dtype)
        self.transformer = CausalTransformer(self.width, self.depth, self.heads, self.remat, self.attention, self.dtype)
        self.head = Head(self.dtype)

    def __call__(self, x: jax.Array, grid: Grid, text: Text, guidance: float) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, P), patches of the grid -> z like x, and the log-determinant (B,)."""
        return self.predict(x, grid, text, guidance).forward(x)

    def reverse(
        self, z: jax.Array, grid: Grid, text: Text, guidance: float, how: str = "cached", tolerance: float = 0.0
    ) -> jax.Array:
        """The inverse of z, (B, N, P), in one compiled loop; `how` and `tolerance` as `TarFlow.inverse` takes them."""
        if how == "jacobi":
            return self._reverse_at_once(z, grid, text, guidance, tolerance)
        return (self._reverse_cached if how == "cached" else self._reverse_whole)(z, grid, text, guidance)

    def predict(self, x: jax.Array, grid: Grid, text: Text, guidance: float) -> Affine:
        """The affine of all patches of x, (B, N, P)."""
        later = lambda n: jnp.pad(x, ((0, 0), (n, 0), (0, 0)))[:, : x.shape[1]]  # (B, N, P)
        past = [later(1), later(grid[1] * grid[2])] if grid[0] > 1 else [later(1)]
        affine, _ = self._read(past, guidance, *self._start(text, grid), slot=text.embeddings.shape[1])
        return affine

    def _start(self, text: Text, grid: Grid):
        """Returns the state before any patch: vectors of positions (B, N, D), masks, and the layers' caches."""
        places = self.positions(grid, text.frame_rate) + self.caption(text.pooled)[:, None]
        caches, visible = self.transformer.start(text, math.prod(grid))
        return places, visible, caches

    def _read(self, past, guidance, places, visible, caches, slot):
        """The patches before m places, of videos a frame before them too, (B, m, P) -> their affine, and the caches."""
        past = [duplicate_for_guidance(x, guidance) for x in past]
        y = self.embed(past[0]) + places + sum(map(self.temporal, past[1:]))
        y, caches = self.transformer(y, caches, visible, slot)  # (B, m, D)
        return apply_guidance(self.head(y, past[0].shape[-1]), guidance), caches

    def _reverse_cached(self, z: jax.Array, grid: Grid, text: Text, guidance: float) -> jax.Array:
        places, visible, caches = self._start(text, grid)
        slots = text.embeddings.shape[1] + jnp.arange(z.shape[1])

        def step(block, carry, z, place, visible, slot):
            last, caches = carry  # the patches of a frame, oldest first; of an image the one before alone
            past = [last[:, -1:], last[:, :1]] if grid[0] > 1 else [last]
            affine, caches = block._read(past, guidance, place[:, None], visible[:, :, None], caches, slot)
            x = affine.reverse(z[:, None])  # (B, 1, P)
            return (jnp.concatenate([last[:, 1:], x], axis=1), caches), x[:, 0]

        loop = scan(step, variable_broadcast="params", split_rngs={"params": False}, in_axes=(1, 1, 2, 0), out_axes=1)
        last = jnp.zeros_like(z[:, : grid[1] * grid[2] if grid[0] > 1 else 1])
        return loop(self, (last, caches), z, places, visible, slots)[1]

    def _reverse_at_once(self, z: jax.Array, grid: Grid, text: Text, guidance: float, tolerance: float) -> jax.Array:
        def again(block, x, done):
            new = block.predict(x, grid, text, guidance).reverse(z)
            change = jnp.abs(new - x).max(axis=(1, 2))
            return jnp.where(done[:, None, None], x, new), done | (change <= tolerance)  # no sample waits for others

        def step(block, carry, _):
            return nn.cond(carry[1].all(), lambda block, *carry: carry, again, block, *carry), None

        loop = scan(step, variable_broadcast="params", split_rngs={"params": False}, length=z.shape[1])
        return loop(self, (jnp.zeros_like(z), jnp.zeros(len(z), bool)), None)[0][0]

    def _reverse_whole(self, z: jax.Array, grid: Grid, text: Text, guidance: float) -> jax.Array:
        def step(block, x, z, i):
            affine = Affine(*(part[:, i] for part in block.predict(x, grid, text, guidance)))
            return x.at[:, i].set(affine.reverse(z)), None

        loop = scan(step, variable_broadcast="params", split_rngs={"params": False}, in_axes=(1, 0))
        return loop(self, jnp.zeros_like(z), z, jnp.arange(z.shape[1]))[0]


class TarFlow(nn.Module):
    """Blocks in turn from the first patch to the last and from the last to the first.

    The inverse is exact up to rounding: 1e-4 or better in float32. In bfloat16 the two directions round otherwise, so
    that it is only near.

    Attributes:
      blocks: autoregressive steps; width, depth, heads: of the transformer of each.
      patch_size: pixels along a patch's side; must divide the image's. All patches of a video are one sequence.
      remat: see `layers.stack`.
      attention: see `layers.attend`.
    """

    blocks: int = 8
    width: int = 384
    depth: int = 4
    heads: int = 6
    patch_size: int = 4
    remat: str = "cheap"
    attention: str = "auto"
    dtype: Any = jnp.float32

    def setup(self):
        """Builds the layers."""
        self.steps = Block(self.width, self.depth, self.heads, self.remat, self.attention, self.dtype)

    def __call__(self, x: jax.Array, guidance: float = 0.0, *, text: Text) -> tuple[jax.Array, jax.Array]:
        """Images to noise: z like x, and the log-determinant of dz/dx, (B,), both float32.

        Args:
          x: (B, T, H, W, C).
          guidance: see `apply_guidance`.
          text: encoded conditions; with guidance, of twice as many samples, see `conditions.duplicate`.
        """
        x, grid = to_sequence(x, self.patch_size)  # (B, N, P)

        def forward(block, x):
            z, log_det = block(x, grid, text, guidance)
            return z[:, ::-1], log_det  # the next block reads from the other end

        x, log_dets = stack(forward, self.blocks, self.remat)(self.steps, x)
        return from_sequence(x, self.patch_size, grid), log_dets.sum(axis=0)

    def inverse(
        self, z: jax.Array, guidance: float = 0.0, how: str = "cached", tolerance: float = 0.0, *, text: Text
    ) -> jax.Array:
        """The x from which `__call__` with the same text and guidance makes z.

        Args:
          z: noise (B, T, H, W, C).
          guidance: see `apply_guidance`.
          how: "cached" keeps keys and values of the patches that are done, "whole" reads the whole sequence again for
            each patch. "jacobi" guesses all patches at once and reads its guess again until none of a sample changes by
            more than `tolerance` in a block, at most once for each patch, which is exact (2511.20462, section 3.4).
          tolerance: see `how`.
          text: as for `__call__`.
        """
        z, grid = to_sequence(z, self.patch_size)  # (B, N, P)
        backward = lambda block, z: (block.reverse(z[:, ::-1], grid, text, guidance, how, tolerance), None)
        x, _ = stack(backward, self.blocks, self.remat, reverse=True)(self.steps, z)
        return from_sequence(x, self.patch_size, grid)
