"""Editing of images through their noise, alike for every invertible family.

An image is inverted to its noise, the noise is changed, and an image is generated from it. The changes use nothing of
noise except that it is standard Gaussian.
"""

import functools
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo.families import require
from zoo.method import Invertible, Noise, normal_each, to_float, to_uint8
from zoo.runs.run import Run
from zoo.runs.sampler import sample_options
from zoo.training import parallel

PARALLEL = 1e-4  # sine of an angle below which rounding decides on the arc between two directions
ROUNDS, RATE = 50, 0.1  # of inpainting
DRAWS = 16
TOLERANCE = 0.05  # of known pixels in [-1, 1], before they are put back

# ---- changes of noise; all of them leaf by leaf, example by example


@jax.jit
def interpolate(a: Noise, b: Noise, fractions: jax.Array) -> Noise:
    """Noise between `a` (fraction 0) and `b` (1), along the arc between them (slerp, Shoemake 1985).

    Gaussian noise of many dimensions lies near a sphere, of which straight lines leave the surface. Directions turn at
    an even rate, and norms change evenly. Where the two are parallel there is no one arc, and the line is taken.

    Args:
      a: tree of arrays (B, ...).
      b: like a.
      fractions: (B,) in [0, 1].
    """

    def between(x, y):
        norm_x, norm_y = norms(x), norms(y)
        unit_x, unit_y = x / jnp.maximum(norm_x, 1e-12), y / jnp.maximum(norm_y, 1e-12)
        f = fractions.reshape(norm_x.shape)
        angle = 2 * jnp.arctan2(norms(unit_x - unit_y), norms(unit_x + unit_y))  # which is exact for small ones too
        straight = (jnp.sin(angle) < PARALLEL) | (norm_x * norm_y == 0)
        angle = jnp.where(straight, 1.0, angle)
        norm = (1 - f) * norm_x + f * norm_y
        arc_x = jnp.sin((1 - f) * angle) / jnp.sin(angle) * norm / jnp.maximum(norm_x, 1e-12)
        arc_y = jnp.sin(f * angle) / jnp.sin(angle) * norm / jnp.maximum(norm_y, 1e-12)
        return jnp.where(straight, 1 - f, arc_x) * x + jnp.where(straight, f, arc_y) * y

    return jax.tree.map(between, a, b)


@jax.jit
def vary(noise: Noise, rng: jax.Array, strength: float) -> Noise:
    """sqrt(1 - s^2) noise + s eps, which has the distribution of noise at every strength s in [0, 1].

    Args:
      noise: tree of arrays (B, ...).
      rng: a key for each example, (B,).
      strength: 0 keeps the noise, 1 draws it anew.
    """
    keep = (1 - strength**2) ** 0.5
    return jax.tree.map(lambda x, eps: keep * x + strength * eps, noise, normal_like(noise, rng))


@jax.jit
def normal_like(noise: Noise, rng: jax.Array) -> Noise:
    """New noise of the same shapes: a tree of arrays (B, ...), a key each (B,)."""
    leaves, structure = jax.tree.flatten(noise)
    keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, len(leaves)))(rng), 1, 0)  # (leaves, B)
    return jax.tree.unflatten(structure, [normal_each(key, x.shape[1:]) for x, key in zip(leaves, keys, strict=True)])


def direction(noise: Noise, has: np.ndarray) -> Noise:
    """The mean noise of images with an attribute minus that of those without (White 1609.04468; Glow 1807.03039, 6).

    Args:
      noise: tree of arrays (N, ...).
      has: bool (N,), which have the attribute; some must and some must not.

    Returns:
      A tree of arrays (1, ...).
    """
    has = np.asarray(has, bool)
    return jax.tree.map(lambda x: x[has].mean(0, keepdims=True) - x[~has].mean(0, keepdims=True), noise)


