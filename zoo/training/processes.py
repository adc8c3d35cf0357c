"""Several processes as one run: the first one decides, and no error leaves the others waiting."""

import json
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from zoo.errors import UserError

PATIENCE = 10  # seconds that an ending process waits for the others, before it ends them too


def join(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Joins this process with others into one training run.

    Args:
      coordinator: HOST:PORT of process 0, or "auto" on a cluster that jax recognises (TPU pods, Slurm, MPI).
      num_processes: number of processes; needed unless "auto".
      process_id: number of this process; needed unless "auto".

    Raises:
      UserError: one of the three is missing or out of range.
    """
    if coordinator == "auto":
        jax.distributed.initialize(shutdown_timeout_seconds=PATIENCE)
        return
    if not re.fullmatch(r".+:\d+", coordinator):
        raise UserError(f"--coordinator must be HOST:PORT of process 0 or auto, got {coordinator!r}")
    if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
        raise UserError(
            f"--coordinator needs --num_processes and --process_id, from 0 to one less; got {num_processes} and "
            f"{process_id}"
        )
    jax.distributed.initialize(coordinator, num_processes, process_id, shutdown_timeout_seconds=PATIENCE)


def first() -> bool:
    """Whether this is process 0, which alone writes and prints."""
    return jax.process_index() == 0


def note(line: str) -> None:
    """One line on stderr, beside progress bars, from the first process."""
    if first():
        tqdm.tqdm.write(line, file=sys.stderr)


class _First:
    """Whether process 0 is at work alone: a second `from_first` within it has nobody to send to."""

    busy = False


def from_first(make: Callable[[], Any]) -> Any:
    """Returns on every process what `make` returns on process 0, which alone calls it. All must call this.

    Args:
      make: returns what JSON can write.

    Raises:
      UserError: as `make` did on process 0, on all.
    """
    if jax.process_count() == 1 or _First.busy:
        return make()
    message = b""
    error: Exception | None = None
    if first():
        _First.busy = True
        try:
            message = json.dumps({"made": make()}).encode()
        except Exception as raised:  # the others must learn of any
            error = raised
            text = str(raised) if isinstance(raised, UserError) else f"process 0 failed: {raised!r}"
            message = json.dumps({"error": text}).encode()
        finally:
            _First.busy = False
    sent = json.loads(bytes(_send(np.frombuffer(message, np.uint8))))
    if error:
        raise error
    if "error" in sent:
        raise UserError(sent["error"])
    return sent["made"]


def arrays_from_first(tree: Any) -> Any:
    """Returns on every process the arrays of process 0, numpy, bit for bit; all give trees of the same shapes."""
    if jax.process_count() == 1 or _First.busy:
        return tree

    def send(x):
        x = np.asarray(x)
        bits = multihost_utils.broadcast_one_to_all(np.ravel(x, order="C").view(np.uint8))
        return np.asarray(bits).view(x.dtype).reshape(x.shape)

    return jax.tree.map(send, tree)  # one by one: a whole state need not fit beside another on a device


def _send(content: np.ndarray) -> np.ndarray:
    """Returns the bytes of process 0, of any number."""
    length = int(multihost_utils.broadcast_one_to_all(np.asarray(len(content), np.int32)))
    padded = np.zeros(length, np.uint8)
    if first():
        padded[:] = content
    return np.asarray(multihost_utils.broadcast_one_to_all(padded))


def check_same(what: str, value: int | str) -> None:
    """Raises UserError on all processes unless all give the same value.

    Args:
      what: name of the value, for the error.
      value: number, or text.
    """
    if jax.process_count() == 1 or _First.busy:
        return
    theirs = from_first(lambda: value)
    differs = multihost_utils.process_allgather(np.asarray(theirs != value))
    if differs.any():
        which = int(np.argmax(differs))
        raise UserError(
            f"process {which} has another {what} than process 0; give all processes the same data and config"
        )
