"""A generator of pictures in one pass, without a loss of its own: a critic teaches it, see `methods.adversarial`."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from zoo.config import build
from zoo.data.text import drop_captions
from zoo.errors import BadInput
from zoo.method import Axis, Batch, Output, normal_each, to_float
from zoo.nets.synthesis import Synthesis


@dataclasses.dataclass(frozen=True)
class Generator:
    """The generator of a GAN.

    Attributes:
      net: fields of `Synthesis`.
      vocab_size, dtype: of the text, and of the computation.
      latent_dim: of the noise.
      caption_drop: share of captions replaced by the empty one.
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    latent_dim: int = 64
    caption_drop: float = 0.0

    players: ClassVar[tuple[str, ...]] = ("model",)
    fake_of: ClassVar[str] = "caption"
    faithful: ClassVar[Mapping[str, Any]] = {}

    @functools.cached_property
    def network(self) -> Synthesis:
        return build(Synthesis, self.net, "method.net", vocab_size=self.vocab_size, dtype=self.dtype)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        if self.latent_dim < 1:
            raise BadInput(f"method.latent_dim must be at least 1, got {self.latent_dim}")
        shape = batch["pixels"].shape[1:]
        noise = jnp.zeros((len(batch["tokens"]), self.latent_dim))
        return {"model": self.network.init(rng, noise, batch["tokens"], shape)["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """None of its own; `fake` is a picture of fresh noise for each caption."""
        del player, axis, step
        rng_noise, rng_drop = jax.random.split(rng)
        tokens = drop_captions(rng_drop, batch["tokens"], self.caption_drop)
        noise = normal_each(jax.random.split(rng_noise, len(tokens)), (self.latent_dim,))
        loss = jnp.zeros(())
        return loss, Output({"loss": loss}, fake=self._make(params, noise, tokens))

    def sample(
        self, params, rng: jax.Array, cond: jax.Array, shape: tuple[int, ...], *, temperature: float = 1.0
    ) -> jax.Array:
        """See `Method.sample`.

        Args:
          temperature: standard deviation of the noise; below 1, pictures are likelier and more alike.
        """
        return self.generate(params, self.draw_noise(rng, shape), cond, temperature=temperature)

    def draw_noise(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """See `Editable.draw_noise`: a vector a picture, (B, latent_dim)."""
        del shape
        return normal_each(rng, (self.latent_dim,))

    def generate(self, params, noise: jax.Array, cond: jax.Array, *, temperature: float = 1.0) -> jax.Array:
        """See `Editable.generate`; options as in `sample`."""
        return self._make(params, noise * temperature, cond)

    def invert(
        self,
        params,
        rng: jax.Array,
        pixels: jax.Array,
        cond: jax.Array,
        *,
        temperature: float = 1.0,
        inversion_steps: int = 200,
        inversion_rate: float = 0.05,
    ) -> jax.Array:
        """See `Editable.invert`: noise whose picture has the least squared error, found by Adam from noise drawn.

        Args:
          temperature: that of the `generate` to come.
          inversion_steps, inversion_rate: of Adam.
        """
        optimizer = optax.adam(inversion_rate)
        noise = self.draw_noise(rng, pixels.shape[1:])

        def error(noise):
            made = self.generate(params, noise, cond, temperature=temperature)
            return jnp.square(made - pixels).mean(axis=(1, 2, 3, 4)).sum()

        def descend(carry, _):
            noise, state = carry
            updates, state = optimizer.update(jax.grad(error)(noise), state)
            return (noise + updates, state), None

        (noise, _), _ = jax.lax.scan(descend, (noise, optimizer.init(noise)), None, inversion_steps)
        return noise

    def reconstruct(self, params, rng: jax.Array, batch: Batch) -> jax.Array:
        """See `Reconstructing.reconstruct`: `generate` of what `invert` finds."""
        noise = self.invert(params, rng, to_float(batch["pixels"]), batch["tokens"])
        return self.generate(params, noise, batch["tokens"])

    def evaluations(self, **options) -> int:
        """How often a picture is put through the network by `sample`."""
        del options
        return 1

    def _make(self, params, noise: jax.Array, tokens: jax.Array) -> jax.Array:
        """Pictures of the size that the parameters are for."""
        model, patch = params["model"], self.network.patch_size
        rows, columns, _ = model["constant"].shape
        side = patch * 2 ** (len(self.network.widths) - 1)
        shape = (1, rows * side, columns * side, model["out"]["bias"].size // patch**2)
        return self.network.apply({"params": model}, noise, tokens, shape)
