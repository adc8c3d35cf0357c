"""Guidance: pushing a prediction away from a worse one.

All forms are one formula, `good + scale (good - bad)`: with the empty caption as the worse prediction it is
classifier-free guidance (Ho & Salimans 2207.12598, eq. 6), with a worse network it is autoguidance (Karras et al.
2406.02507). `scale = 0` is the plain conditional model.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from zoo.errors import BadInput

# A network as a function of (z (B, ...), t (B,), tokens (B, L)) -> raw prediction (B, ...).
Network = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def scale_at(t: jax.Array, scale: float, interval: tuple[float, float]) -> jax.Array:
    """The guidance scale inside the interval of times, 0 outside (Kynkäänniemi et al. 2404.07724)."""
    low, high = interval
    if low > high:
        raise BadInput(f"a guidance interval goes from the earlier time to the later, got {interval}")
    return jnp.where((t >= low) & (t <= high), scale, 0.0)


def classifier_free(
    network: Network, empty_tokens: jax.Array, scale: float, interval: tuple[float, float] = (0.0, 1.0)
) -> Network:
    """Guides away from the empty caption (L,), as one doubled batch."""

    def guided(z, t, tokens):
        empty = jnp.broadcast_to(empty_tokens, tokens.shape)
        both = network(jnp.concatenate([z, z]), jnp.concatenate([t, t]), jnp.concatenate([tokens, empty]))
        good, bad = jnp.split(both, 2)
        weight = scale_at(t, scale, interval).reshape((-1,) + (1,) * (z.ndim - 1))
        return good + weight * (good - bad)

    return guided


def autoguidance(network: Network, worse: Network, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> Network:
    """Guides away from a worse network that sees the same caption."""

    def guided(z, t, tokens):
        good = network(z, t, tokens)
        weight = scale_at(t, scale, interval).reshape((-1,) + (1,) * (z.ndim - 1))
        return good + weight * (good - worse(z, t, tokens))

    return guided
