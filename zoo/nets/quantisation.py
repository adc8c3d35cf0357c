"""Quantisers turn the numbers that an encoder predicts for a patch into a vector for its decoder, and into a code.

Numbers (..., channels) become bounded vectors, and those quantised ones; the derivative of the latter is that of the
identity (straight-through). No quantiser has a learned codebook.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from zoo.config import build
from zoo.errors import UserError, check_ranges, unknown_name_error

MOST_CODES = 2**16  # codes are stored as uint16
# 1 / (1 + exp(-1.702 x)) is within 0.01 of the Gaussian distribution function, so that bins of equal width in it have
# the same share of Gaussian numbers.
STEEPNESS = 1.702


class Quantiser(Protocol):
    """The functions that all quantisers have.

    Attributes:
      channels: number of channels of a vector.
      codes: number of codes; None for vectors without codes.
    """

    @property
    def channels(self) -> int:  # noqa: D102
        ...

    @property
    def codes(self) -> int | None:  # noqa: D102
        ...

    def bounded(self, raw: jax.Array) -> jax.Array:
        """Numbers (..., channels) -> bounded vectors, float32."""
        ...

    def quantised(self, y: jax.Array) -> jax.Array:
        """Bounded vectors -> vectors for the decoder."""
        ...

    def disturbed(self, rng: jax.Array, y: jax.Array) -> jax.Array:
        """Bounded vectors -> vectors for the decoder in training."""
        ...

    def penalty(self, raw: jax.Array, axis: Any) -> jax.Array:
        """Returns the term that training adds to the loss, for numbers (..., channels) on devices of an `Axis`."""
        ...


@dataclasses.dataclass(frozen=True)
class Levels:
    """Finite scalar quantisation (2309.15505): each channel has so many levels of equal width in (-1, 1).

    The paper rounds a scaled tanh, whose outer levels are half as wide and which needs an offset for even numbers of
    levels. Here level k of L is the interval from 2 k / L - 1 to 2 (k + 1) / L - 1, and its value the middle.

    Attributes:
      levels: number of levels of each channel, at least 2; their product is the number of codes.

    Raises:
      UserError: fewer than 2 levels, or more than 65,536 codes.
    """

    levels: Sequence[int] = (8, 5, 5, 5)

    def __post_init__(self):
        check_ranges(self, levels="[2, inf)")
        if any(level != int(level) for level in self.levels):
            raise UserError(f"levels must be whole numbers, got {tuple(self.levels)}")
        if not self.levels or self.codes > MOST_CODES:
            raise UserError(f"levels must make 2 to {MOST_CODES} codes, and {tuple(self.levels)} make {self.codes}")

    @property
    def channels(self) -> int:
        """Channels of a vector."""
        return len(self.levels)

    @property
    def codes(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)

    def bounded(self, raw: jax.Array) -> jax.Array:
        """See `Quantiser.bounded`: to (-1, 1), so that each level has the same share of standard Gaussian numbers."""
        return 2 * jax.nn.sigmoid(STEEPNESS * raw.astype(jnp.float32)) - 1

    def quantised(self, y: jax.Array) -> jax.Array:
        """See `Quantiser.quantised`: the middle of each number's level."""
        middles = (2 * self._level(y) + 1) / np.array(self.levels, np.float32) - 1
        return y + jax.lax.stop_gradient(middles - y)

    def disturbed(self, rng: jax.Array, y: jax.Array) -> jax.Array:
        """See `Quantiser.disturbed`: quantised as always."""
        del rng
        return self.quantised(y)

    def penalty(self, raw: jax.Array, axis: Any) -> jax.Array:
        """See `Quantiser.penalty`: none."""
        del raw, axis
        return jnp.zeros(())

    def index(self, y: jax.Array) -> jax.Array:
        """Bounded vectors (..., channels) -> codes int32 (...); the first channel changes fastest."""
        return (self._level(y).astype(jnp.int32) * np.array(self._strides, np.int32)).sum(axis=-1)

    def vector(self, index: jax.Array) -> jax.Array:
        """The inverse of `index`: codes (...) -> the middles of their levels, float32 (..., channels)."""
        levels = np.array(self.levels, np.int32)
        digits = index.astype(jnp.int32)[..., None] // np.array(self._strides, np.int32) % levels
        return (2 * digits + 1) / levels.astype(np.float32) - 1

    @property
    def _strides(self) -> list[int]:
        return [math.prod(self.levels[:channel]) for channel in range(len(self.levels))]

    def _level(self, y: jax.Array) -> jax.Array:
        levels = np.array(self.levels, np.float32)
        return jnp.clip(jnp.floor((y + 1) / 2 * levels), 0, levels - 1)


