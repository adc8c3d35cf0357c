"""Many devices as one: the pmapped axis, and transfers to and from it."""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import jax_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo import cache
from zoo.errors import UserError
from zoo.method import Axis

AXIS_NAME = "devices"


class Devices(Axis):
    """All devices of all processes, seen from inside pmap."""

    @property
    def index(self) -> jax.Array:
        """Number of this device."""
        return jax.lax.axis_index(AXIS_NAME)

    def pmean(self, tree):
        """Mean over devices."""
        return jax.lax.pmean(tree, AXIS_NAME)

    def all_gather(self, x: jax.Array) -> jax.Array:
        """(B, ...) on each device -> (devices * B, ...) on all."""
        return jax.lax.all_gather(x, AXIS_NAME, tiled=True)


def pmap(step: Callable) -> Callable:
    """Compiles step(state, frozen, batch) -> (state, metrics) for all devices; the state is donated."""
    return jax.pmap(step, axis_name=AXIS_NAME, donate_argnums=0)


def host():
    """The processor as a device of JAX; the first device where $JAX_PLATFORMS leaves the processor out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def replicate(tree):
    """Tree of the host or of one device -> one copy on each local device, with a leading device axis.

    Each copy goes to its device by itself: no device holds more than its own.
    """
    devices = jax_utils._pmap_device_order()
    # With another name of the axis, the second step would compile again.
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS_NAME,)), PartitionSpec(AXIS_NAME))

    def place(x):
        if isinstance(x, jax.Array):
            x = x.addressable_data(0) if x.is_fully_replicated else x  # of one that is placed already, one copy
        # A new axis of an array elsewhere, as on the host, would be made on the first device.
        x = (x if isinstance(x, jax.Array) and x.devices() <= set(devices) else np.asarray(x))[None]
        copies = [jax.device_put(x, device) for device in devices]
        return jax.make_array_from_single_device_arrays((len(devices), *x.shape[1:]), sharding, copies)

    return jax.tree.map(place, tree)


def place(tree):
    """Places a tree on all local devices, for `pmap_in_batches`, which then sends it to none again."""
    return jax.device_put(tree, _on_all(jax.local_devices()))


def _on_all(devices) -> NamedSharding:
    """The sharding of a whole copy on each of these devices."""
    return NamedSharding(Mesh(np.array(devices), (AXIS_NAME,)), PartitionSpec())


def unreplicate(tree):
    """The first device's copy, as numpy on the host. All leaves start on their way before the first is awaited."""
    own = jax.tree.map(lambda x: x.addressable_data(0), tree)
    for leaf in jax.tree.leaves(own):
        leaf.copy_to_host_async()
    return jax.tree.map(lambda x: np.asarray(x)[0, ...], own)


def per_device(batch_size: int, accumulate: int = 1, key: str = "data.batch_size") -> int:
    """Returns the examples of a device in a global batch; raises UserError if they cannot be dealt out evenly."""
    devices = jax.device_count()
    if batch_size % (devices * accumulate):
        raise UserError(
            f"{key} {batch_size} cannot be divided by {devices} devices x {accumulate} "
            f"accumulated parts; use a multiple of {devices * accumulate}"
        )
    return batch_size // devices


def stack_and_shard(batches: list[Any]) -> Any:
    """K batches (B, ...) of this process -> (local devices, K, B / local devices, ...)."""
    local = jax.local_device_count()
    return jax.tree.map(lambda *xs: einops.rearrange(np.stack(xs), "k (d b) ... -> d k b ...", d=local), *batches)


def prefetch(batches, size: int = 2):
    """Moves the next `size` sharded batches to the devices while the present one is used."""
    return jax_utils.prefetch_to_device(batches, size, axis_name=AXIS_NAME)


class pmap_in_batches:  # noqa: N801, it is used as a function
    """function(shared, rows) -> tree, compiled for all local devices and any number of rows.

    Each row of the result depends on its own row alone, and every device always gets `per_device` rows at once: the
    program is the same however many rows there are, and whatever the number of devices.

    Args:
      function: rows and result are trees of arrays (per_device, ...).
      per_device: rows that a device gets at once; missing ones are filled up with the first one.
      exact: whether products of float32 are float32: accelerators round them to fewer bits.
    """

    def __init__(self, function: Callable[[Any, Any], Any], per_device: int, exact: bool = False):
        self.devices, self.per_device = jax.local_devices(), per_device

        def call(shared, rows):
            with jax.default_matmul_precision("highest") if exact else contextlib.nullcontext():
                return function(shared, rows)

        self._call = jax.pmap(call, axis_name=AXIS_NAME, in_axes=(None, 0), devices=self.devices)

    def __call__(self, shared: Any, rows: Any) -> Any:
        """Returns the results of trees of arrays (N, ...), as numpy. `shared` is best placed by `place`, once."""
        shared = jax.device_put(shared, _on_all(self.devices))
        total, count = len(jax.tree.leaves(rows)[0]), len(self.devices) * self.per_device
        made, running = [], None
        for start in range(0, total, count):  # a call returns before it is done: the next one starts meanwhile
            ahead = self._call(shared, self._part(rows, start))
            made += [] if running is None else [_to_rows(running)]
            running = ahead
        made.append(_to_rows(running))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *made)

    def compile(self, shared: Any, rows: Any) -> None:
        """Compiles for arguments of these shapes; afterwards other shapes fail, except another number of rows."""
        self._call = self._call.lower(shared, self._part(rows, 0)).compile()

    def check(self, shared: Any, rows: Any) -> None:
        """Raises the errors of a call, without compiling."""
        jax.eval_shape(self._call, shared, self._part(rows, 0))

    def _part(self, rows: Any, start: int) -> Any:
        """Rows from `start` on, one call's, (devices, per_device, ...)."""
        count = len(self.devices) * self.per_device

        def part(x):
            x = x[start : start + count]
            if len(x) < count:
                concatenate, repeat = (np.concatenate, np.repeat) if isinstance(x, np.ndarray) else _JAX
                x = concatenate([x, repeat(x[:1], count - len(x), axis=0)])
            return x.reshape(len(self.devices), self.per_device, *x.shape[1:])

        return jax.tree.map(part, rows)


_JAX = jnp.concatenate, jnp.repeat  # for keys, which numpy cannot hold


def _to_rows(out: Any) -> Any:
    """(devices, per_device, ...) -> (devices * per_device, ...), as numpy."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), out)


def use_compilation_cache() -> None:
    """Keeps compiled programs on the disk, so that a second start is quick.

    The folder is $JAX_COMPILATION_CACHE_DIR, $ZOO_CACHE/xla or ~/.cache/zoo/xla.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return  # jax reads it by itself
    jax.config.update("jax_compilation_cache_dir", str(cache.folder("xla")))
