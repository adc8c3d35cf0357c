"""Normalizing flows: an invertible network turns images to Gaussian noise, and its density is known exactly.

The networks are TarFlow (2412.06329), autoregressive, and Jet (2412.15129), couplings. Both are trained by nothing but
the likelihood of images with noise in them: of a level's width for bits per dimension, or of a Gaussian for images
that look good, from which the flow's own score then takes the noise again.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from zoo import conditions
from zoo.conditions import Cond
from zoo.distributions import (
    LEVELS,
    dequantise,
    dequantised_log_det,
    iwae_bound,
    normal_log_prob,
    sum_except_batch,
    to_bits_per_dim,
)
from zoo.errors import UserError, check_ranges, unknown_name_error
from zoo.method import Axis, Batch, Output, normal_each, to_float
from zoo.nets.conditioning import Conditioned, build_network
from zoo.nets.jet import Jet
from zoo.nets.layers import smooth_attention
from zoo.nets.tarflow import TarFlow
from zoo.nets.time import NEW_FOR_VIDEOS

NETS = {"tarflow": TarFlow, "jet": Jet}
NOISES = ("gaussian", "uniform")
INVERSES = ("cached", "whole", "jacobi")


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Options of sampling.

    Attributes:
      guidance: scale of the guidance of each affine map, see `conditions.guide`; 0 is none.
      temperature: standard deviation of the noise from which samples are made.
      denoise: whether to remove the Gaussian noise of training by one step along the score; without effect where
        training added none.
      inverse: "cached", "whole" or "jacobi", see `TarFlow.inverse`; without effect for other networks.
      tolerance: of "jacobi", see there.
    """

    guidance: float = 0.0
    temperature: float = 1.0
    denoise: bool = True
    inverse: str = "cached"
    tolerance: float = 1e-3

    def __post_init__(self):
        if self.inverse not in INVERSES:
            raise unknown_name_error("inverse of a flow", self.inverse, INVERSES)
        check_ranges(self, guidance="[0, inf)", temperature="[0, inf)", tolerance="[0, inf)")


@dataclasses.dataclass(frozen=True)
class LikelihoodOptions:
    """Options of the likelihood.

    Attributes:
      samples: dequantisations of each image, averaged in probability (IWAE 1509.00519): more is tighter.
    """

    samples: int = 1

    def __post_init__(self):
        check_ranges(self, samples="[1, inf)")


