"""Distance of an image from the one it was made from, pixel by pixel. A value an image; videos count all frames."""

import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError

RANGE = 255.0
WINDOW, SIGMA = 11, 1.5  # of SSIM, in pixels


def _checked(a, b) -> tuple[np.ndarray, np.ndarray]:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.ndim != 5 or not a.size:
        raise UserError(f"two sets of images must be of one shape (N, T, H, W, C), got {a.shape} and {b.shape}")
    if a.dtype != np.uint8 or b.dtype != np.uint8:
        raise UserError(f"images must be uint8 in 0..255, got {a.dtype} and {b.dtype}")
    return a, b


def psnr(a, b) -> np.ndarray:
    """Peak signal-to-noise ratio in decibels, 10 log10(255^2 / MSE). Higher is nearer, infinite for equal images.

    Args:
      a: uint8 (N, T, H, W, C), N at least 1. The mean squared error goes over all frames of a video.
      b: like a.

    Returns:
      float64 (N,).

    Raises:
      UserError: shapes that differ, or images that are not uint8.
    """
    errors = [np.mean(np.square(x.astype(np.float64) - y)) for x, y in zip(*_checked(a, b), strict=True)]
    with np.errstate(divide="ignore"):
        return 10 * np.log10(RANGE**2 / np.array(errors))


def ssim(a, b) -> np.ndarray:
    """Structural similarity (Wang et al. 2004, "Image quality assessment", eq. 13), in [-1, 1]. Higher is nearer.

        (2 m_a m_b + c1) (2 s_ab + c2) / ((m_a^2 + m_b^2 + c1) (s_a^2 + s_b^2 + c2)),   c1 = 2.55^2, c2 = 7.65^2

    Moments m and s are of an 11 x 11 Gaussian window with a standard deviation of 1.5 pixels; the mean goes over the
    windows that lie wholly within the image, then over channels and frames.

    Args:
      a: uint8 (N, T, H, W, C), N at least 1, H and W at least 11.
      b: like a.

    Returns:
      float64 (N,); 1 for equal images.

    Raises:
      UserError: shapes that differ, images that are not uint8, or images smaller than the window.
    """
    a, b = _checked(a, b)
    height, width = a.shape[2:4]
    if min(height, width) < WINDOW:
        raise UserError(f"ssim: images of {height} x {width} are smaller than its window of {WINDOW} x {WINDOW}")
    with jax.enable_x64(True):
        return np.array([float(_ssim(x, y)) for x, y in zip(a, b, strict=True)])


def _windows(size: int) -> np.ndarray:
    """The weights of `size` pixels in each window along one axis, (size - 10, size)."""
    offsets = np.arange(size) - np.arange(size - WINDOW + 1)[:, None] - WINDOW // 2
    weights = np.where(np.abs(offsets) <= WINDOW // 2, np.exp(-(offsets**2) / (2 * SIGMA**2)), 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


@jax.jit
def _ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    rows, columns = _windows(a.shape[1]), _windows(a.shape[2])

    def mean(x):
        return jnp.einsum("ih,thwc,jw->tijc", rows, x, columns)  # (T, H - 10, W - 10, C)

    a, b = a.astype(jnp.float64), b.astype(jnp.float64)
    mean_a, mean_b = mean(a), mean(b)
    variances = (mean(a * a) - mean_a**2) + (mean(b * b) - mean_b**2)
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return jnp.mean(luminance * (2 * covariance + c2) / (variances + c2))
