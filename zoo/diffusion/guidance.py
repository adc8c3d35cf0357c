"""Guidance: leading a prediction away from a worse one.

All forms are `conditions.guide`: with the negative or empty conditions as the worse prediction it is classifier-free
guidance (Ho & Salimans 2207.12598, eq. 6), with a worse network it is autoguidance (Karras et al. 2406.02507).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zoo.conditions import Cond, duplicate, guide
from zoo.errors import UserError

# A network as a function of z (B, ...), a scalar t and conditions (B, ...) -> raw prediction (B, ...).
Network = Callable[[jax.Array, jax.Array, Cond], jax.Array]
ALL_TIMES = (0.0, 1.0)


def is_within(t: Any, interval: tuple[float, float]) -> Any:
    """Whether guidance acts at t, a number or array (Kynkäänniemi et al. 2404.07724); the ends belong to the interval.

    Args:
      t: times.
      interval: the earliest and the latest time.

    Raises:
      UserError: the interval ends before it starts.
    """
    low, high = interval
    if low > high:
        raise UserError(f"a guidance interval goes from the earlier time to the later, got {interval}")
    return (t >= low) & (t <= high)


def classifier_free(network: Network, scale: float, interval: tuple[float, float] = ALL_TIMES) -> Network:
    """Guides away from the negative or empty conditions, as one doubled batch."""

    def guided(z, t, cond):
        good, bad = jnp.split(network(jnp.concatenate([z, z]), t, duplicate(cond)), 2)
        return guide(good, bad, scale)

    return _within(interval, guided, network)


def autoguidance(network: Network, worse: Network, scale: float, interval: tuple[float, float] = ALL_TIMES) -> Network:
    """Guides away from a worse network under the same conditions."""
    return _within(interval, lambda z, t, cond: guide(network(z, t, cond), worse(z, t, cond), scale), network)


def _within(interval: tuple[float, float], guided: Network, plain: Network) -> Network:
    """Guided within the interval; outside, the other evaluation is not made."""
    if tuple(interval) == ALL_TIMES:
        return guided
    return lambda z, t, cond: jax.lax.cond(is_within(t, interval), guided, plain, z, t, cond)
