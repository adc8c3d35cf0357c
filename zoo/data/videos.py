"""Videos of files: their frames at a rate of their own, and the parts of them that training gets."""

import functools
import io
import re
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from zoo import media
from zoo.errors import UserError

SAME_RATE = 1e-3  # of rates, which files round
SUFFIXES = (".gif", ".mp4", ".webm")


class Video(NamedTuple):
    """A decoded video.

    Attributes:
      frames: uint8 (N, size, size, 3).
      rate: frames/s.
      order: numbers of the frames that are shown, one after the other at this rate, int32 (M,): a GIF stores one frame
        for as long as it stands.
    """

    frames: np.ndarray
    rate: float
    order: np.ndarray

    @classmethod
    def of(cls, frames: np.ndarray, rate: float) -> "Video":
        """Returns the video that shows each frame once."""
        return cls(frames, rate, np.arange(len(frames), dtype=np.int32))

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
        offsets = np.floor(np.arange(frames) * max(self.rate / fps, 1.0) + 0.5).astype(int)  # steps as equal as can be
        spare = len(self.order) - 1 - offsets[-1]
        if spare < 0:
            raise ValueError(
                f"it has {len(self.order)} frames at {self.rate:g}/s, and {frames} at {fps:g}/s need "
                f"{offsets[-1] + 1}: lower data.frames, or raise fps"
            )
        return self.frames[self.order[min(int(place * (spare + 1)), spare) + offsets]], fps


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
    """Frames of a GIF may last differently: all are repeated as often as one of its rate fits into them.

    The rate is the one that `media.save` noted, since of equal frames only one is stored; else that of the shortest.
    """
    image: Any = Image.open(io.BytesIO(data))
    frames, seconds = [], []
    for i in range(getattr(image, "n_frames", 1)):
        image.seek(i)
        frames.append(fit(image.copy()))
        duration = image.info.get("duration", 0)
        seconds.append((duration if duration >= 20 else 100) / 1000)  # as browsers do
    rate = media.gif_rate(image) or 1 / min(seconds)
    ends = np.floor(np.cumsum(seconds) * rate + 0.5).astype(int)  # frames rounded by themselves would not add up
    order = np.repeat(np.arange(len(frames), dtype=np.int32), np.diff(ends, prepend=0))
    return Video(np.stack(frames), rate, order)


def _read_with_ffmpeg(suffix: str, data: bytes, fit: Callable[[Any], np.ndarray]) -> Video:
    open_video, program = _reader()
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:  # the decoder is another program: it reads files only
        file.write(data)
        file.flush()
        rate, even = _rate(program, file.name)
        filters = "setpts=PTS-STARTPTS"  # else a stream that starts late begins with copies of its first frame
        filters += "" if even else f",fps={rate:g}"  # frames at their times: none lasts longer than it should
        video: Any  # the library's readers can be iterated, which their class does not declare
        with open_video(file.name, output_params=["-vf", filters]) as video:
            return Video.of(np.stack([fit(Image.fromarray(frame)) for frame in video]), rate)


def _rate(program: str, name: str) -> tuple[float, bool]:
    """Returns the mean frames/s of a file's video, and whether its frames are evenly spaced."""
    printed = subprocess.run([program, "-hide_banner", "-i", name], capture_output=True, stdin=subprocess.DEVNULL)
    stream = re.search(r"Stream #.*Video:.*", printed.stderr.decode("utf-8", "replace"))
    found = re.search(r", (?:([\d.]+)(k?) fps, )?([\d.]+)(k?) tbr", stream[0]) if stream else None
    if not found:
        raise ValueError("it has no video whose frame rate is known")
    number = lambda digits, thousand: float(digits) * (1000 if thousand else 1)
    ticks = number(*found.groups()[2:])
    mean = number(*found.groups()[:2]) if found[1] else ticks
    return mean or ticks, abs(mean / ticks - 1) < SAME_RATE


@functools.cache
def _reader():
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg
    except ImportError:
        raise UserError("reading MP4 and WebM needs imageio: pip install zoo[video]") from None
    return functools.partial(imageio.get_reader, format="FFMPEG"), imageio_ffmpeg.get_ffmpeg_exe()
