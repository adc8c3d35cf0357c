"""Frozen feature networks of the measures, and the features of real images, kept on disk."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import einops
import jax
import numpy as np

from zoo import cache
from zoo.data.pipeline import Source
from zoo.errors import UserError
from zoo.nets.inception import Inception
from zoo.pretrained import clip as clips
from zoo.pretrained import inception
from zoo.resize import shortest_side_and_crop
from zoo.training.parallel import place, pmap_in_batches
from zoo.trees import tree_hash

PER_DEVICE = 64


class Features:
    """A frozen network, compiled for all local devices.

    Args:
      name: "clip" or "inception".
      params: parameters of the network.
      images: params, uint8 (B, H, W, 3) -> features (B, D).
      texts: params, ids (B, L) -> features (B, D); None where it has no texts.
      encode: captions -> ids.
    """

    def __init__(
        self,
        name: str,
        params: Any,
        images: Callable,
        texts: Callable | None = None,
        encode: Callable[[Sequence[str]], np.ndarray] | None = None,
    ):
        self.name, self._params, self._encode = name, place(params), encode
        self._image_function = images
        self._texts = texts and pmap_in_batches(texts, PER_DEVICE, exact=True)

    @functools.cached_property
    def identity(self) -> str:
        """Hash of name and parameters, so that features kept on disk are never those of another network."""
        return f"{self.name}_{tree_hash(self._params)}"

    @functools.cache  # noqa: B019, a program for few images does not compute on 64
    def _images(self, per_device: int) -> pmap_in_batches:
        return pmap_in_batches(self._image_function, per_device, exact=True)

    def images(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 (N, T, H, W, 3) -> float32 (N, D); a video's features are the mean of its frames'."""
        frames = einops.rearrange(pixels, "n t h w c -> (n t) h w c")
        per_device = min(PER_DEVICE, -(-len(frames) // jax.local_device_count()))
        rows = self._images(per_device)(self._params, frames)
        return einops.reduce(rows, "(n t) f -> n f", "mean", n=len(pixels))

    def texts(self, captions: Sequence[str]) -> np.ndarray:
        """N captions -> float32 (N, D)."""
        if self._texts is None or self._encode is None:
            raise UserError(f"{self.name} has no features of texts")
        return self._texts(self._params, self._encode(captions))


def clip_features(name: str | os.PathLike = "zoo:clip", prefix: str = "") -> Features:
    """Opens a CLIP as features.

    Args:
      name: folder of a CLIP, or "zoo:clip", which was trained on scenes alone.
      prefix: text before every caption, e.g. "A photo depicts " (2104.08718).
    """
    clip = clips.load(name)

    def images(params, pixels):
        x = clip.normalise(shortest_side_and_crop(pixels, clip.model.image_size))
        return clip.model.apply({"params": params}, x, method="encode_image")

    texts = lambda params, ids: clip.model.apply({"params": params}, ids, method="encode_text")
    encode = lambda captions: clip.encode([prefix + caption for caption in captions])
    return Features("clip", clip.params, images, texts, encode)


def inception_features(path: str | os.PathLike, resize: str = "pytorch") -> Features:
    """Opens the published Inception as features, see `pretrained.inception.load` and `preprocess`."""
    apply = lambda params, pixels: Inception().apply({"params": params}, inception.preprocess(pixels, resize))
    return Features("inception", inception.load(path), apply)


def of_source(features: Features, source: Source, about: dict[str, Any], indices: Sequence[int]) -> np.ndarray:
    """Returns the features of real images, (N, D), computed once for each data set, size and network.

    Args:
      features: network.
      source: data.
      about: name of the data, for the cache: its spec, split, size.
      indices: items.
    """

    def write(file: Path) -> None:
        np.save(file, features.images(np.stack([source[i]["inputs"] for i in indices])))

    key = [cache.fingerprint(source, about, indices), features.identity]
    return np.array(cache.kept("features", key, write))
