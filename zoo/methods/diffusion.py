"""Diffusion and flow matching: a network learns to undo noise, from captions (SiT 2401.08740, JiT 2511.13720).

With the linear path, v-prediction and a v-error this is rectified flow (2209.03003, eq. 1). Predicting x while the
error stays in v is JiT's form (2511.13720, table 1): large patches need it.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp

from zoo.config import build
from zoo.data.text import drop_captions, empty_caption
from zoo.diffusion import guidance as guides
from zoo.diffusion.paths import Estimate, draw_times, get_path, squared_error
from zoo.diffusion.samplers import integrate, time_grid
from zoo.errors import BadInput
from zoo.method import Axis, Batch, Output, normal_each, to_float
from zoo.nets.transformer import Transformer

EPS_START = 0.99


@flax.struct.dataclass
class Guide:
    """A worse model to guide away from: an earlier average of the same run, or a smaller run."""

    params: Any
    method: "Diffusion" = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """The diffusion family.

    Attributes:
      net: fields of `Transformer`.
      vocab_size, dtype: of the text, and of the computation.
      path: "linear" or "cosine", see `diffusion.paths`.
      prediction: what the network's output means: "x", "eps" or "v".
      error: the space of the squared error: "x", "eps", "v", or "min_snr".
      times: "logit_normal" (of `time_mean`, `time_std`) or "uniform", moved towards noise by `time_shift`.
      time_min: earliest training time; keeps v = (z - x) / t bounded where x is predicted (JiT uses 0.05).
      caption_drop: share of captions replaced by the empty one, which classifier-free guidance needs.
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    path: str = "linear"
    prediction: str = "v"
    error: str = "v"
    times: str = "logit_normal"
    time_mean: float = 0.0
    time_std: float = 1.0
    time_shift: float = 1.0
    time_min: float = 0.0
    caption_drop: float = 0.1

    players: ClassVar[tuple[str, ...]] = ("model",)

    @functools.cached_property
    def network(self) -> Transformer:
        return build(Transformer, self.net, "method.net", vocab_size=self.vocab_size, dtype=self.dtype)

    def apply(self, params, z: jax.Array, t: jax.Array, tokens: jax.Array) -> jax.Array:
        """The raw prediction. z: (B, T, H, W, C); t: (B,); tokens: (B, L) -> like z."""
        return self.network.apply({"params": params["model"]}, z, t, tokens)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        if self.prediction == "x" and self.error in ("v", "eps") and self.time_min <= 0:
            raise BadInput(
                f"method.time_min must be positive where x is predicted and {self.error} compared, e.g. 0.05"
            )
        x = to_float(batch["pixels"])
        return {"model": self.network.init(rng, x, jnp.zeros(len(x)), batch["tokens"])["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """Squared error of the prediction at one random time a picture; `fake` is the predicted clean picture."""
        del player, axis, step
        path = get_path(self.path)
        rng_time, rng_noise, rng_drop = jax.random.split(rng, 3)
        x = to_float(batch["pixels"])
        t = draw_times(rng_time, len(x), self.times, mean=self.time_mean, std=self.time_std, shift=self.time_shift)
        t = jnp.maximum(t, self.time_min)
        eps = jax.random.normal(rng_noise, x.shape)
        z = path.mix(x, eps, t)
        tokens = drop_captions(rng_drop, batch["tokens"], self.caption_drop)

        estimate = path.convert(self.prediction, self.apply(params, z, t, tokens), z, t)
        target = Estimate(x, eps, path.velocity(x, eps, t))
        loss = squared_error(self.error, path, estimate, target, t).mean()
        return loss, Output({"loss": loss}, fake=estimate.x)

    def sample(
        self,
        params,
        rng: jax.Array,
        cond: jax.Array,
        shape: tuple[int, ...],
        *,
        steps: int = 20,
        sampler: str = "heun",
        guidance: float = 0.0,
        interval: tuple[float, float] = (0.0, 1.0),
        eta: float = 0.0,
        shift: float = 1.0,
        guide: Guide | None = None,
    ) -> jax.Array:
        """See `Method.sample`.

        Args:
          steps, sampler, eta, shift: see `diffusion.samplers`.
          guidance: good + guidance (good - bad); 0 is none. Bad is the empty caption, or `guide` where given.
          interval: the times between which guidance acts.
        """
        path = get_path(self.path)
        network = functools.partial(self.apply, params)
        if guidance and guide is not None:
            worse = functools.partial(guide.method.apply, guide.params)
            network = guides.autoguidance(network, worse, guidance, interval)
        elif guidance:
            network = guides.classifier_free(network, empty_caption(cond.shape[-1]), guidance, interval)

        def predict(z, t):
            times = jnp.full(len(z), t)
            return path.convert(self.prediction, network(z, times, cond), z, times)

        rng_start, rng_steps = jnp.moveaxis(jax.vmap(jax.random.split)(rng), 1, 0)

        def draw_noise(index):
            return normal_each(jax.vmap(jax.random.fold_in, in_axes=(0, None))(rng_steps, index), shape)

        # At t = 1 there is no picture left: x cannot be had from eps, so that an eps-network starts a little earlier.
        start = EPS_START if self.prediction == "eps" else 1.0
        times = time_grid(steps, shift=shift, start=start)
        return integrate(sampler, predict, path, normal_each(rng_start, shape), times, eta=eta, draw_noise=draw_noise)

    def evaluations(self, *, steps: int = 20, sampler: str = "heun", guidance: float = 0.0, **rest) -> int:
        """How often a picture is put through the network by `sample` with these options."""
        del rest
        return (2 * steps - 1 if sampler == "heun" else steps) * (2 if guidance else 1)

    def as_guide(self, params, method: "Diffusion") -> Guide:
        """Makes another run, or an earlier average of this one, the worse model of `sample`'s guidance."""
        if not isinstance(method, Diffusion) or (method.path, method.prediction) != (self.path, self.prediction):
            raise BadInput(
                f"a guide must predict {self.prediction} on the {self.path} path, as this run does; it is {method}"
            )
        return Guide(params, method)
