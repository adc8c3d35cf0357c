"""zoo.load: one call opens whatever a dependency may be."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import zoo
from zoo.errors import UserError
from zoo.evaluation import model_eval
from zoo.evaluation.features import clip_features
from zoo.runs.dependencies import open_run
from zoo.runs.run import ClipRun, Run

CLIP = Path(__file__).parent / "fixtures" / "clip" / "gelu"
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 1, 24, 24, 3)).astype(np.uint8)
CAPTIONS = ["a red star", "a ring", "two things"]


def test_a_workdir_is_a_run(trained, same):
    run, again = zoo.load(str(trained)), open_run(trained)
    assert isinstance(run, Run) and run.step == 4 and same(run.params["model"], again.params["model"])
    images = run.sample(["a red star", "a blue ring"], seed=3)
    assert images.shape == (2, 1, 16, 16, 3) and images.dtype == np.uint8
    expected = run.sampler(2)(run.params, run.conditions(["a red star", "a blue ring"]), seed=3)
    np.testing.assert_array_equal(images, expected)


@pytest.mark.slow
def test_images_of_a_call_do_not_depend_on_their_number(trained):
    run = zoo.load(str(trained))
    both = run.sample(["a red star", "a blue ring"], seed=3, per_device=1)
    np.testing.assert_array_equal(run.sample(["a red star"], seed=3, per_device=1), both[:1])


@pytest.mark.parametrize("name", [pytest.param(str(CLIP), marks=pytest.mark.slow), "zoo:clip"])
def test_a_clip_scores(name):
    clip = zoo.load(name)
    assert isinstance(clip, ClipRun)
    network = clip_features(name)
    images, texts = (
        x / np.linalg.norm(x, axis=1, keepdims=True) for x in (network.images(IMAGES), network.texts(CAPTIONS))
    )
    found = model_eval.score(clip, IMAGES, CAPTIONS)
    np.testing.assert_allclose(found, (images * texts).sum(axis=1), atol=0.01)


@pytest.mark.parametrize(
    "name, message",
    [("no/such/run", "no such run"), ("zoo:clop", "did you mean 'clip'"), ("docs", "holds no checkpoint")],
)
def test_what_is_no_network_is_an_error(name, message):
    with pytest.raises(UserError, match=message):
        zoo.load(name)


def test_importing_the_zoo_loads_no_jax():
    subprocess.run([sys.executable, "-c", "import sys, zoo; assert 'jax' not in sys.modules"], check=True, timeout=60)
