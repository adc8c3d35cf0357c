"""Arrays that are made once and kept on the disk: in $ZOO_CACHE, or ~/.cache/zoo."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.files import atomic


def folder(name: str = "") -> Path:
    """Returns the cache's folder of that name, which need not exist."""
    return Path(os.environ.get("ZOO_CACHE") or "~/.cache/zoo").expanduser() / name


def kept(name: str, key: Any, write: Callable[[Path], None]) -> np.ndarray:
    """Returns an array that is made once for each key, mapped from the disk.

    Args:
      name: name of the folder.
      key: content that the array depends on, as JSON can write it.
      write: writes the array to a .npy file; not called where the array is there.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    file = folder(name) / f"{digest}.npy"
    if not file.exists():
        with atomic(file) as unfinished:
            write(unfinished)
    return np.load(file, mmap_mode="r")


def fingerprint(source: Any, about: dict[str, Any], indices: Sequence[int]) -> list[Any]:
    """Returns a key for items of a source: name, length, and hashes of the indices and of the first and last image."""
    probes = [hashlib.sha256(source[i]["inputs"].tobytes()).hexdigest() for i in (indices[0], indices[-1])]
    return [about, len(source), hashlib.sha256(np.asarray(indices, np.int64).tobytes()).hexdigest(), probes]


def content_hash(source: Any) -> str:
    """Returns a hash of all images and captions of a small source."""
    digest = hashlib.sha256(json.dumps([source.text(i) for i in range(len(source))]).encode())
    for i in range(len(source)):
        digest.update(source[i]["inputs"].tobytes())
    return digest.hexdigest()
