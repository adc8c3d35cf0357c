"""Videos of files: their frames at a rate of their own, and the parts of them that training gets."""

import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo import media
from zoo.errors import UserError

SAME_RATE = 2e-3  # of rates, which files round: 29.97 frames/s are 30
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

    @classmethod
    def timed(cls, frames: Sequence[np.ndarray], ends: np.ndarray, rate: float) -> "Video":
        """Returns the video that shows frames at their times, repeated or left out as a constant rate needs it.

        Args:
          frames: uint8 (size, size, 3) each.
          ends: seconds after the start at which each makes way for the next, (N,).
          rate: frames/s.
        """
        shown = np.floor(np.asarray(ends) * rate + 0.5).astype(int)  # numbers rounded by themselves would not add up
        order = np.repeat(np.arange(len(frames), dtype=np.int32), np.diff(shown, prepend=0))
        return cls(np.stack(frames), rate, order)

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
      fit: image of Pillow, or uint8 (H, W, 3) -> uint8 (size, size, 3).

    Raises:
      UserError: the library that it needs is missing. Other errors mean that the file is damaged.
    """
    return _read_gif(data, fit) if suffix == ".gif" else _read_with_av(data, fit)


def _read_gif(data: bytes, fit: Callable[[Any], np.ndarray]) -> Video:
    """Its rate is the one that `media.save` noted, for of equal frames one is stored; else that of the shortest."""
    try:
        image: Any = Image.open(io.BytesIO(data), formats=["GIF"])
    except UnidentifiedImageError:
        raise ValueError("it is no GIF") from None
    frames, seconds = [], []
    for i in range(getattr(image, "n_frames", 1)):
        image.seek(i)
        frames.append(fit(image.copy()))
        duration = image.info.get("duration", 0)
        seconds.append((duration if duration >= 20 else 100) / 1000)  # as browsers do
    return Video.timed(frames, np.cumsum(seconds), media.gif_rate(image) or 1 / min(seconds))


def _read_with_av(data: bytes, fit: Callable[[Any], np.ndarray]) -> Video:
    av = media.video_library("reading MP4 and WebM")
    frames, starts, end, colours = [], [], 0.0, av.video.reformatter.VideoReformatter()
    try:
        with av.open(io.BytesIO(data)) as file:
            stream = file.streams.best("video")
            if stream is None:
                raise ValueError("it holds no video")
            stream.codec_context.thread_count = 1  # here and below: for files are decoded side by side
            for frame in file.decode(stream):
                image = colours.reformat(frame, format="rgb24", threads=1).to_ndarray()
                frames.append(fit(np.rot90(image, round(frame.rotation / 90))))
                starts.append(frame.time)
                end = (frame.time or 0) + float(frame.duration * frame.time_base)
            rate = float(stream.average_rate or 0)
            # Other streams may be longer; without them a file that was cut off notes its whole length.
            whole = (file.duration or 0) / av.time_base if len(file.streams) == 1 else 0
    except av.FFmpegError as error:
        raise ValueError(error.strerror) from None
    if not frames or None in starts:
        raise ValueError("none of its frames can be decoded, or their times are not known")
    if len(frames) > 1:
        rate = rate or (len(frames) - 1) / (starts[-1] - starts[0])
    if not rate:
        raise ValueError("it has one frame, and no frame rate")
    end = max(end, starts[-1] + 1 / rate)
    if end + 2 / rate < whole:
        raise ValueError(f"it is cut off: it ends after {end:.2f} of {whole:.2f} s")
    return Video.timed(frames, np.append(starts[1:], end) - starts[0], rate)
