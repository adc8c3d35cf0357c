"""Masked generation of vectors: a head draws each by diffusion, so that patches need no codes (MAR 2406.11838)."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from zoo import conditions
from zoo.conditions import Cond
from zoo.decoding import masked as decoding
from zoo.decoding.filling import SamplesByFilling
from zoo.diffusion.paths import LINEAR, draw_times
from zoo.diffusion.samplers import integrate, time_grid
from zoo.errors import UserError, check_ranges, unknown_name_error
from zoo.method import Axis, Batch, Output, fold_each, normal_each, split_each, to_float
from zoo.nets.conditioning import Conditioned, build_network
from zoo.nets.time import NEW_FOR_VIDEOS
from zoo.nets.tokens import MaskedVectors
from zoo.nets.transformer import Transformer

ORDERS = ("random", "halton")
DRAWS = 4  # times and noises for each vector in training, which cost the head alone


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Options of sampling.

    Attributes:
      steps: passes of the transformer, at most as many as there are vectors.
      schedule: how many vectors are still masked after each, a key of `decoding.masked.SCHEDULES`.
      order: which of the new vectors stay: "random" or "halton" (an order that spreads over the image, in which each
        sample begins elsewhere).
      head_steps: steps in which the head draws a vector.
      temperature: standard deviation of the noise from which it begins.
      guidance: scale of guidance on the velocity, see `conditions.guide`; 0 is none.
    """

    steps: int = 16
    schedule: str = "cosine"
    order: str = "random"
    head_steps: int = 20
    temperature: float = 1.0
    guidance: float = 0.0

    def __post_init__(self):
        if self.order not in ORDERS:
            raise unknown_name_error("order of vectors", self.order, ORDERS)
        decoding.check_schedule(self.schedule)
        check_ranges(self, steps="[1, inf)", head_steps="[1, inf)", temperature="[0, inf)", guidance="[0, inf)")


