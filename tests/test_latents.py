"""Pictures as latents: the scale, the cache, and runs that are trained on them."""

import shutil

import einops
import jax
import numpy as np
import pytest

from zoo import cache
from zoo.errors import BadInput
from zoo.latents import Codec
from zoo.method import to_float
from zoo.run import Run, prepare
from zoo.training import loop

AUTOENCODER = "configs/vae.py:autoencoder,test"


class Folding:
    """An exact autoencoder: 2 x 2 pixels become channels, scaled and moved."""

    def encode(self, params, pixels):
        folded = einops.rearrange(pixels, "b t (h p) (w q) c -> b t h w (p q c)", p=2, q=2)
        return folded * params["scale"] + 7.0

    def decode(self, params, latents):
        folded = (latents - 7.0) / params["scale"]
        return einops.rearrange(folded, "b t h w (p q c) -> b t (h p) (w q) c", p=2, q=2)


class Pictures:
    """Random pictures, and how often they were asked for."""

    def __init__(self, count, size=4):
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, 1, size, size, 3), np.uint8)
        self.asked = 0

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        self.asked += 1
        return {"pixels": self.pixels[i], "text": f"number {i}"}

    def texts(self):
        return [f"number {i}" for i in range(len(self))]


def folding(scale=3.0):
    return Codec(Folding(), {"scale": np.float32(scale)}, 0)


def latents_of(source):
    return np.stack([source[i]["pixels"] for i in range(len(source))])


