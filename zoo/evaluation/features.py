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
from zoo.method import to_float
from zoo.nets.inception import Inception
from zoo.pretrained import clip as clips
from zoo.pretrained import inception
from zoo.resize import shortest_side_and_crop
from zoo.runs.run import Run
from zoo.training.parallel import place, pmap_in_batches
from zoo.trees import tree_hash

PER_DEVICE = 64


class Features:
    """A frozen network, compiled for all local devices.

    Args:
      name: "clip", "inception" or "motion".
      params: parameters of the network.
      images: params, uint8 (B, H, W, 3) -> features (B, D); with `of_videos`, params and the rows `inputs`, uint8
        (B, T, H, W, 3), and `frame_rate`, (B,).
      texts: params, ids (B, L) -> features (B, D); None where it has no texts.
      encode: captions -> ids.
      of_videos: whether the network takes a video as a whole.
    """

    def __init__(
        self,
        name: str,
        params: Any,
        images: Callable,
        texts: Callable | None = None,
        encode: Callable[[Sequence[str]], np.ndarray] | None = None,
        of_videos: bool = False,
    ):
        self.name, self._params, self._encode, self._of_videos = name, place(params), encode, of_videos
        self._image_function = images
        self._texts = texts and pmap_in_batches(texts, PER_DEVICE, exact=True)

    @functools.cached_property
    def identity(self) -> str:
        """Hash of name and parameters, so that features kept on disk are never those of another network."""
        return f"{self.name}_{tree_hash(self._params)}"

    @functools.cache  # noqa: B019, a program for few images does not compute on 64
    def _images(self, per_device: int) -> pmap_in_batches:
        return pmap_in_batches(self._image_function, per_device, exact=True)

    def images(self, pixels: np.ndarray, frame_rate: float | np.ndarray | None = None) -> np.ndarray:
        """Returns the features of images or videos, float32 (N, D); of a network of images the mean over frames.

        Args:
          pixels: uint8 (N, T, H, W, 3).
          frame_rate: frames/s of all videos, or of each, (N,); None for images.

        Raises:
          UserError: the network is one of videos, and these have no frame rate.
        """
        if self._of_videos:
            if frame_rate is None:
                raise UserError(f"{self.name} is of videos, and these are images: leave it out")
            rates = np.broadcast_to(np.asarray(frame_rate, np.float32), len(pixels))
            return self._rows({"inputs": pixels, "frame_rate": rates})
        made = self._rows(einops.rearrange(pixels, "n t h w c -> (n t) h w c"))
        return einops.reduce(made, "(n t) f -> n f", "mean", n=len(pixels))

    def _rows(self, rows: Any) -> np.ndarray:
        per_device = min(PER_DEVICE, -(-len(jax.tree.leaves(rows)[0]) // jax.local_device_count()))
        return self._images(per_device)(self._params, rows)

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


def motion_features(run: Run) -> Features:
    """Makes a trained run features of whole videos.

    Args:
      run: run with the ability `Embeds`, trained on videos.

    Raises:
      UserError: the run lacks the ability, or was trained on images; in use, images, or videos of another size.
    """
    if run.shape[0] == 1:
        raise UserError("--motion names no run on videos: train one by configs/clip.py:video")
    run, size = run.exact, run.shape[1]
    embed = run.embedder()

    def videos(params, rows):
        x = rows["inputs"]
        if x.shape[1] == 1:
            raise UserError("--motion is of videos, and these are images: leave it out")
        if x.shape[2] != size:
            raise UserError(
                f"--motion: the run takes videos of {size} px, not {x.shape[2]}: train one of that data.size"
            )
        return embed(params, to_float(x), rows["frame_rate"])

    return Features("motion", run.params, videos, of_videos=True)


def of_source(features: Features, source: Source, about: dict[str, Any], indices: Sequence[int]) -> np.ndarray:
    """Returns the features of real images, (N, D), computed once for each data set, size and network.

    Args:
      features: network.
      source: data.
      about: name of the data, for the cache: its spec, split, size.
      indices: items.
    """

    def write(file: Path) -> None:
        items = [source[i] for i in indices]
        rates = np.array([item["frame_rate"] for item in items]) if "frame_rate" in items[0] else None
        np.save(file, features.images(np.stack([item["inputs"] for item in items]), rates))

    key = [cache.fingerprint(source, about, indices), features.identity]
    return np.array(cache.kept("features", key, write))
