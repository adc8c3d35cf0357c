import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from zoo import media
from zoo.data import folder
from zoo.data.text import Tokenizer
from zoo.errors import UserError
from zoo.evaluation import attribute_editing
from zoo.method import normal_each, to_float, to_uint8
from zoo.runs import editor as edits
from zoo.runs.dependencies import open_run
from zoo.runs.editor import Editor
from zoo.scenes.grammar import describe, parse
from zoo.scenes.world import Scene, Thing

SHAPE = 1, 4, 4, 3
SIZE = 48
CONTRAST = 0.2


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def noise_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((count, *shape)).astype(np.float32) for shape in ((4, 4), (32,)))


def flat(noise):
    return np.concatenate([np.reshape(x, (len(x), -1)) for x in jax.tree.leaves(noise)], axis=1)


def lengths(x):
    return np.linalg.norm(np.reshape(x, (len(x), -1)), axis=1)


@dataclasses.dataclass(frozen=True)
class RotationOptions:
    guidance: float = 0.0
    contrast: float = CONTRAST


class Rotation:
    """Images are orthogonal maps of two levels of noise, brighter by a tenth where the caption says anything."""

    SampleOptions = RotationOptions
    inversion_options = {"guidance": 0.0}

    def __init__(self):
        self.matrix = np.linalg.qr(np.random.default_rng(0).standard_normal((SIZE, SIZE)))[0].astype(np.float32)

    def draw_noise(self, rng, shape):
        assert shape == SHAPE
        return normal_each(rng, (4, 4)), normal_each(jax.vmap(jax.random.fold_in, in_axes=(0, None))(rng, 1), (32,))

    def generate(self, params, noise, cond, options):
        a, b = noise
        z = jnp.concatenate([a.reshape(len(a), -1), b], axis=1)
        x = params["model"] * options.contrast * z @ self.matrix + options.guidance + self._light(cond)
        return x.reshape(-1, *SHAPE)

    def invert(self, params, rng, inputs, cond, options):
        z = (inputs.reshape(len(inputs), -1) - self._light(cond)) @ self.matrix.T / options.contrast / params["model"]
        return z[:, :16].reshape(-1, 4, 4), z[:, 16:]

    def _light(self, cond):
        return 0.1 * (cond["tokens"][:, 1:2] != 0)


class Doubled:
    """Latents are pixels times two."""

    def encode(self, frozen, pixels):
        return to_float(pixels) * frozen["latents"]

    def decode(self, frozen, latents):
        return latents / frozen["latents"]


def make_run(method, codec=None, **sample):
    tokenizer = Tokenizer.train(["a star"], 322, 8)
    conditions = lambda captions, frame_rate=None: {"tokens": tokenizer.encode(list(captions))}
    config = SimpleNamespace(sample=sample)
    recipe = SimpleNamespace(method=method, codec=codec, shape=SHAPE, conditions=conditions, config=config)
    run = SimpleNamespace(recipe=recipe, method=method, params={"model": 1.0, "frozen": {"latents": 2.0}})
    run.exact = run
    return run


@pytest.fixture(scope="module")
def editor():
    return Editor(make_run(Rotation(), guidance=1.5), per_device=2)


# ---- interpolation


def test_interpolation_ends_exactly_at_both_ends():
    a, b = noise_of(3), noise_of(3, seed=1)
    for fraction, end in ((0.0, a), (1.0, b)):
        found = edits.interpolate(a, b, jnp.full(3, fraction))
        assert all(np.array_equal(x, y) for x, y in zip(found, end, strict=True))


