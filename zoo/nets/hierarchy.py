"""A ladder of latents, read from the image bottom up and made from the caption top down (VDVAE 2011.10650)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.distributions import MIXTURE_PARTS, Gaussian, Latent
from zoo.errors import UserError
from zoo.nets.conditioning import Text, TextAttentionBlock
from zoo.nets.convolution import Bottleneck, merge_frames, split_frames
from zoo.nets.layers import RMSNorm, patchify, sincos_table, stack, unpatchify
from zoo.nets.time import TimeAttention

LOG_STD = 5.0  # no log-std is larger or smaller than this, softly (NVAE 2007.03898)


def to_gaussian(raw: jax.Array) -> Gaussian:
    """(..., 2 c) -> a Gaussian of (..., c), float32."""
    mean, log_std = jnp.split(raw.astype(jnp.float32), 2, axis=-1)
    return Gaussian(mean, LOG_STD * jnp.tanh(log_std / LOG_STD))


def depth_scaled_init(depth: int):
    """An initialiser for what `depth` layers add to one sum, which keeps the sum's variance (VDVAE)."""
    return nn.initializers.variance_scaling(1.0 / depth, "fan_in", "truncated_normal")


class BottomUpBlock(nn.Module):
    """A residual block."""

    hidden: int
    depth: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        """(B, h, w, D) -> (B, h, w, D), None."""
        return x + Bottleneck(x.shape[-1], self.hidden, depth_scaled_init(self.depth), self.dtype, name="block")(
            x
        ), None


class BottomUp(nn.Module):
    """Reads patches, level by level, each of half the last one's side."""

    blocks: Sequence[int]
    width: int
    hidden: int
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, patches: jax.Array) -> list[jax.Array]:
        """(B, h, w, P) -> what was read at each level, finest first, (B, h / 2^i, w / 2^i, width)."""
        x, levels = nn.Dense(self.width, dtype=self.dtype, name="embed")(patches), []
        for level, count in enumerate(self.blocks):
            if level:
                x = nn.avg_pool(x, (2, 2), (2, 2))
            blocks = stack(BottomUpBlock, count, self.remat)(
                self.hidden, sum(self.blocks), self.dtype, name=f"level_{level}"
            )
            x, _ = blocks(x)
            levels.append(x)
        return levels


class TopDownBlock(nn.Module):
    """Optional attention to places, words and frames, a group of latents, and a residual block (VDVAE)."""

    hidden: int
    heads: int
    depth: int
    frames: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, eps: jax.Array, text: Text, read: jax.Array | None
    ) -> tuple[jax.Array, Latent | None]:
        """Draws the latents of one group, and adds them to x.

        Args:
          x: (B, h, w, D).
          eps: noise of the group, (B, h, w, c).
          text: encoded conditions.
          read: the image's features at this level, (B, h, w, D), or None to generate.

        Returns:
          x with the latents added, and the latents, (B, h, w, c); None where there is no posterior.
        """
        width, dim, last = x.shape[-1], eps.shape[-1], depth_scaled_init(self.depth)
        if self.heads:
            x = TextAttentionBlock(self.heads, self.dtype, name="reading")(x, text)
            x = TimeAttention(self.heads, self.frames, self.dtype, name="temporal")(x, text.frame_rate)
        zeros = nn.initializers.zeros  # the first prior is N(0, 1)
        raw, more = jnp.split(self._bottleneck("prior", 2 * dim + width, zeros)(x, text.pooled), [2 * dim], axis=-1)
        prior, latent = to_gaussian(raw), None
        if read is None:
            z = prior.sample(eps)
        else:
            both = jnp.concatenate([x, read], axis=-1)
            raw = self._bottleneck("posterior", 2 * dim, nn.initializers.lecun_normal())(both, text.pooled)
            posterior = to_gaussian(raw)
            z = posterior.sample(eps)
            latent = Latent(posterior, prior, z)
        x = x + more + nn.Dense(width, kernel_init=last, dtype=self.dtype, name="latent")(z)
        return x + self._bottleneck("block", width, last)(x, text.pooled), latent

    def _bottleneck(self, name: str, width: int, last) -> Bottleneck:
        return Bottleneck(width, self.hidden, last, self.dtype, name=name)


class TopDown(nn.Module):
    """Makes images of captions and noise, coarsest level first."""

    width: int
    hidden: int
    heads: int
    attention_size: int
    remat: str
    dtype: Any

    @nn.compact
    def __call__(
        self, text: Text, noise: Sequence[jax.Array], levels: Sequence[jax.Array] | None, frames: int
    ) -> tuple[jax.Array, list[Latent | None]]:
        """Makes the features of images, level by level.

        Args:
          text: encoded conditions.
          noise: (groups, B, h, w, c) of each level, coarsest first.
          levels: of `BottomUp`, or None to generate.
          frames: frames of a video, in rows of B.

        Returns:
          (B, h, w, D) of the finest level, and the latents of each, like noise; None where there is no posterior.
        """
        x: Any = None
        latents, depth = [], sum(map(len, noise))
        for level, eps in zip(reversed(range(len(noise))), noise, strict=True):
            _, count, rows, columns, _ = eps.shape
            x = self._begin(x, (count, rows, columns), level)
            heads = self.heads if max(x.shape[1:3]) <= self.attention_size else 0
            blocks = stack(TopDownBlock, len(eps), self.remat, in_axes=(0, nn.broadcast, nn.broadcast))
            x, latent = blocks(self.hidden, heads, depth, frames, self.dtype, name=f"level_{level}")(
                x, eps, text, None if levels is None else levels[level]
            )
            latents.append(latent)
        return x, latents

    def _begin(self, x: jax.Array | None, shape: tuple[int, int, int], level: int) -> jax.Array:
        """The level above in twice its size, (B, h, w, D), and positions, since words name absolute places."""
        count, rows, columns = shape
        table = self.param(f"positions_{level}", lambda _: jnp.float32(sincos_table(rows, columns, self.width)))
        y = einops.repeat(table.astype(self.dtype), "(h w) d -> b h w d", b=count, h=rows)
        return y if x is None else y + einops.repeat(x, "b h w d -> b (h p) (w q) d", p=2, q=2)


