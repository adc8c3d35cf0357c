"""The flags of every command that samples a run."""

import ast
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from zoo.errors import UserError, named
from zoo.families import require
from zoo.method import Denoises, Upsamples
from zoo.runs.adapters import Adapter, with_adapters
from zoo.runs.cascade import Cascade, rate_of
from zoo.runs.cascade import build as build_cascade
from zoo.runs.dependencies import check_shared, open_run
from zoo.runs.recipe import SEEDS
from zoo.runs.run import Run
from zoo.runs.sampler import Sampler
from zoo.runs.speculation import NAMES, with_draft
from zoo.training import processes

FLAGS = flags.FLAGS
MOST_FRAMES, MOST_AT_ONCE = 100_000, 4096  # an hour of video; beyond them a slip of the finger
flags.disclaim_key_flags()  # they belong to the command, whose --help lists them
OF_SAMPLES = (  # all but --workdir and --seed
    *("checkpoint", "ema", "steps", "sampler", "guidance", "option", "negative", "frames", "fps", "per_device"),
    *("guide_workdir", "guide_checkpoint", "guide_ema", "speculate", "adapter", "upsample", "level"),
)


def define(workdir_required: bool = True) -> None:
    """Defines the flags; call it once."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_integer("checkpoint", None, "Step of the checkpoint to use; by default the newest.")
    flags.DEFINE_string(
        "ema", None, 'Half-life of the averaged parameters, or "none" for the plain ones; by default the longest.'
    )
    flags.DEFINE_integer("steps", None, "Steps of the sampler.", lower_bound=1)
    flags.DEFINE_string("sampler", None, "Name of the sampler.")
    flags.DEFINE_float("guidance", None, "Guidance scale, 0 for none.")
    flags.DEFINE_multi_string("option", [], "NAME=VALUE: another sampling option of the run's family.")
    flags.DEFINE_string("negative", "", "Text from which guidance leads away; by default the empty caption.")
    flags.DEFINE_integer(
        "frames", None, "Frames of a video; by default those of the run's data.", lower_bound=1, upper_bound=MOST_FRAMES
    )
    flags.DEFINE_float("fps", None, "Frames per second of a video; by default that of the run's data.")
    about = "Seed of the images; the same seed gives the same images."
    flags.DEFINE_integer("seed", 0, about, lower_bound=0, upper_bound=SEEDS - 1)
    flags.DEFINE_integer(
        "per_device", 16, "Images that a device makes at once.", lower_bound=1, upper_bound=MOST_AT_ONCE
    )
    flags.DEFINE_string("guide_workdir", None, "Autoguidance: run to guide away from; by default --workdir itself.")
    flags.DEFINE_integer("guide_checkpoint", None, "Autoguidance: checkpoint to guide away from.")
    flags.DEFINE_string("guide_ema", None, "Autoguidance: half-life of the average to guide away from.")
    flags.DEFINE_string(
        "speculate",
        None,
        f"What guesses codes of an autoregressive run, so that it draws several at once: {', '.join(NAMES)}, "
        "layers:K for its own first K layers, or a workdir. The samples have the same distribution. --option "
        "draft_length=K codes are guessed at once.",
    )
    flags.DEFINE_multi_string(
        "adapter",
        [],
        "FILE or FILE@STRENGTH: a file of python -m zoo adapters export, added to the run; several add up.",
    )
    if workdir_required:
        flags.mark_flag_as_required("workdir")


def define_stages() -> None:
    """Defines the flags of commands that can upsample what they sample; call it once."""
    flags.DEFINE_multi_string("upsample", [], "Workdir of a stage that draws what was made at more pixels or frames/s.")
    flags.DEFINE_multi_float("level", [], "Noise in what a stage is given, for each stage or once for all.")


@dataclasses.dataclass(frozen=True, eq=False)
class Sampling:
    """A run, opened by the flags.

    Attributes:
      run: run, with the parameters of its guide if there is one.
      workdir: folder of the run.
      ema: average that was chosen, or None.
      seed: seed of the images.
      per_device: images that a device makes at once.
      negative: text from which guidance leads away.
      frames: number of frames; None for that of the data.
      frame_rate: frames/s of videos; None for images.
      options: sampling options that were given; the others are the config's.
      guided: options `guide` and `draft`, where they are given.
      runs: workdir and run of each stage, in order: of --upsample, and before them the run itself if it is one.
      cascade: stages that upsample what the run makes, or what is given to it; None without any.
    """

    run: Run
    workdir: str
    ema: str | None
    seed: int
    per_device: int
    negative: str
    frames: int | None
    frame_rate: float | None
    options: Mapping[str, Any]
    guided: Mapping[str, Any]
    runs: Sequence[tuple[str, Run]] = ()
    cascade: Cascade | None = None

    def sampler(self) -> Sampler:
        """Returns the run's sampler with these options."""
        return self.run.sampler(self.per_device, self.frames, **self.options, **self.guided)

    def conditions(self, captions: list[str], inputs: Any = None) -> dict[str, Any]:
        """Returns the conditions of captions; `inputs` as for `Recipe.conditions`."""
        return self.run.recipe.conditions(captions, self.negative, self.frame_rate, self.frames, inputs)

    def upsampled(
        self, made: np.ndarray, captions: Sequence[str], numbers: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """Returns what each stage draws of images that the run made, none without stages; arguments as `Cascade`'s."""
        negative = self.negative if self.is_stage else ""
        return self.cascade(made, captions, self.seed, negative, numbers) if self.cascade else []

    @property
    def is_stage(self) -> bool:
        """Whether the run upsamples what is given, so that it makes nothing by itself: see `given`."""
        return isinstance(self.run.method, Upsamples)

    def given(self, name: str, shape: tuple[int, ...], frame_rate: float | None) -> "Sampling":
        """Returns this run, a stage, and those of --upsample as a cascade of small images.

        Args:
          name: name of the images, for errors.
          shape: their shape, (t, h, w, C).
          frame_rate: their frames/s; None for images.

        Raises:
          UserError: as `cascade.build`; or --fps is not what the stages make.
        """
        options = {**self.options, **self.guided}
        common = {"levels": FLAGS.level, "frames": FLAGS.frames, "per_device": self.per_device, "options": options}
        cascade = build_cascade(name, shape, frame_rate, self.runs, **common)
        if FLAGS.fps is not None and not math.isclose(FLAGS.fps, cascade.frame_rate or 0.0):
            made = "images" if cascade.frame_rate is None else f"{cascade.frame_rate:g} frames/s"
            raise UserError(f"--fps {FLAGS.fps:g}: the stages make {made} of {name}: drop it")
        return dataclasses.replace(self, cascade=cascade, frame_rate=frame_rate)

    @property
    def final_frames(self) -> int:
        """Frames of what comes out at the end; of an image one."""
        return self.cascade.stages[-1].frames if self.cascade else self.frames or self.run.shape[0]

    @property
    def final_frame_rate(self) -> float | None:
        """Frames/s of what comes out at the end; None for images."""
        return self.cascade.frame_rate if self.cascade else self.frame_rate

    def about(self) -> dict[str, Any]:
        """Returns the origin of the images, for files."""
        settings = dict(self.run.recipe.config.sample) | dict(self.options)
        about = {"run": self.workdir, "checkpoint": self.run.step, "ema": self.ema, "seed": self.seed}
        stages = self.cascade.stages if self.cascade else ()
        rate = self.final_frame_rate
        video = {} if rate is None else {"frames": self.final_frames, "fps": rate}
        if FLAGS.speculate:
            about["speculate"] = FLAGS.speculate
        if FLAGS.adapter:
            about["adapters"] = FLAGS.adapter
        above = {"stages": [{"run": one.name, "checkpoint": one.run.step, "level": one.level} for one in stages]}
        return about | {"negative": self.negative, "settings": settings} | video | (above if stages else {})


def read() -> Sampling:
    """Opens the run that the flags name, and the stages of --upsample, which are not built yet where it is one itself.

    Raises:
      UserError: as `open_run`; an invalid option or guide; or stages that do not fit.
    """
    run = open_run(FLAGS.workdir, FLAGS.checkpoint, FLAGS.ema)
    if FLAGS.adapter:
        run = named("--adapter", lambda: with_adapters(run, [Adapter.of(word) for word in FLAGS.adapter]))
    guided = {}
    if FLAGS.guide_workdir or FLAGS.guide_checkpoint is not None or FLAGS.guide_ema:
        run, guided = _with_guide(run)
    if FLAGS.speculate:
        run, drafted = with_draft(run, FLAGS.workdir, FLAGS.speculate)
        guided |= drafted
    flags_of_run = FLAGS.workdir, FLAGS.ema, FLAGS.seed, FLAGS.per_device, FLAGS.negative
    runs = [(name, open_run(name)) for name in FLAGS.upsample] if "upsample" in FLAGS else []
    note_other_data(FLAGS.workdir, run, runs)
    sampling = Sampling(run, *flags_of_run, FLAGS.frames, None, read_options(), guided, runs)
    if sampling.is_stage:
        return dataclasses.replace(sampling, runs=[(sampling.workdir, run), *runs])
    if runs:
        frames, frame_rate, cascade = _with_stages(run, runs)
        return dataclasses.replace(sampling, frames=frames, frame_rate=frame_rate, cascade=cascade)
    if "level" in FLAGS and FLAGS.level:
        raise UserError("--level is of a stage: name one by --upsample, or drop it")
    return dataclasses.replace(sampling, frame_rate=read_frame_rate(run, FLAGS.fps, FLAGS.frames))


def note_other_data(name: str, run: Run, stages: Sequence[tuple[str, Run]]) -> None:
    """Prints which stages were trained on other data than a run, whose captions may mean nothing to them."""
    of = lambda run: run.recipe.data.source.partition("?")[0]
    for other, stage in stages:
        if of(stage) != of(run):
            processes.note(f"note: {other} was trained on {of(stage)}, and {name} on {of(run)}")


def _with_stages(run: Run, runs: list[tuple[str, Run]]) -> tuple[int | None, float | None, Cascade]:
    """Frames and frame rate of the run, and the stages; --frames and --fps are of what comes out at the end."""
    after = rate_of(runs)
    wanted, own = FLAGS.frames or run.shape[0] * after, run.shape[0]
    last = runs[-1][1].recipe.frame_rate
    if FLAGS.fps is not None and last and not math.isclose(FLAGS.fps, last):
        raise UserError(f"--fps {FLAGS.fps:g}: {runs[-1][0]} makes {last:g} frames/s alone: drop it")
    rate = read_frame_rate(run, None if FLAGS.fps is None else FLAGS.fps / after)
    frames = max(1, min(own, wanted // after))  # longer ones are continued by the stages
    shape = (frames, *run.shape[1:])
    cascade = build_cascade(
        FLAGS.workdir, shape, rate, runs, levels=FLAGS.level, frames=wanted, per_device=FLAGS.per_device
    )
    return (None if frames == own else frames), rate, cascade


def read_frame_rate(run: Run, given: float | None, frames: int | None = None) -> float | None:
    """Returns the frame rate of what the run makes; raises UserError where it is not one, or the run makes images."""
    if given is None:
        return None if frames == 1 else run.recipe.frame_rate
    named("--fps", lambda: run.recipe.check_frame_rate(given, frames))
    return given


def read_options() -> dict[str, Any]:
    """Returns the sampling options that were given."""
    given = {name: getattr(FLAGS, name) for name in ("steps", "sampler", "guidance")}
    given = {name: value for name, value in given.items() if value is not None}
    return given | {name: value for word in FLAGS.option for name, value in read_option(word, "--option").items()}


def read_option(word: str, where: str) -> dict[str, Any]:
    """Returns the sampling option in NAME=VALUE, which stands `where`. Raises UserError where it is none."""
    name, equals, value = word.partition("=")
    if not equals:
        raise UserError(f"{where} {word!r} is not NAME=VALUE")
    return {name: _value(value)}


def _with_guide(run: Run) -> tuple[Run, dict[str, Any]]:
    """The run with the guide that the flags name, and the sampling option for it."""
    if not hasattr(getattr(run.method, "SampleOptions", None), "guide"):
        raise UserError(f"{type(run.method).__name__} has no autoguidance; drop the --guide_ flags")
    name = FLAGS.guide_workdir or FLAGS.workdir
    guide = open_run(name, FLAGS.guide_checkpoint, FLAGS.guide_ema)
    check_shared("--guide_workdir", name, guide, run.recipe)
    if isinstance(guide.method, Upsamples) != isinstance(run.method, Upsamples):
        raise UserError(f"--guide_workdir: of {FLAGS.workdir} and {name} one is a stage of a cascade: name another run")
    if (own := _factors(run)) != (other := _factors(guide)):
        raise UserError(
            f"--guide_workdir: {FLAGS.workdir} raises size and frame rate by {own}, {name} by {other}: name another run"
        )
    return run.guided_by(guide), {"guide": require(guide.method, Denoises)}


def _factors(run: Run) -> tuple[int, int] | None:
    """By how much a stage raises size and frame rate; None for a run that is no stage."""
    stage = run.method
    return (stage.scale, stage.rate) if isinstance(stage, Upsamples) else None


def _value(text: str) -> Any:
    """A number or tuple where the text is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
