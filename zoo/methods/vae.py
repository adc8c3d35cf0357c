"""Variational autoencoders: an image is encoded to latents, and decoded from them.

A hierarchy of latents whose priors read the caption makes images by itself (VDVAE 2011.10650); a plain autoencoder
with a hint of a prior makes latents that other families are trained on (2112.10752, section 3.1).
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from zoo import conditions
from zoo.conditions import Cond
from zoo.distributions import (
    LEAST_LOG_SCALE,
    iwae_bound,
    mixture_log_prob,
    mixture_mean,
    sum_except_batch,
    to_bits_per_dim,
)
from zoo.errors import UserError, check_ranges, unknown_name_error
from zoo.method import Axis, Batch, Output, normal_each, to_float
from zoo.nets.autoencoder import Autoencoder
from zoo.nets.conditioning import Conditioned, build_network
from zoo.nets.hierarchy import Hierarchy
from zoo.nets.time import NEW_FOR_VIDEOS

NETS = {"hierarchical": Hierarchy, "autoencoder": Autoencoder}
ACTIVE_BITS = 0.1  # a group of latents with a lower rate counts as inactive


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Options of sampling.

    Attributes:
      temperature: factor of the priors' standard deviations; below 1, images are likelier and more alike.
    """

    temperature: float = 1.0

    def __post_init__(self):
        check_ranges(self, temperature="[0, inf)")


@dataclasses.dataclass(frozen=True)
class LikelihoodOptions:
    """Options of the likelihood.

    Attributes:
      samples: draws of the latents of each image; 1 is the usual bound of VAEs, more are tighter.
    """

    samples: int = 1

    def __post_init__(self):
        check_ranges(self, samples="[1, inf)")


