"""Trees of parameters, by the paths of their leaves."""

import hashlib
import re
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from zoo.errors import UserError


def expression(pattern: str) -> re.Pattern:
    """Returns a regular expression, compiled. Raises UserError where it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"pattern {pattern!r} is no regular expression: {error}") from None


def matches(params: Any, pattern: str) -> Any:
    """Returns a tree of bool: whether a regular expression matches part of a path, e.g. "layers/mlp/up/kernel"."""
    search = expression(pattern).search
    found = jax.tree_util.tree_map_with_path(lambda path, _: bool(search(path_name(path))), params)
    if not any(jax.tree.leaves(found)):
        paths = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise UserError(f"pattern {pattern!r} matches no parameter; there are e.g. {', '.join(paths[:3])}")
    return found


def path_name(path: tuple, separator: str = "/") -> str:
    """Returns a jax key path as "a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator=separator)


def flatten(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths, e.g. "layers/mlp/up/kernel"."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def completed(tree: Any, by: Any) -> Any:
    """Returns a tree of the structure of `by`, with the leaves of `tree` where it has them."""
    own = flatten(tree)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: own.get(path_name(path), leaf), by)


def first_difference(a: Any, b: Any, may_lack: Collection[str] = ()) -> str:
    """Returns the first difference of two trees, e.g. "mlp/up/kernel of shape (8, 8) and not (8, 16)"; "" if equal.

    Args:
      a: tree.
      b: tree.
      may_lack: parts of paths of which `a` may lack leaves.
    """
    a, b = ({path: leaf.shape for path, leaf in flatten(tree).items()} for tree in (a, b))
    b = {path: shape for path, shape in b.items() if path in a or not set(may_lack) & set(path.split("/"))}
    for name in sorted(a | b):
        if name not in b or name not in a:
            return f"{'with' if name in a else 'without'} {name}"
        if a[name] != b[name]:
            return f"{name} of shape {a[name]} and not {b[name]}"
    return ""


def tree_hash(tree: Any) -> str:
    """Returns a hash of the paths, types, shapes and values of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
