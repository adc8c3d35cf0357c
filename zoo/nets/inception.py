"""Inception-v3 (1512.00567) as the Frechet Inception distance has it: inference only, up to the pooled features.

It is the graph that Heusel et al. (1706.08500) took their features from, in pytorch-fid's port. Where it departs from
the paper: averages of 3x3 count no padding, the pool of the last block (Mixed_7c) is a maximum, and the classes were
1008; they are left out here. Modules have the names of the published weights, and so have their parameters.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.errors import UserError

SIZE = 299  # of the images, in pixels
ONE, THREE, FIVE, ROW, COLUMN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)
FORK = ((1, 3), (3, 1))  # two convolutions of the same input, side by side


class BatchNorm(nn.Module):
    """Normalises channels by stored statistics."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (N, H, W, C) -> features."""
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        shape = x.shape[-1:]
        weight, bias = self.param("weight", ones, shape), self.param("bias", zeros, shape)
        mean, variance = self.param("running_mean", zeros, shape), self.param("running_var", ones, shape)
        return (x - mean) * (weight * jax.lax.rsqrt(variance + 1e-3)) + bias


class Conv(nn.Module):
    """Convolution, batch norm, ReLU. Strided ones are not padded.

    Products are of full float32: TPUs and GPUs would by default round them to fewer bits, which moves a distance.
    """

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (N, H, W, C) -> features."""
        padding = self.padding if self.stride == 1 else "VALID"
        x = nn.Conv(
            self.features,
            self.kernel,
            self.stride,
            padding,
            use_bias=False,
            precision=jax.lax.Precision.HIGHEST,
            name="conv",
        )(x)
        return nn.relu(BatchNorm(name="bn")(x))


class Mixed(nn.Module):
    """An Inception block: branches of convolutions and one of a 3x3 pool, joined by channels.

    Attributes:
      branches: by name, (features, kernel) of each convolution in turn; `FORK` for a kernel makes it two.
      pooled: channels of the convolution after the pool; 0 where there is none, and then the last step of every
        branch has stride 2.
      maximum: the pool is a maximum rather than an average; it always is where it has stride 2.
    """

    branches: Mapping[str, tuple]
    pooled: int = 0
    maximum: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (N, H, W, C) -> features."""
        outs = [self._branch(name, steps, x) for name, steps in self.branches.items()]
        if not self.pooled:
            pool = nn.max_pool(x, (3, 3), (2, 2))
        elif self.maximum:
            pool = nn.max_pool(x, (3, 3), padding="SAME")
        else:
            pool = nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
        if self.pooled:
            pool = Conv(self.pooled, (1, 1), name="branch_pool")(pool)
        return jnp.concatenate([*outs, pool], axis=-1)

    def _branch(self, name: str, steps: tuple, x: jax.Array) -> jax.Array:
        for i, (features, kernel) in enumerate(steps, start=1):
            label = f"{name}_{i}" if len(steps) > 1 else name
            if kernel == FORK:
                sides = zip("ab", FORK, strict=True)
                x = jnp.concatenate([Conv(features, side, name=label + letter)(x) for letter, side in sides], axis=-1)
            else:
                stride = 2 if i == len(steps) and not self.pooled else 1
                x = Conv(features, kernel, stride, name=label)(x)
        return x


def _a(pooled: int) -> dict:
    branches = {
        "branch1x1": ((64, ONE),),
        "branch5x5": ((48, ONE), (64, FIVE)),
        "branch3x3dbl": ((64, ONE), (96, THREE), (96, THREE)),
    }
    return dict(branches=branches, pooled=pooled)


def _c(width: int) -> dict:
    branches = {
        "branch1x1": ((192, ONE),),
        "branch7x7": ((width, ONE), (width, ROW), (192, COLUMN)),
        "branch7x7dbl": ((width, ONE), (width, COLUMN), (width, ROW), (width, COLUMN), (192, ROW)),
    }
    return dict(branches=branches, pooled=192)


def _e(maximum: bool) -> dict:
    branches = {
        "branch1x1": ((320, ONE),),
        "branch3x3": ((384, ONE), (384, FORK)),
        "branch3x3dbl": ((448, ONE), (384, THREE), (384, FORK)),
    }
    return dict(branches=branches, pooled=192, maximum=maximum)


_B = {"branch3x3": ((384, THREE),), "branch3x3dbl": ((64, ONE), (96, THREE), (96, THREE))}
_D = {
    "branch3x3": ((192, ONE), (320, THREE)),
    "branch7x7x3": ((192, ONE), (192, ROW), (192, COLUMN), (192, THREE)),
}
BLOCKS = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": dict(branches=_B),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": dict(branches=_D),
    "Mixed_7b": _e(maximum=False),
    "Mixed_7c": _e(maximum=True),
}


class Inception(nn.Module):
    """The network. It has no options."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Images (B, 299, 299, 3) in [-1, 1] -> features (B, 2048), float32, at least 0.

        Args:
          x: float32 images, see `pretrained.inception.preprocess`.

        Raises:
          UserError: the images are of another size.
        """
        if x.shape[1:] != (SIZE, SIZE, 3):
            raise UserError(f"Inception takes images of {SIZE} x {SIZE} x 3, got {x.shape[1:]}: preprocess them first")
        x = x.astype(jnp.float32)
        x = Conv(32, THREE, stride=2, name="Conv2d_1a_3x3")(x)  # (B, 149, 149, 32)
        x = Conv(32, THREE, padding="VALID", name="Conv2d_2a_3x3")(x)  # (B, 147, 147, 32)
        x = Conv(64, THREE, name="Conv2d_2b_3x3")(x)  # (B, 147, 147, 64)
        x = nn.max_pool(x, (3, 3), (2, 2))  # (B, 73, 73, 64)
        x = Conv(80, ONE, name="Conv2d_3b_1x1")(x)  # (B, 73, 73, 80)
        x = Conv(192, THREE, padding="VALID", name="Conv2d_4a_3x3")(x)  # (B, 71, 71, 192)
        x = nn.max_pool(x, (3, 3), (2, 2))  # (B, 35, 35, 192)
        for name, block in BLOCKS.items():
            x = Mixed(**block, name=name)(x)  # (B, 35, 35, C), from 6a (B, 17, 17, 768), from 7a (B, 8, 8, C)
        return x.mean((1, 2))  # (B, 2048)
