"""Draws of codes from logits, one key a sample. All functions are pure, and arrays are (B, ..., V) over V codes."""

import jax
import jax.numpy as jnp


def adjusted(logits: jax.Array, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """Returns the logits of the distribution that is drawn from, normalised.

    Args:
      logits: (..., V).
      temperature: divides the logits; at 0 the likeliest code has all of the probability.
      top_k: number of the likeliest codes that stay; 0 for all.
      top_p: the likeliest codes stay whose probabilities before theirs sum to less than this (1904.09751); 1 for all.
    """
    if not temperature:
        return certain(logits.argmax(axis=-1), logits.shape[-1])
    logits = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jax.nn.log_softmax(jnp.where(logits >= least, logits, -jnp.inf))
    if top_p < 1:
        descending = -jnp.sort(-logits, axis=-1)
        before = jnp.cumsum(jnp.exp(descending), axis=-1) - jnp.exp(descending)
        least = jnp.min(jnp.where(before < top_p, descending, jnp.inf), axis=-1, keepdims=True)
        logits = jax.nn.log_softmax(jnp.where(logits >= least, logits, -jnp.inf))
    return logits


def certain(ids: jax.Array, codes: int) -> jax.Array:
    """Logits of which all probability is on one of so many codes: int32 (...) -> (..., codes)."""
    return jnp.where(jax.nn.one_hot(ids, codes, dtype=bool), 0.0, -jnp.inf)


def draw(rng: jax.Array, logits: jax.Array) -> jax.Array:
    """Codes of logits (B, ..., V), a key for each of B: int32 (B, ...)."""
    return jax.vmap(jax.random.categorical)(rng, logits).astype(jnp.int32)
