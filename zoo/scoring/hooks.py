"""Scores on the way: what the training loop asks every so many steps."""

from collections.abc import Sequence
from typing import Any

from zoo.run import Recipe, Sampler
from zoo.scoring.features import clip_features
from zoo.scoring.measures import Sample, first_of, make_task, measure, needs_clip

NUM_REFERENCE = 1000


class Scorer:
    """Measures the samples of a recipe's parameters.

    Args:
      recipe: what is trained.
      sampler: makes its pictures.
      num: pictures, of the first captions of the data's split `test`.
      measures: see `scoring.measures.MEASURES`; "all" is all that can be had.

    Raises:
      BadInput: an unknown measure, or too few captions.
    """

    def __init__(self, recipe: Recipe, sampler: Sampler, num: int, measures: Sequence[str]):
        self._recipe, self._sampler, self._measures = recipe, sampler, measures
        networks = {"clip": clip_features()} if needs_clip(measures) else {}
        self._real = first_of(recipe.data, "test", num)
        self._task = make_task(networks, recipe.data, self._real, NUM_REFERENCE)

    def __call__(self, params: Any) -> dict[str, float]:
        """{"score/all": 0.9, ...} of pictures made with these parameters of all players."""
        captions = self._real.captions
        made = self._sampler(params, self._recipe.tokenizer.encode(captions), seed=0)
        scores, _ = measure(Sample(made, captions), self._task, self._measures)
        return {f"score/{name}": score.value for name, score in scores.items()}
