"""Images of a class that a trained run makes, so that learning one of its kind changes nothing else."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zoo.cache import content_hash
from zoo.errors import UserError
from zoo.files import atomic
from zoo.runs.run import Run
from zoo.training import processes

FILE = "prior.npz"
SEED = 0


class Made:
    """A source of images that were made, uint8 (N, T, H, W, 3), with their captions."""

    def __init__(self, images: np.ndarray, captions: list[str]):
        self._images, self._captions = images, captions

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"inputs": self._images[i], "text": self._captions[i], "frame_rate": 0.0}

    def text(self, i: int) -> str:
        """Returns the caption of an image."""
        return self._captions[i]

    @property
    def about(self) -> dict[str, str]:
        """Hash of all, for a cache."""
        return {"made": content_hash(self)}


def made_by(run: Run, captions_of: Callable[[], list[str]], file: Path, again: bool) -> Made:
    """Returns an image for each caption; they are kept in a file, and read from there.

    Args:
      run: what makes them, with the sampling options of its config.
      captions_of: returns N texts; not called where the file is read.
      file: path of the .npz file.
      again: whether to make them where the file is there too.

    Raises:
      UserError: the file cannot be read or written.
    """
    if not again and processes.from_first(file.exists):
        return _read(file)
    captions = captions_of()
    processes.note(f"making {len(captions)} images of the class by {run.recipe.config.method.name}, once")
    images = run.sample(captions, seed=SEED, frames=1)
    processes.from_first(lambda: _write(file, images, captions))
    return Made(images, captions)


def _read(file: Path) -> Made:
    try:
        with np.load(file) as saved:
            return Made(saved["images"], json.loads(str(saved["captions"])))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} cannot be read ({error}): restore it, or train in another --workdir") from None


def _write(file: Path, images: np.ndarray, captions: list[str]) -> None:
    try:
        with atomic(file) as unfinished, open(unfinished, "wb") as opened:
            np.savez(opened, images=images, captions=json.dumps(captions))
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error}): make room, and start again") from None
