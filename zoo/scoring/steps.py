"""Quality against cost: python -m zoo.scoring.steps runs/demo runs/few_steps --steps 1,2,4,8 --measures oracle

Each run is sampled with each number of steps, else as its config says, and scored; features are those of the CLIP that
comes with the zoo. Of each measure a curve is drawn over the evaluations of its network that a picture takes, guidance
counted in.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from absl import app, flags

from zoo.config import ability, parse_flags
from zoo.errors import BadInput, exit_on_bad_input
from zoo.run import Run
from zoo.scoring import report
from zoo.scoring.features import Features, clip_features
from zoo.scoring.measures import OF_RUNS, Sample, chosen, first_of, make_task, measure, needs_clip
from zoo.training import parallel

FLAGS = flags.FLAGS
COST = "evaluations of the network"


def define_flags() -> None:
    """Only where this is the command: others share the names."""
    flags.DEFINE_list("steps", ["1", "2", "4", "8"], "Steps of the sampler, with commas between them.")
    flags.DEFINE_list("measures", ["oracle"], "Which measures, with commas between them.")
    flags.DEFINE_integer("num", 256, "Captions to sample and score.", lower_bound=2)
    flags.DEFINE_integer("num_reference", 2000, "Real pictures of split train to compare with, at most.", lower_bound=2)
    flags.DEFINE_string("split", "test", "Split of the data that the captions come from.")
    flags.DEFINE_integer("seed", 0, "Same seed, same pictures.")
    flags.DEFINE_multi_string("show", [], "A score to draw, e.g. all, which is the oracle's; by default every one.")
    flags.DEFINE_string("out", "steps.png", "The curves, and a JSON file beside them.")


def main(argv):
    if not argv[1:]:
        raise BadInput("name at least one run: python -m zoo.scoring.steps runs/a runs/b")
    of_runs = [name for name in FLAGS.measures if name in OF_RUNS]
    if of_runs:
        raise BadInput(f"--measures: {of_runs[0]} is not of samples, so it has no steps; see python -m zoo.scoring")
    chosen(FLAGS.measures)
    steps = [to_steps(word) for word in FLAGS.steps]
    parallel.use_compilation_cache()
    networks = {"clip": clip_features()} if needs_clip(FLAGS.measures) else {}
    scores = {workdir: of_run(workdir, steps, networks) for workdir in argv[1:]}
    for workdir, rows in scores.items():
        for row in rows:
            print(f"{workdir}, {row['steps']} steps, {row['evaluations']} evaluations: {show(row['scores'])}")
    out = Path(FLAGS.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(scores, indent=2) + "\n")
    curves = {workdir: [{COST: row["evaluations"]} | row["scores"] for row in rows] for workdir, rows in scores.items()}
    names = dict.fromkeys(name for rows in curves.values() for row in rows for name in row if name != COST)
    report.to_curves(curves, COST, FLAGS.show or list(names), out, log=True)
    print(f"-> {out}, {out.with_suffix('.json')}")


def to_steps(word: str) -> int:
    if not word.isdigit() or not int(word):
        raise BadInput(f"--steps: {word!r} is no number of steps; give e.g. 1,2,4")
    return int(word)


def of_run(workdir: str, steps: list[int], networks: Mapping[str, Features]) -> list[dict]:
    """[{"steps", "evaluations", "scores": {name: value}}, ...] of a run."""
    run = Run.open(workdir)
    recipe, evaluations = run.recipe, ability(run.recipe.method, "evaluations")
    real = first_of(recipe.data, FLAGS.split, FLAGS.num)
    task = make_task(networks, recipe.data, real, FLAGS.num_reference, FLAGS.seed)
    tokens, rows = recipe.tokenizer.encode(real.captions), []
    for count in steps:
        made = run.sampler(steps=count)(run.params, tokens, FLAGS.seed)
        scores, _ = measure(Sample(made, real.captions), task, FLAGS.measures)
        cost = evaluations(**dict(recipe.config.sample) | {"steps": count})
        values = {name: score.value for name, score in scores.items()}
        rows.append({"steps": count, "evaluations": cost, "scores": values})
    return rows


def show(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in scores.items())


if __name__ == "__main__":
    define_flags()
    with exit_on_bad_input():
        app.run(main, flags_parser=parse_flags)
