"""Ctrl-C and SIGTERM make the loop save and stop."""

import signal

import jax
import numpy as np
from jax.experimental import multihost_utils


class GracefulShutdown:
    """Within `with GracefulShutdown() as shutdown`, the first signal sets `shutdown.requested`.

    A second one acts as usual.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.requested = False

    def __enter__(self) -> "GracefulShutdown":
        self._before = {number: signal.signal(number, self._request) for number in self.SIGNALS}
        return self

    def _request(self, number, frame):
        self.requested = True
        self._restore()

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error):
        self._restore()

    def agreed(self, now: bool) -> bool:
        """Whether to stop: at once where this process is alone; else, where `now`, if any process got a signal.

        All processes must leave at the same step; the exchange costs time, so they do it where `now`.
        """
        if jax.process_count() == 1:
            return self.requested
        return now and bool(multihost_utils.process_allgather(np.array(self.requested)).any())