@dataclasses.dataclass(frozen=True)
class Flow:
    """The family of normalizing flows.

    Attributes:
      net: fields of the network, and `conditioner`.
      vocab_size: number of token ids.
      dtype: type that networks compute in; x, z and log-determinants are float32 in any case.
      architecture: name of the network: "tarflow" (`TarFlow`) or "jet" (`Jet`).
      noise: noise of training. "gaussian" of `noise_std` makes better images and trains on latents too (2412.06329,
        section 2.4); "uniform" within each pixel's level makes the loss bits per dimension.
      noise_std: standard deviation of the Gaussian noise, in units of pixels in [-1, 1].
      caption_drop: share of samples whose conditions are dropped, which guidance needs.
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    architecture: str = "tarflow"
    noise: str = "gaussian"
    noise_std: float = 0.1
    caption_drop: float = 0.1

    players: ClassVar[tuple[str, ...]] = ("model",)
    MAY_BE_NEW: ClassVar[tuple[str, ...]] = NEW_FOR_VIDEOS
    fake_kind: ClassVar[str] = "sample"
    SampleOptions = SampleOptions
    LikelihoodOptions = LikelihoodOptions
    inversion_options: ClassVar[Mapping[str, Any]] = {"guidance": 0.0, "denoise": False}

    def __post_init__(self):
        check_ranges(self, noise_std="(0, inf)" if self.noise == "gaussian" else "[0, inf)", caption_drop="[0, 1]")

    @functools.cached_property
    def network(self) -> Conditioned:
        """Network with its conditioner, without parameters."""
        if self.architecture not in NETS:
            raise unknown_name_error("flow architecture", self.architecture, NETS)
        return build_network(NETS[self.architecture], self.net, "method.net", self.vocab_size, self.dtype)

    def _apply(self, params, *arguments, **keywords):
        """Returns the result of the network's `__call__`, or of another function of it, `call`."""
        return self.network.apply({"params": params["model"]}, *arguments, **keywords)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`."""
        if self.noise not in NOISES:
            raise unknown_name_error("noise of a flow", self.noise, NOISES)
        return {"model": self.network.init(rng, to_float(batch["inputs"]), cond=batch["cond"])["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """-log p of the noisy images a dimension: in bits of a level for uniform noise, in nats for Gaussian noise.

        `fake` is a sample for each caption, where the inverse is one pass.

        Metrics: `log_det`, its part in nats a dimension; `bits_per_dim` where the loss is that.
        """
        del player, axis, step
        rng_noise, rng_drop, rng_fake = jax.random.split(rng, 3)
        inputs = batch["inputs"]
        cond = conditions.drop(rng_drop, batch["cond"], self.caption_drop)
        y = self._add_noise(jax.random.split(rng_noise, len(inputs)), inputs)
        z, log_det = self._apply(params, y, cond=cond)
        log_prob = sum_except_batch(normal_log_prob(z)) + log_det
        dimensions = math.prod(inputs.shape[1:])
        metrics = {"log_det": log_det.mean() / dimensions}
        if self.noise == "uniform":
            loss = to_bits_per_dim(log_prob + dequantised_log_det(dimensions), dimensions).mean()
            metrics["bits_per_dim"] = loss
        else:
            loss = -log_prob.mean() / dimensions
        fake = None
        if self.architecture == "jet":
            noise = self.draw_noise(jax.random.split(rng_fake, len(inputs)), inputs.shape[1:])
            fake = self.generate(params, noise, cond, SampleOptions())
        return loss, Output(metrics | {"loss": loss}, fake)

    def sample(self, params, rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: SampleOptions) -> jax.Array:
        """See `Generates.sample`."""
        return self.generate(params, self.draw_noise(rng, shape), cond, options)

    def draw_noise(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """See `Invertible.draw_noise`: an array of the image's shape for each key, (B, T, H, W, C)."""
        return normal_each(rng, shape)

    def generate(self, params, noise: jax.Array, cond: Cond, options: SampleOptions) -> jax.Array:
        """See `Invertible.generate`."""
        z, scale = noise * options.temperature, options.guidance
        y = self._apply(
            params, z, scale, options.inverse, options.tolerance, cond=_doubled(cond, scale), call="inverse"
        )
        if options.denoise and self.noise == "gaussian":
            y = self.denoised(params, y, cond)
        return y / self._level_centre

    def invert(self, params, rng: jax.Array, inputs: jax.Array, cond: Cond, options: SampleOptions) -> jax.Array:
        """See `Invertible.invert`. Nothing is drawn and no noise added.

        `generate` with `denoise=False` and the same options reproduces these very inputs, up to rounding. Denoising
        removes noise that is not there.
        """
        del rng
        if not options.temperature:
            raise UserError("at temperature 0 no noise makes a given image; invert with a temperature above 0")
        y, scale = inputs * self._level_centre, options.guidance
        return self._apply(params, y, scale, cond=_doubled(cond, scale))[0] / options.temperature

    def reconstruct(self, params, rng: jax.Array, batch: Batch) -> jax.Array:
        """See `Reconstructs.reconstruct`: the result differs from the inputs by rounding alone."""
        options = SampleOptions(denoise=False)
        noise = self.invert(params, rng, to_float(batch["inputs"]), batch["cond"], options)
        return self.generate(params, noise, batch["cond"], options)

    def bits_per_dim(self, params, rng: jax.Array, batch: Batch, options: LikelihoodOptions) -> jax.Array:
        """See `HasLikelihood`: an upper bound by uniform dequantisation (1511.01844), whatever the noise of training.

        Args:
          params: trees of all players.
          rng: one key per image, (B,).
          batch: uint8 images and their conditions.
          options: number of draws.

        Raises:
          UserError: the inputs are not uint8, e.g. latents; or samples are fewer than 1.
        """
        pixels = batch["inputs"]
        _check_levels(pixels)
        log_weight = lambda keys: self.log_prob(params, dequantise(keys, pixels), batch["cond"])
        dimensions = math.prod(pixels.shape[1:])
        log_prob = iwae_bound(log_weight, rng, options.samples)
        return to_bits_per_dim(log_prob + dequantised_log_det(dimensions), dimensions)

    def log_prob(self, params, y: jax.Array, cond: Cond) -> jax.Array:
        """Returns log p(y | cond) in nats of noisy images y, float32 (B, T, H, W, C) -> (B,)."""
        z, log_det = self._apply(params, y, cond=cond)
        return sum_except_batch(normal_log_prob(z)) + log_det

    def denoised(self, params, y: jax.Array, cond: Cond) -> jax.Array:
        """E[x | y = x + noise_std eps] by Tweedie's formula, y + noise_std^2 grad_y log p(y) (2412.06329, section 2.5).

        It is the mean where p is the density of y; the score is conditional, without guidance.
        """
        with smooth_attention():  # a loss of what is sampled takes the derivative of this one
            score = jax.grad(lambda y: self.log_prob(params, y, cond).sum())(y)
        return y + self.noise_std**2 * score

    def evaluations(self, options: SampleOptions, shape: tuple[int, ...]) -> int:
        """See `Generates.evaluations`.

        The inverse is one evaluation, of TarFlow's "whole" and, at most, of "jacobi" one for each patch; denoising
        takes a derivative.
        """
        net, (frames, height, width, _) = self.network.network, shape
        patches = frames * height * width // net.patch_size**2
        passes = 1 if options.inverse == "cached" or self.architecture == "jet" else patches
        denoises = options.denoise and self.noise == "gaussian"
        return (2 if options.guidance else 1) * passes + (2 if denoises else 0)

    @property
    def _level_centre(self) -> float:
        """Factor that moves a pixel of [-1, 1] to the centre of its level, for a flow that was trained on levels."""
        return (LEVELS - 1) / LEVELS if self.noise == "uniform" else 1.0

    def _add_noise(self, rng: jax.Array, pixels: jax.Array) -> jax.Array:
        """Pixels and a key each -> float32 (B, T, H, W, C)."""
        if self.noise == "uniform":
            _check_levels(pixels)
            return dequantise(rng, pixels)
        return to_float(pixels) + self.noise_std * normal_each(rng, pixels.shape[1:])


def _doubled(cond: Cond, guidance: float) -> Cond:
    """Conditions that the networks take: with guidance those of a doubled batch."""
    return conditions.duplicate(cond) if guidance else cond


def _check_levels(pixels: jax.Array) -> None:
    if pixels.dtype != jnp.uint8:
        raise UserError(
            f"bits per dimension are of uint8 pixels, got {pixels.dtype}: for latents train with method.noise=gaussian"
        )
