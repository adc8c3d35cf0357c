"""Measures, likelihoods and inversion compute in float32, and take products of float32 in full, whatever a run does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.evaluation import model_eval
from zoo.evaluation.features import clip_features
from zoo.nets.clip import CLIP
from zoo.nets.conditioning import Conditioned
from zoo.runs.dependencies import Dependencies, prepare
from zoo.runs.editor import Editor
from zoo.runs.run import Run
from zoo.training import parallel

CAPTIONS = ["a red circle", "a blue star"]


@pytest.fixture
def seen(monkeypatch):
    """The types and precisions in which networks compute; nothing is compiled."""
    found, plain = set(), Conditioned.apply

    def apply(self, *args, **keywords):
        found.add((jnp.dtype(self.network.dtype).name, jax.config.jax_default_matmul_precision))
        return plain(self, *args, **keywords)

    monkeypatch.setattr(Conditioned, "apply", apply)
    monkeypatch.setattr(parallel.pmap_in_batches, "__call__", parallel.pmap_in_batches.check)
    return found


@pytest.fixture
def opened(tiny):
    """opened(spec) -> a run whose networks compute in bfloat16, and two images."""

    def opened(spec):
        _, recipe = prepare(tiny({"dtype": "bfloat16"}, spec))
        run = Run(recipe, 0, recipe.create_state().params | {"frozen": recipe.dependencies.frozen})
        return run, np.zeros((2, *run.shape), np.uint8)

    return opened


EXACT = {("float32", "highest")}


@pytest.mark.parametrize(
    "spec",
    [
        "configs/diffusion.py:test",
        *(pytest.param(spec, marks=pytest.mark.slow) for spec in ("configs/flow.py:jet,test", "configs/vae.py:test")),
    ],
)
def test_likelihoods(opened, seen, spec):
    run, images = opened(spec)
    seen.clear()
    model_eval.bits_per_dim(run, images, CAPTIONS)
    assert seen == EXACT


@pytest.mark.slow
def test_reconstruction_and_scores(opened, seen):
    run, images = opened("configs/vae.py:test")
    seen.clear()
    model_eval.reconstruct(run, images, CAPTIONS)
    assert seen == EXACT
    run, images = opened("configs/gan.py:test")
    seen.clear()
    model_eval.score(run, images, CAPTIONS)
    assert seen == EXACT


def test_inversion_and_the_generation_that_undoes_it(opened, seen):
    run, images = opened("configs/flow.py:test")
    editor = Editor(run)
    seen.clear()
    editor.invert(images, CAPTIONS)
    editor.round_trip(images, CAPTIONS)
    assert seen == EXACT


def test_sampling_computes_as_the_run_does(opened, seen):
    run, _ = opened("configs/diffusion.py:test")
    seen.clear()
    run.sampler().draw(run.params, run.conditions(CAPTIONS), seed=0)
    assert seen == {("bfloat16", None)}


def test_the_networks_that_a_run_depends_on_too(opened):
    run, _ = opened("configs/vae.py:autoencoder,test")
    dependencies = Dependencies()
    dependencies.runs["latents"] = run
    assert dependencies.exact().runs["latents"].method.dtype == jnp.float32
    assert dependencies.runs["latents"].method.dtype == jnp.bfloat16
    assert run.exact.exact is run.exact


def test_features(monkeypatch):
    precisions, plain = set(), CLIP.apply

    def apply(self, *args, **keywords):
        precisions.add((jnp.dtype(self.dtype).name, jax.config.jax_default_matmul_precision))
        return plain(self, *args, **keywords)

    monkeypatch.setattr(CLIP, "apply", apply)
    features = clip_features()
    features.images(np.zeros((1, 1, 32, 32, 3), np.uint8))
    features.texts(CAPTIONS[:1])
    assert precisions == EXACT
