"""Time within videos: the seconds of frames, attention of each place to itself in all frames, features of a video."""

from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError
from zoo.nets.layers import Attention, RMSNorm, SwiGLU, head_channels, stack

NEW_FOR_VIDEOS = "frame_rate", "seconds", "temporal", "temporal_modulation", "changes"  # what an image run lacks
SHORTEST, LONGEST = 0.5, 60.0  # seconds: periods of the waves of times
WAVES = 32  # sines and cosines of a frame's time, where a linear layer reads them


def seconds_of(shape: tuple[int, int], frame_rate: jax.Array | None) -> jax.Array:
    """Returns the time of each frame of videos, (B, T).

    Args:
      shape: (B, T).
      frame_rate: frames/s, (B,); None or 0 for one frame.

    Raises:
      UserError: several frames without a frame rate.
    """
    if frame_rate is None:
        if shape[1] > 1:
            raise UserError("a network of videos needs the videos' frame rate: name it with the data, e.g. ?fps=8")
        return jnp.zeros(shape)
    return jnp.arange(shape[1]) / jnp.where(frame_rate > 0, frame_rate, 1.0)[:, None]


def time_angles(seconds: jax.Array, count: int) -> jax.Array:
    """Times in seconds, (...), as angles (..., count) of waves from `SHORTEST` to `LONGEST`."""
    periods = SHORTEST * (LONGEST / SHORTEST) ** (np.arange(count) / max(count - 1, 1))
    return seconds[..., None] * (2 * np.pi / periods)


def time_waves(seconds: jax.Array, width: int) -> jax.Array:
    """Times in seconds, (...), as sines and cosines, (..., width)."""
    angles = time_angles(seconds, -(-width // 2))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[..., :width]


class TimeAttention(nn.Module):
    """Attention of each place to itself in all frames, behind a gate that starts at zero.

    Attributes:
      heads: of the attention.
      frames: frames of a video; with one, the layer is the identity and has no parameters, unless it is causal.
      dtype: type that the layers compute in.
      causal: whether a frame attends to itself and those before it alone.
    """

    heads: int
    frames: int
    dtype: Any
    causal: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, frame_rate: jax.Array | None) -> jax.Array:
        """x: (B T, h, w, D); frame_rate: frames/s of each row, (B T,) -> like x."""
        if self.frames == 1 and not self.causal:
            return x
        rate = None if frame_rate is None else frame_rate[:: self.frames]
        (_, rows, columns, width), places = x.shape, x.shape[1] * x.shape[2]
        seconds = seconds_of((len(x) // self.frames, self.frames), rate)  # (B, T)
        each_place = lambda y: jnp.repeat(y, places, axis=0)
        y = einops.rearrange(RMSNorm(self.dtype, name="norm")(x), "(b t) h w d -> (b h w) t d", t=self.frames)
        y = y + each_place(time_waves(seconds, width)).astype(self.dtype)
        angles = each_place(time_angles(seconds, head_channels(width, self.heads) // 2))
        y = Attention(self.heads, self.dtype, name="attention")(y, angles=angles, causal=self.causal)
        gate = self.param("gate", nn.initializers.zeros, (width,)).astype(self.dtype)
        return x + gate * einops.rearrange(y, "(b h w) t d -> (b t) h w d", h=rows, w=columns)


class TimeTower(nn.Module):
    """Features of frames -> features of their video (CLIP4Clip 2104.08860, section 3.3): the mean after layers of time.

    Each layer starts as the identity, so that the features start as the mean of the frames'.

    Attributes:
      layers: attention over time, then a feed-forward, each beside the identity.
      heads: of the attention.
      remat: see `layers.stack`.
      dtype: type that the layers compute in.
    """

    layers: int
    heads: int
    remat: str = "cheap"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array, frame_rate: jax.Array) -> jax.Array:
        """frames: (B, T, P); frame_rate: frames/s, (B,) -> (B, P)."""
        count = frames.shape[1]
        y = einops.rearrange(frames, "b t p -> (b t) 1 1 p").astype(self.dtype)
        layers = stack(_TimeLayer, self.layers, self.remat, in_axes=nn.broadcast)
        y, _ = layers(self.heads, count, self.dtype, name="layers")(y, jnp.repeat(frame_rate, count))
        return einops.reduce(y.astype(jnp.float32), "(b t) 1 1 p -> b p", "mean", t=count)


class _TimeLayer(nn.Module):
    heads: int
    frames: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, frame_rate: jax.Array) -> tuple[jax.Array, None]:
        """x: (B T, 1, 1, P); frame_rate: (B T,) -> like x, None."""
        x = TimeAttention(self.heads, self.frames, self.dtype, name="temporal")(x, frame_rate)
        gate = self.param("gate", nn.initializers.zeros, (x.shape[-1],)).astype(self.dtype)
        y = SwiGLU(dtype=self.dtype, name="mlp")(RMSNorm(self.dtype, name="norm")(x))
        return x + gate * y, None
