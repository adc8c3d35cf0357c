"""What is made once and kept on the disk: in $ZOO_CACHE, or ~/.cache/zoo."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def folder(name: str = "") -> Path:
    """The cache's folder of that name, which need not exist."""
    return Path(os.environ.get("ZOO_CACHE") or "~/.cache/zoo").expanduser() / name


def kept(name: str, key: Any, write: Callable[[Path], None]) -> np.ndarray:
    """An array that is made once for each key, mapped from the disk.

    Args:
      name: of the folder.
      key: what the array depends on, as JSON can write it.
      write: makes the array and writes it to a .npy file; not called where the array is there.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    file = folder(name) / f"{digest}.npy"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f".{os.getpid()}_{file.name}")
        try:
            write(unfinished)
            os.replace(unfinished, file)  # whole or not at all
        finally:
            unfinished.unlink(missing_ok=True)
    return np.load(file, mmap_mode="r")


def fingerprint(source: Sequence[dict[str, Any]], about: dict[str, Any], indices: Sequence[int]) -> list[Any]:
    """A key for items of a source: what names the source, and two of its pictures, since a folder's may change."""
    probes = [hashlib.sha256(source[i]["pixels"].tobytes()).hexdigest() for i in (indices[0], indices[-1])]
    return [about, len(source), hashlib.sha256(np.asarray(indices, np.int64).tobytes()).hexdigest(), probes]
