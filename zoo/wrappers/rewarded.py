"""A reward as a plug-in: low-rank changes of a trained family raise the reward of its samples.

    gradient = "direct"    the reward's derivative flows through the sample into the changes (DRaFT 2309.17400)
    gradient = "policy"    the reward is a black box: samples above their group's mean become more likely
                           (DDPO 2305.13301, Flow-GRPO 2505.05470)

The base is the run of `config.init`, frozen; a penalty can hold the changes small. The base keeps its abilities, with
the changes in place.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from zoo.adapters import lora
from zoo.adapters.files import Parts
from zoo.config import build_options
from zoo.errors import UserError, check_ranges, unknown_name_error
from zoo.method import Axis, Batch, HasFakeSample, HasTrajectory, Invertible, Output, ReadsGiven, Reward
from zoo.wrappers.compose import all_but

GRADIENTS = {"direct": Invertible, "policy": HasTrajectory}  # with the ability of the base that they need
LEAST_STD = 1e-4  # of a group's rewards, which advantages are divided by


@dataclasses.dataclass(frozen=True)
class Rewarded:
    """A family that is trained by a reward.

    Attributes:
      base: family whose trained parameters are `params["frozen"]["base"]`.
      vocab_size: number of token ids.
      dtype: type that networks compute in.
      reward: reward of samples, see `runs.rewards`; None in a run that is opened for sampling.
      gradient: "direct" or "policy", see the module.
      sampling: options of `base.generate` ("direct"), or of `base.sample_trajectory` ("policy"), over the base's
        `trajectory_options`.
      target_modules: kernels to change, by a regular expression over paths that begin with the player.
      rank: rank of the changes, see `adapters.lora`.
      alpha: scale of the changes, see `adapters.lora`.
      delta_penalty: weight of the size of the changes, see `lora.distance`.
      group_size: samples per caption that "policy" compares; it uses every `group_size`-th caption of the batch alone.

    Raises:
      UserError: a value out of range, an unknown name, or a base or reward that lacks an ability.
    """

    base: Any
    vocab_size: int
    dtype: Any
    reward: Any
    gradient: str = "direct"
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    target_modules: str = "^model/.*kernel$"
    rank: int = 8
    alpha: float = 8.0
    delta_penalty: float = 0.0
    group_size: int = 8

    players: ClassVar[tuple[str, ...]] = ("adapters",)
    DEPENDENCIES: ClassVar[Mapping[str, type]] = {"reward": Reward}
    # `config.init` names the frozen base, in place of parameters to start from.
    INIT_IS_BASE: ClassVar[bool] = True
    FORWARDS: ClassVar[tuple[type, ...]] = all_but(HasFakeSample, ReadsGiven)

    @staticmethod
    def needs(fields: Mapping[str, Any]) -> type:
        """Returns the ability that the base needs under these fields."""
        return GRADIENTS.get(fields.get("gradient", "direct"), Invertible)

    def __post_init__(self):
        if self.gradient not in GRADIENTS:
            raise unknown_name_error("method.gradient", self.gradient, GRADIENTS)
        if self.reward is not None and self.gradient == "direct" and not self.reward.differentiable:
            raise UserError('method.reward: the oracle has no derivative; set method.gradient to "policy"')
        check_ranges(self, rank="[1, inf)", alpha="(0, inf)", delta_penalty="[0, inf)", group_size="[2, inf)")
        self.sampling_options  # noqa: B018, so that an option that does not exist is an error at once

    @property
    def sampling_options(self) -> Any:
        """`sampling` as the options of the base."""
        what = f"sampling option of {type(self.base).__name__}"
        first = self.base.trajectory_options if self.gradient == "policy" else {}
        return build_options(self.base.SampleOptions, dict(first) | dict(self.sampling), what)

    def base_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The base's parameters with the changes, and the frozen networks."""
        frozen = params["frozen"]
        return lora.merge(frozen["base"], params["adapters"], self.alpha) | {"frozen": frozen}

    def parts(self, params: Mapping[str, Any]) -> Parts:
        """Returns the changes; they count `alpha` times."""
        return Parts(params["adapters"], {}, {})

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`: changes that are zero."""
        rng_base, rng_adapters = jax.random.split(rng)
        kernels = lora.kernels(self.base.init, rng_base, batch)
        return {"adapters": lora.init(rng_adapters, kernels, self.target_modules, self.rank)}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """See `Method.loss`. It reads only the conditions and the shape of the batch.

        The loss is minus the mean reward ("direct") or the REINFORCE loss ("policy"), plus the weighted penalty.

        Metrics: `reward`, its mean, and `distance`, see `lora.distance`.
        """
        del player, axis, step
        learn = self._direct if self.gradient == "direct" else self._policy
        inputs = batch["inputs"]
        loss, reward = learn(params, batch["cond"], jax.random.split(rng, len(inputs)), inputs.shape[1:])
        distance = lora.distance(params["frozen"]["base"], params["adapters"], self.alpha)
        loss += self.delta_penalty * distance
        return loss, Output({"loss": loss, "reward": reward.mean(), "distance": distance})

    def _direct(self, params, cond, keys, shape):
        noise = self.base.draw_noise(keys, shape)
        made = self.base.generate(self.base_params(params), noise, cond, self.sampling_options)
        reward = self.reward(params["frozen"], made, cond)
        return -reward.mean(), reward

    def _policy(self, params, cond, keys, shape):
        """REINFORCE on advantages, see `advantages`. Each sample is used for one update, so no ratio needs clipping.

        The log-density is divided by the dimensions, as in Flow-GRPO's code, so that the penalty means the same at all
        sizes.
        """
        if len(keys) % self.group_size:
            raise UserError(f"method.group_size {self.group_size} does not divide the {len(keys)} samples of a device")
        cond = jax.tree.map(lambda x: jnp.repeat(x[:: self.group_size], self.group_size, axis=0), dict(cond))
        options, merged = self.sampling_options, self.base_params(params)
        states = self.base.sample_trajectory(jax.lax.stop_gradient(merged), keys, cond, shape, options)
        reward = jax.lax.stop_gradient(self.reward(params["frozen"], states[-1], cond))
        log_prob = self.base.trajectory_log_prob(merged, states, cond, options) / math.prod(shape)
        return -(advantages(reward, self.group_size) * log_prob).mean(), reward


def advantages(reward: jax.Array, group_size: int) -> jax.Array:
    """Rewards (B,), each group in a row, minus the group's mean and divided by its standard deviation."""
    rows = reward.reshape(-1, group_size)
    return ((rows - rows.mean(axis=1, keepdims=True)) / (rows.std(axis=1, keepdims=True) + LEAST_STD)).reshape(-1)
