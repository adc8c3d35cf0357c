"""Pillow's resizing in JAX, bit for bit, since scores depend on how images are made smaller.

Pillow resizes uint8 images in integers: weights in units of 2^-22, first along rows, rounded and clipped to uint8,
then along columns. Two integer matrix products do the same on any device; float32 does not: its sums round otherwise.
Pillow 13 goes along columns first where the height shrinks by more than twice the pixels that the width does, which
rounds and clips a little otherwise; this is the order of all versions before, with which others' scores were made.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError, unknown_name_error

_BITS = 22  # of a weight, behind the point


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution with a = -1/2, written with the roundings of Pillow."""
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(float)


FILTERS: dict[str, tuple[Callable, float]] = {  # each with its support
    "bilinear": (_triangle, 1),
    "bicubic": (_cubic, 2),
    "lanczos": (_lanczos, 3),
    "box": (_box, 0.5),
}


def weights(old: int, new: int, method: str = "bicubic") -> np.ndarray:
    """The matrix that resizes a line of `old` pixels to `new` ones, float64 (new, old); rows sum to 1.

    A filter grows with the step between new pixels where that is above 1, which is what keeps smaller images from
    aliasing, and is cut at the edges.

    Args:
      old: pixels before.
      new: pixels after.
      method: a key of `FILTERS`.

    Raises:
      UserError: a length is not positive, or `method` is not one of `FILTERS`.
    """
    if method not in FILTERS:
        raise unknown_name_error("resizing method", method, FILTERS)
    if min(old, new) < 1:
        raise UserError(f"cannot resize {old} pixels to {new}: give sizes of at least 1")
    function, support = FILTERS[method]
    step = old / new
    scale = max(step, 1.0)
    centres = (np.arange(new)[:, None] + 0.5) * step
    first = np.maximum((centres - support * scale + 0.5).astype(int), 0)
    last = np.minimum((centres + support * scale + 0.5).astype(int), old)
    pixels = np.arange(old)
    w = function((pixels - centres + 0.5) * (1.0 / scale)) * ((pixels >= first) & (pixels < last))  # (new, old)
    return w / w.sum(axis=1, keepdims=True)


def resize(pixels: jax.Array, height: int, width: int, method: str = "bicubic") -> jax.Array:
    """Resizes as `PIL.Image.resize` does, bit for bit: uint8 (N, H, W, C) -> uint8 (N, height, width, C).

    Args:
      pixels: uint8 (N, H, W, C).
      height: rows of the result.
      width: columns of the result.
      method: a key of `FILTERS`; all are antialiased where the image becomes smaller.

    Raises:
      UserError: pixels are not uint8, or as `weights`.
    """
    rows, columns = pixels.shape[1:3]
    return _apply(pixels, _integers(rows, height, method), _integers(columns, width, method))


def shortest_side_and_crop(pixels: jax.Array, size: int) -> jax.Array:
    """Resizes the shortest side to `size` (bicubic), then crops to the middle square: the input of a CLIP.

    As Hugging Face's CLIPImageProcessor: the longer side and the crop's corner are rounded down. OpenAI's own
    preprocessing rounds that corner to the nearest pixel, which may differ by one.

    Args:
      pixels: uint8 (N, H, W, C).
      size: side of the result.

    Returns:
      uint8 (N, size, size, C).

    Raises:
      UserError: as `resize`.
    """
    return _apply(pixels, *_squares(pixels.shape[1:3], size, _integers))


def differentiable_crop(pixels: jax.Array, size: int) -> jax.Array:
    """`shortest_side_and_crop` without its roundings and clips: float32 (N, H, W, C) -> float32 (N, size, size, C)."""
    vertical, horizontal = (jnp.asarray(w, jnp.float32) for w in _squares(pixels.shape[1:3], size, weights))
    return jnp.einsum("n h w c, v h, u w -> n v u c", pixels, vertical, horizontal)


def _squares(sides: Sequence[int], size: int, matrix: Callable) -> list[np.ndarray]:
    """For each side the matrix that resizes it and keeps the middle: (size, side). What is cropped is never made."""
    squares = []
    for side in sides:
        new = int(size * side / min(sides))
        corner = (new - size) // 2
        squares.append(matrix(side, new, "bicubic")[corner : corner + size])
    return squares


@functools.lru_cache(maxsize=64)
def _integers(old: int, new: int, method: str) -> np.ndarray:
    """`weights` in units of 2^-22, halves rounded away from 0: int32 (new, old)."""
    w = weights(old, new, method) * 2**_BITS
    return np.trunc(w + np.copysign(0.5, w)).astype(np.int32)


def _apply(pixels: jax.Array, vertical: np.ndarray, horizontal: np.ndarray) -> jax.Array:
    if pixels.dtype != jnp.uint8:
        raise UserError(f"only uint8 pixels are resized as Pillow does it, not {pixels.dtype}: give pixels in 0 .. 255")
    pixels = _round(jnp.einsum("n h w c, v w -> n h v c", pixels.astype(jnp.int32), horizontal))
    return _round(jnp.einsum("n h w c, v h -> n v w c", pixels.astype(jnp.int32), vertical))


def _round(sums: jax.Array) -> jax.Array:
    return jnp.clip((sums + 2 ** (_BITS - 1)) >> _BITS, 0, 255).astype(jnp.uint8)
