"""A word of its own in the tables of embeddings, the one part of a run that has a row for each token."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

EMBEDDING = "conditioner/embedding/embedding"  # end of the path of a table


def is_table(path: str) -> bool:
    """Whether a path is that of a table of embeddings, (vocabulary, D)."""
    return path.endswith(EMBEDDING)


def set_word(
    table: jax.Array, ids: Sequence[int], start: Sequence[int], change: jax.Array | float, own: Sequence[int] = ()
) -> jax.Array:
    """Returns a table in which a word has other embeddings.

    Args:
      table: (vocabulary, D).
      ids: of the word.
      start: ids whose mean embedding it starts from; none for embeddings of its own.
      change: what is added to that, (ids, D).
      own: ids of these where they are others than `ids`.
    """
    table = jnp.asarray(table)
    first = table[np.asarray(start)].mean(axis=0, keepdims=True) if len(start) else table[np.asarray(own or ids)]
    return table.at[np.asarray(ids)].set(first + change)
