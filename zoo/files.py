"""Files of this machine, which appear whole or not at all."""

import contextlib
import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import UserError

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes
UNFINISHED = ".unfinished_{}_"  # before the name of a file that is not yet whole


def local(path: str | os.PathLike) -> Path:
    """Returns a path of this machine, with ~ for the home folder; raises UserError for an address, as gs://bucket/run.

    Where a bucket is mounted, it has a path. A user without a home folder, and names that no file can have, are errors
    too.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):  # pathlib makes one slash of two
        raise UserError(f"{path} is no path of this machine: mount the bucket, and give the path that it then has")
    try:
        found = Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path} begins with a user who has no home folder: give the whole path") from None
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in found.parts) or len(os.fsencode(found)) > LONGEST_PATH:
        raise UserError(f"{str(path)[:40]}... is longer than a path can be: give a shorter one")
    return found


def check_output(path: str | os.PathLike, suffixes: Sequence[str] = ()) -> Path:
    """Returns the path of a file to write later; raises UserError where it cannot be written. Nothing is left there.

    Args:
      path: path of the file; the folders above it may be missing.
      suffixes: those that it may have; none for any.
    """
    found = local(path)
    if suffixes and found.suffix.lower() not in suffixes:
        raise UserError(f"{path} is not named {' or '.join(suffixes)}: give it that suffix")
    if len(os.fsencode(found.name)) > LONGEST_NAME - len(UNFINISHED.format(secrets.token_hex(4))):
        raise UserError(f"{found.name[:40]}... is a longer name than can be written: give a shorter one")
    there = next(parent for parent in found.parents if parent.exists())
    blocking = found if found.is_dir() else None if there.is_dir() else there
    if blocking:
        kind = "folder" if blocking.is_dir() else "file"
        raise UserError(f"{path} cannot be written: {blocking} is a {kind}; name another file")
    try:
        with tempfile.TemporaryFile(dir=there):
            return found
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file") from None


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
    unfinished = path.with_name(UNFINISHED.format(secrets.token_hex(4)) + path.name)
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
