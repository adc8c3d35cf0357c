"""The probability-flow ODE dz/dt = v(z, t) from data to noise: the noise of an image, and how probable it is.

A fixed grid and the classical rule of order four: each example is carried by itself, whatever is beside it, and how
far a result is from the ODE's own is seen by doubling the steps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zoo.distributions import normal_log_prob, sum_except_batch
from zoo.errors import UserError, unknown_name_error

Velocity = Callable[[jax.Array, jax.Array], jax.Array]  # z (B, ...), scalar t -> like z
# Velocity, z, t -> the velocity (B, ...) and its divergence (B,), the trace of dv/dz.
Divergence = Callable[[Velocity, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

OFFSET = 0.02
NODES, WEIGHTS = (0.0, 0.5, 0.5, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)  # of the Runge-Kutta rule


def times_from(start: float, end: float, steps: int) -> jax.Array:
    """Returns (steps + 1,) times from `start` up to `end`: t + OFFSET grows by one factor.

    Near the data an image is seen through little noise and v changes over times as short as t: steps are small there.
    """
    if steps < 1:
        raise UserError(f"an ODE needs at least 1 step, got steps={steps}")
    return jnp.geomspace(start + OFFSET, end + OFFSET, steps + 1) - OFFSET


def integrate(derivative: Callable[[Any, jax.Array], Any], state: Any, times: jax.Array) -> Any:
    """Carries a tree along d(state)/dt = derivative(state, t) from times[0] to times[-1].

    The classical Runge-Kutta rule (Kutta 1901): fourth order, four evaluations a step, which are a loop so that the
    derivative is compiled once.
    """

    def ahead(state, slope, h):
        return jax.tree.map(lambda y, dy: y + h * dy, state, slope)

    def step(state, ends):
        t, s = ends
        h = s - t

        def stage(carry, node):
            slope, total = carry
            where, weight = node
            slope = derivative(ahead(state, slope, where * h), t + where * h)
            return (slope, ahead(total, slope, weight * h)), None

        start = jax.tree.map(jnp.zeros_like, state), state
        (_, state_after), _ = jax.lax.scan(stage, start, (jnp.array(NODES), jnp.array(WEIGHTS)))
        return state_after, None

    return jax.lax.scan(step, state, (times[:-1], times[1:]))[0]


def exact_divergence(velocity: Velocity, z: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The whole trace, one forward derivative a dimension. `velocity` must treat the examples apart."""
    shape, dimensions = z.shape[1:], z[0].size

    def entry(index):
        direction = jax.nn.one_hot(index, dimensions).reshape(shape)
        _, change = jax.jvp(lambda z: velocity(z, t), (z,), (jnp.broadcast_to(direction, z.shape),))
        return sum_except_batch(direction * change)  # (B,)

    return velocity(z, t), jax.lax.map(entry, jnp.arange(dimensions)).sum(axis=0)


def hutchinson(probes: jax.Array) -> Divergence:
    """The trace as the mean of e . (dv/dz) e over random e, without bias (FFJORD 1810.01367, eq. 7).

    Signs have the smallest variance of all e with independent entries, none on the diagonal. They stay the same along
    the path, so that what is integrated is smooth.

    Args:
      probes: (P, B, ...), entries -1 or 1.
    """

    def divergence(velocity, z, t):
        v, push = jax.linearize(lambda z: velocity(z, t), z)
        return v, jnp.mean(jax.lax.map(lambda e: sum_except_batch(e * push(e)), probes), axis=0)

    return divergence


def draw_probes(rng: jax.Array, count: int, shape: tuple[int, ...]) -> jax.Array:
    """Random signs for `hutchinson`, (count, B, *shape), from a key each (B,)."""
    if count < 1:
        raise UserError(f"Hutchinson's trace needs at least 1 probe, got probes={count}")
    return jnp.moveaxis(jax.vmap(lambda key: jax.random.rademacher(key, (count, *shape), jnp.float32))(rng), 1, 0)


def get_divergence(name: str, rng: jax.Array, probes: int, shape: tuple[int, ...]) -> Divergence:
    """The divergence called `name`: "exact", or "hutchinson" of so many probes an example."""
    if name not in ("exact", "hutchinson"):
        raise unknown_name_error("trace", name, ("exact", "hutchinson"))
    return exact_divergence if name == "exact" else hutchinson(draw_probes(rng, probes, shape))


def log_prob(velocity: Velocity, divergence: Divergence, z: jax.Array, times: jax.Array) -> jax.Array:
    """Returns log p(z) at times[0] of an ODE from standard Gaussian noise at times[-1], in nats, (B,) float32.

    Instantaneous change of variables (FFJORD 1810.01367, eq. 3; Song et al. 2011.13456, eq. 39):

        log p_0(z_0) = log N(z_1; 0, 1) + integral of div v(z_t, t) dt from t = 0 to 1
    """

    def derivative(state, t):
        return divergence(velocity, state[0], t)

    noise, change = integrate(derivative, (z, jnp.zeros(len(z))), times)
    return sum_except_batch(normal_log_prob(noise)) + change
