"""Any TFDS dataset that is prepared on this machine. Nothing is downloaded and TensorFlow is not needed."""

import difflib
import functools
import io
import itertools
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets
from PIL import Image
from tensorflow_datasets.core import read_only_builder, registered

from zoo.data import images, videos
from zoo.errors import UserError, named, unknown_name_error
from zoo.files import read_text

_features = tensorflow_datasets.features
_keeping = threading.Lock()  # of all sources, since a lock cannot be pickled


def open_source(
    name: str,
    split: str,
    size: int,
    frames: int,
    data_dir: str | None = None,
    template: str = "a photo of a {}",
    text_feature: str | None = None,
    image_feature: str = "image",
    names: str | None = None,
    train: str = "train",
    test: str = "test",
    fps: float | None = None,
    own_fps: float | None = None,
) -> "TfdsSource":
    """Opens a dataset that was prepared as array_record.

    Args:
      name: NAME, NAME/CONFIG or NAME:VERSION.
      split: a split of the dataset, or a part of one as TFDS writes it: `train[:90%]`.
      size: side in pixels; other images are cropped at the centre and resized, and a note is printed once.
      frames: 1 for images. More for videos, of which an item is this many frames in a row.
      data_dir: where TFDS keeps its datasets, by default ~/tensorflow_datasets.
      template: makes a caption of a class name, in which "_" becomes " ".
      text_feature: the feature that holds the caption, instead of a class.
      image_feature: the feature that holds the images: an `Image`, or for videos a uint8 `Tensor`
        (T, H, W, C) or a `Sequence` of `Image`.
      names: text file with the name of each class, a line each in the order of the labels. ImageNet's classes, which
        TFDS calls by their WordNet ids, have names of their own.
      train: the split, or part of one, that is meant by `train`.
      test: the split, or part of one, that is meant by `test`, where the dataset has no labelled one of that name. A
        part of the split that `train` names is left out there: train[:90%] and train[90%:].
      fps: frames/s of the items, for which frames are left out; None for the dataset's own.
      own_fps: frames/s of the dataset's videos, which do not contain it.

    Returns:
      A source whose items are `{"inputs": uint8 (frames, size, size, 3), "text": str}`, and `"frame_rate"` of videos.

    Raises:
      UserError: if there is no such dataset, split or feature, it is not prepared as array_record, or there is not
        one name for each class; a frame rate is missing, not positive, that of images, or above the dataset's own.
    """
    videos.check_rates(frames, fps, own_fps)
    if frames > 1 and own_fps is None:
        raise UserError(f"{name}: videos of TFDS have no frame rate: add own_fps=, as 24")
    split = {"train": train, "test": test}.get(split, split)
    builder = _builder(name, data_dir)
    _check_apart(builder, train, test)
    features: Any = builder.info.features  # a FeaturesDict
    _check_feature(features, image_feature)
    if text_feature is not None:
        _check_feature(features, text_feature)
    captions = _Captions(features, name, template, text_feature, names)
    # Images are decoded here, so that every mode of them is treated alike in all sources.
    images = [key for key, feature in features.items() if isinstance(feature, _features.Image)]
    decoders = {key: tensorflow_datasets.decode.SkipDecoding() for key in images}
    records = _records(builder, name, split, decoders)
    return TfdsSource(name, records, captions, image_feature, size, frames, fps, own_fps)


def _check_apart(builder, train: str, test: str) -> None:
    """Raises UserError where an item of `test` is one of `train`, too. Splits that do not exist are found later."""
    try:
        parts = [builder.info.splits[spec].file_instructions for spec in (train, test)]
    except (KeyError, ValueError, NotImplementedError):
        return
    for a, b in itertools.product(*parts):
        if a.filename == b.filename and max(a.skip, b.skip) < min(a.skip + a.take, b.skip + b.take):
            raise UserError(
                f"test={test} would be trained on too, by train={train}: leave it out there, as in "
                "?train=train[:90%]&test=train[90%:]"
            )


class TfdsSource:
    """Random access to a TFDS split; safe to share between threads, and picklable.

    Images that take at most 1 GiB decoded are decoded once and kept; others, and videos, are decoded on access.
    """

    def __init__(
        self,
        name: str,
        records,
        captions: "_Captions",
        image_feature: str,
        size: int,
        frames: int,
        fps: float | None = None,
        own_fps: float | None = None,
    ):
        self._fps, self._own_fps = fps, own_fps
        self._name = name
        self._records = records
        self._captions = captions
        self._image_feature = image_feature
        self._size = size
        self._frames = frames
        self._notices = images.Notices()
        self._kept: np.ndarray | None = None
        self._fits = frames == 1 and len(records) * size * size * 3 <= images.MEMORY
        self._texts: list[str] = [""] * len(records)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, i: int) -> dict:
        if self._frames > 1:
            return self.part(i, 0.0)
        if self._fits and self._kept is None:
            self._keep_all()
        if self._kept is not None:
            return {"inputs": self._kept[i], "text": self._texts[i]}
        record = self._records[i]
        return {"inputs": self._pixels(record), "text": self._captions(record)}

    def part(self, i: int, place: float) -> dict:
        """Returns an item that begins elsewhere in its video, see `videos.Video.part`."""
        if self._frames == 1:
            return self[i]
        record = self._records[i]
        video = videos.Video.of(self._pixels(record), self._own_fps or 0.0)
        try:
            frames, rate = video.part(self._frames, self._fps, place)
        except ValueError as error:
            raise UserError(
                f"an item of {self._name} cannot be used: {error}, or name the feature with videos by image_feature"
            ) from None
        return {"inputs": frames, "text": self._captions(record), "frame_rate": rate}

    def text(self, i: int) -> str:
        """Returns the caption of an item, without decoding its image, and before that of any other is read."""
        return self._texts[i] if self._kept is not None else self._captions(self._records[i])

    def _keep_all(self) -> None:
        """Reads the whole split, once, at the first access to an image."""
        with _keeping:
            if self._kept is None:
                self._kept, _ = images.read_all(self._keep, len(self), (1, self._size, self._size, 3))

    def _keep(self, i: int) -> np.ndarray:
        record = self._records[i]
        self._texts[i] = self._captions(record)
        return self._pixels(record)

    def _pixels(self, record: dict) -> np.ndarray:
        """Returns all frames of a record, of an image source the first, uint8 (N, size, size, 3)."""
        found = record[self._image_feature]
        video = [Image.open(io.BytesIO(found))] if isinstance(found, bytes) else list(_as_video(found))
        video = video[:1] if self._frames == 1 else video
        return np.stack([self._fit(frame) for frame in video])

    def _fit(self, image: Image.Image | np.ndarray) -> np.ndarray:
        found = images.size_of(image)
        if found != (self._size, self._size):
            self._notices.add("size", images.resized(self._name, found, self._size))
        return images.fit(image, self._size)


