"""Log-probabilities, in nats and float32, of what the likelihood families are made of."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.errors import UserError

LOG_2_PI = math.log(2 * math.pi)
LEVELS = 256  # of a pixel


def sum_except_batch(x: jax.Array) -> jax.Array:
    """The sum of each example, (B, ...) -> (B,)."""
    return x.sum(axis=tuple(range(1, x.ndim)))


def normal_log_prob(x: jax.Array) -> jax.Array:
    """Returns log N(x; 0, 1), elementwise."""
    return -0.5 * (jnp.square(x) + LOG_2_PI)


def normal_kl(mean: jax.Array, log_std: jax.Array, mean_p: jax.Array, log_std_p: jax.Array) -> jax.Array:
    """KL(N(mean, std^2) || N(mean_p, std_p^2)), elementwise."""
    ratio = jnp.exp(2 * (log_std - log_std_p))
    return 0.5 * (ratio + jnp.square((mean - mean_p) * jnp.exp(-log_std_p)) - 1) - log_std + log_std_p


def code_log_prob(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """Returns log p of codes, float32 (...), under logits (..., V) over V codes."""
    logits = logits.astype(jnp.float32)
    taken = jnp.take_along_axis(logits, codes.astype(jnp.int32)[..., None], axis=-1)[..., 0]
    return taken - jax.nn.logsumexp(logits, axis=-1)  # no second array of all codes


def to_bits_per_dim(log_prob: jax.Array, dimensions: int) -> jax.Array:
    """Turns log p in nats of an image with so many dimensions (T * H * W * C) into bits per dimension."""
    return -log_prob / (dimensions * math.log(2))


def iwae_bound(log_weight: Callable[[jax.Array], jax.Array], rng: jax.Array, samples: int) -> jax.Array:
    """A lower bound of log p(x) in nats, (B,): the log of the mean of p(x, z) / q(z | x) (IWAE 1509.00519, eq. 8).

    Args:
      log_weight: a key an image (B,) -> log p(x, z) - log q(z | x) for z drawn with it from q, (B,).
      rng: one key an image.
      samples: draws of z. With one, it is the evidence lower bound of VAEs; it does not fall with more.
    """
    if samples < 1:
        raise UserError(f"samples must be at least 1, got {samples}")
    keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, samples))(rng), 1, 0)  # (samples, B)
    return jax.nn.logsumexp(jax.lax.map(log_weight, keys), axis=0) - math.log(samples)


def dequantise(rng: jax.Array, pixels: jax.Array) -> jax.Array:
    """uint8 pixels (B, ...) and a key each -> float32 in [-1, 1], uniform within each pixel's level (1511.01844).

    E[log p(y)] over this noise bounds log P(pixels) from below once `dequantised_log_det` is added.
    """
    noise = jax.vmap(lambda key: jax.random.uniform(key, pixels.shape[1:]))(rng)
    return (pixels.astype(jnp.float32) + noise) * (2 / LEVELS) - 1


def dequantised_log_det(dimensions: int) -> float:
    """Returns the term that turns log p of `dequantise`d pixels into that of levels: a level is 2 / 256 wide."""
    return dimensions * math.log(2 / LEVELS)


class Gaussian(NamedTuple):
    """Independent Gaussians, elementwise; `mean` and `log_std` float32 of one shape."""

    mean: jax.Array
    log_std: jax.Array

    def sample(self, eps: jax.Array) -> jax.Array:
        """Turns standard Gaussian noise into a sample."""
        return self.mean + jnp.exp(self.log_std) * eps

    def standardize(self, z: jax.Array) -> jax.Array:
        """The inverse of `sample`."""
        return (z - self.mean) * jnp.exp(-self.log_std)

    def log_prob(self, z: jax.Array) -> jax.Array:
        """Returns the log of the density at z, elementwise."""
        return normal_log_prob(self.standardize(z)) - self.log_std


class Latent(NamedTuple):
    """Groups of latents of images, all (B, groups, ...): their distributions, and the values that went on.

    Attributes:
      posterior: q(z | image, what is above).
      prior: p(z | what is above).
      z: the values.
    """

    posterior: Gaussian
    prior: Gaussian
    z: jax.Array

    def kl(self) -> jax.Array:
        """KL(posterior || prior) of each group in nats, (B, groups)."""
        kl = normal_kl(*self.posterior, *self.prior)
        return kl.sum(axis=tuple(range(2, kl.ndim)))

    def log_ratio(self) -> jax.Array:
        """Returns log p(z) - log q(z | image), (B,); its mean over the posterior is -KL."""
        return sum_except_batch(self.prior.log_prob(self.z) - self.posterior.log_prob(self.z))

    def noise(self) -> jax.Array:
        """The standard Gaussian noise that the prior makes z of."""
        return self.prior.standardize(self.z)


MIXTURE_PARTS = 10  # for each component: a logit; for each colour a mean and a log-scale; three coefficients
LEAST_LOG_SCALE, MOST_LOG_SCALE = -7.0, 7.0  # of a logistic; the least is PixelCNN++'s
HALF_LEVEL = 1 / (LEVELS - 1)


def mixture_log_prob(raw: jax.Array, x: jax.Array, least_log_scale: float | jax.Array = LEAST_LOG_SCALE) -> jax.Array:
    """Returns log P of colours in 256 levels under a mixture of logistics (PixelCNN++ 1701.05517, eq. 2 and 3).

    Each level has the mass of its interval, the first and last that of all below and above, so that the sum over all
    colours is 1. It is computed without the difference of two sigmoids, which float32 loses far from the mean.

    Args:
      raw: `MIXTURE_PARTS * K` parameters of K components, (..., MIXTURE_PARTS * K).
      x: red, green, blue in [-1, 1], each one of the 256 levels, (..., 3).
      least_log_scale: no logistic is narrower.

    Returns:
      Nats, (...).
    """
    logits, means, log_scales, coefficients = _split_mixture(raw)
    log_scales = [jnp.clip(part, least_log_scale, MOST_LOG_SCALE) for part in log_scales]
    colours = tuple(jnp.split(x, 3, axis=-1))  # each (..., 1)
    centres = _centres(means, coefficients, colours)
    terms = (_level_log_prob(*colour) for colour in zip(colours, centres, log_scales, strict=True))
    return jax.nn.logsumexp(jax.nn.log_softmax(logits) + sum(terms), axis=-1)


def mixture_mean(raw: jax.Array) -> jax.Array:
    """The mean of the components' centres, each kept in [-1, 1]. raw: as in `mixture_log_prob` -> (..., 3)."""
    logits, means, _, coefficients = _split_mixture(raw)
    red = jnp.clip(means[0], -1.0, 1.0)
    green = jnp.clip(_centres(means, coefficients, (red, red))[1], -1.0, 1.0)
    blue = jnp.clip(_centres(means, coefficients, (red, green))[2], -1.0, 1.0)
    weights = jax.nn.softmax(logits)
    return jnp.stack([(weights * colour).sum(axis=-1) for colour in (red, green, blue)], axis=-1)


