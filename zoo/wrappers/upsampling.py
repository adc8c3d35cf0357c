"""A stage of a cascade: a family that draws a video of more pixels, or of more frames, from one of fewer.

    what a stage is given    the small video, resized back, beside the noise (CDM 2106.15282, section 2); frames that
                             are known are marked, and each unknown one shows the known one before it
    augmentation             noise of a random level in the small video; the level is a condition (section 4.2)
    prediction               what the video lacks that was resized back, where its noise is small
    time                     every `rate`-th frame is known, or the first ones, or both (Imagen Video 2210.02303)

In training the small video is made of the batch's own inputs. Guidance leaves what is given as it is.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import einops
import jax
import jax.numpy as jnp
import numpy as np

from zoo.conditions import Cond
from zoo.diffusion.paths import LINEAR, expand
from zoo.errors import UserError, check_ranges, unknown_name_error
from zoo.method import (
    Axis,
    Batch,
    Denoises,
    Generates,
    HasFakeSample,
    HasLikelihood,
    Output,
    ReadsGiven,
    normal_each,
    split_each,
    to_float,
)
from zoo.resize import FILTERS, weights
from zoo.wrappers.compose import Wrapper

OFF_BY = 0.05  # standard deviation of a real image from its small version made larger, about


@dataclasses.dataclass(frozen=True)
class Upsampling(Wrapper):
    """A family as a stage.

    `cond` has, beside the base's conditions, what `given_of` and `given_by` return:

        low_res    the small video at the full frame rate, float32 (B, T, h, w, C)
        known      1 for the frames of it that count, (B, T)
        level      level of noise that it gets, (B,)

    Attributes:
      base: family.
      vocab_size: number of token ids.
      dtype: type that networks compute in.
      scale: side of the stage's images in units of the small ones' side.
      rate: frame rate of the stage in units of the small video's.
      resizing: filter that makes images smaller, a key of `resize.FILTERS`; the source's own.
      largest_level: levels of training are this times the square of a uniform number: most are small.
      prefix: share of training videos whose first frames are known; in half of these no other frame is known.
      crop: side in pixels of the squares that a stage is trained on; 0 for whole images.

    Raises:
      UserError: a value out of range, or a stage that changes nothing.
    """

    base: Any
    vocab_size: int
    dtype: Any
    scale: int = 1
    rate: int = 1
    resizing: str = "lanczos"
    largest_level: float = 0.5
    prefix: float = 0.0
    crop: int = 0

    MAY_BE_NEW: ClassVar[tuple[str, ...]] = "given", "level"
    FORWARDS: ClassVar[tuple[type, ...]] = Generates, HasFakeSample, HasLikelihood, Denoises

    @staticmethod
    def needs(fields: Mapping[str, Any]) -> type:
        """Returns the ability that the base needs: networks that read what is given."""
        del fields
        return ReadsGiven

    def __post_init__(self):
        check_ranges(self, scale="[1, inf)", rate="[1, inf)", largest_level="[0, 1]", prefix="[0, 1]", crop="[0, inf)")
        if self.resizing not in FILTERS:
            raise unknown_name_error("resizing", self.resizing, FILTERS)
        if self.scale == self.rate == 1:
            raise UserError("a stage needs scale or rate above 1: both are 1")
        if self.crop % self.scale:
            raise UserError(f"crop {self.crop} is no multiple of scale {self.scale}")

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`. Raises UserError for sizes, frames or crops that do not fit scale and rate."""
        self.small_shape(batch["inputs"].shape[1:])
        x = to_float(batch["inputs"])
        if self.crop > min(x.shape[2:4]):
            raise UserError(f"method.crop {self.crop} is larger than the images of {x.shape[2]} x {x.shape[3]}")
        return self.base.init(rng, self._prepared(batch, self.given_by(x)))

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """See `Method.loss`: the base's, given the batch made small. A crop has no `fake`, which would be a part."""
        rng_base, rng_known, rng_level, rng_noise, rng_crop = jax.random.split(rng, 5)
        x = to_float(batch["inputs"])
        given = self.given_by(x) | {"known": self._draw_known(rng_known, x.shape[:2])}
        given["level"] = self.largest_level * jax.random.uniform(rng_level, (len(x),)) ** 2
        given["low_res"] = _noisy(jax.random.split(rng_noise, len(x)), given)
        if self.crop:
            x, given = self._cut(rng_crop, x, given)
        loss, output = self.base.loss(player, params, self._prepared(batch, given, x), rng_base, axis, step)
        return loss, Output(output.metrics, None if self.crop else output.fake)

    def loss_at(self, params, batch: Batch, rng: jax.Array, t: float) -> jax.Array:
        """See `held_out.HasLossAtLevel`: given the exact small video."""
        return self.base.loss_at(params, self._prepared(batch, self.given_by(to_float(batch["inputs"]))), rng, t)

    def sample(self, params, rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: Any) -> jax.Array:
        """See `Generates.sample`. Known frames of full size are taken as they are where the level is 0."""
        rng_base, rng_noise = split_each(rng)
        if "low_res" not in cond:
            raise UserError(
                "a stage draws from smaller images: give it a base run by --workdir BASE --upsample STAGE, or --input"
            )
        given = {name: cond[name] for name in ("low_res", "known", "level")}
        noisy = given | {"low_res": _noisy(rng_noise, given)}
        made = self.base.sample(params, rng_base, self._read(cond, noisy, shape), shape, options)
        if self.scale > 1:
            return made
        kept = given["known"] * (given["level"] == 0)[:, None]
        return jnp.where(kept[:, :, None, None, None] > 0, given["low_res"], made)

    def bits_per_dim(self, params, rng: jax.Array, batch: Batch, options: Any) -> jax.Array:
        """See `HasLikelihood`: given the exact small video."""
        batch = self._prepared(batch, self.given_by(to_float(batch["inputs"]))) | {"inputs": batch["inputs"]}
        return self.base.bits_per_dim(params, rng, batch, options)

    # ---- what is given

    def small_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """See `Upsamples.small_shape`. Raises UserError where scale or rate does not divide the shape."""
        frames, height, width, channels = shape
        if height % self.scale or width % self.scale:
            raise UserError(f"method.scale {self.scale} does not divide images of {height} x {width}")
        if frames % self.rate:
            raise UserError(f"method.rate {self.rate} does not divide {frames} frames")
        return frames // self.rate, height // self.scale, width // self.scale, channels

    def given_by(self, x: jax.Array) -> dict[str, jax.Array]:
        """Returns the exact pair of videos, float32 (B, T, H, W, C): their small versions, without noise."""
        known = jnp.broadcast_to(jnp.arange(x.shape[1]) % self.rate == 0, x.shape[:2]).astype(jnp.float32)
        return {"low_res": self.smaller(x), "known": known, "level": jnp.zeros(len(x))}

    def given_of(
        self, small: np.ndarray, frames: int, prefix: np.ndarray | None = None, level: float = 0.0
    ) -> dict[str, Any]:
        """See `Upsamples.given_of`."""
        count, shown = len(small), small.shape[1] * self.rate
        low_res = np.zeros((count, frames, *small.shape[2:]), np.float32)
        known = np.zeros((count, frames), np.float32)
        low_res[:, 0 : shown : self.rate], known[:, 0 : shown : self.rate] = to_float(jnp.asarray(small)), 1.0
        if prefix is not None:
            length = prefix.shape[1]
            low_res[:, :length], known[:, :length] = self.smaller(to_float(jnp.asarray(prefix))), 1.0
        return {"low_res": low_res, "known": known, "level": np.full(count, level, np.float32)}

    def smaller(self, x: jax.Array) -> jax.Array:
        """(B, T, H, W, C) -> (B, T, H / scale, W / scale, C)."""
        return resized(x, x.shape[2] // self.scale, x.shape[3] // self.scale, self.resizing)

    def _draw_known(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Frames that are known in training, (B, T): every `rate`-th, the first ones, or both."""
        rng_prefix, rng_alone, rng_length = jax.random.split(rng, 3)
        count, frames = shape
        numbers = jnp.arange(frames)
        every = jnp.broadcast_to(numbers % self.rate == 0, shape)
        if frames == 1 or not self.prefix:
            return every.astype(jnp.float32)
        has_prefix = jax.random.bernoulli(rng_prefix, self.prefix, (count, 1))
        length = jax.random.randint(rng_length, (count, 1), 1, frames)
        alone = has_prefix & jax.random.bernoulli(rng_alone, 0.5, (count, 1))
        return ((every & ~alone) | (has_prefix & (numbers < length))).astype(jnp.float32)

    def _cut(self, rng: jax.Array, x: jax.Array, given: Cond) -> tuple[jax.Array, dict[str, jax.Array]]:
        """A random square of each video and of what is given, and its origin in pixels, (B, 2)."""
        side, step = self.crop, np.lcm(self.scale, self.base.network.network.patch_size)
        places = jnp.array([(size - side) // step + 1 for size in x.shape[2:4]])
        origin = step * jax.random.randint(rng, (len(x), 2), 0, places)

        def cut(x, origin, side):
            return jax.lax.dynamic_slice(x, (0, *origin, 0), (x.shape[0], side, side, x.shape[3]))

        small = jax.vmap(cut, (0, 0, None))(given["low_res"], origin // self.scale, side // self.scale)
        return jax.vmap(cut, (0, 0, None))(x, origin, side), {**given, "low_res": small, "origin": origin}

    def _prepared(self, batch: Batch, given: Cond, x: jax.Array | None = None) -> dict[str, Any]:
        """The batch that the base gets: inputs x or the batch's own, and what it reads of what is given."""
        inputs = to_float(batch["inputs"]) if x is None else x
        return dict(batch) | {"inputs": inputs, "cond": self._read(batch["cond"], given, inputs.shape[1:])}

    def _read(self, cond: Cond, given: Cond, shape: tuple[int, ...]) -> dict[str, Any]:
        """Conditions of the base: the small video at full size with its mask, (B, T, H, W, C + 1), and its level."""
        _, height, width, _ = shape
        large = resized(filled(given["low_res"], given["known"]), height, width, "bicubic")
        mask = jnp.broadcast_to(given["known"][:, :, None, None, None], (*large.shape[:-1], 1))
        read = {"given": jnp.concatenate([large, mask], axis=-1), "level": given["level"]}
        read["expected"] = expand(_trust(given["level"]), large) * large
        if "origin" in given:
            read["origin"] = given["origin"]
        own = {name: value for name, value in cond.items() if name not in ("low_res", "known", "level")}
        return own | read


def _noisy(rng: jax.Array, given: Cond) -> jax.Array:
    """The small video with noise of its level; rng: (B,)."""
    return LINEAR.interpolate(given["low_res"], normal_each(rng, given["low_res"].shape[1:]), given["level"])


def _trust(level: jax.Array) -> jax.Array:
    """Weight of the noisy video in what is expected: 1 without noise, 0.5 where noise is as large as `OFF_BY`.

    It has the form of Wiener's filter, whose signal would be all of the image: with that one, noise stays in what is
    expected, and networks draw an image better than they take noise away (docs/results/cascades.md).
    """
    return OFF_BY**2 * (1 - level) / (OFF_BY**2 * (1 - level) ** 2 + level**2)


def filled(x: jax.Array, known: jax.Array) -> jax.Array:
    """Puts into each unknown frame the last known one before it, else 0. x: (B, T, h, w, C); known: (B, T)."""
    last = jax.lax.cummax(jnp.where(known > 0, jnp.arange(x.shape[1]), -1), axis=1)  # (B, T)
    taken = jnp.take_along_axis(x, jnp.maximum(last, 0)[:, :, None, None, None], axis=1)
    return jnp.where(last[:, :, None, None, None] >= 0, taken, 0.0)


def resized(x: jax.Array, height: int, width: int, method: str) -> jax.Array:
    """Resizes float videos (B, T, H, W, C) to (B, T, height, width, C), with the weights of `resize.weights`."""
    if x.shape[2:4] == (height, width):
        return x
    rows = jnp.asarray(weights(x.shape[2], height, method), jnp.float32)
    columns = jnp.asarray(weights(x.shape[3], width, method), jnp.float32)
    return einops.einsum(x, rows, columns, "b t h w c, i h, j w -> b t i j c")
