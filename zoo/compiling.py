"""Compiling: what a program that runs once does without."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_once = contextvars.ContextVar("once", default=False)


@contextlib.contextmanager
def compiled_for_once() -> Iterator[None]:
    """Within, layers are a loop and attention is XLA's, on every device: a program that runs once must compile fast."""
    token = _once.set(True)
    try:
        yield
    finally:
        _once.reset(token)


def runs_once() -> bool:
    """Whether the program that is traced is within `compiled_for_once`."""
    return _once.get()


def writes_loops_out() -> bool:
    """Whether to write a loop over layers out: as a loop, they cost XLA's CPU code a fifth more time."""
    return jax.default_backend() == "cpu" and not runs_once()
