"""Guidance: leading a prediction away from a worse one.

All forms are `conditions.guide`: with the negative or empty conditions as the worse prediction it is classifier-free
guidance (Ho & Salimans 2207.12598, eq. 6), with a worse network it is autoguidance (Karras et al. 2406.02507).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from zoo.conditions import Cond, duplicate, guide
from zoo.errors import UserError

# A network as a function of z (B, ...), t (B,) and conditions (B, ...) -> raw prediction (B, ...).
Network = Callable[[jax.Array, jax.Array, Cond], jax.Array]


def scale_at(t: jax.Array, scale: float, interval: tuple[float, float]) -> jax.Array:
    """The guidance scale inside the interval of times, 0 outside (Kynkäänniemi et al. 2404.07724)."""
    low, high = interval
    if low > high:
        raise UserError(f"a guidance interval goes from the earlier time to the later, got {interval}")
    return jnp.where((t >= low) & (t <= high), scale, 0.0)


def classifier_free(network: Network, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> Network:
    """Guides away from the negative or empty conditions, as one doubled batch."""

    def guided(z, t, cond):
        good, bad = jnp.split(network(jnp.concatenate([z, z]), jnp.concatenate([t, t]), duplicate(cond)), 2)
        return guide(good, bad, _expanded(scale_at(t, scale, interval), z))

    return guided


def autoguidance(network: Network, worse: Network, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> Network:
    """Guides away from a worse network under the same conditions."""

    def guided(z, t, cond):
        return guide(network(z, t, cond), worse(z, t, cond), _expanded(scale_at(t, scale, interval), z))

    return guided


def _expanded(scale: jax.Array, z: jax.Array) -> jax.Array:
    return scale.reshape((-1,) + (1,) * (z.ndim - 1))
