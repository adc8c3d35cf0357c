"""Pictures as the latents of a frozen autoencoder, which a generator is trained on where `data.latents` names a run."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from zoo import cache
from zoo.data import pipeline
from zoo.method import Autoencoder, to_float
from zoo.training import parallel

PER_DEVICE = 64
MEASURED_ON = 1000  # pictures that the latents' mean and standard deviation are taken from


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """A frozen autoencoder whose latents have mean 0 and standard deviation 1 in each channel.

    Attributes:
      method, params: the autoencoder.
      checkpoint: the step that its parameters are of.
      mean, std: of each channel of its own latents, (c,).
    """

    method: Autoencoder
    params: Any
    checkpoint: int
    mean: np.ndarray = 0.0
    std: np.ndarray = 1.0

    @functools.cached_property
    def identity(self) -> str:
        """A hash of the parameters."""
        leaves = (np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(self.params))
        return hashlib.sha256(b"".join(leaves)).hexdigest()[:16]

    @property
    def scale(self) -> dict[str, Any]:
        """`mean` and `std` as JSON can write them."""
        return {"mean": np.asarray(self.mean).tolist(), "std": np.asarray(self.std).tolist()}

    def encode(self, params: Any, pixels: jax.Array) -> jax.Array:
        """Pixels uint8 or in [-1, 1], (B, T, H, W, C) -> latents (B, T, h, w, c)."""
        return (self.method.encode(params, to_float(pixels)) - self.mean) / self.std

    def decode(self, params: Any, latents: jax.Array) -> jax.Array:
        """The way back; params are passed by the caller, since a compiled program should not hold them."""
        return self.method.decode(params, latents * self.std + self.mean)

    def shape(self, pixels: Sequence[int]) -> tuple[int, ...]:
        """(T, H, W, C) of a picture -> (T, h, w, c) of its latents."""
        batch = jax.ShapeDtypeStruct((1, *pixels), jnp.uint8)
        return jax.eval_shape(self.encode, self.params, batch).shape[1:]

    def encode_items(self, source: pipeline.Source, indices: Sequence[int], out: np.ndarray) -> None:
        """Writes the latents of items of a source to the rows of `out`, (N, T, h, w, c)."""
        encode = parallel.in_parts(self.encode, PER_DEVICE)
        count = jax.local_device_count() * PER_DEVICE
        for start in tqdm.trange(0, len(indices), count, desc="latents", unit=" parts", leave=False):
            part = np.stack([source[i]["pixels"] for i in indices[start : start + count]])
            out[start : start + len(part)] = encode(self.params, part)

    def measured(self, source: pipeline.Source) -> "Codec":
        """This codec with the mean and standard deviation of the latents of some pictures, evenly spread."""
        count = min(MEASURED_ON, len(source))
        indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
        latents = np.empty((count, *self.shape(source[0]["pixels"].shape)), np.float32)
        self.encode_items(source, indices, latents)
        axes = tuple(range(latents.ndim - 1))
        std = np.maximum(latents.std(axes, dtype=np.float64), 1e-6)  # a channel that says nothing stays 0
        return dataclasses.replace(self, mean=latents.mean(axes, dtype=np.float64), std=std)

    def source(self, source: pipeline.Source, about: dict[str, Any]) -> "Latents":
        """The source with latents in place of pixels; encoded once for each data set and autoencoder.

        Args:
          source: of pictures.
          about: what names it.
        """

        def write(file: Path) -> None:
            shape = len(source), *self.shape(source[0]["pixels"].shape)
            array = np.lib.format.open_memmap(file, "w+", np.float32, shape)
            self.encode_items(source, range(len(source)), array)
            array.flush()

        key = [cache.fingerprint(source, about, range(len(source))), self.identity, self.scale]
        return Latents(cache.kept("latents", key, write), pipeline.captions(source, limit=len(source)))


class Latents:
    """A source whose `pixels` are latents, float32 (T, h, w, c)."""

    def __init__(self, array: np.ndarray, texts: list[str]):
        self._array, self._texts = array, texts

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"pixels": np.asarray(self._array[i]), "text": self._texts[i]}

    def texts(self) -> list[str]:
        return self._texts
