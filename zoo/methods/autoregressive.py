"""Autoregressive generation: a causal transformer draws an image's codes one after the other (Parti 2206.10789)."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp

from zoo import conditions
from zoo.conditions import Cond
from zoo.decoding import autoregressive as decoding
from zoo.decoding import speculative
from zoo.decoding.draws import adjusted
from zoo.decoding.filling import SamplesByFilling
from zoo.distributions import code_log_prob
from zoo.errors import UserError, check_ranges
from zoo.method import Axis, Batch, Drafts, Output
from zoo.nets.causal import KVCache
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
      draft: None, or what guesses the next codes, see `Speculates`; samples have the same distribution with any of
        them. With "jacobi" they are the same samples, see `decoding.speculative.jacobi`.
      draft_length: codes that are guessed for a call of the network; without a draft it is not read.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 0.0
    draft: Drafts | str | None = None
    draft_length: int = 4

    def __post_init__(self):
        check_ranges(self, temperature="[0, inf)", top_k="[0, inf)", top_p="(0, 1]", guidance="[0, inf)")
        check_ranges(self, draft_length="[1, inf)")
        if not (self.draft in (None, speculative.JACOBI) or isinstance(self.draft, Drafts)):
            raise UserError(f"draft is something that guesses codes, got {self.draft!r}: name it by --speculate")


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
        return self._fill(params, rng, inputs, known, cond, options)[0]

    def sample_counted(
        self, params, rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: SampleOptions
    ) -> tuple[jax.Array, jax.Array]:
        """See `Speculates.sample_counted`."""
        none = jnp.zeros((len(rng), *shape))
        return self._fill(params, rng, none, jnp.zeros(none.shape[:4], bool), cond, options)

    def _fill(self, params, rng, inputs, known, cond, options: SampleOptions) -> tuple[jax.Array, jax.Array]:
        """Fills as `fill`, and counts the calls of the network that each sample took, (B,)."""
        shape, flat = inputs.shape[1:], _flat(inputs)
        known = jnp.broadcast_to(known[..., None], inputs.shape).reshape(flat.shape)
        if options.draft is None:
            state = self._start(params, cond, shape, 0, options)
            step = lambda before, i, state: self._next(params, before[:, None], i, state, options)
            codes = decoding.decode(rng, flat, known, state, step)
            return codes.reshape(inputs.shape), jnp.full(len(flat), flat.shape[1], jnp.int32)
        length = options.draft_length
        state = self._start(params, cond, shape, length + 1, options)
        verify = lambda codes, number, state: self._next_of_each(params, codes, number, length + 1, state, options)
        if options.draft == speculative.JACOBI:
            codes, calls = speculative.jacobi(rng, flat, known, state, verify, length)
        else:
            drafter = cast(Drafts, options.draft).drafter(params["frozen"]["draft"], cond, shape, length, options)
            codes, calls = speculative.decode(rng, flat, known, state, verify, drafter, length)
        return codes.reshape(inputs.shape), calls

    def drafter(
        self, params, cond: Cond, shape: tuple[int, ...], length: int, options: SampleOptions
    ) -> speculative.Drafter:
        """See `Drafts.drafter`: draws them one after the other."""

        def next_log_q(codes, number, state):
            log_q, state = self._next_of_each(params, codes, number, 1, state, options)
            return log_q[:, 0], state

        return speculative.by_model(self._start(params, cond, shape, length + 1, options), next_log_q, length)

    def _start(self, params, cond: Cond, shape: tuple[int, ...], room: int, options: SampleOptions) -> State:
        """The state before any code of this shape, see `CausalTokens.start`."""
        both = conditions.duplicate(cond) if options.guidance else cond
        return self._apply(params, grid_of(shape), room, cond=both, call="start")

    def _next(self, params, before, i, state: State, options: SampleOptions) -> tuple[jax.Array, State]:
        """The distribution of code i from the code before it, (B, 1) -> (B, codes), and the state."""
        logits, state = self.read(params, _twice(before, options), i, state)
        return _adjusted(logits[:, 0], options), state

    def _next_of_each(
        self, params, codes, number, count: int, state: State, options: SampleOptions
    ) -> tuple[jax.Array, State]:
        """The distributions of `count` codes of each sample from its `number` on, (B, count, codes), and the state.

        Args:
          params: see the module `method`.
          codes: (B, ...), of which those before `number` are right.
          number: of codes that are drawn, (B,).
          count: how many codes.
          state: see `CausalTokens.read`.
          options: of sampling.
        """
        before = speculative.read(jnp.pad(codes, ((0, 0), (1, 0))), number, count)
        one = lambda before, i, state: _of_one(*self.read(params, before[None], i, _batch_of(state)))
        axes: Any = State(*cast(Any, (1, 0, 0)))  # the caches have the layers before the batch
        read = jax.vmap(one, in_axes=(0, 0, axes), out_axes=(0, axes))
        logits, state = read(_twice(before, options), _twice(number, options), state)
        return _adjusted(logits, options), state

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

    def read(self, params, before: jax.Array, i: jax.Array, state: State) -> tuple[jax.Array, State]:
        """See `CausalTokens.read`."""
        return self.network.apply_network(params["model"], "read", before, i, state)

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


def _batch_of(state: State) -> State:
    """The state of one sample, without the axis of the batch -> with it."""
    caches = KVCache(*(x[:, None] for x in state.caches))
    return State(caches, state.visible[None], state.places[None])


def _of_one(logits: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Logits and state of a batch of one -> without the axis of the batch."""
    caches = KVCache(*(x[:, 0] for x in state.caches))
    return logits[0], State(caches, state.visible[0], state.places[0])


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
