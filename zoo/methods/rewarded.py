"""A reward as a plug-in: low-rank changes of a trained family make its pictures please a judge.

    gradient = "direct"    the judge's derivative flows through the picture into the changes (DRaFT 2309.17400)
    gradient = "policy"    the judge is only asked: what pleased it more than others of the same caption becomes more
                           probable (DDPO 2305.13301, Flow-GRPO 2505.05470)

The base is given by `config.init` and stays as it is; a leash can hold the changes small.
The family keeps all its abilities, with the changes in place.
"""

import copy
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from zoo import lora
from zoo.config import ability, build_family, check_options, check_sampling
from zoo.errors import BadInput, unknown
from zoo.method import Axis, Batch, Method, Output

GRADIENTS = {"direct": "generate", "policy": "walk"}  # and the ability that they need
LEAST_STD = 1e-4  # of a group's rewards, which advantages are divided by


@dataclasses.dataclass(frozen=True)
class Rewarded:
    """A family with a reward.

    Attributes:
      base: `config.method` of the family: its `name` and its fields.
      reward: what rewards: "clip", "oracle", or the workdir of a run that rates pictures, see `scoring.rewards`.
      vocab_size, dtype: of the text, and of the computation.
      gradient: "direct" or "policy", see above.
      sampling: options of `base.generate`, or of `base.walk`, for the pictures of training.
      adapt: kernels to change, by a regular expression over paths that begin with the player.
      rank, scale: of the changes, see `zoo.lora`.
      leash: weight of how far the changes go, see `lora.distance`.
      group: pictures of each caption that "policy" compares with each other; the batch has as many fewer captions.
    """

    base: Mapping[str, Any]
    reward: str
    vocab_size: int
    dtype: Any
    gradient: str = "direct"
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    adapt: str = "^model/.*kernel$"
    rank: int = 8
    scale: float = 8.0
    leash: float = 0.0
    group: int = 8

    judge: Callable[[jax.Array, jax.Array], jax.Array] | None = dataclasses.field(default=None, init=False)
    players: ClassVar[tuple[str, ...]] = ("adapters",)
    needs_init: ClassVar[bool] = True

    @functools.cached_property
    def wrapped(self) -> Method:
        return build_family(self.base, "method.base", self.vocab_size, self.dtype)

    @property
    def needs_gradient(self) -> bool:
        """See `Taught`."""
        return self.gradient == "direct"

    def taught_by(self, judge: Callable[[jax.Array, jax.Array], jax.Array]) -> "Rewarded":
        """See `Taught`."""
        taught = copy.copy(self)
        taught.__dict__["judge"] = judge
        return taught

    def given(self, frozen: Mapping[str, tuple[Method, Any]]) -> "Rewarded":
        """See `Leaning`: for the base, where that leans on runs."""
        leaning = copy.copy(self)
        leaning.__dict__["wrapped"] = self.wrapped.given(frozen)
        return leaning

    def __getattr__(self, name: str):
        """The base's abilities, with the changes in place."""
        if name.startswith("_") or name == "wrapped":  # whose own errors would lead here for ever
            raise AttributeError(name)
        value = getattr(self.wrapped, name)
        if not callable(value) or next(iter(inspect.signature(value).parameters), None) != "params":
            return value
        return functools.wraps(value)(lambda params, *args, **options: value(self.merged(params), *args, **options))

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        self._check()
        rng_base, rng_adapters = jax.random.split(rng)
        params = self.wrapped.init(rng_base, batch)
        return params | {"adapters": lora.init(rng_adapters, params, self.adapt, self.rank)}

    def merged(self, params: dict[str, Any]) -> dict[str, Any]:
        """The base's parameters with the changes."""
        return lora.merge(_base(params), params["adapters"], self.scale)

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """What lowers it raises the reward; and the leash. Of the batch, captions and the shape of pictures are used.

        Metrics: `reward`, its mean, and `distance`, see `lora.distance`.
        """
        del player, axis, step
        learn = self._direct if self.gradient == "direct" else self._policy
        loss, reward = learn(params, batch["tokens"], rng, batch["pixels"].shape[1:])
        distance = lora.distance(_base(params), params["adapters"], self.scale)
        loss += self.leash * distance
        return loss, Output({"loss": loss, "reward": reward.mean(), "distance": distance})

    def _direct(self, params, tokens, rng, shape):
        noise = self.wrapped.draw_noise(jax.random.split(rng, len(tokens)), shape)
        reward = self.judge(self.wrapped.generate(self.merged(params), noise, tokens, **self.sampling), tokens)
        return -reward.mean(), reward

    def _policy(self, params, tokens, rng, shape):
        """REINFORCE with the group's mean as baseline and its spread as unit; one update a draw needs no clipping.

        The log-density is taken a dimension, as in Flow-GRPO's code, so that the leash means the same at all sizes.
        """
        if len(tokens) % self.group:
            raise BadInput(f"method.group {self.group} does not divide the {len(tokens)} pictures of a device")
        tokens = jnp.repeat(tokens[:: self.group], self.group, axis=0)
        merged = self.merged(params)
        keys = jax.random.split(rng, len(tokens))
        states = self.wrapped.walk(jax.lax.stop_gradient(merged), keys, tokens, shape, **self.sampling)
        reward = jax.lax.stop_gradient(self.judge(states[-1], tokens))
        log_prob = self.wrapped.log_prob_of_walk(merged, states, tokens, **self.sampling) / math.prod(shape)
        return -(advantages(reward, self.group) * log_prob).mean(), reward

    def _check(self) -> None:
        """Raises BadInput on a setting that cannot be."""
        if self.gradient not in GRADIENTS:
            raise unknown("method.gradient", self.gradient, GRADIENTS)
        function = ability(self.wrapped, GRADIENTS[self.gradient])
        if self.gradient == "direct":
            check_sampling(self.wrapped, self.sampling)
        else:
            check_options(function, self.sampling, "option of walk")
        if self.group < 2:
            raise BadInput(f"method.group must be at least 2, to compare, got {self.group}")


def advantages(reward: jax.Array, group: int) -> jax.Array:
    """Rewards (B,), each group in a row, less the group's mean and over its standard deviation."""
    rows = reward.reshape(-1, group)
    return ((rows - rows.mean(axis=1, keepdims=True)) / (rows.std(axis=1, keepdims=True) + LEAST_STD)).reshape(-1)


def _base(params: dict[str, Any]) -> dict[str, Any]:
    return {player: tree for player, tree in params.items() if player != "adapters"}
