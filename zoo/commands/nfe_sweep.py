"""Draws quality against cost.

    python -m zoo nfe_sweep runs/demo runs/few_steps --steps 1,2,4,8 --measures oracle

Each run is sampled with each number of steps, else with its config's options, and scored; features are those of the
CLIP that ships. For each measure a curve is drawn over the evaluations of the network per image, guidance included.
Options after a run's name make a curve of their own: 'runs/masked?order=halton&guidance=0.5'.
"""

from pathlib import Path
from typing import Any

from absl import flags

from zoo.commands.sampling_flags import read_option
from zoo.commands.scaffold import Command
from zoo.errors import UserError
from zoo.evaluation import registry, report
from zoo.evaluation.features import clip_features
from zoo.evaluation.nfe_sweep import nfe_sweep
from zoo.files import write_json
from zoo.runs.dependencies import open_run
from zoo.runs.recipe import SEEDS
from zoo.runs.run import Run

FLAGS = flags.FLAGS
COST = "evaluations of the network"


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_list("steps", ["1", "2", "4", "8"], "Steps of the sampler, with commas.")
    flags.DEFINE_list("measures", ["oracle"], "Names of measures, with commas.")
    flags.DEFINE_integer("num", 256, "Captions to sample and score.", lower_bound=2)
    flags.DEFINE_integer("num_reference", 2000, "Most real images of split train to compare with.", lower_bound=2)
    flags.DEFINE_string("split", "test", "Split of the captions.")
    flags.DEFINE_integer("seed", 0, "Same seed, same images.", lower_bound=0, upper_bound=SEEDS - 1)
    flags.DEFINE_multi_string("show", [], "A score to draw, e.g. all, which is the oracle's; by default every one.")
    flags.DEFINE_string("out", "nfe_sweep.png", "The curves, and a JSON file beside them.")


def main(workdirs: list[str]) -> None:
    """Runs the command on parsed flags."""
    named = [name for name in registry.chosen(FLAGS.measures) if name in FLAGS.measures]
    of_runs = [name for name in named if registry.MEASURES[name].of_run]
    if of_runs:
        raise UserError(f"--measures: {of_runs[0]} is not of samples, so it has no steps; see python -m zoo score")
    steps = [to_steps(word) for word in FLAGS.steps or [""]]
    networks = {"clip": clip_features()} if registry.needs_clip(FLAGS.measures) else {}
    sizes = (FLAGS.split, FLAGS.num, FLAGS.num_reference, FLAGS.seed)
    runs = {word: _open(word) for word in workdirs}
    for run, options in runs.values():  # a wrong option is found before any run is sampled
        for count in steps:
            run.sampler(**options | {"steps": count})
    found = {
        word: nfe_sweep(run, steps, networks, FLAGS.measures, *sizes, **options)
        for word, (run, options) in runs.items()
    }
    for workdir, rows in found.items():
        for row in rows:
            scores = ", ".join(f"{name} {value:.4g}" for name, value in row["scores"].items())
            print(f"{workdir}, {row['steps']} steps, {row['evaluations']} evaluations: {scores}")
    out = Path(FLAGS.out)
    write_json(out.with_suffix(".json"), found)
    curves = {workdir: [{COST: row["evaluations"]} | row["scores"] for row in rows] for workdir, rows in found.items()}
    names = dict.fromkeys(name for rows in curves.values() for row in rows for name in row if name != COST)
    report.to_curves(curves, COST, FLAGS.show or list(names), out, log=True)
    print(f"-> {out}, {out.with_suffix('.json')}")


def _open(word: str) -> tuple[Run, dict[str, Any]]:
    """Returns the run that is named, and the options after its name."""
    workdir, _, query = word.partition("?")
    options = [read_option(part, f"the option of {workdir}") for part in query.split("&") if part]
    given = {name: value for option in options for name, value in option.items()}
    if "steps" in given:
        raise UserError(f"{word}: name the steps by --steps")
    return open_run(workdir), given


COMMAND = Command(
    main, define_flags, "name at least one run: python -m zoo nfe_sweep runs/a runs/b", suffixes=report.CHARTS
)


def to_steps(word: str) -> int:
    """Returns a number of steps. Raises UserError where the word is none."""
    if not word.isdigit() or not int(word):
        raise UserError(f"--steps: {word!r} is no number of steps; give e.g. 1,2,4")
    return int(word)
