import math

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.evaluation.reconstruction import psnr, ssim


def images(n=3, frames=1, height=16, width=19, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, frames, height, width, 3), dtype=np.uint8)


def constant(value, size=16):
    return np.full((1, 1, size, size, 3), value, np.uint8)


# ---- PSNR


@pytest.mark.parametrize("a, b", [(100, 101), (101, 100), (0, 255), (255, 0), (10, 15)])
def test_psnr_of_a_known_error(a, b):
    expected = 20 * math.log10(255 / abs(a - b))
    assert psnr(constant(a), constant(b)) == pytest.approx([expected], abs=1e-12)


def test_psnr_is_of_each_image_and_of_all_its_frames():
    a, b = images(4, 3), images(4, 3, seed=1)
    b[2] = a[2]
    expected = [10 * math.log10(255**2 / np.mean((a[i].astype(float) - b[i]) ** 2)) for i in (0, 1, 3)]
    found = psnr(a, b)
    np.testing.assert_allclose(found[[0, 1, 3]], expected, rtol=1e-12)
    assert found[2] == np.inf and found.dtype == np.float64


# ---- SSIM


def numpy_ssim(a, b):
    """Window by window, with the moments as they are defined."""
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for frame, row, column, channel in np.ndindex(a.shape[0], a.shape[1] - 10, a.shape[2] - 10, a.shape[3]):
        x, y = (p[frame, row : row + 11, column : column + 11, channel].astype(np.float64) for p in (a, b))
        mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
        var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
        covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        values.append(luminance * (2 * covariance + c2) / (var_x + var_y + c2))
    return np.mean(values)


@pytest.mark.parametrize("frames, height, width", [(1, 16, 19), (3, 12, 11), (1, 11, 11)])
def test_ssim_agrees_with_numpy(frames, height, width):
    a, noise = images(2, frames, height, width), images(2, frames, height, width, seed=1)
    b = (0.7 * a + 0.3 * noise).astype(np.uint8)
    expected = [numpy_ssim(x, y) for x, y in zip(a, b, strict=True)]
    found = ssim(a, b)
    assert found.dtype == np.float64 and found == pytest.approx(expected, abs=1e-12)
    assert np.all((found > 0.3) & (found < 0.95))


def test_ssim_of_equal_images_is_one():
    a = np.concatenate([images(), np.broadcast_to(constant(0), (1, 1, 16, 16, 3)).repeat(2, 3)[..., :19, :]])
    np.testing.assert_allclose(ssim(a, a), 1, rtol=1e-12)


def test_ssim_of_flat_images_compares_their_luminance():
    c1 = 2.55**2
    expected = (2 * 100 * 200 + c1) / (100**2 + 200**2 + c1)
    assert ssim(constant(100), constant(200)) == pytest.approx([expected], abs=1e-12)


def test_ssim_of_a_negative_is_negative_and_symmetric():
    a = images()
    assert np.all(ssim(a, 255 - a) < -0.8)
    np.testing.assert_allclose(ssim(a, 255 - a), ssim(255 - a, a), rtol=1e-12)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_what_cannot_be_compared_is_an_error(measure):
    a = images()
    with pytest.raises(UserError, match=r"\(3, 1, 16, 19, 3\) and \(2, 1, 16, 19, 3\)"):
        measure(a, a[:2])
    with pytest.raises(UserError, match="float32"):
        measure(a, a.astype(np.float32))
    with pytest.raises(UserError, match=r"\(0, 1, 16, 19, 3\)"):
        measure(a[:0], a[:0])
    with pytest.raises(UserError, match="one shape"):
        measure(a[0], a[0])


def test_ssim_of_images_smaller_than_its_window_is_an_error():
    with pytest.raises(UserError, match="10 x 19.*11 x 11"):
        ssim(images(height=10), images(height=10))
