"""Parallel decoding: all missing codes are drawn at once, some are kept, and the rest is drawn again (2202.04200).

Arrays are flat: (B, N, ...) over the N codes of a sample, which may be vectors too.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import unknown_name_error
from zoo.method import fold_each, split_each

SCHEDULES: dict[str, Callable[[Any], Any]] = {  # time from 0 to 1 -> share of masked codes
    "cosine": lambda r: jnp.cos(jnp.pi / 2 * r),
    "arccos": lambda r: 2 / jnp.pi * jnp.arccos(r),
    "linear": lambda r: 1 - r,
}

NO_STEP = 2**31 - 1  # number of a key beside those of the steps


def check_schedule(name: str) -> None:
    """Raises UserError for a name that is no key of `SCHEDULES`."""
    if name not in SCHEDULES:
        raise unknown_name_error("schedule of masks", name, SCHEDULES)


def masked_shares(schedule: str, steps: int) -> np.ndarray:
    """Returns the share of codes that are still masked after each step, (steps,), from below 1 to 0.

    Args:
      schedule: a key of `SCHEDULES`: "cosine" draws few codes in the first steps, "arccos" many in the last.
      steps: number of steps.
    """
    with jax.ensure_compile_time_eval():
        shares = np.asarray(SCHEDULES[schedule](np.arange(1, steps) / steps))
    return np.append(np.clip(shares, 0.0, 1.0), 0.0)


def random_masks(rng: jax.Array, shape: tuple[int, ...], schedule: str) -> jax.Array:
    """Masks of training: bool of `shape` (B, ...), True for at least one code of each sample.

    Args:
      rng: single key.
      shape: of the codes.
      schedule: a key of `SCHEDULES`, of which the shares are at times spread evenly over the batch.
    """
    rng_share, rng_mask = jax.random.split(rng)
    time = (jax.random.uniform(rng_share) + jnp.arange(shape[0]) / shape[0]) % 1
    size = math.prod(shape[1:])
    counts = jnp.clip(jnp.ceil(SCHEDULES[schedule](time) * size), 1, size)
    return lowest(jax.random.uniform(rng_mask, shape), counts)


def lowest(scores: jax.Array, counts: jax.Array) -> jax.Array:
    """Whether each is one of the `counts`, (B,), lowest of its sample: bool like scores, (B, ...)."""
    flat = scores.reshape(len(scores), -1)
    rank = jnp.argsort(jnp.argsort(flat, axis=1), axis=1)
    return (rank < counts[:, None]).reshape(scores.shape)


class Step(NamedTuple):
    """State of a step of decoding, from which it follows what is masked after it.

    Attributes:
      rng: a key for each sample, (B,), for this step alone.
      done: share of the steps that are done after this one, a scalar in (0, 1].
      filled: codes with all missing ones drawn, (B, N, ...).
      log_prob: log-probability of each code when it was drawn, (B, N).
      new: whether a code was drawn in this step, bool (B, N).
      earlier: whether it was drawn in a step before, bool (B, N).
      left: number of codes that this step leaves masked, (B, 1).
    """

    rng: jax.Array
    done: jax.Array
    filled: jax.Array
    log_prob: jax.Array
    new: jax.Array
    earlier: jax.Array
    left: jax.Array


Choose = Callable[[Step], jax.Array]  # -> the codes that are masked after the step, bool (B, N)
Score = Callable[[Step], jax.Array]  # -> a number for each code, (B, N)
# See `decode`.
Draw = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def decode(
    rng: jax.Array,
    codes: jax.Array,
    known: jax.Array,
    draw_missing: Draw,
    left: np.ndarray,
    choose: Choose,
) -> jax.Array:
    """Draws all missing codes.

    In each step all codes that are missing are drawn, each by itself; then some of the codes are masked, and missing
    again. Those that are known at first stay as they are.

    Args:
      rng: a key for each sample, (B,).
      codes: (B, N, ...).
      known: which of them are known, bool (B, N).
      draw_missing: a key for each sample, codes, which of them are present, (B, N), and number of the step -> codes, of
        which those count that were missing, and their log-probabilities (B, N), or zeros.
      left: share of the codes that are missing at first which still is after each step, (steps,); the last is 0.
      choose: rule by which codes are masked after each step.

    Returns:
      Codes like `codes`.
    """
    return trajectory(rng, codes, known, draw_missing, left, choose)[0]


def trajectory(rng, codes, known, draw_missing, left, choose) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws as `decode` does; returns its codes, those after each step, (steps, B, N, ...), and which are present."""
    count = (~known).sum(axis=1, keepdims=True)  # (B, 1)

    def step(carry, inputs):
        codes, present, log_probs = carry
        i, share = inputs
        rng_draw, rng_choose = split_each(fold_each(rng, i))
        drawn, log_prob = draw_missing(rng_draw, codes, present, i)
        codes = jnp.where(present.reshape(*present.shape, *(1,) * (codes.ndim - 2)), codes, drawn)
        log_probs = jnp.where(present, log_probs, log_prob)
        target = jnp.floor(share * count + 1e-4)
        about = Step(rng_choose, (i + 1) / len(left), codes, log_probs, ~present, present & ~known, target)
        present = ~choose(about)
        return (codes, present, log_probs), (codes, present)

    steps = jnp.arange(len(left)), jnp.asarray(left, jnp.float32)
    (codes, _, _), (after, present) = jax.lax.scan(step, (codes, known, jnp.zeros(known.shape)), steps)
    return codes, after, present


