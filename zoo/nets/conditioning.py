"""Conditioners, which turn conditions into an encoded `Text`; networks with a conditioner; attention to the text."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.conditions import PAD, Cond
from zoo.config import build
from zoo.nets.layers import Attention, RMSNorm, SwiGLU, stack


class Text(NamedTuple):
    """An encoded text: `embeddings` (B, L, D), their number `lengths` (B,) int32, and their mean `pooled` (B, D)."""

    embeddings: jax.Array
    lengths: jax.Array
    pooled: jax.Array


class Layer(nn.Module):
    """Attention, to the text too where one is given, and feed-forward."""

    heads: int
    dtype: Any
    attention: str = "auto"

    @nn.compact
    def __call__(self, x, context, lengths):
        """x: (B, N, D); context: (B, M, D'), or None; lengths: (B,), how many of all keys count -> x, None."""
        y = RMSNorm(self.dtype, name="attention_norm")(x)
        attention = Attention(self.heads, self.dtype, self.attention, name="attention")
        x = x + attention(y, context=context, lengths=lengths)
        return x + SwiGLU(dtype=self.dtype, name="mlp")(RMSNorm(self.dtype, name="mlp_norm")(x)), None


class TextTransformer(nn.Module):
    """Conditioner of token ids: a bidirectional pre-norm transformer. Padding stands at the end only.

    Attributes:
      vocab_size: number of token ids.
      width: channels. Captions are simpler than images: a narrow transformer is enough.
      depth: number of layers.
      heads: number of attention heads.
      dtype: type that the layers compute in.
      remat: see `layers.stack`; that of the network.
      attention: see `layers.attend`; that of the network.
    """

    vocab_size: int
    width: int = 256
    depth: int = 2
    heads: int = 4
    dtype: Any = jnp.float32
    remat: str = "cheap"
    attention: str = "auto"

    @nn.compact
    def __call__(self, cond: Cond) -> Text:
        """cond["tokens"]: (B, L) int32 -> Text."""
        ids = cond["tokens"]
        present = ids != PAD
        lengths = present.sum(axis=-1).astype(jnp.int32)
        x = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, name="embedding")(ids)  # (B, L, D)
        positions = self.param("positions", nn.initializers.normal(0.02), (ids.shape[1], self.width))
        x = x + positions.astype(self.dtype)
        layers = stack(Layer, self.depth, self.remat, in_axes=nn.broadcast)
        x, _ = layers(self.heads, self.dtype, self.attention, name="layers")(x, None, lengths)
        x = RMSNorm(self.dtype, name="norm")(x)
        mask = present[..., None].astype(jnp.float32)
        pooled = (x * mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1.0)
        return Text(x, lengths, pooled.astype(self.dtype))


class Conditioned(nn.Module):
    """A network with the conditioner that encodes its conditions.

    Attributes:
      network: module whose functions take the keyword argument `text`.
      conditioner: module that turns conditions into `Text`; None for an unconditional network, which takes no `text`.
    """

    network: nn.Module
    conditioner: nn.Module | None

    if TYPE_CHECKING:  # flax's own type also has the tuple of `mutable=`

        def apply(self, variables: Any, *args: Any, **keywords: Any) -> Any:  # noqa: D102
            ...

    def __call__(self, *args, cond: Cond, call: str = "__call__", **keywords):
        """Returns the network's result on these arguments and the encoded conditions.

        Args:
          *args: arguments of the network.
          cond: conditions (B, ...).
          call: name of the network's function.
          **keywords: keyword arguments of the network.
        """
        if self.conditioner is not None:
            keywords["text"] = self.conditioner(cond)
        return getattr(self.network, call)(*args, **keywords)


def build_network(
    kind: type[nn.Module],
    section: Mapping[str, Any],
    where: str,
    vocab_size: int,
    dtype: Any,
) -> Conditioned:
    """Builds a network from its section of a config.

    Args:
      kind: class of the network; one with the class attribute `unconditional` gets no conditioner.
      section: fields of the network, and `conditioner`, fields of `TextTransformer`.
      where: name of the section, for errors.
      vocab_size: number of token ids.
      dtype: type that the layers compute in.
    """
    fields = dict(section)
    if getattr(kind, "unconditional", False):
        return Conditioned(build(kind, fields, where, dtype=dtype), None)
    given = fields.pop("conditioner", {})
    extra = dict(vocab_size=vocab_size, dtype=dtype)
    extra |= {name: fields.get(name, default) for name, default in (("attention", "auto"), ("remat", "cheap"))}
    conditioner = build(TextTransformer, given, f"{where}.conditioner", **extra)
    return Conditioned(build(kind, fields, where, dtype=dtype), conditioner)


class TextAttentionBlock(nn.Module):
    """A transformer layer over the places of an image, which also attend to the text.

    Convolutions can hardly bind "at the top left" to a position or a colour to an object: they are narrow inside.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, text: Text) -> jax.Array:
        """(B, h, w, D) -> (B, h, w, D)."""
        rows, positions = x.shape[1], x.shape[1] * x.shape[2]
        x = einops.rearrange(x, "b h w d -> b (h w) d")
        x, _ = Layer(self.heads, self.dtype, name="layer")(x, text.embeddings, positions + text.lengths)
        return einops.rearrange(x, "b (h w) d -> b h w d", h=rows)
