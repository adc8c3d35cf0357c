"""The layers that the transformers share. Statistics and softmax are float32 whatever the layers compute in."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.compiling import runs_once, writes_loops_out
from zoo.errors import UserError, unknown_name_error

scan: Any = nn.scan  # flax's annotation allows the same axis for all inputs alone
REMAT = "none", "cheap", "all"
# Primitives whose results cost more to compute again than to keep.
PRODUCTS = "dot_general", "conv_general_dilated", "dot_product_attention_fwd_wrapper"
LARGEST_FUSED_HEAD = 128  # channels; cuDNN has more on some GPUs
FUSED_SINCE = (8, 0)  # compute capability

_smooth = contextvars.ContextVar("smooth", default=False)


@contextlib.contextmanager
def smooth_attention() -> Iterator[None]:
    """Within, attention is XLA's, whatever `implementation` names: fused kernels have one derivative, in reverse alone.

    For maths that takes forward derivatives, or derivatives of derivatives, of a network.
    """
    token = _smooth.set(True)
    try:
        yield
    finally:
        _smooth.reset(token)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    implementation: str,
    lengths: jax.Array | None = None,
    mask: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array:
    """Softmax attention, (B, N, heads, d).

    Args:
      q: queries (B, N, heads, d).
      k: keys (B, M, heads, d).
      v: values (B, M, heads, d).
      implementation: "xla", "cudnn", or "auto": cuDNN's fused kernel where it has this attention and its derivative,
        see `has_fused_attention`, else XLA. Within `smooth_attention` and `compiled_for_once` it is XLA.
      lengths: number of keys that count, (B,); None for all.
      mask: keys that count for each query, bool (B, 1, N, M); None for all.
      causal: whether for query i the keys up to i count alone.
    """
    if implementation not in ("auto", "xla", "cudnn"):
        raise unknown_name_error("attention implementation", implementation, ("auto", "xla", "cudnn"))
    if implementation == "auto":
        implementation = "cudnn" if has_fused_attention(q, k) else "xla"
    if _smooth.get() or runs_once():
        implementation = "xla"
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, key_value_seq_lengths=lengths, implementation=implementation
    )


def has_fused_attention(q: jax.Array, k: jax.Array) -> bool:
    """Whether cuDNN has the attention of these queries and keys, and its derivative.

    It needs CUDA on a GPU of compute capability 8.0, 16 bits, at most 128 channels a head in multiples of 8, and even
    numbers of queries and keys.

    Args:
      q: queries (B, N, heads, d).
      k: keys (B, M, heads, d).
    """
    if jax.default_backend() != "gpu":
        return False
    device = jax.local_devices()[0]
    if "cuda" not in device.client.platform_version:  # ROCm
        return False
    capability = tuple(map(int, device.compute_capability.split(".")))
    even, channels = q.shape[1] % 2 == k.shape[1] % 2 == 0, q.shape[-1]
    fits = channels <= LARGEST_FUSED_HEAD and channels % 8 == 0
    return even and fits and q.dtype.itemsize == 2 and capability >= FUSED_SINCE


def stack(layer: Any, count: int, remat: str = "cheap", in_axes: Any = 0, reverse: bool = False) -> Any:
    """So many layers one after the other, compiled as one; what they return beside x is stacked.

    Args:
      layer: class of a module, or function of a module, x and more inputs; returns x and another output, or None.
      count: number of layers, whose parameters are stacked on a first axis.
      remat: what the derivative computes again: "none"; "cheap", all but products of matrices, convolutions and fused
        attention, which a loop would have to store and read; "all", each layer, which saves most memory and costs
        about a third more time.
      in_axes: of the inputs after x: 0 where each layer has its own, `nn.broadcast` where all have the same.
      reverse: whether the last layer comes first.
    """
    if remat not in REMAT:
        raise unknown_name_error("remat", str(remat), REMAT)
    if remat != "none":
        # Outside of a loop, XLA would see that both computations are one, and keep what it chooses.
        policy = _is_product if remat == "cheap" else None
        layer = nn.remat(layer, prevent_cse=remat == "all", policy=policy)
    return scan(
        layer,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True},
        length=count,
        unroll=max(count, 1) if writes_loops_out() else 1,
        in_axes=in_axes,
        reverse=reverse,
    )


def within(remat: str) -> str:
    """Returns the remat of layers within a layer of this one: what is computed again as a whole need not be twice."""
    return "none" if remat == "all" else remat


def _is_product(primitive, *_, **__) -> bool:
    return primitive.name in PRODUCTS


def rotary_table(rows: int, columns: int, dim: int) -> np.ndarray:
    """Angles of axial rotary positions (RoFormer 2104.09864), half the channels an axis: (rows * columns, dim / 2)."""
    if dim % 4:
        raise UserError(f"rotary positions need channels per head divisible by 4, got {dim}: change width or heads")
    row, column = np.divmod(np.arange(rows * columns), columns)
    return np.concatenate([np.outer(row, _frequencies(dim)), np.outer(column, _frequencies(dim))], axis=-1)


def _frequencies(dim: int) -> np.ndarray:
    """Frequencies of one axis, (dim / 4,): images are tens of patches wide, not 10,000."""
    return 100.0 ** -(np.arange(dim // 4) / (dim // 4))


def rotate(x: jax.Array, angles: np.ndarray | jax.Array) -> jax.Array:
    """Turns channel pairs of x, (B, N, heads, d), by angles, (N, d / 2) or (B, N, d / 2)."""
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def sincos_table(rows: int, columns: int, dim: int) -> np.ndarray:
    """Fixed sine-cosine positions of a grid, (rows * columns, dim)."""
    if dim % 4:
        raise UserError(f"positions need a width divisible by 4, got {dim}")
    angles = rotary_table(rows, columns, dim)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)


def sincos_from(origin: jax.Array, rows: int, columns: int, dim: int) -> jax.Array:
    """`sincos_table` of parts of a larger grid that begin at `origin`, (B, 2): (B, rows * columns, dim)."""
    turned = einops.rearrange(origin[..., None] * _frequencies(dim), "b two f -> b 1 (two f)")
    angles = rotary_table(rows, columns, dim) + turned
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


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


def each_row(y: jax.Array, rows: int) -> jax.Array:
    """Repeats what samples have for each of their rows: (B, ...) -> (rows, ...)."""
    return jnp.repeat(y, rows // len(y), axis=0)


class Attention(nn.Module):
    """Multi-head attention with normalised queries and keys (2302.05442).

    The queries come from x; keys and values from x, from a context, or from both in one softmax.
    """

    heads: int
    dtype: Any = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x, *, context=None, lengths=None, to_self=True, angles=None, causal=False):
        """Attends from x to x and the context in one softmax: (B, N, D).

        Args:
          x: (B, N, D).
          context: (B, M, D'), or (B / k, M, D') of which each is that of k rows of x, or None.
          lengths: (B,) how many of all keys count; x's own keys come first, so padding is at the end.
          to_self: whether x attends to itself; False is plain cross-attention.
          angles: rotary positions of x, (N, d / 2) or (B, N, d / 2). The context has position 0: how its words about
            positions apply then depends on the query's position alone.
          causal: whether each of x attends to itself and those before it alone; without a context.
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
            keys.append(each_row(project("context_key", context, True), len(x)))
            values.append(each_row(project("context_value", context, False), len(x)))
        k, v = jnp.concatenate(keys, axis=1), jnp.concatenate(values, axis=1)  # (B, N + M, heads, d)
        y = attend(q, k, v, self.implementation, lengths, causal=causal)
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