class Hierarchy(nn.Module):
    """A hierarchical VAE: p(x | z) and all p(z_g | z_<g, caption) top down, q(z_g | z_<g, x, caption) beside them.

    Frames of a video share the levels with attention, which is over time too; a group's latents are those of a frame.

    Attributes:
      patch_size: pixels along the side of a patch, one place of the finest level.
      width, bottleneck: channels, and how many times fewer there are inside a block.
      encoder_blocks, decoder_blocks: of each level, finest first; each level has half the side of the one before.
        Each block of the decoder has a group of latents.
      latent_dim: channels of each group.
      attention_size: levels of at most this side have transformer layers, which attend to the words and to each
        other; the caption's mean modulates all of them.
      heads: of their attention.
      mixtures: components of the likelihood.
      remat: see `layers.stack`.
    """

    patch_size: int = 2
    width: int = 256
    bottleneck: int = 4
    encoder_blocks: Sequence[int] = (4, 4, 3, 2)
    decoder_blocks: Sequence[int] = (8, 6, 3, 2)
    latent_dim: int = 16
    attention_size: int = 8
    heads: int = 4
    mixtures: int = 10
    remat: str = "cheap"
    dtype: Any = jnp.float32

    MAY_BE_0: ClassVar[tuple[str, ...]] = ("attention_size",)

    def setup(self):
        """Builds the layers."""
        hidden = self.width // self.bottleneck
        self.bottom_up = BottomUp(self.encoder_blocks, self.width, hidden, self.remat, self.dtype)
        self.top_down = TopDown(self.width, hidden, self.heads, self.attention_size, self.remat, self.dtype)
        self.norm = RMSNorm(self.dtype)
        self.head = nn.Dense(self.patch_size**2 * MIXTURE_PARTS * self.mixtures, dtype=jnp.float32)

    def __call__(self, x: jax.Array, eps: Sequence[jax.Array], *, text: Text) -> tuple[jax.Array, list[Latent]]:
        """Images to what is likely, by way of their latents.

        Args:
          x: (B, T, H, W, 3) in [-1, 1].
          eps: the posterior's noise, an array of each of `noise_shapes`, (B, *shape).
          text: encoded conditions.

        Returns:
          Parameters for `distributions.mixture_log_prob`, float32 (B, T, H, W, ...), and the latents, like eps.
        """
        frames = x.shape[1]
        levels = self.bottom_up(merge_frames(patchify(x, self.patch_size)))
        raw, latents = self._top_down(text, eps, levels)
        apart = lambda y: einops.rearrange(y, "n (b t) h w c -> b n t h w c", t=frames)
        return raw, jax.tree.map(apart, latents)

    def generate(self, noise: Sequence[jax.Array], *, text: Text) -> jax.Array:
        """The likelihood's parameters from the priors' noise, like `__call__`'s."""
        return self._top_down(text, noise, None)[0]

    def noise_shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """(T, H, W, C) of an image -> (groups, T, h, w, c) of the latents of each level, top down.

        Args:
          shape: of an image, (T, H, W, C).

        Raises:
          UserError: the levels do not divide the size, or their numbers differ.
        """
        frames, height, width, _ = shape
        depth = len(self.decoder_blocks)
        if len(self.encoder_blocks) != depth or min(*self.encoder_blocks, *self.decoder_blocks) < 1:
            raise UserError(
                f"encoder_blocks {tuple(self.encoder_blocks)} and decoder_blocks {tuple(self.decoder_blocks)} must "
                "have as many levels, of at least one block each"
            )
        coarsest = self.patch_size * 2 ** (depth - 1)
        if height % coarsest or width % coarsest:
            raise UserError(
                f"{depth} levels on patches of {self.patch_size} need sides divisible by {coarsest}, got {height} x "
                f"{width}: change data.size, patch_size or the number of levels"
            )
        sides = [self.patch_size * 2**level for level in range(depth)]
        return [
            (groups, frames, height // side, width // side, self.latent_dim)
            for side, groups in reversed(list(zip(sides, self.decoder_blocks, strict=True)))
        ]

    def _top_down(self, text, noise, levels):
        frames = noise[0].shape[2]
        text = jax.tree.map(lambda y: jnp.repeat(y, frames, axis=0), text)
        noise = [einops.rearrange(eps, "b n t h w c -> n (b t) h w c") for eps in noise]
        x, latents = self.top_down(text, noise, levels, frames)
        return unpatchify(split_frames(self.head(self.norm(x)), frames), self.patch_size), latents
