"""Trained networks, opened: a run's workdir, or the folder of a published CLIP."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zoo.errors import unknown_name_error
from zoo.families import require
from zoo.method import Embeds, Method, Scorer
from zoo.pretrained.clip import Clip
from zoo.runs.recipe import Recipe
from zoo.runs.sampler import Sampler
from zoo.training import parallel
from zoo.trees import tree_hash


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained run.

    Attributes:
      recipe: its config and objects.
      step: step of the checkpoint.
      params: trees of all players, and of the frozen networks under "frozen", on the device.
    """

    recipe: Recipe
    step: int
    params: dict[str, Any]

    @property
    def method(self) -> Method:
        """Family of the run."""
        return self.recipe.method

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its images, (T, H, W, C)."""
        return self.recipe.data.shape

    @functools.cached_property
    def exact(self) -> "Run":
        """The same run with networks that compute in float32, for measures, likelihoods and inversion."""
        return self if self.recipe.config.dtype == "float32" else dataclasses.replace(self, recipe=self.recipe.exact())

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the parameters."""
        return tree_hash(self.params)

    def metadata(self) -> dict[str, Any]:
        """See `Recipe.metadata`."""
        return self.recipe.metadata()

    def conditions(self, captions: Sequence[str], frame_rate: float | None = None) -> dict[str, Any]:
        """See `Recipe.conditions`."""
        return self.recipe.conditions(captions, frame_rate=frame_rate)

    def sampler(self, per_device: int = 16, frames: int | None = None, **options: Any) -> Sampler:
        """See `Recipe.sampler`."""
        return self.recipe.sampler(per_device, frames, **options)

    def guided_by(self, guide: "Run") -> "Run":
        """Returns this run with the parameters of a guide, for a sampler with the option `guide=guide.method`."""
        return self._with_frozen("guide", guide.params)

    def drafted_by(self, draft: Any) -> "Run":
        """Returns this run with the parameters of what guesses its codes, for a sampler with the option `draft`."""
        return self._with_frozen("draft", draft)

    def _with_frozen(self, name: str, params: Any) -> "Run":
        frozen = self.params["frozen"] | {name: parallel.place(params)}
        return dataclasses.replace(self, params=self.params | {"frozen": frozen})

    def sample(
        self,
        captions: Sequence[str],
        seed: int = 0,
        negative: str = "",
        per_device: int = 16,
        frames: int | None = None,
        frame_rate: float | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Makes one image, or video, for each caption.

        Args:
          captions: N texts.
          seed: seed of the images; image i is drawn with (seed, i).
          negative: text from which guidance leads away; "" for the empty caption.
          per_device: images that a device makes at once.
          frames: number of frames; None for that of the data.
          frame_rate: frames/s; None for that of the data.
          **options: sampling options, over the config's.

        Returns:
          uint8 (N, T, H, W, 3).
        """
        sampler = self.sampler(min(per_device, len(captions)), frames, **options)
        return sampler(self.params, self.recipe.conditions(captions, negative, frame_rate, frames), seed)

    def scorer(self) -> Callable[[Mapping[str, Any], jax.Array, Any], jax.Array]:
        """Returns the function (params, images float32 in [-1, 1], conditions) -> scores (B,).

        Raises:
          UserError: the family lacks the ability `Scorer`.
        """
        score = require(self.method, Scorer).score
        return lambda params, images, cond: score(params, self._inputs(params, images), cond)

    def embedder(self) -> Callable[[Mapping[str, Any], jax.Array, jax.Array | None], jax.Array]:
        """Returns the function (params, images float32 in [-1, 1], frames/s (B,) or None) -> vectors (B, D).

        Raises:
          UserError: the family lacks the ability `Embeds`.
        """
        embed = require(self.method, Embeds).embed
        return lambda params, images, frame_rate: embed(params, self._inputs(params, images), frame_rate)

    def _inputs(self, params: Mapping[str, Any], images: jax.Array) -> jax.Array:
        """Images as the family takes them: latents, where it was trained on those."""
        codec = self.recipe.codec
        return codec.encode(params["frozen"], images) if codec else images


@dataclasses.dataclass(frozen=True, eq=False)
class ClipRun:
    """A published CLIP, with the part of `Run` that scores images.

    Attributes:
      clip: the CLIP.
    """

    clip: Clip
    shape = None  # images of any size are resized

    @property
    def exact(self) -> "ClipRun":
        """Returns itself: a published CLIP computes in float32."""
        return self

    @property
    def method(self) -> Clip:
        """The CLIP, whose ability is `Scorer`."""
        return self.clip

    @property
    def params(self) -> Any:
        """Parameters of the CLIP."""
        return self.clip.params

    @functools.cached_property
    def identity(self) -> str:
        """Hash of the parameters."""
        return tree_hash(self.params)

    def metadata(self) -> None:
        """Returns None: a published CLIP is recorded by name and hash, not copied."""
        return None

    def conditions(self, captions: Sequence[str], frame_rate: float | None = None) -> dict[str, Any]:
        """Returns the conditions of captions, (N, ...); a CLIP looks at frames alone, whatever their rate."""
        del frame_rate
        return {"tokens": self.clip.encode(captions)}

    def scorer(self) -> Callable[[Mapping[str, Any], jax.Array, Any], jax.Array]:
        """See `Run.scorer`."""
        return self.clip.score


def pick_params(fields: Mapping[str, Any], ema: str | None) -> dict[str, Any]:
    """Returns the parameters to sample with, of each player.

    Args:
      fields: `params` and `ema` of a state.
      ema: a half-life as in the config, e.g. "500"; "none" for the parameters themselves; None for the longest.
    """
    chosen = chosen_fields(fields, ema)
    return chosen["params"] | {player: average for player, own in chosen["ema"].items() for average in own.values()}


def chosen_fields(fields: Mapping[str, Any], ema: str | None) -> dict[str, Any]:
    """Returns that part of `fields` which `pick_params` reads: of each player its parameters, or one average."""

    def name_of(player: str) -> str | None:
        averages = fields["ema"].get(player)
        if ema == "none" or not averages:
            return None
        name = max(averages, key=float) if ema is None else ema
        if name not in averages:
            raise unknown_name_error("EMA half-life", name, [*averages, "none"])
        return name

    names = {player: name_of(player) for player in {**fields["params"], **fields["ema"]}}
    return {
        "params": {player: fields["params"][player] for player, name in names.items() if name is None},
        "ema": {player: {name: fields["ema"][player][name]} for player, name in names.items() if name is not None},
    }
