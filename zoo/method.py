"""The contract between a family and everything else.

A family is a `Method`: what it trains (`players`), how it starts, its loss, and how it makes pictures. The loop, the
sampler and the measures know nothing more of it. A family that makes no pictures, only scores them, has no `sample`.

The other protocols are abilities, which a family has or lacks; who needs one asks by `config.ability`. In all of them
`rng` is one key a picture, (B,), so that what becomes of a picture does not depend on those beside it, and `params`
is that of all players.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp

Params = Any
Noise = Any  # what a picture is made from: a tree of independent standard Gaussian arrays (B, ...)
Batch = Mapping[str, jax.Array]  # pixels: uint8 (B, T, H, W, C); tokens, and negatives where asked for: int32 (B, L)


@flax.struct.dataclass
class Output:
    """What a loss tells beside its value.

    Attributes:
      metrics: scalars, means over this device's examples.
      fake: a differentiable picture that the method made in this step, (B, T, H, W, C) in [-1, 1], or None where
        there is none. Plug-ins attach here. Who does not use it does not pay for it: compilers drop it.
    """

    metrics: dict[str, jax.Array]
    fake: jax.Array | None = None


class Axis:
    """The devices that train together, as a method sees them. This one is alone: all reductions are the identity."""

    index = 0

    def pmean(self, tree):
        """Mean over devices."""
        return tree

    def all_gather(self, x: jax.Array) -> jax.Array:
        """(B, ...) on each device -> (devices * B, ...) on all, differentiable."""
        return x


class Method(Protocol):
    """A family of generators.

    Attributes:
      players: names of the parameter trees, trained in this order within one step.
    """

    players: tuple[str, ...]

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Params]:
        """Returns fresh parameters, a tree for each player. Only the shapes of the batch matter."""

    def loss(
        self, player: str, params: dict[str, Params], batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """Returns the mean loss over this device's examples; differentiated with respect to params[player] alone.

        `step` counts from 0, for what warms up.
        """

    def sample(
        self, params: dict[str, Params], rng: jax.Array, cond: jax.Array, shape: tuple[int, ...], **options
    ) -> jax.Array:
        """Makes pictures.

        Args:
          rng: one key a picture, (B,), so that a picture does not depend on those made beside it.
          cond: tokens, (B, L).
          shape: of one picture, (T, H, W, C).
          **options: the family's own, with defaults.

        Returns:
          Pixels (B, T, H, W, C), float32. Those of data lie in [-1, 1]; `to_uint8` clips what lies outside.
        """


class Showing(Protocol):
    """A family whose loss shows a picture, `Output.fake`, that a plug-in can work on.

    Attributes:
      fake_of: "picture" where it is made of the batch's own picture, as by an autoencoder; "caption" where it is fresh.
      caption_drop: share of captions that the family replaces by the empty one.
    """

    fake_of: str
    caption_drop: float


class Likely(Protocol):
    """A family that knows how probable a picture is."""

    def bits_per_dim(self, params: dict[str, Params], rng: jax.Array, batch: Batch, **options) -> jax.Array:
        """-log2 p(pixels | caption) / dimensions of each picture in 256 levels, or an upper bound of it: (B,) float32.

        Options are the family's own, with defaults.
        """


class Reconstructing(Protocol):
    """A family that can pass a picture through what it remembers of it."""

    def reconstruct(self, params: dict[str, Params], rng: jax.Array, batch: Batch) -> jax.Array:
        """The pictures, encoded and decoded again: float32 (B, T, H, W, C) in [-1, 1]."""


class Editable(Protocol):
    """A family that makes a picture from noise alone, and finds the noise of a picture.

    `sample` with given keys is `generate` of what `draw_noise` draws with them.

    Attributes:
      faithful: options of `sample` under which `generate` makes of a picture's noise that picture, as near as it can:
        no guidance, which takes pictures away from what their noise would make, and nothing drawn.
    """

    faithful: Mapping[str, Any]

    def draw_noise(self, rng: jax.Array, shape: tuple[int, ...]) -> Noise:
        """Noise for one picture of `shape` (T, H, W, C) for each key."""

    def generate(self, params: dict[str, Params], noise: Noise, cond: jax.Array, **options) -> jax.Array:
        """Noise and tokens (B, L) -> pixels like `sample`'s. Nothing is drawn; options are those of `sample`."""

    def invert(self, params: dict[str, Params], rng: jax.Array, pixels: jax.Array, cond: jax.Array, **options) -> Noise:
        """Noise that `generate` makes these pixels of, float32 (B, T, H, W, C) in [-1, 1], as well as it can."""


