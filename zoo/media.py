"""Images and videos as files, with a note inside on how they were made."""

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import einops
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from zoo.errors import UserError, unknown_name_error
from zoo.files import atomic, check_output, local

VISIBLE = 96  # pixels: an image is scaled up by whole numbers until it is this wide
_GAP = 8
_FONT_SIZE = 12
_LINE_HEIGHT = 15
DEFAULT_FPS = 8
SLOWEST, FASTEST = 1, 240  # frames/s of MP4 and WebM: slower rates are rounded, and of faster ones frames get lost
_RATE = "frames per second"  # of a GIF, in its comment
_LONGEST = 600_000  # milliseconds of one frame of a GIF, or of equal ones in a row, which are stored as one


def grid(
    images: np.ndarray,
    columns: int | None = None,
    labels: Sequence[str] | None = None,
    scale: int | None = None,
) -> np.ndarray:
    """Lays images out in rows on white.

    Args:
      images: uint8 (N, T, H, W, C), C 1 or 3, N at least 1.
      columns: images in a row; by default as many as there are rows.
      labels: N texts, each wrapped below its image.
      scale: whole number of pixels that a pixel becomes wide; by default such that an image is at least
        96 pixels wide.

    Returns:
      uint8 (T, H', W', 3).
    """
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    scale = scale or math.ceil(VISIBLE / images.shape[3])
    images = np.broadcast_to(images, (*images.shape[:-1], 3))
    cells = einops.repeat(images, "n t h w c -> n t (h y) (w x) c", y=scale, x=scale)
    if labels is not None:
        cells = np.concatenate([cells, _captions(labels, cells.shape[1], cells.shape[3])], axis=2)
    padding = (0, -len(cells) % columns), (0, 0), (0, _GAP), (0, _GAP), (0, 0)
    cells = np.pad(cells, padding, constant_values=255)
    rows = einops.rearrange(cells, "(r k) t h w c -> t (r h) (k w) c", k=columns)
    return np.pad(rows, ((0, 0), (_GAP, 0), (_GAP, 0), (0, 0)), constant_values=255)


