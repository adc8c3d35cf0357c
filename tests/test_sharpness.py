import numpy as np
import pytest
from scipy.ndimage import laplace

from zoo.commands.oracle_eval import blur
from zoo.errors import UserError
from zoo.evaluation.sharpness import sharpness


def test_it_is_the_spread_of_scipys_laplacian():
    x = np.random.default_rng(0).integers(0, 256, (3, 2, 9, 12, 3)).astype(np.uint8)
    expected = [np.std([laplace(frame.astype(float).mean(-1))[1:-1, 1:-1] for frame in image]) for image in x]
    np.testing.assert_allclose(sharpness(x), expected, rtol=1e-12)


def test_blur_lowers_it_and_flat_images_have_none():
    edge = np.zeros((1, 1, 16, 16, 3), np.uint8)
    edge[..., 8:, :] = 200
    values = [sharpness(blur(edge[0], sigma)[None])[0] for sigma in (0, 0.5, 1.0, 2.0)]
    assert values == sorted(values, reverse=True) and values[0] > 4 * values[-1] > 0
    assert sharpness(np.full((2, 1, 8, 8, 3), 77, np.uint8)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "x", [np.zeros((1, 1, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((1, 1, 2, 8, 3), "u1")]
)
def test_what_it_cannot_measure_is_an_error(x):
    with pytest.raises(UserError, match="sharpness is of uint8"):
        sharpness(x)
