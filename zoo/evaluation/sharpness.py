"""Sharpness of images, without anything to compare them with. A value an image; videos count all frames."""

import numpy as np

from zoo.errors import UserError


def sharpness(images) -> np.ndarray:
    """Standard deviation of the Laplacian of the grey image, in grey levels (Pech-Pacheco et al. 2000, its variance).

    Edges raise it, and so does noise: higher is better for clean images alone. Compare with real images.

    Args:
      images: uint8 (N, T, H, W, C), H and W at least 3.

    Returns:
      float64 (N,).

    Raises:
      UserError: images of another type or smaller ones.
    """
    x = np.asarray(images)
    if x.dtype != np.uint8 or x.ndim != 5 or min(x.shape[2:4]) < 3:
        raise UserError(f"sharpness is of uint8 (N, T, H, W, C) of at least 3 x 3 pixels, got {x.dtype} {x.shape}")
    grey = x.mean(axis=-1)  # (N, T, H, W)
    around = grey[..., :-2, 1:-1] + grey[..., 2:, 1:-1] + grey[..., 1:-1, :-2] + grey[..., 1:-1, 2:]
    return (around - 4 * grey[..., 1:-1, 1:-1]).std(axis=(1, 2, 3))
