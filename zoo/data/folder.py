"""A folder of images or videos, or a zip of one, with captions beside them."""

import hashlib
import io
import itertools
import json
import os
import posixpath
import re
import threading
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo.data import images, videos
from zoo.errors import UserError, unknown_name_error
from zoo.files import local

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
DECODED_TOGETHER = 64  # videos
_METADATA = "metadata.jsonl"


class Item(NamedTuple):
    """One image or video: its name relative to the folder, the files it is made of, and its caption.

    A caption in a file of its own is named by `text_file`, and read when it is needed.
    """

    name: str
    files: tuple[str, ...]
    text: str
    text_file: str = ""


def open_source(
    name: str,
    split: str,
    size: int,
    frames: int,
    holdout: float = 0.0,
    template: str | None = None,
    fps: float | None = None,
    own_fps: float | None = None,
) -> "FolderSource":
    """Opens a folder, or a .zip of one, in which images may lie at any depth.

    A caption is the text of the line that names the image in the nearest `metadata.jsonl` above it
    (`{"file_name": ..., "text": ...}`, several lines may name one image), else `NAME.txt` beside
    `NAME.png`, else the name of the folder that the image is in. Hidden files are ignored.

    Args:
      name: path of the folder or zip.
      split: `train` or `test`. With `holdout` 0 both are the whole folder.
      size: side in pixels; other images are cropped at the centre and resized, and a note is printed once.
      frames: 1 reads the images. More reads the videos: GIF, MP4, WebM, and folders of numbered images, of
        which an item is this many frames in a row; shorter videos are left out with a note.
      holdout: the fraction of the names, 0 to below 1, that is in `test` and not in `train`. The name alone
        decides, so that adding files moves none; a folder and a zip of it are split alike.
      template: "a photo of a {}" makes a caption of a folder's name.
      fps: frames/s of the items, for which frames of the file are left out; videos of fewer frames/s are left out
        with a note. None for the files' own, which must be the same.
      own_fps: frames/s of folders of numbered images, which do not contain it.

    Returns:
      A source whose items are `{"inputs": uint8 (frames, size, size, 3), "text": str}`, and `"frame_rate"` of videos.

    Raises:
      UserError: if there is no such folder, it holds nothing that can be used, or a frame rate is missing, not positive
        or that of images.
    """
    videos.check_rates(frames, fps, own_fps)
    if split not in ("train", "test"):
        raise unknown_name_error("split", split, ("train", "test"))
    if not 0 <= holdout < 1:
        raise UserError(f"holdout {holdout} is not a fraction: give 0 or more, and less than 1")
    files = _open_files(name)
    notices = images.Notices()
    names = [n for n in files.names() if not _hidden(n)]
    found = dict(_images(names) if frames == 1 else _videos(names))
    if not found:
        kind = "image (png, jpg, webp, bmp)" if frames == 1 else "video (gif, mp4, webm, numbered frames)"
        raise UserError(f"{name} holds no {kind}: give a folder that has some")
    items = list(_with_captions(files, names, found, template, notices))
    if not items:
        raise UserError(f"no line of {_METADATA} in {name} names a file that is there: check its file_name")
    items = _take(items, split, holdout)
    if not items:
        raise UserError(f"split {split} of {name} is empty with holdout {holdout}: give another holdout")
    if frames == 1:
        return FolderSource(files, items, size, frames, notices)
    numbered = next((item.name for item in items if _suffix(item.files[0]) in IMAGES), None)
    if own_fps is not None and not numbered:
        raise UserError(f"own_fps={own_fps:g} is of folders of numbered images, and {name} has none: drop it")
    if numbered and own_fps is None:
        raise UserError(f"{name}: numbered images, as those in {numbered}, have no frame rate: add own_fps=, as 24")
    return VideoSource(files, items, size, frames, notices, fps, own_fps)


