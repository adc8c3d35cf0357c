"""Samplers: from noise to data along a path, the whole loop in one `lax.scan`.

Every sampler is one function `step(predict, path, noise, carry, t, s, eta)`, which moves z from time t to the earlier
time s, and declares itself by `@sampler`: nothing else needs to be changed to add one. `predict(z, t)` returns a
`Prediction` for a scalar time t. `noise` is fresh Gaussian noise of the shape of z, for stochastic samplers alone.
"""

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from zoo.diffusion.paths import Path, Prediction, shift_time
from zoo.errors import UserError, unknown_name_error

Predict = Callable[[jax.Array, jax.Array], Prediction]


class Carry(NamedTuple):
    """State of a sampler: z, and for the two-step rule the last x and its step in log-SNR/2."""

    z: jax.Array
    x: jax.Array
    h: jax.Array


class Rule(NamedTuple):
    """A sampler.

    Attributes:
      step: see the module.
      evaluated: grid of times (steps + 1,) -> the times at which the network is evaluated, one for each evaluation.
      stochastic: whether it can put noise back (eta > 0).
    """

    step: Callable[..., Carry]
    evaluated: Callable[[np.ndarray], np.ndarray]
    stochastic: bool


SAMPLERS: dict[str, Rule] = {}


def sampler(evaluated: Callable[[np.ndarray], np.ndarray], stochastic: bool = False) -> Callable:
    """Registers a step function as the sampler of its name, see `Rule`."""

    def register(step):
        SAMPLERS[step.__name__] = Rule(step, evaluated, stochastic)
        return step

    return register


@sampler(evaluated=lambda times: times[:-1])
def euler(predict: Predict, path: Path, noise, carry: Carry, t, s, eta) -> Carry:
    """z_s = z_t + (s - t) v(z_t, t). First order; one evaluation a step."""
    del path, noise, eta
    return carry._replace(z=carry.z + (s - t) * predict(carry.z, t).v)


@sampler(evaluated=lambda times: np.concatenate([times[:-1], times[1:-1]]))
def heun(predict: Predict, path: Path, noise, carry: Carry, t, s, eta) -> Carry:
    """The trapezoid rule (EDM 2206.00364, algorithm 1, no churn). Second order; two evaluations a step, the last one.

    The step that ends at the data (s = 0) is Euler's: v needs a division by sigma(0) = 0 when x is predicted.
    """
    del path, noise, eta
    z, v = carry.z, predict(carry.z, t).v
    ahead = z + (s - t) * v
    corrected = lambda: z + (s - t) * (v + predict(ahead, s).v) / 2
    return carry._replace(z=jax.lax.cond(s > 0, corrected, lambda: ahead))


@sampler(evaluated=lambda times: times[:-1])
def dpmpp_2m(predict: Predict, path: Path, noise, carry: Carry, t, s, eta) -> Carry:
    """DPM-Solver++(2M) (Lu et al. 2211.01095, algorithm 2). Second order; one evaluation a step.

    Written with ratios of alpha and sigma in place of exp(-h), so that neither end of the path is infinite. The
    first step has no history and the last has no finite h: both fall back to the first-order rule.
    """
    del noise, eta
    alpha_t, sigma_t, alpha_s, sigma_s = path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s)
    h = jnp.log(alpha_s / sigma_s) - jnp.log(alpha_t / sigma_t)  # lambda_s - lambda_t; inf at either end
    x = predict(carry.z, t).x
    two_steps = jnp.isfinite(h) & jnp.isfinite(carry.h) & (carry.h > 0)
    weight = jnp.where(two_steps, h / (2 * jnp.where(two_steps, carry.h, 1.0)), 0.0)  # 1 / 2r, r = h_before / h
    d = x + weight * (x - carry.x)
    ratio = sigma_s / sigma_t
    return Carry(ratio * carry.z + (alpha_s - alpha_t * ratio) * d, x, h)


@sampler(evaluated=lambda times: times[:-1], stochastic=True)
def ddim(predict: Predict, path: Path, noise, carry: Carry, t, s, eta) -> Carry:
    """DDIM (Song et al. 2010.02502, eq. 12) for any path; eta = 0 is deterministic, eta = 1 ancestral sampling.

    On the linear path eta = 0 is exactly Euler's step.
    """
    mean, std = ddim_transition(predict, path, carry.z, t, s, eta)
    return carry._replace(z=mean + std * noise)


