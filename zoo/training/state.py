"""The state that training carries from step to step, and the step itself."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from zoo.method import Axis, Batch, Method
from zoo.training.optim import Optimizer


@flax.struct.dataclass
class State:
    """All that a step changes. Random numbers and data are functions of (seed, step) and need no place here.

    Attributes:
      step: int32, steps taken, skipped ones included.
      params: a tree for each player.
      optimizer: optax's state for each player.
      ema: for each player a dict {half-life as text: averaged tree}.
      skipped: int32, updates of a player that were not taken: its metrics were not finite, or its gradient above its
        `skip_norm`.
      consecutive_nonfinite: int32, number of the latest steps with a metric not finite, without another between.
    """

    step: jax.Array
    params: dict[str, Any]
    optimizer: dict[str, Any]
    ema: dict[str, dict[str, Any]]
    skipped: jax.Array
    consecutive_nonfinite: jax.Array

    def start_from(self, params: Mapping[str, Any]) -> "State":
        """Returns this state, of no steps, with other parameters of some players and averages equal to them."""
        ema = {
            p: {name: jax.tree.map(jnp.copy, own) for name in self.ema[p]} for p, own in params.items() if p in self.ema
        }
        return dataclasses.replace(self, params=self.params | dict(params), ema=self.ema | ema)


def create(method: Method, optimizers: Mapping[str, Optimizer], rng: jax.Array, batch: Batch) -> State:
    """Returns the state before the first step."""
    params = method.init(rng, batch)
    opt = {p: optimizers[p].init(params[p]) for p in method.players}
    ema = {p: {name: jax.tree.map(jnp.copy, params[p]) for name in optimizers[p].ema_names} for p in method.players}
    zero = jnp.zeros((), jnp.int32)
    return State(zero, params, opt, ema, jnp.copy(zero), jnp.copy(zero))


def split_seed(seed: int) -> jax.Array:
    """Returns two keys: for the initial parameters, and for the steps."""
    return jax.random.split(jax.random.key(seed))


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity: a jitted function must have a hash
class Step:
    """The training step: steps(state, frozen, batches) -> (state, metrics), for use under jit or pmap.

    Attributes:
      method: family that is trained.
      optimizers: optimizer of each player.
      total_steps: steps of the whole run, for schedules.
      seed: seed of the run.
      axis: devices that train together.
      accumulate: parts in which a device takes its batch, one after the other.
    """

    method: Method
    optimizers: Mapping[str, Optimizer]
    total_steps: int
    seed: int
    axis: Axis = Axis()
    accumulate: int = 1

    def __call__(self, state: State, frozen: Mapping[str, Any], batches: Batch) -> tuple[State, dict[str, jax.Array]]:
        """Scans over the leading axis of the batches; each metric gets that axis too.

        Args:
          state: state before the first of these steps.
          frozen: parameters of the frozen networks by name.
          batches: (K, B, ...).
        """
        return jax.lax.scan(functools.partial(self.one, frozen), state, batches)

    def one(self, frozen: Mapping[str, Any], state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        """Updates every player in turn, see `update_player`."""
        _, key = split_seed(self.seed)
        rng = jax.random.fold_in(jax.random.fold_in(key, state.step), self.axis.index)
        new, metrics = state, {}
        for i, player in enumerate(self.method.players):
            new, more = self.update_player(player, new, frozen, batch, jax.random.fold_in(rng, i))
            metrics |= more
        count = (state.consecutive_nonfinite + 1) * ~all_finite(metrics)
        return dataclasses.replace(new, step=state.step + 1, consecutive_nonfinite=count), metrics

    def update_player(
        self, player: str, state: State, frozen: Mapping[str, Any], batch: Batch, rng: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """Gradient -> mean over devices -> clip -> optimizer -> averages, for one player.

        The player is skipped before its optimizer, on all devices, where a metric or the norm of its gradient is not
        finite, or the norm is too large.
        """
        optimizer = self.optimizers[player]
        grads, metrics = self.axis.pmean(self.gradient(player, state, frozen, batch, rng))
        rate, norm = optimizer.schedule(self.total_steps)(state.step), optax.global_norm(grads)
        metrics = metrics | {"grad_norm": norm}

        def update(params, opt, ema):
            updates, opt = optimizer.update(grads, opt, params, rate)
            params = optax.apply_updates(params, updates)
            averaged = {
                name: optimizer.average(half_life, state.step, ema[name], params)
                for name, half_life in optimizer.ema_names.items()
            }
            return params, opt, averaged, optax.global_norm(updates)

        def skip(params, opt, ema):
            return params, opt, ema, jnp.zeros_like(norm)

        good = all_finite(metrics) & ((norm <= optimizer.skip_norm) if optimizer.skip_norm else True)
        own = state.params[player], state.optimizer[player], state.ema[player]
        params, opt, ema, update_norm = jax.lax.cond(good, update, skip, *own)  # two states would need twice the memory
        metrics = metrics | {"update_norm": update_norm, "learning_rate": rate}
        new = dataclasses.replace(
            state,
            params=state.params | {player: params},
            optimizer=state.optimizer | {player: opt},
            ema=state.ema | {player: ema},
            skipped=state.skipped + ~good,
        )
        return new, {f"{player}/{name}": value for name, value in metrics.items()}

    def gradient(
        self, player: str, state: State, frozen: Mapping[str, Any], batch: Batch, rng: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """This device's mean gradient and metrics, the batch taken in `accumulate` parts one after the other."""
        own = state.params[player]

        def loss(own, part, rng):
            params = {**state.params, player: own, "frozen": frozen}
            value, output = self.method.loss(player, params, part, rng, self.axis, state.step)
            return value, output.metrics

        grad = jax.grad(loss, has_aux=True)
        if self.accumulate == 1:
            return grad(own, batch, rng)
        parts = split_batch(batch, self.accumulate)
        first = jax.eval_shape(grad, own, jax.tree.map(lambda x: x[0], parts), rng)

        def add(total, inputs):
            index, part = inputs
            new = grad(own, part, jax.random.fold_in(rng, index))
            return jax.tree.map(lambda a, b: a + b / self.accumulate, total, new), None

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
        return jax.lax.scan(add, zeros, (jnp.arange(self.accumulate), parts))[0]


def split_batch(batch: Batch, count: int) -> Batch:
    """Splits a batch (B, ...) into parts, (count, B / count, ...)."""
    return jax.tree.map(lambda x: x.reshape((count, -1) + x.shape[1:]), batch)


def all_finite(metrics: Mapping[str, jax.Array]) -> jax.Array:
    """Whether no metric is infinite or NaN."""
    return jnp.all(jnp.array([jnp.isfinite(value) for value in metrics.values()]))
