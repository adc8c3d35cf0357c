"""Decoding one code after the other, in one compiled loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zoo.decoding.draws import draw
from zoo.method import fold_each


def decode(
    rng: jax.Array,
    codes: jax.Array,
    known: jax.Array,
    start: Any,
    next_logits: Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]],
) -> jax.Array:
    """Draws the codes of sequences from their joint distribution.

    Args:
      rng: a key for each sample, (B,).
      codes: int32 (B, N).
      known: which of them stay as they are, bool (B, N); the others are drawn.
      start: state before any code.
      next_logits: code before, (B,), number of the code, and state -> normalised logits (B, V), and the next state.

    Returns:
      int32 (B, N).
    """

    def step(carry, inputs):
        before, state = carry
        i, given, stays = inputs
        logits, state = next_logits(before, i, state)
        code = jnp.where(stays, given, draw(fold_each(rng, i), logits))
        return (code, state), code

    first = jnp.zeros(len(codes), jnp.int32)
    _, made = jax.lax.scan(step, (first, start), (jnp.arange(codes.shape[1]), codes.T, known.T))
    return made.T
