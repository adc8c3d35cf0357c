"""Rewards that training can use: the oracle of scenes, a CLIP, or a run that scores images."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.conditions import Cond
from zoo.data.text import Tokenizer
from zoo.errors import UserError
from zoo.method import to_uint8
from zoo.runs.codec import Codec
from zoo.runs.run import ClipRun, Run
from zoo.scenes import oracle


@dataclasses.dataclass(frozen=True, eq=False)
class OracleReward:
    """The share of the caption's claims that are right, halved, and a half more if all are.

    Attributes:
      world: world of the scenes.
      tokenizer: tokenizer of the captions.
      codec: decodes latents; None for images.
      frame_rate: frames/s of videos; None for images.
    """

    world: str
    tokenizer: Tokenizer
    codec: Codec | None = None
    frame_rate: float | None = None
    differentiable = False

    def __call__(self, frozen: Mapping[str, Any], inputs: jax.Array, cond: Cond) -> jax.Array:
        """See `method.Reward`."""

        def score(images, tokens):
            pairs = zip(np.asarray(images), self.tokenizer.decode(tokens), strict=True)
            right = [oracle.claims_right(*pair, self.world, self.frame_rate) for pair in pairs]
            return np.array(right, np.float32) / oracle.ALL_RIGHT

        images = to_uint8(decoded(self.codec, frozen, inputs))
        return jax.pure_callback(score, jax.ShapeDtypeStruct((len(images),), jnp.float32), images, cond["tokens"])


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreReward:
    """The score of a frozen network, whose parameters are `frozen["reward"]`.

    Attributes:
      run: network with the ability `Scorer`.
      tokenizer: tokenizer of the captions.
      codec: decodes latents; None for images.
    """

    run: Run | ClipRun
    tokenizer: Tokenizer
    codec: Codec | None = None
    differentiable = True

    def __call__(self, frozen: Mapping[str, Any], inputs: jax.Array, cond: Cond) -> jax.Array:
        """See `method.Reward`."""
        images = decoded(self.codec, frozen, inputs)
        return self.run.scorer()(frozen["reward"], images, self._its_conditions(cond))

    def _its_conditions(self, cond: Cond) -> Any:
        """Returns the captions as conditions of the scoring network."""
        if isinstance(self.run, Run) and self.run.recipe.tokenizer.to_json() == self.tokenizer.to_json():
            return cond
        tokens = cond["tokens"]
        encode = lambda tokens: self.run.conditions(self.tokenizer.decode(tokens))
        row = jax.tree.map(np.asarray, self.run.conditions([""]))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((len(tokens), *x.shape[1:]), x.dtype), row)
        captions = jax.pure_callback(encode, shapes, tokens)
        return captions | {name: x for name, x in cond.items() if name in row and name != "tokens"}


def build_reward(
    run: Run | ClipRun | None,
    source: str,
    shape: tuple[int, ...],
    frame_rate: float | None,
    tokenizer: Tokenizer,
    codec: Codec | None,
):
    """Returns the reward that `method.reward` names.

    Args:
      run: scoring network; None for the oracle.
      source: data source of the recipe.
      shape: shape of its images, (T, H, W, C).
      frame_rate: frames/s of its videos; None for images.
      tokenizer: its tokenizer.
      codec: its autoencoder, or None.

    Raises:
      UserError: the run cannot score images, or images of another shape; or the oracle cannot read the data.
    """
    if run is None:
        world = oracle.world_of(source)
        if world is None:
            raise UserError(f"method.reward: the oracle reads scenes alone, not {source}")
        return OracleReward(world, tokenizer, codec, frame_rate)
    run.scorer()
    if run.shape not in (None, shape):
        raise UserError(
            f"method.reward: the run scores images of shape {run.shape}, not {shape}; train one with this data.size"
        )
    return ScoreReward(run, tokenizer, codec)


def decoded(codec: Codec | None, frozen: Mapping[str, Any], inputs: jax.Array) -> jax.Array:
    """Returns samples, decoded if they are latents, and clipped to [-1, 1] as in a file."""
    return jnp.clip(codec.decode(frozen, inputs) if codec else inputs, -1.0, 1.0)