class _Captions:
    """A record's caption: its text feature, or the name of its class put into the template."""

    def __init__(self, features, name: str, template: str, text_feature: str | None, names: str | None):
        self._name, self._feature = name, text_feature
        self._classes: list[str] = []
        if text_feature is not None:
            return
        labels = [key for key, feature in features.items() if isinstance(feature, _features.ClassLabel)]
        if not labels:
            raise UserError(f"{name} has no classes: give text_feature, one of {', '.join(features)}")
        self._feature = "label" if "label" in labels else labels[0]
        label = features[self._feature]
        classes: list[str] = [label.int2str(i) for i in range(label.num_classes)]
        if names is not None:
            classes = _read_names(names, len(classes))
        elif all(re.fullmatch(r"n\d{8}", name) for name in classes):
            known = _imagenet_names()
            classes = [known.get(name, name) for name in classes]
        self._classes = [template.replace("{}", name.replace("_", " ")) for name in classes]

    def __call__(self, record: dict) -> str:
        value = record[self._feature]
        if self._classes:
            if value < 0:  # so TFDS marks what has no label
                raise UserError(
                    f"an item of {self._name} has no label ({value}): use a split that has labels, for test by "
                    "?test=SPLIT, as in ?test=validation"
                )
            return self._classes[value]
        if not isinstance(value, bytes):
            raise UserError(f"feature {self._feature!r} does not hold one text: give another text_feature")
        return value.decode("utf-8", "replace")


def _read_names(file: str, count: int) -> list[str]:
    """Reads the names of so many classes, a line each."""
    lines = named("names", lambda: read_text(file)).splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != count:
        raise UserError(f"names={file} has {len(names)} names, and the dataset {count} classes: give one for each")
    return names


@functools.cache
def _imagenet_names() -> dict[str, str]:
    """WordNet id -> the first of its words, of the thousand classes of ImageNet (1409.0575)."""
    lines = Path(__file__).with_name("imagenet_names.tsv").read_text("utf-8").splitlines()
    return {key: name for key, _, name in (line.partition("\t") for line in lines)}


def _as_video(found: np.ndarray) -> np.ndarray:
    """Gives (T, H, W, C) for what may be (H, W, C)."""
    found = np.asarray(found)
    return found[None] if found.ndim == 3 else found


def _builder(name: str, data_dir: str | None):
    try:
        return read_only_builder.builder_from_files(name, data_dir=data_dir)
    except ModuleNotFoundError as error:
        raise UserError(f"{name} has features that need {error.name}: use a dataset without them") from None
    except (registered.DatasetNotFoundError, ValueError):
        raise _not_prepared(name, data_dir) from None


def _not_prepared(name: str, data_dir: str | None) -> UserError:
    known = tensorflow_datasets.list_builders(with_community_datasets=False)
    short = re.split("[/:]", name)[0]
    if short not in known:
        nearest = difflib.get_close_matches(short, known, n=3)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else "run `tfds list` for the names"
        return UserError(f"TFDS has no dataset {short!r}, and none is prepared: {hint}")
    where = f" --data_dir={data_dir}" if data_dir else ""
    return UserError(f"{name} is not prepared: run `tfds build {name} --file_format=array_record{where}`")


def _records(builder, name: str, split: str, decoders):
    base = _base(split)
    if base not in builder.info.splits:
        if base == "test":
            raise UserError(
                f"{name} has no split 'test', but {', '.join(builder.info.splits)}: name the one, or the part of "
                "one, to hold out, as in ?test=validation or ?train=train[:90%]&test=train[90%:]"
            )
        raise unknown_name_error("split", split, builder.info.splits)
    try:
        return builder.as_data_source(split=split, decoders=decoders)
    except NotImplementedError:
        raise UserError(
            f"{name} is prepared in a format without random access:"
            f" run `tfds build {name} --file_format=array_record` into another data_dir"
        ) from None
    except ValueError as error:
        raise UserError(f"split {split!r} of {name} cannot be read: {str(error).splitlines()[0]}") from None


def _base(split: str) -> str:
    """Returns the split of a part of one, or the first of several."""
    return re.split(r"[\[+]", split)[0]


def _check_feature(features, name: str) -> None:
    if name not in features:
        raise unknown_name_error("feature", name, features)