def test_measured_latents_have_mean_0_and_deviation_1_in_each_channel():
    pictures = Pictures(600)
    found = latents_of(folding().measured(pictures).source(pictures, {"name": "whole"}))
    assert found.shape == (600, 1, 2, 2, 12) and found.dtype == np.float32
    np.testing.assert_allclose(found.mean((0, 1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(found.std((0, 1, 2, 3)), 1, atol=1e-4)


def test_the_scale_is_taken_from_pictures_of_the_whole_source():
    pictures = Pictures(2000)
    pictures.pixels[:1000] = 0  # of the first 1,000 alone the mean would be that of black
    codec = folding().measured(pictures)
    expected = np.asarray(Folding().encode(codec.params, to_float(pictures.pixels))).mean((0, 1, 2, 3))
    np.testing.assert_allclose(codec.mean, expected, atol=0.1)


def test_decoding_is_the_way_back():
    pictures = Pictures(5)
    codec = folding().measured(pictures)
    again = codec.decode(codec.params, codec.encode(codec.params, pictures.pixels))
    np.testing.assert_allclose(again, to_float(pictures.pixels), atol=1e-5)


def test_a_channel_that_says_nothing_stays_finite():
    pictures = Pictures(3)
    pictures.pixels[:] = 9
    assert np.isfinite(latents_of(folding().measured(pictures).source(pictures, {"name": "flat"}))).all()


def test_latents_keep_their_place_and_caption_whatever_the_number():
    for count in (1, 255, 257):  # a call of four devices takes 256
        pictures = Pictures(count)
        codec = folding()
        found = codec.source(pictures, {"name": f"places of {count}"})
        assert found.texts() == [item["text"] for item in map(found.__getitem__, range(count))] == pictures.texts()
        np.testing.assert_allclose(latents_of(found), codec.encode(codec.params, pictures.pixels), atol=1e-5)


def test_a_source_is_encoded_once_for_each_autoencoder_and_content():
    pictures = Pictures(300)
    first = folding().source(pictures, {"name": "once"})
    asked = pictures.asked
    again = folding().source(pictures, {"name": "once"})
    assert pictures.asked - asked <= 4  # a look at the first and the last
    np.testing.assert_array_equal(latents_of(first), latents_of(again))
    other = folding(scale=5.0).source(pictures, {"name": "once"})
    assert np.abs(latents_of(other) - latents_of(first)).max() > 1
    changed = Pictures(300)
    changed.pixels[-1] ^= 255
    assert np.abs(latents_of(folding().source(changed, {"name": "once"}))[-1] - latents_of(first)[-1]).max() > 0.01


def test_what_is_made_half_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))

    def broken(file):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.kept("things", "a key", broken)
    assert list((tmp_path / "things").iterdir()) == []
    made = cache.kept("things", "a key", lambda file: np.save(file, np.arange(3)))
    np.testing.assert_array_equal(made, np.arange(3))


# ---- runs


@pytest.fixture(scope="module")
def autoencoder(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("autoencoder") / "run"
    loop.train(tiny({"loop.grid_every": 0}, AUTOENCODER), workdir)
    return workdir


def on_latents(tiny, autoencoder, **changes):
    return tiny({"data.latents": str(autoencoder), "method.net.patch_size": 1, "loop.steps": 4, **changes})


@pytest.fixture(scope="module")
def latent_run(tiny, autoencoder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("latent") / "run"
    loop.train(on_latents(tiny, autoencoder), workdir)
    return workdir


def test_the_method_sees_latents(tiny, autoencoder):
    source, recipe = prepare(on_latents(tiny, autoencoder))
    batch = next(recipe.stream(source))
    height, width, channels = recipe.shape[1:]
    assert height < recipe.data.size and recipe.codec
    assert batch["pixels"].shape == (recipe.data.batch_size, 1, height, width, channels)
    assert batch["pixels"].dtype == np.float32
    blank = recipe.blank_batch(3)
    assert blank["pixels"].shape == (3, *recipe.shape) and blank["pixels"].dtype == np.float32


def test_sampling_decodes_without_being_asked(latent_run, command, tmp_path):
    run = Run.open(latent_run)
    tokens = run.recipe.tokenizer.encode(["a red circle", "a blue star"])
    made = run.sampler(per_device=1)(run.params, tokens, seed=0)
    assert made.shape == (2, 1, 16, 16, 3) and made.dtype == np.uint8
    done = command("sample.py", f"--workdir={latent_run}", "--prompt=a red circle", f"--out={tmp_path / 'out.png'}")
    assert done.code == 0 and (tmp_path / "out.png").exists(), done.err


def test_decoding_uses_the_saved_scale(latent_run, autoencoder):
    recipe = Run.open(latent_run).recipe
    source = recipe.data.open("train")
    fresh = Codec(recipe.codec.method, recipe.codec.params, 0).measured(source)
    np.testing.assert_allclose(recipe.codec.mean, fresh.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(recipe.codec.std, fresh.std, rtol=1e-5)
    assert np.abs(recipe.codec.std - 1).max() > 1e-3


def test_a_run_on_latents_resumes_bit_for_bit(latent_run, autoencoder, tiny, tmp_path, same, saved_state):
    copied = shutil.copytree(latent_run, tmp_path / "run")
    shutil.rmtree(copied / "checkpoints" / "4")
    loop.train(on_latents(tiny, autoencoder), copied)
    assert same(saved_state(copied), saved_state(latent_run))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data.latents": "no/such/run"}, ["data.latents", "no/such/run"]),
        ({"data.size": 32}, ["16 px", "data.size is 32"]),
        ({"data.flip": True}, ["data.flip", "data.latents"]),
        ({"method.net.patch_size": 3}, ["patch_size 3"]),
    ],
)
def test_what_cannot_be_trained_on_latents_is_said(tiny, autoencoder, tmp_path, changes, words):
    with pytest.raises(BadInput) as error:
        loop.train(on_latents(tiny, autoencoder, **changes), tmp_path / "run")
    assert all(word in str(error.value) for word in words)


def test_a_run_that_is_no_autoencoder_is_refused(tiny, trained, tmp_path):
    with pytest.raises(BadInput, match="cannot encode.*vae"):
        loop.train(on_latents(tiny, trained), tmp_path / "run")


def test_an_autoencoder_that_is_gone_or_another_is_said(tiny, autoencoder, tmp_path, command):
    moved = shutil.copytree(autoencoder, tmp_path / "autoencoder")
    loop.train(on_latents(tiny, moved), tmp_path / "run")
    shutil.rmtree(moved)
    done = command("sample.py", f"--workdir={tmp_path / 'run'}", "--prompt=a star")
    assert done.code == 2 and "data.latents" in done.err and str(moved) in done.err
    loop.train(tiny({"loop.grid_every": 0, "seed": 5}, AUTOENCODER), moved)
    done = command("sample.py", f"--workdir={tmp_path / 'run'}", "--prompt=a star")
    assert done.code == 2 and "is not the autoencoder" in done.err


def test_two_codecs_of_equal_parameters_are_one():
    assert folding().identity == folding().identity != folding(2.0).identity
    assert jax.tree.leaves(folding().params)[0].shape == ()
