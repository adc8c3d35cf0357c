"""Quality against cost: a run is sampled with several numbers of steps, and scored."""

from collections.abc import Mapping, Sequence
from typing import Any

import zoo.evaluation.measures  # noqa: F401, which registers them
from zoo.evaluation.features import Features
from zoo.evaluation.registry import Pair, Sample, evaluate, first_of, make_context
from zoo.runs.run import Run


def nfe_sweep(
    run: Run,
    steps: Sequence[int],
    networks: Mapping[str, Features],
    measures: Sequence[str],
    split: str = "test",
    num: int = 256,
    num_reference: int = 2000,
    seed: int = 0,
    **options: Any,
) -> list[dict[str, Any]]:
    """Scores a run with each number of steps, else with the options of its config and those given.

    Args:
      run: run.
      steps: numbers of steps.
      networks: feature networks by name.
      measures: names of measures.
      split: split of the captions.
      num: number of captions.
      num_reference: most real images to compare with.
      seed: seed of the images.
      **options: sampling options.

    Returns:
      [{"steps", "evaluations", "scores": {name: value}}, ...].
    """
    recipe = run.recipe
    real = first_of(recipe.data, split, num)
    captions = real.require_captions()
    context = make_context(networks, recipe.data, real, num_reference, seed)
    cond, rows = recipe.conditions(captions, inputs=real.images), []
    pair, rate = Pair.of(run.method, real.images), recipe.frame_rate
    for count in steps:
        sampler = run.sampler(**options | {"steps": count})
        images = sampler(run.params, cond, seed)
        scores, _ = evaluate(Sample(images, captions, frame_rate=rate, pair=pair), context, measures)
        values = {name: score.value for name, score in scores.items()}
        rows.append({"steps": count, "evaluations": sampler.evaluations, "scores": values})
    return rows
