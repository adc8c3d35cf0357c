"""Many devices as one: the pmapped axis, and moving trees to and from it."""

import os
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils

from zoo import cache
from zoo.errors import BadInput
from zoo.method import Axis

AXIS_NAME = "devices"


class Devices(Axis):
    """All devices of all processes, seen from inside pmap."""

    @property
    def index(self) -> jax.Array:
        return jax.lax.axis_index(AXIS_NAME)

    def pmean(self, tree):
        return jax.lax.pmean(tree, AXIS_NAME)

    def all_gather(self, x: jax.Array) -> jax.Array:
        return jax.lax.all_gather(x, AXIS_NAME, tiled=True)


def pmap(step: Callable) -> Callable:
    """Compiles step(state, batch) -> (state, metrics) for all devices; the state is donated."""
    return jax.pmap(step, axis_name=AXIS_NAME, donate_argnums=0)


def replicate(tree):
    """Host tree -> one copy on each local device, with a leading device axis."""
    return jax_utils.replicate(tree, axis_name=AXIS_NAME)  # of another name, the second step would compile again


def unreplicate(tree):
    """The first device's copy, as numpy on the host."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0))[0, ...], tree)


def per_device(batch_size: int, accumulate: int = 1) -> int:
    """Examples a device gets of a global batch; raises BadInput where they cannot be dealt out evenly."""
    devices = jax.device_count()
    if batch_size % (devices * accumulate):
        raise BadInput(
            f"data.batch_size {batch_size} cannot be divided by {devices} devices x {accumulate} "
            f"accumulated parts; use a multiple of {devices * accumulate}"
        )
    return batch_size // devices


def stack_and_shard(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """K batches (B, ...) of this process -> (local devices, K, B / local devices, ...)."""
    local = jax.local_device_count()
    return jax.tree.map(lambda *xs: einops.rearrange(np.stack(xs), "k (d b) ... -> d k b ...", d=local), *batches)


def prefetch(batches, size: int = 2):
    """Moves the next `size` sharded batches to the devices while the present one is used."""
    return jax_utils.prefetch_to_device(batches, size, axis_name=AXIS_NAME)


def in_parts(function: Callable[[Any, Any], Any], per_device: int) -> Callable[[Any, Any], Any]:
    """Compiles function(shared, rows) -> tree for all local devices and any number of rows.

    Args:
      function: rows and result are trees of arrays (per_device, ...).
      per_device: rows that a device gets at once; too few are filled up with the first one.

    Returns:
      The function of trees of arrays (N, ...); its result is numpy.
    """
    devices = jax.local_devices()
    count = len(devices) * per_device
    compiled = jax.pmap(function, in_axes=(None, 0), devices=devices)

    def part(x, start):
        x = x[start : start + count]
        filled = jnp.concatenate([x, jnp.repeat(x[:1], count - len(x), axis=0)])
        return filled.reshape(len(devices), per_device, *x.shape[1:])

    def call(shared, rows):
        total, made = len(jax.tree.leaves(rows)[0]), []
        for start in range(0, total, count):
            out = compiled(shared, jax.tree.map(lambda x, start=start: part(x, start), rows))
            made.append(jax.tree.map(lambda x: np.asarray(x).reshape(count, *x.shape[2:]), out))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *made)

    return call


def join(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process with others into one training run.

    Args:
      coordinator: HOST:PORT of process 0, or "auto" on a cluster that jax can ask (TPU pods, Slurm, MPI).
      num_processes, process_id: needed unless "auto".
    """
    if coordinator == "auto":
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(coordinator, num_processes, process_id)


def use_compilation_cache() -> None:
    """Keeps compiled programs on the disk, so that a second start is quick: in $JAX_COMPILATION_CACHE_DIR,
    $ZOO_CACHE/xla or ~/.cache/zoo/xla.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return  # jax reads it by itself
    jax.config.update("jax_compilation_cache_dir", str(cache.folder("xla")))
