"""Drafts without a network: codes that were seen in training, or in the model's last call.

A draft need not be good, see `decoding.speculative`: what these guess wrong costs time, and nothing else.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.decoding import speculative
from zoo.decoding.draws import certain


class Table(NamedTuple):
    """The likeliest code in each context: pairs of the code before and the one above, as one number.

    Attributes:
      contexts: uint32 (M,), ascending.
      codes: int32 (M,), the code that follows most often.
    """

    contexts: Any
    codes: Any


@dataclasses.dataclass(frozen=True)
class NGrams:
    """The code that stood most often between the same neighbours; its parameters are a `Table`.

    Attributes:
      codes: number of kinds of codes, V, at most 65,536.
    """

    codes: int

    def table(self, read: Callable[[], np.ndarray]) -> Table:
        """Counts the codes that `read` returns, (M, T, h, w, c)."""
        codes = read()
        width = codes.shape[3] * codes.shape[4]
        flat = codes.reshape(len(codes), -1).astype(np.uint64)
        before, above = (np.pad(flat, ((0, 0), (n, 0)))[:, : flat.shape[1]] for n in (1, width))
        pairs = ((before * self.codes + above) * self.codes + flat).reshape(-1)
        pairs, counts = np.unique(pairs, return_counts=True)
        contexts = pairs // self.codes
        order = np.lexsort((-counts, contexts))  # of each context the most frequent first
        contexts, first = np.unique(contexts[order], return_index=True)
        return Table(contexts.astype(np.uint32), (pairs[order][first] % self.codes).astype(np.int32))

    def drafter(self, params: Table, cond: Any, shape: tuple[int, ...], length: int, options: Any):
        """See `Drafts.drafter`. In a context that was never seen the guess is the code before."""
        del cond, options
        width = shape[2] * shape[3]

        def guess(codes, number):
            at = lambda n: jnp.where(number >= n, speculative.read(codes, number - n, 1)[:, 0], 0)
            before, above = at(1), at(width)
            context = before.astype(jnp.uint32) * self.codes + above.astype(jnp.uint32)
            place = jnp.minimum(jnp.searchsorted(params.contexts, context), len(params.contexts) - 1)
            return jnp.where(params.contexts[place] == context, params.codes[place], before)

        return speculative.by_guess(guess, self.codes, length)


@dataclasses.dataclass(frozen=True)
class Search:
    """The next codes of that image of training which has most of the codes so far; its parameter is all of these.

    Attributes:
      codes: number of kinds of codes.
    """

    codes: int

    def table(self, read: Callable[[], np.ndarray]) -> np.ndarray:
        """The codes that `read` returns, (M, T, h, w, c), as sequences (M, N)."""
        codes = read()
        return codes.reshape(len(codes), -1)

    def drafter(self, params: jax.Array, cond: Any, shape: tuple[int, ...], length: int, options: Any):
        """See `Drafts.drafter`."""
        del cond, shape, options

        def log_q_of_all(codes, number):
            size = params.shape[1]
            drawn = jnp.arange(size) < number[:, None]  # (B, N)
            alike = lambda row, drawn: ((params == row) & drawn).sum(axis=1).argmax()
            best = params[jax.vmap(alike)(codes[:, :size], drawn)].astype(jnp.int32)  # (B, N)
            return certain(speculative.read(jnp.pad(best, ((0, 0), (0, length))), number, length), self.codes)

        return speculative.at_once(log_q_of_all)


@dataclasses.dataclass(frozen=True)
class LastCall:
    """See `speculative.by_last_round`; it has no parameters.

    Attributes:
      codes: number of kinds of codes.
    """

    codes: int

    def table(self, read: Callable[[], np.ndarray]) -> dict[str, Any]:
        """Reads and returns nothing."""
        del read
        return {}

    def drafter(self, params: Any, cond: Any, shape: tuple[int, ...], length: int, options: Any):
        """See `Drafts.drafter`."""
        del params, shape, options
        return speculative.by_last_round(len(jax.tree.leaves(dict(cond))[0]), self.codes, length)
