"""Files of this machine, which appear whole or not at all."""

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.errors import UserError


def local(path: str | os.PathLike) -> Path:
    """Returns a path of this machine, with ~ for the home folder; raises UserError for an address, as gs://bucket/run.

    Where a bucket is mounted, it has a path.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):  # pathlib makes one slash of two
        raise UserError(f"{path} is no path of this machine: mount the bucket, and give the path that it then has")
    return Path(path).expanduser()


def read_text(path: str | os.PathLike) -> str:
    """Returns the text of a file; raises UserError where it cannot be read or is not UTF-8."""
    try:
        return local(path).read_text("utf-8")
    except FileNotFoundError:
        raise UserError(f"no such file: {str(path)!r}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is not UTF-8") from None


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yields the path of an unfinished file or folder, which becomes `path` if the block ends without an error.

    Folders above it are made. An error, or a killed process, leaves `path` as it was.
    """
    path = local(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, not the process id: containers that share a folder have equal ids. Writers need the suffix to stay.
    unfinished = path.with_name(f".unfinished_{secrets.token_hex(4)}_{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        else:
            unfinished.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes indented JSON, atomically."""
    with atomic(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
