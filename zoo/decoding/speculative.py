"""Speculative decoding: cheap guesses at the next codes, checked by the model in one call.

The codes have the distribution of `autoregressive.decode`, whatever the guesses (2211.17192, 2302.01318); with Jacobi's
iteration they are the very codes that it draws. All functions are pure; arrays are of B samples, N codes of V kinds and
drafts of K codes, and samples advance each by itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from zoo.decoding.draws import certain, draw
from zoo.method import fold_each, split_each

JACOBI = "jacobi"  # stands for `jacobi` where a drafter is named


class Draft(NamedTuple):
    """Guesses at the next codes.

    Attributes:
      codes: int32 (B, K).
      log_q: logarithm of the distribution that each was drawn from, given the codes before it, (B, K, V).
    """

    codes: jax.Array
    log_q: jax.Array


class Drafter(NamedTuple):
    """A source of drafts.

    Attributes:
      start: state before any code.
      draw: a key for each sample, codes (B, N), number of those that are drawn, (B,), and state -> draft, and state.
        The codes after those may be anything.
      learn: `log_p` of `couple` and its count -> state, from the state after `draw`.
    """

    start: Any
    draw: Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[Draft, Any]]
    learn: Callable[[jax.Array, jax.Array, Any], Any] = lambda log_p, count, state: state


class Verify(Protocol):
    """The model, with a K of its own."""

    def __call__(self, codes: jax.Array, number: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """Codes (B, ...), number of those that are drawn, (B,), and state -> log_p (B, K + 1, V), and state.

        `log_p[:, i]` is normalised: the distribution of code number + i given all codes before it.
        """
        ...


def couple(rng: jax.Array, draft: Draft, log_p: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Changes the codes of a draft, as few as can be, to ones of the model's distribution (2302.01318, algorithm 2).

    A code stays with the probability min(1, p / q), and else is drawn from what q lacks, max(p - q, 0): each pair of
    draws from q and p is equal as often as possible.

    Args:
      rng: a key for each sample, (B,).
      draft: guesses, and their distribution q.
      log_p: the model's distribution of each code given the draft's codes before it, and of the code after the draft,
        (B, K + 1, V).

    Returns:
      Codes int32 (B, K + 1), of which the last is drawn from p; and how many at the beginning stay, (B,). Those that
      stay and the one after them have the model's joint distribution.
    """
    rng_keep, rng_draw = split_each(rng)
    of_codes = lambda x: jnp.take_along_axis(x, draft.codes[..., None], axis=-1)[..., 0]
    u = jax.vmap(lambda key: jax.random.uniform(key, draft.codes.shape[1:]))(rng_keep)
    stays = jnp.log(u) < of_codes(log_p[:, :-1]) - of_codes(draft.log_q)
    q = jnp.exp(jnp.pad(draft.log_q, ((0, 0), (0, 1), (0, 0)), constant_values=-jnp.inf))
    rest = jnp.maximum(jnp.exp(log_p) - q, 0.0)
    rest = jnp.where(rest.sum(axis=-1, keepdims=True) > 0, rest, jnp.exp(log_p))  # p = q but for rounding
    drawn = draw(rng_draw, jnp.log(rest))
    codes = jnp.where(jnp.pad(stays, ((0, 0), (0, 1))), jnp.pad(draft.codes, ((0, 0), (0, 1))), drawn)
    return codes, jnp.cumprod(stays, axis=1).sum(axis=1, dtype=jnp.int32)


def decode(
    rng: jax.Array, codes: jax.Array, known: jax.Array, start: Any, verify: Verify, drafter: Drafter, length: int
) -> tuple[jax.Array, jax.Array]:
    """Draws the codes of sequences from their joint distribution, see `autoregressive.decode`.

    Args:
      rng: a key for each sample, (B,).
      codes: int32 (B, N).
      known: which of them stay as they are, bool (B, N); the others are drawn.
      start: the model's state before any code.
      verify: the model, with K = `length`.
      drafter: makes drafts of K codes.
      length: K, at least 1.

    Returns:
      int32 (B, N), and calls of the model until each sample was done, (B,).
    """

    def again(rng, codes, number, states):
        rng_draft, rng_couple = split_each(rng)
        draft, drafts = drafter.draw(rng_draft, codes, number, states[1])
        log_p, state = verify(write(codes, draft.codes, number), number, states[0])
        log_p = _given(log_p, *(read(x, number, length + 1) for x in (given, stays)))
        made, count = couple(rng_couple, draft, log_p)
        return made, count, (state, drafter.learn(log_p, count, drafts))

    given, stays = (jnp.pad(x, ((0, 0), (0, length + 1))) for x in (codes, known))
    return _rounds(rng, given, codes.shape[1], (start, drafter.start), again)