def test_interpolation_keeps_the_norm_and_turns_at_an_even_rate():
    a, b = noise_of(1), noise_of(1, seed=1)
    b = tuple(y * lengths(x) / lengths(y) for x, y in zip(a, b, strict=True))
    fractions = jnp.linspace(0, 1, 7)
    found = edits.interpolate(edits.repeat_each(a, 7), edits.repeat_each(b, 7), fractions)
    for x, start in zip(found, a, strict=True):
        np.testing.assert_allclose(lengths(x), lengths(start)[0], rtol=1e-5)
        units = np.reshape(x, (7, -1)) / lengths(x)[:, None]
        angles = np.arccos(np.sum(units[1:] * units[:-1], axis=1))
        np.testing.assert_allclose(angles, angles[0], atol=1e-4)
        assert angles[0] > 0.1


def test_interpolation_half_way_between_axes_is_known():
    a, b = jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 4.0]])
    np.testing.assert_allclose(edits.interpolate(a, b, jnp.array([0.5])), [[3 / 2**0.5] * 2], rtol=1e-6)


@pytest.mark.parametrize("factor", [3.0, -1.0, 1.0, 0.0])
def test_where_there_is_no_one_arc_the_line_is_taken(factor):
    a = noise_of(2)[1]
    found = edits.interpolate(a, factor * a, jnp.array([0.25, 0.5]))
    expected = a * np.array([[0.75 + 0.25 * factor], [0.5 + 0.5 * factor]])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_small_angle_is_no_accident_of_rounding():
    a = noise_of(1)[1]
    b = a + 1e-3 * noise_of(1, seed=1)[1]
    np.testing.assert_allclose(edits.interpolate(a, b, jnp.array([0.5])), (a + b) / 2, atol=1e-5)


# ---- variation


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.8, 1.0])
def test_variation_has_the_distribution_of_noise_and_the_given_correlation(strength):
    before = noise_of(4000)
    after = edits.vary(before, keys(4000), strength)
    for x, y in zip(before, after, strict=True):
        x, y = x.ravel(), np.ravel(y)
        assert abs(y.mean()) < 0.02 and abs(y.var() - 1) < 0.03
        assert abs(np.mean(x * y) - (1 - strength**2) ** 0.5) < 0.02
    if strength == 0:
        assert np.array_equal(flat(before), flat(after))


def test_the_new_noise_differs_between_levels_and_examples():
    fresh = edits.normal_like((jnp.zeros((2, 5)), jnp.zeros((2, 5))), keys(2))
    rows = np.concatenate(fresh)
    assert len(np.unique(rows, axis=0)) == 4


# ---- directions


def test_a_direction_is_the_difference_of_the_means():
    noise = noise_of(6)
    has = np.array([True, False, True, False, False, True])
    for found, x in zip(edits.direction(noise, has), noise, strict=True):
        assert found.shape == (1, *x.shape[1:])
        np.testing.assert_allclose(found[0], x[[0, 2, 5]].mean(0) - x[[1, 3, 4]].mean(0), atol=1e-6)


def test_moving_adds_the_direction_and_keeps_the_norm():
    noise, towards = noise_of(3), noise_of(1, seed=1)
    strengths = np.array([0.0, 1.0, -2.0], np.float32)
    for found, x, d in zip(edits.move(noise, towards, strengths), noise, towards, strict=True):
        np.testing.assert_allclose(lengths(found), lengths(x), rtol=1e-5)
        assert np.array_equal(found[0], x[0])
        for i in (1, 2):
            expected = x[i] + strengths[i] * d[0]
            np.testing.assert_allclose(found[i] / lengths(found)[i], expected / np.linalg.norm(expected), atol=1e-6)


def planted(count, strength=2.0):
    """Items of which a third are "bright" and lie `strength` further along a known axis of noise."""
    noise, axis, method = noise_of(count), noise_of(1, seed=5), Rotation()
    axis = tuple(x / np.linalg.norm(flat(axis)) for x in axis)
    has = np.arange(count) % 3 == 0
    noise = tuple(x + strength * has.reshape(-1, *[1] * (x.ndim - 1)) * d for x, d in zip(noise, axis, strict=True))
    pixels = to_uint8(method.generate({"model": 1.0}, noise, {"tokens": jnp.zeros((count, 8), int)}, RotationOptions()))
    texts = ["a bright thing" if bright else "a dark thing" for bright in has]
    return [{"inputs": p, "text": t} for p, t in zip(np.asarray(pixels), texts, strict=True)], flat(axis)[0]


