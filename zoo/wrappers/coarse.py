"""Codes in two steps: those of a coarse grid by one family, then all between them by a frozen run.

A generator that draws codes one after the other decides what an image shows, and one that draws them at once has little
left to decide.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import numpy as np

from zoo.conditions import Cond
from zoo.decoding.filling import SamplesByFilling
from zoo.errors import check_ranges
from zoo.method import Axis, Batch, Fills, Output, split_each
from zoo.wrappers.compose import Wrapper


@dataclasses.dataclass(frozen=True)
class Coarse(SamplesByFilling, Wrapper):
    """A generator of the codes in every `stride`-th row and column.

    Attributes:
      base: family that draws these.
      vocab_size: number of token ids of captions.
      dtype: type that networks compute in.
      filler: frozen run that draws the others, with the parameters `params["frozen"]["filler"]`.
      stride: rows from one coarse row to the next, and columns.
    """

    base: Any
    vocab_size: int
    dtype: Any
    filler: Any
    stride: int = 2

    DEPENDENCIES: ClassVar[Mapping[str, type]] = {"filler": Fills}
    FORWARDS: ClassVar[tuple[type, ...]] = ()

    @staticmethod
    def needs(fields: Mapping[str, Any]) -> type:
        """Returns the ability that the base needs."""
        del fields
        return Fills

    def __post_init__(self):
        check_ranges(self, stride="[2, inf)")

    @property
    def SampleOptions(self) -> type:  # noqa: N802, a class
        """The filler's; of them the base reads those that it has too."""
        return self.filler.SampleOptions

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`."""
        return self.base.init(rng, self._coarse(batch))

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """See `Method.loss`: the base's, of the coarse codes."""
        return self.base.loss(player, params, self._coarse(batch), rng, axis, step)

    def fill(self, params, rng: jax.Array, inputs: jax.Array, known: jax.Array, cond: Cond, options: Any) -> jax.Array:
        """See `Fills.fill`."""
        rng_coarse, rng_rest = split_each(rng)
        grid = self._grid
        coarse = self.base.fill(params, rng_coarse, inputs[grid], known[grid], cond, self._of_base(options))
        inputs, known = inputs.at[grid].set(coarse.astype(inputs.dtype)), known.at[grid].set(True)
        return self.filler.fill(params["frozen"]["filler"], rng_rest, inputs, known, cond, options)

    def evaluations(self, options: Any, shape: tuple[int, ...]) -> int:
        """See `Generates.evaluations`: the base's and the filler's."""
        coarse = np.empty((1, *shape))[self._grid].shape[1:]
        return self.base.evaluations(self._of_base(options), coarse) + self.filler.evaluations(options, shape)

    @property
    def _grid(self) -> tuple[slice, ...]:
        every = slice(None, None, self.stride)
        return (slice(None), slice(None), every, every)

    def _coarse(self, batch: Batch) -> Batch:
        return dict(batch) | {"inputs": batch["inputs"][self._grid]}

    def _of_base(self, options: Any) -> Any:
        fields = {field.name for field in dataclasses.fields(self.base.SampleOptions)}
        given = {name: value for name, value in vars(options).items() if name in fields}
        return self.base.SampleOptions(**given)
