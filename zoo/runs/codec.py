"""Encodes images as inputs of another kind, and decodes them.

These are latents of the frozen autoencoder that `data.latents` names, or codes of the tokenizer that `data.codes`
names.
"""

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
from zoo.method import to_float, to_uint8
from zoo.training import parallel
from zoo.trees import tree_hash

PIXELS = "pixels"  # the tokenizer of that name
NAME = "latents"  # of the frozen network, whether it makes latents or codes
PER_DEVICE = 64
MEASURED_ON = 1000  # images from which the latents' mean and standard deviation are taken


class Pixels:
    """The tokenizer "pixels": an image's codes are its numbers of 256 levels themselves."""

    codes, chunk = 256, 1

    def to_codes(self, params: Any, inputs: jax.Array) -> jax.Array:
        """See `Tokenizes.to_codes`."""
        del params
        return to_uint8(inputs).astype(jnp.int32)

    def from_codes(self, params: Any, codes: jax.Array) -> jax.Array:
        """See `Tokenizes.from_codes`."""
        del params
        return to_float(codes.astype(jnp.uint8))


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """A frozen autoencoder or tokenizer. Latents have mean 0 and standard deviation 1 in each channel.

    Its functions take the parameters of the frozen networks by name, which a compiled program must not hold.

    Attributes:
      method: with the ability `Autoencodes`, or for codes `Tokenizes`.
      codes: number of codes; None for latents.
      mean: mean of each channel of its own latents, (c,).
      std: standard deviation of each channel, (c,).
    """

    method: Any
    codes: int | None = None
    mean: Any = 0.0
    std: Any = 1.0

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

    def encode(self, frozen: Mapping[str, Any], images: jax.Array) -> jax.Array:
        """Images uint8 or in [-1, 1], (B, T, H, W, C) -> latents, or codes of type `dtype`, (B, T, h, w, c)."""
        params, inputs = frozen.get(NAME, {}), to_float(images)
        if self.codes:
            return self.method.to_codes(params, inputs).astype(self.dtype)
        return (self.method.encode(params, inputs) - self.mean) / self.std

    def decode(self, frozen: Mapping[str, Any], inputs: jax.Array) -> jax.Array:
        """The inverse of `encode`, float32 in [-1, 1]."""
        params = frozen.get(NAME, {})
        if self.codes:
            return self.method.from_codes(params, inputs)
        return self.method.decode(params, inputs * self.std + self.mean)

    def shape(self, frozen: Mapping[str, Any], images: Sequence[int]) -> tuple[int, ...]:
        """(T, H, W, C) of an image -> (T, h, w, c) of its latents or codes."""
        batch = jax.ShapeDtypeStruct((1, *images), jnp.uint8)
        return jax.eval_shape(self.encode, frozen, batch).shape[1:]

    @property
    def chunk(self) -> int:
        """Number of frames that an encoded one covers, but for the first, which is one."""
        return getattr(self.method, "chunk", 1)

    def whole_frames(self, frames: int) -> int:
        """Returns the fewest frames, at least so many, that make whole chunks."""
        return 1 + -(-(frames - 1) // self.chunk) * self.chunk

    def encode_items(
        self, frozen: Mapping[str, Any], source: pipeline.Source, indices: Sequence[int], out: np.ndarray
    ) -> list[dict[str, Any]]:
        """Writes the latents of items of a source to the rows of `out`, (N, T, h, w, c); returns their captions."""
        encode, params = parallel.pmap_in_batches(self.encode, PER_DEVICE), parallel.place(_own(frozen))
        count, beside = jax.local_device_count() * PER_DEVICE, []
        for start in tqdm.trange(0, len(indices), count, desc="latents", unit=" parts", leave=False, disable=None):
            items = [source[i] for i in indices[start : start + count]]
            out[start : start + len(items)] = encode(params, np.stack([item["inputs"] for item in items]))
            beside += [self._rest(item) for item in items]
        return beside

    def measured(self, frozen: Mapping[str, Any], source: pipeline.Source) -> "Codec":
        """Returns this codec with the scale of the latents of images evenly spread over a source; codes have none."""
        if self.codes:
            return self
        count = min(MEASURED_ON, len(source))
        indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
        latents = np.empty((count, *self.shape(frozen, source[0]["inputs"].shape)), np.float32)
        self.encode_items(frozen, source, indices, latents)
        axes = tuple(range(latents.ndim - 1))
        std = np.maximum(latents.std(axes, dtype=np.float64), 1e-6)  # a constant channel stays 0
        return dataclasses.replace(self, mean=latents.mean(axes, dtype=np.float64), std=std)

    def source(self, frozen: Mapping[str, Any], source: pipeline.Source, about: dict[str, Any]) -> "Encoded":
        """Returns the source with latents or codes as inputs, encoded once for each data set and network.

        Args:
          frozen: parameters of the frozen networks by name.
          source: images.
          about: name of the source, for the cache.
        """
        images_shape = source[0]["inputs"].shape
        items: list[dict[str, Any]] = []  # what is beside the inputs: of a damaged item the next one's is read

        def write(file: Path) -> None:
            shape = len(source), *self.shape(frozen, images_shape)
            array = np.lib.format.open_memmap(file, "w+", self.dtype, shape)
            items.extend(self.encode_items(frozen, source, range(len(source)), array))
            array.flush()

        def write_rest(file: Path) -> None:
            rest = items or [self._rest(source[i]) for i in range(len(source))]
            with open(file, "wb") as opened:
                np.save(opened, np.frombuffer(json.dumps(rest).encode(), np.uint8))

        frames = images_shape[0]
        if frames > 1 and hasattr(source, "part"):
            images.Notices().add("part", f"of each video the first {frames} frames alone are encoded")
        key = [
            cache.fingerprint(source, about, range(len(source))),
            tree_hash(_own(frozen)),
            self.scale,
            self.codes,
            "with texts",
        ]
        array = cache.kept("latents", key, write)
        return Encoded(array, json.loads(cache.kept("latents", [*key, "rest"], write_rest).tobytes()))

    def _rest(self, item: dict[str, Any]) -> dict[str, Any]:
        """The caption of an item, and its frame rate if it has one: that of chunks."""
        rate = {"frame_rate": float(item["frame_rate"]) / self.chunk} if "frame_rate" in item else {}
        return {"text": item["text"]} | rate


def _own(frozen: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a codec needs."""
    return {name: tree for name, tree in frozen.items() if name == NAME}


class Encoded:
    """A source whose inputs are latents or codes, (T, h, w, c), with the captions and frame rates of the items."""

    def __init__(self, array: np.ndarray, items: list[dict[str, Any]]):
        self._array, self._items = array, items

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"inputs": np.asarray(self._array[i]), **self._items[i]}

    def text(self, i: int) -> str:
        """Returns the caption of an item."""
        return self._items[i]["text"]
