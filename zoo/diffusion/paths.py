"""Paths from data to noise, and the exact change between the three things a network may predict.

A path mixes an image x and Gaussian noise eps into z_t = alpha(t) x + sigma(t) eps, from data (t = 0) to noise
(t = 1). Its velocity is v = dz_t/dt = alpha'(t) x + sigma'(t) eps. Given z_t and t, any one of x, eps, v
determines the other two.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo.errors import UserError, unknown_name_error


class Prediction(NamedTuple):
    """One prediction in all three forms, each of the shape of z."""

    x: jax.Array
    eps: jax.Array
    v: jax.Array


@dataclass(frozen=True)
class Path:
    """z_t = alpha(t) x + sigma(t) eps, with the derivatives of both; all are functions of an array t in [0, 1]."""

    alpha: Callable[[jax.Array], jax.Array]
    sigma: Callable[[jax.Array], jax.Array]
    d_alpha: Callable[[jax.Array], jax.Array]
    d_sigma: Callable[[jax.Array], jax.Array]

    def interpolate(self, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """Returns z_t. x, eps: (B, ...); t: (B,)."""
        t = expand(t, x)
        return self.alpha(t) * x + self.sigma(t) * eps

    def velocity(self, x: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
        """Returns v = dz_t/dt. x, eps: (B, ...); t: (B,)."""
        t = expand(t, x)
        return self.d_alpha(t) * x + self.d_sigma(t) * eps

    def convert(self, prediction: str, value: jax.Array, z: jax.Array, t: jax.Array) -> Prediction:
        """Solves the pair (z, v) = [[alpha, sigma], [alpha', sigma']] (x, eps) for what is missing.

        Args:
          prediction: kind of `value`: "x", "eps" or "v".
          value: prediction (B, ...).
          z: noisy data (B, ...).
          t: times (B,). "x" needs sigma(t) > 0 and "eps" needs alpha(t) > 0: a path loses the noise at t = 0 and
            the image at t = 1.

        Returns:
          All three.

        Raises:
          UserError: an unknown kind.
        """
        _check_kind(prediction)
        t = expand(t, z)
        alpha, sigma, d_alpha, d_sigma = self.alpha(t), self.sigma(t), self.d_alpha(t), self.d_sigma(t)
        if prediction == "x":
            x, eps = value, (z - alpha * value) / sigma
        elif prediction == "eps":
            x, eps = (z - sigma * value) / alpha, value
        else:
            determinant = alpha * d_sigma - sigma * d_alpha
            x = (d_sigma * z - sigma * value) / determinant
            eps = (alpha * value - d_alpha * z) / determinant
            return Prediction(x, eps, value)
        return Prediction(x, eps, d_alpha * x + d_sigma * eps)

    def with_expected(self, prediction: str, value: jax.Array, cond: Mapping[str, Any], t: jax.Array) -> jax.Array:
        """Adds what is expected of the image, `cond["expected"]` if there is one, to a prediction of what it lacks.

        That is value + (d prediction / d x) expected at fixed noise, with VDSR's residual (1511.04587, section 3.2) as
        the case of x.

        Args:
          prediction: kind of `value`, see `convert`.
          value: prediction (B, ...).
          cond: conditions.
          t: times (B,).

        Raises:
          UserError: an unknown kind.
        """
        _check_kind(prediction)
        if "expected" not in cond:
            return value
        slope = {"x": jnp.ones_like(t), "eps": jnp.zeros_like(t), "v": self.d_alpha(t)}[prediction]
        return value + expand(slope, value) * cond["expected"]

    def snr(self, t: jax.Array) -> jax.Array:
        """Signal-to-noise ratio alpha^2 / sigma^2 at t."""
        return jnp.square(self.alpha(t) / self.sigma(t))


def _check_kind(prediction: str) -> None:
    if prediction not in ("x", "eps", "v"):
        raise unknown_name_error("prediction", prediction, ("x", "eps", "v"))


def expand(t: jax.Array, like: jax.Array) -> jax.Array:
    """(B,) -> (B, 1, ..., 1) with as many axes as `like`."""
    return t.reshape(t.shape + (1,) * (like.ndim - t.ndim))


# Rectified flow (Liu et al. 2209.03003): straight lines, v = eps - x.
LINEAR = Path(lambda t: 1 - t, lambda t: t, lambda t: -jnp.ones_like(t), lambda t: jnp.ones_like(t))

# Variance preserving with the cosine schedule (Nichol & Dhariwal 2102.09672, eq. 17, offset 0).
_HALF_PI = jnp.pi / 2
COSINE = Path(
    lambda t: jnp.cos(_HALF_PI * t),
    lambda t: jnp.sin(_HALF_PI * t),
    lambda t: -_HALF_PI * jnp.sin(_HALF_PI * t),
    lambda t: _HALF_PI * jnp.cos(_HALF_PI * t),
)

PATHS = {"linear": LINEAR, "cosine": COSINE}


def get_path(name: str) -> Path:
    """Returns the path called `name`; raises UserError with the known names."""
    if name not in PATHS:
        raise unknown_name_error("path", name, PATHS)
    return PATHS[name]


def shift_time(t: Any, shift: float) -> Any:
    """Moves times towards noise for shift > 1: t' = s t / (1 + (s - 1) t) (Esser et al. 2403.03206, eq. 23)."""
    if shift <= 0:
        raise UserError(f"a shift of times must be positive, got {shift}; 1 shifts nothing")
    return shift * t / (1 + (shift - 1) * t)


def draw_times(
    rng: jax.Array,
    count: int,
    distribution: str,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    steps: int = 4,
    shift: float = 1.0,
) -> jax.Array:
    """Draws training times, (count,) float32 in [0, 1].

    Args:
      rng: single key.
      count: number of times.
      distribution: "uniform" (stratified over the batch, which lowers the variance of the loss: VDM 2107.00630,
        appendix I.1), "logit_normal" (2403.03206, eq. 19: sigmoid of a Gaussian with this mean and std), or "steps":
        the times at which a sampler of so many `steps` evaluates the network, 1 among them (ADD 2311.17042,
        section 3.1).
      mean: mean of the Gaussian.
      std: standard deviation of the Gaussian.
      steps: number of the sampler's steps.
      shift: applied to the drawn times, see `shift_time`.
    """
    if distribution == "uniform":
        t = (jax.random.uniform(rng) + jnp.arange(count) / count) % 1.0
    elif distribution == "logit_normal":
        t = jax.nn.sigmoid(mean + std * jax.random.normal(rng, (count,)))
    elif distribution == "steps":
        t = jax.random.randint(rng, (count,), 1, steps + 1) / steps
    else:
        raise unknown_name_error("time distribution", distribution, ("uniform", "logit_normal", "steps"))
    return shift_time(t, shift)


def squared_error(space: str, path: Path, predicted: Prediction, target: Prediction, t: jax.Array) -> jax.Array:
    """Mean squared error of each example, (B,), measured in the space that gives the wanted weight over time.

    An error of x weighs all times alike; the same error seen in eps is weighted by the signal-to-noise ratio, and
    seen in v (on the linear path) by 1 / t^2. "min_snr" is the x-error times min(snr, 5) (Hang et al. 2303.09556).
    """
    if space not in ("x", "eps", "v", "min_snr"):
        raise unknown_name_error("loss space", space, ("x", "eps", "v", "min_snr"))
    field = "x" if space == "min_snr" else space
    error = jnp.square(getattr(predicted, field) - getattr(target, field))
    error = error.mean(axis=tuple(range(1, error.ndim)))  # (B,)
    return error * jnp.minimum(path.snr(t), 5.0) if space == "min_snr" else error
