"""A generator in one pass: a learned constant, shaped by noise and caption before each block.

R3GAN (2501.05441) shapes the constant alone. Here the residual branches grow so fast that noise which enters once has
no effect, and all images become equal.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.nets.conditioning import Text, TextAttentionBlock
from zoo.nets.convolution import Residual, coarsest, split_frames, upsample
from zoo.nets.layers import stack, unpatchify
from zoo.nets.time import WAVES, TimeAttention, seconds_of, time_waves


class Block(nn.Module):
    """Reads the text, is shaped by the style, and adds a residual."""

    heads: int
    bottleneck: int
    frames: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, text: Text, style: jax.Array) -> tuple[jax.Array, None]:
        """x: (B, h, w, D); style: (B, D') -> x, None. With 0 heads the text enters by the style alone."""
        if self.heads:
            x = TextAttentionBlock(self.heads, self.dtype, name="reading")(x, text)
            x = TimeAttention(self.heads, self.frames, self.dtype, name="temporal")(x, text.frame_rate)
        shaping = nn.Dense(x.shape[-1], bias_init=nn.initializers.ones, dtype=self.dtype, name="shaping")
        x = x * shaping(style)[:, None, None]
        return Residual(self.bottleneck, self.dtype, name="residual")(x, style)


class Synthesis(nn.Module):
    """Noise and caption to an image, or to a video, coarsest level first.

    All frames of a video come of the same noise; their times are part of the style.

    Attributes:
      patch_size: pixels along the side of a patch, which is what the finest level makes as one.
      widths: channels of each level, finest first; each has half the side of the one before.
      blocks: of each level.
      bottleneck: how many times fewer channels there are inside a block.
      attention_size: levels of at most this side attend to the text, and over time; all are conditioned on its mean.
      heads: of that attention.
      remat: see `layers.stack`.
    """

    patch_size: int = 2
    widths: Sequence[int] = (128, 256)
    blocks: int = 1
    bottleneck: int = 2
    attention_size: int = 8
    heads: int = 4
    remat: str = "cheap"
    dtype: Any = jnp.float32

    MAY_BE_0: ClassVar[tuple[str, ...]] = ("attention_size",)

    @nn.compact
    def __call__(self, noise: jax.Array, shape: Sequence[int], *, text: Text) -> jax.Array:
        """noise: (B, d); shape: of a video, (T, H, W, C); text: encoded -> (B, T, H, W, C) float32."""
        frames = shape[0]
        rows, columns = coarsest("generator", shape, self.patch_size, self.widths)
        style = jnp.concatenate([noise.astype(self.dtype), text.pooled], axis=-1)
        for i in range(2):
            if i == 1 and frames > 1:
                seconds = seconds_of((len(noise), frames), text.frame_rate)
                times = nn.Dense(self.widths[-1], dtype=self.dtype, name="seconds")(time_waves(seconds, WAVES))
                style = einops.rearrange(style[:, None] + times, "b t d -> (b t) d")
                text = jax.tree.map(lambda y: jnp.repeat(y, frames, axis=0), text)
            style = nn.gelu(nn.Dense(self.widths[-1], dtype=self.dtype, name=f"style_{i}")(style))  # (B T, D)

        x = self.param("constant", nn.initializers.normal(1.0), (rows, columns, self.widths[-1])).astype(self.dtype)
        x = jnp.broadcast_to(x, (len(style), *x.shape))  # (B T, h, w, D)
        for level, width in reversed(list(enumerate(self.widths))):
            if level < len(self.widths) - 1:
                x = nn.Dense(width, dtype=self.dtype, name=f"embed_{level}")(upsample(x))
            heads = self.heads if max(x.shape[1:3]) <= self.attention_size else 0
            blocks = stack(Block, self.blocks, self.remat, in_axes=nn.broadcast)
            x, _ = blocks(heads, self.bottleneck, frames, self.dtype, name=f"level_{level}")(x, text, style)
        x = nn.Dense(self.patch_size**2 * shape[-1], dtype=jnp.float32, name="out")(x)
        return unpatchify(split_frames(x, frames), self.patch_size)
