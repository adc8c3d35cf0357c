"""A small text transformer, tokens to one vector each and one for the whole caption; and how pictures read them."""

from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.nets.layers import Attention, RMSNorm, SwiGLU


class Text(NamedTuple):
    """An encoded caption: `tokens` (B, L, D), their number `lengths` (B,) int32, and their mean `pooled` (B, D)."""

    tokens: jax.Array
    lengths: jax.Array
    pooled: jax.Array


class TextEncoder(nn.Module):
    """Bidirectional pre-norm transformer over padded token ids; id 0 is padding and stands at the end only."""

    vocab_size: int
    width: int
    depth: int
    heads: int
    dtype: Any = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, ids: jax.Array) -> Text:
        """ids: (B, L) int32 -> Text."""
        present = ids != 0
        lengths = present.sum(axis=-1).astype(jnp.int32)
        x = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, name="embedding")(ids)  # (B, L, D)
        positions = self.param("positions", nn.initializers.normal(0.02), (ids.shape[1], self.width))
        x = x + positions.astype(self.dtype)
        for i in range(self.depth):
            y = RMSNorm(self.dtype, name=f"attention_norm_{i}")(x)
            x = x + Attention(self.heads, self.dtype, self.attention, name=f"attention_{i}")(y, lengths=lengths)
            y = RMSNorm(self.dtype, name=f"mlp_norm_{i}")(x)
            x = x + SwiGLU(dtype=self.dtype, name=f"mlp_{i}")(y)
        x = RMSNorm(self.dtype, name="norm")(x)
        mask = present[..., None].astype(jnp.float32)
        pooled = (x * mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1.0)
        return Text(x, lengths, pooled.astype(self.dtype))


class Reading(nn.Module):
    """A transformer layer: places attend to words and to each other, then think.

    Convolutions can hardly bind "at the top left" to a place or a colour to a thing: they are narrow inside.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, text: Text) -> jax.Array:
        """(B, h, w, D) -> (B, h, w, D)."""
        rows, places = x.shape[1], x.shape[1] * x.shape[2]
        x = einops.rearrange(x, "b h w d -> b (h w) d")
        attention = Attention(self.heads, self.dtype, name="attention")
        y = RMSNorm(self.dtype, name="attention_norm")(x)
        x = x + attention(y, context=text.tokens, lengths=places + text.lengths)
        x = x + SwiGLU(dtype=self.dtype, name="mlp")(RMSNorm(self.dtype, name="mlp_norm")(x))
        return einops.rearrange(x, "b (h w) d -> b h w d", h=rows)
