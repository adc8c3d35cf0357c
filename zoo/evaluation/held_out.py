"""The loss on items that training does not see."""

import itertools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from zoo.data.pipeline import Source
from zoo.method import Batch
from zoo.runs.recipe import Recipe
from zoo.training import parallel, processes
from zoo.training.state import split_batch

LEVELS = 0.1, 0.3, 0.5, 0.7, 0.9  # times


@runtime_checkable
class HasLossAtLevel(Protocol):
    """Ability of families whose loss has a noise level: the loss at one.

    Attributes:
      time_min: earliest time that is trained.
    """

    time_min: float

    def loss_at(self, params: Any, batch: Batch, rng: jax.Array, t: float) -> jax.Array:
        """Returns the mean loss of a batch at time t, a scalar."""
        ...


def explain(source: Source, trained: Source, batch_size: int) -> None:
    """Prints what losses on a split do not show, because of the items that it has.

    Args:
      source: data of the split.
      trained: data that is trained on.
      batch_size: items in a batch.
    """
    if len(source) == len(trained) and all(
        np.array_equal(source[i]["inputs"], trained[i]["inputs"]) for i in (0, len(source) - 1)
    ):
        processes.note(
            "the losses of loop.held_out_every are on the training data, which the test split is: hold some out"
        )
    if len(source) < batch_size:
        processes.note(
            f"the losses of loop.held_out_every take the {len(source)} items of the test split again and again, to "
            f"fill a batch of {batch_size}: losses that compare items, as CLIP's, are wrong there"
        )


class HeldOut:
    """Losses of a recipe's players on another split, on the same items with the same noise each time.

    Args:
      recipe: recipe that is trained.
      source: data of the split.
      num: number of items, each taken once in whole batches, at least one batch.
      accumulate: parts in which a device takes its batch, as in training: some losses compare the items of a part.
    """

    def __init__(self, recipe: Recipe, source: Source, num: int, accumulate: int = 1):
        self._accumulate, count = accumulate, max(1, min(num, len(source)) // recipe.data.batch_size)
        batches = itertools.islice(recipe.stream(source, split="test"), count)
        self._batches = [jax.tree.map(lambda x: x[:, 0], parallel.stack_and_shard([batch])) for batch in batches]
        self._method, self._axis = recipe.method, parallel.Devices()
        self._losses = jax.pmap(self._on_a_batch, axis_name=parallel.AXIS_NAME, in_axes=(0, 0, None, None, 0))

    def __call__(self, params: Any, frozen: Any, step: int) -> dict[str, float]:
        """Returns {"held_out/model/loss": 0.5, ...}, and of families with a noise level the loss at some.

        Args:
          params: replicated parameters of all players.
          frozen: replicated parameters of the frozen networks.
          step: of training, on which some losses depend.
        """
        sums: dict[str, float] = {}
        for number, batch in enumerate(self._batches):
            found = parallel.unreplicate(self._losses(params, frozen, number, step, batch))
            sums = {name: sums.get(name, 0.0) + float(value) for name, value in found.items()}
        return {f"held_out/{name}": value / len(self._batches) for name, value in sums.items()}

    def _on_a_batch(self, params, frozen, number, step, batch) -> dict[str, jax.Array]:
        rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), number), self._axis.index)
        tree = {**params, "frozen": frozen}
        if self._accumulate == 1:
            return self._axis.pmean(self._on_a_part(tree, rng, step, batch))
        parts = split_batch(batch, self._accumulate)
        found = jax.lax.map(
            lambda part: self._on_a_part(tree, jax.random.fold_in(rng, part[0]), step, part[1]),
            (jnp.arange(self._accumulate), parts),
        )
        return self._axis.pmean(jax.tree.map(jnp.mean, found))

    def _on_a_part(self, tree, rng, step, batch) -> dict[str, jax.Array]:
        method = self._method
        metrics: dict[str, jax.Array] = {}
        for player in dict.fromkeys(method.players):
            _, output = method.loss(player, tree, batch, rng, self._axis, jnp.asarray(step))
            metrics |= {f"{player}/{name}": value for name, value in output.metrics.items()}
        if isinstance(method, HasLossAtLevel):
            times = [t for t in LEVELS if t >= method.time_min]
            metrics |= {f"{method.players[0]}/loss_at_{t:g}": method.loss_at(tree, batch, rng, t) for t in times}
        return metrics