@dataclasses.dataclass(frozen=True)
class Continuous(SamplesByFilling):
    """The family of masked generators of vectors.

    Attributes:
      net: fields of `Transformer`, over vectors in place of pixels, and `conditioner`.
      vocab_size: number of token ids of captions.
      dtype: type that networks compute in.
      head_width: channels of the head.
      head_depth: residual blocks of the head.
      mask_schedule: shares of masked vectors in training, a key of `decoding.masked.SCHEDULES` at a uniform time.
      caption_drop: share of samples whose conditions are dropped, which guidance needs.
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    head_width: int = 256
    head_depth: int = 3
    mask_schedule: str = "arccos"
    caption_drop: float = 0.1

    players: ClassVar[tuple[str, ...]] = ("model",)
    MAY_BE_NEW: ClassVar[tuple[str, ...]] = NEW_FOR_VIDEOS
    SampleOptions = SampleOptions

    def __post_init__(self):
        check_ranges(self, head_width="[1, inf)", head_depth="[1, inf)", caption_drop="[0, 1]")
        decoding.check_schedule(self.mask_schedule)

    @functools.cached_property
    def network(self) -> Conditioned:
        """Network with its conditioner, without parameters."""
        built = build_network(Transformer, self.net, "method.net", self.vocab_size, self.dtype)
        return Conditioned(MaskedVectors(built.network, self.head_width, self.head_depth), built.conditioner)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`."""
        x = to_float(batch["inputs"])
        return {"model": self.network.init(rng, x, jnp.zeros(x.shape[:-1], bool), cond=batch["cond"])["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """Squared error of the velocity of masked vectors, at `DRAWS` random times each."""
        del player, axis, step
        rng_mask, rng_drop, rng_time, rng_noise = jax.random.split(rng, 4)
        x = to_float(batch["inputs"])
        masked = decoding.random_masks(rng_mask, x.shape[:-1], self.mask_schedule)
        cond = conditions.drop(rng_drop, batch["cond"], self.caption_drop)
        features = self._features(params, x, ~masked, cond)
        t = draw_times(rng_time, DRAWS * masked.size, "logit_normal").reshape(DRAWS, *masked.shape)
        eps = jax.random.normal(rng_noise, (DRAWS, *x.shape))
        z = (1 - t[..., None]) * x + t[..., None] * eps
        v = self._velocity(params, z, t, jnp.broadcast_to(features, (DRAWS, *features.shape)))
        error = jnp.square(v - (eps - x)).mean(axis=-1)
        each = (error * masked).sum(axis=(0, 2, 3, 4)) / (DRAWS * masked.sum(axis=(1, 2, 3)))
        return each.mean(), Output({"loss": each.mean()})

    def fill(
        self, params, rng: jax.Array, inputs: jax.Array, known: jax.Array, cond: Cond, options: SampleOptions
    ) -> jax.Array:
        """See `Fills.fill`. Which vectors a step draws is chosen first: the head draws no others."""
        shape, size = inputs.shape[1:], math.prod(inputs.shape[1:4])
        if options.steps > size:
            raise UserError(f"steps must be at most the {size} vectors of an image, got {options.steps}")
        both = conditions.duplicate(cond) if options.guidance else cond
        twice = (lambda x: jnp.concatenate([x, x])) if options.guidance else (lambda x: x)
        halton = options.order == "halton"
        order = decoding.by_halton((*shape[:3], 1), rng) if halton else decoding.at_random
        left = decoding.masked_shares(options.schedule, options.steps)
        most = int(np.ceil(size * -np.diff(np.append(1.0, left))).max()) + 1
        known = known.reshape(len(inputs), size)
        count = (~known).sum(axis=1, keepdims=True)

        def step(carry, numbers):
            x, present = carry
            i, share = numbers
            rng_choose, rng_draw = split_each(fold_each(rng, i))
            target = jnp.floor(share * count + 1e-4)
            none = jnp.zeros(present.shape)
            about = decoding.Step(rng_choose, none, none, none, ~present, present & ~known, target)
            drawn = ~present & ~decoding.keep(order)(about)
            places = jnp.argsort(~drawn, axis=1)[:, : min(most, size)]  # (B, K), those that are drawn first
            features = self._features(
                params, twice(x.reshape(inputs.shape)), twice(present.reshape(-1, *shape[:3])), both
            )
            features = features.reshape(len(features), size, -1)
            features = jnp.take_along_axis(features, twice(places)[..., None], axis=1)
            made = self._draw_vectors(params, rng_draw, features, shape[-1], options)
            is_drawn = jnp.take_along_axis(drawn, places, axis=1)[..., None]
            made = jnp.where(is_drawn, made, jnp.take_along_axis(x, places[..., None], axis=1))
            x = jax.vmap(lambda x, at, made: x.at[at].set(made))(x, places, made)
            return (x, present | drawn), None

        x = to_float(inputs).reshape(len(inputs), size, shape[-1])
        numbers = jnp.arange(options.steps), jnp.asarray(left, jnp.float32)
        return jax.lax.scan(step, (x, known), numbers)[0][0].reshape(inputs.shape)

    def _draw_vectors(self, params, rng: jax.Array, features: jax.Array, channels: int, options: SampleOptions):
        """Vectors (B, K, channels), a key for each of B, from features (B or 2 B, K, D)."""
        guided = bool(options.guidance)

        def predict(z, t):
            both = jnp.concatenate([z, z]) if guided else z
            v = self._velocity(params, both, jnp.full(both.shape[:-1], t), features)
            if guided:
                good, bad = jnp.split(v, 2)
                v = conditions.guide(good, bad, options.guidance)
            return LINEAR.convert("v", v, z, jnp.full(len(z), t))

        noise = options.temperature * normal_each(rng, (features.shape[1], channels))
        return integrate("euler", predict, LINEAR, noise, time_grid(options.head_steps))

    def evaluations(self, options: SampleOptions, shape: tuple[int, ...]) -> int:
        """See `Generates.evaluations`: those of the transformer; the head has `head_steps` for each vector."""
        del shape
        return (2 if options.guidance else 1) * options.steps

    def _features(self, params, x: jax.Array, known: jax.Array, cond: Cond) -> jax.Array:
        """See `MaskedVectors.features`."""
        return self.network.apply({"params": params["model"]}, x, known, cond=cond, call="features")

    def _velocity(self, params, z: jax.Array, t: jax.Array, features: jax.Array) -> jax.Array:
        """See `VectorHead`."""
        return self.network.apply_network(params["model"], "velocity", z, t, features)