def test_a_planted_attribute_is_found(editor):
    items, axis = planted(900)
    found = flat(attribute_editing.find_direction(editor, items, "bright"))[0]
    spread = (SIZE * (1 / 300 + 1 / 600)) ** 0.5  # of the difference of two means of noise
    assert np.linalg.norm(found - 2 * axis) < 1.3 * spread
    away = flat(attribute_editing.find_direction(editor, items, "dark", instead_of="bright"))[0]
    np.testing.assert_allclose(away, -2 * found, atol=1e-4)


def test_an_attribute_that_nothing_has_is_an_error_that_names_those_there_are(editor):
    items, _ = planted(9)
    with pytest.raises(UserError, match="'brigt': did you mean 'bright'.*known: .*dark.*thing") as caught:
        attribute_editing.find_direction(editor, items, "brigt")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="all 9 images have the attribute 'thing'"):
        attribute_editing.find_direction(editor, items, "thing")
    with pytest.raises(UserError, match="'green'"):
        attribute_editing.find_direction(editor, items, "bright", instead_of="green")


# ---- from images to noise and back


def test_inversion_finds_the_noise_and_generation_the_image(editor):
    noise = noise_of(11)
    images = editor.generate(noise, [""] * 11)
    assert images.shape == (11, *SHAPE) and images.dtype == np.uint8
    found = editor.invert(images, [""] * 11)
    assert [x.shape for x in found] == [(11, 4, 4), (11, 32)]
    np.testing.assert_allclose(flat(found), flat(noise), atol=SIZE**0.5 / 255 / CONTRAST)
    assert np.abs(editor.generate(found, [""] * 11).astype(int) - images).max() <= 1


def test_the_caption_is_the_one_that_was_given(editor):
    noise = noise_of(2)
    plain, lit = editor.generate(noise, ["", ""]), editor.generate(noise, ["", "a star"])
    assert np.array_equal(plain[0], lit[0])
    assert abs((lit[1].astype(int) - plain[1]).mean() - 0.1 * 127.5) < 1
    assert np.abs(flat(editor.invert(lit, ["", "a star"])) - flat(noise)).max() < SIZE**0.5 / 255 / CONTRAST


def test_a_round_trip_returns_the_largest_error_of_each_image(editor):
    pixels = editor.generate(editor.draw_noise(3), [""] * 3)
    found = editor.round_trip(pixels, ["", "a star", ""])
    assert found.shape == (3,) and found.max() < 1e-5
    guided = Editor(make_run(Rotation()), 2, guidance=0.2)  # inverted without it, since `invert` has none
    np.testing.assert_allclose(guided.round_trip(pixels, [""] * 3), 0.2, atol=1e-5)


def test_guidance_is_off_unless_given_and_options_reach_both_ways(editor):
    assert editor.options.guidance == 0.0
    noise = noise_of(3)
    plain = editor.generate(noise, [""] * 3)
    guided = Editor(make_run(Rotation(), guidance=1.5), 2, guidance=0.2)
    assert abs((guided.generate(noise, [""] * 3).astype(int) - plain).mean() - 0.2 * 127.5) < 1
    flatter = Editor(make_run(Rotation(), contrast=0.1), 2)
    np.testing.assert_allclose(flat(flatter.invert(plain, [""] * 3)), 2 * flat(noise), atol=0.3)
    with pytest.raises(UserError, match="'gidance': did you mean 'guidance'"):
        Editor(make_run(Rotation()), gidance=1.0)


def test_latents_are_encoded_and_decoded(editor):
    noise = noise_of(5)
    latent = Editor(make_run(Rotation(), Doubled()), per_device=2)
    images = latent.generate(noise, [""] * 5)
    again = latent.invert(images, [""] * 5)
    np.testing.assert_allclose(flat(again), flat(noise), atol=2 * SIZE**0.5 / 255 / CONTRAST)
    plain = editor.generate(noise, [""] * 5).astype(float) - 127.5
    assert np.abs((images - 127.5) * 2 - plain).max() <= 2


