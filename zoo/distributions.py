"""Log-probabilities, in nats and float32, of what the likelihood families are made of."""

import math

import jax
import jax.numpy as jnp

LOG_2_PI = math.log(2 * math.pi)
LEVELS = 256  # of a pixel


def sum_each(x: jax.Array) -> jax.Array:
    """The sum of each example, (B, ...) -> (B,)."""
    return x.sum(axis=tuple(range(1, x.ndim)))


def normal_log_prob(x: jax.Array) -> jax.Array:
    """log N(x; 0, 1), elementwise."""
    return -0.5 * (jnp.square(x) + LOG_2_PI)


def normal_kl(mean: jax.Array, log_std: jax.Array, mean_p: jax.Array, log_std_p: jax.Array) -> jax.Array:
    """KL(N(mean, std^2) || N(mean_p, std_p^2)), elementwise."""
    ratio = jnp.exp(2 * (log_std - log_std_p))
    return 0.5 * (ratio + jnp.square((mean - mean_p) * jnp.exp(-log_std_p)) - 1) - log_std + log_std_p


def to_bits_per_dim(log_prob: jax.Array, dimensions: int) -> jax.Array:
    """log p in nats of a picture of so many dimensions (T * H * W * C) -> bits per dimension."""
    return -log_prob / (dimensions * math.log(2))


def dequantise(rng: jax.Array, pixels: jax.Array) -> jax.Array:
    """uint8 pixels (B, ...) and a key each -> float32 in [-1, 1], uniform within each pixel's level (1511.01844).

    E[log p(y)] over this noise bounds log P(pixels) from below once `dequantised_log_det` is added.
    """
    noise = jax.vmap(lambda key: jax.random.uniform(key, pixels.shape[1:]))(rng)
    return (pixels.astype(jnp.float32) + noise) * (2 / LEVELS) - 1


def dequantised_log_det(dimensions: int) -> float:
    """What log p of `dequantise`d pixels needs to be that of pixels in levels: a level is 2 / 256 wide."""
    return dimensions * math.log(2 / LEVELS)
