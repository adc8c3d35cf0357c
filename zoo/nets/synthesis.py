"""A generator in one pass: a learned constant, shaped by noise and caption before each block.

R3GAN (2501.05441) shapes the constant alone. Here what is added on the way grows so fast that noise which comes in once
is lost in it, and all pictures become one.
"""

from collections.abc import Sequence
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.errors import BadInput
from zoo.nets.convolution import Residual, coarsest, double
from zoo.nets.layers import unpatchify
from zoo.nets.text_encoder import Reading, TextEncoder


class Synthesis(nn.Module):
    """Noise and caption to a picture, coarsest level first.

    Attributes:
      patch_size: pixels along the side of a patch, which is what the finest level makes as one.
      widths: channels of each level, finest first; each has half the side of the one before.
      blocks: of each level.
      bottleneck: how many times fewer channels there are inside a block.
      attention_size: levels of at most this side read the words; all know the caption's mean.
      heads: of that attention.
      text_width, text_depth, text_heads: of the text transformer.
    """

    vocab_size: int
    patch_size: int = 2
    widths: Sequence[int] = (128, 256)
    blocks: int = 1
    bottleneck: int = 2
    attention_size: int = 8
    heads: int = 4
    text_width: int = 128
    text_depth: int = 2
    text_heads: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, noise: jax.Array, ids: jax.Array, shape: Sequence[int]) -> jax.Array:
        """noise: (B, d); ids: (B, L); shape: of a picture, (1, H, W, C) -> (B, 1, H, W, C) float32."""
        if shape[0] > 1:
            raise BadInput(f"this generator makes pictures, not clips of {shape[0]} frames: set data.frames=1")
        rows, columns = coarsest("generator", shape, self.patch_size, self.widths)
        text = TextEncoder(self.vocab_size, self.text_width, self.text_depth, self.text_heads, self.dtype, name="text")
        text = text(ids)
        style = jnp.concatenate([noise.astype(self.dtype), text.pooled], axis=-1)
        for i in range(2):
            style = nn.gelu(nn.Dense(self.widths[-1], dtype=self.dtype, name=f"style_{i}")(style))  # (B, D)

        x = self.param("constant", nn.initializers.normal(1.0), (rows, columns, self.widths[-1])).astype(self.dtype)
        x = jnp.broadcast_to(x, (len(noise), *x.shape))  # (B, h, w, D)
        for level, width in reversed(list(enumerate(self.widths))):
            if level < len(self.widths) - 1:
                x = nn.Dense(width, dtype=self.dtype, name=f"embed_{level}")(double(x))
            for i in range(self.blocks):
                if max(x.shape[1:3]) <= self.attention_size:
                    x = Reading(self.heads, self.dtype, name=f"reading_{level}_{i}")(x, text)
                shaping = nn.Dense(width, bias_init=nn.initializers.ones, dtype=self.dtype, name=f"shaping_{level}_{i}")
                x = x * shaping(style)[:, None, None]
                x = Residual(self.bottleneck, self.dtype, name=f"block_{level}_{i}")(x, style)
        x = nn.Dense(self.patch_size**2 * shape[-1], dtype=jnp.float32, name="out")(x)
        return unpatchify(einops.rearrange(x, "b h w p -> b 1 h w p"), self.patch_size)