@dataclasses.dataclass(frozen=True)
class Vae:
    """The family of variational autoencoders.

    The likelihood is a discretised mixture of logistics. The images that are made are its mean: what the latents
    leave open shows as blur, not as noise.

    Attributes:
      net: fields of the network; of "hierarchical" also `conditioner`.
      vocab_size: number of token ids.
      dtype: type that networks compute in.
      architecture: name of the network: "hierarchical" (`Hierarchy`) or "autoencoder" (`Autoencoder`).
      least_log_scale: of the logistics, in images of [-1, 1].
      first_log_scale: the least one of the first step. An error's gradient grows as the logistic narrows: where
        narrow ones are allowed at once, backgrounds, which are easy to predict exactly, outweigh things, which are
        then explained by wide logistics and never learned (the same for Gaussians: Seitzer et al. 2203.09168).
      kl_weight: of the rate in the loss, beta of beta-VAE (Higgins et al. 2017); 1 is the bound of the likelihood.
      first_kl_weight: that of the first step. From 0 the latents carry all at first, and the priors, which alone are
        there when images are made, must learn captions from them. From more than 1 the decoder learns captions by
        itself first, and latents what captions leave open, which is quicker where that is little.
      warmup: the two steps between which both go from their first value to their own, in a line.
      free_bits: of each group of latents: a mean rate below is not pushed down further (1606.04934, appendix C.8).
      caption_drop: share of samples whose conditions are dropped.
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    architecture: str = "hierarchical"
    least_log_scale: float = LEAST_LOG_SCALE
    first_log_scale: float = LEAST_LOG_SCALE
    kl_weight: float = 1.0
    first_kl_weight: float = 0.0
    warmup: tuple[int, int] = (0, 0)
    free_bits: float = 0.0
    caption_drop: float = 0.1

    players: ClassVar[tuple[str, ...]] = ("model",)
    MAY_BE_NEW: ClassVar[tuple[str, ...]] = NEW_FOR_VIDEOS
    fake_kind: ClassVar[str] = "reconstruction"
    SampleOptions = SampleOptions
    LikelihoodOptions = LikelihoodOptions
    inversion_options: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self):
        finite = "(-inf, inf)"
        check_ranges(self, least_log_scale=finite, first_log_scale=finite, kl_weight="[0, inf)", free_bits="[0, inf)")
        check_ranges(self, first_kl_weight="[0, inf)", warmup="[0, inf)", caption_drop="[0, 1]")
        if len(self.warmup) != 2 or self.warmup[0] > self.warmup[1]:
            raise UserError(f"warmup must be two steps, the first one earlier, got {tuple(self.warmup)}")

    @functools.cached_property
    def network(self) -> Conditioned:
        """Network with its conditioner, without parameters."""
        if self.architecture not in NETS:
            raise unknown_name_error("architecture of a VAE", self.architecture, NETS)
        return build_network(NETS[self.architecture], self.net, "method.net", self.vocab_size, self.dtype)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`."""
        x = _levels(batch)
        if x.shape[-1] != 3:
            raise UserError(f"a VAE's likelihood is of red, green and blue, and the pixels have {x.shape[-1]} channels")
        return {"model": self.network.init(rng, x, self._no_noise(x), cond=batch["cond"])["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """Distortion + weight * rate, in bits per dimension; `fake` is the mean of the reconstruction.

        Metrics: `distortion`, `rate` (as it is, before weights and free bits), `bits_per_dim`, their sum; and
        `active_groups` of latents.
        """
        del player
        rng_noise, rng_drop = jax.random.split(rng)
        x = _levels(batch)
        dimensions = x[0].size
        cond = conditions.drop(rng_drop, batch["cond"], self.caption_drop)
        noise = self.draw_noise(jax.random.split(rng_noise, len(x)), x.shape[1:])
        raw, latents = self._apply(params, x, noise, cond=cond)
        begin, end = self.warmup
        warm = jnp.clip((step + 1 - begin) / max(end - begin, 1), 0.0, 1.0)
        between = lambda first, last: first + warm * (last - first)
        least_log_scale = between(self.first_log_scale, self.least_log_scale)
        distortion = to_bits_per_dim(self._log_likelihood(raw, x, least_log_scale), dimensions).mean()
        bits = jnp.concatenate([latent.kl().mean(axis=0) for latent in latents]) / math.log(2)  # (groups,)
        above = axis.pmean(jax.lax.stop_gradient(bits)) > self.free_bits
        weight = between(self.first_kl_weight, self.kl_weight)
        loss = distortion + weight * jnp.where(above, bits, self.free_bits).sum() / dimensions
        rate = bits.sum() / dimensions
        metrics = {
            "loss": loss,
            "distortion": distortion,
            "rate": rate,
            "bits_per_dim": distortion + rate,
            "active_groups": (bits > ACTIVE_BITS).sum().astype(jnp.float32),
        }
        return loss, Output(metrics, fake=mixture_mean(raw))

    def sample(self, params, rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: SampleOptions) -> jax.Array:
        """See `Generates.sample`."""
        return self.generate(params, self.draw_noise(rng, shape), cond, options)

    def draw_noise(self, rng: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
        """See `Invertible.draw_noise`: an array for each level of latents, top down, (B, groups, T, h, w, c)."""
        shapes = self._noise_shapes(shape)
        sizes = [math.prod(level) for level in shapes]
        flat = normal_each(rng, (sum(sizes),))  # drawn at once: each drawing takes seconds to compile
        parts = jnp.split(flat, list(itertools.accumulate(sizes[:-1])), axis=1)
        return tuple(part.reshape(-1, *level) for part, level in zip(parts, shapes, strict=True))

    def generate(self, params, noise: tuple[jax.Array, ...], cond: Cond, options: SampleOptions) -> jax.Array:
        """See `Invertible.generate`."""
        noise = tuple(eps * options.temperature for eps in noise)
        return mixture_mean(self._apply(params, noise, cond=cond, call="generate"))

    def invert(
        self, params, rng: jax.Array, inputs: jax.Array, cond: Cond, options: SampleOptions
    ) -> tuple[jax.Array, ...]:
        """See `Invertible.invert`: the noise from which the priors make the posteriors' means. Nothing is drawn."""
        del rng
        if not options.temperature:
            raise UserError("at temperature 0 no noise makes a given image; invert with a temperature above 0")
        _, latents = self._apply_means(params, inputs, cond)
        return tuple(latent.noise() / options.temperature for latent in latents)

    def reconstruct(self, params, rng: jax.Array, batch: Batch) -> jax.Array:
        """See `Reconstructs.reconstruct`: by way of the posteriors' means. Nothing is drawn."""
        del rng
        raw, _ = self._apply_means(params, _levels(batch), batch["cond"])
        return mixture_mean(raw)

    def bits_per_dim(self, params, rng: jax.Array, batch: Batch, options: LikelihoodOptions) -> jax.Array:
        """See `HasLikelihood`: an upper bound, see `distributions.iwae_bound`."""
        x = _levels(batch)

        def log_weight(rng):
            raw, latents = self._apply(params, x, self.draw_noise(rng, x.shape[1:]), cond=batch["cond"])
            return self._log_likelihood(raw, x, self.least_log_scale) + sum(latent.log_ratio() for latent in latents)

        return to_bits_per_dim(iwae_bound(log_weight, rng, options.samples), x[0].size)

    def encode(self, params, inputs: jax.Array) -> jax.Array:
        """See `Autoencodes.encode`: the posterior's mean. Raises UserError where latents come in several groups."""
        return self._apply(params, inputs, cond={}, call=self._of_one_latent("encode"))

    def decode(self, params, latents: jax.Array) -> jax.Array:
        """See `Autoencodes.decode`. Raises UserError where latents come in several groups."""
        return mixture_mean(self._apply(params, latents, cond={}, call=self._of_one_latent("decode")))

    def evaluations(self, options: SampleOptions, shape: tuple[int, ...]) -> int:
        """See `Generates.evaluations`."""
        del options, shape
        return 1

    def _log_likelihood(self, raw: jax.Array, x: jax.Array, least_log_scale: float | jax.Array) -> jax.Array:
        """Returns log P of images in nats, (B,)."""
        return sum_except_batch(mixture_log_prob(raw, x, least_log_scale))

    def _of_one_latent(self, name: str) -> str:
        if not hasattr(self.network.network, name):
            raise UserError(
                f"a {self.architecture} VAE cannot {name}: its latents are many arrays; train one of "
                "method.architecture=autoencoder"
            )
        return name

    def _apply_means(self, params, x: jax.Array, cond: Cond):
        """The network with posteriors that do not draw."""
        return self._apply(params, x, self._no_noise(x), cond=cond)

    def _no_noise(self, x: jax.Array) -> list[jax.Array]:
        return [jnp.zeros((len(x), *level)) for level in self._noise_shapes(x.shape[1:])]

    def _noise_shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        return self.network.network.noise_shapes(shape)

    def _apply(self, params, *arguments, **keywords):
        """Returns the result of the network's `__call__`, or of another function of it, `call`."""
        return self.network.apply({"params": params["model"]}, *arguments, **keywords)


def _levels(batch: Batch) -> jax.Array:
    """The pixels in [-1, 1], of uint8."""
    pixels = batch["inputs"]
    if pixels.dtype != jnp.uint8:
        raise UserError(f"a VAE's likelihood is of uint8 pixels, got {pixels.dtype}: train it without data.latents")
    return to_float(pixels)
