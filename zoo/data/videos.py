"""Videos of files: their frames at a rate of their own, and the parts of them that training gets."""

import functools
import io
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from zoo.errors import UserError

SAME_RATE = 1e-3  # of rates, which files round
SUFFIXES = (".gif", ".mp4", ".webm")


class Video(NamedTuple):
    """A decoded video.

    Attributes:
      frames: uint8 (N, size, size, 3).
      rate: frames/s.
    """

    frames: np.ndarray
    rate: float

    def part(self, frames: int, fps: float | None, place: float) -> tuple[np.ndarray, float]:
        """Returns frames in a row, those that are nearest to the times of a frame rate.

        Args:
          frames: how many.
          fps: frames/s; None for the video's own.
          place: where the part begins, from 0, the video's first frame, to 1, the last one from which enough follow.

        Returns:
          uint8 (frames, size, size, 3), and its frame rate.

        Raises:
          ValueError: the video is too short, or its own rate is lower.
        """
        fps = fps or self.rate
        if fps > self.rate * (1 + SAME_RATE):
            raise ValueError(f"it has {self.rate:g} frames/s, fewer than the fps={fps:g} of data.source")
        offsets = np.rint(np.arange(frames) * max(self.rate / fps, 1.0)).astype(int)
        spare = len(self.frames) - 1 - offsets[-1]
        if spare < 0:
            raise ValueError(
                f"it has {len(self.frames)} frames at {self.rate:g}/s, and {frames} at {fps:g}/s need "
                f"{offsets[-1] + 1}: lower data.frames, or raise fps"
            )
        return self.frames[min(int(place * (spare + 1)), spare) + offsets], fps


def check_rates(frames: int, fps: float | None, own_fps: float | None) -> None:
    """Raises UserError where frame rates are not positive, or there is one frame."""
    for name, rate in (("fps", fps), ("own_fps", own_fps)):
        if rate is not None and frames == 1:
            raise UserError(f"one frame has no frame rate, got {name}={rate:g}: drop it, or set data.frames")
        if rate is not None and not 0 < rate < float("inf"):
            raise UserError(f"{name} must be above 0, got {rate:g}")


def read(suffix: str, data: bytes, fit: Callable[[Any], np.ndarray]) -> Video:
    """Decodes a file.

    Args:
      suffix: one of `SUFFIXES`.
      data: the file.
      fit: image -> uint8 (size, size, 3).

    Raises:
      UserError: the library that it needs is missing. Other errors mean that the file is damaged.
    """
    return _read_gif(data, fit) if suffix == ".gif" else _read_with_ffmpeg(suffix, data, fit)


def _read_gif(data: bytes, fit: Callable[[Any], np.ndarray]) -> Video:
    """Frames of a GIF may last differently: all are repeated as often as the shortest fits into them."""
    image: Any = Image.open(io.BytesIO(data))
    frames, seconds = [], []
    for i in range(getattr(image, "n_frames", 1)):
        image.seek(i)
        frames.append(fit(image.copy()))
        seconds.append(max(image.info.get("duration", 0), 20) / 1000)
    shortest = min(seconds)
    repeats = np.rint(np.array(seconds) / shortest).astype(int)
    return Video(np.repeat(np.stack(frames), repeats, axis=0), 1 / shortest)


def _read_with_ffmpeg(suffix: str, data: bytes, fit: Callable[[Any], np.ndarray]) -> Video:
    open_video = _reader()
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:  # the decoder is another program: it reads files only
        file.write(data)
        file.flush()
        video: Any  # the library's readers can be iterated, which their class does not declare
        with open_video(file.name) as video:
            return Video(np.stack([fit(Image.fromarray(frame)) for frame in video]), video.get_meta_data()["fps"])


@functools.cache
def _reader():
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        raise UserError("reading MP4 and WebM needs imageio: pip install zoo[video]") from None
    return functools.partial(imageio.get_reader, format="FFMPEG")