def ddim_transition(predict: Predict, path: Path, z: jax.Array, t, s, eta) -> tuple[jax.Array, jax.Array]:
    """Mean, like z, and standard deviation, a scalar, of the Gaussian that DDIM draws z_s from.

    Its variance is eta^2 times that of the posterior q(z_s | z_t, x) (VDM 2107.00630, eq. 30).
    """
    alpha_t, sigma_t, alpha_s, sigma_s = path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s)
    forward_variance = jnp.square(sigma_t) - jnp.square(alpha_t / alpha_s * sigma_s)  # of z_t given z_s
    variance = jnp.square(eta * sigma_s / sigma_t) * jnp.maximum(forward_variance, 0.0)
    predicted = predict(z, t)
    kept = jnp.sqrt(jnp.maximum(jnp.square(sigma_s) - variance, 0.0))
    return alpha_s * predicted.x + kept * predicted.eps, jnp.sqrt(variance)


def get_sampler(name: str, eta: float = 0.0) -> Rule:
    """Returns the sampler called `name`; raises UserError with the known names, or if it cannot put noise back."""
    if name not in SAMPLERS:
        raise unknown_name_error("sampler", name, SAMPLERS)
    if not 0 <= eta <= 1:
        raise UserError(f"eta must lie in [0, 1], got {eta}")
    if eta and not SAMPLERS[name].stochastic:
        able = ", ".join(name for name, other in SAMPLERS.items() if other.stochastic)
        raise UserError(f"eta={eta} puts noise back, which only {able} does; sampler is {name!r}")
    return SAMPLERS[name]


def time_grid(steps: int, *, shift: float = 1.0, start: float = 1.0, end: float = 0.0) -> jax.Array:
    """Returns the (steps + 1,) times from `start` to `end`, of which those between are moved from even to noisier."""
    if steps < 1:
        raise UserError(f"a sampler needs at least 1 step, got steps={steps}")
    return end + (start - end) * shift_time(jnp.linspace(1.0, 0.0, steps + 1), shift)


def grid_to_zero(steps: int, *, shift: float, start: float = 1.0, first: float = 0.0) -> jax.Array:
    """Returns the (steps + 1,) times of `time_grid` down to 0, of which the last step begins no earlier than `first`.

    Args:
      steps: number of steps.
      shift: see `time_grid`.
      start: time of the noise.
      first: earliest time at which the network was trained.
    """
    if steps == 1 or start * shift_time(1 / steps, shift) >= first:
        return time_grid(steps, shift=shift, start=start)
    return jnp.append(time_grid(steps - 1, shift=shift, start=start, end=first), 0.0)


def integrate(
    sampler: str,
    predict: Predict,
    path: Path,
    z: jax.Array,
    times: jax.Array,
    *,
    eta: float = 0.0,
    draw_noise: Callable[[jax.Array], jax.Array] | None = None,
    return_trajectory: bool = False,
) -> jax.Array:
    """Runs a sampler over a grid of times, compiled as one loop.

    Args:
      sampler: a name in SAMPLERS.
      predict: the network as `Prediction` of (z, scalar t).
      path: path from data to noise.
      z: the start, (B, ...), at times[0].
      times: (steps + 1,), decreasing.
      eta: share of the noise that a stochastic sampler puts back; the others refuse any but 0.
      draw_noise: step index -> noise of the shape of z; needed when eta > 0.
      return_trajectory: whether to return all states.

    Returns:
      z at times[-1]; or the trajectory, z at all times, (steps + 1, B, ...).
    """
    rule = get_sampler(sampler, eta)

    def body(carry: Carry, inputs):
        index, t, s = inputs
        noise = cast(Callable, draw_noise)(index) if eta else jnp.zeros_like(carry.z)
        return rule.step(predict, path, noise, carry, t, s, eta), (carry.z if return_trajectory else ())

    start = Carry(z, jnp.zeros_like(z), jnp.zeros((), z.dtype))
    carry, states = jax.lax.scan(body, start, (jnp.arange(len(times) - 1), times[:-1], times[1:]))
    return jnp.concatenate([jnp.asarray(states), carry.z[None]]) if return_trajectory else carry.z
