"""Variational autoencoders: latents are read from a picture, and a picture made of latents.

A hierarchy of latents whose priors read the caption makes pictures by itself (VDVAE 2011.10650); a plain autoencoder
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

from zoo.config import build
from zoo.data.text import drop_captions
from zoo.distributions import (
    LEAST_LOG_SCALE,
    importance_bound,
    mixture_log_prob,
    mixture_mean,
    sum_each,
    to_bits_per_dim,
)
from zoo.errors import BadInput, unknown
from zoo.method import Axis, Batch, Output, normal_each, to_float
from zoo.nets.autoencoder import Autoencoder
from zoo.nets.hierarchy import Hierarchy

NETS = {"hierarchical": Hierarchy, "autoencoder": Autoencoder}
ACTIVE_BITS = 0.1  # a group of latents that tells less of a picture is idle


@dataclasses.dataclass(frozen=True)
class Vae:
    """The family of variational autoencoders.

    The likelihood is a discretised mixture of logistics. The pictures that are made are its mean: what the latents
    leave open shows as blur, not as noise.

    Attributes:
      net: fields of the network.
      vocab_size, dtype: of the text, and of the computation.
      architecture: the network: "hierarchical" (`Hierarchy`) or "autoencoder" (`Autoencoder`).
      least_log_scale: of the logistics, in pictures of [-1, 1].
      first_log_scale: the least one of the first step. An error's gradient grows as the logistic narrows: where
        narrow ones are allowed at once, backgrounds, which are easily known to the level, outweigh things, which are
        then explained by wide logistics and never learned (the same for Gaussians: Seitzer et al. 2203.09168).
      kl_weight: of the rate in the loss, beta of beta-VAE (Higgins et al. 2017); 1 is the bound of the likelihood.
      first_kl_weight: that of the first step. From 0 the latents carry all at first, and the priors, which alone are
        there when pictures are made, must learn captions from them. From more than 1 the decoder learns captions by
        itself first, and latents what captions leave open, which is quicker where that is little.
      warmup: the two steps between which both go from their first value to their own, in a line.
      free_bits: of each group of latents: a mean rate below is not pushed down further (1606.04934, appendix C.8).
      caption_drop: share of captions replaced by the empty one.
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
    fake_of: ClassVar[str] = "picture"
    faithful: ClassVar[Mapping[str, Any]] = {}

    @functools.cached_property
    def network(self) -> Hierarchy | Autoencoder:
        if self.architecture not in NETS:
            raise unknown("architecture of a VAE", self.architecture, NETS)
        return build(NETS[self.architecture], self.net, "method.net", vocab_size=self.vocab_size, dtype=self.dtype)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        for name in ("kl_weight", "first_kl_weight", "free_bits"):
            if getattr(self, name) < 0:
                raise BadInput(f"method.{name} must not be negative, got {getattr(self, name)}")
        if len(self.warmup) != 2 or not 0 <= self.warmup[0] <= self.warmup[1]:
            raise BadInput(f"method.warmup must be two steps, the first one earlier, got {tuple(self.warmup)}")
        x = _levels(batch)
        if x.shape[-1] != 3:
            raise BadInput(f"a VAE's likelihood is of red, green and blue, and the pixels have {x.shape[-1]} channels")
        return {"model": self.network.init(rng, x, batch["tokens"], self._no_noise(x))["params"]}

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
        tokens = drop_captions(rng_drop, batch["tokens"], self.caption_drop)
        raw, latents = self._apply(params, x, tokens, self.draw_noise(jax.random.split(rng_noise, len(x)), x.shape[1:]))
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

    def sample(
        self, params, rng: jax.Array, cond: jax.Array, shape: tuple[int, ...], *, temperature: float = 1.0
    ) -> jax.Array:
        """See `Method.sample`.

        Args:
          temperature: factor of the priors' standard deviations; below 1, pictures are likelier and more alike.
        """
        return self.generate(params, self.draw_noise(rng, shape), cond, temperature=temperature)

    def draw_noise(self, rng: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
        """See `Editable.draw_noise`: an array for each level of latents, top down, (B, groups, T, h, w, c)."""
        shapes = self.network.noise_shapes(shape)
        sizes = [math.prod(level) for level in shapes]
        flat = normal_each(rng, (sum(sizes),))  # drawn at once: each drawing takes seconds to compile
        parts = jnp.split(flat, list(itertools.accumulate(sizes[:-1])), axis=1)
        return tuple(part.reshape(-1, *level) for part, level in zip(parts, shapes, strict=True))

    def generate(self, params, noise: tuple[jax.Array, ...], cond: jax.Array, *, temperature: float = 1.0) -> jax.Array:
        """See `Editable.generate`; options as in `sample`."""
        noise = [eps * temperature for eps in noise]
        return mixture_mean(self._apply(params, noise, cond, method="generate"))

    def invert(
        self, params, rng: jax.Array, pixels: jax.Array, cond: jax.Array, *, temperature: float = 1.0
    ) -> tuple[jax.Array, ...]:
        """See `Editable.invert`: the noise that the priors make the posteriors' means of. Nothing is drawn.

        Args:
          temperature: that of the `generate` to come.
        """
        del rng
        if not temperature:
            raise BadInput("at temperature 0 no noise makes a given picture; invert with a temperature above 0")
        _, latents = self._apply_means(params, pixels, cond)
        return tuple(latent.noise() / temperature for latent in latents)

    def reconstruct(self, params, rng: jax.Array, batch: Batch) -> jax.Array:
        """See `Reconstructing.reconstruct`: by way of the posteriors' means. Nothing is drawn."""
        del rng
        raw, _ = self._apply_means(params, _levels(batch), batch["tokens"])
        return mixture_mean(raw)

    def bits_per_dim(self, params, rng: jax.Array, batch: Batch, *, samples: int = 1) -> jax.Array:
        """See `Likely`: an upper bound, see `distributions.importance_bound`.

        Args:
          samples: of the latents of each picture; 1 is the usual bound of VAEs, more are tighter.
        """
        x, tokens = _levels(batch), batch["tokens"]

        def log_weight(rng):
            raw, latents = self._apply(params, x, tokens, self.draw_noise(rng, x.shape[1:]))
            return self._log_likelihood(raw, x, self.least_log_scale) + sum(latent.log_ratio() for latent in latents)

        return to_bits_per_dim(importance_bound(log_weight, rng, samples), x[0].size)

    def encode(self, params, pixels: jax.Array) -> jax.Array:
        """See `Autoencoder.encode`: the posterior's mean. Raises BadInput where latents come in several groups."""
        return self._apply(params, pixels, method=self._of_one_latent("encode"))

    def decode(self, params, latents: jax.Array) -> jax.Array:
        """See `Autoencoder.decode`. Raises BadInput where latents come in several groups."""
        return mixture_mean(self._apply(params, latents, method=self._of_one_latent("decode")))

    def evaluations(self, **options) -> int:
        """How often a picture is put through the network by `sample`."""
        del options
        return 1

    def _log_likelihood(self, raw: jax.Array, x: jax.Array, least_log_scale: float | jax.Array) -> jax.Array:
        """log P of pictures in nats, (B,)."""
        return sum_each(mixture_log_prob(raw, x, least_log_scale))

    def _of_one_latent(self, name: str) -> str:
        if not hasattr(self.network, name):
            raise BadInput(
                f"a {self.architecture} VAE cannot {name}: its latents are many arrays; train one of "
                "method.architecture=autoencoder"
            )
        return name

    def _apply_means(self, params, x: jax.Array, tokens: jax.Array):
        """The network where no posterior draws."""
        return self._apply(params, x, tokens, self._no_noise(x))

    def _no_noise(self, x: jax.Array) -> list[jax.Array]:
        return [jnp.zeros((len(x), *level)) for level in self.network.noise_shapes(x.shape[1:])]

    def _apply(self, params, *arguments, **keywords):
        return self.network.apply({"params": params["model"]}, *arguments, **keywords)


def _levels(batch: Batch) -> jax.Array:
    """The pixels in [-1, 1], of uint8."""
    pixels = batch["pixels"]
    if pixels.dtype != jnp.uint8:
        raise BadInput(f"a VAE's likelihood is of uint8 pixels, got {pixels.dtype}: train it without data.latents")
    return to_float(pixels)