def jacobi(
    rng: jax.Array, codes: jax.Array, known: jax.Array, start: Any, verify: Verify, length: int
) -> tuple[jax.Array, jax.Array]:
    """Draws the codes that `autoregressive.decode` draws with the same keys, by Jacobi's iteration (2002.09928).

    The noise of each place is fixed, so that each code is a function of those before it; K of them are guessed at once,
    and those that no longer change are right.

    Args and returns: see `decode`.
    """

    def again(_, codes, number, state):
        log_p, state = verify(codes, number, state)
        places = number[:, None] + jnp.arange(length + 1)
        each = jax.vmap(jax.vmap(jax.random.fold_in, in_axes=(None, 0)))(rng, places)
        made = jax.vmap(draw)(each, log_p)
        made = jnp.where(read(stays, number, length + 1), read(given, number, length + 1), made)
        right = read(codes, number, length) == made[:, :-1]
        return made, jnp.cumprod(right, axis=1).sum(axis=1, dtype=jnp.int32), state

    given, stays = (jnp.pad(x, ((0, 0), (0, length + 1))) for x in (codes, known))
    return _rounds(rng, given, codes.shape[1], start, again)


def _rounds(rng, codes, size, states, again):
    """Repeats `again` until `size` codes of each sample are drawn.

    It takes keys, codes, numbers and states, and returns K + 1 codes, the count of those that are right before the
    first that was not, which is drawn anew, and states. A round's key is folded from the number of codes that are drawn
    before it, so that no sample depends on the others.
    """

    def body(carry):
        codes, number, calls, states = carry
        made, count, states = again(jax.vmap(jax.random.fold_in)(rng, number), codes, number, states)
        calls = calls + (number < size)
        return write(codes, made, number), jnp.minimum(number + count + 1, size), calls, states

    zeros = jnp.zeros(len(codes), jnp.int32)
    carry = codes.astype(jnp.int32), zeros, zeros, states
    codes, _, calls, _ = jax.lax.while_loop(lambda carry: (carry[1] < size).any(), body, carry)
    return codes[:, :size], calls


def read(x: jax.Array, number: jax.Array, count: int) -> jax.Array:
    """`count` values of each row of x, (B, ...), from its number on, (B,)."""
    return jax.vmap(lambda row, i: jax.lax.dynamic_slice_in_dim(row, i, count))(x, number)


def write(x: jax.Array, values: jax.Array, number: jax.Array) -> jax.Array:
    """Rows of x with values from their numbers on."""
    return jax.vmap(lambda row, new, i: jax.lax.dynamic_update_slice_in_dim(row, new, i, axis=0))(x, values, number)


def _given(log_p: jax.Array, codes: jax.Array, known: jax.Array) -> jax.Array:
    """Puts all probability on the codes that are known."""
    return jnp.where(known[..., None], certain(codes, log_p.shape[-1]), log_p)


# ---- drafters


def by_model(start: Any, next_log_q: Callable[..., tuple[jax.Array, Any]], length: int) -> Drafter:
    """Draws one code after the other from a cheaper model.

    Args:
      start: its state before any code.
      next_log_q: codes (B, ...), number of the code, (B,), and state -> its normalised distribution (B, V), and state.
      length: codes of a draft.
    """

    def draft(rng, codes, number, state):
        def step(carry, i):
            codes, state = carry
            log_q, state = next_log_q(codes, number + i, state)
            code = draw(fold_each(rng, i), log_q)
            return (write(codes, code[:, None], number + i), state), (code, log_q)

        # One more than are drawn, so that the state has read the draft's last code too, should all of them stay.
        (_, state), (made, log_q) = jax.lax.scan(step, (codes, state), jnp.arange(length + 1))
        return Draft(made[:-1].T, jnp.moveaxis(log_q[:-1], 0, 1)), state

    return Drafter(start, draft)


def at_once(log_q_of_all: Callable[[jax.Array, jax.Array], jax.Array]) -> Drafter:
    """Draws all codes of a draft at once, each by itself, as a masked generator does.

    Args:
      log_q_of_all: codes (B, ...) and number of those that are drawn, (B,) -> normalised distributions of the K codes
        after them, (B, K, V).
    """

    def draft(rng, codes, number, state):
        log_q = log_q_of_all(codes, number)
        return Draft(draw(rng, log_q), log_q), state

    return Drafter((), draft)


def by_guess(guess: Callable[[jax.Array, jax.Array], jax.Array], codes: int, length: int) -> Drafter:
    """Guesses without chance, one code after the other: q is 1 for the guess.

    Args:
      guess: codes (B, ...), and number of the code, (B,) -> int32 (B,).
      codes: number of kinds of codes, V.
      length: codes of a draft.
    """
    return by_model((), lambda ids, number, state: (certain(guess(ids, number), codes), state), length)


def by_last_round(batch: int, codes: int, length: int) -> Drafter:
    """Takes the codes after the first wrong one, as they were coupled, for the next draft (2410.01699, 2510.24211).

    No model draws: the codes of the last call stand for those of the next, and q is what they were drawn from. The
    first draft is of any codes alike.

    Args:
      batch: number of samples.
      codes: number of kinds of codes, V.
      length: codes of a draft.
    """
    alike = jnp.full((batch, length, codes), -jnp.log(codes))

    def draft(rng, ids, number, state):
        log_q, left = state
        old = read(ids, number, length)
        return Draft(jnp.where(jnp.arange(length) < left[:, None], old, draw(rng, log_q)), log_q), state

    def learn(log_p, count, state):
        del state
        places = jnp.minimum(count[:, None] + 1 + jnp.arange(length), length)  # past the end as its last code
        return jnp.take_along_axis(log_p, places[..., None], axis=1), length - count

    return Drafter((alike, jnp.zeros(batch, jnp.int32)), draft, learn)