def _split_mixture(raw: jax.Array):
    """-> logits (..., K); means, log-scales and coefficients, three each of (..., K)."""
    logits, *parts = jnp.split(raw.astype(jnp.float32), MIXTURE_PARTS, axis=-1)
    return logits, parts[:3], parts[3:6], [jnp.tanh(part) for part in parts[6:]]


def _centres(means, coefficients, x):
    """Returns the centre of each colour's logistic, given the colours before it (eq. 3). x: red and green at least."""
    red, green, blue = means
    green_red, blue_red, blue_green = coefficients
    return red, green + green_red * x[0], blue + blue_red * x[0] + blue_green * x[1]


def _level_log_prob(x: jax.Array, centre: jax.Array, log_scale: jax.Array) -> jax.Array:
    """Returns the log of the mass that a logistic gives the level x.

    Between a and b, with s the sigmoid, it is s(b) - s(a) = s(b) s(-a) (1 - exp(a - b)).
    """
    inverse = jnp.exp(-log_scale)
    first, last = x < HALF_LEVEL - 1, x > 1 - HALF_LEVEL
    below_upper = jax.nn.log_sigmoid((x + HALF_LEVEL - centre) * inverse)
    above_lower = jax.nn.log_sigmoid((centre + HALF_LEVEL - x) * inverse)
    both = jnp.log(-jnp.expm1(-2 * HALF_LEVEL * inverse))
    return jnp.where(last, 0.0, below_upper) + jnp.where(first, 0.0, above_lower) + jnp.where(first | last, 0.0, both)
