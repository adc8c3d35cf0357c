"""A cascade: a base run draws a small, slow video, and stages raise its frame rate and its size (CDM 2106.15282)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoo.errors import UserError
from zoo.families import require
from zoo.method import Upsamples
from zoo.runs.run import Run
from zoo.runs.sampler import Sampler

MOST_STAGES = 15


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A stage, opened.

    Attributes:
      name: its workdir, for errors.
      run: its run.
      frames: frames of what it draws in all.
      level: level of noise in what it is given.
      sampler: its sampler, of `run.shape`.
    """

    name: str
    run: Run
    frames: int
    level: float
    sampler: Sampler

    @property
    def method(self) -> Any:
        """The family of the run, which `Upsamples`."""
        return self.run.method

    @property
    def windows(self) -> list[tuple[int, int]]:
        """First frame of each window, and how many of its frames are there from the window before."""
        window = self.run.shape[0]
        kept = window // 2 // self.method.rate * self.method.rate
        starts = [0, *range(window - kept, self.frames - kept, window - kept)] if self.frames > window else [0]
        return [(start, kept if start else 0) for start in starts]

    @property
    def seams(self) -> tuple[int, ...]:
        """First frame that each window but the first adds."""
        return tuple(start + kept for start, kept in self.windows[1:] if start + kept < self.frames)

    def __call__(
        self, small: np.ndarray, captions: Sequence[str], seed: int, part: int, negative: str = ""
    ) -> np.ndarray:
        """Draws the stage's videos, uint8 (N, frames, H, W, C).

        Long videos are drawn in windows, each of which continues the one before. What the small video lacks at its end
        is drawn from the frames before alone.

        Args:
          small: uint8 (N, t, h, w, C).
          captions: N texts.
          seed: seed; row i is drawn with (seed, i).
          part: number of the stage, from 1.
          negative: text from which guidance leads away.
        """
        window, rate = self.run.shape[0], self.method.rate
        cond = self.run.recipe.conditions(captions, negative)
        made = np.zeros((len(small), 0, *self.run.shape[1:]), np.uint8)
        for number, (start, kept) in enumerate(self.windows):
            prefix = made[:, start : start + kept] if kept and self.method.prefix else None
            shown = small[:, start // rate : (start + window) // rate]
            given = self.method.given_of(shown, window, prefix, self.level)
            drawn = self.sampler(self.run.params, cond | dict(given), seed, part + (MOST_STAGES + 1) * number)
            made = np.concatenate([made, drawn[:, kept:]], axis=1)
        return made[:, : self.frames]


@dataclasses.dataclass(frozen=True, eq=False)
class Cascade:
    """Stages in order, each of which fits what the one before draws."""

    stages: tuple[Stage, ...]

    def __call__(self, videos: np.ndarray, captions: Sequence[str], seed: int, negative: str = "") -> list[np.ndarray]:
        """Returns what each stage draws of videos uint8 (N, t, h, w, C), the last one at the end."""
        drawn = []
        for part, stage in enumerate(self.stages, 1):
            videos = stage(videos, captions, seed, part, negative)
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
    wanted, after = frames, int(np.prod([require(run.method, Upsamples).rate for _, run in runs]))
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
        counted *= require(run.method, Upsamples).rate
        _check_length(stage, run, counted, shape[0])
        stages.append(Stage(stage, run, counted, level, run.sampler(per_device, **options)))
        options = {}
        name, shape, frame_rate = stage, (counted, *run.shape[1:]), run.recipe.frame_rate
    return Cascade(tuple(stages))


def _check_fit(name, shape, frame_rate, stage: str, run: Run, level: float) -> None:
    """Raises UserError where a stage's input is not what is before it."""
    method = require(run.method, Upsamples)
    small = method.small_shape(run.shape)
    if small[1:] != shape[1:]:
        raise UserError(f"{stage} upsamples {small[1]} x {small[2]} px, and {name} has {shape[1]} x {shape[2]} px")
    rate = run.recipe.frame_rate
    if (rate is None) != (frame_rate is None):
        kinds = ("images", "videos") if rate is None else ("videos", "images")
        raise UserError(f"{stage} upsamples {kinds[0]}, and {name} has {kinds[1]}: name another run")
    if rate is not None and frame_rate is not None and not np.isclose(rate, frame_rate * method.rate):
        raise UserError(
            f"{stage} upsamples videos of {rate / method.rate:g} frames/s, and {name} has {frame_rate:g} frames/s"
        )
    if not 0 <= level <= method.largest_level:
        raise UserError(f"level {level:g}: {stage} was trained on levels from 0 to {method.largest_level:g}")


def _check_length(stage: str, run: Run, frames: int, there: int) -> None:
    """Raises UserError where a stage cannot draw so many frames from those that are there."""
    window, method = run.shape[0], require(run.method, Upsamples)
    rate = method.rate
    if frames < window:
        raise UserError(f"{stage} draws at least {window} frames, and {frames} are wanted of it")
    if frames > there * rate and not method.prefix:
        raise UserError(
            f"{stage} is given {there} frames, which make {there * rate}, and {frames} are wanted: longer videos need "
            f"a stage with method.prefix above 0"
        )
