"""The metrics of training: their means, the speed, and their files.

metrics.jsonl is always written, TensorBoard's files where the packages that it needs are installed.
"""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zoo.errors import UserError
from zoo.files import atomic

FILE, BEFORE = "metrics.jsonl", "metrics_before.jsonl"


class Window:
    """Metrics of the steps since the last log, kept on the device until they are read."""

    def __init__(self):
        self._calls = []

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """metrics: (local devices, K) each, equal over the devices."""
        self._calls.append(metrics)

    def take(self) -> tuple[dict[str, float], str | None]:
        """Returns means over the finite steps, and the name of a metric not finite at the last step, a loss first."""
        calls = [
            {name: np.asarray(value.addressable_data(0))[0] for name, value in call.items()} for call in self._calls
        ]
        self._calls = []
        series = {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}
        bad = next((name for name in losses_first(series) if not np.isfinite(series[name][-1])), None)
        means = {
            name: float(np.mean(values[np.isfinite(values)])) if np.isfinite(values).any() else math.nan
            for name, values in series.items()
        }
        return means, bad


def read(workdir: Path) -> list[dict[str, Any]]:
    """Returns the rows of a run's metrics; a line that is not whole, as while it is being written, is left out.

    Args:
      workdir: the run's folder.

    Raises:
      UserError: the run has no metrics.
    """
    file = workdir / FILE
    if not file.is_file():
        raise UserError(f"{workdir} has no {FILE}: train it first")
    rows = []
    for line in file.read_text("utf-8", "replace").split("\n"):
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def prune(workdir: Path, start: int) -> None:
    """Drops the lines of steps after `start`, which are taken again, and half a line that a power cut left.

    Where the run begins anew, its lines are kept in another file.

    Args:
      workdir: the run's folder.
      start: step that the run goes on from.

    Raises:
      UserError: the file cannot be written.
    """
    if not (workdir / FILE).exists():
        return
    rows = read(workdir)
    kept = [row for row in rows if row.get("step", 0) <= start]
    try:
        if rows and not kept:
            with open(workdir / BEFORE, "a") as before:
                before.writelines(json.dumps(row) + "\n" for row in rows)
            os.remove(workdir / FILE)
            print(f"note: {workdir} has metrics and no checkpoint: they are in {BEFORE} now", file=sys.stderr)
        else:
            with atomic(workdir / FILE) as unfinished:
                unfinished.write_text("".join(json.dumps(row) + "\n" for row in kept))
    except OSError as error:
        raise UserError(f"{workdir / FILE} cannot be written ({error.strerror}): make room, and start again") from None


def missing(workdir: Path, step: int, due: Sequence[str]) -> list[str]:
    """Returns what was due at a saved step and was not made, since the run was stopped there, see `Loop.due_at`."""
    rows = read(workdir) if due and (workdir / FILE).exists() else []
    made = {name.partition("/")[0] for row in rows if row.get("step") == step for name in row}
    if any((workdir / "samples").glob(f"step_{step:07d}.*")):
        made.add("grid")
    return [name for name in due if name not in made]


def losses_first(names: Iterable[str]) -> list[str]:
    """Returns names of metrics, those of losses first, of which the others come."""
    return sorted(names, key=lambda name: not name.endswith("loss"))


class Writer:
    """Appends to workdir/metrics.jsonl, and to TensorBoard's event files there where clu can write them.

    Args:
      workdir: the run's folder.
      write: False for all processes but the first: they write nothing.
    """

    def __init__(self, workdir: Path, write: bool = True):
        self._file = open(workdir / FILE, "a", buffering=1) if write else None  # noqa: SIM115
        self._board = _tensorboard(workdir) if write else None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *error) -> None:
        for writer in (self._file, self._board):
            if writer:
                writer.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """A line of JSON; what is not finite is written as null."""
        if self._file:
            finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
            self._file.write(json.dumps({"step": step} | finite) + "\n")
        if self._board:
            self._board.write_scalars(step, values)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """image: uint8 (H, W, 3); to TensorBoard alone, files are the caller's."""
        if self._board:
            self._board.write_images(step, {name: image[None]})


def _tensorboard(workdir: Path):
    try:
        from clu import metric_writers
    except ImportError:  # clu writes events through tensorflow: the extra [tensorboard]
        return None
    return metric_writers.SummaryWriter(str(workdir))


class Meter:
    """The speed of training between two logs, without its pauses and the compilation.

    Args:
      examples: examples of one step, on all devices.
      steps_per_call: steps of one compiled call.
      flops: FLOPs of the matrix products of one step.
      peak: most FLOP/s of matrix products, on all devices.
    """

    def __init__(self, examples: int, steps_per_call: int, flops: float, peak: float):
        self._examples, self._steps_per_call, self._flops, self._peak = examples, steps_per_call, flops, peak
        self._began: float | None = None
        self._steps = 0

    def count(self, metrics: Any) -> None:
        """Counts a call. The first one, which compiles, only starts the clock."""
        if self._began is None:
            jax.block_until_ready(metrics)
            self.restart()
        else:
            self._steps += self._steps_per_call

    def restart(self) -> None:
        """Starts the clock."""
        self._began, self._steps = time.perf_counter(), 0

    def rates(self) -> dict[str, float]:
        """Returns examples/s, FLOP/s of the matrix products, and their share of the peak; {} before the second call."""
        if self._began is None or not self._steps:
            return {}
        rate = self._steps / (time.perf_counter() - self._began)
        flops = rate * self._flops
        return {
            "images_per_second": rate * self._examples,
            "flops_per_second": flops,
            "share_of_matmul_peak": flops / self._peak,
        }