def read_file(name: str, size: int, frames: int, fps: float | None = None) -> np.ndarray:
    """Reads one file as `open_source` would.

    Args:
      name: path of an image, or where `frames` is more than 1, of a GIF or MP4.
      size: side in pixels; another image is cropped at the centre and resized, with a note.
      frames: of a video, whose first ones are read; 1 for images.
      fps: frames/s of a video; None for its own.

    Returns:
      uint8 (frames, size, size, 3).

    Raises:
      UserError: if there is no such file, its suffix is another kind's, or it does not decode.
    """
    path = find_file(name, video=frames > 1)
    opened = _Folder(path.parent), [Item(path.name, (path.name,), "")], size, frames, images.Notices()
    return (FolderSource(*opened) if frames == 1 else VideoSource(*opened, fps))[0]["inputs"]


def find_file(name: str, video: bool) -> Path:
    """Returns the path of an image or a video. Raises UserError if there is none, or its suffix is another kind's."""
    path, suffixes = local(name), videos.SUFFIXES if video else IMAGES
    if not path.is_file():
        raise UserError(f"there is no file {name}: give a path that exists")
    if _suffix(path.name) not in suffixes:
        raise unknown_name_error("kind of video" if video else "kind of image", path.suffix or path.name, suffixes)
    return path


class FolderSource:
    """Random access to the items of a folder; safe to share between threads, and picklable.

    What takes at most 1 GiB decoded is decoded once and kept, without the items that do not decode. A larger
    set is decoded on access, and an item that does not decode is replaced by the next one that does.
    """

    def __init__(self, files: "_Folder | _Zip", items: list[Item], size: int, frames: int, notices):
        self._files = files
        self._items = items
        self._size = size
        self._frames = frames
        self._notices = notices
        self._kept: Any = None
        self._first_reason = ""
        if len(items) * frames * size * size * 3 <= images.MEMORY:
            self._decode_all()

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, i: int) -> dict:
        if self._kept is not None:
            return {"inputs": self._kept[i], "text": self.text(i)}
        for j in range(i, i + len(self)):
            item = self._items[j % len(self)]
            pixels = self._decode(item)
            if pixels is not None:
                return {"inputs": pixels, "text": self._caption(item)}
        raise self._nothing_decodes()

    def text(self, i: int) -> str:
        """Returns the caption of an item, without decoding its image."""
        return self._caption(self._items[i])

    def _caption(self, item: Item) -> str:
        return " ".join(_text(self._files, item.text_file).split()) if item.text_file else item.text

    def _decode_all(self) -> None:
        items = self._items
        shape = (self._frames, self._size, self._size, 3)
        self._kept, good = images.read_all(lambda i: self._decode(items[i]), len(items), shape)
        self._keep(good)

    def _keep(self, good: list[int]) -> None:
        """Keeps the items of these numbers, with their captions."""
        items = self._items
        if not good:
            raise self._nothing_decodes()
        if len(good) < len(items):
            lost = len(items) - len(good)
            self._notices.add("sum", f"left out {lost} of the {len(items)} items of {self._files}")
        self._items = [items[i]._replace(text=self._caption(items[i]), text_file="") for i in good]

    def _decode(self, item: Item) -> Any:
        """Returns uint8 (1, size, size, 3), of a video a `Video`; or None and a note if the item cannot be used."""
        try:
            return self._read(item)
        except UserError:
            raise
        except Exception as error:  # a decoder may raise anything on a damaged file
            self._first_reason = self._first_reason or _reason(error)
            self._notices.add("broken", f"left out {item.name}: {_reason(error)}", times=3)
            return None

    def _read(self, item: Item) -> Any:
        return np.stack([self._fit(Image.open(io.BytesIO(self._files.read(name)))) for name in item.files])

    def _fit(self, image: Image.Image | np.ndarray) -> np.ndarray:
        found = images.size_of(image)
        if found != (self._size, self._size):
            self._notices.add("size", images.resized(self._files, found, self._size))
        return images.fit(image, self._size)

    def _nothing_decodes(self) -> UserError:
        why = f" ({self._first_reason})" if self._first_reason else ""
        if len(self._items) == 1:
            return UserError(f"{self._items[0].name} of {self._files} cannot be used{why}")
        return UserError(f"none of the {len(self._items)} items of {self._files} can be used{why}: check the files")


