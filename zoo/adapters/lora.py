"""Low-rank changes of trained kernels (LoRA 2106.09685): W + scale / rank * A B, where only A and B learn.

A kernel is a matrix of its input axes and its output axes, as its module declares them: the heads of a query are an
output, those of the projection after attention an input. Kernels of scanned layers, stacked along a first axis, are a
matrix each.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.errors import UserError
from zoo.trees import expression, path_name


def kernels(init: Callable[..., Any], *args: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of the kernels that `init(*args)` draws, as matrices: path -> (*stack, inputs, outputs).

    Args:
      init: function that initialises flax modules and returns {player: parameters}.
      *args: its arguments, or their shapes.
    """
    axes: dict[str, tuple[int, int]] = {}  # of the kernel within its module: all, and those of the output

    def record(call, args, kwargs, context):
        made, module = call(*args, **kwargs), context.module
        kernel = module.variables.get("params", {}).get("kernel") if module.scope else None
        if kernel is not None and hasattr(kernel, "ndim"):  # a parameter, not a module of this name
            features = getattr(module, "features", 1)
            axes["/".join((*module.path, "kernel"))] = kernel.ndim, 1 if isinstance(features, int) else len(features)
        return made

    with nn.intercept_methods(record):
        shapes = jax.eval_shape(init, *args)
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = path_name(path)
        if (inside := name.partition("/")[2]) in axes:  # without the player
            every, outputs = axes[inside]
            stack, rest = leaf.shape[: leaf.ndim - every], leaf.shape[leaf.ndim - every :]
            found[name] = (*stack, math.prod(rest[: every - outputs]), math.prod(rest[every - outputs :]))
    return found


def init(
    rng: jax.Array, kernels: Mapping[str, tuple[int, ...]], pattern: str, rank: int
) -> dict[str, dict[str, jax.Array]]:
    """Changes of nothing: {path: {"a": (..., in, rank), "b": (..., rank, out)}} with A random and B zero.

    Args:
      rng: single key.
      kernels: shapes of all kernels, see `kernels`.
      pattern: regular expression of the paths of the kernels to change.
      rank: of the changes.

    Raises:
      UserError: the pattern matches no kernel, or the rank is below 1, or so high that the changes are no smaller than
        the kernels.
    """
    if rank < 1:
        raise UserError(f"a low-rank change has a rank of at least 1, got {rank}")
    search = expression(pattern).search
    chosen = {name: shape for name, shape in kernels.items() if search(name)}
    if not chosen:
        raise UserError(f"pattern {pattern!r} matches no kernel; there are e.g. {', '.join(list(kernels)[:3])}")
    sizes = [(rank * (rows + columns), rows * columns) for *_, rows, columns in chosen.values()]
    if all(changed >= whole for changed, whole in sizes):
        raise UserError(f"a change of rank {rank} has as many numbers as each kernel that it changes: lower the rank")
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
    kernels = jnp.array([jnp.sum(jnp.square(before[name])) for name in adapters]).sum()
    return changes.sum() / jnp.maximum(kernels, jnp.finfo(jnp.float32).tiny)


def _change(pair: dict[str, jax.Array], scale: float) -> jax.Array:
    return scale / pair["a"].shape[-1] * (pair["a"] @ pair["b"])
