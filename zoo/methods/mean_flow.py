"""MeanFlow: a network learns the average velocity between two times, so that one step makes an image (2505.13447).

On the line z_t = (1 - t) x + t eps, u(z_t, r, t) is the mean of the velocity along the path from t back to r:

    z_r = z_t - (t - r) u(z_t, r, t)                        sampling, in as many steps as wanted
    u = v - (t - r) du/dt,  du/dt = v dz u + dt u           the target of training (eq. 6 and 8)

Guidance is part of training (section 4.2): the average of a guided velocity is not the guided average. With guidance w
the network learns the averages of v + w (v - v_empty), and one evaluation per step makes guided samples.

The network may predict an image x in place of u = (z_t - x) / t, which is compared all the same (pixel MeanFlow,
2601.22158): images lie near a surface of few dimensions, velocities do not, and a small network can follow the former.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from zoo import conditions
from zoo.conditions import Cond
from zoo.diffusion.paths import LINEAR, draw_times, expand
from zoo.diffusion.samplers import grid_to_zero
from zoo.distributions import sum_except_batch
from zoo.errors import UserError, check_ranges, unknown_name_error
from zoo.method import Axis, Batch, Output, normal_each, to_float
from zoo.nets.conditioning import Conditioned, build_network
from zoo.nets.layers import smooth_attention
from zoo.nets.time import NEW_FOR_VIDEOS
from zoo.nets.transformer import Transformer

LEAST_ERROR = 1e-3  # c of the loss, see `norm_p`


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Options of sampling.

    Attributes:
      steps, shift: see `diffusion.samplers.grid_to_zero`.
    """

    steps: int = 1
    shift: float = 1.0

    def __post_init__(self):
        check_ranges(self, steps="[1, inf)", shift="(0, inf)")


