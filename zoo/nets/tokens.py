"""Networks over codes: one that fills in masked codes, and one that continues a sequence of codes."""

import math
from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.nets.causal import CausalTransformer, KVCache
from zoo.nets.conditioning import Text
from zoo.nets.flow_layers import Grid, Positions
from zoo.nets.layers import RMSNorm, SwiGLU, TimeEmbedding, stack
from zoo.nets.transformer import Transformer

EMBEDDING = 64  # channels of a code, of which there may be many in a patch


class MaskedTokens(nn.Module):
    """Scores at each place, of all codes or of the code that is there, from the codes that are not masked.

    Attributes:
      transformer: network over vectors; its patches are of codes.
      codes: number of codes; as an id it is the mask.
      outputs: scores at each place.
    """

    transformer: Transformer
    codes: int
    outputs: int

    @nn.compact
    def __call__(self, ids: jax.Array, *, text: Text) -> jax.Array:
        """ids: int32 (B, T, h, w, c) -> float32 (B, T, h, w, c, outputs)."""
        channels = ids.shape[-1]
        x = nn.Embed(self.codes + 1, EMBEDDING, dtype=self.transformer.dtype, name="embedding")(ids)  # (..., c, D)
        x = einops.rearrange(x, "b t h w c d -> b t h w (c d)")
        masked = (ids == self.codes).mean(axis=(1, 2, 3, 4))  # the share of masked codes stands for the time
        scores = self.transformer(x, masked, text=text, channels=channels * self.outputs)
        return einops.rearrange(scores, "b t h w (c v) -> b t h w c v", c=channels)


class MaskedVectors(nn.Module):
    """A network that fills in masked vectors: a transformer reads those that are there, and a head draws one each.

    Attributes:
      transformer: network over vectors, which has a feature of its width for each.
      head_width, head_depth: see `VectorHead`.
    """

    transformer: Transformer
    head_width: int
    head_depth: int

    def setup(self):
        """Builds the head."""
        self.head = VectorHead(self.head_width, self.head_depth, self.transformer.dtype)

    def __call__(self, x: jax.Array, known: jax.Array, *, text: Text) -> jax.Array:
        """Both parts, for `init`."""
        features = self.features(x, known, text=text)
        return self.velocity(x, jnp.zeros(x.shape[:-1]), features)

    def features(self, x: jax.Array, known: jax.Array, *, text: Text) -> jax.Array:
        """x: (B, T, h, w, c); known: which of them are there, bool (B, T, h, w) -> float32 (B, T, h, w, D)."""
        there = known[..., None].astype(jnp.float32)
        x = jnp.concatenate([x * there, 1 - there], axis=-1)
        masked = 1 - known.mean(axis=(1, 2, 3))
        return self.transformer(x, masked, text=text, channels=self.transformer.width)

    def velocity(self, z: jax.Array, t: jax.Array, features: jax.Array) -> jax.Array:
        """See `VectorHead`."""
        return self.head(z, t, features)


class VectorHead(nn.Module):
    """A small diffusion network of one vector, given the feature of its place (MAR 2406.11838, section 3.2).

    Attributes:
      width: channels.
      depth: number of residual blocks.
      dtype: type that the layers compute in.
    """

    width: int
    depth: int
    dtype: Any

    @nn.compact
    def __call__(self, z: jax.Array, t: jax.Array, features: jax.Array) -> jax.Array:
        """Velocities of noisy vectors z, (..., c), at times t, (...), given features (..., D): float32 (..., c)."""
        condition = TimeEmbedding(self.width, self.dtype, name="time")(t.reshape(-1)).reshape(*t.shape, self.width)
        condition = nn.silu(condition + nn.Dense(self.width, dtype=self.dtype, name="feature")(features))
        y = nn.Dense(self.width, dtype=self.dtype, name="embed")(z)
        y, _ = stack(_HeadBlock, self.depth, in_axes=nn.broadcast)(self.dtype, name="blocks")(y, condition)
        zeros = nn.initializers.zeros
        return nn.Dense(z.shape[-1], kernel_init=zeros, dtype=jnp.float32, name="out")(RMSNorm(self.dtype)(y))


