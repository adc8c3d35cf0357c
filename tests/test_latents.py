"""Images as latents: the scale, the cache, and runs that are trained on them."""

import shutil

import einops
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zoo import cache, conditions, loop
from zoo.errors import UserError
from zoo.method import to_float
from zoo.runs.codec import Codec
from zoo.runs.dependencies import open_run, prepare

AUTOENCODER = "configs/vae.py:autoencoder,test"


class Folding:
    """An exact autoencoder: 2 x 2 pixels become channels, scaled and shifted."""

    def encode(self, params, pixels):
        folded = einops.rearrange(pixels, "b t (h p) (w q) c -> b t h w (p q c)", p=2, q=2)
        return folded * params["scale"] + 7.0

    def decode(self, params, latents):
        folded = (latents - 7.0) / params["scale"]
        return einops.rearrange(folded, "b t h w (p q c) -> b t (h p) (w q) c", p=2, q=2)


class Images:
    """Random images, and how often they were asked for."""

    def __init__(self, count, size=4):
        self.pixels = np.random.default_rng(0).integers(0, 256, (count, 1, size, size, 3), np.uint8)
        self.asked = 0

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        self.asked += 1
        return {"inputs": self.pixels[i], "text": f"number {i}"}

    def text(self, i):
        return f"number {i}"


FOLDING = Codec(Folding())
PARAMS = {"scale": np.float32(3)}
FROZEN = {"latents": PARAMS}


def latents_of(source):
    return np.stack([source[i]["inputs"] for i in range(len(source))])


