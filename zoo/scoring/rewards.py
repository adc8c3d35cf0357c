"""Rewards that training can use, by name: the judges of `scoring.judge`, in JAX and of one recipe's captions."""

from collections.abc import Callable
from pathlib import Path

import einops
import jax
import jax.numpy as jnp
import numpy as np

from zoo.config import ability
from zoo.errors import BadInput, unknown
from zoo.method import to_uint8
from zoo.pretrained import clip as clips
from zoo.run import Recipe, open_named
from zoo.scoring import oracle
from zoo.scoring.features import SHIPPED
from zoo.scoring.judge import claims_right
from zoo.scoring.resize import differentiable_crop

Reward = Callable[[jax.Array, jax.Array], jax.Array]  # pixels (B, T, H, W, C) in [-1, 1], tokens (B, L) -> (B,)
WHOLE = 2.0  # the highest of `claims_right`


def teach(recipe: Recipe) -> None:
    """Gives a recipe's method its reward, where it learns from one, see `method.Taught`."""
    if hasattr(recipe.method, "taught_by"):
        recipe.method = recipe.method.taught_by(open_reward(recipe))


def open_reward(recipe: Recipe) -> Reward:
    """The reward that a recipe's method names; higher is better.

    "clip" is the cosine of picture and caption by the CLIP that knows scenes, "oracle" the share of the caption's
    claims that are right, halved, and a half more if all is; else it is the workdir of a run that rates pictures.
    Latents are decoded first.

    Raises:
      BadInput: no such run, it cannot rate, or it rates pictures of another size; the oracle is asked of other data
        than scenes, or for a derivative.
    """
    name, codec = recipe.method.reward, recipe.codec
    makers = {"clip": _by_clip, "oracle": _by_oracle}
    if name not in makers and "/" not in name and not Path(name).is_dir():
        raise unknown("method.reward", name, (*makers, "or the workdir of a run that rates pictures"))
    reward = makers.get(name, _by_run)(recipe)
    decode = (lambda z: codec.decode(codec.params, z)) if codec else (lambda pixels: pixels)
    # What a picture's file would not hold counts for nothing.
    return lambda pixels, tokens: reward(jnp.clip(decode(pixels), -1.0, 1.0), tokens)


def _by_oracle(recipe: Recipe) -> Reward:
    world = oracle.world_of(recipe.data.source)
    if world is None:
        raise BadInput(f"method.reward: the oracle knows the truth of scenes alone, not of {recipe.data.source}")
    if recipe.method.needs_gradient:
        raise BadInput('method.reward: the oracle has no derivative; set method.gradient to "policy"')

    def ask(pixels, tokens):
        pairs = zip(np.asarray(pixels), recipe.tokenizer.decode(tokens), strict=True)
        return np.array([claims_right(*pair, world) / WHOLE for pair in pairs], np.float32)

    return lambda pixels, tokens: _on_host(ask, (), jnp.float32, to_uint8(pixels), tokens)


def _by_clip(recipe: Recipe) -> Reward:
    clip = clips.load(SHIPPED)
    network = lambda x, method: clip.model.apply({"params": clip.params}, x, method=method)
    encode = lambda tokens: clip.encode(recipe.tokenizer.decode(tokens))

    def reward(pixels, tokens):
        frames = einops.rearrange((pixels + 1) * 127.5, "b t h w c -> (b t) h w c")
        seen = network(clip.normalise(differentiable_crop(frames, clip.model.image_size)), "pictures")
        seen = einops.reduce(seen, "(b t) d -> b d", "mean", b=len(pixels))
        read = network(_on_host(encode, (clip.model.text_length,), jnp.int32, tokens), "texts")
        norms = jnp.linalg.norm(seen, axis=-1) * jnp.linalg.norm(read, axis=-1)
        return (seen * read).sum(axis=-1) / norms

    return reward


def _by_run(recipe: Recipe) -> Reward:
    run = open_named("method.reward", recipe.method.reward)
    rate = ability(run.recipe.method, "rate")
    shape, codec = run.recipe.data.shape, run.recipe.codec
    if shape != recipe.data.shape:
        raise BadInput(
            f"method.reward: {recipe.method.reward} rates pictures of shape {shape}, not {recipe.data.shape}; train "
            "one of this data.size"
        )
    see = (lambda pixels: codec.encode(codec.params, pixels)) if codec else (lambda pixels: pixels)
    reward = lambda pixels, tokens: rate(run.params, see(pixels), tokens)
    if run.recipe.tokenizer.to_json() == recipe.tokenizer.to_json():
        return reward
    encode = lambda tokens: run.recipe.tokenizer.encode(recipe.tokenizer.decode(tokens))
    length = run.recipe.data.text_length
    return lambda pixels, tokens: reward(pixels, _on_host(encode, (length,), jnp.int32, tokens))


def _on_host(function: Callable, shape: tuple[int, ...], dtype, *arguments: jax.Array) -> jax.Array:
    """Calls a numpy function from a compiled program; each row of the arguments gives a row of `shape`."""
    result = jax.ShapeDtypeStruct((len(arguments[0]), *shape), dtype)
    return jax.pure_callback(function, result, *arguments)
