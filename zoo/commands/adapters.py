"""Writes what a run has learned beside its base as a file, and shows what is in one.

python -m zoo adapters export --workdir runs/pot --out pot.safetensors
python -m zoo adapters info pot.safetensors
"""

from pathlib import Path

from absl import flags

from zoo import weights
from zoo.commands.scaffold import Command
from zoo.errors import UserError, named
from zoo.files import check_output
from zoo.runs.adapters import save
from zoo.runs.dependencies import open_run

FLAGS = flags.FLAGS
SUFFIXES = (".safetensors",)


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("workdir", None, "With export: folder of a personalized or rewarded run.")
    flags.DEFINE_integer("checkpoint", None, "Step of the checkpoint to use; by default the newest.")
    flags.DEFINE_string("ema", None, "Half-life of the averaged parameters; by default the longest, if there is one.")
    flags.DEFINE_string("out", None, "With export: file to write.")


def main(words: list[str]) -> None:
    """Runs the command on parsed flags."""
    if words == ["export"]:
        if not FLAGS.workdir or not FLAGS.out:
            raise UserError("export needs --workdir, the folder of a run, and --out, a file ending with .safetensors")
        named("--out", lambda: check_output(FLAGS.out, SUFFIXES))
        run = open_run(FLAGS.workdir, FLAGS.checkpoint, FLAGS.ema)
        about = named("--workdir", lambda: save(run, FLAGS.out))
        print(f"{FLAGS.workdir} at step {run.step} -> {FLAGS.out}, {Path(FLAGS.out).stat().st_size:,} bytes")
    elif len(words) == 2 and words[0] == "info":
        tensors = weights.read(words[1])
        about = weights.metadata(words[1])
        print(f"{len(tensors)} tensors, {sum(tensor.size for tensor in tensors.values()):,} numbers")
    else:
        raise UserError(COMMAND.arguments)
    for name, value in about.items():
        print(f"{name:10} {value}")


COMMAND = Command(main, define_flags, "write export --workdir RUN --out FILE.safetensors, or info FILE")
