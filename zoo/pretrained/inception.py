"""The published Inception-v3 of the Frechet Inception distance, and the images as it was given them."""

import functools
import os
from collections.abc import Mapping
from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from zoo import weights
from zoo.errors import UserError, unknown_name_error
from zoo.nets.inception import SIZE, Inception


def load(path: str | os.PathLike) -> Mapping:
    """Reads the weights that pytorch-fid publishes, made a safetensors file as docs/score.md shows.

    Args:
      path: the safetensors file.

    Returns:
      Parameters, float32: `Inception().apply({"params": load(path)}, preprocess(pixels))` are the features.

    Raises:
      UserError: the file is missing, damaged, or of another network.
    """
    ours: dict[str, Any] = flatten_dict(_shapes(), sep=".")
    wanted = {_torch_name(name): _torch_shape(leaf.shape) for name, leaf in ours.items()}
    tensors = weights.read(path)
    weights.check_shapes(wanted, tensors, path)
    return unflatten_dict({name: _to_ours(tensors[_torch_name(name)]) for name in ours}, sep=".")


def _shapes() -> Mapping:
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]


def _torch_name(name: str) -> str:
    return name.replace("conv.kernel", "conv.weight")


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape


def _to_ours(tensor) -> jax.Array:
    if tensor.ndim == 4:
        tensor = einops.rearrange(tensor, "o i h w -> h w i o")
    return jnp.asarray(tensor, jnp.float32)


@functools.partial(jax.jit, static_argnames="resize")
def preprocess(pixels: jax.Array, resize: str = "pytorch") -> jax.Array:
    """Resizes and scales images as Inception takes them. Distances compare only among features of one `resize`.

    Args:
      pixels: uint8 (N, H, W, 3).
      resize: "pytorch" is pytorch-fid: bilinear, and without antialiasing, so that large images alias; pixels
        / 127.5 - 1. "clean" is clean-fid (2104.11222): bicubic (a = -0.5) and antialiased, on floats that are
        clipped but not rounded, as Pillow resizes single float channels; (pixels - 128) / 128.

    Returns:
      float32 (N, 299, 299, 3) in [-1, 1].

    Raises:
      UserError: images that are not uint8 (N, H, W, 3), or an unknown `resize`.
    """
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != jnp.uint8:
        raise UserError(f"Inception takes uint8 images (N, H, W, 3), got {pixels.dtype} {pixels.shape}")
    shape = (len(pixels), SIZE, SIZE, 3)
    x = pixels.astype(jnp.float32)
    if resize == "pytorch":
        return jax.image.resize(x, shape, "bilinear", antialias=False) / 127.5 - 1  # (N, 299, 299, 3)
    if resize == "clean":
        return (jnp.clip(jax.image.resize(x, shape, "cubic"), 0, 255) - 128) / 128  # (N, 299, 299, 3)
    raise unknown_name_error("resize", resize, ("pytorch", "clean"))
