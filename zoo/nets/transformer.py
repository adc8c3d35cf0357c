"""A diffusion transformer on patches (DiT 2212.09748): the time enters by adaLN-zero, the caption by attention."""

from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError, unknown_name_error
from zoo.nets.conditioning import Text
from zoo.nets.layers import (
    Attention,
    RMSNorm,
    SwiGLU,
    TimeEmbedding,
    each_row,
    head_channels,
    patchify,
    rotary_table,
    sincos_from,
    sincos_table,
    stack,
    unpatchify,
)
from zoo.nets.time import seconds_of, time_angles, time_waves


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x: (rows, tokens, D); shift, scale: (rows, 1, D)."""
    return x * (1 + scale) + shift


SPACE_TIME = {  # kind of attention -> rows of the main attention and their tokens, of a video's b t n
    "spatial": "(b t) n",
    "temporal": "(b n) t",
    "factorized": "(b t) n",
    "joint": "b (t n)",
    "none": "(b t n) 1",
}
WAVES = 32  # sines and cosines of a frame's time


class Block(nn.Module):
    """Attention, cross-attention with `text="cross"`, attention over time, feed-forward; each behind a gate from zero.

    Attributes:
      heads, text, dtype, attention, space_time: see `Transformer`.
      frames: of a video.
    """

    heads: int
    text: str
    dtype: Any
    attention: str
    space_time: str = "spatial"
    frames: int = 1

    @nn.compact
    def __call__(self, x, condition, text, lengths, angles, frame_angles):
        """Returns x, None.

        Args:
          x: in rows of `SPACE_TIME`, (rows, tokens, D).
          condition: (B, D).
          text: of each sample, (B, L, D).
          lengths: of each row's text, (rows,).
          angles: rotary positions of the main attention, (tokens, d / 2) or (rows, tokens, d / 2), or None.
          frame_angles: those of the attention over time, (B N, T, d / 2), or None.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m, *gate_c = self._modulation(
            condition, len(x), 7 if self.text == "cross" else 6, "modulation"
        )
        attention = Attention(self.heads, self.dtype, self.attention, name="attention")
        y = modulate(RMSNorm(self.dtype, scale=False)(x), shift_a, scale_a)
        if self.text == "joint":
            y = attention(y, context=text, lengths=y.shape[1] + lengths, angles=angles)
        else:
            y = attention(y, angles=angles)
        x = x + gate_a * y
        if self.text == "cross":
            cross = Attention(self.heads, self.dtype, self.attention, name="cross")
            y = cross(RMSNorm(self.dtype, name="cross_norm")(x), context=text, lengths=lengths, to_self=False)
            x = x + gate_c[0] * y
        if self.space_time == "factorized":
            x = x + self._over_time(x, condition, frame_angles)
        y = modulate(RMSNorm(self.dtype, scale=False)(x), shift_m, scale_m)
        x = x + gate_m * SwiGLU(dtype=self.dtype, name="mlp")(y)
        tokens = einops.rearrange(x, f"{SPACE_TIME[self.space_time]} d -> b t n d", b=len(condition), t=self.frames)
        self.sow("intermediates", "tokens", tokens)  # for apply(..., mutable=["intermediates"])
        return x, None

    def _modulation(self, condition, rows: int, parts: int, name: str):
        """Shifts, scales and gates that start at zero, each (rows, 1, D)."""
        zeros = nn.initializers.zeros
        dense = nn.Dense(parts * condition.shape[-1], kernel_init=zeros, dtype=self.dtype, name=name)
        return jnp.split(each_row(dense(nn.silu(condition)), rows)[:, None], parts, axis=-1)

    def _over_time(self, x, condition, angles):
        """Attention of each place to itself in all frames, behind its gate: (B T, N, D)."""
        x = einops.rearrange(x, "(b t) n d -> (b n) t d", t=self.frames)
        shift, scale, gate = self._modulation(condition, len(x), 3, "temporal_modulation")
        y = modulate(RMSNorm(self.dtype, scale=False)(x), shift, scale)
        y = gate * Attention(self.heads, self.dtype, self.attention, name="temporal")(y, angles=angles)
        return einops.rearrange(y, "(b n) t d -> (b t) n d", b=len(condition))


