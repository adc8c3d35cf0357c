"""Writes a trained CLIP as Hugging Face keeps it: python -m zoo.scoring.export_clip --workdir runs/clip --out FOLDER"""

from absl import app, flags

from zoo.config import ability, parse_flags
from zoo.errors import BadInput, exit_on_bad_input
from zoo.pretrained import clip as clips
from zoo.run import Run

FLAGS = flags.FLAGS

HALF = (0.5, 0.5, 0.5)  # mean and std that make [0, 1] the [-1, 1] that methods train on


def define_flags() -> None:
    """Only where this is the command: others share the names."""
    flags.DEFINE_string("workdir", None, "Folder of a contrastive run.", required=True)
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_string("dtype", "float16", "Of the parameters in the file: float16 or float32.")


def main(argv):
    if argv[1:]:
        raise BadInput(f"no such argument: {argv[1]!r}; flags begin with --")
    run = Run.open(FLAGS.workdir)
    ability(run.recipe.method, "text_features")
    network, params = run.recipe.method.network, run.params["model"]["clip"]
    clips.save(FLAGS.out, clips.Clip(network, params, run.recipe.tokenizer.standalone(), HALF, HALF), FLAGS.dtype)
    print(f"{FLAGS.workdir} at step {run.step} -> {FLAGS.out}")


if __name__ == "__main__":
    define_flags()
    with exit_on_bad_input():
        app.run(main, flags_parser=parse_flags)
