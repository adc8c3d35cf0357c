"""Conditions of a sample: their empty values, how training drops them, how guidance uses them.

`cond` maps names of conditions to arrays (B, ...). It may have one more entry, `negative`: conditions that guidance
leads away from, in place of the empty ones.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PAD, END = 0, 1  # token ids; every caption ends in END, and PAD follows it
NEGATIVE = "negative"

Cond = Mapping[str, Any]
# Conditions that a stage of a cascade makes of images, see `wrappers.upsampling`; they are never dropped.
GIVEN_TO_NETWORKS = "given", "level", "origin"
GIVEN = "low_res", "known", "expected", *GIVEN_TO_NETWORKS


class Condition(NamedTuple):
    """One kind of condition.

    Attributes:
      key: key of its value in an item of the data.
      encode: called with the values of B items, None for an item without one, and with a function from texts to tokens;
        returns an array (B, ...).
      empty: array of the condition -> array of its empty value, of the same shape.
      drops: whether training drops it. Those of one sample are dropped together: they share one coin.
    """

    key: str
    encode: Callable[[Sequence[Any], Callable], Any]
    empty: Callable[[jax.Array], jax.Array]
    drops: bool


CONDITIONS = {
    "tokens": Condition(
        key="text",
        encode=lambda texts, tokenize: tokenize([text or "" for text in texts]),
        empty=lambda x: jnp.zeros_like(x).at[..., 0].set(END),
        drops=True,
    ),
    "frame_rate": Condition(  # frames/s; empty is 0, of one frame
        key="frame_rate",
        encode=lambda rates, tokenize: np.array([rate or 0.0 for rate in rates], np.float32),
        empty=jnp.zeros_like,
        drops=False,
    ),
}


def of_item(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the conditions that an item of the data has."""
    return tuple(name for name, condition in CONDITIONS.items() if condition.key in item)


def encode(these: Sequence[str], items: Sequence[Mapping[str, Any]], tokenize: Callable) -> dict[str, Any]:
    """Returns the conditions of items, (B, ...).

    Args:
      these: names of the conditions.
      items: B items of the data, or parts of some.
      tokenize: B texts -> tokens (B, L).
    """
    values = lambda name: [item.get(CONDITIONS[name].key) for item in items]
    return {name: CONDITIONS[name].encode(values(name), tokenize) for name in these}


def names(cond: Cond) -> list[str]:
    """Names of the conditions, without `negative`."""
    return [name for name in cond if name != NEGATIVE]


def empty(cond: Cond) -> dict[str, jax.Array]:
    """Conditions of the unconditional model: those that training drops have their empty values."""
    drops = lambda name: name not in GIVEN and CONDITIONS[name].drops
    return {name: CONDITIONS[name].empty(cond[name]) if drops(name) else cond[name] for name in names(cond)}


def drop(rng: jax.Array, cond: Cond, share: float) -> dict[str, jax.Array]:
    """Replaces the conditions of a random share of the samples by `empty` ones."""
    count = len(cond[names(cond)[0]])
    dropped = jax.random.bernoulli(rng, share, (count,))
    return where(dropped, empty(cond), cond)


def where(chosen: jax.Array, these: Cond, others: Cond) -> dict[str, jax.Array]:
    """Conditions of each sample from `these` where chosen (B,), else from `others`."""
    pick = lambda a, b: jnp.where(chosen.reshape(-1, *(1,) * (a.ndim - 1)), a, b)
    return {name: pick(these[name], others[name]) for name in names(others)}


def duplicate(cond: Cond) -> dict[str, jax.Array]:
    """Conditions for one doubled batch (2 B, ...): the samples' own, then their negative or empty ones."""
    other = empty(cond) | dict(cond.get(NEGATIVE, {}))
    return {name: jnp.concatenate([cond[name], other[name]]) for name in names(cond)}


def guide(good: jax.Array, bad: jax.Array, scale: float | jax.Array) -> jax.Array:
    """Leads `good` away from `bad`: good + scale (good - bad) (2207.12598, eq. 6); 0 is no guidance."""
    return good + scale * (good - bad)