class VideoSource(FolderSource):
    """Random access to the videos of a folder, and to any part of each.

    Args:
      files: opened folder.
      items: its videos.
      size: side in pixels.
      frames: frames of an item.
      notices: notes that were printed.
      fps: see `open_source`.
      own_fps: see `open_source`.
    """

    def __init__(
        self,
        files: "_Folder | _Zip",
        items: list[Item],
        size: int,
        frames: int,
        notices: images.Notices,
        fps: float | None = None,
        own_fps: float | None = None,
    ):
        self._fps, self._own_fps, self._rate = fps, own_fps, 0.0
        super().__init__(files, items, size, frames, notices)

    def __getitem__(self, i: int) -> dict:
        return self.part(i, 0.0)

    def part(self, i: int, place: float) -> dict:
        """Returns an item that begins elsewhere in its video, see `videos.Video.part`."""
        for j in range(i, i + len(self)):
            number = j % len(self)
            video = self._decode(self._items[number]) if self._kept is None else self._kept[number]
            if video is not None:
                self._check_rate(video)
                frames, rate = video.part(self._frames, self._fps, place)
                return {"inputs": frames, "text": self.text(number), "frame_rate": rate}
        raise self._nothing_decodes()

    def _check_rate(self, video: videos.Video) -> None:
        """Raises UserError where videos keep rates of their own that differ."""
        self._rate = self._rate or video.rate
        if self._fps is None and abs(video.rate / self._rate - 1) > videos.SAME_RATE:
            raise UserError(
                f"videos of {self._files} have {self._rate:g} and {video.rate:g} frames/s: name one that all have, as "
                f"?fps={min(self._rate, video.rate):g}"
            )

    def _decode_all(self) -> None:
        """Decodes all, until that takes too much memory."""
        kept, used = [], 0
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self._items), DECODED_TOGETHER):
                kept += pool.map(self._decode, self._items[start : start + DECODED_TOGETHER])
                used += sum(video.frames.nbytes for video in kept[start:] if video is not None)
                for video in kept[start:]:
                    if video is not None:
                        self._check_rate(video)
                if used * len(self._items) > images.MEMORY * len(kept):  # as much as all of them are expected to take
                    return
        good = [i for i, video in enumerate(kept) if video is not None]
        self._kept = [kept[i] for i in good]
        self._keep(good)

    def _read(self, item: Item) -> videos.Video:
        suffix = _suffix(item.files[0])
        if suffix in videos.SUFFIXES:
            video = videos.read(suffix, self._files.read(item.name), self._fit)
        else:
            video = videos.Video.of(super()._read(item), self._own_fps or 0.0)
        video.part(self._frames, self._fps, 0.0)  # raises where the item cannot be used
        return video


class _Folder:
    """The files below a folder."""

    def __init__(self, path: Path):
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def names(self) -> list[str]:
        found = []
        for folder, _, names in os.walk(self._path):
            found += [Path(folder, name).relative_to(self._path).as_posix() for name in names]
        return sorted(found)

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()


class _Zip:
    """The files in a zip. One handle, which one thread reads at a time."""

    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}): give a folder or another zip") from None

    def __str__(self) -> str:
        return str(self._path)

    def __reduce__(self):
        return _Zip, (self._path,)

    def names(self) -> list[str]:
        return sorted(n for n in self._zip.namelist() if not n.endswith("/"))

    def read(self, name: str) -> bytes:
        with self._lock:
            return self._zip.read(name)


def _open_files(name: str) -> _Folder | _Zip:
    if not name:
        raise UserError("folder: names no folder: write folder:PATH")
    path = local(name)
    if path.is_dir():
        return _Folder(path.resolve())
    if path.suffix.lower() == ".zip" and path.is_file():
        return _Zip(path.resolve())
    if path.exists():
        raise UserError(f"{name} is neither a folder nor a .zip: give one of these")
    raise UserError(f"there is no folder {name}: give a path that exists")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()


