"""A run's sampling, compiled for all local devices."""

from typing import Any, NamedTuple

import jax
import numpy as np

from zoo.conditions import NEGATIVE, Cond
from zoo.config import build_options
from zoo.errors import UserError
from zoo.families import require
from zoo.method import Generates, Method, Speculates, to_uint8
from zoo.runs.codec import Codec
from zoo.training.parallel import pmap_in_batches

SEPARATE = 2**31  # above all indices of rows


class Drawn(NamedTuple):
    """Images, and what they took.

    Attributes:
      images: uint8 (N, T, H, W, C).
      calls: calls of the network until each was done, one after the other, int32 (N,); None where that is
        `Sampler.evaluations`.
    """

    images: Any
    calls: Any


class Sampler:
    """Makes images of conditions.

    Image i depends on (seed, i) and its conditions alone, see `parallel.pmap_in_batches`; another `per_device` is
    another compiled program, which may round differently.

    Args:
      method: family.
      shape: shape of one sample, (T, H, W, C).
      options: values of the family's `SampleOptions`.
      per_device: images that a device makes at once.
      codec: decodes the samples of a run on latents or codes; None for images.
      frames: frames of a sample, which may be fewer than the codec decodes; None for all.

    Attributes:
      evaluations: of the network, for an image; see `Generates.evaluations`.

    Raises:
      UserError: the family makes no samples, or an option does not exist or has a wrong value.
    """

    def __init__(
        self,
        method: Method,
        shape: tuple[int, ...],
        options: dict[str, Any],
        per_device: int = 16,
        codec: Codec | None = None,
        frames: int | None = None,
    ):
        generates = require(method, Generates)
        sample = _counted(generates)
        self.per_device, self.options = per_device, sample_options(generates, options)
        self.evaluations = generates.evaluations(self.options, shape)

        def make(shared, rows):
            params, key = shared
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, rows["index"])
            made, calls = sample(params, keys, rows["cond"], shape, self.options)
            return Drawn(to_uint8(codec.decode(params["frozen"], made) if codec else made)[:, :frames], calls)

        self._make = pmap_in_batches(make, per_device)

    def __call__(
        self, params: Any, cond: Cond, seed: int, part: int = 0, numbers: np.ndarray | None = None
    ) -> np.ndarray:
        """Makes one image for each row of the conditions.

        Args:
          params: trees of all players, and the frozen ones.
          cond: conditions (N, ...), see `Recipe.conditions`.
          seed: seed of the images; an image of number i is drawn with (seed, i).
          part: number of a part that is drawn after others with the same seed, with noise of its own; 0 for the first.
          numbers: of the images, (N,); None for 0 to N - 1.

        Returns:
          uint8 (N, T, H, W, C).
        """
        return self.draw(params, cond, seed, part, numbers).images

    def draw(self, params: Any, cond: Cond, seed: int, part: int = 0, numbers: np.ndarray | None = None) -> "Drawn":
        """Makes images, and counts calls of the network; arguments as those of `__call__`."""
        return self._make(*self._arguments(params, cond, seed, part, numbers))

    def compile(self, params: Any, cond: Cond) -> None:
        """Compiles for arguments of these shapes; afterwards other shapes fail, except another number of rows."""
        self._make.compile(*self._arguments(params, cond, 0))

    def check(self, params: Any, cond: Cond) -> None:
        """Raises the errors of a call, without compiling."""
        self._make.check(*self._arguments(params, cond, 0))

    def _arguments(self, params: Any, cond: Cond, seed: int, part: int = 0, numbers: np.ndarray | None = None):
        if NEGATIVE in cond and (not getattr(self.options, "guidance", 0) or getattr(self.options, "guide", None)):
            if not hasattr(self.options, "guidance"):
                raise UserError("a negative caption needs guidance, which this family has none of: drop it")
            raise UserError("a negative caption needs guidance above 0, without a guide: set the option guidance")
        index = np.arange(len(jax.tree.leaves(dict(cond))[0])) if numbers is None else np.asarray(numbers)
        key = jax.random.key(seed)
        key = jax.random.fold_in(key, SEPARATE + part) if part else key  # rows fold in their index, which is smaller
        return (params, key), {"index": index.astype(np.int32), "cond": dict(cond)}


def _counted(method: Any) -> Any:
    """The family's `sample_counted`, or its `sample` with None for the count."""
    if isinstance(method, Speculates):
        return method.sample_counted
    return lambda *arguments: (method.sample(*arguments), None)


def sample_options(method: Any, values: dict[str, Any]) -> Any:
    """Returns the family's `SampleOptions` of these values; raises UserError on one that cannot be."""
    return build_options(method.SampleOptions, values, f"sampling option of {type(method).__name__}")
