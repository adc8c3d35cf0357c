"""CLIP: an image tower and a text tower into one space (Radford et al. 2103.00020)."""

import math
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import constant, normal, variance_scaling

from zoo.errors import UserError, unknown_name_error
from zoo.nets.layers import attend, head_channels, stack

ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "gelu": lambda x: nn.gelu(x, approximate=False),
}


class CLIP(nn.Module):
    """CLIP with a vision transformer, exactly as published: it reads the weights of OpenAI's and LAION's models.

    Attributes:
      image_size: side of the images, which are square, in pixels.
      patch_size: side of a patch, in pixels; divides `image_size`.
      width, depth, heads, mlp_width: of the image tower.
      text_width, text_depth, text_heads, text_mlp_width: of the text tower.
      vocab_size, text_length: how many ids there are, and the most of them in a row.
      projection: channels P of the common space.
      end_id: a text is read out where this id stands first.
      activation, text_activation: of each tower, "quick_gelu" (OpenAI's models) or "gelu" (most others).
      eps: of the normalisations.
      remat: see `layers.stack`.
      dtype: what the towers compute in; statistics and softmax are float32.

    Raises:
      UserError: patches do not divide an image, heads do not divide a width, or an activation is unknown.
    """

    image_size: int
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    text_width: int
    text_depth: int
    text_heads: int
    text_mlp_width: int
    vocab_size: int
    text_length: int
    projection: int
    end_id: int
    activation: str = "quick_gelu"
    text_activation: str = "quick_gelu"
    eps: float = 1e-5
    remat: str = "cheap"
    dtype: Any = jnp.float32

    def setup(self):
        """Builds the layers."""
        if self.image_size % self.patch_size:
            raise UserError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}: change one")
        std, side = self.width**-0.5, self.image_size // self.patch_size
        common = {"eps": self.eps, "dtype": self.dtype}

        self.image_patches = nn.Conv(
            self.width,
            (self.patch_size, self.patch_size),
            strides=self.patch_size,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            kernel_init=variance_scaling(1 / 3, "fan_in", "uniform"),
        )
        self.image_class = self.param("image_class", normal(std), (self.width,))
        self.image_positions = self.param("image_positions", normal(std), (1 + side**2, self.width))
        self.image_pre_norm = layer_norm(**common)
        self.image_blocks = block(self.depth, self.heads, self.mlp_width, self.activation, causal=False, **common)
        self.image_norm = layer_norm(**common)
        self.image_projection = linear(self.projection, std, self.dtype, bias=False)

        self.text_tokens = nn.Embed(self.vocab_size, self.text_width, dtype=self.dtype, embedding_init=normal(0.02))
        self.text_positions = self.param("text_positions", normal(0.01), (self.text_length, self.text_width))
        self.text_blocks = block(
            self.text_depth, self.text_heads, self.text_mlp_width, self.text_activation, causal=True, **common
        )
        self.text_norm = layer_norm(**common)
        self.text_projection = linear(self.projection, self.text_width**-0.5, self.dtype, bias=False)
        self.logit_scale = self.param("logit_scale", constant(math.log(1 / 0.07)), ())

    def encode_image(self, x: jax.Array) -> jax.Array:
        """Normalised images (B, image_size, image_size, 3) -> features, float32 (B, P), not scaled to length 1.

        Args:
          x: float32 images, see `Clip.normalise`.

        Raises:
          UserError: images of another size.
        """
        if x.shape[1:] != (self.image_size, self.image_size, 3):
            raise UserError(
                f"this CLIP takes images of {self.image_size} x {self.image_size} x 3, not of"
                f" {' x '.join(map(str, x.shape[1:]))}: resize them, or train one with that image_size"
            )
        x = einops.rearrange(self.image_patches(x), "b h w d -> b (h w) d")  # (B, N, D)
        first = jnp.broadcast_to(self.image_class.astype(self.dtype), (len(x), 1, self.width))
        x = jnp.concatenate([first, x], axis=1) + self.image_positions.astype(self.dtype)  # (B, 1 + N, D)
        x = self.image_pre_norm(x)
        x, _ = stack(Block.__call__, self.depth, self.remat)(self.image_blocks, x)
        x = self.image_norm(x[:, 0])  # (B, D)
        return self.image_projection(x).astype(jnp.float32)  # (B, P)

    def encode_text(self, ids: jax.Array) -> jax.Array:
        """Ids (B, L) -> features, float32 (B, P), not scaled to length 1.

        Args:
          ids: int32, L at most `text_length`, with `end_id` in each row; what stands after the first one is not seen.

        Raises:
          UserError: rows are too long.
        """
        length = ids.shape[1]
        if length > self.text_length:
            raise UserError(f"texts of {length} ids are too long: this CLIP reads at most {self.text_length}; cut them")
        x = self.text_tokens(ids) + self.text_positions[:length].astype(self.dtype)  # (B, L, D)
        x, _ = stack(Block.__call__, self.text_depth, self.remat)(self.text_blocks, x)
        ends = jnp.argmax(ids == self.end_id, axis=1)  # (B,)
        x = self.text_norm(x[jnp.arange(len(x)), ends])  # (B, D)
        return self.text_projection(x).astype(jnp.float32)  # (B, P)

    def __call__(self, x: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the features of images (B, P) and of texts (B', P), and the log of the scale of their cosines."""
        return self.encode_image(x), self.encode_text(ids), self.logit_scale


def layer_norm(eps: float, dtype: Any, name: str | None = None) -> nn.LayerNorm:
    # The fast variance, E[x^2] - E[x]^2, loses digits where a few channels are huge, as in trained CLIPs.
    """Returns a layer norm."""
    return nn.LayerNorm(eps, dtype, use_fast_variance=False, name=name)


def linear(features: int, std: float, dtype: Any, bias: bool = True, name: str | None = None) -> nn.Dense:
    """Returns a dense layer whose kernel starts with this standard deviation."""
    return nn.Dense(features, use_bias=bias, dtype=dtype, kernel_init=normal(std), name=name)


def block(depth: int, heads: int, mlp_width: int, activation: str, **rest) -> "Block":
    """A block of a tower of `depth`, whose parameters are stacked.

    CLIP's code starts the text tower with these standard deviations and leaves the image tower to PyTorch's
    defaults; here both start so. What the 2 * depth branches add to the stream then does not grow with the depth.
    """
    if activation not in ACTIVATIONS:
        raise unknown_name_error("activation", activation, ACTIVATIONS)
    return Block(heads, mlp_width, activation, (2 * depth) ** -0.5, **rest)


class Block(nn.Module):
    """Pre-norm transformer block; `branch_scale` multiplies its last layers at the start."""

    heads: int
    mlp_width: int
    activation: str
    branch_scale: float
    causal: bool
    eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        """x: (B, N, D) -> (B, N, D), None."""
        width = x.shape[-1]
        d, std = head_channels(width, self.heads), width**-0.5

        y = layer_norm(self.eps, self.dtype, "attention_norm")(x)
        projected = [linear(width, std, self.dtype, name=name)(y) for name in ("query", "key", "value")]
        q, k, v = (einops.rearrange(y, "b n (h d) -> b n h d", d=d) for y in projected)
        y = attend(q, k, v, "auto", causal=self.causal)
        y = einops.rearrange(y, "b n h d -> b n (h d)")
        x = x + linear(width, std * self.branch_scale, self.dtype, name="out")(y)

        y = layer_norm(self.eps, self.dtype, "mlp_norm")(x)
        y = linear(self.mlp_width, (2 * width) ** -0.5, self.dtype, name="up")(y)  # (B, N, mlp_width)
        y = ACTIVATIONS[self.activation](y)
        return x + linear(width, std * self.branch_scale, self.dtype, name="down")(y), None
