"""Low-rank changes of trained kernels (LoRA 2106.09685): W + scale / rank * A B, where only A and B learn.

A kernel of any number of axes is a matrix of its last axis and all others: the heads of a query, a key or a value,
which are an axis of their own, share B. Kernels of scanned layers, stacked along a first axis, are a matrix each.
"""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp

from zoo.errors import UserError
from zoo.trees import path_name

STACKED = re.compile(r"(^|/)(layers|level_\d+)/")  # where a path has such a part, the first axis counts layers


def init(rng: jax.Array, params: Any, pattern: str, rank: int) -> dict[str, dict[str, jax.Array]]:
    """Changes of nothing: {path: {"a": (..., in, rank), "b": (..., rank, out)}} with A random and B zero.

    Args:
      rng: single key.
      params: the tree to change.
      pattern: regular expression of the paths of the kernels to change, of at least two axes.
      rank: of the changes.

    Raises:
      UserError: the pattern matches no kernel, or the rank is below 1.
    """
    if rank < 1:
        raise UserError(f"a low-rank change has a rank of at least 1, got {rank}")
    shapes = {
        path_name(path): _matrix(path_name(path), leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    chosen = {name: shape for name, shape in shapes.items() if shape and re.search(pattern, name)}
    if not chosen:
        raise UserError(f"pattern {pattern!r} matches no kernel; there are e.g. {', '.join(list(shapes)[:3])}")
    adapters = {}
    for key, (name, (*stack, rows, columns)) in zip(jax.random.split(rng, len(chosen)), chosen.items(), strict=True):
        a = jax.random.normal(key, (*stack, rows, rank)) / math.sqrt(rows)
        adapters[name] = {"a": a, "b": jnp.zeros((*stack, rank, columns))}
    return adapters


def merge(params: Any, adapters: dict[str, dict[str, jax.Array]], scale: float) -> Any:
    """The changed tree: like `params`."""

    def changed(path, leaf):
        pair = adapters.get(path_name(path))
        if pair is None:
            return leaf
        return leaf + _change(pair, scale).reshape(leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(changed, params)


def distance(params: Any, adapters: dict[str, dict[str, jax.Array]], scale: float) -> jax.Array:
    """Returns how far `merge` goes: squared norm of all changes, as a share of that of the kernels that are changed."""
    before = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    changes = jnp.array([jnp.sum(jnp.square(_change(pair, scale))) for pair in adapters.values()])
    return changes.sum() / jnp.array([jnp.sum(jnp.square(before[name])) for name in adapters]).sum()


def _change(pair: dict[str, jax.Array], scale: float) -> jax.Array:
    return scale / pair["a"].shape[-1] * (pair["a"] @ pair["b"])


def _matrix(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A leaf's shape as a matrix or a stack of them; () for what is none."""
    stack = shape[:1] if STACKED.search(name) else ()
    rest = shape[len(stack) :]
    return (*stack, math.prod(rest[:-1]), rest[-1]) if len(rest) > 1 else ()
