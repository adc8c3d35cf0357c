"""Where the numbers of training go: metrics.jsonl always, TensorBoard where its needs are installed."""

import json
import math
from pathlib import Path

import jax
import numpy as np


class Window:
    """Metrics of the steps since the last log, kept on the device until they are asked for."""

    def __init__(self):
        self._calls = []

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """metrics: (local devices, K) each, equal over the devices."""
        self._calls.append(metrics)

    def take(self) -> tuple[dict[str, float], str | None]:
        """Returns means over the finite steps, and the name of the first metric not finite at the last step."""
        calls = [
            {name: np.asarray(value.addressable_data(0))[0] for name, value in call.items()} for call in self._calls
        ]
        self._calls = []
        series = {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}
        bad = next((name for name, values in series.items() if not np.isfinite(values[-1])), None)
        means = {
            name: float(np.mean(values[np.isfinite(values)])) if np.isfinite(values).any() else math.nan
            for name, values in series.items()
        }
        return means, bad


class Writer:
    """Appends to workdir/metrics.jsonl, and to TensorBoard's event files there where clu can write them.

    Args:
      workdir: the run's folder.
      write: False for all processes but the first: they write nothing.
    """

    def __init__(self, workdir: Path, write: bool = True):
        self._file = open(workdir / "metrics.jsonl", "a", buffering=1) if write else None  # noqa: SIM115
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

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """picture: uint8 (H, W, 3); to TensorBoard alone, files are the caller's."""
        if self._board:
            self._board.write_images(step, {name: picture[None]})


def _tensorboard(workdir: Path):
    try:
        from clu import metric_writers
    except ImportError:  # clu writes events through tensorflow: the extra [tensorboard]
        return None
    return metric_writers.SummaryWriter(str(workdir))
