"""Diffusion and flow matching: a network learns to undo noise, from captions (SiT 2401.08740, JiT 2511.13720).

With the linear path, v-prediction and a v-error this is rectified flow (2209.03003, eq. 1). Predicting x while the
error stays in v is JiT's form (2511.13720, table 1): large patches need it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import einops
import jax
import jax.numpy as jnp
import numpy as np

from zoo import conditions
from zoo.conditions import Cond
from zoo.diffusion import guidance as guides
from zoo.diffusion import ode
from zoo.diffusion.paths import Path, Prediction, draw_times, expand, get_path, squared_error
from zoo.diffusion.samplers import ddim_transition, get_sampler, grid_to_zero, integrate
from zoo.distributions import LEVELS, normal_log_prob, sum_except_batch, to_bits_per_dim
from zoo.errors import UserError, check_ranges
from zoo.method import Axis, Batch, Denoises, Output, fold_each, normal_each, split_each, to_float
from zoo.nets.conditioning import Conditioned, build_network
from zoo.nets.layers import smooth_attention
from zoo.nets.time import NEW_FOR_VIDEOS
from zoo.nets.transformer import Transformer

EPS_START = 0.99
X_START = 1e-3  # of the way to noise, where x is predicted and training has no earliest time
LEVEL_TIME = 1 / LEVELS  # on the linear path, when the noise is half a level
RECONSTRUCTION_STEPS = 25


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Options of sampling.

    Attributes:
      steps, sampler, eta, shift: see `diffusion.samplers`.
      guidance: scale of the guidance, see `conditions.guide`; 0 is none.
      interval: times between which guidance acts.
      last: derivatives with respect to the parameters pass through so many of the last steps alone (DRaFT-K
        2309.17400); 0 for all. Without derivatives it changes nothing, except that "dpmpp_2m" begins there anew.
      guide: worse model to guide away from (autoguidance), whose parameters are `params["frozen"]["guide"]`; None for
        the negative or empty conditions.
    """

    steps: int = 20
    sampler: str = "heun"
    guidance: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    eta: float = 0.0
    shift: float = 1.0
    last: int = 0
    guide: Denoises | None = None

    def __post_init__(self):
        check_ranges(self, steps="[1, inf)", guidance="[0, inf)", interval="[0, 1]", eta="[0, 1]", shift="(0, inf)")
        check_ranges(self, last="[0, inf)")
        get_sampler(self.sampler, self.eta)
        if len(self.interval) != 2 or self.interval[0] > self.interval[1]:
            raise UserError(f"interval is the earlier and the later time, got {tuple(self.interval)}")
        if not (self.guide is None or isinstance(self.guide, Denoises)):
            raise UserError(f"guide is a model, got {self.guide!r}: name its run by --guide_workdir")


