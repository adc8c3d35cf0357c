"""A diffusion transformer on patches (DiT 2212.09748): the time enters by adaLN-zero, the caption by attention."""

from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.errors import unknown_name_error
from zoo.nets.conditioning import Text
from zoo.nets.layers import (
    Attention,
    RMSNorm,
    SwiGLU,
    TimeEmbedding,
    head_channels,
    patchify,
    rotary_table,
    sincos_table,
    stack,
    unpatchify,
)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x: (B, N, D); shift, scale: (B, 1, D)."""
    return x * (1 + scale) + shift


class Block(nn.Module):
    """Attention, cross-attention with `text="cross"`, feed-forward; each behind a gate that starts at zero."""

    heads: int
    text: str
    dtype: Any
    attention: str

    @nn.compact
    def __call__(self, x, condition, text, lengths, angles):
        """x: (B, N, D); condition: (B, D); text: (B, L, D); lengths: (B,); angles: (N, d / 2) or None -> x, None."""
        width = x.shape[-1]
        parts = 7 if self.text == "cross" else 6
        modulation = nn.Dense(parts * width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name="modulation")
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m, *gate_c = jnp.split(
            modulation(nn.silu(condition))[:, None], parts, axis=-1
        )  # each (B, 1, D)
        attention = Attention(self.heads, self.dtype, self.attention, name="attention")
        y = modulate(RMSNorm(self.dtype, scale=False)(x), shift_a, scale_a)
        if self.text == "joint":
            y = attention(y, context=text, lengths=x.shape[1] + lengths, angles=angles)
        else:
            y = attention(y, angles=angles)
        x = x + gate_a * y
        if self.text == "cross":
            cross = Attention(self.heads, self.dtype, self.attention, name="cross")
            y = cross(RMSNorm(self.dtype, name="cross_norm")(x), context=text, lengths=lengths, to_self=False)
            x = x + gate_c[0] * y
        y = modulate(RMSNorm(self.dtype, scale=False)(x), shift_m, scale_m)
        x = x + gate_m * SwiGLU(dtype=self.dtype, name="mlp")(y)
        self.sow("intermediates", "tokens", x)  # for apply(..., mutable=["intermediates"])
        return x, None


class Transformer(nn.Module):
    """Predicts x, eps or v from a noisy video, its time and its text.

    Attributes:
      width, depth, heads: of the transformer.
      patch_size: pixels along a patch's side; must divide the image's.
      text: "joint" (one softmax over patches and words) or "cross" (a sub-layer of its own).
      positions: "rotary" (axial, plus fixed sines and cosines, since words name absolute places) or "learned".
      time_frequency: the highest, see `TimeEmbedding`; where derivatives by time are taken, it must be low.
      remat: see `layers.stack`.
      attention: see `layers.attend`.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch_size: int = 4
    text: str = "joint"
    positions: str = "rotary"
    time_frequency: float = 1000.0
    remat: str = "cheap"
    attention: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, t: jax.Array, span: jax.Array | None = None, *, text: Text) -> jax.Array:
        """Prediction for noisy data, float32 (B, T, H, W, C).

        Args:
          z: (B, T, H, W, C).
          t: (B,) in [0, 1].
          span: (B,) in [0, 1], duration over which the prediction is a mean, where one was given to `init` too.
          text: encoded conditions.
        """
        if self.text not in ("joint", "cross"):
            raise unknown_name_error("text attention", self.text, ("joint", "cross"))
        condition = TimeEmbedding(self.width, self.dtype, self.time_frequency, name="time")(t)
        if span is not None:
            condition = condition + TimeEmbedding(self.width, self.dtype, self.time_frequency, name="span")(span)
        condition = condition + nn.Dense(self.width, dtype=self.dtype, name="caption")(text.pooled)  # (B, D)

        patches = patchify(z, self.patch_size)  # (B, T, h, w, p*p*C)
        frames, rows, columns = patches.shape[1:4]
        x = nn.Dense(self.width, dtype=self.dtype, name="embed")(patches)
        x = einops.rearrange(x, "b t h w d -> (b t) (h w) d")  # each frame attends to itself
        each_frame = lambda y: jnp.repeat(y, frames, axis=0)
        condition, words, lengths = each_frame(condition), each_frame(text.embeddings), each_frame(text.lengths)

        x, angles = self._place(x, rows, columns)
        layers = stack(Block, self.depth, self.remat, in_axes=nn.broadcast)
        x, _ = layers(self.heads, self.text, self.dtype, self.attention, name="layers")(
            x, condition, words, lengths, angles
        )

        zeros = nn.initializers.zeros
        modulation = nn.Dense(2 * self.width, kernel_init=zeros, dtype=self.dtype, name="modulation")
        shift, scale = jnp.split(modulation(nn.silu(condition))[:, None], 2, axis=-1)
        x = modulate(RMSNorm(self.dtype, scale=False)(x), shift, scale)
        x = nn.Dense(patches.shape[-1], kernel_init=zeros, dtype=jnp.float32, name="out")(x)
        x = einops.rearrange(x, "(b t) (h w) d -> b t h w d", t=frames, h=rows)
        return unpatchify(x, self.patch_size)

    def _place(self, x: jax.Array, rows: int, columns: int):
        """Adds positions to x, (B, h*w, D); returns it with the angles that attention turns by, or None."""
        if self.positions == "rotary":
            table = sincos_table(rows, columns, self.width)
            return x + table.astype(self.dtype), rotary_table(rows, columns, head_channels(self.width, self.heads))
        if self.positions == "learned":
            table = self.param("positions", nn.initializers.normal(0.02), (rows * columns, self.width))
            return x + table.astype(self.dtype), None
        raise unknown_name_error("positions", self.positions, ("rotary", "learned"))