def _images(names: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    return ((name, (name,)) for name in names if _suffix(name) in IMAGES)


def _videos(names: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    yield from ((name, (name,)) for name in names if _suffix(name) in videos.SUFFIXES)
    sequences: dict[str, dict[tuple[str, str], dict[int, str]]] = {}  # of each folder, by prefix and suffix
    for name in names:
        found = re.search(r"^(.*?)(\d+)$", posixpath.splitext(posixpath.basename(name))[0])
        if found and _suffix(name) in IMAGES:
            folder = sequences.setdefault(posixpath.dirname(name), {})
            folder.setdefault((found[1], _suffix(name)), {})[int(found[2])] = name
    for folder, found in sorted(sequences.items()):
        found = {key: frames for key, frames in found.items() if len(frames) > 1}  # a single image is no video
        for _, frames in sorted(found.items()):
            numbers = sorted(frames)
            steps = [after - before for before, after in itertools.pairwise(numbers)]
            if len(set(steps)) > 1:
                gap = steps.index(max(steps))
                before, after = frames[numbers[gap]], frames[numbers[gap + 1]]
                raise UserError(f"{before} is followed by {after}, and other frames by nearer ones: fill the gap")
            yield (folder or ".") if len(found) == 1 else frames[numbers[0]], tuple(frames[i] for i in numbers)


def _with_captions(
    files: _Folder | _Zip, names: list[str], found: dict, template: str | None, notices
) -> Iterator[Item]:
    """Yields an item for each video and caption; a note counts those that lack one of the two."""
    present = set(names)
    folders = {posixpath.dirname(n) for n in names if posixpath.basename(n) == _METADATA}
    captions = _metadata(files, folders)
    missing = sorted(captions.keys() - found.keys())
    if missing:
        count = sum(len(captions[name]) for name in missing)
        notices.add("missing", f"left out {count} captions of {files} without their file, as {missing[0]!r}")
    uncaptioned = []
    for name, parts in found.items():
        beside = (posixpath.splitext(name)[0] if name in present else name) + ".txt"
        if name in captions:
            texts = captions[name]
        elif beside in present:
            yield Item(name, parts, "", beside)
            continue
        elif _governed(name, folders):
            uncaptioned.append(name)
            continue
        else:
            texts = [_folder_caption(files, name, template)]
        yield from (Item(name, parts, text) for text in texts)
    if uncaptioned:
        notices.add(
            "uncaptioned",
            f"left out {len(uncaptioned)} items of {files} without a caption, as {uncaptioned[0]!r}",
        )


def _metadata(files: _Folder | _Zip, folders: set[str]) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    for folder in sorted(folders):
        path = posixpath.join(folder, _METADATA)
        lines = _text(files, path).split("\n")  # JSON may hold other ends of lines
        for number, line in enumerate(lines, 1):
            if line.strip():
                name, text = _entry(line, f"{files}: line {number} of {path}")
                captions.setdefault(posixpath.normpath(posixpath.join(folder, name)), []).append(text)
    return captions


def _entry(line: str, where: str) -> tuple[str, str]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON ({error.msg}): write one object a line") from None
    match entry:
        case {"file_name": str(name), "text": str(text)}:
            return name, text
    raise UserError(f'{where} is not {{"file_name": "...", "text": "..."}}: write both, as strings')


def _governed(name: str, folders: set[str]) -> bool:
    """Whether a metadata.jsonl lies in a folder above."""
    return any(folder == "" or name.startswith(folder + "/") for folder in folders)


def _folder_caption(files: _Folder | _Zip, name: str, template: str | None) -> str:
    folder = posixpath.basename(posixpath.dirname(name)) or Path(str(files)).stem
    folder = folder.replace("_", " ")
    return template.replace("{}", folder) if template else folder


def _text(files: _Folder | _Zip, name: str) -> str:
    try:
        return files.read(name).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{files}: {name} cannot be read ({error.strerror}): is it still there?") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{files}: {name} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise UserError(f"{files} is damaged at {name} ({error}): give another zip") from None


def _take(items: list[Item], split: str, holdout: float) -> list[Item]:
    if not holdout:
        return items
    # Relative to what all names share, so that a zip with a single top folder is split as the folder is.
    top = posixpath.commonpath([posixpath.dirname(item.name) for item in items])
    in_test = [_fraction(item.name.removeprefix(top).lstrip("/")) < holdout for item in items]
    return [item for item, test in zip(items, in_test, strict=True) if test == (split == "test")]


def _fraction(name: str) -> float:
    """Returns a number in [0, 1) that is the name's own."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image"
    return (str(error).splitlines() or [type(error).__name__])[0]
