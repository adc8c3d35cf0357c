"""Placing trees on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from zoo.runs.dependencies import open_any, open_run
from zoo.runs.run import chosen_fields, pick_params
from zoo.training import parallel

TREE = {"a": jnp.arange(6.0).reshape(2, 3), "b": np.ones(4, np.float32)}


def pointers(tree):
    return [shard.data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]


def test_what_lies_on_the_host_goes_to_the_devices_without_a_stop(monkeypatch, same):
    host, *devices = jax.local_devices()
    with jax.default_device(host):
        tree = jax.tree.map(lambda x: jnp.asarray(x) + 0, TREE)
    monkeypatch.setattr(parallel.jax_utils, "_pmap_device_order", lambda: devices)
    with jax.default_device(devices[0]), jax.transfer_guard_device_to_device("disallow"):
        placed = parallel.replicate(tree)
    for leaf, plain in zip(jax.tree.leaves(placed), jax.tree.leaves(TREE), strict=True):
        assert leaf.devices() == set(devices) and leaf.shape == (len(devices), *plain.shape)
        assert all(same(np.asarray(shard.data)[0], np.asarray(plain)) for shard in leaf.addressable_shards)


def test_each_replica_goes_to_its_device_alone(monkeypatch, same):
    def stack(*_):
        raise AssertionError("all replicas on one device")

    monkeypatch.setattr(jnp, "stack", stack)
    placed = parallel.replicate(TREE)
    count = jax.local_device_count()
    for leaf, plain in zip(jax.tree.leaves(placed), jax.tree.leaves(TREE), strict=True):
        assert leaf.shape == (count, *plain.shape) and len(leaf.addressable_shards) == count > 1
        for shard in leaf.addressable_shards:
            assert shard.data.shape == (1, *plain.shape) and same(np.asarray(shard.data)[0], np.asarray(plain))
    assert same(parallel.unreplicate(placed), jax.tree.map(np.asarray, TREE))


def test_a_tree_that_is_placed_is_sent_to_no_device_again():
    placed = parallel.place(TREE)
    assert pointers(parallel.place(placed)) == pointers(placed)
    seen = []
    double = parallel.pmap_in_batches(lambda shared, rows: shared["a"].sum() * rows, 2)
    plain = double._call

    def call(shared, rows):
        seen.append(pointers(shared))
        return plain(shared, rows)

    double._call = call
    np.testing.assert_array_equal(double(placed, np.arange(3.0)), 15 * np.arange(3.0))
    assert seen == [pointers(placed)]
    np.testing.assert_array_equal(double(TREE, np.arange(3.0)), 15 * np.arange(3.0))  # what is not is placed then


def test_all_leaves_start_for_the_host_before_the_first_is_awaited():
    events = []

    class Leaf:
        def __init__(self, value):
            self.value = value

        def addressable_data(self, device):
            assert device == 0
            return self

        def copy_to_host_async(self):
            events.append("start")

        def __array__(self, dtype=None, copy=None):
            events.append("wait")
            return np.full((1, 2), self.value)

    found = parallel.unreplicate({"a": Leaf(1.0), "b": Leaf(2.0)})
    assert events == ["start", "start", "wait", "wait"] and found["b"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("name", ["run", "zoo:clip"])
def test_the_parameters_of_what_is_opened_are_placed(trained, name):
    run = open_run(trained) if name == "run" else open_any(name)
    assert pointers(parallel.place(run.params)) == pointers(run.params)


@pytest.mark.parametrize("ema, field", [(None, "ema"), ("20", "ema"), ("none", "params")])
def test_opening_a_run_reads_the_average_that_is_used_and_no_other(trained, saved_state, monkeypatch, same, ema, field):
    asked = []
    plain = ocp.args.PyTreeRestore

    def restore(item=None, **keywords):
        asked.extend(item)
        return plain(item, **keywords)

    whole = saved_state(trained)[1]
    monkeypatch.setattr(ocp.args, "PyTreeRestore", restore)
    run = open_run(trained, ema=ema)
    expected = whole["params"]["model"] if field == "params" else whole["ema"]["model"]["20"]
    assert same(jax.tree.map(np.asarray, run.params["model"]), expected)
    assert len(asked) == len(jax.tree.leaves(expected))
    assert all(name.startswith("model.20." if field == "ema" else "model.") for name in asked)


def test_players_without_an_average_give_their_parameters():
    fields = {"params": {"model": 1, "critic": 2}, "ema": {"model": {"10": 3, "100": 4}, "critic": {}}}
    assert pick_params(fields, None) == {"model": 4, "critic": 2}
    assert pick_params(fields, "10") == {"model": 3, "critic": 2}
    assert pick_params(fields, "none") == {"model": 1, "critic": 2}
    assert chosen_fields(fields, "10") == {"params": {"critic": 2}, "ema": {"model": {"10": 3}}}
