"""Ctrl-C and SIGTERM make the loop save and stop."""

import os
import signal

import jax
import numpy as np
from jax.experimental import multihost_utils


class GracefulShutdown:
    """Within `with GracefulShutdown() as shutdown`, the first signal sets `shutdown.requested`.

    A second one acts as usual. Of several processes jax watches for SIGTERM, and all stop at the same call.
    """

    def __init__(self):
        self.requested = False

    def __enter__(self) -> "GracefulShutdown":
        signals = [signal.SIGINT] + [signal.SIGTERM] * (jax.process_count() == 1)
        self._before = {number: signal.signal(number, self._request) for number in signals}
        return self

    def _request(self, number, frame):
        self.requested = True
        self._restore()
        # A handler may interrupt a print, and prints may not nest.
        os.write(2, b"\nstopping: this step ends and is saved; the same signal again ends at once\n")

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *error):
        self._restore()

    def agreed(self, call: int, now: bool) -> bool:
        """Whether to stop after a call of the step: all processes leave after the same one.

        Args:
          call: number of the call, which each process counts.
          now: whether all may exchange who got Ctrl-C, which costs time. SIGTERM needs no such moment.
        """
        if jax.process_count() == 1:
            return self.requested
        if multihost_utils.reached_preemption_sync_point(call):
            return True
        return now and bool(multihost_utils.process_allgather(np.array(self.requested)).any())
