"""Editing of images through their codes: some are drawn again, the others stay."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from zoo.families import require
from zoo.method import Fills, to_float, to_uint8
from zoo.runs.editor import keys_of
from zoo.runs.run import Run
from zoo.runs.sampler import sample_options
from zoo.training import parallel


class CodeEditor:
    """Draws a part of the codes of images again, on all local devices.

    The result for example i depends on it, its caption and (seed, i) alone, see `parallel.pmap_in_batches`.

    Args:
      run: run on codes.
      per_device: images that a device takes at once.
      seed: seed of the draws.
      frame_rate: frames/s of videos; None for that of the run.
      **options: sampling options; they override the config's.

    Raises:
      UserError: the run's family lacks the ability `method.Fills`, or an option cannot be used.
    """

    def __init__(self, run: Run, per_device: int = 16, seed: int = 0, frame_rate: float | None = None, **options: Any):
        self.recipe, codec = run.recipe, run.recipe.codec
        method = require(run.method, Fills)
        self.settings = dict(self.recipe.config.sample) | options
        self.options = sample_options(method, self.settings)
        self.seed, self.per_device, self.params, self.frame_rate = seed, per_device, run.params, frame_rate

        def redraw(params, rows):
            inputs = codec.encode(params["frozen"], rows["inputs"]) if codec else to_float(rows["inputs"])
            made = method.fill(params, rows["rng"], inputs, ~rows["chosen"], rows["cond"], self.options)
            return to_uint8(codec.decode(params["frozen"], made) if codec else made)

        self._redraw = parallel.pmap_in_batches(redraw, per_device)

    def vary(self, pixels: np.ndarray, strength: float, captions: Sequence[str]) -> np.ndarray:
        """Draws the codes of each place again with the probability `strength`.

        Args:
          pixels: uint8 (N, T, H, W, C).
          strength: 0 keeps all codes, 1 draws all of them.
          captions: N texts.

        Returns:
          uint8 (N, T, H, W, C).
        """
        keys = keys_of(self.seed, "vary", len(pixels))
        shape = self.recipe.shape[:3]
        chosen = jax.vmap(lambda key: jax.random.uniform(key, shape) < strength)(keys)
        return self._with(np.asarray(chosen), pixels, captions)

    def inpaint(self, pixels: np.ndarray, mask: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """Draws the codes of all patches that a mask touches, and puts the known pixels back.

        Args:
          pixels: uint8 (N, T, H, W, C); values under the mask are ignored: the encoder, which may attend to them from
            anywhere, gets the mean of the others in their place.
          mask: bool, (H, W); True for pixels to fill in.
          captions: N texts.

        Returns:
          uint8 (N, T, H, W, C).
        """
        _, rows, columns, _ = self.recipe.shape
        height, width = mask.shape
        touched = mask.reshape(rows, height // rows, columns, width // columns).any(axis=(1, 3))
        chosen = np.broadcast_to(touched, (len(pixels), *self.recipe.shape[:3]))
        known = pixels[:, :, ~mask].mean(axis=(1, 2))[:, None, None, None] if not mask.all() else 0  # (N, 1, 1, 1, C)
        hidden = np.where(mask[..., None], np.round(known), pixels).astype(np.uint8)
        return np.where(mask[..., None], self._with(chosen, hidden, captions), pixels)

    def _with(self, chosen: np.ndarray, pixels: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        rows = {
            "inputs": pixels,
            "chosen": chosen,
            "cond": self.recipe.conditions(captions, frame_rate=self.frame_rate),
            "rng": keys_of(self.seed, "fill", len(pixels)),
        }
        return self._redraw(self.params, rows)
