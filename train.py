"""Trains a recipe: python train.py --config configs/diffusion.py:demo --workdir runs/demo"""

from absl import app, flags

from zoo import config
from zoo.errors import BadInput, exit_on_bad_input
from zoo.training import loop, parallel, preview

FLAGS = flags.FLAGS
config.define_config_flag()
flags.DEFINE_string("workdir", None, "Folder of the run; the same one resumes it.")
flags.DEFINE_bool("dry_run", False, "Say what the recipe would do, and stop.")
flags.DEFINE_string(
    "coordinator",
    None,
    "Several processes: HOST:PORT of the first one; clusters that jax knows "
    "need none of these three flags but --coordinator=auto.",
)
flags.DEFINE_integer("num_processes", None, "Several processes: how many.")
flags.DEFINE_integer("process_id", None, "Several processes: which one this is, from 0.")


def main(argv):
    if argv[1:]:
        raise BadInput(f"no such argument: {argv[1]!r}; flags begin with --")
    if FLAGS.coordinator:
        parallel.join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
    parallel.use_compilation_cache()
    if FLAGS.dry_run:
        print(preview.preview(FLAGS.config))
    elif not FLAGS.workdir:
        raise BadInput("--workdir is missing: the folder of the run, e.g. --workdir runs/demo")
    else:
        loop.train(FLAGS.config, FLAGS.workdir)


if __name__ == "__main__":
    with exit_on_bad_input():
        app.run(main, flags_parser=config.parse_flags)
