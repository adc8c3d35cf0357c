"""Autoregressive generation: a causal transformer draws an image's codes one after the other (Parti 2206.10789)."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from zoo import conditions
from zoo.conditions import Cond
from zoo.decoding import autoregressive as decoding
from zoo.decoding.draws import adjusted
from zoo.decoding.filling import SamplesByFilling
from zoo.distributions import code_log_prob
from zoo.errors import check_ranges
from zoo.method import Axis, Batch, Output
from zoo.nets.conditioning import Conditioned, build_network
from zoo.nets.time import NEW_FOR_VIDEOS
from zoo.nets.tokens import CausalTokens, State, grid_of


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Options of sampling.

    Attributes:
      temperature: see `decoding.draws.adjusted`.
      top_k: see there.
      top_p: see there.
      guidance: scale of guidance on the logits, see `conditions.guide`; 0 is none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 0.0

    def __post_init__(self):
        check_ranges(self, temperature="[0, inf)", top_k="[0, inf)", top_p="(0, 1]", guidance="[0, inf)")


@dataclasses.dataclass(frozen=True)
class LikelihoodOptions:
    """Options of the likelihood: none, it is exact."""


@dataclasses.dataclass(frozen=True)
class Autoregressive(SamplesByFilling):
    """The family of autoregressive generators.

    Attributes:
      net: fields of `CausalTokens`, and `conditioner`.
      vocab_size: number of token ids of captions.
      dtype: type that networks compute in.
      codes: number of codes of the inputs.
      caption_drop: share of samples whose conditions are dropped, which guidance needs.
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    codes: int
    caption_drop: float = 0.1

    players: ClassVar[tuple[str, ...]] = ("model",)
    MAY_BE_NEW: ClassVar[tuple[str, ...]] = NEW_FOR_VIDEOS
    SampleOptions = SampleOptions
    LikelihoodOptions = LikelihoodOptions
    trajectory_options: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self):
        check_ranges(self, caption_drop="[0, 1]")

    @functools.cached_property
    def network(self) -> Conditioned:
        """Network with its conditioner, without parameters."""
        return build_network(CausalTokens, self.net, "method.net", self.vocab_size, self.dtype, codes=self.codes)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`."""
        return {"model": self.network.init(rng, batch["inputs"], cond=batch["cond"])["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """-log p of the codes, in nats a code.

        Metrics: `accuracy`, share of codes that are the likeliest, given those before.
        """
        del player, axis, step
        cond = conditions.drop(rng, batch["cond"], self.caption_drop)
        logits, flat = self._apply(params, batch["inputs"], cond=cond), _flat(batch["inputs"])
        loss = -code_log_prob(logits, flat).mean()
        return loss, Output({"loss": loss, "accuracy": (logits.argmax(axis=-1) == flat).mean()})

    def fill(
        self, params, rng: jax.Array, inputs: jax.Array, known: jax.Array, cond: Cond, options: SampleOptions
    ) -> jax.Array:
        """See `Fills.fill`. A code that is drawn depends on those before it alone, and not on later ones."""
        both = conditions.duplicate(cond) if options.guidance else cond
        state = self._apply(params, grid_of(inputs.shape[1:]), cond=both, call="start")
        known = jnp.broadcast_to(known[..., None], inputs.shape).reshape(len(inputs), -1)

        def next_logits(before: jax.Array, i: jax.Array, state: State):
            logits, state = self.step(params, _twice(before, options), i, state)
            return _adjusted(logits, options), state

        return decoding.decode(rng, _flat(inputs), known, state, next_logits).reshape(inputs.shape)

    def sample_trajectory(
        self, params, rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: SampleOptions
    ) -> jax.Array:
        """See `HasTrajectory.sample_trajectory`: the sample alone, all codes of which are one draw."""
        return self.sample(params, rng, cond, shape, options)[None]

    def trajectory_log_prob(self, params, states: jax.Array, cond: Cond, options: SampleOptions) -> jax.Array:
        """See `HasTrajectory.trajectory_log_prob`: of that one draw, (1, B)."""
        ids = states[-1]
        both = conditions.duplicate(cond) if options.guidance else cond
        logits = _adjusted(self._apply(params, _twice(ids, options), cond=both), options)
        return code_log_prob(logits, _flat(ids)).sum(axis=1)[None]

    def step(self, params, before: jax.Array, i: jax.Array, state: State) -> tuple[jax.Array, State]:
        """See `CausalTokens.step`."""
        return self.network.apply_network(params["model"], "step", before, i, state)

    def bits_per_dim(self, params, rng: jax.Array, batch: Batch, options: LikelihoodOptions) -> jax.Array:
        """See `HasLikelihood`: exact, in bits a code, of which the inputs' dimensions are."""
        del rng, options
        logits = self._apply(params, batch["inputs"], cond=batch["cond"])
        return -code_log_prob(logits, _flat(batch["inputs"])).mean(axis=1) / math.log(2)

    def evaluations(self, options: SampleOptions, shape: tuple[int, ...]) -> int:
        """See `Generates.evaluations`: each code reads one place, so that all together are one pass."""
        del shape
        return 2 if options.guidance else 1

    def _apply(self, params, *arguments, **keywords):
        return self.network.apply({"params": params["model"]}, *arguments, **keywords)


def _twice(x: jax.Array, options: SampleOptions) -> jax.Array:
    """For the conditions, and for none."""
    return jnp.concatenate([x, x]) if options.guidance else x


def _adjusted(logits: jax.Array, options: SampleOptions) -> jax.Array:
    """Logits, with those without conditions after them where there is guidance -> those of the codes to draw."""
    if options.guidance:
        good, bad = jnp.split(jax.nn.log_softmax(logits), 2)
        logits = conditions.guide(good, bad, options.guidance)
    return adjusted(logits, options.temperature, options.top_k, options.top_p)


def _flat(ids: jax.Array) -> jax.Array:
    """(B, T, h, w, c) -> int32 (B, N), in the order in which codes are drawn."""
    return ids.reshape(len(ids), -1).astype(jnp.int32)
