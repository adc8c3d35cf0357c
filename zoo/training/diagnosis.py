"""Finds faults: the first layer that is not finite, a trace of some steps, memory that ran out."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError
from zoo.training.metrics import losses_first


class NanWatch:
    """Records, for functions that are traced within `watch`, which modules gave NaN or infinity.

    Each output of each module is checked on the device, which costs much of the speed.
    """

    def __init__(self):
        self._names: list[str] = []  # of module calls, in the order of the program
        self._found: set[int] = set()

    def watch(self):
        """Returns a context; trace within it."""
        return nn.intercept_methods(self._check)

    def first(self) -> str | None:
        """Returns the name of the first module, in the order of the program, that gave a value not finite so far."""
        jax.effects_barrier()
        return self._names[min(self._found)] if self._found else None

    def _check(self, call, args, keywords, context) -> Any:
        out = call(*args, **keywords)
        leaves = [x for x in jax.tree.leaves(out) if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.inexact)]
        if leaves:
            name = "/".join((*context.module.path, *((context.method_name,) * (context.method_name != "__call__"))))
            number = len(self._names)
            self._names.append(f"{name or '.'} ({type(context.module).__name__})")
            finite = jnp.array([jnp.isfinite(x).all() for x in leaves]).all()
            jax.debug.callback(self._record, number, finite)
        return out

    def _record(self, number: int, finite: np.ndarray) -> None:
        if not finite.all():
            self._found.add(int(number))


def stopping_at_nans(steps: Callable) -> Callable:
    """Returns training steps that raise a UserError where a value is not finite, with the name of its layer."""
    nans = NanWatch()

    def call(state, frozen, batch):
        with nans.watch():
            state, metrics = jax.block_until_ready(steps(state, frozen, batch))
        values = {name: np.asarray(x.addressable_data(0)) for name, x in metrics.items()}  # of all steps of the call
        bad = next((name for name in losses_first(values) if not np.isfinite(values[name]).all()), None)
        layer = nans.first()
        if layer or bad:
            outside = "the loss" if bad and bad.endswith("loss") else "a gradient"
            where = f"the first layer is {layer}" if layer else f"all layers gave finite values, {outside} did not"
            step = np.asarray(state.step.addressable_data(0))[0]
            raise UserError(f"--debug_nans: {bad or 'a value'} was not finite up to step {step}; {where}")
        return state, metrics

    return call


@contextlib.contextmanager
def out_of_memory(remedy: str) -> Iterator[None]:
    """Turns the error of a device that is out of memory into one line, with what can be done."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"a device is out of memory: {remedy}") from error


def remedy_in_training(accumulate: int, batch_size: int) -> str:
    """Names what can be changed where training is out of memory."""
    return (
        f'raise loop.accumulate (now {accumulate}), recompute layers by remat="all" of the network, or lower '
        f"data.batch_size (now {batch_size})"
    )


class Profile:
    """A trace of some steps: of what the devices and this program did when.

    Args:
      folder: to write the trace to.
      steps: number of steps to trace, after the first call, which compiles; 0 for none.
    """

    def __init__(self, folder: Path, steps: int):
        self._folder, self.steps, self._left, self._running = folder, steps, steps, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error) -> None:
        if self._running:
            self._stop()

    def count(self, steps: int, metrics: Any) -> None:
        """Begins after the first call of steps, and ends after enough of them.

        Args:
          steps: steps of the call.
          metrics: results of the call, for which it waits.
        """
        if self._left <= 0:
            return
        jax.block_until_ready(metrics)
        if not self._running:
            jax.profiler.start_trace(str(self._folder))
            self._running = True
            return
        self._left -= steps
        if self._left <= 0:
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running = False
        traced = self.steps - self._left
        where = f"is in {self._folder}" if traced else "is empty: no call followed the first one, which compiles"
        print(f"note: a trace of {traced} steps {where}", file=sys.stderr)
