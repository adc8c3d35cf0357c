"""What a run says of pictures that it did not make. A picture's answer depends on (seed, its number) alone."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zoo.config import ability, check_options
from zoo.errors import BadInput
from zoo.method import to_float, to_uint8
from zoo.run import Run
from zoo.training import parallel

MOST_STEPS = 1024  # of an ODE


def bits_per_dim(
    run: Run, pictures: np.ndarray, captions: Sequence[str], seed: int = 0, per_device: int = 16, **options
) -> np.ndarray:
    """Bits per dimension of each picture under its caption, or an upper bound, see `method.Likely`.

    Args:
      pictures: uint8 (N, T, H, W, C); captions: N.
      **options: the family's.

    Returns:
      float32 (N,).

    Raises:
      BadInput: the run's family lacks the ability or the option, or the run was trained on latents.
    """
    function = ability(run.recipe.method, "bits_per_dim")
    check_options(function, options, "option of bits_per_dim")
    if run.recipe.codec:
        raise BadInput("bits per dimension are of pixels, and this run was trained on latents (data.latents)")

    def bits(shared, rows):
        return function(shared["params"], rows["rng"], {k: rows[k] for k in ("pixels", "tokens")}, **options)

    return _each(run, bits, pictures, captions, seed, per_device)


def settled(bits: Callable[[int], np.ndarray], steps: int, tolerance: float) -> tuple[np.ndarray, int, float]:
    """Doubles the steps until no picture changes by more than the tolerance.

    Args:
      bits: steps -> bits per dimension, (N,).
      steps: to begin with.
      tolerance: in bits per dimension.

    Returns:
      The last values, their steps, and the largest change from half as many.

    Raises:
      BadInput: `MOST_STEPS` were not enough.
    """
    values = bits(steps)
    while (steps := 2 * steps) <= MOST_STEPS:
        finer = bits(steps)
        change = float(np.abs(finer - values).max())
        if change <= tolerance:
            return finer, steps, change
        values = finer
    raise BadInput(f"--tolerance {tolerance}: {steps // 2} steps were not enough; allow more")


def reconstruct(
    run: Run, pictures: np.ndarray, captions: Sequence[str], seed: int = 0, per_device: int = 16
) -> np.ndarray:
    """The pictures passed through what the run remembers of them, see `method.Reconstructing`; like `pictures`.

    Those of a run that was trained on latents are encoded and decoded as well.
    """
    function, codec = ability(run.recipe.method, "reconstruct"), run.recipe.codec

    def again(shared, rows):
        pixels = codec.encode(shared["codec"], rows["pixels"]) if codec else rows["pixels"]
        made = function(shared["params"], rows["rng"], {"pixels": pixels, "tokens": rows["tokens"]})
        return to_uint8(codec.decode(shared["codec"], made) if codec else made)

    return _each(run, again, pictures, captions, seed, per_device)


def rate(run: Run, pictures: np.ndarray, captions: Sequence[str], per_device: int = 16) -> np.ndarray:
    """How well each picture fits its caption, see `method.Rating`: float32 (N,). A run on latents encodes it first.

    Raises:
      BadInput: the run's family cannot, or its pictures are of another shape.
    """
    function, shape, codec = ability(run.recipe.method, "rate"), run.recipe.data.shape, run.recipe.codec
    if pictures.shape[1:] != shape:
        raise BadInput(f"the run rates pictures of shape {shape}, not {pictures.shape[1:]}: use one of their data.size")

    def rated(shared, rows):
        pixels = to_float(rows["pixels"])
        return function(shared["params"], codec.encode(shared["codec"], pixels) if codec else pixels, rows["tokens"])

    return _each(run, rated, pictures, captions, 0, per_device)


def _each(run: Run, function: Callable, pictures: np.ndarray, captions: Sequence[str], seed: int, per_device: int):
    """Calls function(shared, rows) on all local devices, see `parallel.in_parts`."""
    rng = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), jnp.arange(len(pictures)))
    rows = {"pixels": pictures, "tokens": run.recipe.tokenizer.encode(list(captions)), "rng": rng}
    codec = run.recipe.codec
    return parallel.in_parts(function, per_device)({"params": run.params, "codec": codec.params if codec else ()}, rows)
