"""The flags that every command which samples a run has, and what they mean."""

import ast
import inspect
from typing import Any

from absl import flags

from zoo.config import ability
from zoo.errors import BadInput
from zoo.run import Run

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they are the command's, whose --help tells them


def define(workdir_required: bool = True) -> None:
    """Defines the flags; call it once, where a command's module is loaded."""
    flags.DEFINE_string("workdir", None, "Folder of the run.")
    flags.DEFINE_integer("checkpoint", None, "Step of the checkpoint to use; by default the newest.")
    flags.DEFINE_string("ema", None, "Half-life of the averaged parameters, or none; by default the longest.")
    flags.DEFINE_integer("steps", None, "Steps of the sampler.", lower_bound=1)
    flags.DEFINE_string("sampler", None, "Name of the sampler.")
    flags.DEFINE_float("guidance", None, "Guidance scale, 0 for none.")
    flags.DEFINE_multi_string("option", [], "NAME=VALUE: another sampling option of the run's family.")
    flags.DEFINE_integer("seed", 0, "Same seed, same pictures.")
    flags.DEFINE_integer("per_device", 16, "Pictures that a device makes at once.", lower_bound=1)
    flags.DEFINE_string("guide_workdir", None, "Autoguidance: the run to guide away from; by default --workdir itself.")
    flags.DEFINE_integer("guide_checkpoint", None, "Autoguidance: the checkpoint to guide away from.")
    flags.DEFINE_string("guide_ema", None, "Autoguidance: the average to guide away from.")
    if workdir_required:
        flags.mark_flag_as_required("workdir")


def open_run() -> Run:
    """The run that the flags name."""
    return Run.open(FLAGS.workdir, FLAGS.checkpoint, FLAGS.ema)


def options() -> dict[str, Any]:
    """The sampling options that were given; what was not is left to the run's config."""
    given = {name: getattr(FLAGS, name) for name in ("steps", "sampler", "guidance")}
    given = {name: value for name, value in given.items() if value is not None}
    for word in FLAGS.option:
        name, equals, value = word.partition("=")
        if not equals:
            raise BadInput(f"--option {word!r} is not NAME=VALUE")
        given[name] = _value(value)
    return given


def traced_options(run: Run) -> dict[str, Any]:
    """The options that hold arrays: a guide, where one of the guide flags is given."""
    if not (FLAGS.guide_workdir or FLAGS.guide_checkpoint is not None or FLAGS.guide_ema):
        return {}
    method = run.recipe.method
    if "guide" not in inspect.signature(method.sample).parameters:
        raise BadInput(f"{type(method).__name__} has no autoguidance; drop the --guide_ flags")
    guide = Run.open(FLAGS.guide_workdir or FLAGS.workdir, FLAGS.guide_checkpoint, FLAGS.guide_ema)
    if guide.recipe.tokenizer.to_json() != run.recipe.tokenizer.to_json():
        raise BadInput("the guide reads captions with another tokenizer: train it on the same data and vocab_size")
    return {"guide": ability(guide.recipe.method, "as_guide")(guide.params)}


def _value(text: str) -> Any:
    """A number or tuple where the text is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
