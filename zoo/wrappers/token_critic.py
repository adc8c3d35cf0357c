"""A critic of codes beside a masked generator: it finds those that were drawn wrong (Token-Critic 2209.04439).

Codes that were drawn at once do not depend on each other. The critic reads all of them together, and the generator
draws those again that do not fit.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from zoo import conditions
from zoo.conditions import Cond
from zoo.decoding import masked as decoding
from zoo.decoding.draws import draw
from zoo.decoding.filling import SamplesByFilling
from zoo.errors import UserError
from zoo.method import Axis, Batch, Fills, HasLikelihood, Output
from zoo.methods import masked
from zoo.nets.conditioning import Conditioned, build_network
from zoo.nets.tokens import MaskedTokens
from zoo.nets.transformer import Transformer
from zoo.wrappers.compose import Wrapper


@dataclasses.dataclass(frozen=True)
class SampleOptions(masked.SampleOptions):
    """Options of sampling: the masked generator's, and erase="critic".

    Then codes of all steps are masked by the critic's score alone, without `order` and `erase_share`; `noise` is added
    to it. The critic costs a pass after each step but the last.
    """

    erase: str = "critic"

    ERASES: ClassVar[tuple[str, ...]] = (*masked.SampleOptions.ERASES, "critic")

    def __post_init__(self):
        if self.erase == "critic" and self.erase_share:
            raise UserError(
                f"erase=critic masks as many codes as the schedule, and erase_share is {self.erase_share:g}"
            )
        super().__post_init__()


@dataclasses.dataclass(frozen=True)
class TokenCritic(SamplesByFilling, Wrapper):
    """A masked generator with a critic of its codes.

    Attributes:
      base: masked generator.
      critic: fields of `Transformer`, over codes in place of pixels, and `conditioner`.
      vocab_size: number of token ids of captions.
      dtype: type that networks compute in.

    Raises:
      UserError: a base that draws codes in a fixed order.
    """

    base: Any
    critic: Mapping[str, Any]
    vocab_size: int
    dtype: Any

    SampleOptions = SampleOptions
    FORWARDS: ClassVar[tuple[type, ...]] = (HasLikelihood,)

    @staticmethod
    def needs(fields: Mapping[str, Any]) -> type:
        """Returns the ability that the base needs."""
        del fields
        return Fills

    def __post_init__(self):
        if not hasattr(self.base, "fill_by"):
            raise UserError(
                f"method.base: a critic masks codes again, which {type(self.base).__name__} cannot: use masked"
            )

    @functools.cached_property
    def network(self) -> Conditioned:
        """The critic's network."""
        built = build_network(Transformer, self.critic, "method.critic", self.vocab_size, self.dtype)
        return Conditioned(MaskedTokens(built.network, self.codes, outputs=1), built.conditioner)

    @property
    def codes(self) -> int:
        """Number of codes."""
        return self.base.codes

    @property
    def players(self) -> tuple[str, ...]:
        """The base's players, and the critic."""
        return (*self.base.players, "critic")

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`."""
        rng_base, rng_critic = jax.random.split(rng)
        critic = self.network.init(rng_critic, batch["inputs"], cond=batch["cond"])["params"]
        return self.base.init(rng_base, batch) | {"critic": critic}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """See `Method.loss`; that of the critic is the cross-entropy of whether a code is real or drawn (eq. 4).

        Metrics of the critic: `accuracy`, share of the codes of which it finds that.
        """
        if player != "critic":
            return self.base.loss(player, params, batch, rng, axis, step)
        rng_mask, rng_draw, rng_drop = jax.random.split(rng, 3)
        ids = batch["inputs"].astype(jnp.int32)
        cond = conditions.drop(rng_drop, batch["cond"], self.base.caption_drop)
        drawn = self.base.draw_masks(rng_mask, ids.shape)
        logits = self.base.logits(params, jnp.where(drawn, self.codes, ids), cond)
        filled = jnp.where(drawn, draw(jax.random.split(rng_draw, len(ids)), logits), ids)
        score = self.score_codes(params, filled, cond)
        loss = jnp.where(drawn, jax.nn.softplus(score), jax.nn.softplus(-score)).mean()
        return loss, Output({"loss": loss, "accuracy": ((score > 0) != drawn).mean()})

    def score_codes(self, params, ids: jax.Array, cond: Cond) -> jax.Array:
        """The logit of each code's being real, float32 (B, T, h, w, c)."""
        return self.network.apply({"params": params["critic"]}, ids, cond=cond)[..., 0]

    def fill(
        self, params, rng: jax.Array, inputs: jax.Array, known: jax.Array, cond: Cond, options: SampleOptions
    ) -> jax.Array:
        """See `Fills.fill`."""
        if options.erase != "critic":
            return self.base.fill(params, rng, inputs, known, cond, options)
        own = {name: cond[name] for name in conditions.names(cond)}

        def score(step: decoding.Step) -> jax.Array:
            of_codes = lambda: self.score_codes(params, step.filled.reshape(inputs.shape), own).reshape(step.new.shape)
            score = jax.lax.cond(step.done < 1, of_codes, lambda: jnp.zeros(step.new.shape))  # the last masks none
            return score + options.noise * (1 - step.done) * decoding.gumbel(step)

        return self.base.fill_by(decoding.mask_lowest(score), params, rng, inputs, known, cond, options)

    def evaluations(self, options: SampleOptions, shape: tuple[int, ...]) -> int:
        """See `Generates.evaluations`: the critic's passes count too, one after each step but the last."""
        own = options.steps - 1 if options.erase == "critic" else 0
        return self.base.evaluations(options, shape) + own
