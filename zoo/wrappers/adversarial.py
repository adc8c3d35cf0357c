"""A critic as a plug-in for any family whose loss yields a differentiable sample; around a bare generator it is a GAN.

    loss of the critic       real samples against fakes, and captions against wrong ones; R1 and R2
    loss of the base         `base_weight` times its own, plus `weight` times the generator loss

The base keeps its sampling, likelihood and editing, which do not involve the critic; features and scores are the
critic's.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zoo import conditions
from zoo.conditions import Cond
from zoo.diffusion.paths import LINEAR
from zoo.distributions import sum_except_batch
from zoo.errors import UserError, check_ranges, unknown_name_error
from zoo.method import (
    Axis,
    Batch,
    FeatureExtractor,
    HasFakeSample,
    Method,
    Output,
    ReadsGiven,
    Scorer,
    example_frozen,
    to_float,
)
from zoo.methods.augmentations import augment, check_augmentations
from zoo.nets.conditioning import Conditioned, build_network
from zoo.nets.critic import Critic, CriticOutput, ProjectedCritic
from zoo.nets.layers import smooth_attention
from zoo.trees import matches
from zoo.wrappers.compose import Wrapper, all_but

DIFFERENCE = 0.01  # of the finite difference, in images of [-1, 1] (APT 2501.08316, section 3.4)
LARGEST_ADAPTIVE = 1e4  # VQGAN's bounds of its weight


class Objective(NamedTuple):
    """Losses of scores (B,) of real samples and fakes under the same captions, each -> (B,)."""

    critic: Callable[[jax.Array, jax.Array], jax.Array]
    generator: Callable[[jax.Array, jax.Array], jax.Array]


OBJECTIVES = {
    # Each fake against a real one of its caption (R3GAN 2501.05441, eq. 2).
    "relativistic": Objective(
        lambda real, fake: jax.nn.softplus(fake - real), lambda real, fake: jax.nn.softplus(real - fake)
    ),
    "hinge": Objective(lambda real, fake: jax.nn.relu(1 - real) + jax.nn.relu(1 + fake), lambda real, fake: -fake),
    "non_saturating": Objective(
        lambda real, fake: jax.nn.softplus(-real) + jax.nn.softplus(fake), lambda real, fake: jax.nn.softplus(-fake)
    ),
}


@dataclasses.dataclass(frozen=True)
class Adversarial(Wrapper):
    """A family with a critic.

    Attributes:
      base: family that the critic trains.
      critic: fields of `Critic`, or of `ProjectedCritic` if there is a feature network; and `conditioner`.
      vocab_size: number of token ids.
      dtype: type that networks compute in.
      feature_network: frozen network whose features are the critic's input, with the parameters
        `params["frozen"]["feature_network"]`; None for a critic of the samples themselves.
      objective: "relativistic", "hinge" or "non_saturating".
      weight: weight of the critic in the base's loss.
      base_weight: weight of the base's own loss.
      last_layer: parameters of the base's last layer, by a regular expression. If given, the gradient of the critic's
        loss on them is scaled to the norm of that of the base's own loss before `weight` (VQGAN 2012.09841, eq. 7).
      start: step from which the critic enters the base's loss; the critic itself is trained from the first.
      critic_steps: updates of the critic in one step.
      r1: weight of half the squared gradient of scores at real samples (R3GAN, section 2.2).
      r2: weight of the same at fakes.
      penalty: how the gradient penalties are computed: "exact", by automatic differentiation, or "difference", by
        finite differences, for networks without a second derivative (APT 2501.08316, section 3.4).
      mismatch: weight of the loss between real samples under their captions and the same under wrong ones: those of
        `data.negatives` if the data has them, else a neighbour's.
      feature_matching: weight of the distance between the critic's features of a fake and of the real sample that it
        reconstructs (1512.09300, eq. 8).
      noise: lowest and highest level, between 0 and 1, of noise in the critic's input, on which it is conditioned; ()
        for none.
      augmentations: augmentations of the critic's input, see `methods.augmentations`.

    Raises:
      UserError: a value out of range, an unknown name, or a base that yields no differentiable sample.
    """

    base: Any
    critic: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    feature_network: FeatureExtractor | None = None
    objective: str = "relativistic"
    weight: float = 1.0
    base_weight: float = 1.0
    last_layer: str = ""
    start: int = 0
    critic_steps: int = 1
    r1: float = 1.0
    r2: float = 1.0
    penalty: str = "exact"
    mismatch: float = 0.0
    feature_matching: float = 0.0
    noise: tuple[float, ...] = ()
    augmentations: tuple[str, ...] = ()

    DEPENDENCIES: ClassVar[Mapping[str, type]] = {"feature_network": FeatureExtractor}
    FORWARDS: ClassVar[tuple[type, ...]] = all_but(HasFakeSample, FeatureExtractor, ReadsGiven, Scorer)

    @staticmethod
    def needs(fields: Mapping[str, Any]) -> type:
        """Returns the ability that the base needs under these fields."""
        del fields
        return HasFakeSample

    def __post_init__(self):
        if self.objective not in OBJECTIVES:
            raise unknown_name_error("objective", self.objective, OBJECTIVES)
        if self.penalty not in ("exact", "difference"):
            raise unknown_name_error("penalty", self.penalty, ("exact", "difference"))
        weights = ("weight", "base_weight", "r1", "r2", "mismatch", "feature_matching")
        check_ranges(self, critic_steps="[1, inf)", start="[0, inf)", **dict.fromkeys(weights, "[0, inf)"))
        if self.noise and not (len(self.noise) == 2 and 0 <= self.noise[0] <= self.noise[1] <= 1):
            raise UserError(f"method.noise must be () or two levels between 0 and 1, got {tuple(self.noise)}")
        if self.feature_matching and self.base.fake_kind != "reconstruction":
            raise UserError(
                "method.feature_matching compares a fake with the image that it reconstructs; "
                f"{_name(self.base)} draws samples: set it to 0"
            )
        check_augmentations(self.augmentations)

    @functools.cached_property
    def undropped(self) -> Any:
        """Base without condition dropping: the wrapper drops once, so that critic and base get the same conditions."""
        return _undropped(self.base)

    @functools.cached_property
    def network(self) -> Conditioned:
        """The critic's network."""
        kind = ProjectedCritic if self.feature_network else Critic
        return build_network(kind, self.critic, "method.critic", self.vocab_size, self.dtype)

    @property
    def players(self) -> tuple[str, ...]:
        """The critic first, once for each of its updates."""
        return ("critic",) * self.critic_steps + self.base.players

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`. Raises UserError if the settings of the base yield no differentiable sample."""
        rng_base, rng_critic = jax.random.split(rng)
        params = self.base.init(rng_base, batch)
        player = self.base.players[0]
        _, output = jax.eval_shape(
            lambda: self.undropped.loss(player, params, batch, rng, Axis(), jnp.zeros((), jnp.int32))
        )
        if output.fake is None:
            raise UserError(f"method.base: with these settings {_name(self.base)} yields no differentiable sample")
        if self.last_layer:
            matches(params[player], self.last_layer)
        inputs = jax.eval_shape(lambda: self._example_inputs(rng, batch, output.fake.shape))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
        return params | {"critic": self.network.init(rng_critic, *zeros, cond=batch["cond"])["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """See `Method.loss`.

        Metrics of the critic: `loss`; `accuracy`, share of pairs in which the real one scores higher; `pair_accuracy`,
        share in which the right caption does; `r1` and `r2`, before their weights, 0 if the weight is 0. Metrics of the
        base: its own; `loss`, the sum; `base_loss`, its own loss; `generator_loss`; and `adversarial_weight`, the
        factor of the latter.
        """
        rng_base, rng_drop, rng_critic = jax.random.split(rng, 3)
        neighbours = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), dict(batch["cond"]))
        wrong = batch.get("negatives", neighbours)
        batch = dict(batch) | {"cond": conditions.drop(rng_drop, batch["cond"], self.base.caption_drop)}
        if player == "critic":
            return self._critic_loss(params, batch, wrong, rng_base, rng_critic, axis, step)
        return self._base_loss(player, params, batch, rng_base, rng_critic, axis, step)

    def score(self, params, inputs: jax.Array, cond: Cond) -> jax.Array:
        """See `Scorer.score`: the critic's score, at noise level 0 if it is conditioned on noise."""
        return self._apply_critic(params, inputs, cond, self._noise_level(None, len(inputs))).score

    def features(self, params, inputs: jax.Array, cond: Cond, t: jax.Array | None) -> list[jax.Array]:
        """See `FeatureExtractor.features`."""
        return self._apply_critic(params, inputs, cond, self._noise_level(t, len(inputs))).features

    def _noise_level(self, t: jax.Array | None, count: int) -> jax.Array | None:
        """Noise level for the critic: None if it was trained without noise, 0 for clean images."""
        if not self.noise:
            return None
        return jnp.zeros(count) if t is None else t

    def _critic_loss(self, params, batch, wrong, rng_base, rng, axis, step):
        """Real samples against fakes, and captions against wrong ones where these differ."""
        _, output = self.undropped.loss(self.base.players[0], params, batch, rng_base, axis, step)
        real, fake = to_float(batch["inputs"]), jax.lax.stop_gradient(output.fake)
        rng_augment, rng_penalty = jax.random.split(rng)
        (real, fake), t = self._augment_and_noise(rng_augment, real, fake)
        cond = batch["cond"]
        score = lambda x, cond: self._apply_critic(params, x, cond, t).score
        real_score, r1 = self._penalised(score, real, cond, rng_penalty, self.r1)
        fake_score, r2 = self._penalised(score, fake, cond, rng_penalty, self.r2)
        objective = OBJECTIVES[self.objective].critic
        loss = objective(real_score, fake_score).mean() + (self.r1 * r1.mean() + self.r2 * r2.mean()) / 2
        metrics = {"accuracy": (real_score > fake_score).mean(), "r1": r1.mean(), "r2": r2.mean()}
        if self.mismatch:
            wrong_score, is_wrong = score(real, wrong), (wrong["tokens"] != cond["tokens"]).any(axis=-1)
            loss += self.mismatch * (objective(real_score, wrong_score) * is_wrong).mean()
            right = ((real_score > wrong_score) & is_wrong).sum()
            metrics["pair_accuracy"] = right / jnp.maximum(is_wrong.sum(), 1)
        return loss, Output(metrics | {"loss": loss})

    def _base_loss(self, player, params, batch, rng_base, rng, axis, step):
        """The base's own loss and its loss by the critic."""
        real = to_float(batch["inputs"])

        def parts(params):
            own, output = self.undropped.loss(player, params, batch, rng_base, axis, step)
            (shown, fake), t = self._augment_and_noise(rng, real, output.fake)
            apply = lambda x: self._apply_critic(params, x, batch["cond"], t)
            good, made = jax.lax.stop_gradient(apply(shown)), apply(fake)
            generator_loss = OBJECTIVES[self.objective].generator(good.score, made.score).mean()
            if self.feature_matching:
                pairs = zip(good.features, made.features, strict=True)
                generator_loss += self.feature_matching * sum(jnp.abs(a - b).mean() for a, b in pairs)
            return (own, generator_loss), output

        (own, generator_loss), output = parts(params)
        still = jax.lax.stop_gradient(dict(params))  # of the adaptive weight no derivative is taken
        adapt = self._adaptive_weight(lambda own: parts({**still, player: own})[0], still[player], axis)
        weight = jnp.where(step >= self.start, self.weight * adapt, 0.0)
        loss = self.base_weight * own + weight * generator_loss
        metrics = {"loss": loss, "base_loss": own, "generator_loss": generator_loss, "adversarial_weight": weight}
        return loss, Output(dict(output.metrics) | metrics, output.fake)

    def _adaptive_weight(self, parts: Callable, own: Any, axis: Axis) -> jax.Array:
        """|gradient of the base's loss| / |gradient of the critic's| on the last layer; 1 where the base has none."""
        if not self.last_layer:
            return jnp.ones(())
        last = matches(own, self.last_layer)
        pick = jax.tree.map(lambda leaf, is_last: leaf if is_last else None, own, last)
        _, pull = jax.vjp(
            lambda picked: parts(
                jax.tree.map(lambda leaf, new: leaf if new is None else new, own, picked, is_leaf=lambda x: x is None)
            ),
            pick,
        )
        one, zero = jnp.ones(()), jnp.zeros(())
        base, critic = (optax.global_norm(axis.pmean(pull(weights)[0])) for weights in ((one, zero), (zero, one)))
        ratio = jnp.minimum(base / (critic + 1e-4), LARGEST_ADAPTIVE)
        return jnp.where(base > 0, ratio, 1.0)

    def _augment_and_noise(self, rng: jax.Array, real: jax.Array, fake: jax.Array):
        """The critic's view of pairs: augmented alike, with noise of one level; and that level, or None."""
        rng_augment, rng_time, rng_real, rng_fake = jax.random.split(rng, 4)
        augmented = [augment(rng_augment, x, self.augmentations) for x in (real, fake)]
        if not self.noise:
            return augmented, None
        t = jax.random.uniform(rng_time, (len(real),), minval=self.noise[0], maxval=self.noise[1])
        keys = rng_real, rng_real if self.feature_matching else rng_fake  # alike where the two are compared
        noisy = [
            LINEAR.interpolate(x, jax.random.normal(key, x.shape), t) for key, x in zip(keys, augmented, strict=True)
        ]
        return noisy, t

    def _penalised(self, score: Callable, x: jax.Array, cond: Cond, rng: jax.Array, weight: float):
        """Scores, and the squared gradient of each with respect to its sample, 0 without a weight: both (B,)."""
        if not weight:
            return score(x, cond), jnp.zeros(len(x))
        if self.penalty == "difference":
            value = score(x, cond)
            step = DIFFERENCE * jax.random.normal(rng, x.shape)
            return value, jnp.square((score(x + step, cond) - value) / DIFFERENCE)

        def total(x):
            value = score(x, cond)
            return value.sum(), value

        with smooth_attention():
            gradient, value = jax.grad(total, has_aux=True)(x)
        return value, sum_except_batch(jnp.square(gradient))

    def _example_inputs(self, rng: jax.Array, batch: Batch, shape: tuple[int, ...]) -> tuple:
        """Arguments of the critic's network for samples of this shape, of which only the shapes matter."""
        x, frozen = jnp.zeros(shape), example_frozen(self, rng, batch)
        return self._critic_inputs({"frozen": frozen}, x, batch["cond"], self._noise_level(None, len(x)))

    def _apply_critic(self, params, x: jax.Array, cond: Cond, t: jax.Array | None) -> CriticOutput:
        return self.network.apply({"params": params["critic"]}, *self._critic_inputs(params, x, cond, t), cond=cond)

    def _critic_inputs(self, params, x: jax.Array, cond: Cond, t: jax.Array | None) -> tuple:
        """Arguments of the critic's network."""
        if self.feature_network is None:
            return x, t
        return (self.feature_network.features(params["frozen"]["feature_network"], x, cond, t),)


def _undropped(method: Any) -> Any:
    if any(field.name == "caption_drop" for field in dataclasses.fields(method)):
        return dataclasses.replace(method, caption_drop=0.0)
    return dataclasses.replace(method, base=_undropped(method.base))  # a stage's is that of the family within


def _name(method: Method) -> str:
    return type(method).__name__