def test_measured_latents_have_mean_0_and_deviation_1_in_each_channel():
    images = Images(600)
    found = latents_of(FOLDING.measured(FROZEN, images).source(FROZEN, images, {"name": "whole"}))
    assert found.shape == (600, 1, 2, 2, 12) and found.dtype == np.float32
    np.testing.assert_allclose(found.mean((0, 1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(found.std((0, 1, 2, 3)), 1, atol=1e-4)


def test_the_scale_is_taken_from_images_of_the_whole_source():
    images = Images(2000)
    images.pixels[:1000] = 0  # of the first 1,000 alone the mean would be that of black
    codec = FOLDING.measured(FROZEN, images)
    expected = np.asarray(Folding().encode(PARAMS, to_float(images.pixels))).mean((0, 1, 2, 3))
    np.testing.assert_allclose(codec.mean, expected, atol=0.1)


def test_latents_keep_what_stands_beside_the_images_that_were_encoded():
    class Videos(Images):
        """Of a damaged item the next one is read, and rates differ."""

        def __getitem__(self, i):
            return super().__getitem__(2 if i == 1 else i) | {"text": f"number {max(i, 2)}", "frame_rate": 4.0 + i}

    source = Videos(4)
    for _ in range(2):  # encoded, then from the cache
        latents = FOLDING.source(FROZEN, source, {"name": "beside"})
        assert [latents[i]["text"] for i in range(4)] == ["number 2", "number 2", "number 2", "number 3"]
        assert [latents[i]["frame_rate"] for i in range(4)] == [4, 5, 6, 7] and latents.text(1) == "number 2"


def test_decoding_is_the_way_back():
    images = Images(5)
    codec = FOLDING.measured(FROZEN, images)
    again = codec.decode(FROZEN, codec.encode(FROZEN, images.pixels))
    np.testing.assert_allclose(again, to_float(images.pixels), atol=1e-5)


def test_a_constant_channel_stays_finite():
    images = Images(3)
    images.pixels[:] = 9
    assert np.isfinite(latents_of(FOLDING.measured(FROZEN, images).source(FROZEN, images, {"name": "flat"}))).all()


def test_latents_keep_their_place_and_caption_whatever_the_number():
    for count in (1, 255, 257):  # a call of four devices takes 256
        images = Images(count)
        found = FOLDING.source(FROZEN, images, {"name": f"places of {count}"})
        assert [found.text(i) for i in range(count)] == [f"number {i}" for i in range(count)]
        assert [found[i]["text"] for i in range(count)] == [f"number {i}" for i in range(count)]
        np.testing.assert_allclose(latents_of(found), FOLDING.encode(FROZEN, images.pixels), atol=1e-5)


def test_a_source_is_encoded_once_for_each_autoencoder_and_content():
    images = Images(300)
    first = FOLDING.source(FROZEN, images, {"name": "once"})
    asked = images.asked
    again = FOLDING.source(FROZEN, images, {"name": "once"})
    assert images.asked - asked <= 4  # the first and the last
    np.testing.assert_array_equal(latents_of(first), latents_of(again))
    other = FOLDING.source({"latents": {"scale": np.float32(5)}}, images, {"name": "once"})
    assert np.abs(latents_of(other) - latents_of(first)).max() > 1
    changed = Images(300)
    changed.pixels[-1] ^= 255
    assert (
        np.abs(latents_of(FOLDING.source(FROZEN, changed, {"name": "once"}))[-1] - latents_of(first)[-1]).max() > 0.01
    )


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


class Coding:
    """A discrete autoencoder: the red value of each pixel, in 16 steps."""

    def to_codes(self, params, pixels):
        return jnp.clip(jnp.round((pixels[..., :1] + 1) * 7.5), 0, 15).astype(jnp.int32)

    def from_codes(self, params, latents):
        return jnp.repeat(latents.astype(jnp.float32) / 7.5 - 1, 3, axis=-1)


def test_codes_stay_whole_numbers_without_a_scale():
    images, codec = Images(300), Codec(Coding(), 16)
    codec = codec.measured({}, images)
    assert codec.codes == 16 and codec.scale == {"mean": 0.0, "std": 1.0}
    found = latents_of(codec.source({}, images, {"name": "codes"}))
    assert found.dtype == codec.dtype == np.uint16 and found.shape == (300, 1, 4, 4, 1) and found.max() == 15
    expected = np.round(images.pixels[..., :1].astype(float) / 17)
    assert np.mean(found == expected) > 0.99  # but for ties
    np.testing.assert_allclose(codec.decode({}, found[:1])[..., :1], found[:1] / 7.5 - 1, atol=1e-6)


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


@pytest.mark.slow
def test_a_condition_that_latents_do_not_keep_is_an_error(tiny, autoencoder, monkeypatch):
    as_sizes = lambda values, tokenize: np.array([len(value) for value in values], np.float32)
    condition = conditions.Condition("attributes", as_sizes, np.zeros_like, drops=False)
    monkeypatch.setitem(conditions.CONDITIONS, "attributes", condition)
    with pytest.raises(
        UserError, match="data.source: latents and codes keep captions alone, and the data has attributes"
    ):
        prepare(on_latents(tiny, autoencoder))


def test_the_method_gets_latents(tiny, autoencoder):
    source, recipe = prepare(on_latents(tiny, autoencoder))
    batch = next(recipe.stream(source))
    height, width, channels = recipe.shape[1:]
    assert height < recipe.data.size and recipe.codec
    assert batch["inputs"].shape == (recipe.data.batch_size, 1, height, width, channels)
    assert batch["inputs"].dtype == np.float32
    blank = recipe.blank_batch(3)
    assert blank["inputs"].shape == (3, *recipe.shape) and blank["inputs"].dtype == np.float32


def test_sampling_decodes_by_itself(latent_run, command, tmp_path):
    run = open_run(latent_run)
    made = run.sample(["a red circle", "a blue star"])
    assert made.shape == (2, 1, 16, 16, 3) and made.dtype == np.uint8
    done = command("sample.py", f"--workdir={latent_run}", "--prompt=a red circle", f"--out={tmp_path / 'out.png'}")
    assert done.code == 0 and (tmp_path / "out.png").exists(), done.err


def test_decoding_uses_the_saved_scale(latent_run):
    run = open_run(latent_run)
    recipe = run.recipe
    fresh = Codec(recipe.codec.method).measured(run.params["frozen"], recipe.data.open("train"))
    np.testing.assert_allclose(recipe.codec.mean, fresh.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(recipe.codec.std, fresh.std, rtol=1e-5)
    assert np.abs(recipe.codec.std - 1).max() > 1e-3


@pytest.mark.slow
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
def test_what_cannot_be_trained_on_latents_is_an_error(tiny, autoencoder, tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        loop.train(on_latents(tiny, autoencoder, **changes), tmp_path / "run")
    assert all(word in str(error.value) for word in words)


def test_a_run_that_is_no_autoencoder_is_refused(tiny, trained, tmp_path):
    with pytest.raises(UserError, match="lacks the ability Autoencodes.*vae"):
        loop.train(on_latents(tiny, trained), tmp_path / "run")


@pytest.mark.slow
def test_a_run_keeps_its_autoencoder(tiny, autoencoder, tmp_path, saved_state):
    moved, workdir = shutil.copytree(autoencoder, tmp_path / "autoencoder"), tmp_path / "run"
    config = on_latents(tiny, moved)
    loop.train(config, workdir)
    shutil.rmtree(moved)
    made = open_run(workdir).sample(["a star"])
    config.loop.steps = 6
    assert loop.train(config, workdir).step == 6
    assert made.shape == (1, 1, 16, 16, 3)


def test_a_damaged_copy_of_the_autoencoder_is_an_error(latent_run, tmp_path, command):
    copied = shutil.copytree(latent_run, tmp_path / "run")
    file = copied / "frozen/latents.safetensors"
    arrays = load_file(file)
    name = next(iter(arrays))
    save_file(arrays | {name: arrays[name] + 1}, file)
    done = command("sample.py", f"--workdir={copied}", "--prompt=a star")
    assert done.code == 2 and "frozen network latents" in done.err and "not the one" in done.err
    file.write_bytes(b"no tensors")
    done = command("sample.py", f"--workdir={copied}", "--prompt=a star")
    assert done.code == 2 and str(file) in done.err
    file.unlink()
    done = command("sample.py", f"--workdir={copied}", "--prompt=a star")
    assert done.code == 2 and str(file) in done.err
