"""Images of a class that a trained run makes, so that learning one of its kind changes nothing else."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

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
        digest = hashlib.sha256(json.dumps(self._captions).encode() + self._images.tobytes())
        return {"made": digest.hexdigest()}


def made_by(run: Run, captions_of: Callable[[], list[str]], workdir: Path | None) -> Made:
    """Returns an image for each caption; they are kept in WORKDIR/prior.npz, and read from there.

    Args:
      run: what makes them, with the sampling options of its config.
      captions_of: returns N texts; not called where the file is there.
      workdir: folder; None for none.

    Raises:
      UserError: the file cannot be read.
    """
    file = workdir / FILE if workdir else None
    if file and processes.from_first(file.exists):
        try:
            with np.load(file) as saved:
                return Made(saved["images"], json.loads(str(saved["captions"])))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{file} cannot be read ({error}): delete it, and it is made again") from None
    captions = captions_of()
    processes.note(f"making {len(captions)} images of the class by {run.recipe.config.method.name}, once")
    made = Made(run.sample(captions, seed=SEED, frames=1), captions)
    if file and processes.first():
        with atomic(file) as unfinished, open(unfinished, "wb") as opened:
            np.savez(
                opened, images=np.stack([made[i]["inputs"] for i in range(len(made))]), captions=json.dumps(captions)
            )
    return made
