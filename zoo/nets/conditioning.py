"""Conditioners, which turn conditions into an encoded `Text`; networks with a conditioner; attention to the text."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.conditions import GIVEN_TO_NETWORKS, PAD, Cond
from zoo.config import build
from zoo.errors import UserError, check_ranges, named
from zoo.nets.layers import Attention, RMSNorm, SwiGLU, stack


class Text(NamedTuple):
    """An encoded text, and the frame rate of the video that it describes.

    Attributes:
      embeddings: (B, L, D).
      lengths: number of embeddings that count, (B,) int32.
      pooled: mean of the embeddings, (B, D).
      frame_rate: frames/s, (B,), 0 for one frame; None where the data has none.
    """

    embeddings: jax.Array
    lengths: jax.Array
    pooled: jax.Array
    frame_rate: jax.Array | None = None


class Layer(nn.Module):
    """Attention, to the text too where one is given, and feed-forward."""

    heads: int
    dtype: Any
    attention: str = "auto"

    @nn.compact
    def __call__(self, x, context, lengths, angles=None):
        """Returns x, None.

        Args:
          x: (B, N, D).
          context: (B, M, D'), or None.
          lengths: how many of all keys count, (B,), or None for all.
          angles: rotary positions of x, (N, d / 2), or None.
        """
        y = RMSNorm(self.dtype, name="attention_norm")(x)
        attention = Attention(self.heads, self.dtype, self.attention, name="attention")
        x = x + attention(y, context=context, lengths=lengths, angles=angles)
        return x + SwiGLU(dtype=self.dtype, name="mlp")(RMSNorm(self.dtype, name="mlp_norm")(x)), None


class FrameRate(nn.Module):
    """A frame rate as sines and cosines of its logarithm, then a linear layer that starts at zero: (B,) -> (B, width).

    The rate 0, of one frame, stays zero.
    """

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frame_rate: jax.Array) -> jax.Array:
        """frame_rate: (B,) frames/s -> (B, width)."""
        octaves = jnp.log2(jnp.maximum(frame_rate, 1.0))[:, None] * np.pi * 2.0 ** -np.arange(4)
        features = jnp.concatenate([jnp.sin(octaves), jnp.cos(octaves)], axis=-1) * (frame_rate > 0)[:, None]
        start = nn.initializers.zeros
        return nn.Dense(self.width, use_bias=False, kernel_init=start, dtype=self.dtype, name="out")(features)


class TextTransformer(nn.Module):
    """Conditioner of token ids, and of a frame rate: a bidirectional pre-norm transformer. Padding is at the end only.

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
        """cond["tokens"]: (B, L) int32; cond["frame_rate"]: (B,) frames/s, where the data has it -> Text."""
        ids = cond["tokens"]
        present = ids != PAD
        lengths = present.sum(axis=-1).astype(jnp.int32)
        x = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, name="embedding")(ids)  # (B, L, D)
        positions = self.param("positions", nn.initializers.normal(0.02), (ids.shape[1], self.width))
        x = x + positions.astype(self.dtype)
        frame_rate = cond.get("frame_rate")
        if frame_rate is not None:  # added to the words, it reaches all that a network reads
            x = x + FrameRate(self.width, self.dtype, name="frame_rate")(frame_rate)[:, None]
        layers = stack(Layer, self.depth, self.remat, in_axes=nn.broadcast)
        x, _ = layers(self.heads, self.dtype, self.attention, name="layers")(x, None, lengths)
        x = RMSNorm(self.dtype, name="norm")(x)
        mask = present[..., None].astype(jnp.float32)
        pooled = (x * mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1.0)
        return Text(x, lengths, pooled.astype(self.dtype), frame_rate)


class Conditioned(nn.Module):
    """A network with the conditioner that encodes its conditions.

    Attributes:
      network: module whose functions take the keyword argument `text`.
      conditioner: module that turns conditions into `Text`; None for an unconditional network, which takes no `text`.
    """

    network: Any
    conditioner: nn.Module | None

    if TYPE_CHECKING:  # flax's own type also has the tuple of `mutable=`

        def apply(self, variables: Any, *args: Any, **keywords: Any) -> Any:  # noqa: D102
            ...

    def apply_network(self, params: Any, call: str, *args: Any) -> Any:
        """Returns the result of the network's function `call`, which needs no conditions, with parameters of both."""
        return self.network.apply({"params": params["network"]}, *args, method=call)

    def __call__(self, *args, cond: Cond, call: str = "__call__", **keywords):
        """Returns the network's result on these arguments and the encoded conditions.

        Args:
          *args: arguments of the network.
          cond: conditions (B, ...). Those of `GIVEN_TO_NETWORKS` are the network's own arguments.
          call: name of the network's function.
          **keywords: keyword arguments of the network.
        """
        keywords |= {name: cond[name] for name in GIVEN_TO_NETWORKS if name in cond}
        if self.conditioner is not None:
            keywords["text"] = self.conditioner(cond)
        return getattr(self.network, call)(*args, **keywords)


def build_network(
    kind: type[nn.Module],
    section: Mapping[str, Any],
    where: str,
    vocab_size: int,
    dtype: Any,
    **extra: Any,
) -> Conditioned:
    """Builds a network from its section of a config.

    Args:
      kind: class of the network; one with the class attribute `unconditional` gets no conditioner.
      section: fields of the network, and `conditioner`, fields of `TextTransformer`.
      where: name of the section, for errors.
      vocab_size: number of token ids.
      dtype: type that the layers compute in.
      **extra: fields of the network that are not the user's to set.

    Raises:
      UserError: an unknown key, or a number that no network can have.
    """
    fields = dict(section)
    if getattr(kind, "unconditional", False):
        return Conditioned(build_module(kind, fields, where, dtype=dtype, **extra), None)
    given = fields.pop("conditioner", {})
    shared = dict(vocab_size=vocab_size, dtype=dtype)
    shared |= {name: fields.get(name, default) for name, default in (("attention", "auto"), ("remat", "cheap"))}
    conditioner = build_module(TextTransformer, given, f"{where}.conditioner", **shared)
    return Conditioned(build_module(kind, fields, where, dtype=dtype, **extra), conditioner)


def build_module(kind: type[nn.Module], fields: Mapping[str, Any], where: str, **extra) -> Any:
    """Builds a module from its section of a config.

    Args:
      kind: class of the module; fields that its class attribute `MAY_BE_0` names may be 0.
      fields: the section.
      where: name of the section, for errors.
      **extra: fields that are not the user's to set.

    Raises:
      UserError: an unknown key, or a number, or one of several, that is not positive.
    """
    module = build(kind, fields, where, **extra)
    ranges = {int: "[1, inf)", Sequence[int]: "[1, inf)", float: "(0, inf)"}
    known = {field.name: ranges[field.type] for field in dataclasses.fields(kind) if field.type in ranges}
    known |= dict.fromkeys(getattr(kind, "MAY_BE_0", ()), "[0, inf)")
    named(where, lambda: check_ranges(module, **known))
    for name in known:
        if getattr(module, name) in ((), []):
            raise UserError(f"{where}: {name} must be one or more numbers, got none")
    return module


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