def test_an_example_depends_on_nothing_beside_it_nor_on_the_devices(editor, monkeypatch):
    images = editor.generate(editor.draw_noise(11), [""] * 11)
    alone = editor.generate(editor.draw_noise(1), [""])
    assert np.array_equal(alone, images[:1])
    masked = editor.inpaint(images, np.eye(4, dtype=bool), [""] * 11, rounds=2)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    single = Editor(make_run(Rotation(), guidance=1.5), per_device=2)
    assert np.array_equal(single.generate(single.draw_noise(11), [""] * 11), images)
    assert np.array_equal(flat(single.invert(images, [""] * 11)), flat(editor.invert(images, [""] * 11)))
    assert np.array_equal(single.inpaint(images[:5], np.eye(4, dtype=bool), [""] * 5, rounds=2), masked[:5])


def test_a_family_without_the_ability_is_an_error_that_names_those_with_it():
    with pytest.raises(UserError, match="object lacks the ability Invertible.*diffusion"):
        Editor(make_run(object()))


# ---- inpainting


def test_inpainting_returns_the_known_part_bit_for_bit_and_makes_the_rest_anew(editor):
    images = np.random.default_rng(0).integers(0, 256, (6, *SHAPE), np.uint8)
    mask = np.zeros((4, 4), bool)
    mask[:, 2:] = True
    made = editor.inpaint(images, mask, [""] * 6)
    assert np.array_equal(made[..., ~mask, :], images[..., ~mask, :])
    assert len(np.unique(made[..., mask, :].reshape(6, -1), axis=0)) == 6
    assert np.array_equal(editor.inpaint(images, np.zeros((4, 4), bool), [""] * 6, rounds=1), images)
    again = images.copy()
    again[..., mask, :] = 7
    assert np.array_equal(editor.inpaint(again, mask, [""] * 6), made)


@dataclasses.dataclass(frozen=True)
class NoOptions:
    pass


class Correlated:
    """Pixels are Gaussian, each with a part of its own and one that all share; small enough that none is clipped."""

    SampleOptions = NoOptions
    inversion_options = {}

    def __init__(self):
        shared = np.eye(SIZE) + 3 * np.ones((SIZE, SIZE)) / SIZE
        self.matrix = (0.12 * Rotation().matrix @ shared).astype(np.float32)
        self.covariance = self.matrix.T @ self.matrix

    def draw_noise(self, rng, shape):
        return normal_each(rng, shape)

    def generate(self, params, noise, cond, options):
        return (noise.reshape(len(noise), -1) @ self.matrix).reshape(noise.shape)

    def invert(self, params, rng, inputs, cond, options):
        return inputs


def test_inpainting_draws_from_the_conditional_distribution_where_that_is_known(monkeypatch):
    """Of a linear generator: the mean and the covariance of some pixels of a Gaussian given the others."""
    monkeypatch.setattr(edits, "TOLERANCE", 0.01)
    method, count = Correlated(), 1024
    editor = Editor(make_run(method), per_device=256)
    image = np.random.default_rng(0).normal(0.2, 0.1, (1, *SHAPE)).astype(np.float32)
    image = np.repeat(to_uint8(image), count, axis=0)
    mask = np.zeros((4, 4), bool)
    mask[0] = True
    made = editor.inpaint(image, mask, [""] * count, rounds=400).reshape(count, -1) / 127.5 - 1

    hidden = np.broadcast_to(mask[..., None], SHAPE).ravel()
    known = np.asarray(image[0]).ravel()[~hidden] / 127.5 - 1
    gain = method.covariance[hidden][:, ~hidden] @ np.linalg.inv(method.covariance[~hidden][:, ~hidden])
    covariance = method.covariance[hidden][:, hidden] - gain @ method.covariance[~hidden][:, hidden]
    mean, alone = gain @ known, np.diag(method.covariance)[hidden] ** 0.5
    deviation = np.diag(covariance) ** 0.5
    assert mean.min() > alone.max() and (deviation < 0.9 * alone).all()  # the known pixels matter
    np.testing.assert_allclose(made[:, hidden].mean(0), mean, atol=0.02)
    np.testing.assert_allclose(made[:, hidden].std(0), deviation, rtol=0.1)


