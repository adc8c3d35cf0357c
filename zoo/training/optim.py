"""One player's optimizer: AdamW with a schedule, clipping, weight decay and freezing by regular expression."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zoo.config import build
from zoo.errors import UserError, check_ranges, unknown_name_error
from zoo.trees import matches

STEPS_OF_AVERAGE = 1000  # moves of an average within a half-life, at most


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Optimizer of one player; the fields are the keys of `config.players.<player>`.

    Attributes:
      learning_rate: the highest.
      warmup_steps: rises linearly from 0 over these.
      decay: "constant", "linear" or "cosine", to 0 at the last step.
      decay_start: share of all steps after which the decay begins.
      betas: of Adam.
      weight_decay: decoupled, on parameters whose path matches `weight_decay_on`.
      clip_norm: largest norm of the gradient; larger ones are scaled down to it.
      skip_norm: an update whose gradient has a larger norm is not taken (VDVAE 2011.10650); 0 takes all.
      freeze: parameters whose path matches stay as they are and get no optimizer state; "" freezes none.
      ema_half_lives: averages of the parameters to keep, by the steps in which a weight halves.
      ema_rampup: no half-life exceeds this share of the steps so far, so that the start is forgotten (EDM2
        2312.02696, section 3).
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 100
    decay: str = "linear"
    decay_start: float = 0.5
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    weight_decay_on: str = "kernel$"
    clip_norm: float = 1.0
    skip_norm: float = 0.0
    freeze: str = ""
    ema_half_lives: tuple[float, ...] = (50, 500)
    ema_rampup: float = 0.1

    def __post_init__(self):
        positive = "(0, inf)"
        check_ranges(self, learning_rate="[0, inf)", warmup_steps="[0, inf)", decay_start="[0, 1]", betas="[0, 1)")
        check_ranges(self, weight_decay="[0, inf)", clip_norm=positive, skip_norm="[0, inf)")
        check_ranges(self, ema_half_lives=positive, ema_rampup=positive)
        if len(self.betas) != 2:
            raise UserError(f"betas are the two of Adam, got {tuple(self.betas)}")

    def schedule(self, total_steps: int) -> Callable[[jax.Array], jax.Array]:
        """Step (int32) -> learning rate (float32)."""
        shapes = {
            "constant": lambda done: jnp.ones_like(done),
            "linear": lambda done: 1 - done,
            "cosine": lambda done: 0.5 + 0.5 * jnp.cos(jnp.pi * done),
        }
        if self.decay not in shapes:
            raise unknown_name_error("decay", self.decay, shapes)

        def rate(step):
            warm = jnp.minimum(1.0, (step + 1) / max(self.warmup_steps, 1))
            done = jnp.clip((step / total_steps - self.decay_start) / max(1 - self.decay_start, 1e-9), 0.0, 1.0)
            return self.learning_rate * warm * shapes[self.decay](done)

        return rate

    def init(self, params: Any) -> Any:
        """Optax's state before the first step; raises UserError where a regular expression matches no path."""
        return self._directions(params).init(params)

    def update(self, gradients: Any, state: Any, params: Any, rate: jax.Array) -> tuple[Any, Any]:
        """Returns what to add to the parameters at this learning rate, and the next state."""
        directions, state = self._directions(params).update(gradients, state, params)
        return jax.tree.map(lambda d: -rate * d, directions), state

    def _directions(self, params: Any) -> optax.GradientTransformation:
        """AdamW without its learning rate: that is a function of the run's step, not of the updates taken."""
        steps = [optax.clip_by_global_norm(self.clip_norm), optax.scale_by_adam(*self.betas)]
        if self.weight_decay:
            mask = functools.partial(matches, pattern=self.weight_decay_on)
            steps.append(optax.add_decayed_weights(self.weight_decay, mask))
        if not self.freeze:
            return optax.chain(*steps)
        labels = jax.tree.map(lambda frozen: "frozen" if frozen else "learns", matches(params, self.freeze))
        return optax.partition({"learns": optax.chain(*steps), "frozen": optax.set_to_zero()}, labels)

    def average(self, half_life: float, step: jax.Array, old: Any, new: Any) -> Any:
        """Moves an average of parameters towards the new ones by `ema_rate`."""
        rate = self.ema_rate(half_life, step)
        return jax.tree.map(lambda o, n: o + rate * (n - o), old, new)

    def ema_rate(self, half_life: float, step: jax.Array) -> jax.Array:
        """Share of the new parameters in an average at `step`.

        An average over thousands of steps moves once in k of them, by the share of k: float32 rounds away smaller
        moves.
        """
        length = jnp.clip(self.ema_rampup * step, 1e-3, half_life)
        k = jnp.maximum(1.0, jnp.floor(length / STEPS_OF_AVERAGE))
        return jnp.where(step % k.astype(jnp.int32) == 0, -jnp.expm1(-math.log(2) * k / length), 0.0)

    @property
    def ema_names(self) -> dict[str, float]:
        """Half-lives by their names in a checkpoint. Raises UserError for two that are alike."""
        names = {f"{half_life:.12g}": float(half_life) for half_life in self.ema_half_lives}
        if len(names) < len(self.ema_half_lives):
            raise UserError(f"ema_half_lives {tuple(self.ema_half_lives)} has the same one twice: drop one")
        return names


def build_all(sections: Mapping[str, Mapping[str, Any]], players: Sequence[str]) -> dict[str, Optimizer]:
    """The optimizer of each player from `config.players`; a player without a section gets the defaults.

    Args:
      sections: keys of each player's optimizer.
      players: names of all players.

    Raises:
      UserError: a section for a player that does not exist, or an unknown key.
    """
    for name in sections:
        if name not in players:
            raise unknown_name_error("player", name, players)
    return {player: build(Optimizer, sections.get(player, {}), f"players.{player}") for player in players}