def _highest(scores: jax.Array, among: jax.Array, count: jax.Array) -> jax.Array:
    """Whether each is one of the `count`, (B, 1), highest of those `among`, bool (B, N); ties go to the first."""
    return among & lowest(jnp.where(among, -scores, jnp.inf), count[:, 0])


# ---- rules: which codes are masked after a step


def keep(order: Score) -> Choose:
    """All earlier codes stay, and of the new ones those with the highest scores, at least one."""

    def choose(step: Step) -> jax.Array:
        new = step.new.sum(axis=1, keepdims=True)
        return _highest(-order(step), step.new, jnp.minimum(step.left, jnp.maximum(new - 1, 0)))

    return choose


def remask(order: Score, score: Score, share: float) -> Choose:
    """As `keep`, but a share of the earlier codes is masked again: those with the highest scores.

    A number of codes that is not whole is rounded at random, up or down, so that it is right on average.
    """

    def choose(step: Step) -> jax.Array:
        u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(step.rng)[:, None]
        again = jnp.floor(share * step.earlier.sum(axis=1, keepdims=True) + u)
        again = jnp.minimum(again, step.left)
        return _highest(score(step), step.earlier, again) | _highest(-order(step), step.new, step.left - again)

    return choose


def mask_lowest(score: Score) -> Choose:
    """Masks the codes with the lowest scores, new and earlier ones (Token-Critic 2209.04439)."""
    return lambda step: _highest(-score(step), step.new | step.earlier, step.left)


# ---- orders: which of the new codes stay


def at_random(step: Step) -> jax.Array:
    """Numbers that make any order as likely as any other."""
    return jax.vmap(lambda key: jax.random.uniform(key, step.new.shape[1:]))(step.rng)


def by_confidence(noise: float) -> Score:
    """The likeliest codes stay, with Gumbel noise that falls to 0 with the steps (2202.04200, section 3.2)."""
    return lambda step: step.log_prob + noise * (1 - step.done) * gumbel(step)


def by_halton(shape: tuple[int, ...], rng: jax.Array) -> Score:
    """The codes stay that come first in `halton_rank`, in which each sample begins at a place of its own.

    Args:
      shape: of the codes of a sample, (T, h, w, c).
      rng: a key for each sample, (B,), that of `decode`.
    """
    rank, channels = halton_rank(shape), shape[-1]
    draw_place = lambda key: jax.random.randint(key, (1,), 0, len(rank) // channels)
    start = channels * jax.vmap(draw_place)(fold_each(rng, NO_STEP))  # (B, 1)
    turned = (jnp.asarray(rank) - start) % len(rank)
    return lambda step: -turned.astype(jnp.float32)


def halton_rank(shape: tuple[int, ...]) -> np.ndarray:
    """Returns the rank of each code, (N,), in an order that spreads over the image (Halton 2503.17076).

    Places are visited as the Halton sequence of the bases 2, 3 and 5 first reaches them; codes of one place, and those
    that it never reaches, follow each other.

    Args:
      shape: of the codes of a sample, (T, h, w, c), of which N is the size.
    """
    frames, rows, columns, channels = shape
    count = 16 * frames * rows * columns
    points = np.stack([_van_der_corput(count, base) for base in (2, 3, 5)], axis=1)
    places = np.floor(points * np.array([rows, columns, frames])).astype(int)
    flat = (places[:, 2] * rows + places[:, 0]) * columns + places[:, 1]
    _, first = np.unique(flat, return_index=True)
    visited = flat[np.sort(first)]
    rest = np.setdiff1d(np.arange(frames * rows * columns), visited)
    rank = np.empty(frames * rows * columns, int)
    rank[np.concatenate([visited, rest])] = np.arange(len(rank))
    return (rank[:, None] * channels + np.arange(channels)).reshape(-1)


def _van_der_corput(count: int, base: int) -> np.ndarray:
    """The first numbers of the sequence that writes 1, 2, ... in a base, and mirrors the digits at the point."""
    numbers, digits = np.arange(1, count + 1), math.ceil(math.log(count + 1, base))
    powers = base ** np.arange(digits)[:, None]
    return (numbers // powers % base / (powers * base)).sum(axis=0)


# ---- scores by which earlier codes are masked again


def by_improbability(sharpness: float) -> Score:
    """Draws without replacement, with the weight exp(-sharpness p) of a code that had the probability p.

    With sharpness 1 the weights are ReMDM-conf's (2503.00307, section 4.1); with 0 all codes are alike.
    """
    return lambda step: gumbel(step) - sharpness * jnp.exp(step.log_prob)


def gumbel(step: Step) -> jax.Array:
    """Gumbel noise for each code, (B, N)."""
    return jax.vmap(lambda key: jax.random.gumbel(key, step.new.shape[1:]))(step.rng)
