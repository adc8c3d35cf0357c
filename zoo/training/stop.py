"""Leaving in good order: Ctrl-C and SIGTERM ask the loop to save and stop."""

import signal

import jax
import numpy as np
from jax.experimental import multihost_utils


class Stop:
    """Within `with Stop() as stop`, the first signal sets `stop.asked`; a second one acts as usual."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.asked = False

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._ask) for number in self.SIGNALS}
        return self

    def _ask(self, number, frame):
        self.asked = True
        self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error):
        self._restore()

    def agreed(self, now: bool) -> bool:
        """Whether to stop: at once where this process is alone; else, where `now`, if any process was asked.

        All processes must leave at the same step, and asking each other costs time: they do so where `now`.
        """
        if jax.process_count() == 1:
            return self.asked
        return now and bool(multihost_utils.process_allgather(np.array(self.asked)).any())