# ---- attributes


def test_the_labels_of_scenes_are_what_is_true_of_them():
    scene = Scene("one", "grey", (Thing("star", "red", "small", (0, 1)),))
    item = {"text": "a thing", "attributes": scene.to_json()}
    assert attribute_editing.labels(item) == {"grey", "star", "red", "small", "top right", "one"}
    things = (
        Thing("star", "red", "small", (0, 1), motion="left", speed="slow"),
        Thing("ring", "red", "large", (1, 1)),
    )
    item = {"text": "a thing", "attributes": Scene("video", "black", things).to_json()}
    expected = {"black", "star", "ring", "red", "small", "large", "top", "centre", "two"}
    assert attribute_editing.labels(item) == expected | {"moving left", "standing still", "slowly"}


def test_the_labels_are_words_that_captions_use():
    for seed in range(20):
        thing = Thing("cross", "white", "large", (seed // 2 % 3, seed % 3), motion="blinking", speed="fast")
        scene = Scene("video", "brown", (thing,))
        text = describe(scene, np.random.default_rng(seed), omit=0.0)
        parse(text)
        words = attribute_editing.labels({"text": text, "attributes": scene.to_json()}) - {"one"}
        assert all(word in text for word in words)


def test_the_labels_of_others_are_the_words_of_the_caption():
    assert attribute_editing.labels({"text": "A photo of a Frog, on grass."}) == {
        "a",
        "photo",
        "of",
        "frog",
        "on",
        "grass",
    }


# ---- the command


@pytest.fixture
def zoo_edit(command, trained, tmp_path):
    """zoo_edit("invert", "--item=0") -> the command's code, out and err; it writes tmp_path / "out.png"."""
    script = "zoo/commands/edit.py"

    def zoo_edit(*words, workdir=trained, out="out.png"):
        return command(script, f"--workdir={workdir}", f"--out={tmp_path / out}", "--per_device=1", *words)

    return zoo_edit


@pytest.fixture
def image(tmp_path):
    """An image that has to be cropped and resized."""
    file = tmp_path / "wide.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 32, 3), np.uint8)).save(file)
    return file


@pytest.mark.parametrize(
    "words, shown",
    [
        (["invert", "--item=0"], 2),
        (["interpolate", "--item=0", "--prompt=a red star", "--count=3"], 3),
        (["direction", "--item=1", "--attribute=red", "--instead_of=blue", "--num=32", "--count=3"], 4),
        (["vary", "--item=1", "--strength=0.5", "--caption=a star", "--count=3"], 4),
    ],
)
def test_an_action_writes_images_and_how_they_were_made(zoo_edit, tmp_path, words, shown):
    done = zoo_edit(*words)
    assert done.code == 0, done.err
    pixels = np.asarray(Image.open(tmp_path / "out.png"))
    assert pixels.shape[1] == 8 + shown * (96 + 8)
    about = json.loads(media.read_metadata(tmp_path / "out.png")["zoo"])
    assert (about["action"], about["checkpoint"], about["settings"]["steps"]) == (words[0], 4, 2)
    assert about["flags"]["count"] == (8 if words[0] == "invert" else 3)


def test_an_image_from_a_file_is_fitted_and_shown(zoo_edit, tmp_path, image):
    done = zoo_edit("invert", f"--image={image}")
    assert done.code == 0, done.err
    assert "cropped at the centre" in done.err and " dB" in done.out
    shown = np.asarray(Image.open(tmp_path / "out.png"))[8 : 8 + 96, 8 : 8 + 96]
    fitted = folder.read_file(str(image), 16, 1)[0]
    assert np.array_equal(shown[::6, ::6], fitted)


def test_inpainting_shows_the_known_part_as_it_is(zoo_edit, tmp_path, trained):
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    done = zoo_edit("inpaint", "--item=2", f"--mask={tmp_path / 'mask.png'}", "--count=2", "--rounds=2")
    assert done.code == 0, done.err
    shown = np.asarray(Image.open(tmp_path / "out.png"))
    real = open_run(trained).recipe.data.open("test")[2]["inputs"][0]
    for i in range(3):
        image = shown[8 : 8 + 96 : 6, 8 + i * 104 : 8 + i * 104 + 96 : 6]
        assert np.array_equal(image[:, :8], real[:, :8])
        assert np.array_equal(image, real) == (i == 0)


def test_a_strip_can_be_a_gif(zoo_edit, tmp_path):
    done = zoo_edit("interpolate", "--item=0", "--item=1", "--count=4", out="out.gif")
    assert done.code == 0, done.err
    assert Image.open(tmp_path / "out.gif").n_frames == 4


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give one action of invert, interpolate, direction, vary, inpaint; got none"),
        (["invrt"], "did you mean 'invert'"),
        (["invert"], "needs 1 input image(s) by --image, --item or --prompt; got 0"),
        (["interpolate", "--item=1"], "needs 2 input image(s) by --image, --item or --prompt; got 1"),
        (["invert", "--item=6000"], "--item 6000: the test split has items 0 .. 5"),
        (["invert", "--image=nowhere.png"], "there is no file nowhere.png"),
        (["invert", "--image=README.md"], "unknown kind of image '.md'"),
        (["direction", "--item=0"], "needs --attribute"),
        (["direction", "--item=0", "--attribute=rad", "--num=32"], "'rad': did you mean 'red'"),
        (["direction", "--item=0", "--attribute=one", "--num=32"], "all 32 images have the attribute 'one'"),
        (["vary", "--item=0", "--strength=1.5"], "--strength 1.5: give a part"),
        (["invert", "--item=0", "--mask=nosuch.png"], "--mask is not for the action invert"),
        (["invert", "--item=0", "--strength=9"], "--strength is not for the action invert"),
        (["interpolate", "--item=0", "--item=1", "--attribute=red"], "--attribute is not for the action interpolate"),
        (["direction", "--item=0", "--attribute=red", "--strength=nan"], "--strength must be a finite number"),
        (["inpaint", "--item=0"], "inpaint needs --mask"),
        (["inpaint", "--item=0", "--mask=nowhere.png"], "--mask: nowhere.png cannot be read"),
        (["invert", "--item=0", "--option=stps=3"], "'stps': did you mean 'steps'"),
        (["invert", "--item=0", "--option=sampler=ddim", "--option=eta=0.5"], "eta=0.5 draws noise"),
        (["invert", "--item=0", "--negative=a ring"], "--negative is for images that --prompt samples"),
    ],
)
def test_a_wrong_request_is_an_error_of_one_line(zoo_edit, tmp_path, words, message):
    done = zoo_edit(*words)
    assert done.code == 2 and message in done.err, done.err
    assert done.err.count("error:") == 1 and done.err.splitlines()[-1].startswith("error:")
    assert not (tmp_path / "out.png").exists()


def test_a_mask_of_another_size_is_an_error_that_names_both_sizes(zoo_edit, image):
    done = zoo_edit("inpaint", "--item=0", f"--mask={image}")
    assert done.code == 2 and "is 32 x 20, and images are 16 x 16" in done.err


def test_a_file_that_is_no_image_is_an_error(zoo_edit, tmp_path):
    (tmp_path / "broken.png").write_text("no image")
    done = zoo_edit("invert", f"--image={tmp_path / 'broken.png'}")
    assert done.code == 2 and "cannot be used (it is not an image)" in done.err
