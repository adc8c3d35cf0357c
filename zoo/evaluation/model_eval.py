"""Evaluates a run, in float32, on images that it did not make. Draws for image i depend on (seed, i) alone."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zoo.config import build_options
from zoo.errors import UserError
from zoo.families import require
from zoo.method import HasLikelihood, Reconstructs, Tokenizes, to_float, to_uint8
from zoo.runs.run import ClipRun, Run
from zoo.training import parallel

MOST_STEPS = 1024  # of an ODE


def bits_per_dim(
    run: Run,
    images: np.ndarray,
    captions: Sequence[str],
    seed: int = 0,
    per_device: int = 16,
    frame_rate: float | None = None,
    **options,
) -> np.ndarray:
    """Computes bits per dimension of each image under its caption, or an upper bound, see `method.HasLikelihood`.

    Those of a run on codes are bits per code; with `data.codes=pixels` the two are the same.

    Args:
      run: run with that ability.
      images: uint8 (N, T, H, W, C).
      captions: N.
      seed: seed of the draws.
      per_device: images that a device takes at once.
      frame_rate: frames/s of videos; None for that of the run.
      **options: values of the family's `LikelihoodOptions`.

    Returns:
      float32 (N,).

    Raises:
      UserError: the run's family lacks the ability or the option, or the run was trained on latents.
    """
    run = run.exact
    method = require(run.method, HasLikelihood)
    what = f"likelihood option of {type(method).__name__}"
    built = build_options(method.LikelihoodOptions, options, what)
    codec = run.recipe.codec
    if codec and not codec.codes:
        raise UserError("bits per dimension are of pixels, and this run was trained on latents (data.latents)")

    def bits(params, rows):
        inputs = codec.encode(params["frozen"], rows["inputs"]) if codec else rows["inputs"]
        return method.bits_per_dim(params, rows["rng"], {"inputs": inputs, "cond": rows["cond"]}, built)

    return _each(run, bits, images, captions, seed, per_device, frame_rate)


BITS = {"bits_per_dim": "bits per dimension", "bits_per_token": "bits per token"}


def dimension(run: Run) -> str:
    """Returns the key in `BITS` of what `bits_per_dim` computes: tokens where a run draws the codes of a tokenizer."""
    return "bits_per_token" if run.recipe.data.of_tokens else "bits_per_dim"


def codes(
    run: Run,
    images: np.ndarray,
    captions: Sequence[str],
    per_device: int = 16,
    frame_rate: float | None = None,
) -> np.ndarray:
    """Returns the codes of images under a tokenizer, int32 (N, t, h, w, c).

    Args:
      run: tokenizer with codes.
      images: uint8 (N, T, H, W, C).
      captions: N texts.
      per_device: images that a device takes at once.
      frame_rate: frames/s of videos; None for that of the run.

    Raises:
      UserError: the run's family lacks the ability `Tokenizes`, or it makes vectors without codes.
    """
    run = run.exact
    method = require(run.method, Tokenizes)
    if method.codes is None:
        raise UserError("needs a tokenizer with codes, and this one makes vectors")
    made = lambda params, rows: method.to_codes(params, to_float(rows["inputs"]))
    return _each(run, made, images, captions, 0, per_device, frame_rate)


def settled(bits: Callable[[int], np.ndarray], steps: int, tolerance: float) -> tuple[np.ndarray, int, float]:
    """Doubles the steps until no image changes by more than the tolerance.

    Args:
      bits: steps -> bits per dimension, (N,).
      steps: steps at first.
      tolerance: in bits per dimension.

    Returns:
      The last values, their steps, and the largest change from half as many.

    Raises:
      UserError: `MOST_STEPS` were not enough.
    """
    values = bits(steps)
    while (steps := 2 * steps) <= MOST_STEPS:
        finer = bits(steps)
        change = float(np.abs(finer - values).max())
        if change <= tolerance:
            return finer, steps, change
        values = finer
    raise UserError(f"--tolerance {tolerance}: {steps // 2} steps were not enough; give a larger tolerance")


def reconstruct(
    run: Run,
    images: np.ndarray,
    captions: Sequence[str],
    seed: int = 0,
    per_device: int = 16,
    frame_rate: float | None = None,
) -> np.ndarray:
    """Returns the images encoded and decoded by a run, like `images`, see `method.Reconstructs`.

    Those of a run on latents are encoded to latents and decoded from them as well.
    """
    run = run.exact
    method, codec = require(run.method, Reconstructs), run.recipe.codec

    def again(params, rows):
        inputs = codec.encode(params["frozen"], rows["inputs"]) if codec else rows["inputs"]
        made = method.reconstruct(params, rows["rng"], {"inputs": inputs, "cond": rows["cond"]})
        return to_uint8(codec.decode(params["frozen"], made) if codec else made)

    return _each(run, again, images, captions, seed, per_device, frame_rate)


def score(
    run: Run | ClipRun,
    images: np.ndarray,
    captions: Sequence[str],
    per_device: int = 16,
    frame_rate: float | None = None,
) -> np.ndarray:
    """Scores how well each image fits its caption, see `method.Scorer`: float32 (N,).

    Args:
      run: network with the ability `Scorer`.
      images: uint8 (N, T, H, W, C).
      captions: N texts.
      per_device: images that a device scores at once.
      frame_rate: frames/s of videos; None for that of the run.

    Raises:
      UserError: the run lacks the ability, or its images have another shape.
    """
    run = run.exact
    scorer = run.scorer()
    if run.shape not in (None, images.shape[1:]):
        raise UserError(
            f"the run scores images of shape {run.shape}, not {images.shape[1:]}: use one of their data.size"
        )
    scored = lambda params, rows: scorer(params, to_float(rows["inputs"]), rows["cond"])
    return _each(run, scored, images, captions, 0, per_device, frame_rate)


def _each(
    run: Run | ClipRun,
    function: Callable,
    images: np.ndarray,
    captions: Sequence[str],
    seed: int,
    per_device: int,
    frame_rate: float | None = None,
) -> np.ndarray:
    """Calls function(params, rows) on all local devices, exactly."""
    rng = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(len(images)))
    rows = {"inputs": images, "cond": run.conditions(captions, frame_rate), "rng": rng}
    return parallel.pmap_in_batches(function, per_device, exact=True)(run.params, rows)
