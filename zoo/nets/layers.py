"""The layers that the transformers share. Statistics and softmax are float32 whatever the layers compute in."""

from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError, unknown_name_error

scan: Any = nn.scan  # flax's annotation allows the same axis for all inputs alone


def attend(q: jax.Array, k: jax.Array, v: jax.Array, lengths: jax.Array | None, implementation: str) -> jax.Array:
    """Softmax attention, (B, N, heads, d).

    Args:
      q: queries (B, N, heads, d).
      k: keys (B, M, heads, d).
      v: values (B, M, heads, d).
      lengths: number of keys that count, (B,); None for all.
      implementation: "xla", "cudnn", or "auto": cuDNN's fused kernel on GPUs in 16 bits for even numbers of queries and
        keys, of which alone it has the derivative, else XLA. cuDNN has no forward-mode and no second derivative: maths
        that needs one takes "xla".
    """
    if implementation not in ("auto", "xla", "cudnn"):
        raise unknown_name_error("attention implementation", implementation, ("auto", "xla", "cudnn"))
    if implementation == "auto":
        even = q.shape[1] % 2 == k.shape[1] % 2 == 0
        fused = even and jax.default_backend() == "gpu" and q.dtype.itemsize == 2
        implementation = "cudnn" if fused else "xla"
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation=implementation)


def rotary_table(rows: int, columns: int, dim: int) -> np.ndarray:
    """Angles of axial rotary positions (RoFormer 2104.09864), half the channels an axis: (rows * columns, dim / 2)."""
    if dim % 4:
        raise UserError(f"rotary positions need channels per head divisible by 4, got {dim}: change width or heads")
    frequencies = 100.0 ** -(np.arange(dim // 4) / (dim // 4))  # images are tens of patches wide, not 10,000
    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.concatenate([np.outer(row, frequencies), np.outer(column, frequencies)], axis=-1)


def rotate(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Turns channel pairs of x, (B, N, heads, d), by angles, (N, d / 2)."""
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def sincos_table(rows: int, columns: int, dim: int) -> np.ndarray:
    """Fixed sine-cosine positions of a grid, (rows * columns, dim)."""
    if dim % 4:
        raise UserError(f"positions need a width divisible by 4, got {dim}")
    angles = rotary_table(rows, columns, dim)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (1910.07467) over the last axis."""

    dtype: Any = jnp.float32
    scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., D) -> (..., D)."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + 1e-6)
        if self.scale:
            y = y * self.param("scale", nn.initializers.ones, (x.shape[-1],))
        return y.astype(self.dtype)


def head_channels(width: int, heads: int) -> int:
    """Channels of each of `heads` heads."""
    if width % heads:
        raise UserError(f"width {width} is not divisible by heads {heads}; change one of them")
    return width // heads


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys (2302.05442).

    The queries come from x; keys and values from x, from a context, or from both in one softmax.
    """

    heads: int
    dtype: Any = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x, *, context=None, lengths=None, to_self=True, angles=None):
        """Attends from x to x and the context in one softmax: (B, N, D).

        Args:
          x: (B, N, D).
          context: (B, M, D'), or None.
          lengths: (B,) how many of all keys count; x's own keys come first, so padding is at the end.
          to_self: whether x attends to itself; False is plain cross-attention.
          angles: rotary positions of x, (N, d / 2). The context has position 0: how its words about positions apply
            then depends on the query's position alone.
        """
        width = x.shape[-1]
        shape = (self.heads, head_channels(width, self.heads))

        def project(name, value, normed):
            y = nn.DenseGeneral(shape, use_bias=False, dtype=self.dtype, name=name)(value)  # (B, N, heads, d)
            return RMSNorm(self.dtype, name=f"{name}_norm")(y) if normed else y

        def place(y):
            return y if angles is None else rotate(y, angles)

        q = place(project("query", x, True))
        keys, values = [], []
        if to_self:
            keys.append(place(project("key", x, True)))
            values.append(project("value", x, False))
        if context is not None:
            keys.append(project("context_key", context, True))
            values.append(project("context_value", context, False))
        k, v = jnp.concatenate(keys, axis=1), jnp.concatenate(values, axis=1)  # (B, N + M, heads, d)
        y = attend(q, k, v, lengths, self.implementation)
        return nn.DenseGeneral(width, axis=(-2, -1), use_bias=False, dtype=self.dtype, name="out")(y)


class SwiGLU(nn.Module):
    """Gated feed-forward (2002.05202), W_out (silu(W_gate x) * W_in x); has the parameters of an MLP of `ratio`."""

    ratio: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: (..., D) -> (..., D)."""
        width = x.shape[-1]
        hidden = int(width * self.ratio * 2 / 3) // 8 * 8
        gate, value = jnp.split(nn.Dense(2 * hidden, use_bias=False, dtype=self.dtype, name="up")(x), 2, axis=-1)
        return nn.Dense(width, use_bias=False, dtype=self.dtype, name="down")(nn.silu(gate) * value)


class TimeEmbedding(nn.Module):
    """A time in [0, 1] as sines and cosines, then an MLP. t: (B,) -> (B, width).

    Attributes:
      highest: frequency, in radians over all of time.
    """

    width: int
    dtype: Any = jnp.float32
    highest: float = 1000.0

    @nn.compact
    def __call__(self, t: jax.Array) -> jax.Array:
        """t: (B,) -> (B, width)."""
        frequencies = self.highest * 1e-4 ** (np.arange(128) / 128)
        angles = t.astype(jnp.float32)[:, None] * frequencies
        y = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)  # (B, 256)
        y = nn.Dense(self.width, dtype=self.dtype)(y)
        return nn.Dense(self.width, dtype=self.dtype)(nn.silu(y))


def patchify(z: jax.Array, size: int) -> jax.Array:
    """(B, T, H, W, C) -> (B, T, H/size, W/size, size * size * C). Raises UserError where `size` does not divide."""
    height, width = z.shape[2:4]
    if height % size or width % size:
        raise UserError(f"patch_size {size} does not divide images of {height} x {width}: change one of them")
    return einops.rearrange(z, "b t (h p) (w q) c -> b t h w (p q c)", p=size, q=size)


def unpatchify(patches: jax.Array, size: int) -> jax.Array:
    """The inverse of `patchify`."""
    return einops.rearrange(patches, "b t h w (p q c) -> b t (h p) (w q) c", p=size, q=size)
