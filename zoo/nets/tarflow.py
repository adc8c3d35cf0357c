"""An autoregressive flow of causal transformers on patches (TarFlow 2412.06329), told the caption by attention."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.nets.flow_layers import Affine, Head, Positions, from_sequence, guide, to_sequence, twice
from zoo.nets.layers import RMSNorm, SwiGLU, head_channels
from zoo.nets.text_encoder import Text, TextEncoder


class Memory(NamedTuple):
    """What a layer attends to: M words, then N patches, of which some may not be written yet. (B, M + N, heads, d)."""

    keys: jax.Array
    values: jax.Array


class Layer(nn.Module):
    """Pre-norm attention to the words and to the patches so far in one softmax, then feed-forward."""

    width: int
    heads: int
    dtype: Any

    def setup(self):
        shape = (self.heads, head_channels(self.width, self.heads))
        project = lambda: nn.DenseGeneral(shape, use_bias=False, dtype=self.dtype)
        self.query, self.key, self.value = project(), project(), project()
        self.context_key, self.context_value = project(), project()
        self.query_norm, self.key_norm, self.context_key_norm = (RMSNorm(self.dtype) for _ in range(3))
        self.out = nn.DenseGeneral(self.width, axis=(-2, -1), use_bias=False, dtype=self.dtype)
        self.mlp = SwiGLU(dtype=self.dtype)
        self.attention_norm, self.mlp_norm = RMSNorm(self.dtype), RMSNorm(self.dtype)

    def remember(self, words: jax.Array, count: int) -> Memory:
        """words: (B, M, D') -> the memory of them and of `count` patches to come."""
        keys, values = self.context_key_norm(self.context_key(words)), self.context_value(words)
        room = ((0, 0), (0, count), (0, 0), (0, 0))
        return Memory(jnp.pad(keys, room), jnp.pad(values, room))  # (B, M + N, heads, d)

    def __call__(self, x: jax.Array, memory: Memory, visible: jax.Array, slot) -> tuple[jax.Array, Memory]:
        """x: (B, n, D), patches whose keys go to `slot` onwards; visible: (B, 1, n, M + N) -> like x, and the memory.

        All patches at once and one patch after the other go through this same code.
        """
        y = self.attention_norm(x)
        write = jax.lax.dynamic_update_slice_in_dim
        memory = Memory(
            write(memory.keys, self.key_norm(self.key(y)), slot, axis=1),
            write(memory.values, self.value(y), slot, axis=1),
        )
        q = self.query_norm(self.query(y))  # (B, n, heads, d)
        x = x + self.out(jax.nn.dot_product_attention(q, *memory, mask=visible, implementation="xla"))
        return x + self.mlp(self.mlp_norm(x)), memory


def visible_to_each(lengths: jax.Array, words: int, count: int) -> jax.Array:
    """What each of `count` patches attends to, of `words` words and all patches: (B, 1, N, M + N)."""
    shape = (len(lengths), 1, count)
    present = (jnp.arange(words) < lengths[:, None])[:, None, None]  # (B, 1, 1, M)
    before = jnp.tri(count, dtype=bool)
    return jnp.concatenate([jnp.broadcast_to(present, (*shape, words)), jnp.broadcast_to(before, (*shape, count))], -1)


class Block(nn.Module):
    """One autoregressive step of the flow (2412.06329, section 2.3): each patch's affine is read from those before it.

    The transformer's place i holds patch i - 1 and says what becomes of patch i; place 0 holds none and has the caption
    alone. (TarFlow leaves the first patch as it is.)
    """

    width: int
    depth: int
    heads: int
    dtype: Any

    def setup(self):
        self.embed = nn.Dense(self.width, dtype=self.dtype)
        self.positions = Positions(self.width)
        self.caption = nn.Dense(self.width, dtype=self.dtype)
        self.layers = [Layer(self.width, self.heads, self.dtype) for _ in range(self.depth)]
        self.head = Head(self.dtype)

    def __call__(self, x: jax.Array, text: Text, guidance: float) -> tuple[jax.Array, jax.Array]:
        """x: (B, N, P) -> z like x, and the log-determinant (B,)."""
        return self.predict(x, text, guidance).forward(x)

    def reverse(self, z: jax.Array, text: Text, guidance: float, cache: bool) -> jax.Array:
        """The inverse, patch by patch in one compiled loop; without `cache`, the whole sequence for each patch."""
        return self._reverse_cached(z, text, guidance) if cache else self._reverse_uncached(z, text, guidance)

    def predict(self, x: jax.Array, text: Text, guidance: float) -> Affine:
        """The affine of all patches of x, (B, N, P)."""
        before = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))  # (B, N, P)
        start = self._start(text, x.shape[1])
        affine, _ = self._read(twice(before, guidance), *start, slot=text.tokens.shape[1])
        return guide(affine, guidance)

    def _start(self, text: Text, count: int):
        """What is known before any patch: what places say (B, N, D), what each may see, and the layers' memories."""
        places = self.positions(count).astype(self.dtype) + self.caption(text.pooled)[:, None]
        memories = [layer.remember(text.tokens, count) for layer in self.layers]
        return places, visible_to_each(text.lengths, text.tokens.shape[1], count), memories

    def _read(self, before, places, visible, memories, slot):
        """Patches before n places, (B, n, P) -> the affine at these places, and the memories."""
        y = self.embed(before) + places  # (B, n, D)
        written = []
        for layer, memory in zip(self.layers, memories, strict=True):
            y, memory = layer(y, memory, visible, slot)
            written.append(memory)
        return self.head(y, before.shape[-1]), written

    def _reverse_cached(self, z: jax.Array, text: Text, guidance: float) -> jax.Array:
        count = z.shape[1]
        places, visible, memories = self._start(text, count)
        slots = text.tokens.shape[1] + jnp.arange(count)

        def step(block, carry, z, place, visible, slot):
            before, memories = carry
            affine, memories = block._read(
                twice(before, guidance)[:, None], place[:, None], visible[:, :, None], memories, slot
            )
            x = guide(affine, guidance).reverse(z[:, None])[:, 0]  # (B, P)
            return (x, memories), x

        loop = nn.scan(
            step, variable_broadcast="params", split_rngs={"params": False}, in_axes=(1, 1, 2, 0), out_axes=1
        )
        return loop(self, (jnp.zeros_like(z[:, 0]), memories), z, places, visible, slots)[1]

    def _reverse_uncached(self, z: jax.Array, text: Text, guidance: float) -> jax.Array:
        def step(block, x, z, i):
            affine = Affine(*(part[:, i] for part in block.predict(x, text, guidance)))
            return x.at[:, i].set(affine.reverse(z)), None

        loop = nn.scan(step, variable_broadcast="params", split_rngs={"params": False}, in_axes=(1, 0))
        return loop(self, jnp.zeros_like(z), z, jnp.arange(z.shape[1]))[0]


