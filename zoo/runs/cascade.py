"""A cascade: a base run draws a small, slow video, and stages raise its frame rate and its size (CDM 2106.15282)."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from zoo.errors import UserError, named
from zoo.families import require
from zoo.method import Upsamples
from zoo.runs.run import Run
from zoo.runs.sampler import Sampler

MOST_STAGES = 15
REMEDY = "name another run, or the stages in another order"


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A stage, opened.

    Attributes:
      name: its workdir, for errors.
      run: its run.
      given: frames of the small videos.
      frames: frames of what it draws in all.
      level: level of noise in what it is given.
      sampler: its sampler, of `run.shape`.
    """

    name: str
    run: Run
    given: int
    frames: int
    level: float
    sampler: Sampler

    @property
    def method(self) -> Any:
        """The family of the run, which `Upsamples`."""
        return self.run.method

    @property
    def windows(self) -> list[tuple[int, int]]:
        """First frame of each window, and how many of its frames stay as the windows before drew them.

        The last window of what is given, and that of all, are moved back to end there. A window that continues the one
        before begins in its middle. Frames after the last known one of a window are guessed: the next one draws them.
        """
        window, rate = self.run.shape[0], self.method.rate
        half = max(rate, window // 2 // rate * rate)
        overlap = half if self.method.prefix else rate * (rate > 1)
        starts, ends = [0], [min(self.given * rate, self.frames), self.frames]
        for end, shared in zip(ends, (overlap, half), strict=True):
            while starts[-1] + window < end:
                starts.append(min(starts[-1] + window - shared, end - window))
        kept = [before + window - start for before, start in itertools.pairwise(starts)]
        return [(0, 0), *((start, max(0, n - rate + 1)) for start, n in zip(starts[1:], kept, strict=True))]

    @property
    def seams(self) -> tuple[int, ...]:
        """First frame that each window but the first adds."""
        return tuple(start + kept for start, kept in self.windows[1:])

    def __call__(
        self,
        small: np.ndarray,
        captions: Sequence[str],
        seed: int,
        part: int,
        negative: str = "",
        numbers: np.ndarray | None = None,
    ) -> np.ndarray:
        """Draws the stage's videos, uint8 (N, frames, H, W, C).

        Long videos are drawn in windows. A stage with `prefix` gets, at the size of the small video, what the windows
        before drew; one without draws each window from the small video alone.

        Args:
          small: uint8 (N, given, h, w, C).
          captions: N texts.
          seed: seed; a video of number i is drawn with (seed, i).
          part: number of the stage, from 1.
          negative: text from which guidance leads away.
          numbers: of the videos, (N,); None for 0 to N - 1.
        """
        window, rate = self.run.shape[0], self.method.rate
        cond = self.run.recipe.conditions(captions, negative)
        made = np.zeros((len(small), 0, *self.run.shape[1:]), np.uint8)
        windows = tqdm.tqdm(self.windows, "windows", unit=" windows", leave=False, disable=None)
        for count, (start, kept) in enumerate(windows):
            prefix = made[:, start : start + kept] if kept and self.method.prefix else None
            shown = small[:, start // rate : (start + window) // rate]
            given = self.method.given_of(shown, window, prefix, self.level)
            key = part + (MOST_STAGES + 1) * count
            drawn = self.sampler(self.run.params, cond | dict(given), seed, key, numbers)
            made = np.concatenate([made[:, : start + kept], drawn[:, kept:]], axis=1)
        return made


@dataclasses.dataclass(frozen=True, eq=False)
class Cascade:
    """Stages in order, each of which fits what the one before draws."""

    stages: tuple[Stage, ...]

    def __call__(
        self,
        videos: np.ndarray,
        captions: Sequence[str],
        seed: int,
        negative: str = "",
        numbers: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Returns what each stage draws, the last one at the end, uint8 (N, T, H, W, C) each.

        Args:
          videos: uint8 (N, t, h, w, C).
          captions: N texts.
          seed: see `Stage`.
          negative: text from which guidance leads away in the first stage.
          numbers: see `Stage`.
        """
        drawn = []
        for part, stage in enumerate(self.stages, 1):
            videos = stage(videos, captions, seed, part, "" if drawn else negative, numbers)
            drawn.append(videos)
        return drawn

    @property
    def frame_rate(self) -> float | None:
        """Frames/s of what the last stage draws; None for images."""
        return self.stages[-1].run.recipe.frame_rate

    @property
    def evaluations(self) -> int:
        """Network evaluations for one video."""
        return sum(stage.sampler.evaluations * len(stage.windows) for stage in self.stages)


def build(
    name: str,
    shape: tuple[int, ...],
    frame_rate: float | None,
    runs: Sequence[tuple[str, Run]],
    levels: Sequence[float] = (),
    frames: int | None = None,
    per_device: int = 16,
    options: Mapping[str, Any] | None = None,
) -> Cascade:
    """Puts a cascade together, and checks that each stage fits the one before.

    Args:
      name: name of what is upsampled, for errors.
      shape: its shape, (T, H, W, C).
      frame_rate: its frames/s; None for images.
      runs: workdir and run of each stage, in order.
      levels: level of noise of each stage; one for all, or none for 0.
      frames: frames of the last stage's videos; None for as many as what is upsampled lasts.
      per_device: videos that a device draws at once.
      options: sampling options of the first stage, over its config's; the others have their own.

    Raises:
      UserError: a run that is no stage, a size, number of channels or frame rate that does not fit, a level that was
        not trained, or frames that the rates do not divide or that a stage cannot draw.
    """
    if len(runs) > MOST_STAGES:
        raise UserError(f"a cascade has at most {MOST_STAGES} stages, got {len(runs)}")
    levels = list(levels) or [0.0]
    if len(levels) not in (1, len(runs)):
        raise UserError(f"give one level for all stages or one for each of the {len(runs)}, got {len(levels)}")
    levels = levels * len(runs) if len(levels) == 1 else levels
    wanted, after = frames, rate_of(runs)
    if wanted is None:
        wanted = shape[0] * after
    if wanted % after:
        raise UserError(f"{wanted} frames: the stages multiply frames by {after}: give a multiple of it")
    stages, counted = [], wanted // after
    if counted < shape[0]:
        raise UserError(
            f"{wanted} frames need {counted} of {name}, which has {shape[0]}: give at least {shape[0] * after}"
        )
    options = dict(options or {})
    for (stage, run), level in zip(runs, levels, strict=True):
        _check_fit(name, shape, frame_rate, stage, run, level)
        if frame_rate is None and wanted > 1:
            raise UserError(f"{name} has images, and {wanted} frames are a video: drop --frames")
        counted *= require(run.method, Upsamples).rate
        _check_length(stage, run, counted, shape[0])
        stages.append(Stage(stage, run, shape[0], counted, level, run.sampler(per_device, **options)))
        options = {}
        name, shape, frame_rate = stage, (counted, *run.shape[1:]), run.recipe.frame_rate
    return Cascade(tuple(stages))


def rate_of(runs: Sequence[tuple[str, Run]]) -> int:
    """Returns by how much stages raise the frame rate; raises UserError where a run is no stage."""
    return math.prod(named(name, lambda run=run: require(run.method, Upsamples).rate) for name, run in runs)


def _check_fit(name, shape, frame_rate, stage: str, run: Run, level: float) -> None:
    """Raises UserError where a stage's input is not what is before it."""
    method = require(run.method, Upsamples)
    small = method.small_shape(run.shape)
    if small[1:] != shape[1:]:
        sides = f"{small[1]} x {small[2]} px, and {name} has {shape[1]} x {shape[2]} px"
        raise UserError(f"{stage} upsamples {sides}: {REMEDY}")
    rate = run.recipe.frame_rate
    if (rate is None) != (frame_rate is None):
        kinds = ("images", "videos") if rate is None else ("videos", "images")
        raise UserError(f"{stage} upsamples {kinds[0]}, and {name} has {kinds[1]}: name another run")
    if rate is not None and frame_rate is not None and not np.isclose(rate, frame_rate * method.rate):
        rates = f"{rate / method.rate:g} frames/s, and {name} has {frame_rate:g} frames/s"
        raise UserError(f"{stage} upsamples videos of {rates}: {REMEDY}")
    if not 0 <= level <= method.largest_level:
        raise UserError(f"level {level:g}: {stage} was trained on levels from 0 to {method.largest_level:g}")


def _check_length(stage: str, run: Run, frames: int, there: int) -> None:
    """Raises UserError where a stage cannot draw so many frames from those that are there."""
    window, method = run.shape[0], require(run.method, Upsamples)
    rate = method.rate
    if frames < window:
        raise UserError(f"{stage} draws at least {window} frames, and the {there} it is given make {frames}: give more")
    if there * rate < window:
        raise UserError(f"{stage} is given {there} frames, and upsamples at least {window // rate}")
    if frames > window == rate:
        raise UserError(f"{stage} draws {window} frames of one: {frames} need a stage that is given more at once")
    if frames > there * rate and not method.prefix:
        raise UserError(
            f"{stage} is given {there} frames, which make {there * rate}, and {frames} are wanted: longer videos need "
            f"a stage with method.prefix above 0"
        )
