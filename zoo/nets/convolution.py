"""Convolutions of images, and clips as images."""

from collections.abc import Sequence
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x: (B, h, w, c), padded with zeros; kernel: (k, k, c, D), k odd -> (B, h, w, D)."""
    if jax.default_backend() == "cpu":
        return convolve_by_product(x, kernel)
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convolve_by_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`convolve` as one product of matrices: XLA's CPU code for a convolution's gradient within a loop is slow."""
    (rows, columns), size = x.shape[1:3], len(kernel)
    margin = size // 2, size // 2
    x = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))
    shifted = [x[:, i : i + rows, j : j + columns] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifted, axis=-1) @ einops.rearrange(kernel, "i j c d -> (i j c) d")


class Conv(nn.Module):
    """A convolution of side `size`: (B, h, w, c) -> (B, h, w, features)."""

    features: int
    size: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (B, h, w, D) -> (B, h, w, D)."""
        shape = self.size, self.size, x.shape[-1], self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype)) + bias.astype(self.dtype)


class Bottleneck(nn.Module):
    """1x1, 3x3, 3x3 and 1x1 convolutions (VDVAE), where `condition` shifts what the first makes.

    Attributes:
      width, hidden: channels that come out, and those between.
      last: initialiser of the last convolution.
    """

    width: int
    hidden: int
    last: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        """x: (B, h, w, D); condition: (B, D') -> (B, h, w, width)."""
        size = 3 if min(x.shape[1:3]) > 2 else 1  # 3x3 would cover little but padding
        y = nn.Dense(self.hidden, dtype=self.dtype, name="down")(nn.gelu(x))
        if condition is not None:
            y = y + nn.Dense(self.hidden, dtype=self.dtype, name="condition")(condition)[:, None, None]
        for i in range(2):
            y = Conv(self.hidden, size, self.dtype, name=f"conv_{i}")(nn.gelu(y))
        return nn.Dense(self.width, kernel_init=self.last, dtype=self.dtype, name="up")(nn.gelu(y))


class Residual(nn.Module):
    """A bottleneck beside the identity, which it starts as; there is no normalisation (R3GAN 2501.05441)."""

    bottleneck: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> tuple[jax.Array, None]:
        """(B, h, w, D) -> (B, h, w, D), None; inside there are `bottleneck` times fewer channels."""
        width = x.shape[-1]
        inner = Bottleneck(width, width // self.bottleneck, nn.initializers.zeros, self.dtype, name="inner")
        return x + inner(x, condition), None


def merge_frames(x: jax.Array) -> jax.Array:
    """(B, T, h, w, c) -> (B * T, h, w, c)."""
    return einops.rearrange(x, "b t h w c -> (b t) h w c")


def split_frames(x: jax.Array, frames: int) -> jax.Array:
    """The inverse of `merge_frames`."""
    return einops.rearrange(x, "(b t) h w c -> b t h w c", t=frames)


def coarsest(what: str, shape: Sequence[int], patch_size: int, widths: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the last of these levels, each of half the side of the one before, of (T, H, W, C) pixels.

    Args:
      what: name of the network, for errors.
      shape: of an image, (T, H, W, C).
      patch_size: pixels along a patch's side.
      widths: channels of each level, finest first.

    Raises:
      UserError: the levels do not divide the size of `what`.
    """
    height, width = shape[1:3]
    factor = patch_size * 2 ** (len(widths) - 1)
    if height % factor or width % factor:
        raise UserError(
            f"a {what} of {len(widths)} widths on patches of {patch_size} needs sides divisible by {factor}, got "
            f"{height} x {width}: change data.size, patch_size or the number of widths"
        )
    return height // factor, width // factor


def downsample(x: jax.Array) -> jax.Array:
    """Half the side, without aliasing: blurred by [1, 3, 3, 1] / 8 first. (B, h, w, c) -> (B, h / 2, w / 2, c)."""
    down = [_halving(side).astype(x.dtype) for side in x.shape[1:3]]
    return jnp.einsum("b h w c, i h, j w -> b i j c", x, *down)


def upsample(x: jax.Array) -> jax.Array:
    """Twice the side, bilinear: `downsample` turned round. (B, h, w, c) -> (B, 2 h, 2 w, c)."""
    up = [2 * _halving(2 * side).astype(x.dtype) for side in x.shape[1:3]]
    return jnp.einsum("b h w c, h i, w j -> b i j c", x, *up)


def _halving(side: int) -> np.ndarray:
    """`downsample` along one axis, (side / 2, side); what lies beyond the edge is like the edge."""
    matrix = np.zeros((side // 2, side), np.float32)
    for i in range(side // 2):
        for offset, weight in zip((-1, 0, 1, 2), (1, 3, 3, 1), strict=True):
            matrix[i, min(max(2 * i + offset, 0), side - 1)] += weight / 8
    return matrix