class _HeadBlock(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, y: jax.Array, condition: jax.Array) -> tuple[jax.Array, None]:
        """y: (..., D); condition: like y -> like y, None."""
        zeros = nn.initializers.zeros
        both = nn.Dense(3 * y.shape[-1], kernel_init=zeros, dtype=self.dtype, name="modulation")(condition)
        shift, scale, gate = jnp.split(both, 3, axis=-1)
        inner = RMSNorm(self.dtype, scale=False)(y) * (1 + scale) + shift
        return y + gate * SwiGLU(dtype=self.dtype, name="mlp")(inner), None


class State(NamedTuple):
    """State of a sequence of which some codes are drawn.

    Attributes:
      caches: of all layers, stacked on a first axis.
      visible: see `causal.visible_to_each`.
      places: vectors of all places, (B, N, D).
    """

    caches: KVCache
    visible: jax.Array
    places: jax.Array


class CausalTokens(nn.Module):
    """Scores of the codes at each place, from the text and the codes before it: frame by frame, row by row.

    Position i receives code i - 1 and predicts code i; position 0 receives the text alone.

    Attributes:
      codes: number of codes.
      width, depth, heads: of the transformer.
      remat: see `layers.stack`.
      attention: see `layers.attend`.
      dtype: type that the layers compute in.
    """

    codes: int
    width: int = 384
    depth: int = 12
    heads: int = 6
    remat: str = "cheap"
    attention: str = "auto"
    dtype: Any = jnp.float32

    def setup(self):
        """Builds the layers."""
        self.embedding = nn.Embed(self.codes, self.width, dtype=self.dtype)
        self.positions = Positions(self.width, self.dtype)
        self.caption = nn.Dense(self.width, dtype=self.dtype)
        self.transformer = CausalTransformer(self.width, self.depth, self.heads, self.remat, self.attention, self.dtype)
        self.norm = RMSNorm(self.dtype)
        self.out = nn.Dense(self.codes, kernel_init=nn.initializers.zeros, dtype=jnp.float32)

    def __call__(self, ids: jax.Array, *, text: Text) -> jax.Array:
        """ids: int32 (B, T, h, w, c) -> logits float32 (B, T h w c, codes)."""
        state = self.start(grid_of(ids.shape[1:]), text=text)
        before = self.embedding(einops.rearrange(ids, "b t h w c -> b (t h w c)")[:, :-1])  # (B, N - 1, D)
        x = jnp.pad(before, ((0, 0), (1, 0), (0, 0))) + state.places
        y, _ = self.transformer(x, state.caches, state.visible, text.embeddings.shape[1])
        return self.out(self.norm(y))

    def start(self, grid: Grid, room: int = 0, *, text: Text) -> State:
        """Returns the state before any code of a grid, with places for `room` codes after it, which mean nothing."""
        places = self.positions(grid, text.frame_rate) + self.caption(text.pooled)[:, None]  # (B, N, D)
        caches, visible = self.transformer.start(text, math.prod(grid) + room)
        return State(caches, visible, jnp.pad(places, ((0, 0), (0, room), (0, 0))))

    def read(self, before: jax.Array, i: jax.Array, state: State) -> tuple[jax.Array, State]:
        """The logits of n codes, each given those before it, (B, n, codes), and the state that has read them.

        Args:
          before: codes i - 1 to i + n - 2, (B, n); the one before the first code of all is ignored.
          i: number of the first of the n codes, a scalar.
          state: state that has read the codes up to i - 2; it may have read anything for later ones.
        """
        count = before.shape[1]
        at = lambda x, axis: jax.lax.dynamic_slice_in_dim(x, i, count, axis)
        is_code = (i + jnp.arange(count) > 0)[:, None]
        x = jnp.where(is_code, self.embedding(before), 0) + at(state.places, 1)  # (B, n, D)
        words = state.visible.shape[-1] - state.places.shape[1]
        y, caches = self.transformer(x, state.caches, at(state.visible, 2), words + i)
        return self.out(self.norm(y)), state._replace(caches=caches)


def grid_of(shape: tuple[int, ...]) -> Grid:
    """(T, h, w, c) of codes -> the grid of their sequence; the codes of one place stand beside each other."""
    frames, rows, columns, channels = shape
    return frames, rows, columns * channels
