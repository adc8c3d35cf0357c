"""Differentiable changes of images, so that a critic cannot learn its images by heart (DiffAugment 2006.10738)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from zoo.errors import unknown_name_error

FARTHEST = 1 / 8  # of the side
HOLE = 1 / 2  # of the side


def translate(rng: jax.Array, x: jax.Array) -> jax.Array:
    """Moves a video (T, H, W, C) by up to an eighth of its sides; what comes in is like the edge."""
    for axis, key in zip((1, 2), jax.random.split(rng), strict=True):
        side = x.shape[axis]
        most = int(side * FARTHEST)
        shift = jax.random.randint(key, (), -most, most + 1)
        x = jnp.take(x, jnp.clip(jnp.arange(side) + shift, 0, side - 1), axis=axis)
    return x


def cut_out(rng: jax.Array, x: jax.Array) -> jax.Array:
    """Makes a square of half the sides grey, which may lie partly outside."""

    def inside(key, side):
        centre = jax.random.randint(key, (), 0, side + 1)
        return jnp.abs(jnp.arange(side) + 0.5 - centre) < side * HOLE / 2

    rows, columns = (inside(key, side) for key, side in zip(jax.random.split(rng), x.shape[1:3], strict=True))
    return jnp.where((rows[:, None] & columns[None, :])[None, ..., None], 0.0, x)


def recolour(rng: jax.Array, x: jax.Array) -> jax.Array:
    """Changes brightness, saturation and contrast."""
    brightness, saturation, contrast = jax.random.uniform(rng, (3,))
    x = x + brightness - 0.5
    grey = x.mean(axis=-1, keepdims=True)
    x = grey + (x - grey) * 2 * saturation
    mean = x.mean()
    return mean + (x - mean) * (0.5 + contrast)


AUGMENTATIONS = {"colour": recolour, "translation": translate, "cutout": cut_out}


def check_augmentations(names: Sequence[str]) -> None:
    """Raises UserError on a name that is none."""
    for name in names:
        if name not in AUGMENTATIONS:
            raise unknown_name_error("augmentation", name, AUGMENTATIONS)


def augment(rng: jax.Array, x: jax.Array, names: Sequence[str]) -> jax.Array:
    """Each video of x, (B, T, H, W, C) in [-1, 1], changed in its own way, all its frames alike.

    Args:
      rng: with the same key, other images are changed in the same ways.
      x: videos.
      names: of "colour", "translation" and "cutout"; captions that name colours or places may stop being true.
    """
    keys = jax.vmap(lambda key: jax.random.split(key, max(len(names), 1)))(jax.random.split(rng, len(x)))
    for i, name in enumerate(names):
        x = jax.vmap(AUGMENTATIONS[name])(keys[:, i], x)
    return x