@jax.jit
def move(noise: Noise, direction: Noise, strength: float | np.ndarray) -> Noise:
    """Returns noise + strength * direction, with the norm that the noise had before.

    The norm is the noise's own and not that of Gaussian noise, since inverted images may have another: an image stays
    as typical as it was at any strength.

    Args:
      noise: tree of arrays (B, ...).
      direction: tree of arrays (B, ...) or (1, ...).
      strength: a number, or one for each example (B,).
    """

    def moved(x, d):
        y = x + jnp.reshape(strength, (-1,) + (1,) * (x.ndim - 1)) * d
        return y * (norms(x) / jnp.maximum(norms(y), 1e-12))

    return jax.tree.map(moved, noise, direction)


def repeat_each(tree: Any, count: int) -> Any:
    """Each example `count` times in a row: (B, ...) -> (B * count, ...)."""
    return jax.tree.map(lambda x: np.repeat(np.asarray(x), count, axis=0), tree)


def norms(x: jax.Array) -> jax.Array:
    """Returns the Euclidean norm of each example, (B, 1, ...)."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True))


def keys_of(seed: int, use: str, count: int) -> jax.Array:
    """A key for each of `count` images, of its own for each use, (count,)."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(use.encode()))
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(count))


# ---- from images to noise and back


class Editor:
    """Inverts the images of a run and generates images from noise, on all local devices.

    The result for example i depends on it, its caption and (seed, i) alone, see `parallel.pmap_in_batches`.

    Args:
      run: run whose images are edited.
      per_device: images that a device takes at once.
      seed: seed of the draws of inversion, `vary` and `inpaint`.
      frame_rate: frames/s of videos; None for that of the run.
      **options: sampling options; they override the family's `inversion_options`, which override the config's.

    Raises:
      UserError: the run's family lacks the ability `method.Invertible`, or an option cannot be used.
    """

    def __init__(self, run: Run, per_device: int = 16, seed: int = 0, frame_rate: float | None = None, **options: Any):
        run = run.exact  # inversion undoes generation up to rounding
        self.recipe, codec = run.recipe, run.recipe.codec
        method, shape = require(run.method, Invertible), self.recipe.shape
        self.settings = dict(self.recipe.config.sample) | dict(method.inversion_options) | options
        self.options = sample_options(method, self.settings)
        self.seed, self.per_device, self.params, self.frame_rate = seed, per_device, run.params, frame_rate

        def inverted(params, rows):
            images = rows["inputs"]
            inputs = codec.encode(params["frozen"], images) if codec else to_float(images)
            return method.invert(params, rows["rng"], inputs, rows["cond"], self.options)

        def make(params, noise, cond):
            made = method.generate(params, noise, cond, self.options)
            return codec.decode(params["frozen"], made) if codec else made

        def errors(params, rows):
            made = make(params, inverted(params, rows), rows["cond"])
            return jnp.abs(made - to_float(rows["inputs"])).max(axis=(1, 2, 3, 4))

        generated = lambda params, rows: to_uint8(make(params, rows["noise"], rows["cond"]))
        compiled = functools.partial(parallel.pmap_in_batches, per_device=per_device, exact=True)
        self._make, self._invert = make, compiled(inverted)
        self._errors, self._generate = compiled(errors), compiled(generated)
        self._draw = jax.jit(lambda rng: method.draw_noise(rng, shape))

    def _conditions(self, captions: Sequence[str]) -> dict[str, Any]:
        return self.recipe.conditions(captions, frame_rate=self.frame_rate)

    def invert(self, pixels: np.ndarray, captions: Sequence[str]) -> Noise:
        """Returns the noise of images, uint8 (N, T, H, W, C) with N captions: a tree of arrays (N, ...)."""
        return self._invert(self.params, self._rows(pixels, captions))

    def generate(self, noise: Noise, captions: Sequence[str]) -> np.ndarray:
        """Returns the images of noise (N, ...) and N captions: uint8 (N, T, H, W, C)."""
        return self._generate(self.params, {"noise": noise, "cond": self._conditions(captions)})

    def round_trip(self, pixels: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """Returns the largest error of each image after inversion and generation: (N,), on the scale of [-1, 1]."""
        return self._errors(self.params, self._rows(pixels, captions))

    def draw_noise(self, count: int) -> Noise:
        """Noise for so many images: a tree of arrays (count, ...)."""
        return self._draw(keys_of(self.seed, "draw", count))

    def vary(self, noise: Noise, strength: float) -> Noise:
        """See `vary`."""
        return vary(noise, keys_of(self.seed, "vary", len(jax.tree.leaves(noise)[0])), strength)

    def inpaint(
        self, pixels: np.ndarray, mask: np.ndarray, captions: Sequence[str], rounds: int = ROUNDS
    ) -> np.ndarray:
        """Fills in a part of images so that it fits the rest, which stays unchanged.

        Noise z0 is drawn, and the noise z nearest to it that makes the known pixels x is sought by gradients through
        the generator G (randomize-then-optimize, Bardsley et al. 2014, without noise on the data; cf. D-Flow
        2402.14017):

            min over z of |z - z0|^2 / 2 + |G(z) - x|^2 / (2 tolerance^2) over the known pixels

        The tolerance falls from 1 to `TOLERANCE`, and z0 is the nearest to x among `DRAWS` draws. If G is linear and
        the tolerance goes to 0, G(z) is an exact sample of the unknown given the known, whichever draw is taken;
        otherwise it is an approximation. To invert, vary and put the known pixels back in turn (pseudo-Gibbs, Rezende
        et al. 1401.4082, appendix F) fails for invertible generators: the noise then encodes the misfit too and
        reproduces it.

        Args:
          pixels: uint8 (N, T, H, W, C); values under the mask are ignored.
          mask: bool, (H, W); True for pixels to fill in.
          captions: N texts.
          rounds: gradient steps, each about three times the work of generating.

        Returns:
          uint8 (N, T, H, W, C).
        """
        optimizer = optax.adam(optax.cosine_decay_schedule(RATE, rounds))

        def found(params, rows):
            known = to_float(rows["inputs"])

            def misfit(noise, tolerance):
                wrong = jnp.where(mask[..., None], 0.0, self._make(params, noise, rows["cond"]) - known)
                away = jax.tree.map(lambda x, x0: jnp.sum(jnp.square(x - x0)), noise, rows["noise"])
                return jnp.sum(jnp.square(wrong)) / (2 * tolerance**2) + sum(jax.tree.leaves(away)) / 2

            def step(carry, tolerance):
                noise, state = carry
                updates, state = optimizer.update(jax.grad(misfit)(noise, tolerance), state)
                return (optax.apply_updates(noise, updates), state), None

            start = rows["noise"], optimizer.init(rows["noise"])
            return jax.lax.scan(step, start, jnp.geomspace(1.0, TOLERANCE, rounds))[0][0]

        start = self._nearest_draw(pixels, mask, captions)
        rows = {"inputs": pixels, "cond": self._conditions(captions), "noise": start}
        noise = parallel.pmap_in_batches(found, self.per_device, exact=True)(self.params, rows)
        return np.where(mask[..., None], self.generate(noise, captions), pixels)

    def _nearest_draw(self, pixels: np.ndarray, mask: np.ndarray, captions: Sequence[str]) -> Noise:
        """Returns for each image that of `DRAWS` noises whose image is nearest to the known pixels."""
        drawn = self.draw_noise(DRAWS * len(pixels))
        made = self.generate(drawn, np.repeat(captions, DRAWS).tolist())
        wrong = made.astype(np.float32) - repeat_each(pixels, DRAWS)
        errors = np.square(np.where(mask[..., None], 0, wrong)).reshape(len(pixels), DRAWS, -1).sum(-1)
        best = errors.argmin(axis=1) + DRAWS * np.arange(len(pixels))
        return jax.tree.map(lambda x: np.asarray(x)[best], drawn)

    def _rows(self, pixels: np.ndarray, captions: Sequence[str]) -> dict[str, Any]:
        """Inputs of inversion."""
        return {
            "inputs": pixels,
            "cond": self._conditions(captions),
            "rng": keys_of(self.seed, "invert", len(pixels)),
        }
