"""Trees of parameters: what a hash of one depends on."""

import jax
import jax.numpy as jnp
import numpy as np

from zoo.trees import tree_hash


def test_a_hash_of_trees_depends_on_names_types_shapes_and_values():
    tree = {"a": np.zeros(2, np.float32), "b": {"c": np.float32(1)}}
    others = [
        {"a": np.zeros(2, np.float32), "b": {"d": np.float32(1)}},
        {"a": np.zeros(2, np.float32), "b": {"c": np.ones(1, np.float32)}},
        {"a": np.zeros(2, np.int32), "b": {"c": np.float32(1)}},
        {"a": np.zeros(2, np.float32), "b": {"c": np.float32(2)}},
    ]
    hashes = [tree_hash(other) for other in (tree, *others)]
    assert len(set(hashes)) == 5 and tree_hash(jax.tree.map(jnp.asarray, tree)) == hashes[0]