@dataclasses.dataclass(frozen=True)
class MeanFlow:
    """The family of average velocities.

    Attributes:
      net: fields of `Transformer`, and `conditioner`.
      vocab_size: number of token ids.
      dtype: type that networks compute in.
      prediction: quantity that the network predicts: "u", or "x", from which u follows.
      time_min: earliest training time; keeps u = (z - x) / t bounded where x is predicted.
      time_mean, time_std, time_shift: of the two times, see `draw_times` "logit_normal"; the later one is t.
      data_proportion: share of examples with r = t, whose target is the velocity itself, as in flow matching.
      norm_p: the loss is |error|^2 / (|error|^2 + c)^norm_p (eq. 22): 0 is the squared error.
      caption_drop: share of captions replaced by the empty one, which guidance needs.
      guidance: scale w of the guidance of the velocity, see `conditions.guide`; 0 is none.
      guidance_mix: share of the network's own guided velocity in the target, in place of the sample's (kappa in the
        paper), in [0, 1): the same field with less variance, for another evaluation.

    Raises:
      UserError: an unknown prediction, or "x" without a time_min; a guidance below 0 or without dropped captions; a mix
        outside its range or without guidance.
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    prediction: str = "u"
    time_min: float = 0.0
    time_mean: float = -0.4
    time_std: float = 1.0
    time_shift: float = 1.0
    data_proportion: float = 0.75
    norm_p: float = 1.0
    caption_drop: float = 0.1
    guidance: float = 0.0
    guidance_mix: float = 0.0

    players: ClassVar[tuple[str, ...]] = ("model",)
    SampleOptions = SampleOptions
    MAY_BE_NEW: ClassVar[tuple[str, ...]] = NEW_FOR_VIDEOS
    reads_given: ClassVar[bool] = True

    def __post_init__(self):
        if self.prediction not in ("u", "x"):
            raise unknown_name_error("prediction", self.prediction, ("u", "x"))
        check_ranges(self, time_min="[0, 1)", time_mean="(-inf, inf)", time_std="[0, inf)", time_shift="(0, inf)")
        check_ranges(self, data_proportion="[0, 1]", norm_p="[0, inf)", caption_drop="[0, 1]")
        check_ranges(self, guidance="[0, inf)", guidance_mix="[0, 1)")
        if self.prediction == "x" and not self.time_min:
            raise UserError(f"time_min {self.time_min} must be above 0 where x is predicted, e.g. 0.05")
        if self.guidance and not 0 < self.caption_drop < 1:
            raise UserError(f"guidance {self.guidance} needs caption_drop between 0 and 1, got {self.caption_drop}")
        if self.guidance and not self.data_proportion:
            raise UserError("guidance needs data_proportion above 0: its target is made of u(z, t, t), trained there")
        if self.guidance_mix and not self.guidance:
            raise UserError(f"guidance_mix {self.guidance_mix} needs guidance above 0")

    @functools.cached_property
    def network(self) -> Conditioned:
        """Network with its conditioner, without parameters."""
        return build_network(Transformer, self.net, "method.net", self.vocab_size, self.dtype)

    def apply(self, params, z: jax.Array, r: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
        """u(z, r, t). z: (B, T, H, W, C); r, t: (B,) -> like z."""
        predicted = self.network.apply({"params": params["model"]}, z, t, t - r, cond=cond)
        predicted = LINEAR.with_expected("v" if self.prediction == "u" else "x", predicted, cond, t)
        if self.prediction == "u":
            return predicted
        t = jnp.where(t >= self.time_min, t, self.time_min)  # the derivative of a maximum is half at time_min
        return (z - predicted) / expand(t, z)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`."""
        x = to_float(batch["inputs"])
        zeros = jnp.zeros(len(x))
        return {"model": self.network.init(rng, x, zeros, zeros, cond=batch["cond"])["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """The squared error between u and the target of its own derivative, weighted by `norm_p`.

        Metrics: `error`, the squared error itself.
        """
        del player, axis, step
        rng_times, rng_noise, rng_drop = jax.random.split(rng, 3)
        x = to_float(batch["inputs"])
        r, t = self._draw_two_times(rng_times, len(x))
        eps = jax.random.normal(rng_noise, x.shape)
        z, v = LINEAR.interpolate(x, eps, t), LINEAR.velocity(x, eps, t)
        cond = conditions.drop(rng_drop, batch["cond"], self.caption_drop)
        v = self._guided(params, z, t, v, cond)

        average = lambda z, t: self.apply(params, z, r, t, cond)
        with smooth_attention():
            u, slope = jax.jvp(average, (z, t), (v, jnp.ones_like(t)))  # slope: du/dt along the path
        error = sum_except_batch(jnp.square(u - jax.lax.stop_gradient(v - expand(t - r, z) * slope)))
        weight = jax.lax.stop_gradient((error + LEAST_ERROR) ** -self.norm_p)
        loss = (weight * error).mean()
        return loss, Output({"loss": loss, "error": error.mean() / x[0].size})

    def _guided(self, params, z: jax.Array, t: jax.Array, v: jax.Array, cond: Cond) -> jax.Array:
        """The velocity whose averages are learned, without derivative; its mean is the guided field (section 4.2).

        Under the empty caption the mean is the unguided field, which guidance leads away from.
        """
        if not self.guidance:
            return v
        velocity = lambda cond: jax.lax.stop_gradient(self.apply(params, z, t, t, cond))
        target = conditions.guide(v, velocity(conditions.empty(cond)), self.guidance)
        return (1 - self.guidance_mix) * target + self.guidance_mix * velocity(cond) if self.guidance_mix else target

    def sample(self, params, rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: SampleOptions) -> jax.Array:
        """See `Generates.sample`."""
        times = grid_to_zero(options.steps, shift=options.shift, first=self.time_min)
        z = normal_each(rng, shape)

        def step(z, times):
            t, r = jnp.broadcast_to(times[:, None], (2, len(z)))
            return z - expand(t - r, z) * self.apply(params, z, r, t, cond), None

        return jax.lax.scan(step, z, jnp.stack([times[:-1], times[1:]], axis=1))[0]

    def evaluations(self, options: SampleOptions, shape: tuple[int, ...]) -> int:
        """See `Generates.evaluations`."""
        del shape
        return options.steps

    def _draw_two_times(self, rng: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """Returns r <= t, each (count,); equal for a share of `data_proportion`."""
        rng_two, rng_same = jax.random.split(rng)
        two = draw_times(
            rng_two, 2 * count, "logit_normal", mean=self.time_mean, std=self.time_std, shift=self.time_shift
        ).reshape(2, count)
        t = jnp.maximum(two.max(axis=0), self.time_min)
        return jnp.where(jax.random.uniform(rng_same, (count,)) < self.data_proportion, t, two.min(axis=0)), t
