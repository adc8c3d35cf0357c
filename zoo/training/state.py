"""What training carries from step to step, and the step itself."""

import functools
from collections.abc import Callable, Mapping
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
      step: int32, steps taken, skipped ones counted in.
      params: a tree for each player, and those that the method keeps as they are.
      optimizer: optax's state for each player.
      ema: for each player a dict {half-life as text: averaged tree}.
      skipped: int32, updates not taken: those of a step that was not finite, and a player's above its `skip_norm`.
      bad_in_a_row: int32, how many of the latest steps were not finite without a finite one between.
    """

    step: jax.Array
    params: dict[str, Any]
    optimizer: dict[str, Any]
    ema: dict[str, dict[str, Any]]
    skipped: jax.Array
    bad_in_a_row: jax.Array

    def start_from(self, params: Mapping[str, Any]) -> "State":
        """This state, where no step was taken, with the parameters of some players, and with averages of those."""
        ema = {
            p: {name: jax.tree.map(jnp.copy, own) for name in self.ema[p]} for p, own in params.items() if p in self.ema
        }
        return self.replace(params=self.params | params, ema=self.ema | ema)


def create(method: Method, optimizers: Mapping[str, Optimizer], rng: jax.Array, batch: Batch) -> State:
    """Returns the state before the first step."""
    params = method.init(rng, batch)
    opt = {p: optimizers[p].init(params[p]) for p in method.players}
    ema = {
        p: {f"{h:g}": jax.tree.map(jnp.copy, params[p]) for h in optimizers[p].ema_half_lives} for p in method.players
    }
    zero = jnp.zeros((), jnp.int32)
    return State(zero, params, opt, ema, jnp.copy(zero), jnp.copy(zero))


def split_seed(seed: int) -> jax.Array:
    """The keys of a run's beginning and of its steps."""
    return jax.random.split(jax.random.key(seed))


def gradient(
    method: Method,
    player: str,
    params: Mapping[str, Any],
    batch: Batch,
    rng: jax.Array,
    axis: Axis,
    step: jax.Array,
    accumulate: int,
) -> tuple[Any, dict[str, jax.Array]]:
    """This device's mean gradient and metrics, the batch taken in `accumulate` parts one after the other."""

    def loss(own, part, rng):
        value, output = method.loss(player, {**params, player: own}, part, rng, axis, step)
        return value, output.metrics

    grad = jax.grad(loss, has_aux=True)
    if accumulate == 1:
        return grad(params[player], batch, rng)
    parts = jax.tree.map(lambda x: x.reshape((accumulate, -1) + x.shape[1:]), batch)
    first = jax.eval_shape(grad, params[player], jax.tree.map(lambda x: x[0], parts), rng)

    def add(total, inputs):
        index, part = inputs
        new = grad(params[player], part, jax.random.fold_in(rng, index))
        return jax.tree.map(lambda a, b: a + b / accumulate, total, new), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first)
    return jax.lax.scan(add, zeros, (jnp.arange(accumulate), parts))[0]


def update_player(
    method: Method,
    player: str,
    optimizer: Optimizer,
    total_steps: int,
    state: State,
    batch: Batch,
    rng: jax.Array,
    axis: Axis,
    accumulate: int,
) -> tuple[State, dict[str, jax.Array]]:
    """Gradient -> mean over devices -> clip -> optimizer -> averages, for one player."""
    params = state.params[player]
    grads, metrics = axis.pmean(gradient(method, player, state.params, batch, rng, axis, state.step, accumulate))
    rate = optimizer.schedule(total_steps)(state.step)
    updates, opt = optimizer.update(grads, state.optimizer[player], params, rate)
    params = optax.apply_updates(params, updates)

    def average(half_life, old):
        keep = optimizer.ema_decay(half_life, state.step)
        return jax.tree.map(lambda o, n: o + (1 - keep) * (n - o), old, params)

    ema = {name: average(float(name), old) for name, old in state.ema[player].items()}
    norm = optax.global_norm(grads)
    metrics = metrics | {
        "grad_norm": norm,
        "update_norm": optax.global_norm(updates),
        "learning_rate": rate,
    }
    new = state.replace(
        params=state.params | {player: params}, optimizer=state.optimizer | {player: opt}, ema=state.ema | {player: ema}
    )
    if optimizer.skip_norm:
        new = choose(norm <= optimizer.skip_norm, new, state.replace(skipped=state.skipped + 1))
    return new, {f"{player}/{name}": value for name, value in metrics.items()}


def choose(good: jax.Array, new: State, old: State) -> State:
    """One of two states."""
    return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)


def train_step(
    method: Method,
    optimizers: Mapping[str, Optimizer],
    total_steps: int,
    key: jax.Array,
    axis: Axis,
    accumulate: int,
    state: State,
    batch: Batch,
) -> tuple[State, dict[str, jax.Array]]:
    """One step of every player in turn. An update that is not finite is not taken, on any device."""
    rng = jax.random.fold_in(jax.random.fold_in(key, state.step), axis.index)
    new, metrics = state, {}
    for i, player in enumerate(method.players):
        new, more = update_player(
            method, player, optimizers[player], total_steps, new, batch, jax.random.fold_in(rng, i), axis, accumulate
        )
        metrics |= more
    good = jnp.all(jnp.array([jnp.isfinite(value) for value in metrics.values()]))
    new = choose(good, new, state.replace(skipped=state.skipped + 1))
    bad = 1 - good.astype(jnp.int32)
    return new.replace(step=state.step + 1, bad_in_a_row=(state.bad_in_a_row + 1) * bad), metrics


def make_step(
    method: Method, optimizers: Mapping[str, Optimizer], total_steps: int, seed: int, axis: Axis, accumulate: int = 1
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """Returns steps(state, batches) -> (state, metrics): a scan over the leading axis of the batches and metrics."""
    _, key = split_seed(seed)
    one = functools.partial(train_step, method, optimizers, total_steps, key, axis, accumulate)
    return lambda state, batches: jax.lax.scan(one, state, batches)