def sheet(videos: np.ndarray, labels: Sequence[str] | None = None) -> np.ndarray:
    """Lays the frames of each video out in a row, for a file that holds one image.

    Args:
      videos: uint8 (N, T, H, W, C), C 1 or 3, N at least 1.
      labels: N texts.

    Returns:
      uint8 (1, H', W', 3).
    """
    scale = math.ceil(VISIBLE / videos.shape[3])
    frames = einops.repeat(videos, "n t h w c -> n t (h y) (w x) c", y=scale, x=scale)
    frames = np.pad(frames, ((0, 0), (0, 0), (0, 0), (0, _GAP // 4), (0, 0)), constant_values=255)
    rows = einops.rearrange(frames, "n t h w c -> n 1 h (t w) c")
    return grid(rows, columns=1, labels=labels, scale=1)


def lay_out(
    path: str | os.PathLike, videos: np.ndarray, labels: Sequence[str] | None = None, columns: int | None = None
) -> np.ndarray:
    """Lays images or videos out for a file of this name: a `grid`, or for a PNG of videos a `sheet`.

    Args:
      path: of the file.
      videos: uint8 (N, T, H, W, C), C 1 or 3, N at least 1.
      labels: N texts.
      columns: of the grid.
    """
    still = Path(path).suffix.lower() == ".png" and videos.shape[1] > 1
    return sheet(videos, labels) if still else grid(videos, columns, labels)


def save(
    path: str | os.PathLike, frames: np.ndarray, fps: float | None = None, metadata: dict[str, str] | None = None
) -> None:
    """Writes a file that appears whole or not at all; folders above it are made.

    Args:
      path: ends in .png (one frame), .gif, .mp4 or .webm.
      frames: uint8 (T, H, W, 3). Odd sides of MP4 and WebM get one more row or column, as the formats demand.
      fps: frames per second of a video; None for 8. A GIF keeps hundredths of a second, shows at most 50 fps and lasts
        at most ten minutes; of equal frames in a row it stores one, for as long as all of them.
      metadata: texts that `read_metadata` gives back.

    Raises:
      UserError: if the suffix is unknown, a PNG is to hold several frames, `fps` is not positive, or PyAV is not
        installed, which MP4 and WebM need.
    """
    path = Path(path)
    fps = DEFAULT_FPS if fps is None else fps
    write = _writer(path, len(frames), fps)
    if not 0 < fps < math.inf:
        raise UserError(f"fps {fps} is not positive: give frames per second, as 8")
    with atomic(path) as unfinished:
        write(unfinished, frames, fps, metadata or {})


def check_file(path: str | os.PathLike, frames: int = 1, fps: float | None = None) -> None:
    """Raises UserError where `save` cannot write so many frames, or this frame rate, to a file of this name."""
    _writer(local(path), frames, fps)


def note(about: Mapping[str, Any]) -> dict[str, str]:
    """Returns metadata on how a file was made, for `save`; `about` must be JSON."""
    return {"zoo": json.dumps(about)}


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """Returns the texts that `save` put into a file; none if it has none.

    Args:
      path: .png, .gif, .mp4 or .webm file.

    Raises:
      UserError: if there is no such file, it cannot be read, or its suffix is unknown.
    """
    path = Path(path)
    read = _for_suffix(path, {".png": _png_texts, ".gif": _gif_texts, ".mp4": _video_texts, ".webm": _video_texts})
    if not path.is_file():
        raise UserError(f"there is no file {path}: give a path that exists")
    try:
        return read(path)
    except (OSError, SyntaxError, ValueError):
        raise UserError(f"{path} is damaged, or of another format than its suffix: give another file") from None


def _captions(labels: Sequence[str], frames: int, width: int) -> np.ndarray:
    """Returns uint8 (N, T, h, width, 3): black texts on white, h as the longest of them needs."""
    font = ImageFont.load_default(_FONT_SIZE)
    texts = [_wrap(label, width, font.getlength) for label in labels]
    height = _LINE_HEIGHT * max(len(lines) for lines in texts) + _GAP
    drawn = np.stack([_draw(lines, height, width, font) for lines in texts])
    return einops.repeat(drawn, "n h w c -> n t h w c", t=frames)


def _wrap(text: str, width: int, measure: Callable[[str], float]) -> list[str]:
    lines = [""]
    # A word is split from the next by its space; one that is wider than a line is cut between letters.
    for piece in re.findall(r"\S+\s*", text):
        for part in [piece] if measure(piece.rstrip()) <= width else piece:
            if measure((lines[-1] + part).rstrip()) > width:
                lines.append("")
            lines[-1] += part
    return [line.rstrip() for line in lines]


def _draw(lines: list[str], height: int, width: int, font) -> np.ndarray:
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        pen.text((0, i * _LINE_HEIGHT), line, fill="black", font=font)
    return np.asarray(image)


def _writer(path: Path, frames: int, fps: float | None = None) -> Callable:
    write = _for_suffix(path, {".png": _write_png, ".gif": _write_gif, ".mp4": _write_video, ".webm": _write_video})
    check_output(path)
    if write is _write_png and frames != 1:
        raise UserError(f"a PNG holds one frame, not {frames}: name the file .gif, .mp4 or .webm")
    if write is _write_video:
        video_library()
        if fps is not None and not SLOWEST <= fps <= FASTEST:
            raise UserError(f"MP4 and WebM hold {SLOWEST} to {FASTEST} frames/s, got {fps:g}: write a GIF")
    return write


def _for_suffix(path: Path, functions: dict[str, Callable]) -> Callable:
    suffix = path.suffix.lower()
    if path.name.lower() in functions:
        raise UserError(f"{path} is a suffix alone: put a name before it")
    if suffix not in functions:
        raise unknown_name_error("kind of file", suffix or path.name, functions)
    return functions[suffix]


def _write_png(path: Path, frames: np.ndarray, fps: float, metadata: dict[str, str]) -> None:
    texts = PngImagePlugin.PngInfo()
    for key, text in metadata.items():
        texts.add_text(key, text)
    Image.fromarray(frames[0]).save(path, pnginfo=texts)


def _write_gif(path: Path, frames: np.ndarray, fps: float, metadata: dict[str, str]) -> None:
    """Frames last whole hundredths of a second; of equal ones in a row, one is stored. The rate stands in a comment."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    each = min(max(2.0, 100 / fps), _LONGEST / 10 / len(frames))
    hundredths = np.diff(np.rint(np.arange(len(frames) + 1) * each))
    comment = json.dumps(metadata | {_RATE: f"{100 / each:.9g}"}).encode()
    durations = (10 * hundredths).astype(int).tolist()
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, comment=comment)


def gif_rate(image: Any) -> float | None:
    """Returns the frames/s that `save` noted in a GIF, opened by Pillow; None if it did not."""
    try:
        rate = float(_from_comment(image.info.get("comment", b"").decode("utf-8", "replace")).get(_RATE, 0))
    except (ValueError, TypeError):
        return None
    return rate if 0 < rate <= 50 else None  # a frame lasts two hundredths of a second at least


def _write_video(path: Path, frames: np.ndarray, fps: float, metadata: dict[str, str]) -> None:
    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    webm = path.suffix.lower() == ".webm"
    codec, quality = ("libvpx-vp9", {"crf": "20", "b": "0"}) if webm else ("libx264", {"crf": "10"})
    av = video_library()
    with av.open(str(path), "w", format=path.suffix[1:].lower()) as file:
        if metadata:
            file.metadata["comment"] = json.dumps(metadata)
        stream = file.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=quality)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        file.mux(stream.encode(None))


def _png_texts(path: Path) -> dict[str, str]:
    with Image.open(path, formats=["PNG"]) as image:
        return dict(getattr(image, "text", {}))


def _gif_texts(path: Path) -> dict[str, str]:
    with Image.open(path, formats=["GIF"]) as image:
        texts = _from_comment(image.info.get("comment", b"").decode("utf-8", "replace"))
        return {name: text for name, text in texts.items() if name != _RATE}


def _video_texts(path: Path) -> dict[str, str]:
    with video_library().open(str(path)) as file:
        return _from_comment({name.lower(): text for name, text in file.metadata.items()}.get("comment", ""))


def _from_comment(comment: str) -> dict[str, str]:
    """Reads what `save` wrote; a comment of another program's is none of ours."""
    try:
        texts = json.loads(comment)
    except json.JSONDecodeError:
        return {}
    return texts if isinstance(texts, dict) else {}


def video_library(use: str = "MP4 and WebM") -> Any:
    """Returns the module that reads and writes MP4 and WebM; raises UserError where it is not installed.

    Args:
      use: what needs it, for the error.
    """
    try:
        import av
    except ImportError:
        raise UserError(f"{use} needs PyAV: pip install zoo[video], or take GIFs") from None
    return av
