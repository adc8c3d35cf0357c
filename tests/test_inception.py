import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.make_inception_fixture import random_images, random_tensor
from zoo.errors import UserError
from zoo.nets.inception import Inception
from zoo.pretrained import inception

THEIRS = np.load(Path(__file__).with_name("fixtures") / "inception" / "features.npz")
SHAPES = json.loads(str(THEIRS["shapes"]))  # by the names of pytorch-fid's network


@pytest.fixture(scope="module")
def params(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights"
    save_file({name: random_tensor(name, tuple(shape)) for name, shape in SHAPES.items()}, path)
    params = inception.load(path)
    path.unlink()  # 90 MB
    return params


@pytest.fixture(scope="module")
def features(params):
    """The network with the weights of the fixture."""
    network = jax.jit(Inception().apply)
    return lambda x: network({"params": params}, x)


def preprocessed(resize):
    return jnp.concatenate([inception.preprocess(image[None], resize) for image in random_images()])


@pytest.mark.parametrize("resize", ["pytorch", "clean"])
def test_features_are_those_of_pytorch_fid(features, resize):
    ours = features(preprocessed(resize))
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, THEIRS[f"features_{resize}"], atol=1e-4)


def test_the_images_of_the_fixture_and_their_resizes_have_features_of_their_own():
    """Else the test above would pass for a network that hardly looks at its input."""
    pytorch, clean = THEIRS["features_pytorch"], THEIRS["features_clean"]
    for a, b in ((pytorch[0], pytorch[1]), (pytorch[1], pytorch[2]), (pytorch[0], clean[0]), (pytorch[2], clean[2])):
        assert np.abs(a - b).max() > 0.01


@pytest.mark.parametrize(("resize", "tolerance"), [("pytorch", 2e-6), ("clean", 1e-4)])  # a level is 8e-3
def test_images_are_resized_and_scaled_as_theirs(resize, tolerance):
    x = preprocessed(resize)
    assert x.shape == (3, 299, 299, 3) and x.dtype == jnp.float32
    np.testing.assert_allclose(x[:, ::13, ::13], THEIRS[f"input_{resize}"], atol=tolerance)


@pytest.mark.parametrize(("resize", "white"), [("pytorch", 1.0), ("clean", 127 / 128)])
def test_black_and_white_are_the_ends_of_the_scale(resize, white):
    for level, value in ((0, -1.0), (255, white)):
        x = inception.preprocess(np.full((1, 5, 400, 3), level, np.uint8), resize)
        np.testing.assert_allclose(x, value, atol=1e-5)


def test_clean_does_not_overshoot_and_keeps_images_of_the_right_size():
    pixels = np.random.RandomState(0).randint(0, 2, (1, 299, 299, 3)).astype(np.uint8) * 255
    np.testing.assert_allclose(inception.preprocess(pixels, "clean"), (pixels - 128.0) / 128, atol=1e-5)
    x = inception.preprocess(pixels[:, :100, :100], "clean")  # enlarged checks ring
    assert x.min() == -1 and x.max() == 127 / 128


def test_an_image_does_not_depend_on_those_beside_it(features):
    x = preprocessed("pytorch")
    np.testing.assert_allclose(features(x[::-1])[::-1], features(x), atol=1e-5)


def changed(tmp_path, **changes):
    path = tmp_path / "changed"
    zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in SHAPES.items()}
    tensors = {name: x for name, x in (zeros | changes).items() if x is not None}
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
    return path


def test_weights_of_another_network_are_refused(tmp_path):
    path = changed(
        tmp_path,
        **{
            "Mixed_5b.branch_pool.conv.weight": np.zeros((64, 192, 1, 1), np.float32),
            "Mixed_7c.branch3x3_2a.conv.weight": np.zeros((384, 384, 3, 1), np.float32),
            "Mixed_6e.branch7x7_3.bn.running_var": None,
        },
    )
    with pytest.raises(UserError) as error:
        inception.load(path)
    line = str(error.value)
    assert str(path) in line and "\n" not in line
    assert "1 missing: Mixed_6e.branch7x7_3.bn.running_var" in line
    assert "Mixed_5b.branch_pool.conv.weight (expected (32, 192, 1, 1), found (64, 192, 1, 1))" in line
    assert "Mixed_7c.branch3x3_2a.conv.weight (expected (384, 384, 1, 3), found (384, 384, 3, 1))" in line


@pytest.mark.parametrize(
    ("inputs", "resize", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.float32), "pytorch", "float32"),
        (np.zeros((1, 2, 8, 8, 3), np.uint8), "pytorch", "(1, 2, 8, 8, 3)"),
        (np.zeros((1, 8, 8, 1), np.uint8), "clean", "(1, 8, 8, 1)"),
        (np.zeros((1, 8, 8, 3), np.uint8), "cleaned", "did you mean 'clean'"),
    ],
)
def test_images_that_cannot_be_preprocessed_are_refused(inputs, resize, message):
    with pytest.raises(UserError, match=re.escape(message)):
        inception.preprocess(inputs, resize)


def test_images_that_were_not_preprocessed_are_refused(features):
    with pytest.raises(UserError, match="preprocess them first"):
        features(jnp.zeros((1, 256, 256, 3)))
