"""The critic: scores how real an image and its text are together."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.nets.conditioning import Text
from zoo.nets.convolution import Residual, coarsest, downsample, merge_frames, split_frames
from zoo.nets.layers import TimeEmbedding, patchify, stack
from zoo.nets.time import TimeAttention


class CriticOutput(NamedTuple):
    """Output of a critic.

    Attributes:
      score: (B,) float32, higher is better; scores only compare with each other.
      features: activations of each level, finest first, (B, T, h, w, D).
    """

    score: jax.Array
    features: list[jax.Array]


class Critic(nn.Module):
    """Residual convolutions without normalisation (R3GAN 2501.05441), projected on the caption (1802.05637, eq. 8).

    Of a video it reads each frame's change from the one before too, by weights that start at zero; the last level
    attends over time, and the score is the mean over frames. So it starts as the critic of images on every frame.

    Attributes:
      patch_size: pixels along the side of a patch, one place of the first level.
      widths: channels of each level; each has half the side of the one before.
      blocks: of each level.
      bottleneck: how many times fewer channels there are inside a block.
      remat: see `layers.stack`.
    """

    patch_size: int = 2
    widths: Sequence[int] = (128, 256)
    blocks: int = 1
    bottleneck: int = 2
    remat: str = "cheap"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array | None = None, *, text: Text) -> CriticOutput:
        """x: (B, T, H, W, C); t: (B,) noise level of x, None for a critic without noise; text: encoded."""
        coarsest("critic", x.shape[1:], self.patch_size, self.widths)
        frames, zeros, patches = x.shape[1], nn.initializers.zeros, patchify(x, self.patch_size)
        condition = None
        if t is not None:
            condition = jnp.repeat(TimeEmbedding(self.widths[0], self.dtype, name="time")(t), frames, axis=0)

        y, features = merge_frames(patches), []  # (B T, h, w, P)
        for level, width in enumerate(self.widths):
            if level:
                y = downsample(y)
            y = nn.Dense(width, dtype=self.dtype, name=f"embed_{level}")(y)
            if level == 0 and frames > 1:
                moved = merge_frames(changes(patches))
                y = y + nn.Dense(width, use_bias=False, kernel_init=zeros, dtype=self.dtype, name="changes")(moved)
            blocks = stack(Residual, self.blocks, self.remat, in_axes=nn.broadcast)
            y, _ = blocks(self.bottleneck, self.dtype, name=f"level_{level}")(y, condition)
            if level == len(self.widths) - 1:
                rate = None if text.frame_rate is None else jnp.repeat(text.frame_rate, frames)
                y = TimeAttention(1, frames, self.dtype, name="temporal")(y, rate)
            features.append(split_frames(y, frames))

        return CriticOutput(ProjectionHead(name="projection")(y, text.pooled, frames), features)


class ProjectedCritic(nn.Module):
    """A critic on the features of a frozen network, with a head for each of its levels.

    Projected GANs 2111.01007, LADD 2403.12015.

    Attributes:
      width: channels of each head.
      blocks: number of residual blocks of each head.
      bottleneck: how many times fewer channels there are inside a block.
      remat: see `layers.stack`.
    """

    width: int = 128
    blocks: int = 1
    bottleneck: int = 2
    remat: str = "cheap"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Sequence[jax.Array], *, text: Text) -> CriticOutput:
        """features: of each level, (B, T, h, w, D); text: encoded. The score is the mean of the heads'."""
        scores = []
        for level, y in enumerate(features):
            frames = y.shape[1]
            y = nn.LayerNorm(use_scale=False, use_bias=False, dtype=self.dtype)(
                merge_frames(y)
            )  # levels differ in size
            y = nn.Dense(self.width, dtype=self.dtype, name=f"embed_{level}")(y)
            y, _ = stack(Residual, self.blocks, self.remat)(self.bottleneck, self.dtype, name=f"level_{level}")(y)
            scores.append(ProjectionHead(name=f"projection_{level}")(y, text.pooled, frames))
        return CriticOutput(jnp.asarray(sum(scores) / len(scores)), list(features))


class ProjectionHead(nn.Module):
    """Features of the positions and the text -> a score: their projection on each other plus an unconditional score."""

    @nn.compact
    def __call__(self, y: jax.Array, caption: jax.Array, frames: int) -> jax.Array:
        """y: (B * T, h, w, D); caption: (B, D') -> (B,) float32, the mean over frames."""
        width = y.shape[-1]
        weights = self.param("positions", nn.initializers.normal((y.shape[1] * y.shape[2]) ** -0.5), y.shape[1:])
        y = einops.reduce(nn.gelu(y).astype(jnp.float32) * weights, "(b t) h w d -> b d", "sum", t=frames) / frames
        y = nn.gelu(nn.Dense(width, dtype=jnp.float32, name="whole")(y))
        unconditional = nn.Dense(1, dtype=jnp.float32, name="unconditional")(y)[:, 0]
        caption = nn.Dense(width, use_bias=False, dtype=jnp.float32, name="caption")(caption)
        return unconditional + (caption * y).sum(axis=-1) * width**-0.5


def changes(x: jax.Array) -> jax.Array:
    """Returns each frame's difference from the one before, zero for the first: (B, T, H, W, C) -> the same shape."""
    return jnp.diff(x, axis=1, prepend=x[:, :1])
