"""Writes a trained CLIP in Hugging Face's format.

python -m zoo export_clip --workdir runs/clip --out FOLDER
"""

from absl import flags

from zoo.commands.scaffold import Command
from zoo.errors import UserError
from zoo.methods.contrastive import Contrastive
from zoo.pretrained import clip as clips
from zoo.runs.dependencies import open_run

FLAGS = flags.FLAGS

HALF = (0.5, 0.5, 0.5)  # mean and std that turn [0, 1] into the [-1, 1] of training


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("workdir", None, "Folder of a contrastive run.", required=True)
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_string("dtype", "float16", "Type of the parameters in the file: float16 or float32.")


def main(_: list[str]) -> None:
    """Runs the command on parsed flags."""
    run = open_run(FLAGS.workdir)
    if not isinstance(run.method, Contrastive):
        raise UserError(f"{FLAGS.workdir} is a run of {type(run.method).__name__}: name one of configs/clip.py")
    if run.method.time_layers:
        raise UserError(f"{FLAGS.workdir} has layers of time, which a CLIP in Hugging Face's format has no place for")
    network, params = run.method.network, run.params["model"]["clip"]
    clips.save(FLAGS.out, clips.Clip(network, params, run.recipe.tokenizer.standalone(), HALF, HALF), FLAGS.dtype)
    print(f"{FLAGS.workdir} at step {run.step} -> {FLAGS.out}")


COMMAND = Command(main, define_flags)
