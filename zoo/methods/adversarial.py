"""A critic as a plug-in: it teaches any family that shows a picture in its loss, and alone it makes a GAN.

    loss of the critic       how well it tells real pictures from fakes, and captions from wrong ones; R1 and R2
    loss of the base         its own, plus `weight` times how badly it fools the critic

The wrapped family keeps all its abilities: sampling, likelihood and editing go past the critic.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zoo.augment import augment, check_augmentations
from zoo.config import ability, build, build_family, families_with
from zoo.data.text import drop_captions
from zoo.diffusion.paths import get_path
from zoo.distributions import sum_each
from zoo.errors import BadInput, unknown
from zoo.method import Axis, Batch, Method, Output, to_float
from zoo.nets.critic import Critic, Judgement, ProjectedCritic
from zoo.trees import matches

DIFFERENCE = 0.01  # of the finite difference, in pictures of [-1, 1] (APT 2501.08316, section 3.4)
LARGEST_ADAPTIVE = 1e4  # VQGAN's bounds of its weight


class Objective(NamedTuple):
    """Losses of scores (B,) of real pictures and fakes under the same captions, each -> (B,)."""

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
class Adversarial:
    """A family with a critic.

    Attributes:
      base: `config.method` of the family: its `name` and its fields.
      critic: fields of `Critic`; of `ProjectedCritic` where there is a trunk.
      vocab_size, dtype: of the text, and of the computation.
      trunk: workdir of a run, which stays as it is, through whose network the critic looks; "" for none.
      objective: "relativistic", "hinge" or "non_saturating".
      weight: of the critic in the base's loss.
      base_weight: of the base's own loss.
      adaptive_on: parameters of the base's last layer, by a regular expression; where given, the critic's gradient on
        them is made as long as that of the base's own loss, and `weight` multiplies that (VQGAN 2012.09841, eq. 7).
      start: step at which the base begins to feel the critic, which learns from the first.
      critic_steps: of the critic in one step.
      r1, r2: weights of half the squared gradient of scores at real pictures and at fakes (R3GAN, section 2.2).
      penalty: how they are had: "exact", or "difference", by a small random step, for networks that have no second
        derivative (APT 2501.08316, section 3.4).
      mismatch: weight of telling real pictures under their captions from the same under wrong ones: those of
        `data.negatives` where the data gives them, else a neighbour's.
      feature_matching: weight of the distance of what the critic sees in fakes to what it sees in the pictures that
        they are of (1512.09300, eq. 8).
      noise: lowest and highest level of noise, between 0 and 1, in what the critic is shown and told of; () for none.
      augmentations: what is done to all that the critic is shown, see `zoo.augment`.
    """

    base: Mapping[str, Any]
    critic: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    trunk: str = ""
    objective: str = "relativistic"
    weight: float = 1.0
    base_weight: float = 1.0
    adaptive_on: str = ""
    start: int = 0
    critic_steps: int = 1
    r1: float = 1.0
    r2: float = 1.0
    penalty: str = "exact"
    mismatch: float = 0.0
    feature_matching: float = 0.0
    noise: tuple[float, ...] = ()
    augmentations: tuple[str, ...] = ()

    frozen: Mapping[str, tuple[Method, Any]] = dataclasses.field(default_factory=dict, init=False)

    @property
    def needs_runs(self) -> dict[str, str]:
        """See `Leaning`."""
        return {"method.trunk": self.trunk} if self.trunk else {}

    def given(self, frozen: Mapping[str, tuple[Method, Any]]) -> "Adversarial":
        """See `Leaning`."""
        leaning = copy.copy(self)
        leaning.__dict__["frozen"] = frozen
        return leaning

    @functools.cached_property
    def wrapped(self) -> Method:
        """The family, which drops no captions: critic and base must hear the same."""
        return dataclasses.replace(self._base, caption_drop=0.0)

    @functools.cached_property
    def _base(self) -> Method:
        base = build_family(self.base, "method.base", self.vocab_size, self.dtype)
        if not hasattr(type(base), "fake_of"):  # of its own, not of what it wraps
            able = ", ".join(families_with("fake_of"))
            raise BadInput(f"method.base: {self.base['name']} shows a critic no picture; these do: {able}")
        return base

    @functools.cached_property
    def network(self) -> Critic | ProjectedCritic:
        kind = ProjectedCritic if self.trunk else Critic
        return build(kind, self.critic, "method.critic", vocab_size=self.vocab_size, dtype=self.dtype)

    @property
    def players(self) -> tuple[str, ...]:
        """The critic first, so often as it steps."""
        return ("critic",) * self.critic_steps + self.wrapped.players

    def __getattr__(self, name: str):
        """The base's abilities."""
        if name.startswith("_") or name in ("wrapped", "network"):  # whose own errors would lead here for ever
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        self._check()
        rng_base, rng_critic = jax.random.split(rng)
        params = self.wrapped.init(rng_base, batch)
        player = self.wrapped.players[0]
        _, output = jax.eval_shape(
            lambda: self.wrapped.loss(player, params, batch, rng, Axis(), jnp.zeros((), jnp.int32))
        )
        if output.fake is None:
            raise BadInput(f"method.base: with these settings {self.base['name']} shows a critic no picture")
        if self.adaptive_on:
            matches(params[player], self.adaptive_on)
        x = jnp.zeros(output.fake.shape)
        t = jnp.zeros(len(x)) if self.noise else None
        return params | {"critic": self.network.init(rng_critic, *self._looks(x, batch["tokens"], t))["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """See `Method.loss`.

        Metrics of the critic: `accuracy`, how often the real one of a pair is preferred; `told_apart`, how often the
        right caption is; `r1` and `r2`, before their weights, 0 where these are. Those of the base: its own,
        `fooling`, its loss by the critic, and that one's `share`, which is `weight` times what adapts it.
        """
        rng_base, rng_drop, rng_critic = jax.random.split(rng, 3)
        wrong = batch.get("negatives", jnp.roll(batch["tokens"], 1, axis=0))
        tokens = drop_captions(rng_drop, batch["tokens"], self._base.caption_drop)
        batch = dict(batch) | {"tokens": tokens}
        if player == "critic":
            return self._critic_loss(params, batch, wrong, rng_base, rng_critic, axis, step)
        return self._base_loss(player, params, batch, rng_base, rng_critic, axis, step)

    def rate(self, params, pixels: jax.Array, tokens: jax.Array) -> jax.Array:
        """See `Rating.rate`: the critic's score; of pictures without noise where it knows noise."""
        return self._judge(params, pixels, tokens, self._told(None, len(pixels))).score

    def _told(self, t: jax.Array | None, count: int) -> jax.Array | None:
        """t as the critic is told it: not at all where it was never, and 0 where there is no noise."""
        if not self.noise:
            return None
        return jnp.zeros(count) if t is None else t

    def _critic_loss(self, params, batch, wrong, rng_base, rng, axis, step):
        """Real pictures against fakes and wrong captions, where these differ from the right ones."""
        _, output = self.wrapped.loss(self.wrapped.players[0], params, batch, rng_base, axis, step)
        real, fake = to_float(batch["pixels"]), jax.lax.stop_gradient(output.fake)
        rng_show, rng_penalty = jax.random.split(rng)
        (real, fake), t = self._show(rng_show, real, fake)
        judge = lambda x, tokens: self._judge(params, x, tokens, t).score
        real_score, r1 = self._penalised(judge, real, batch["tokens"], rng_penalty, self.r1)
        fake_score, r2 = self._penalised(judge, fake, batch["tokens"], rng_penalty, self.r2)
        objective = self._objective.critic
        loss = objective(real_score, fake_score).mean() + (self.r1 * r1.mean() + self.r2 * r2.mean()) / 2
        metrics = {"accuracy": (real_score > fake_score).mean(), "r1": r1.mean(), "r2": r2.mean()}
        if self.mismatch:
            wrong_score, is_wrong = judge(real, wrong), (wrong != batch["tokens"]).any(axis=-1)
            loss += self.mismatch * (objective(real_score, wrong_score) * is_wrong).mean()
            metrics["told_apart"] = ((real_score > wrong_score) & is_wrong).sum() / jnp.maximum(is_wrong.sum(), 1)
        return loss, Output(metrics | {"loss": loss})

    def _base_loss(self, player, params, batch, rng_base, rng, axis, step):
        """The base's own loss and the critic's view of its fake."""
        real = to_float(batch["pixels"])

        def parts(params):
            own, output = self.wrapped.loss(player, params, batch, rng_base, axis, step)
            (shown, fake), t = self._show(rng, real, output.fake)
            judge = lambda x: self._judge(params, x, batch["tokens"], t)
            good, made = jax.lax.stop_gradient(judge(shown)), judge(fake)
            fooling = self._objective.generator(good.score, made.score).mean()
            if self.feature_matching:
                pairs = zip(good.features, made.features, strict=True)
                fooling += self.feature_matching * sum(jnp.abs(a - b).mean() for a, b in pairs)
            return (own, fooling), output

        (own, fooling), output = parts(params)
        share = self.weight * self._adapt(lambda own: parts({**params, player: own})[0], params[player], axis)
        share = jnp.where(step >= self.start, share, 0.0)
        loss = self.base_weight * own + share * fooling
        metrics = dict(output.metrics) | {"loss": loss, "base_loss": own, "fooling": fooling, "share": share}
        return loss, Output(metrics, output.fake)

    def _adapt(self, parts: Callable, own: Any, axis: Axis) -> jax.Array:
        """|gradient of the base's loss| / |gradient of the critic's| on the last layer; 1 where the base has none."""
        if not self.adaptive_on:
            return jnp.ones(())
        last = matches(own, self.adaptive_on)
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
        return jax.lax.stop_gradient(jnp.where(base > 0, ratio, 1.0))

    def _show(self, rng: jax.Array, real: jax.Array, fake: jax.Array):
        """What the critic sees of pairs: augmented alike, with noise of one level; and that level, or None."""
        rng_augment, rng_time, rng_real, rng_fake = jax.random.split(rng, 4)
        shown = [augment(rng_augment, x, self.augmentations) for x in (real, fake)]
        if not self.noise:
            return shown, None
        t = jax.random.uniform(rng_time, (len(real),), minval=self.noise[0], maxval=self.noise[1])
        mix = get_path("linear").mix
        keys = rng_real, rng_real if self.feature_matching else rng_fake  # alike where the two are compared
        return [mix(x, jax.random.normal(key, x.shape), t) for key, x in zip(keys, shown, strict=True)], t

    def _penalised(self, judge: Callable, x: jax.Array, tokens: jax.Array, rng: jax.Array, weight: float):
        """Scores, and the squared gradient of each with respect to its picture, 0 where it has no weight: both (B,)."""
        if not weight:
            return judge(x, tokens), jnp.zeros(len(x))
        if self.penalty == "difference":
            score = judge(x, tokens)
            step = DIFFERENCE * jax.random.normal(rng, x.shape)
            return score, jnp.square((judge(x + step, tokens) - score) / DIFFERENCE)

        def total(x):
            score = judge(x, tokens)
            return score.sum(), score

        gradient, score = jax.grad(total, has_aux=True)(x)
        return score, sum_each(jnp.square(gradient))

    def _judge(self, params, x: jax.Array, tokens: jax.Array, t: jax.Array | None) -> Judgement:
        return self.network.apply({"params": params["critic"]}, *self._looks(x, tokens, t))

    def _looks(self, x: jax.Array, tokens: jax.Array, t: jax.Array | None) -> tuple:
        """What the critic's network is told of pictures."""
        if not self.trunk:
            return x, tokens, t
        trunk, params = self.frozen["method.trunk"]
        return ability(trunk, "see")(params, x, tokens, t), tokens

    def see(self, params, pixels: jax.Array, tokens: jax.Array, t: jax.Array | None) -> list[jax.Array]:
        """See `Seeing.see`: the critic's features."""
        return self._judge(params, pixels, tokens, self._told(t, len(pixels))).features

    @property
    def _objective(self) -> Objective:
        return OBJECTIVES[self.objective]

    def _check(self) -> None:
        """Raises BadInput on a setting that cannot be."""
        if self.objective not in OBJECTIVES:
            raise unknown("objective", self.objective, OBJECTIVES)
        if self.penalty not in ("exact", "difference"):
            raise unknown("penalty", self.penalty, ("exact", "difference"))
        if self.critic_steps < 1:
            raise BadInput(f"method.critic_steps must be at least 1, got {self.critic_steps}")
        if self.noise and not (len(self.noise) == 2 and 0 <= self.noise[0] <= self.noise[1] <= 1):
            raise BadInput(f"method.noise must be () or two levels between 0 and 1, got {tuple(self.noise)}")
        if self.feature_matching and self._base.fake_of != "picture":
            raise BadInput(
                f"method.feature_matching compares a fake with the picture it is of; {self.base['name']} makes fresh "
                "ones: set it to 0"
            )
        check_augmentations(self.augmentations)
