"""Trains a recipe.

python -m zoo train --config configs/diffusion.py:demo --workdir runs/demo
"""

from absl import flags

from zoo import config, loop
from zoo.commands import preview
from zoo.commands.scaffold import Command, refuse
from zoo.errors import UserError
from zoo.training import processes

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    config.define_config_flag()
    flags.DEFINE_string("workdir", None, "Folder of the run; the same one resumes it.")
    flags.DEFINE_bool("dry_run", False, "Print parameters, cost and captions of the recipe, write a sheet, and stop.")
    flags.DEFINE_string(
        "out",
        None,
        "With --dry_run: file for 16 items; by default dry_run.png, .gif for videos; a .png shows all frames.",
    )
    flags.DEFINE_integer(
        "profile",
        0,
        "Write a trace of so many steps, after the first call, to WORKDIR/profile, for TensorBoard, XProf or Perfetto.",
        lower_bound=0,
    )
    flags.DEFINE_bool("debug_nans", False, "Stop at the first value that is not finite, and name its layer. Slow.")
    flags.DEFINE_string(
        "coordinator",
        None,
        "Several processes: HOST:PORT of the first one; clusters that jax recognises need only "
        "--coordinator=auto of these three flags.",
    )
    flags.DEFINE_integer("num_processes", None, "Several processes: how many.")
    flags.DEFINE_integer("process_id", None, "Several processes: which one this is, from 0.")


def main(_: list[str]) -> None:
    """Runs the command on parsed flags."""
    if not FLAGS.coordinator:
        refuse(("num_processes", "process_id"), "needs --coordinator too, HOST:PORT of the first process, or auto")
    else:
        processes.join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    if FLAGS.out and not FLAGS.dry_run:
        raise UserError("--out is for --dry_run; a run's folder is given by --workdir")
    if FLAGS.dry_run:
        refuse(("profile", "debug_nans"), "is for training: drop it, or --dry_run")
        print(preview.preview(FLAGS.config, FLAGS.out))
    elif not FLAGS.workdir:
        raise UserError("--workdir is missing: the folder of the run, e.g. --workdir runs/demo")
    else:
        loop.train(FLAGS.config, FLAGS.workdir, FLAGS.profile, FLAGS.debug_nans)


COMMAND = Command(main, define_flags)
