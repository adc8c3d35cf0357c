"""Frozen networks that measures see pictures and captions through, and the features of real pictures, kept on disk."""

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import einops
import jax
import numpy as np

from zoo import cache
from zoo.data.pipeline import Source
from zoo.nets.inception import Inception
from zoo.pretrained import clip as clips
from zoo.pretrained import inception
from zoo.pretrained.clip import Clip
from zoo.scoring.resize import shortest_side_and_crop

PER_DEVICE = 64
SHIPPED = Path(__file__).with_name("clip_scenes")  # trained on scenes alone, see its README


class Features:
    """A frozen network, compiled for all local devices.

    Attributes:
      name: "clip", or "inception", which reads no texts.
      identity: a hash of the parameters, so that features kept on disk are never those of another network.
    """

    def __init__(self, name: str, params: Any, pictures: Callable, texts: Callable = None, encode: Callable = None):
        self.name, self._params, self._encode = name, jax.device_put(params), encode
        self._pictures, self._texts = jax.pmap(pictures, in_axes=(None, 0)), texts and jax.jit(texts)

    @functools.cached_property
    def identity(self) -> str:
        digest = hashlib.sha256(self.name.encode())
        for leaf in jax.tree.leaves(self._params):
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    def pictures(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 (N, T, H, W, 3) -> float32 (N, D); a clip's features are the mean of its frames'."""
        devices, count = jax.local_device_count(), len(pixels)
        frames = einops.rearrange(pixels, "n t h w c -> (n t) h w c")
        size = min(PER_DEVICE, -(-len(frames) // devices)) * devices
        made = []
        for start in range(0, len(frames), size):  # calls return before they are done, so that devices never wait
            part = frames[start : start + size]
            filled = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])
            split = einops.rearrange(filled, "(d n) h w c -> d n h w c", d=devices)
            made.append(self._pictures(self._params, split))
        rows = np.concatenate([einops.rearrange(np.asarray(part), "d n f -> (d n) f") for part in made])
        return einops.reduce(rows[: len(frames)], "(n t) f -> n f", "mean", n=count)

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """N captions -> float32 (N, D)."""
        ids = self._encode(captions)
        filled = np.pad(ids, ((0, -len(ids) % PER_DEVICE), (0, 0)), mode="edge")
        parts = filled.reshape(-1, PER_DEVICE, ids.shape[1])
        return np.concatenate([self._texts(self._params, part) for part in parts])[: len(ids)]


def clip_features(folder: str | os.PathLike = SHIPPED, prefix: str = "") -> Features:
    """A CLIP folder as features; `prefix` stands before every caption, e.g. "A photo depicts " (2104.08718)."""
    clip: Clip = clips.load(folder)

    def pictures(params, pixels):
        x = clip.normalise(shortest_side_and_crop(pixels, clip.model.image_size))
        return clip.model.apply({"params": params}, x, method="pictures")

    texts = lambda params, ids: clip.model.apply({"params": params}, ids, method="texts")
    encode = lambda captions: clip.encode([prefix + caption for caption in captions])
    return Features("clip", clip.params, pictures, texts, encode)


def inception_features(path: str | os.PathLike, resize: str = "pytorch") -> Features:
    """The published Inception as features, see `pretrained.inception.load` and `preprocess`."""
    apply = lambda params, pixels: Inception().apply({"params": params}, inception.preprocess(pixels, resize))
    return Features("inception", inception.load(path), apply)


def of_source(features: Features, source: Source, about: dict[str, Any], indices: Sequence[int]) -> np.ndarray:
    """The features of real pictures, (N, D); made once for each data set, size and network.

    Args:
      features: the network.
      source: the data.
      about: what names the data: its spec, split, size.
      indices: the items.
    """

    def write(file: Path) -> None:
        np.save(file, features.pictures(np.stack([source[i]["pixels"] for i in indices])))

    key = [cache.fingerprint(source, about, indices), features.identity]
    return np.array(cache.kept("features", key, write))
