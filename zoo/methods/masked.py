"""Masked generation: a transformer draws many codes of an image at once, in a few passes (MaskGIT 2202.04200)."""

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
from zoo.decoding import speculative
from zoo.decoding.draws import adjusted, draw
from zoo.decoding.filling import SamplesByFilling
from zoo.distributions import code_log_prob, sum_except_batch
from zoo.errors import UserError, check_ranges, unknown_name_error
from zoo.method import Axis, Batch, Output, fold_each, split_each
from zoo.nets.conditioning import Conditioned, build_network
from zoo.nets.time import NEW_FOR_VIDEOS
from zoo.nets.tokens import MaskedTokens
from zoo.nets.transformer import Transformer

ORDERS = ("confidence", "random", "halton")


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Options of sampling.

    Attributes:
      steps: passes of the network; without erasing at most as many as there are codes.
      schedule: how many codes are still masked after each, a key of `decoding.masked.SCHEDULES`.
      order: which of the new codes stay: "confidence" (the likeliest), "random" or "halton" (an order that spreads
        over the image, in which each sample begins elsewhere).
      noise: Gumbel noise in the log-probabilities of order="confidence", which falls to 0 with the steps; without,
        images are alike.
      erase: which codes of earlier steps are masked and drawn again: "none", "random", or "confidence", those that
        were unlikely when they were drawn (ReMDM 2503.00307).
      erase_share: share of the earlier codes that each step masks again.
      erase_sharpness: of erase="confidence", see `decoding.masked.by_improbability`.
      temperature: see `decoding.draws.adjusted`.
      top_k: see there.
      top_p: see there.
      guidance: scale of guidance on the logits, see `conditions.guide`; 0 is none.
      interval: shares of masked codes, lowest and highest, between which guidance applies.
      guidance_ramp: whether guidance grows from 0 with the share of codes that are drawn (Muse 2301.00704).
    """

    steps: int = 8
    schedule: str = "cosine"
    order: str = "confidence"
    noise: float = 1.0
    erase: str = "none"
    erase_share: float = 0.0
    erase_sharpness: float = 10.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    guidance_ramp: bool = False

    ERASES: ClassVar[tuple[str, ...]] = ("none", "random", "confidence")

    def __post_init__(self):
        for what, name, known in (
            ("order of codes", self.order, ORDERS),
            ("erasing", self.erase, self.ERASES),
        ):
            if name not in known:
                raise unknown_name_error(what, name, known)
        decoding.check_schedule(self.schedule)
        check_ranges(self, steps="[1, inf)", noise="[0, inf)", erase_share="[0, 1]", erase_sharpness="[0, inf)")
        check_ranges(self, temperature="[0, inf)", top_k="[0, inf)", top_p="(0, 1]", guidance="[0, inf)")
        check_ranges(self, interval="[0, 1]")
        if len(self.interval) != 2 or self.interval[0] > self.interval[1]:
            raise UserError(f"interval is the lower and the higher share, got {tuple(self.interval)}")
        if (self.erase in ("random", "confidence")) != (self.erase_share > 0):
            raise UserError(f"erase={self.erase!r} and erase_share={self.erase_share:g}: give both or none")


@dataclasses.dataclass(frozen=True)
class LikelihoodOptions:
    """Options of the likelihood.

    Attributes:
      samples: masks of each image over which the bound is averaged.
    """

    samples: int = 16

    def __post_init__(self):
        check_ranges(self, samples="[1, inf)")


@dataclasses.dataclass(frozen=True)
class Masked(SamplesByFilling):
    """The family of masked generators.

    Attributes:
      net: fields of `Transformer`, over codes in place of pixels, and `conditioner`.
      vocab_size: number of token ids of captions.
      dtype: type that networks compute in.
      codes: number of codes of the inputs.
      mask_schedule: shares of masked codes in training, a key of `decoding.masked.SCHEDULES` at a uniform time. With
        "linear" and no dropped conditions the loss is a bound of the likelihood; the others have more masks.
      caption_drop: share of samples whose conditions are dropped, which guidance needs.
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    codes: int
    mask_schedule: str = "linear"
    caption_drop: float = 0.1

    players: ClassVar[tuple[str, ...]] = ("model",)
    MAY_BE_NEW: ClassVar[tuple[str, ...]] = NEW_FOR_VIDEOS
    SampleOptions = SampleOptions
    LikelihoodOptions = LikelihoodOptions
    trajectory_options: ClassVar[Mapping[str, Any]] = {"order": "random"}

    def __post_init__(self):
        check_ranges(self, caption_drop="[0, 1]")
        decoding.check_schedule(self.mask_schedule)

    @functools.cached_property
    def network(self) -> Conditioned:
        """Network with its conditioner, without parameters."""
        built = build_network(Transformer, self.net, "method.net", self.vocab_size, self.dtype)
        return Conditioned(MaskedTokens(built.network, self.codes, outputs=self.codes), built.conditioner)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`."""
        return {"model": self.network.init(rng, batch["inputs"], cond=batch["cond"])["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """Cross-entropy of the masked codes, in nats a code; the mean over those of each sample, then over samples.

        Metrics: `accuracy`, share of masked codes that are the likeliest.
        """
        del player, axis, step
        rng_mask, rng_drop = jax.random.split(rng)
        ids = batch["inputs"].astype(jnp.int32)  # uint16 has no number for the mask of 65,536 codes
        masked = self.draw_masks(rng_mask, ids.shape)
        cond = conditions.drop(rng_drop, batch["cond"], self.caption_drop)
        logits = self.logits(params, jnp.where(masked, self.codes, ids), cond)
        loss = _mean_over(masked, -code_log_prob(logits, ids)).mean()
        accuracy = _mean_over(masked, logits.argmax(axis=-1) == ids).mean()
        return loss, Output({"loss": loss, "accuracy": accuracy})

    def draw_masks(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Masks of training, see `decoding.masked.random_masks`."""
        return decoding.random_masks(rng, shape, self.mask_schedule)

    def fill(
        self, params, rng: jax.Array, inputs: jax.Array, known: jax.Array, cond: Cond, options: SampleOptions
    ) -> jax.Array:
        """See `Fills.fill`."""
        return self.fill_by(self.rule(options, inputs.shape[1:], rng), params, rng, inputs, known, cond, options)

    def fill_by(
        self,
        choose: decoding.Choose,
        params,
        rng: jax.Array,
        inputs: jax.Array,
        known: jax.Array,
        cond: Cond,
        options: SampleOptions,
    ) -> jax.Array:
        """See `Fills.fill`; `choose` is the rule by which codes are masked after each step."""
        flat = inputs.reshape(len(inputs), -1).astype(jnp.int32)
        known = jnp.broadcast_to(known[..., None], inputs.shape).reshape(flat.shape)
        draw_missing, left = self._draws(params, cond, inputs.shape[1:], options)
        return decoding.decode(rng, flat, known, draw_missing, left, choose).reshape(inputs.shape)

    def _draws(self, params, cond: Cond, shape: tuple[int, ...], options: SampleOptions):
        """Returns `draw_missing` and `left` of `decoding.masked.decode`."""
        size = math.prod(shape)
        if options.steps > size and options.erase == "none":
            raise UserError(f"steps must be at most the {size} codes of an image without erase, got {options.steps}")
        left = decoding.masked_shares(options.schedule, options.steps)
        guided = self._guided(params, cond, left, options)

        def draw_missing(rng, flat, present, i):
            ids = jnp.where(present, flat, self.codes).reshape(-1, *shape)
            logits = guided(ids, i).reshape(len(flat), size, self.codes)
            drawn = draw(rng, _adjusted(logits, options))
            return drawn, code_log_prob(logits, drawn)  # of all codes: those that were cut off count

        return draw_missing, left

    def _guided(self, params, cond: Cond, left: np.ndarray, options: SampleOptions):
        """Returns the guided logits as a function of codes, (B, T, h, w, c), and of the number of the step."""
        scales = jnp.asarray(guidance_scales(options, np.append(1.0, left[:-1])), jnp.float32)
        both = conditions.duplicate(cond) if options.guidance else cond

        return lambda ids, i: self._logits(params, ids, both, scales[i] if options.guidance else None)

    def _logits(self, params, ids: jax.Array, both: Cond, scale: jax.Array | float | None) -> jax.Array:
        """Logits with this scale of guidance, for which the conditions are duplicated; without any for None."""
        if scale is None:
            return self.logits(params, ids, both)
        good, bad = jnp.split(jax.nn.log_softmax(self.logits(params, jnp.concatenate([ids, ids]), both)), 2)
        return conditions.guide(good, bad, scale)

    def drafter(self, params, cond: Cond, shape: tuple[int, ...], length: int, options: Any) -> speculative.Drafter:
        """See `Drafts.drafter`: draws them at once, each by itself."""
        both = conditions.duplicate(cond) if options.guidance else cond
        size = math.prod(shape)

        def log_q_of_all(codes, number):
            ids = jnp.where(jnp.arange(size) < number[:, None], codes[:, :size], self.codes).reshape(-1, *shape)
            logits = self._logits(params, ids, both, options.guidance or None).reshape(len(ids), size, self.codes)
            room = jnp.pad(logits, ((0, 0), (0, length), (0, 0)))  # past the end any codes do
            return _adjusted(speculative.read(room, number, length), options)

        return speculative.at_once(log_q_of_all)

    def sample_trajectory(
        self, params, rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: SampleOptions
    ) -> jax.Array:
        """See `HasTrajectory.sample_trajectory`: codes and masks at first and after each step."""
        _check_trajectory(options)
        masked = jnp.full((len(rng), math.prod(shape)), self.codes)
        draw_missing, left = self._draws(params, cond, shape, options)
        rule = self.rule(options, shape, rng)
        none = jnp.zeros(masked.shape, bool)
        _, codes, present = decoding.trajectory(rng, masked, none, draw_missing, left, rule)
        states = jnp.concatenate([masked[None], jnp.where(present, codes, self.codes)])
        return states.reshape(len(states), len(rng), *shape)

    def trajectory_log_prob(self, params, states: jax.Array, cond: Cond, options: SampleOptions) -> jax.Array:
        """See `HasTrajectory.trajectory_log_prob`; the choice of places does not depend on the network."""
        _check_trajectory(options)
        guided = self._guided(params, cond, decoding.masked_shares(options.schedule, options.steps), options)

        @jax.checkpoint
        def one(ids, to, i):
            log_prob = code_log_prob(_adjusted(guided(ids, i), options), jnp.where(to == self.codes, 0, to))
            return sum_except_batch(jnp.where((ids == self.codes) & (to != self.codes), log_prob, 0.0))

        inputs = states[:-1], states[1:], jnp.arange(len(states) - 1)
        return jax.lax.scan(lambda _, inputs: (None, one(*inputs)), None, inputs)[1]

    def rule(self, options: SampleOptions, shape: tuple[int, ...], rng: jax.Array) -> decoding.Choose:
        """Returns the rule by which codes of this shape, (T, h, w, c), are masked after each step; rng as in `fill`."""
        orders = {
            "confidence": lambda: decoding.by_confidence(options.noise),
            "random": lambda: decoding.at_random,
            "halton": lambda: decoding.by_halton(shape, rng),
        }
        order = orders[options.order]()
        if options.erase == "none":
            return decoding.keep(order)
        again = decoding.by_improbability(options.erase_sharpness if options.erase == "confidence" else 0.0)
        return decoding.remask(order, again, options.erase_share)

    def bits_per_dim(self, params, rng: jax.Array, batch: Batch, options: LikelihoodOptions) -> jax.Array:
        """See `HasLikelihood`: an estimate of an upper bound, in bits a code, by `samples` masks.

        The codes are drawn in random order, one after the other (2110.02037, eq. 5): with n of N masked, n uniform,
        the mean over masked codes of -log2 p is that of all.
        """
        ids = batch["inputs"].astype(jnp.int32)
        size = math.prod(ids.shape[1:])

        def one(number):
            rng_count, rng_mask = split_each(fold_each(rng, number))
            first = jax.vmap(jax.random.uniform)(rng_count)
            count = jnp.floor((first + number) % options.samples / options.samples * size) + 1
            scores = jax.vmap(lambda key: jax.random.uniform(key, ids.shape[1:]))(rng_mask)
            masked = decoding.lowest(scores, count)
            logits = self.logits(params, jnp.where(masked, self.codes, ids), batch["cond"])
            return _mean_over(masked, -code_log_prob(logits, ids))

        return jax.lax.map(one, jnp.arange(options.samples)).mean(axis=0) / math.log(2)

    def evaluations(self, options: SampleOptions, shape: tuple[int, ...]) -> int:
        """See `Generates.evaluations`."""
        del shape
        return (2 if options.guidance else 1) * options.steps

    def logits(self, params, ids: jax.Array, cond: Cond) -> jax.Array:
        """Scores of all codes at each place, (B, T, h, w, c, codes), from codes of which some are masked."""
        return self.network.apply({"params": params["model"]}, ids, cond=cond)


def _adjusted(logits: jax.Array, options: Any) -> jax.Array:
    return adjusted(logits, options.temperature, options.top_k, options.top_p)


def _check_trajectory(options: SampleOptions) -> None:
    if options.order == "confidence" or options.erase != "none":
        raise UserError(
            "the density of a trajectory is known without erasing and where places are chosen without regard to codes, "
            f"by order=random or halton; got order={options.order!r} and erase={options.erase!r}"
        )


def guidance_scales(options: SampleOptions, masked: np.ndarray) -> np.ndarray:
    """Returns the scale of guidance of each step, (steps,), from the share of codes that are masked before it."""
    low, high = options.interval
    ramp = 1 - masked if options.guidance_ramp else np.ones_like(masked)
    return options.guidance * ramp * ((masked >= low) & (masked <= high))


def _mean_over(masked: jax.Array, values: jax.Array) -> jax.Array:
    """Mean of the values under a mask, of each sample: (B, ...) -> (B,)."""
    axes = tuple(range(1, values.ndim))
    return (values * masked).sum(axis=axes) / masked.sum(axis=axes)
