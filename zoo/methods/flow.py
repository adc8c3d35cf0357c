"""Normalizing flows: an invertible network turns pictures to Gaussian noise, and its density is known exactly.

The networks are TarFlow (2412.06329), autoregressive, and Jet (2412.15129), couplings. Both are trained by nothing but
the likelihood of pictures with noise in them: of a level's width for bits per dimension, or of a Gaussian for pictures
that look good, from which the flow's own score then takes the noise again.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from zoo.config import build
from zoo.data.text import drop_captions, empty_caption
from zoo.distributions import (
    LEVELS,
    dequantise,
    dequantised_log_det,
    importance_bound,
    normal_log_prob,
    sum_each,
    to_bits_per_dim,
)
from zoo.errors import BadInput, unknown
from zoo.method import Axis, Batch, Output, normal_each, to_float
from zoo.nets.jet import Jet
from zoo.nets.tarflow import TarFlow

NETS = {"autoregressive": TarFlow, "jet": Jet}
NOISES = ("gaussian", "uniform")


@dataclasses.dataclass(frozen=True)
class Flow:
    """The family of normalizing flows.

    Attributes:
      net: fields of the network.
      vocab_size, dtype: of the text, and of the computation; x, z and log-determinants are float32 in any case.
      architecture: the network: "autoregressive" (`TarFlow`) or "jet" (`Jet`).
      noise: what training adds to pictures. "gaussian" of `noise_std` makes better pictures and trains on latents too
        (2412.06329, section 2.4); "uniform" within each pixel's level makes the loss bits per dimension.
      noise_std: in units of pixels in [-1, 1].
      caption_drop: share of captions replaced by the empty one, which guidance needs.
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    architecture: str = "autoregressive"
    noise: str = "gaussian"
    noise_std: float = 0.1
    caption_drop: float = 0.1

    players: ClassVar[tuple[str, ...]] = ("model",)
    fake_of: ClassVar[str] = "caption"
    faithful: ClassVar[Mapping[str, Any]] = {"guidance": 0.0, "denoise": False}

    @functools.cached_property
    def network(self) -> TarFlow | Jet:
        if self.architecture not in NETS:
            raise unknown("flow architecture", self.architecture, NETS)
        return build(NETS[self.architecture], self.net, "method.net", vocab_size=self.vocab_size, dtype=self.dtype)

    def apply(self, params, *arguments, **keywords):
        """The network's `__call__`, or another `method` of it."""
        return self.network.apply({"params": params["model"]}, *arguments, **keywords)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        if self.noise not in NOISES:
            raise unknown("noise of a flow", self.noise, NOISES)
        if self.noise == "gaussian" and self.noise_std <= 0:
            raise BadInput(f"method.noise_std must be positive, got {self.noise_std}: try 0.1")
        return {"model": self.network.init(rng, to_float(batch["pixels"]), batch["tokens"])["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """-log p of the noisy pictures a dimension: in bits of a level for uniform noise, in nats for Gaussian noise.

        `fake` is a sample for each caption, where the inverse is one pass.

        Metrics: `log_det`, its part in nats a dimension; `bits_per_dim` where the loss is that.
        """
        del player, axis, step
        rng_noise, rng_drop, rng_fake = jax.random.split(rng, 3)
        pixels = batch["pixels"]
        tokens = drop_captions(rng_drop, batch["tokens"], self.caption_drop)
        y = self._add_noise(jax.random.split(rng_noise, len(pixels)), pixels)
        z, log_det = self.apply(params, y, tokens)
        log_prob = sum_each(normal_log_prob(z)) + log_det
        dimensions = math.prod(pixels.shape[1:])
        metrics = {"log_det": log_det.mean() / dimensions}
        if self.noise == "uniform":
            loss = to_bits_per_dim(log_prob + dequantised_log_det(dimensions), dimensions).mean()
            metrics["bits_per_dim"] = loss
        else:
            loss = -log_prob.mean() / dimensions
        fake = None
        if self.architecture == "jet":
            noise = self.draw_noise(jax.random.split(rng_fake, len(pixels)), pixels.shape[1:])
            fake = self.generate(params, noise, tokens)
        return loss, Output(metrics | {"loss": loss}, fake)

    def sample(
        self,
        params,
        rng: jax.Array,
        cond: jax.Array,
        shape: tuple[int, ...],
        *,
        guidance: float = 0.0,
        temperature: float = 1.0,
        denoise: bool = True,
        cache: bool = True,
    ) -> jax.Array:
        """See `Method.sample`.

        Args:
          guidance: good + guidance (good - bad) of each affine, where bad is that of the empty caption; 0 is none.
          temperature: standard deviation of the noise that pictures are made from.
          denoise: take the Gaussian noise of training from the picture by one step along the score; of no use where
            training added none.
          cache: see `TarFlow.inverse`; of no use to other networks.
        """
        options = dict(guidance=guidance, temperature=temperature, denoise=denoise, cache=cache)
        return self.generate(params, self.draw_noise(rng, shape), cond, **options)

    def draw_noise(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """See `Editable`: an array of the picture's shape for each key, (B, T, H, W, C)."""
        return normal_each(rng, shape)

    def generate(
        self,
        params,
        noise: jax.Array,
        cond: jax.Array,
        *,
        guidance: float = 0.0,
        temperature: float = 1.0,
        denoise: bool = True,
        cache: bool = True,
    ) -> jax.Array:
        """See `Editable`; options as in `sample`."""
        captions = _captions(cond, guidance)
        y = self.apply(params, noise * temperature, captions, guidance, cache, method="inverse")
        if denoise and self.noise == "gaussian":
            y = self.denoised(params, y, cond)
        return y / self._level_centre

    def invert(
        self,
        params,
        rng: jax.Array,
        pixels: jax.Array,
        cond: jax.Array,
        *,
        guidance: float = 0.0,
        temperature: float = 1.0,
    ) -> jax.Array:
        """See `Editable`. Nothing is drawn and no noise added: `generate` with `denoise=False` and the same options
        makes these very pixels, up to rounding. Denoising takes from them noise that is not there.
        """
        del rng
        if not temperature:
            raise BadInput("at temperature 0 no noise makes a given picture; invert with a temperature above 0")
        y = pixels * self._level_centre
        return self.apply(params, y, _captions(cond, guidance), guidance)[0] / temperature

    def reconstruct(self, params, rng: jax.Array, batch: Batch) -> jax.Array:
        """See `Reconstructing`: what comes back differs from the pictures by rounding alone."""
        noise = self.invert(params, rng, to_float(batch["pixels"]), batch["tokens"])
        return self.generate(params, noise, batch["tokens"], denoise=False)

    def bits_per_dim(self, params, rng: jax.Array, batch: Batch, *, samples: int = 1) -> jax.Array:
        """See `Likely`: an upper bound by uniform dequantisation (1511.01844), whatever noise the flow was trained on.

        Args:
          samples: dequantisations of each picture, averaged in probability (IWAE 1509.00519): more is tighter.

        Raises:
          BadInput: the pictures are not uint8, e.g. latents; or samples are fewer than 1.
        """
        pixels = batch["pixels"]
        _check_levels(pixels)
        log_weight = lambda keys: self.log_prob(params, dequantise(keys, pixels), batch["tokens"])
        dimensions = math.prod(pixels.shape[1:])
        log_prob = importance_bound(log_weight, rng, samples)
        return to_bits_per_dim(log_prob + dequantised_log_det(dimensions), dimensions)

    def log_prob(self, params, y: jax.Array, tokens: jax.Array) -> jax.Array:
        """log p(y | caption) in nats of noisy pictures y, float32 (B, T, H, W, C) -> (B,)."""
        z, log_det = self.apply(params, y, tokens)
        return sum_each(normal_log_prob(z)) + log_det

    def denoised(self, params, y: jax.Array, tokens: jax.Array) -> jax.Array:
        """E[x | y = x + noise_std eps] by Tweedie's formula, y + noise_std^2 grad_y log p(y) (2412.06329, section 2.5).

        It is the mean where p is the density of y; the score is that of the caption, without guidance.
        """
        score = jax.grad(lambda y: self.log_prob(params, y, tokens).sum())(y)
        return y + self.noise_std**2 * score

    def evaluations(self, *, guidance: float = 0.0, denoise: bool = True, **rest) -> int:
        """How often a picture is put through the network by `sample` with these options.

        The inverse is one pass where `cache` is left on; denoising is one more, with its gradient.
        """
        del rest
        return (2 if guidance else 1) + (1 if denoise and self.noise == "gaussian" else 0)

    @property
    def _level_centre(self) -> float:
        """A flow of levels sees a pixel of [-1, 1] times this: at the centre of the level `dequantise` gives it."""
        return (LEVELS - 1) / LEVELS if self.noise == "uniform" else 1.0

    def _add_noise(self, rng: jax.Array, pixels: jax.Array) -> jax.Array:
        """Pixels and a key each -> float32 (B, T, H, W, C)."""
        if self.noise == "uniform":
            _check_levels(pixels)
            return dequantise(rng, pixels)
        return to_float(pixels) + self.noise_std * normal_each(rng, pixels.shape[1:])


def _captions(cond: jax.Array, guidance: float) -> jax.Array:
    """What the networks take: captions (B, L), and with guidance the empty one as often, (2 B, L)."""
    if not guidance:
        return cond
    return jnp.concatenate([cond, jnp.broadcast_to(empty_caption(cond.shape[-1]), cond.shape)])


def _check_levels(pixels: jax.Array) -> None:
    if pixels.dtype != jnp.uint8:
        raise BadInput(
            f"bits per dimension are of uint8 pixels, got {pixels.dtype}: for latents train with method.noise=gaussian"
        )
