"""Encodes images as latents of the frozen autoencoder that `data.latents` names, and decodes them."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from zoo import cache
from zoo.data import images, pipeline
from zoo.method import Autoencodes, to_float
from zoo.training import parallel
from zoo.trees import tree_hash

PER_DEVICE = 64
MEASURED_ON = 1000  # images from which the latents' mean and standard deviation are taken


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """A frozen autoencoder. Real latents have mean 0 and standard deviation 1 in each channel, discrete ones are codes.

    Its functions take the autoencoder's parameters, which a compiled program must not hold.

    Attributes:
      method: autoencoder.
      mean: mean of each channel of its own latents, (c,).
      std: standard deviation of each channel, (c,).
    """

    method: Autoencodes
    mean: Any = 0.0
    std: Any = 1.0

    @property
    def codes(self) -> int | None:
        """Number of codes of an autoencoder with discrete latents; None for real latents."""
        return getattr(self.method, "codes", None)

    @property
    def dtype(self) -> Any:
        """Type of the latents."""
        return np.dtype(np.uint16 if self.codes else np.float32)

    @property
    def scale(self) -> dict[str, Any]:
        """`mean` and `std` as JSON can write them."""
        return {"mean": np.asarray(self.mean).tolist(), "std": np.asarray(self.std).tolist()}

    def scaled(self, scale: Mapping[str, Any]) -> "Codec":
        """Returns this codec with another `scale`."""
        return dataclasses.replace(self, mean=np.array(scale["mean"]), std=np.array(scale["std"]))

    def encode(self, params: Any, images: jax.Array) -> jax.Array:
        """Images uint8 or in [-1, 1], (B, T, H, W, C) -> latents (B, T, h, w, c)."""
        latents = self.method.encode(params, to_float(images))
        return latents.astype(self.dtype) if self.codes else (latents - self.mean) / self.std

    def decode(self, params: Any, latents: jax.Array) -> jax.Array:
        """The inverse of `encode`, float32 in [-1, 1]."""
        return self.method.decode(params, latents if self.codes else latents * self.std + self.mean)

    def shape(self, params: Any, images: Sequence[int]) -> tuple[int, ...]:
        """(T, H, W, C) of an image -> (T, h, w, c) of its latents."""
        batch = jax.ShapeDtypeStruct((1, *images), jnp.uint8)
        return jax.eval_shape(self.encode, params, batch).shape[1:]

    def encode_items(
        self, params: Any, source: pipeline.Source, indices: Sequence[int], out: np.ndarray
    ) -> list[dict[str, Any]]:
        """Writes the latents of items of a source to the rows of `out`, (N, T, h, w, c); returns their captions."""
        encode, params = parallel.pmap_in_batches(self.encode, PER_DEVICE), parallel.place(params)
        count, beside = jax.local_device_count() * PER_DEVICE, []
        for start in tqdm.trange(0, len(indices), count, desc="latents", unit=" parts", leave=False, disable=None):
            items = [source[i] for i in indices[start : start + count]]
            out[start : start + len(items)] = encode(params, np.stack([item["inputs"] for item in items]))
            beside += [_rest(item) for item in items]
        return beside

    def measured(self, params: Any, source: pipeline.Source) -> "Codec":
        """Returns this codec with the scale of the latents of images evenly spread over a source; codes have none."""
        if self.codes:
            return self
        count = min(MEASURED_ON, len(source))
        indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
        latents = np.empty((count, *self.shape(params, source[0]["inputs"].shape)), np.float32)
        self.encode_items(params, source, indices, latents)
        axes = tuple(range(latents.ndim - 1))
        std = np.maximum(latents.std(axes, dtype=np.float64), 1e-6)  # a constant channel stays 0
        return dataclasses.replace(self, mean=latents.mean(axes, dtype=np.float64), std=std)

    def source(self, params: Any, source: pipeline.Source, about: dict[str, Any]) -> "Latents":
        """Returns the source with latents as inputs, encoded once for each data set and autoencoder.

        Args:
          params: parameters of the autoencoder.
          source: images.
          about: name of the source, for the cache.
        """
        images_shape = source[0]["inputs"].shape
        items: list[dict[str, Any]] = []  # what is beside the inputs: of a damaged item the next one's is read

        def write(file: Path) -> None:
            shape = len(source), *self.shape(params, images_shape)
            array = np.lib.format.open_memmap(file, "w+", self.dtype, shape)
            items.extend(self.encode_items(params, source, range(len(source)), array))
            array.flush()

        def write_rest(file: Path) -> None:
            rest = items or [_rest(source[i]) for i in range(len(source))]
            with open(file, "wb") as opened:
                np.save(opened, np.frombuffer(json.dumps(rest).encode(), np.uint8))

        frames = images_shape[0]
        if frames > 1 and hasattr(source, "part"):
            images.Notices().add("part", f"data.latents: of each video the first {frames} frames are encoded alone")
        key = [cache.fingerprint(source, about, range(len(source))), tree_hash(params), self.scale, "with texts"]
        array = cache.kept("latents", key, write)
        return Latents(array, json.loads(cache.kept("latents", [*key, "rest"], write_rest).tobytes()))


def _rest(item: dict[str, Any]) -> dict[str, Any]:
    """The caption of an item, and its frame rate if it has one."""
    rate = {"frame_rate": float(item["frame_rate"])} if "frame_rate" in item else {}
    return {"text": item["text"]} | rate


class Latents:
    """A source whose inputs are latents, (T, h, w, c), with the captions and frame rates of the items."""

    def __init__(self, array: np.ndarray, items: list[dict[str, Any]]):
        self._array, self._items = array, items

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"inputs": np.asarray(self._array[i]), **self._items[i]}

    def text(self, i: int) -> str:
        """Returns the caption of an item."""
        return self._items[i]["text"]
