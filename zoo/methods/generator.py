"""A generator of images in one pass, without a loss of its own.

It is trained by a critic, see `wrappers.adversarial`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from zoo import conditions
from zoo.conditions import Cond
from zoo.errors import check_ranges
from zoo.method import Axis, Batch, Output, normal_each, to_float
from zoo.nets.conditioning import Conditioned, build_network
from zoo.nets.synthesis import Synthesis
from zoo.nets.time import NEW_FOR_VIDEOS


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Options of sampling.

    Attributes:
      temperature: standard deviation of the noise; below 1, images are likelier and more alike.
      inversion_steps, inversion_rate: steps and learning rate of Adam in `invert`.
    """

    temperature: float = 1.0
    inversion_steps: int = 200
    inversion_rate: float = 0.05

    def __post_init__(self):
        check_ranges(self, temperature="[0, inf)", inversion_steps="[0, inf)", inversion_rate="(0, inf)")


@dataclasses.dataclass(frozen=True)
class Generator:
    """The generator of a GAN.

    Attributes:
      net: fields of `Synthesis`, and `conditioner`.
      vocab_size: number of token ids.
      dtype: type that networks compute in.
      latent_dim: channels of the noise.
      caption_drop: share of samples whose conditions are dropped.
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    latent_dim: int = 64
    caption_drop: float = 0.0

    players: ClassVar[tuple[str, ...]] = ("model",)
    MAY_BE_NEW: ClassVar[tuple[str, ...]] = NEW_FOR_VIDEOS
    fake_kind: ClassVar[str] = "sample"
    SampleOptions = SampleOptions
    inversion_options: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self):
        check_ranges(self, latent_dim="[1, inf)", caption_drop="[0, 1]")

    @functools.cached_property
    def network(self) -> Conditioned:
        """Network with its conditioner, without parameters."""
        return build_network(Synthesis, self.net, "method.net", self.vocab_size, self.dtype)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`."""
        shape = batch["inputs"].shape[1:]
        noise = jnp.zeros((len(batch["inputs"]), self.latent_dim))
        return {"model": self.network.init(rng, noise, shape, cond=batch["cond"])["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """Returns no loss of its own; `fake` is an image or a video of fresh noise for each caption."""
        del player, axis, step
        rng_noise, rng_drop = jax.random.split(rng)
        cond = conditions.drop(rng_drop, batch["cond"], self.caption_drop)
        noise = self.draw_noise(jax.random.split(rng_noise, len(batch["inputs"])), batch["inputs"].shape[1:])
        loss = jnp.zeros(())
        return loss, Output({"loss": loss}, fake=self._make(params, noise, cond))

    def sample(self, params, rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: SampleOptions) -> jax.Array:
        """See `Generates.sample`."""
        return self.generate(params, self.draw_noise(rng, shape), cond, options)

    def draw_noise(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """See `Invertible.draw_noise`: a vector per frame, (B, T, latent_dim), see `style`."""
        return normal_each(rng, (shape[0], self.latent_dim))

    def generate(self, params, noise: jax.Array, cond: Cond, options: SampleOptions) -> jax.Array:
        """See `Invertible.generate`."""
        return self._make(params, noise * options.temperature, cond)

    def invert(self, params, rng: jax.Array, inputs: jax.Array, cond: Cond, options: SampleOptions) -> jax.Array:
        """See `Invertible.invert`: noise whose image has the least squared error, found by Adam from drawn noise.

        Adam moves the style, and all frames get an equal share of it: the rest of a video's noise changes nothing.
        """
        optimizer, frames = optax.adam(options.inversion_rate), inputs.shape[1]
        first = style(self.draw_noise(rng, inputs.shape[1:]))

        def error(shared):
            made = self.generate(params, spread(shared, frames), cond, options)
            return jnp.square(made - inputs).mean(axis=(1, 2, 3, 4)).sum()

        def descend(carry, _):
            shared, state = carry
            updates, state = optimizer.update(jax.grad(error)(shared), state)
            return (shared + updates, state), None

        (shared, _), _ = jax.lax.scan(descend, (first, optimizer.init(first)), None, options.inversion_steps)
        return spread(shared, frames)

    def reconstruct(self, params, rng: jax.Array, batch: Batch) -> jax.Array:
        """See `Reconstructs.reconstruct`: `generate` of the noise that `invert` finds."""
        noise = self.invert(params, rng, to_float(batch["inputs"]), batch["cond"], SampleOptions())
        return self.generate(params, noise, batch["cond"], SampleOptions())

    def evaluations(self, options: SampleOptions, shape: tuple[int, ...]) -> int:
        """See `Generates.evaluations`."""
        del options, shape
        return 1

    def _make(self, params, noise: jax.Array, cond: Cond) -> jax.Array:
        """Images or videos of the size that the parameters are for, of as many frames as the noise has."""
        synthesis, own = self.network.network, params["model"]["network"]
        rows, columns, _ = own["constant"].shape
        side = synthesis.patch_size * 2 ** (len(synthesis.widths) - 1)
        shape = (noise.shape[1], rows * side, columns * side, own["out"]["bias"].size // synthesis.patch_size**2)
        return self.network.apply({"params": params["model"]}, style(noise), shape, cond=cond)


def style(noise: jax.Array) -> jax.Array:
    """(B, T, d), normal -> (B, d), normal: what all frames have in common."""
    return noise.sum(axis=1) / noise.shape[1] ** 0.5


def spread(shared: jax.Array, frames: int) -> jax.Array:
    """(B, d) -> (B, frames, d): noise of which this is the `style`, of equal frames."""
    return jnp.repeat(shared[:, None] / frames**0.5, frames, axis=1)