class Stepwise(Protocol):
    """A family that makes a picture in steps, each a draw whose probability is known."""

    def walk(
        self, params: dict[str, Params], rng: jax.Array, cond: jax.Array, shape: tuple[int, ...], **options
    ) -> jax.Array:
        """Samples, and returns all states on the way, the last of them the pixels: (states, B, T, H, W, C)."""

    def log_prob_of_walk(self, params: dict[str, Params], states: jax.Array, cond: jax.Array, **options) -> jax.Array:
        """log of the density of each step that draws, given the state before it: (steps, B), in nats.

        Options are those of `walk`.
        """


class Leaning(Protocol):
    """A family that looks through the networks of finished runs, which must stay where they are.

    Attributes:
      needs_runs: the workdirs by the keys of the config that name them.
    """

    needs_runs: Mapping[str, str]

    def given(self, frozen: Mapping[str, tuple["Method", Params]]) -> "Leaning":
        """The family with those runs: for each key the method and its parameters."""


class Taught(Protocol):
    """A family that learns from a reward, which the loop hands to it before training.

    Attributes:
      reward: what rewards, by name, see `scoring.rewards`.
      needs_gradient: whether the reward must have a derivative.
    """

    reward: str
    needs_gradient: bool

    def taught_by(self, judge: Callable[[jax.Array, jax.Array], jax.Array]) -> "Taught":
        """The family with its reward: pixels float32 (B, T, H, W, C) in [-1, 1] and tokens (B, L) -> (B,)."""


class Seeing(Protocol):
    """A family whose network a critic can look through, see `methods.adversarial`."""

    def see(
        self, params: dict[str, Params], pixels: jax.Array, tokens: jax.Array, t: jax.Array | None
    ) -> list[jax.Array]:
        """What the network sees at each of its levels, (B, T, h, w, D) each, differentiable by the pixels.

        Args:
          pixels: float32 (B, T, H, W, C), with noise where t tells of it.
          tokens: (B, L).
          t: (B,) level of noise as in `diffusion.paths`, linear; None for pictures without.
        """


class Rating(Protocol):
    """A family that says how well a picture fits its caption."""

    def rate(self, params: dict[str, Params], pixels: jax.Array, tokens: jax.Array) -> jax.Array:
        """Pixels float32 (B, T, H, W, C) in [-1, 1] and tokens (B, L) -> (B,) float32, higher is better.

        Numbers compare within a run alone.
        """


class Autoencoder(Protocol):
    """A family whose latents other families can be trained on."""

    def encode(self, params: dict[str, Params], pixels: jax.Array) -> jax.Array:
        """Pixels float32 (B, T, H, W, C) in [-1, 1] -> latents float32 (B, T, h, w, c), nothing drawn."""

    def decode(self, params: dict[str, Params], latents: jax.Array) -> jax.Array:
        """Latents -> pixels float32 in [-1, 1]."""


def to_float(pixels: jax.Array) -> jax.Array:
    """uint8 pixels -> float32 in [-1, 1]. What is float already, such as latents, stays as it is."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0 if pixels.dtype == jnp.uint8 else pixels


def to_uint8(pixels: jax.Array) -> jax.Array:
    """float pixels in [-1, 1] -> uint8; values outside are clipped. The inverse of `to_float` up to rounding."""
    return jnp.clip(jnp.round((pixels + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


@functools.partial(jax.vmap, in_axes=(0, None))
def normal_each(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """One Gaussian array of `shape` for each key: (B,) keys -> (B, *shape)."""
    return jax.random.normal(rng, shape)