class TarFlow(nn.Module):
    """Blocks in turn from the first patch to the last and from the last to the first.

    The inverse is exact up to rounding: 1e-4 or better in float32. In bfloat16 the two directions round otherwise, so
    that it is only near.

    Attributes:
      blocks: autoregressive steps; width, depth, heads: of the transformer of each.
      patch_size: pixels along a patch's side; must divide the picture's. All patches of a clip are one sequence.
      text_width, text_depth: of the text transformer, whose words all blocks read.
    """

    vocab_size: int
    blocks: int = 8
    width: int = 384
    depth: int = 4
    heads: int = 6
    patch_size: int = 4
    text_width: int = 384
    text_depth: int = 2
    dtype: Any = jnp.float32

    def setup(self):
        self.text = TextEncoder(self.vocab_size, self.text_width, self.text_depth, self.heads, self.dtype)
        self.steps = [Block(self.width, self.depth, self.heads, self.dtype) for _ in range(self.blocks)]

    def __call__(self, x: jax.Array, ids: jax.Array, guidance: float = 0.0) -> tuple[jax.Array, jax.Array]:
        """x: (B, T, H, W, C) -> z like x, and the log-determinant of dz/dx, (B,), both float32.

        Args:
          ids: captions (B, L) int32; with guidance, the empty caption as often after them, (2 B, L).
          guidance: see `guide`.
        """
        text = self.text(ids)
        x, grid = to_sequence(x, self.patch_size)  # (B, N, P)
        total = jnp.zeros(len(x))
        for i, step in enumerate(self.steps):
            z, log_det = step(turn(x, i), text, guidance)
            x, total = turn(z, i), total + log_det
        return from_sequence(x, self.patch_size, grid), total

    def inverse(self, z: jax.Array, ids: jax.Array, guidance: float = 0.0, cache: bool = True) -> jax.Array:
        """The x of which `__call__` with the same captions and guidance makes z.

        Args:
          cache: keep keys and values of the patches that are done; without, each costs a pass of the whole sequence.
        """
        text = self.text(ids)
        z, grid = to_sequence(z, self.patch_size)  # (B, N, P)
        for i, step in reversed(list(enumerate(self.steps))):
            x = step.reverse(turn(z, i), text, guidance, cache)
            z = turn(x, i)
        return from_sequence(z, self.patch_size, grid)


def turn(x: jax.Array, i: int) -> jax.Array:
    """The order of patches, (B, N, P), that block i reads: every second block goes from last to first."""
    return x[:, ::-1] if i % 2 else x
