"""Scores during training."""

from collections.abc import Sequence
from typing import Any

import zoo.evaluation.measures  # noqa: F401, which registers them
from zoo.evaluation.features import clip_features
from zoo.evaluation.registry import Pair, Sample, evaluate, first_of, make_context, needs_clip
from zoo.runs.recipe import Recipe
from zoo.runs.sampler import Sampler

NUM_REFERENCE = 1000


class Evaluator:
    """Scores samples of a recipe's parameters.

    Args:
      recipe: recipe that is trained.
      sampler: its sampler.
      num: number of images, made from the first captions of the data's split `test`.
      measures: names of measures; "all" is all that can be computed.

    Raises:
      UserError: an unknown measure, or too few captions.
    """

    def __init__(self, recipe: Recipe, sampler: Sampler, num: int, measures: Sequence[str]):
        self._recipe, self._sampler, self._measures = recipe, sampler, measures
        networks = {"clip": clip_features()} if needs_clip(measures) else {}
        self._real = first_of(recipe.data, "test", num)
        self._pair = Pair.of(recipe.method, self._real.images)
        self._context = make_context(networks, recipe.data, self._real, NUM_REFERENCE)

    def __call__(self, params: Any) -> dict[str, float]:
        """Returns {"score/all": 0.9, ...} of images made with these parameters of all players."""
        captions = self._real.require_captions()
        made = self._sampler(params, self._recipe.conditions(captions, inputs=self._real.images), seed=0)
        sample = Sample(made, captions, frame_rate=self._recipe.frame_rate, pair=self._pair)
        scores, _ = evaluate(sample, self._context, self._measures)
        return {f"score/{name}": score.value for name, score in scores.items()}
