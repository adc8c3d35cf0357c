"""A causal transformer over a sequence, conditioned on text by attention: for all places at once, or one by one."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.nets.conditioning import Text
from zoo.nets.layers import RMSNorm, SwiGLU, attend, head_channels, stack, within


class KVCache(NamedTuple):
    """Keys and values of a layer: of M words, then of N places, which may be unwritten yet. (B, M + N, heads, d)."""

    keys: jax.Array
    values: jax.Array


class Layer(nn.Module):
    """Pre-norm attention to the words and to the places so far in one softmax, then feed-forward."""

    width: int
    heads: int
    attention: str
    dtype: Any

    def setup(self):
        """Builds the layers."""
        shape = (self.heads, head_channels(self.width, self.heads))
        project = lambda: nn.DenseGeneral(shape, use_bias=False, dtype=self.dtype)
        self.query, self.key, self.value = project(), project(), project()
        self.context_key, self.context_value = project(), project()
        self.query_norm, self.key_norm, self.context_key_norm = (RMSNorm(self.dtype) for _ in range(3))
        self.out = nn.DenseGeneral(self.width, axis=(-2, -1), use_bias=False, dtype=self.dtype)
        self.mlp = SwiGLU(dtype=self.dtype)
        self.attention_norm, self.mlp_norm = RMSNorm(self.dtype), RMSNorm(self.dtype)

    def init_cache(self, words: jax.Array, count: int) -> KVCache:
        """words: (B, M, D') -> cache with their keys and values, and room for `count` places."""
        keys, values = self.context_key_norm(self.context_key(words)), self.context_value(words)
        room = ((0, 0), (0, count), (0, 0), (0, 0))
        return KVCache(jnp.pad(keys, room), jnp.pad(values, room))  # (B, M + N, heads, d)

    def __call__(self, x: jax.Array, cache: KVCache, visible: jax.Array, slot) -> tuple[jax.Array, KVCache]:
        """x: (B, n, D), places whose keys go to `slot` onwards; visible: (B, 1, n, M + N) -> like x, and the cache.

        All places at once and one place after the other go through this same code.
        """
        y = self.attention_norm(x)
        write = jax.lax.dynamic_update_slice_in_dim
        cache = KVCache(
            write(cache.keys, self.key_norm(self.key(y)), slot, axis=1),
            write(cache.values, self.value(y), slot, axis=1),
        )
        q = self.query_norm(self.query(y))  # (B, n, heads, d)
        x = x + self.out(attend(q, *cache, self.attention, mask=visible))
        return x + self.mlp(self.mlp_norm(x)), cache


def visible_to_each(lengths: jax.Array, words: int, count: int) -> jax.Array:
    """Returns the mask of `count` places over `words` words and all places: bool (B, 1, N, M + N)."""
    shape = (len(lengths), 1, count)
    present = (jnp.arange(words) < lengths[:, None])[:, None, None]  # (B, 1, 1, M)
    before = jnp.tri(count, dtype=bool)
    return jnp.concatenate([jnp.broadcast_to(present, (*shape, words)), jnp.broadcast_to(before, (*shape, count))], -1)


class CausalTransformer(nn.Module):
    """Layers in which each place attends to the words, to the places before it and to itself.

    Attributes:
      width, depth, heads: of the transformer.
      remat: see `layers.stack`.
      attention: see `layers.attend`.
      dtype: type that the layers compute in.
    """

    width: int
    depth: int
    heads: int
    remat: str
    attention: str
    dtype: Any

    def setup(self):
        """Builds the layers."""
        self.layers = Layer(self.width, self.heads, self.attention, self.dtype)

    def start(self, text: Text, count: int) -> tuple[KVCache, jax.Array]:
        """Returns the state before any of `count` places: the caches of all layers, and `visible_to_each`."""
        begin = lambda layer, words: (words, layer.init_cache(words, count))
        _, caches = stack(begin, self.depth)(self.layers, text.embeddings)
        return caches, visible_to_each(text.lengths, text.embeddings.shape[1], count)

    def __call__(self, x: jax.Array, caches: KVCache, visible: jax.Array, slot) -> tuple[jax.Array, KVCache]:
        """Places x, (B, n, D), to like x, and the caches with their keys and values; the arguments as in `Layer`."""
        layers = stack(Layer.__call__, self.depth, within(self.remat), in_axes=(0, nn.broadcast, nn.broadcast))
        return layers(self.layers, x, caches, visible, slot)
