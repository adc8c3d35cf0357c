"""A trained family learns a subject or a style from a few images, under a word of its own (DreamBooth 2208.12242).

    change = "full"     all parameters
    change = "lora"     low-rank changes of the kernels that `target_modules` matches (2106.09685)
    change = "cross"    the keys and values of words (Custom Diffusion 2212.04488)
    change = "token"    none but the embedding of the word (textual inversion 2208.01618)

All of them train that embedding too, and none changes layers of time, about which images show nothing. The base is the
run of `config.init`, frozen; what is trained are changes of it, which are zero at first. So that the base keeps what it
can, a second loss is on images that it made itself.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from zoo.adapters import lora
from zoo.adapters.files import Parts
from zoo.adapters.words import is_table, set_word
from zoo.errors import UserError, check_ranges, unknown_name_error
from zoo.method import Axis, Batch, HasFakeSample, Output, ReadsGiven, Upsamples, may_be_new
from zoo.trees import expression, flatten, path_name
from zoo.wrappers.compose import Wrapper, all_but

CHANGES = ("full", "lora", "cross", "token")
OF_WORDS = r"/context_(key|value)/kernel$"


@dataclasses.dataclass(frozen=True)
class Personalized(Wrapper):
    """A family that learns a word.

    Attributes:
      base: family whose trained parameters are `params["frozen"]["base"]`.
      vocab_size: number of token ids.
      dtype: type that networks compute in.
      token_ids: ids of the word.
      start_ids: ids of the noun, whose mean embedding the word starts from; none for a word that keeps its own.
      base_step: steps that the base was trained, for its schedules.
      change: one of `CHANGES`, see the module.
      target_modules: kernels that "lora" changes, by a regular expression over paths that begin with the player.
      rank: rank of the changes of "lora", see `adapters.lora`.
      alpha: scale of them, see there.
      prior_weight: weight of the loss on images that the base made; 0 for none.

    Raises:
      UserError: a value out of range, or an unknown name.
    """

    base: Any
    vocab_size: int
    dtype: Any
    token_ids: Sequence[int]
    start_ids: Sequence[int]
    base_step: int
    change: str = "full"
    target_modules: str = "kernel$"
    rank: int = 8
    alpha: float = 8.0
    prior_weight: float = 1.0

    # `config.init` names the frozen base, in place of parameters to start from.
    INIT_IS_BASE: ClassVar[bool] = True
    FORWARDS: ClassVar[tuple[type, ...]] = all_but(HasFakeSample, ReadsGiven, Upsamples)

    def __post_init__(self):
        if self.change not in CHANGES:
            raise unknown_name_error("method.change", self.change, CHANGES)
        check_ranges(self, rank="[1, inf)", alpha="(0, inf)", prior_weight="[0, inf)", base_step="[0, inf)")
        if not self.token_ids:
            raise UserError("token_ids is empty: a word has at least one id")
        if isinstance(self.base, Upsamples):
            raise UserError(
                "method.base: a stage of a cascade makes nothing of words alone: name the base of the cascade"
            )

    @property
    def READS_PRIOR(self) -> bool:  # noqa: N802, read like a class's attribute
        """Whether it needs batch["prior"], a second batch: images of the class that the base made."""
        return self.prior_weight > 0

    def base_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The base's parameters with the changes, and the frozen networks."""
        frozen, parts = params["frozen"], self.parts(params)

        def changed(path, leaf):
            name = path_name(path)
            if is_table(name):
                leaf = set_word(leaf, self.token_ids, self.start_ids, parts.words.get(name, 0.0))
            return leaf + parts.whole[name] if name in parts.whole else leaf

        whole = jax.tree_util.tree_map_with_path(changed, dict(frozen["base"]))
        return lora.merge(whole, parts.low_rank, self.alpha) | {"frozen": frozen}

    def parts(self, params: Mapping[str, Any]) -> Parts:
        """Returns the changes of all players together; those of low rank count `alpha` times."""
        kinds = (
            {path: change for player in self.players for path, change in params[player].get(kind, {}).items()}
            for kind in Parts._fields
        )
        return Parts(*kinds)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`: changes that are zero. Raises UserError for a base without words or what is to change."""
        rng_base, rng_changes = jax.random.split(rng)
        shapes = flatten(jax.eval_shape(self.base.init, rng_base, batch))
        of_time = set(may_be_new(self.base))  # images show nothing about it
        still = [path for path in shapes if not of_time & set(path.split("/"))]
        tables = [path for path in shapes if is_table(path)]
        if not tables:
            raise UserError(f"a {type(self.base).__name__} reads no words, so that none can stand for a subject")
        changes: dict[str, dict[str, Any]] = {
            "words": {path: jnp.zeros((len(self.token_ids), shapes[path].shape[1])) for path in tables}
        }
        if self.change == "lora":
            kernels = {path: s for path, s in lora.kernels(self.base.init, rng_base, batch).items() if path in still}
            changes["low_rank"] = lora.init(rng_changes, kernels, self.target_modules, self.rank)
        elif self.change != "token":
            chosen = [path for path in still if self.change == "full" or expression(OF_WORDS).search(path)]
            if not chosen:
                raise UserError(f"a {type(self.base).__name__} does not attend to words: set change to full or lora")
            changes["whole"] = {path: jnp.zeros(shapes[path].shape, shapes[path].dtype) for path in chosen}
            changes["words"] = {path: rows for path, rows in changes["words"].items() if path not in chosen}
        own = lambda player, parts: {path: part for path, part in parts.items() if path.startswith(f"{player}/")}
        return {player: {kind: own(player, parts) for kind, parts in changes.items()} for player in self.players}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """See `Method.loss`.

        Metrics: the base's, on the images of the subject; `prior_loss`, and `loss`, the weighted sum of both.
        """
        rng_subject, rng_prior = jax.random.split(rng)
        merged, step = self.base_params(params), step + self.base_step
        loss, output = self.base.loss(player, merged, batch, rng_subject, axis, step)
        metrics = output.metrics | {"subject_loss": loss}
        if self.READS_PRIOR:
            prior_loss, _ = self.base.loss(player, merged, batch["prior"], rng_prior, axis, step)
            loss += self.prior_weight * prior_loss
            metrics |= {"prior_loss": prior_loss, "loss": loss}
        return loss, Output(metrics)
