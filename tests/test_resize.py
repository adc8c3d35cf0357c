import jax
import numpy as np
import pytest
from PIL import Image

from zoo.errors import UserError
from zoo.resize import differentiable_crop, resize, shortest_side_and_crop, weights

PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def noise(height, width, channels=3):
    """The worst for roundings: two images, the second of 0 and 255 alone, on which bicubic overshoots."""
    pixels = np.random.default_rng(height * width).integers(0, 256, (2, height, width, channels), dtype=np.uint8)
    pixels[1] = np.where(pixels[1] < 128, 0, 255)
    return pixels


def by_pillow(pixels, height, width, method="bicubic"):
    """Along rows, then along columns, which not all versions of Pillow would do in this order by themselves."""
    old = pixels.shape[1]
    return np.stack(
        [
            Image.fromarray(x).resize((width, old), PILLOW[method]).resize((width, height), PILLOW[method])
            for x in pixels
        ]
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((32, 32), (224, 224)),
        ((256, 256), (224, 224)),
        ((301, 257), (224, 99)),
        ((37, 50), (61, 24)),
        ((64, 48), (64, 12)),
        ((40, 33), (1, 1)),
        ((1, 3), (5, 4)),
        ((1000, 5), (3, 5)),
    ],
)
def test_equals_pillow_bit_for_bit(old, new):
    pixels = noise(*old)
    ours = jax.jit(lambda pixels: {method: resize(pixels, *new, method) for method in PILLOW})(pixels)
    for method, resized in ours.items():
        assert resized.dtype == np.uint8
        np.testing.assert_array_equal(resized, by_pillow(pixels, *new, method), err_msg=method)


def test_channels_are_apart_and_no_compilation_is_needed():
    pixels = noise(37, 50)
    grey = resize(pixels[..., 1:2], 24, 61)
    np.testing.assert_array_equal(grey[..., 0], by_pillow(pixels, 24, 61)[..., 1])


@pytest.mark.parametrize(("old", "new"), [((90, 120), (31, 40)), ((300, 90), (75, 80)), ((20, 31), (50, 64))])
def test_images_equal_one_call_of_pillow_to_one_step(old, new):
    """Where Pillow 13 goes along columns first, as in the second case, the roundings between differ."""
    y, x = np.mgrid[: old[0], : old[1]] / 12
    waves = np.sin(np.stack([x + 0.3 * y, 0.5 * y * x / 4, x - y], axis=-1))
    pixels = (127.5 + 127 * waves).round().astype(np.uint8)
    pixels[: old[0] // 2, : old[1] // 3] //= 3  # an edge
    theirs = np.asarray(Image.fromarray(pixels).resize(new[::-1], PILLOW["bicubic"]))
    ours = np.asarray(jax.jit(resize, static_argnums=(1, 2))(pixels[None], *new))[0]
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("sides", [(300, 401), (230, 227), (33, 20), (224, 224), (50, 449)])
def test_shortest_side_then_the_middle(sides):
    """What the steps of CLIPImageProcessor do: int() of the longer side, the corner rounded down."""
    pixels, size = noise(*sides), 224
    height, width = (int(size * side / min(sides)) for side in sides)
    top, left = (height - size) // 2, (width - size) // 2
    theirs = by_pillow(pixels, height, width)[:, top : top + size, left : left + size]
    np.testing.assert_array_equal(jax.jit(shortest_side_and_crop, static_argnums=1)(pixels, size), theirs)


@pytest.mark.parametrize("method", PILLOW)
@pytest.mark.parametrize(("old", "new"), [(7, 30), (30, 7), (9, 9)])
def test_weights_are_means_that_mirror(old, new, method):
    w = weights(old, new, method)
    assert w.shape == (new, old)
    np.testing.assert_allclose(w.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(w, w[::-1, ::-1], atol=1e-12)
    if old == new:
        np.testing.assert_array_equal(w, np.eye(old))


def test_bad_input():
    pixels = noise(8, 8)
    with pytest.raises(UserError, match="'bicubik'.*did you mean 'bicubic'"):
        resize(pixels, 4, 4, "bicubik")
    with pytest.raises(UserError, match="8 pixels to 0"):
        resize(pixels, 4, 0)
    with pytest.raises(UserError, match="8 pixels to 0"):
        shortest_side_and_crop(pixels, 0)
    with pytest.raises(UserError, match="uint8.*float32"):
        resize(pixels.astype(np.float32), 4, 4)


@pytest.mark.parametrize("sides", [(16, 16), (40, 60), (33, 20)])
def test_what_can_be_derived_differs_by_roundings_alone(sides):
    rng = np.random.default_rng(1)
    pixels = rng.integers(64, 192, size=(2, *sides, 3), dtype=np.uint8)  # the filter overshoots, and is not clipped
    exact = np.asarray(shortest_side_and_crop(pixels, 24), np.float32)
    found = differentiable_crop(pixels.astype(np.float32), 24)
    inside = (found > 0) & (found < 255)
    assert inside.mean() > 0.95
    np.testing.assert_allclose(found[inside], exact[inside], atol=1.5)
    direction = rng.normal(size=pixels.shape).astype(np.float32)
    slope = jax.jvp(lambda x: differentiable_crop(x, 24), (pixels.astype(np.float32),), (direction,))[1]
    np.testing.assert_allclose(slope, differentiable_crop(direction, 24), rtol=1e-4, atol=1e-4)