class Transformer(nn.Module):
    """Predicts x, eps or v from a noisy video, its time and its text.

    Attributes:
      width, depth, heads: of the transformer.
      patch_size: pixels along a patch's side; must divide the image's.
      text: "joint" (one softmax over patches and words) or "cross" (a sub-layer of its own).
      space_time: attention of a video's patches: "spatial" (each frame to itself), "temporal" (each place to itself),
        "factorized" (spatial, then temporal, in every layer), "joint" (all patches of all frames in one softmax) or
        "none" (each patch reads the words alone: a baseline that shows what attention is for). Attention has positions
        along the axes that it covers alone, in time in seconds; "none" has those in space.
      positions: "rotary" (axial, plus fixed sines and cosines, since words name absolute places) or "learned"; time is
        rotary, plus sines and cosines.
      time_frequency: the highest, see `TimeEmbedding`; where derivatives by time are taken, it must be low.
      remat: see `layers.stack`.
      attention: see `layers.attend`.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch_size: int = 4
    text: str = "joint"
    space_time: str = "spatial"
    positions: str = "rotary"
    time_frequency: float = 1000.0
    remat: str = "cheap"
    attention: str = "auto"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        t: jax.Array,
        span: jax.Array | None = None,
        *,
        text: Text,
        given: jax.Array | None = None,
        level: jax.Array | None = None,
        origin: jax.Array | None = None,
        channels: int = 0,
    ) -> jax.Array:
        """Prediction for noisy data, float32 (B, T, H, W, C), or of `channels` in place of C.

        Args:
          z: (B, T, H, W, C).
          t: (B,) in [0, 1].
          span: (B,) in [0, 1], duration over which the prediction is a mean, where one was given to `init` too.
          text: encoded conditions.
          given: images beside z, (B, T, H, W, c).
          level: level of the noise in them, (B,).
          origin: place of z's first pixel in a larger image, (B, 2) down and right, in multiples of the patch size.
          channels: channels of the prediction; 0 for those of z.

        Raises:
          UserError: an unknown value of an attribute, or a video without a frame rate where time has positions.
        """
        for what, name, known in (
            ("text attention", self.text, ("joint", "cross")),
            ("space_time attention", self.space_time, SPACE_TIME),
            ("positions", self.positions, ("rotary", "learned")),
        ):
            if name not in known:
                raise unknown_name_error(what, name, known)
        condition = TimeEmbedding(self.width, self.dtype, self.time_frequency, name="time")(t)
        if span is not None:
            condition = condition + TimeEmbedding(self.width, self.dtype, self.time_frequency, name="span")(span)
        if level is not None:
            condition = condition + TimeEmbedding(self.width, self.dtype, self.time_frequency, name="level")(level)
        condition = condition + nn.Dense(self.width, dtype=self.dtype, name="caption")(text.pooled)  # (B, D)

        patches = patchify(z, self.patch_size)  # (B, T, h, w, p*p*C)
        frames, rows, columns = patches.shape[1:4]
        x = nn.Dense(self.width, dtype=self.dtype, name="embed")(patches)
        if given is not None:
            x = x + nn.Dense(self.width, dtype=self.dtype, name="given")(patchify(given, self.patch_size))
        x = einops.rearrange(x, "b t h w d -> b t (h w) d")
        x, angles, frame_angles = self._place(x, rows, columns, text.frame_rate, origin)
        in_rows = SPACE_TIME[self.space_time]
        x = einops.rearrange(x, f"b t n d -> {in_rows} d")
        lengths = each_row(text.lengths, len(x))

        layers = stack(Block, self.depth, self.remat, in_axes=nn.broadcast)
        x, _ = layers(self.heads, self.text, self.dtype, self.attention, self.space_time, frames, name="layers")(
            x, condition, text.embeddings, lengths, angles, frame_angles
        )

        zeros = nn.initializers.zeros
        modulation = nn.Dense(2 * self.width, kernel_init=zeros, dtype=self.dtype, name="modulation")
        shift, scale = jnp.split(each_row(modulation(nn.silu(condition)), len(x))[:, None], 2, axis=-1)
        x = modulate(RMSNorm(self.dtype, scale=False)(x), shift, scale)
        predicted = self.patch_size**2 * (channels or z.shape[-1])
        x = nn.Dense(predicted, kernel_init=zeros, dtype=jnp.float32, name="out")(x)
        x = einops.rearrange(x, f"{in_rows} p -> b t n p", t=frames, n=rows * columns)
        return unpatchify(einops.rearrange(x, "b t (h w) p -> b t h w p", h=rows), self.patch_size)

    def _place(self, x: jax.Array, rows: int, columns: int, frame_rate: jax.Array | None, origin: jax.Array | None):
        """Adds positions to x, (B, T, N, D); returns it, and the angles that both kinds of attention turn by, or None.

        Positions in time start at zero, so that a network that was trained on images is the same on each frame.
        """
        channels, joint = head_channels(self.width, self.heads), self.space_time == "joint"
        space = None
        if self.space_time != "temporal":
            x, space = self._place_in_space(x, rows, columns, 4 * (channels // 6) if joint else channels, origin)
        if self.space_time in ("spatial", "none"):
            return x, space if self.space_time == "spatial" else None, None
        seconds = seconds_of((x.shape[0], x.shape[1]), frame_rate)  # (B, T)
        zeros = nn.initializers.zeros
        dense = nn.Dense(self.width, use_bias=False, kernel_init=zeros, dtype=self.dtype, name="seconds")
        x = x + dense(time_waves(seconds, WAVES))[:, :, None]
        time = time_angles(seconds, channels // 2 - (space.shape[-1] if joint and space is not None else 0))
        if joint:
            return x, space_time_angles(space, time, rows * columns), None
        time = jnp.repeat(time, rows * columns, axis=0)  # (B N, T, d / 2)
        return (x, time, None) if self.space_time == "temporal" else (x, space, time)

    def _place_in_space(self, x: jax.Array, rows: int, columns: int, channels: int, origin: jax.Array | None):
        """Adds positions in space to x, (B, T, N, D); returns it with angles (N, channels / 2), or None."""
        if self.positions == "rotary":
            table = sincos_table(rows, columns, self.width)
            if origin is not None:
                table = sincos_from(origin // self.patch_size, rows, columns, self.width)[:, None]  # (B, 1, N, D)
            return x + table.astype(self.dtype), rotary_table(rows, columns, channels)
        if origin is not None:
            raise UserError('parts of images need positions "rotary": learned ones are of one size')
        table = self.param("positions", nn.initializers.normal(0.02), (rows * columns, self.width))
        return x + table.astype(self.dtype), None


def space_time_angles(space: np.ndarray | None, time: jax.Array, places: int) -> jax.Array:
    """Joins angles of places, (N, a) or None, and of frames, (B, T, b), to those of all patches, (B, T N, a + b)."""
    time = jnp.repeat(time, places, axis=1)
    if space is None:
        return time
    space = np.tile(space, (time.shape[1] // places, 1))
    return jnp.concatenate([jnp.broadcast_to(space, (len(time), *space.shape)), time], axis=-1)
