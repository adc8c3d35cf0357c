"""Diffusion and flow matching: a network learns to undo noise, from captions (SiT 2401.08740, JiT 2511.13720).

With the linear path, v-prediction and a v-error this is rectified flow (2209.03003, eq. 1). Predicting x while the
error stays in v is JiT's form (2511.13720, table 1): large patches need it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import einops
import flax.struct
import jax
import jax.numpy as jnp

from zoo.config import build
from zoo.data.text import drop_captions, empty_caption
from zoo.diffusion import guidance as guides
from zoo.diffusion import ode
from zoo.diffusion.paths import Estimate, Path, draw_times, expand, get_path, squared_error
from zoo.diffusion.samplers import ddim_transition, integrate, time_grid
from zoo.distributions import LEVELS, normal_log_prob, sum_each, to_bits_per_dim
from zoo.errors import BadInput
from zoo.method import Axis, Batch, Output, normal_each, to_float
from zoo.nets.transformer import Transformer

EPS_START = 0.99
X_START = 1e-3  # of the way to noise, where x is predicted and training knows no earliest time
LEVEL_TIME = 1 / LEVELS  # on the linear path, when the noise is half a level
RECONSTRUCTION_STEPS = 25


@flax.struct.dataclass
class Guide:
    """A worse model to guide away from: an earlier checkpoint or other average of the same run, or a smaller run."""

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
      times: "logit_normal" (of `time_mean`, `time_std`), "uniform", or "steps" (of a sampler of `time_steps`), moved
        towards noise by `time_shift`.
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
    time_steps: int = 4
    time_shift: float = 1.0
    time_min: float = 0.0
    caption_drop: float = 0.1

    players: ClassVar[tuple[str, ...]] = ("model",)
    fake_of: ClassVar[str] = "picture"
    faithful: ClassVar[Mapping[str, Any]] = {"guidance": 0.0, "eta": 0.0}

    @functools.cached_property
    def network(self) -> Transformer:
        return build(Transformer, self.net, "method.net", vocab_size=self.vocab_size, dtype=self.dtype)

    def apply(self, params, z: jax.Array, t: jax.Array, tokens: jax.Array) -> jax.Array:
        """The raw prediction. z: (B, T, H, W, C); t: (B,); tokens: (B, L) -> like z."""
        return self.network.apply({"params": params["model"]}, z, t, tokens)

    def see(self, params, pixels: jax.Array, tokens: jax.Array, t: jax.Array | None) -> list[jax.Array]:
        """See `Seeing.see`: the patches after each layer. Raises BadInput where noise is not on the linear path."""
        if t is not None and self.path != "linear":
            raise BadInput(
                f"a critic shows noise on the linear path, and this run was trained on {self.path}: set noise=()"
            )
        t = jnp.zeros(len(pixels)) if t is None else t
        network = self._smooth.network
        _, kept = network.apply({"params": params["model"]}, pixels, t, tokens, mutable=["intermediates"])
        (layers,) = kept["intermediates"]["layers"]["tokens"]  # (layers, B T, h w, D)
        sides = dict(t=pixels.shape[1], h=pixels.shape[2] // network.patch_size)
        return list(einops.rearrange(layers, "l (b t) (h w) d -> l b t h w d", **sides))

    @property
    def _smooth(self) -> "Diffusion":
        """The same with XLA's attention: the others have neither forward nor second derivatives."""
        return dataclasses.replace(self, net=dict(self.net) | {"attention": "xla"})

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
        t = jnp.clip(self._draw_times(rng_time, len(x)), self.time_min, self._last_time)
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
        last: int = 0,
        guide: Guide | None = None,
    ) -> jax.Array:
        """See `Method.sample`.

        Args:
          steps, sampler, eta, shift: see `diffusion.samplers`.
          guidance: good + guidance (good - bad); 0 is none. Bad is the empty caption, or `guide` where given.
          interval: the times between which guidance acts.
          last: derivatives with respect to the parameters see so many of the last steps alone (DRaFT-K 2309.17400);
            0 for all. Without derivatives it changes nothing, but that "dpmpp_2m" begins there anew.
        """
        options = dict(steps=steps, sampler=sampler, guidance=guidance, interval=interval, eta=eta, shift=shift)
        draw_step = _step_noise(rng, shape)
        return self._denoise(params, self.draw_noise(rng, shape), cond, draw_step, **options, last=last, guide=guide)

    def draw_noise(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """See `Editable.draw_noise`."""
        rng_start, _ = _split_each(rng)
        return normal_each(rng_start, shape)

    def generate(self, params, noise: jax.Array, cond: jax.Array, **options) -> jax.Array:
        """See `Editable.generate`. Raises BadInput where eta is not 0: that draws."""
        options = Diffusion.sample.__kwdefaults__ | options
        if options["eta"]:
            raise BadInput(f"eta={options['eta']} draws noise in every step; pictures of given noise need eta=0")
        return self._denoise(params, noise, cond, None, **options)

    def _denoise(self, params, z, cond, draw_step, *, steps, sampler, guidance, interval, eta, shift, last, guide):
        """From noise z to pixels; the options are those of `sample`."""
        if not 0 <= last <= steps:
            raise BadInput(f"last must lie between 0 and the {steps} steps, got {last}")
        path, times = get_path(self.path), self._times(steps, shift)
        predict = lambda params: self._predictor(params, cond, guidance, interval, guide)
        done = steps - last if last else 0
        if done:
            still = predict(jax.lax.stop_gradient(params))
            z = integrate(sampler, still, path, z, times[: done + 1], eta=eta, draw_noise=draw_step)
        rest = lambda index: draw_step(done + index)
        return integrate(sampler, predict(params), path, z, times[done:], eta=eta, draw_noise=rest)

    def walk(
        self,
        params,
        rng: jax.Array,
        cond: jax.Array,
        shape: tuple[int, ...],
        *,
        steps: int = 20,
        guidance: float = 0.0,
        eta: float = 1.0,
        shift: float = 1.0,
    ) -> jax.Array:
        """See `Stepwise.walk`: what `sample` does with DDIM and these options, (steps + 1, B, T, H, W, C)."""
        predict, times = self._predictor(params, cond, guidance), self._times(steps, shift)
        z, noise = self.draw_noise(rng, shape), _step_noise(rng, shape)
        return integrate("ddim", predict, get_path(self.path), z, times, eta=eta, draw_noise=noise, keep=True)

    def log_prob_of_walk(
        self,
        params,
        states: jax.Array,
        cond: jax.Array,
        *,
        steps: int = 20,
        guidance: float = 0.0,
        eta: float = 1.0,
        shift: float = 1.0,
    ) -> jax.Array:
        """See `Stepwise.log_prob_of_walk`. The last step draws nothing and is left out: (steps - 1, B)."""
        if steps < 2 or eta <= 0:
            raise BadInput(f"steps that draw need steps of at least 2 and a positive eta, got {steps} and {eta}")
        predict, times = self._predictor(params, cond, guidance), self._times(steps, shift)

        @jax.checkpoint
        def one(z, to, t, s):
            mean, std = ddim_transition(predict, get_path(self.path), z, t, s, eta)
            return sum_each(normal_log_prob((to - mean) / std) - jnp.log(std))

        inputs = states[:-2], states[1:-1], times[:-2], times[1:-1]
        return jax.lax.scan(lambda _, inputs: (None, one(*inputs)), None, inputs)[1]

    def _predictor(self, params, cond, guidance=0.0, interval=(0.0, 1.0), guide=None):
        """The guided network as a function of z and a scalar time."""
        path = get_path(self.path)
        network = functools.partial(self.apply, params)
        if guidance and guide is not None:
            if (guide.method.path, guide.method.prediction) != (self.path, self.prediction):
                raise BadInput(
                    f"a guide must predict {self.prediction} on the {self.path} path, as this run does; it predicts "
                    f"{guide.method.prediction} on the {guide.method.path} path"
                )
            worse = functools.partial(guide.method.apply, guide.params)
            network = guides.autoguidance(network, worse, guidance, interval)
        elif guidance:
            network = guides.classifier_free(network, empty_caption(cond.shape[-1]), guidance, interval)

        def predict(z, t):
            times = jnp.full(len(z), t)
            return path.convert(self.prediction, network(z, times, cond), z, times)

        return predict

    def _draw_times(self, rng: jax.Array, count: int) -> jax.Array:
        options = dict(mean=self.time_mean, std=self.time_std, steps=self.time_steps, shift=self.time_shift)
        return draw_times(rng, count, self.times, **options)

    def _times(self, steps: int, shift: float) -> jax.Array:
        """The sampler's, from where noise begins."""
        return time_grid(steps, shift=shift, start=self._last_time)

    @property
    def _last_time(self) -> float:
        """Where noise begins. At t = 1 there is no picture left: x cannot be had from eps, which starts earlier."""
        return EPS_START if self.prediction == "eps" else 1.0

    def invert(
        self,
        params,
        rng: jax.Array,
        pixels: jax.Array,
        cond: jax.Array,
        *,
        steps: int = 25,
        guidance: float = 0.0,
        interval: tuple[float, float] = (0.0, 1.0),
        guide: Guide | None = None,
    ) -> jax.Array:
        """See `Editable.invert`: the probability-flow ODE from the picture to noise (Song et al. 2011.13456, 4.3).

        Where x is predicted, v = (z - x) / t has no value at t = 0: there the picture is first given the noise of
        `time_min`, drawn with rng. Nothing is drawn otherwise.

        Args:
          steps: see `diffusion.ode`; four evaluations each.
          guidance, interval, guide: as in `sample`. What is made with guidance is only found again with the same.
        """
        start = max(self.time_min, X_START) if self.prediction == "x" else 0.0
        z = get_path(self.path).mix(pixels, normal_each(rng, pixels.shape[1:]), jnp.full(len(pixels), start))
        predict = self._predictor(params, cond, guidance, interval, guide)
        return ode.integrate(lambda z, t: predict(z, t).v, z, ode.times_from(start, self._last_time, steps))

    def reconstruct(self, params, rng: jax.Array, batch: Batch) -> jax.Array:
        """See `Reconstructing.reconstruct`: `generate` of what `invert` finds, both without guidance."""
        pixels, steps = to_float(batch["pixels"]), RECONSTRUCTION_STEPS
        noise = self.invert(params, rng, pixels, batch["tokens"], steps=steps)
        return jnp.clip(self.generate(params, noise, batch["tokens"], steps=steps), -1.0, 1.0)

    def bits_per_dim(
        self,
        params,
        rng: jax.Array,
        batch: Batch,
        *,
        steps: int = 32,
        trace: str = "hutchinson",
        probes: int = 1,
        start: float = LEVEL_TIME,
    ) -> jax.Array:
        """See `Likely`: an upper bound, without guidance, that lies above the truth but for the ODE's error.

        The model is: noise at the last time, carried to z at time `start` by the probability-flow ODE, and a level
        read from each number of z, P(x | z) = q(z | x) / sum over all levels x' of q(z | x'), where
        q(z | x) = N(alpha x, sigma^2) is the noise of training. By Jensen's inequality, for one z drawn from it,

            log P(x) >= E[log p(z) + log P(x | z) - log q(z | x)] = E[log p(z) - sum over pixels of log sum q(z | x')]

        It is variational dequantisation (1902.00275, eq. 4) with the noise that the network knows, in place of a
        density of noiseless pictures, which has none. log p(z) is `ode.log_prob`.

        Args:
          steps: of the ODE, four evaluations each and as many derivatives; twice as many show the error.
          trace: "hutchinson", random and right in the mean, or "exact", a derivative for each dimension.
          probes: of Hutchinson's trace.
          start: any is a bound. The default is noise of about half a level. Pictures without noise of their own have
            tighter ones at less, which however a network must have been trained for.

        Raises:
          BadInput: the pixels are not uint8, e.g. latents; or an option that cannot be.
        """
        if batch["pixels"].dtype != jnp.uint8:
            raise BadInput("bits per dimension are of pixels in 256 levels, and this run was trained on latents")
        if not 0 < start < self._last_time:
            raise BadInput(f"start must lie between 0 and {self._last_time:g}, got {start}")
        path, x = get_path(self.path), to_float(batch["pixels"])
        rng_noise, rng_trace = _split_each(rng)
        t = jnp.full(len(x), start)
        z = path.mix(x, normal_each(rng_noise, x.shape[1:]), t)
        predict = self._smooth._predictor(params, batch["tokens"])
        divergence = ode.get_divergence(trace, rng_trace, probes, x.shape[1:])
        times = ode.times_from(start, self._last_time, steps)
        log_prob = ode.log_prob(lambda z, t: predict(z, t).v, divergence, z, times)
        return to_bits_per_dim(log_prob - sum_each(log_density_of_levels(path, z, t)), x[0].size)

    def evaluations(self, *, steps: int = 20, sampler: str = "heun", guidance: float = 0.0, **rest) -> int:
        """How often a picture is put through the network by `sample` with these options."""
        del rest
        return (2 * steps - 1 if sampler == "heun" else steps) * (2 if guidance else 1)

    def as_guide(self, params) -> Guide:
        """Makes this, such as an earlier average or a smaller run, the worse model of another run's guidance."""
        return Guide(params, self)


def log_density_of_levels(path: Path, z: jax.Array, t: jax.Array) -> jax.Array:
    """log of the sum over all levels x of N(z; alpha(t) x, sigma(t)^2), elementwise. z: (B, ...); t: (B,)."""
    t = expand(t, z)
    alpha, sigma = path.alpha(t), path.sigma(t)

    def add(total, level):
        return jnp.logaddexp(total, normal_log_prob((z - alpha * level) / sigma)), None

    total, _ = jax.lax.scan(add, jnp.full_like(z, -jnp.inf), to_float(jnp.arange(LEVELS, dtype=jnp.uint8)))
    return total - jnp.log(sigma)


def _step_noise(rng: jax.Array, shape: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    """Step index -> noise of each picture, (B, *shape); rng: (B,)."""
    _, rng_steps = _split_each(rng)
    return lambda index: normal_each(jax.vmap(jax.random.fold_in, in_axes=(0, None))(rng_steps, index), shape)


def _split_each(rng: jax.Array) -> jax.Array:
    """A key each (B,) -> two keys each, (2, B)."""
    return jnp.moveaxis(jax.vmap(jax.random.split)(rng), 1, 0)
