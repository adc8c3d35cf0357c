"""A one-level autoencoder whose halvings have shortcuts without parameters (DC-AE 2410.10733)."""

import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.distributions import MIXTURE_PARTS, Gaussian, Latent
from zoo.errors import UserError
from zoo.nets.convolution import Conv, merge_frames, split_frames
from zoo.nets.hierarchy import to_gaussian
from zoo.nets.layers import RMSNorm, stack


def space_to_channel(x: jax.Array) -> jax.Array:
    """(B, h, w, c) -> (B, h / 2, w / 2, 4 c)."""
    return einops.rearrange(x, "b (h p) (w q) c -> b h w (c p q)", p=2, q=2)


def channel_to_space(x: jax.Array) -> jax.Array:
    """The inverse of `space_to_channel`."""
    return einops.rearrange(x, "b h w (c p q) -> b (h p) (w q) c", p=2, q=2)


def average_channels(x: jax.Array, channels: int) -> jax.Array:
    """Means of neighbouring channels, (..., g * channels) -> (..., channels)."""
    return einops.reduce(x, "... (c g) -> ... c", "mean", c=channels)


def repeat_channels(x: jax.Array, channels: int) -> jax.Array:
    """Each channel several times, (..., channels / g) -> (..., channels)."""
    return einops.repeat(x, "... c -> ... (c g)", g=channels // x.shape[-1])


class ResBlock(nn.Module):
    """Two 3x3 convolutions; the norm at the end starts at zero, so that the block starts as the identity."""

    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        """(B, h, w, D) -> (B, h, w, D), None."""
        conv = lambda name: Conv(x.shape[-1], 3, self.dtype, name=name)
        y = conv("conv_1")(nn.silu(conv("conv_0")(x)))
        gain = self.param("gain", nn.initializers.zeros, (x.shape[-1],))
        return x + RMSNorm(self.dtype, scale=False)(y) * gain.astype(self.dtype), None


class Encoder(nn.Module):
    """Images to the parameters of the posterior."""

    widths: Sequence[int]
    blocks: int
    latent_dim: int
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, 3) -> (B, h, w, 2 c)."""
        x = Conv(self.widths[0], 3, self.dtype, name="embed")(space_to_channel(x))
        for level, width in enumerate(self.widths):
            if level:
                y = Conv(width // 4, 3, self.dtype, name=f"down_{level}")(x)
                x = space_to_channel(y) + average_channels(space_to_channel(x), width)
            x, _ = stack(ResBlock, self.blocks, self.remat)(self.dtype, name=f"level_{level}")(x)
        x = nn.silu(RMSNorm(self.dtype, name="norm")(x))
        return Conv(2 * self.latent_dim, 3, jnp.float32, name="latent")(x)


class Decoder(nn.Module):
    """Latents to the parameters of the likelihood."""

    widths: Sequence[int]
    blocks: int
    mixtures: int
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """(B, h, w, c) -> (B, H, W, MIXTURE_PARTS * mixtures)."""
        x = Conv(self.widths[-1], 3, self.dtype, name="latent")(z)
        for level, width in reversed(list(enumerate(self.widths))):
            if level < len(self.widths) - 1:
                y = Conv(4 * width, 3, self.dtype, name=f"up_{level}")(x)
                x = channel_to_space(y) + channel_to_space(repeat_channels(x, 4 * width))
            x, _ = stack(ResBlock, self.blocks, self.remat)(self.dtype, name=f"level_{level}")(x)
        x = nn.silu(RMSNorm(self.dtype, name="norm")(x))
        return channel_to_space(Conv(4 * MIXTURE_PARTS * self.mixtures, 3, jnp.float32, name="head")(x))


class Autoencoder(nn.Module):
    """A VAE of one group of latents with the prior N(0, 1). It has no conditions.

    Attributes:
      widths: channels of each level, finest first. The first has half the image's side and each other one half of
        the one before, so that two make f4 and three f8.
      blocks: of each level.
      latent_dim: channels of the latents.
      mixtures: components of the likelihood.
      remat: see `layers.stack`.
    """

    widths: Sequence[int] = (128, 256)
    blocks: int = 2
    latent_dim: int = 4
    mixtures: int = 5
    remat: str = "cheap"
    dtype: Any = jnp.float32

    unconditional: ClassVar[bool] = True

    def setup(self):
        """Builds the layers."""
        self.encoder = Encoder(self.widths, self.blocks, self.latent_dim, self.remat, self.dtype)
        self.decoder = Decoder(self.widths, self.blocks, self.mixtures, self.remat, self.dtype)

    def __call__(self, x: jax.Array, eps: Sequence[jax.Array]) -> tuple[jax.Array, list[Latent]]:
        """See `Hierarchy`; there is one group of latents."""
        posterior = jax.tree.map(lambda y: y[:, None], self._posterior(x))  # (B, 1, T, h, w, c)
        z = posterior.sample(eps[0])
        prior = Gaussian(jnp.zeros_like(z), jnp.zeros_like(z))
        return self.generate([z]), [Latent(posterior, prior, z)]

    def generate(self, noise: Sequence[jax.Array]) -> jax.Array:
        """See `Hierarchy`."""
        return self.decode(noise[0][:, 0])

    def encode(self, x: jax.Array) -> jax.Array:
        """The posterior's mean, (B, T, H, W, 3) -> (B, T, h, w, c)."""
        return self._posterior(x).mean

    def decode(self, z: jax.Array) -> jax.Array:
        """Latents to the likelihood's parameters."""
        return split_frames(self.decoder(merge_frames(z)), z.shape[1])

    def noise_shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """See `Hierarchy`.

        Args:
          shape: of an image, (T, H, W, C).

        Raises:
          UserError: the levels do not divide the size, or the shortcuts cannot join the widths.
        """
        frames, height, width, _ = shape
        factor = 2 ** len(self.widths)
        if height % factor or width % factor:
            raise UserError(
                f"{len(self.widths)} widths need sides divisible by {factor}, got {height} x {width}: change data.size "
                "or the number of widths"
            )
        for fine, coarse in itertools.pairwise(self.widths):
            if coarse % 4 or 4 * fine % coarse:
                raise UserError(
                    f"widths {tuple(self.widths)}: {coarse} after {fine} must be divisible by 4 and divide "
                    f"{4 * fine}; upsample each"
                )
        return [(1, frames, height // factor, width // factor, self.latent_dim)]

    def _posterior(self, x: jax.Array) -> Gaussian:
        return to_gaussian(split_frames(self.encoder(merge_frames(x)), x.shape[1]))
