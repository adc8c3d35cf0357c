"""MeanFlow: a network learns the average velocity between two times, so that one step makes a picture (2505.13447).

On the line z_t = (1 - t) x + t eps, u(z_t, r, t) is the mean of the velocity along the path from t back to r:

    z_r = z_t - (t - r) u(z_t, r, t)                        sampling, in as many steps as wanted
    u = v - (t - r) du/dt,  du/dt = v dz u + dt u           what training asks of it (eq. 6 and 8)
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from zoo.config import build
from zoo.data.text import drop_captions, empty_caption
from zoo.diffusion import guidance as guides
from zoo.diffusion.paths import LINEAR, draw_times, expand
from zoo.diffusion.samplers import time_grid
from zoo.distributions import sum_each
from zoo.method import Axis, Batch, Output, normal_each, to_float
from zoo.nets.transformer import Transformer

LEAST_ERROR = 1e-3  # added to an example's squared error before it is divided by its power


@dataclasses.dataclass(frozen=True)
class MeanFlow:
    """The family of average velocities.

    Attributes:
      net: fields of `Transformer` but `attention`, which is XLA's: the others have no forward derivatives.
      vocab_size, dtype: of the text, and of the computation.
      time_mean, time_std, time_shift: of the two times, see `draw_times` "logit_normal"; the later one is t.
      equal: share of examples whose two times are one, which learn the velocity itself, as flow matching does.
      power: the loss is |error|^2 / (|error|^2 + c)^power (eq. 22): 0 is the squared error.
      caption_drop: share of captions replaced by the empty one, which guidance needs.
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    time_mean: float = -0.4
    time_std: float = 1.0
    time_shift: float = 1.0
    equal: float = 0.75
    power: float = 1.0
    caption_drop: float = 0.1

    players: ClassVar[tuple[str, ...]] = ("model",)

    @functools.cached_property
    def network(self) -> Transformer:
        fixed = dict(vocab_size=self.vocab_size, dtype=self.dtype, attention="xla")
        return build(Transformer, self.net, "method.net", **fixed)

    def apply(self, params, z: jax.Array, r: jax.Array, t: jax.Array, tokens: jax.Array) -> jax.Array:
        """u(z, r, t). z: (B, T, H, W, C); r, t: (B,); tokens: (B, L) -> like z."""
        return self.network.apply({"params": params["model"]}, z, t, tokens, t - r)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        x = to_float(batch["pixels"])
        zeros = jnp.zeros(len(x))
        return {"model": self.network.init(rng, x, zeros, batch["tokens"], zeros)["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """The squared error of u and what its own derivative says it should be, weighed by `power`.

        Metrics: `error`, the squared error itself.
        """
        del player, axis, step
        rng_times, rng_noise, rng_drop = jax.random.split(rng, 3)
        x = to_float(batch["pixels"])
        r, t = self._draw_two_times(rng_times, len(x))
        eps = jax.random.normal(rng_noise, x.shape)
        z, v = LINEAR.mix(x, eps, t), LINEAR.velocity(x, eps, t)
        tokens = drop_captions(rng_drop, batch["tokens"], self.caption_drop)

        u, slope = jax.jvp(
            lambda z, t: self.apply(params, z, r, t, tokens), (z, t), (v, jnp.ones_like(t))
        )  # slope: du/dt along the path
        error = sum_each(jnp.square(u - jax.lax.stop_gradient(v - expand(t - r, z) * slope)))
        weight = jax.lax.stop_gradient((error + LEAST_ERROR) ** -self.power)
        loss = (weight * error).mean()
        return loss, Output({"loss": loss, "error": error.mean() / x[0].size})

    def sample(
        self,
        params,
        rng: jax.Array,
        cond: jax.Array,
        shape: tuple[int, ...],
        *,
        steps: int = 1,
        guidance: float = 0.0,
        shift: float = 1.0,
    ) -> jax.Array:
        """See `Method.sample`.

        Args:
          steps, shift: see `diffusion.samplers.time_grid`.
          guidance: good + guidance (good - bad) of each average velocity, where bad is the empty caption's; 0 is none.
        """
        z, times = normal_each(rng, shape), time_grid(steps, shift=shift)

        def step(z, times):
            t, r = times
            network = lambda z, t, tokens: self.apply(params, z, jnp.full_like(t, r), t, tokens)
            if guidance:
                network = guides.classifier_free(network, empty_caption(cond.shape[-1]), guidance)
            return z - (t - r) * network(z, jnp.full(len(z), t), cond), None

        return jax.lax.scan(step, z, (times[:-1], times[1:]))[0]

    def evaluations(self, *, steps: int = 1, guidance: float = 0.0, **rest) -> int:
        """How often a picture is put through the network by `sample` with these options."""
        del rest
        return steps * (2 if guidance else 1)

    def _draw_two_times(self, rng: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
        """r <= t, each (count,); equal for a share of `equal`."""
        rng_two, rng_equal = jax.random.split(rng)
        two = draw_times(
            rng_two, 2 * count, "logit_normal", mean=self.time_mean, std=self.time_std, shift=self.time_shift
        ).reshape(2, count)
        t = two.max(axis=0)
        return jnp.where(jax.random.uniform(rng_equal, (count,)) < self.equal, t, two.min(axis=0)), t