@dataclasses.dataclass(frozen=True)
class LikelihoodOptions:
    """Options of the likelihood.

    Attributes:
      steps: steps of the ODE, four evaluations each and as many derivatives; twice as many show the error.
      trace: "hutchinson", random and unbiased, or "exact", a derivative for each dimension.
      probes: number of Hutchinson's probes.
      start: time at which the ODE begins; any gives a bound. The default is noise of about half a level. Images without
        noise of their own have tighter ones at less, for which however a network must have been trained: where x is
        predicted, it is at least `time_min`.
    """

    steps: int = 32
    trace: str = "hutchinson"
    probes: int = 1
    start: float = LEVEL_TIME

    def __post_init__(self):
        check_ranges(self, steps="[1, inf)", probes="[1, inf)", start="[0, 1)")


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """The diffusion family.

    Attributes:
      net: fields of `Transformer`, and `conditioner`.
      vocab_size: number of token ids.
      dtype: type that networks compute in.
      path: "linear" or "cosine", see `diffusion.paths`.
      prediction: quantity that the network predicts: "x", "eps" or "v".
      loss_space: quantity whose squared error is the loss: "x", "eps", "v", or "min_snr".
      time_distribution: "logit_normal" (of `time_mean`, `time_std`), "uniform", or "steps" (of a sampler of
        `time_steps`), moved towards noise by `time_shift`.
      time_min: earliest time of training and of sampling; keeps v = (z - x) / t bounded where x is predicted (JiT uses
        0.05).
      caption_drop: share of captions replaced by the empty one, which classifier-free guidance needs.
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    path: str = "linear"
    prediction: str = "v"
    loss_space: str = "v"
    time_distribution: str = "logit_normal"
    time_mean: float = 0.0
    time_std: float = 1.0
    time_steps: int = 4
    time_shift: float = 1.0
    time_min: float = 0.0
    caption_drop: float = 0.1

    players: ClassVar[tuple[str, ...]] = ("model",)
    MAY_BE_NEW: ClassVar[tuple[str, ...]] = NEW_FOR_VIDEOS
    reads_given: ClassVar[bool] = True
    fake_kind: ClassVar[str] = "reconstruction"
    SampleOptions = SampleOptions
    LikelihoodOptions = LikelihoodOptions
    inversion_options: ClassVar[Mapping[str, Any]] = {"guidance": 0.0, "eta": 0.0}
    trajectory_options: ClassVar[Mapping[str, Any]] = {"sampler": "ddim", "eta": 1.0}

    def __post_init__(self):
        check_ranges(self, time_mean="(-inf, inf)", time_std="[0, inf)", time_steps="[1, inf)", time_shift="(0, inf)")
        check_ranges(self, time_min=f"[0, {self._last_time:g})", caption_drop="[0, 1]")

    @functools.cached_property
    def network(self) -> Conditioned:
        """Network with its conditioner, without parameters."""
        return build_network(Transformer, self.net, "method.net", self.vocab_size, self.dtype)

    def apply(self, params, z: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
        """See `Denoises.apply`."""
        predicted = self.network.apply({"params": params["model"]}, z, t, cond=cond)
        return get_path(self.path).with_expected(self.prediction, predicted, cond, t)

    def features(self, params, inputs: jax.Array, cond: Cond, t: jax.Array | None) -> list[jax.Array]:
        """See `FeatureExtractor`: the patches after each layer. Raises UserError for noise off the linear path."""
        if t is not None and self.path != "linear":
            raise UserError(
                f"a critic adds noise on the linear path, and this run was trained on {self.path}: set noise=()"
            )
        t = jnp.zeros(len(inputs)) if t is None else t
        _, kept = self.network.apply({"params": params["model"]}, inputs, t, cond=cond, mutable=["intermediates"])
        (layers,) = kept["intermediates"]["network"]["layers"]["tokens"]  # (layers, B, T, h w, D)
        rows = inputs.shape[2] // self.network.network.patch_size
        return list(einops.rearrange(layers, "l b t (h w) d -> l b t h w d", h=rows))

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`."""
        if self.prediction == "x" and self.loss_space in ("v", "eps") and self.time_min <= 0:
            raise UserError(
                f"method.time_min must be positive where x is predicted and {self.loss_space} compared, e.g. 0.05"
            )
        x = to_float(batch["inputs"])
        return {"model": self.network.init(rng, x, jnp.zeros(len(x)), cond=batch["cond"])["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """Squared error of the prediction at one random time per sample; `fake` is the predicted clean image."""
        del player, axis, step
        rng_time, rng_noise, rng_drop = jax.random.split(rng, 3)
        times = self._draw_times(rng_time, len(batch["inputs"]))
        cond = conditions.drop(rng_drop, batch["cond"], self.caption_drop)
        loss, fake = self._loss_of(params, batch["inputs"], rng_noise, times, cond)
        return loss, Output({"loss": loss}, fake=fake)

    def loss_at(self, params, batch: Batch, rng: jax.Array, t: float) -> jax.Array:
        """See `held_out.HasLossAtLevel`: under each item's own caption."""
        inputs = batch["inputs"]
        return self._loss_of(params, inputs, rng, jnp.full(len(inputs), t), batch["cond"])[0]

    def _loss_of(self, params, inputs: jax.Array, rng: jax.Array, t: jax.Array, cond: Cond):
        """The mean loss at each row's time, moved to where the network is trained, and the predicted images."""
        path, x = get_path(self.path), to_float(inputs)
        t = jnp.clip(t, self.time_min, self._last_time)
        eps = jax.random.normal(rng, x.shape)
        z = path.interpolate(x, eps, t)
        predicted = path.convert(self.prediction, self.apply(params, z, t, cond), z, t)
        target = Prediction(x, eps, path.velocity(x, eps, t))
        return squared_error(self.loss_space, path, predicted, target, t).mean(), predicted.x

    def sample(self, params, rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: SampleOptions) -> jax.Array:
        """See `Generates.sample`."""
        return self._denoise(params, self.draw_noise(rng, shape), cond, options, _step_noise(rng, shape))

    def draw_noise(self, rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """See `Invertible.draw_noise`."""
        rng_start, _ = split_each(rng)
        return normal_each(rng_start, shape)

    def generate(self, params, noise: jax.Array, cond: Cond, options: SampleOptions) -> jax.Array:
        """See `Invertible.generate`. Raises UserError where eta is not 0: that draws."""
        if options.eta:
            raise UserError(f"eta={options.eta} draws noise in every step; images of given noise need eta=0")
        return self._denoise(params, noise, cond, options)

    def _denoise(self, params, z: jax.Array, cond: Cond, options: SampleOptions, draw_step=None) -> jax.Array:
        """From noise z to images; `draw_step`: step index -> noise like z, for eta > 0."""
        steps, last = options.steps, options.last
        if not 0 <= last <= steps:
            raise UserError(f"last must lie between 0 and the {steps} steps, got {last}")
        path, times = get_path(self.path), self._times(options)
        run = functools.partial(integrate, options.sampler, path=path, eta=options.eta)
        done = steps - last if last else 0
        if done:
            still = self._predictor(jax.lax.stop_gradient(params), cond, options)
            z = run(still, z=z, times=times[: done + 1], draw_noise=draw_step)
        rest = draw_step and (lambda index: draw_step(done + index))
        return run(self._predictor(params, cond, options), z=z, times=times[done:], draw_noise=rest)

    def sample_trajectory(
        self, params, rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: SampleOptions
    ) -> jax.Array:
        """See `HasTrajectory.sample_trajectory`: (steps + 1, B, T, H, W, C)."""
        _check_trajectory(options)
        predict, noise = self._predictor(params, cond, options), _step_noise(rng, shape)
        return integrate(
            "ddim",
            predict,
            get_path(self.path),
            self.draw_noise(rng, shape),
            self._times(options),
            eta=options.eta,
            draw_noise=noise,
            return_trajectory=True,
        )

    def trajectory_log_prob(self, params, states: jax.Array, cond: Cond, options: SampleOptions) -> jax.Array:
        """See `HasTrajectory.trajectory_log_prob`. The last step draws nothing and is left out: (steps - 1, B)."""
        _check_trajectory(options)
        if options.steps < 2 or options.eta <= 0:
            raise UserError(
                f"a trajectory needs at least 2 steps and eta above 0, got steps={options.steps} and eta={options.eta}"
            )
        predict, times = self._predictor(params, cond, options), self._times(options)

        @jax.checkpoint
        def one(z, to, t, s):
            mean, std = ddim_transition(predict, get_path(self.path), z, t, s, options.eta)
            return sum_except_batch(normal_log_prob((to - mean) / std) - jnp.log(std))

        inputs = states[:-2], states[1:-1], times[:-2], times[1:-1]
        return jax.lax.scan(lambda _, inputs: (None, one(*inputs)), None, inputs)[1]

    def _predictor(self, params, cond: Cond, options: SampleOptions) -> Callable[[jax.Array, jax.Array], Prediction]:
        """The guided network as a function of z and a scalar time."""
        path, scale, guide = get_path(self.path), options.guidance, options.guide
        at = lambda method, params: lambda z, t, cond: method.apply(params, z, jnp.full(len(z), t), cond)
        network = at(self, params)
        if scale and guide is not None:
            if (guide.path, guide.prediction) != (self.path, self.prediction):
                raise UserError(
                    f"a guide must predict {self.prediction} on the {self.path} path, as this run does; it predicts "
                    f"{guide.prediction} on the {guide.path} path"
                )
            network = guides.autoguidance(network, at(guide, params["frozen"]["guide"]), scale, options.interval)
        elif scale:
            network = guides.classifier_free(network, scale, options.interval)
        return lambda z, t: path.convert(self.prediction, network(z, t, cond), z, jnp.full(len(z), t))

    def _draw_times(self, rng: jax.Array, count: int) -> jax.Array:
        mean, std, shift = self.time_mean, self.time_std, self.time_shift
        return draw_times(rng, count, self.time_distribution, mean=mean, std=std, steps=self.time_steps, shift=shift)

    def _times(self, options: SampleOptions) -> jax.Array:
        """Times of the sampler, (steps + 1,); the last step goes from no earlier than the first time to 0."""
        return grid_to_zero(options.steps, shift=options.shift, start=self._last_time, first=self._first_time)

    @property
    def _first_time(self) -> float:
        """Earliest time at which the network is evaluated: where x is predicted, v = (z - x) / t needs noise."""
        return max(self.time_min, X_START if self.prediction == "x" else 0.0)

    @property
    def _last_time(self) -> float:
        """Time of pure noise. At t = 1 x cannot be computed from eps, whose grid starts earlier."""
        return EPS_START if self.prediction == "eps" else 1.0

    def invert(self, params, rng: jax.Array, inputs: jax.Array, cond: Cond, options: SampleOptions) -> jax.Array:
        """See `Invertible.invert`: the probability-flow ODE from the image to noise (Song et al. 2011.13456, 4.3).

        `options.steps` are those of `diffusion.ode`, four evaluations each. Noise of samples that were made with
        guidance is only found with the same guidance. Where the network is not trained at t = 0, the image first gets
        noise of `time_min`, drawn with rng.
        """
        start = self._first_time
        z = get_path(self.path).interpolate(inputs, normal_each(rng, inputs.shape[1:]), jnp.full(len(inputs), start))
        predict = self._predictor(params, cond, options)
        times = ode.times_from(start, self._last_time, options.steps)
        return ode.integrate(lambda z, t: predict(z, t).v, z, times)

    def reconstruct(self, params, rng: jax.Array, batch: Batch) -> jax.Array:
        """See `Reconstructs.reconstruct`: `generate` of the noise that `invert` finds, both without guidance."""
        options = SampleOptions(steps=RECONSTRUCTION_STEPS)
        noise = self.invert(params, rng, to_float(batch["inputs"]), batch["cond"], options)
        return jnp.clip(self.generate(params, noise, batch["cond"], options), -1.0, 1.0)

    def bits_per_dim(self, params, rng: jax.Array, batch: Batch, options: LikelihoodOptions) -> jax.Array:
        """See `HasLikelihood`: an upper bound, without guidance, that lies above the truth but for the ODE's error.

        The model is: noise at the last time, carried to z at time `start` by the probability-flow ODE, and a level
        read from each number of z, P(x | z) = q(z | x) / sum over all levels x' of q(z | x'), where
        q(z | x) = N(alpha x, sigma^2) is the noise of training. By Jensen's inequality, for one z drawn from it,

            log P(x) >= E[log p(z) + log P(x | z) - log q(z | x)] = E[log p(z) - sum over pixels of log sum q(z | x')]

        It is variational dequantisation (1902.00275, eq. 4) with the noise that the network was trained on, in place of
        a density of noiseless images, which has none. log p(z) is `ode.log_prob`.

        Args:
          params: trees of all players.
          rng: one key per image, (B,).
          batch: uint8 images and their conditions.
          options: number of draws, and the ODE's steps.

        Raises:
          UserError: the inputs are not uint8, e.g. latents; or an option out of range.
        """
        if batch["inputs"].dtype != jnp.uint8:
            raise UserError("bits per dimension are of pixels in 256 levels, and this run was trained on latents")
        if not 0 < options.start < self._last_time:
            raise UserError(f"start must lie between 0 and {self._last_time:g}, got {options.start}")
        path, x = get_path(self.path), to_float(batch["inputs"])
        rng_noise, rng_trace = split_each(rng)
        start = max(options.start, self._first_time)
        t = jnp.full(len(x), start)
        z = path.interpolate(x, normal_each(rng_noise, x.shape[1:]), t)
        predict = self._predictor(params, batch["cond"], SampleOptions())
        divergence = ode.get_divergence(options.trace, rng_trace, options.probes, x.shape[1:])
        times = ode.times_from(start, self._last_time, options.steps)
        with smooth_attention():
            log_prob = ode.log_prob(lambda z, t: predict(z, t).v, divergence, z, times)
        return to_bits_per_dim(log_prob - sum_except_batch(log_density_of_levels(path, z, t)), x[0].size)

    def evaluations(self, options: SampleOptions, shape: tuple[int, ...]) -> int:
        """See `Generates.evaluations`. Where guidance acts there are two at each time."""
        del shape
        times = get_sampler(options.sampler).evaluated(np.asarray(self._times(options)))
        return len(times) + int(options.guidance != 0) * int(guides.is_within(times, options.interval).sum())


def _check_trajectory(options: SampleOptions) -> None:
    if options.sampler != "ddim":
        raise UserError(f"steps with a known density are those of sampler ddim, got {options.sampler!r}")
    if options.last:
        raise UserError(f"last={options.last} is for derivatives through the sampler, and a trajectory has none")


def log_density_of_levels(path: Path, z: jax.Array, t: jax.Array) -> jax.Array:
    """Returns the log of the sum over levels x of N(z; alpha(t) x, sigma(t)^2), elementwise. z: (B, ...); t: (B,)."""
    t = expand(t, z)
    alpha, sigma = path.alpha(t), path.sigma(t)

    def add(total, level):
        return jnp.logaddexp(total, normal_log_prob((z - alpha * level) / sigma)), None

    total, _ = jax.lax.scan(add, jnp.full_like(z, -jnp.inf), to_float(jnp.arange(LEVELS, dtype=jnp.uint8)))
    return total - jnp.log(sigma)


def _step_noise(rng: jax.Array, shape: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    """Step index -> noise of each image, (B, *shape); rng: (B,)."""
    _, rng_steps = split_each(rng)
    return lambda index: normal_each(fold_each(rng_steps, index), shape)
