"""The flags of every command that samples a run."""

import ast
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from absl import flags

from zoo.errors import UserError
from zoo.families import require
from zoo.method import Denoises
from zoo.runs.dependencies import check_shared, open_run
from zoo.runs.recipe import SEEDS
from zoo.runs.run import Run
from zoo.runs.sampler import Sampler

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they belong to the command, whose --help lists them
OF_SAMPLES = (  # all but --workdir and --seed
    *("checkpoint", "ema", "steps", "sampler", "guidance", "option", "negative", "frames", "fps", "per_device"),
    *("guide_workdir", "guide_checkpoint", "guide_ema"),
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
    flags.DEFINE_integer("frames", None, "Frames of a video; by default those of the run's data.", lower_bound=1)
    flags.DEFINE_float("fps", None, "Frames per second of a video; by default that of the run's data.")
    about = "Seed of the images; the same seed gives the same images."
    flags.DEFINE_integer("seed", 0, about, lower_bound=0, upper_bound=SEEDS - 1)
    flags.DEFINE_integer("per_device", 16, "Images that a device makes at once.", lower_bound=1)
    flags.DEFINE_string("guide_workdir", None, "Autoguidance: run to guide away from; by default --workdir itself.")
    flags.DEFINE_integer("guide_checkpoint", None, "Autoguidance: checkpoint to guide away from.")
    flags.DEFINE_string("guide_ema", None, "Autoguidance: half-life of the average to guide away from.")
    if workdir_required:
        flags.mark_flag_as_required("workdir")


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
      guided: option `guide`, if there is one.
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

    def sampler(self) -> Sampler:
        """Returns the run's sampler with these options."""
        return self.run.sampler(self.per_device, self.frames, **self.options, **self.guided)

    def conditions(self, captions: list[str]) -> dict[str, Any]:
        """Returns the conditions of captions."""
        return self.run.recipe.conditions(captions, self.negative, self.frame_rate, self.frames)

    def about(self) -> dict[str, Any]:
        """Returns the origin of the images, for files."""
        settings = dict(self.run.recipe.config.sample) | dict(self.options)
        about = {"run": self.workdir, "checkpoint": self.run.step, "ema": self.ema, "seed": self.seed}
        video = {} if self.frame_rate is None else {"frames": self.frames or self.run.shape[0], "fps": self.frame_rate}
        return about | {"negative": self.negative, "settings": settings} | video


def read() -> Sampling:
    """Opens the run that the flags name. Raises UserError as `open_run`, and for an invalid option or guide."""
    run = open_run(FLAGS.workdir, FLAGS.checkpoint, FLAGS.ema)
    guided = {}
    if FLAGS.guide_workdir or FLAGS.guide_checkpoint is not None or FLAGS.guide_ema:
        run, guided = _with_guide(run)
    frame_rate = read_frame_rate(run, FLAGS.fps)
    given = FLAGS.workdir, FLAGS.ema, FLAGS.seed, FLAGS.per_device, FLAGS.negative, FLAGS.frames, frame_rate
    return Sampling(run, *given, read_options(), guided)


def read_frame_rate(run: Run, given: float | None) -> float | None:
    """Returns the frame rate of what the run makes; raises UserError where it is not one, or the run makes images."""
    if given is None:
        return run.recipe.frame_rate
    if run.recipe.frame_rate is None:
        raise UserError(f"--fps {given:g}: this run makes images, which have no frame rate; drop the flag")
    if not 0 < given < math.inf:
        raise UserError(f"--fps must be above 0, got {given:g}")
    return given


def read_options() -> dict[str, Any]:
    """Returns the sampling options that were given."""
    given = {name: getattr(FLAGS, name) for name in ("steps", "sampler", "guidance")}
    given = {name: value for name, value in given.items() if value is not None}
    for word in FLAGS.option:
        name, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"--option {word!r} is not NAME=VALUE")
        given[name] = _value(value)
    return given


def _with_guide(run: Run) -> tuple[Run, dict[str, Any]]:
    """The run with the guide that the flags name, and the sampling option for it."""
    if not hasattr(getattr(run.method, "SampleOptions", None), "guide"):
        raise UserError(f"{type(run.method).__name__} has no autoguidance; drop the --guide_ flags")
    name = FLAGS.guide_workdir or FLAGS.workdir
    guide = open_run(name, FLAGS.guide_checkpoint, FLAGS.guide_ema)
    check_shared("--guide_workdir", name, guide, run.recipe)
    return run.guided_by(guide), {"guide": require(guide.method, Denoises)}


def _value(text: str) -> Any:
    """A number or tuple where the text is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
