"""The critic: like CLIP it looks at a picture and its text, and says how real the two are together."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.nets.convolution import Residual, coarsest, fold, halve, unfold
from zoo.nets.layers import TimeEmbedding, patchify
from zoo.nets.text_encoder import TextEncoder


class Judgement(NamedTuple):
    """What a critic says of pictures.

    Attributes:
      score: (B,) float32, higher is better; it compares, and has no scale of its own.
      features: what it saw at each level, finest first, (B, T, h, w, D).
    """

    score: jax.Array
    features: list[jax.Array]


class Critic(nn.Module):
    """Residual convolutions without normalisation (R3GAN 2501.05441), projected on the caption (1802.05637, eq. 8).

    Of a clip it sees each frame beside its difference from the one before, and says the mean over frames.

    Attributes:
      patch_size: pixels along the side of a patch, which is what the first level sees as one.
      widths: channels of each level; each has half the side of the one before.
      blocks: of each level.
      bottleneck: how many times fewer channels there are inside a block.
      text_width, text_depth, text_heads: of the text transformer.
    """

    vocab_size: int
    patch_size: int = 2
    widths: Sequence[int] = (128, 256)
    blocks: int = 1
    bottleneck: int = 2
    text_width: int = 128
    text_depth: int = 2
    text_heads: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, ids: jax.Array, t: jax.Array | None = None) -> Judgement:
        """x: (B, T, H, W, C); ids: (B, L); t: (B,) how much noise is in x, where a critic is told."""
        coarsest("critic", x.shape[1:], self.patch_size, self.widths)
        frames = x.shape[1]
        caption = read_caption(self, ids)
        condition = None
        if t is not None:
            condition = jnp.repeat(TimeEmbedding(self.widths[0], self.dtype, name="time")(t), frames, axis=0)

        y, features = fold(patchify(with_motion(x), self.patch_size)), []  # (B T, h, w, P)
        for level, width in enumerate(self.widths):
            if level:
                y = halve(y)
            y = nn.Dense(width, dtype=self.dtype, name=f"embed_{level}")(y)
            for i in range(self.blocks):
                y = Residual(self.bottleneck, self.dtype, name=f"block_{level}_{i}")(y, condition)
            features.append(unfold(y, frames))

        return Judgement(Verdict(name="verdict")(y, caption, frames), features)


class ProjectedCritic(nn.Module):
    """Judges by what a frozen network sees in pictures, at each of its levels (Projected GANs 2111.01007, LADD
    2403.12015).

    Attributes:
      width: channels of each head.
      blocks: residual ones of each head.
      bottleneck: how many times fewer channels there are inside a block.
      text_width, text_depth, text_heads: of the text transformer.
    """

    vocab_size: int
    width: int = 128
    blocks: int = 1
    bottleneck: int = 2
    text_width: int = 128
    text_depth: int = 2
    text_heads: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, seen: Sequence[jax.Array], ids: jax.Array) -> Judgement:
        """seen: what the network saw, each (B, T, h, w, D); ids: (B, L). The score is the mean of the heads'."""
        caption = read_caption(self, ids)
        scores = []
        for level, y in enumerate(seen):
            frames = y.shape[1]
            y = nn.LayerNorm(use_scale=False, use_bias=False, dtype=self.dtype)(fold(y))  # levels differ in size
            y = nn.Dense(self.width, dtype=self.dtype, name=f"embed_{level}")(y)
            for i in range(self.blocks):
                y = Residual(self.bottleneck, self.dtype, name=f"block_{level}_{i}")(y)
            scores.append(Verdict(name=f"verdict_{level}")(y, caption, frames))
        return Judgement(sum(scores) / len(scores), list(seen))


def read_caption(critic: Critic | ProjectedCritic, ids: jax.Array) -> jax.Array:
    """The caption as one vector, by a reader of the critic's own: (B, L) -> (B, D'). Called within its `__call__`."""
    sizes = critic.text_width, critic.text_depth, critic.text_heads
    return TextEncoder(critic.vocab_size, *sizes, critic.dtype, "xla", name="text")(ids).pooled


class Verdict(nn.Module):
    """Features of places and the caption's -> a score: the projection of one on the other, and how real they are."""

    @nn.compact
    def __call__(self, y: jax.Array, caption: jax.Array, frames: int) -> jax.Array:
        """y: (B * T, h, w, D); caption: (B, D') -> (B,) float32, the mean over frames."""
        width = y.shape[-1]
        weights = self.param("places", nn.initializers.normal((y.shape[1] * y.shape[2]) ** -0.5), y.shape[1:])
        y = einops.reduce(nn.gelu(y).astype(jnp.float32) * weights, "(b t) h w d -> b d", "sum", t=frames) / frames
        y = nn.gelu(nn.Dense(width, dtype=jnp.float32, name="whole")(y))
        alone = nn.Dense(1, dtype=jnp.float32, name="alone")(y)[:, 0]
        caption = nn.Dense(width, use_bias=False, dtype=jnp.float32, name="caption")(caption)
        return alone + (caption * y).sum(axis=-1) * width**-0.5


def with_motion(x: jax.Array) -> jax.Array:
    """(B, T, H, W, C) -> (B, T, H, W, 2 C), each frame beside its change; a picture as it is."""
    if x.shape[1] == 1:
        return x
    return jnp.concatenate([x, jnp.diff(x, axis=1, prepend=x[:, :1])], axis=-1)