@dataclasses.dataclass(frozen=True)
class Binary(Levels):
    """Binary codes, kept apart by entropy (look-up free quantisation, 2310.05737).

    Attributes:
      levels: 2 for each bit of a code.
      entropy_weight: weight of the penalty.
    """

    levels: Sequence[int] = (2,) * 10
    entropy_weight: float = 0.1

    SHARPNESS: ClassVar[float] = 4.0  # a bit is 1 with the probability sigmoid(SHARPNESS * raw)

    def __post_init__(self):
        super().__post_init__()
        check_ranges(self, levels="[2, 2]", entropy_weight="[0, inf)")

    def penalty(self, raw: jax.Array, axis: Any) -> jax.Array:
        """See `Quantiser.penalty`: the entropy of a bit, less that of its mean over all vectors (eq. 5), in bits.

        The paper takes the entropy of the mean of whole codes, which that of the bits bounds from above.
        """
        p = jax.nn.sigmoid(self.SHARPNESS * raw.astype(jnp.float32))
        of_mean = _entropy(axis.pmean(p.mean(axis=tuple(range(p.ndim - 1)))))
        return self.entropy_weight * (_entropy(p).mean() - of_mean.mean())


@dataclasses.dataclass(frozen=True)
class Vectors:
    """No codes: vectors of length sqrt(channels), to which training adds noise, so that near ones decode alike.

    Attributes:
      channels: of a vector.
      noise: standard deviation of the noise.
    """

    channels: int = 16
    noise: float = 0.2

    codes: ClassVar[None] = None

    def __post_init__(self):
        check_ranges(self, channels="[2, inf)", noise="[0, inf)")

    def bounded(self, raw: jax.Array) -> jax.Array:
        """See `Quantiser.bounded`."""
        raw = raw.astype(jnp.float32)
        return raw * jax.lax.rsqrt(jnp.mean(jnp.square(raw), axis=-1, keepdims=True) + 1e-6)

    def quantised(self, y: jax.Array) -> jax.Array:
        """See `Quantiser.quantised`: as they are."""
        return y

    def disturbed(self, rng: jax.Array, y: jax.Array) -> jax.Array:
        """See `Quantiser.disturbed`."""
        return y + self.noise * jax.random.normal(rng, y.shape)

    def penalty(self, raw: jax.Array, axis: Any) -> jax.Array:
        """See `Quantiser.penalty`: none."""
        del raw, axis
        return jnp.zeros(())


QUANTISERS = {"levels": Levels, "binary": Binary, "vectors": Vectors}


def build_quantiser(section: Any, where: str) -> Any:
    """Builds a quantiser from its section of a config: `name`, a key of `QUANTISERS`, and the fields of its class."""
    fields = dict(section)
    name = fields.pop("name", None)
    if name not in QUANTISERS:
        raise unknown_name_error(f"{where}.name", str(name), QUANTISERS)
    return build(QUANTISERS[name], fields, where)


def frequencies(codes: jax.Array, count: int) -> jax.Array:
    """Returns the frequency of each of `count` codes, (count,)."""
    return jnp.zeros(count).at[codes.reshape(-1)].add(1.0) / codes.size


def usage(frequency: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the share of codes that occur, and the perplexity of their frequencies: 2 to the entropy in bits."""
    entropy = -(frequency * jnp.log(jnp.maximum(frequency, 1e-12))).sum()
    return (frequency > 0).mean(), jnp.exp(entropy)


def _entropy(p: jax.Array) -> jax.Array:
    """Entropy of a bit that is 1 with the probability p, in bits."""
    p = jnp.clip(p, 1e-6, 1 - 1e-6)
    return -(p * jnp.log2(p) + (1 - p) * jnp.log2(1 - p))
