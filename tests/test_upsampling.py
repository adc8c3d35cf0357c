"""Stages of a cascade: what they are given, windows, and that nothing depends on what is drawn beside it."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from zoo import conditions, loop, media
from zoo.commands import sampling_flags
from zoo.config import load
from zoo.data import images as files
from zoo.data.folder import read_file
from zoo.data.pipeline import open_source
from zoo.errors import UserError
from zoo.evaluation.measures import MOST_PSNR, by_consistency, by_pair, by_seams
from zoo.evaluation.nfe_sweep import nfe_sweep
from zoo.evaluation.registry import EvalContext, Pair, Sample, enlarged, smaller
from zoo.families import build_method
from zoo.method import ReadsGiven, Upsamples, to_float, to_uint8
from zoo.nets.layers import sincos_from, sincos_table
from zoo.runs.cascade import Cascade, Stage, build
from zoo.runs.dependencies import open_run, prepare
from zoo.wrappers.upsampling import Upsampling, filled, resized

STAGE = "configs/upsample.py:space,test"
BASE = SimpleNamespace(players=("model",), reads_given=True)


def stage(**fields):
    return Upsampling(BASE, 20, jnp.float32, **({"scale": 2, "resizing": "box"} | fields))


def videos(count=2, frames=8, size=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, frames, size, size, 3)).astype(np.uint8)


# ---- what a stage is given


def test_scenes_made_smaller_are_the_scenes_drawn_smaller():
    large, small = (open_source("scenes/video_one?fps=4&examples=64", "train", size, 4) for size in (32, 16))
    for i in range(8):
        made = to_uint8(stage().smaller(to_float(jnp.asarray(large[i]["inputs"][None]))))[0]
        assert np.abs(np.asarray(made).astype(int) - small[i]["inputs"]).max() <= 1


def test_files_made_smaller_are_the_files_read_smaller():
    image = videos(1, 1, 32)[0, 0]
    read = files.fit(Image.fromarray(image), 16).astype(int)
    made = to_uint8(stage(resizing="lanczos").smaller(to_float(jnp.asarray(image[None, None]))))[0, 0]
    assert np.abs(np.asarray(made).astype(int) - read).max() <= 2  # pillow rounds between rows and columns


def test_known_frames_are_every_second_one_and_unknown_ones_show_the_known_one_before():
    x = to_float(jnp.asarray(videos(frames=4)))
    given = stage(scale=1, rate=2).given_by(x)
    assert given["known"].tolist() == [[1, 0, 1, 0]] * 2 and given["level"].tolist() == [0, 0]
    shown = filled(given["low_res"], given["known"])
    np.testing.assert_array_equal(shown, x[:, jnp.array([0, 0, 2, 2])])
    none_before = filled(x, jnp.array([[0, 0, 1, 0]] * 2))
    assert not none_before[:, :2].any() and (none_before[:, 3] == x[:, 2]).all()


@pytest.mark.parametrize("fields", [{"scale": 2}, {"scale": 1, "rate": 2}, {"scale": 2, "rate": 2}])
def test_a_small_video_is_given_as_that_of_the_exact_pair(fields):
    method, real = stage(**fields), videos()
    given, again = method.given_by(to_float(jnp.asarray(real))), method.given_of(smaller(method, real), 8)
    seen = lambda given: np.asarray(filled(given["low_res"], given["known"]))
    np.testing.assert_allclose(seen(given), seen(again), atol=1.01 / 127.5)  # of one level
    np.testing.assert_array_equal(given["known"], again["known"])


def test_a_prefix_is_known_beside_what_is_small_and_the_rest_is_not():
    method, real = stage(scale=2, rate=2), videos()
    given = method.given_of(smaller(method, real)[:, :3], 8, prefix=real[:, :3], level=0.25)
    assert given["known"].tolist() == [[1, 1, 1, 0, 1, 0, 0, 0]] * 2 and given["level"].tolist() == [0.25, 0.25]
    np.testing.assert_allclose(given["low_res"][:, :3], method.smaller(to_float(jnp.asarray(real)))[:, :3], atol=1e-6)


def test_frames_known_in_training_are_interleaved_first_or_both():
    draw = lambda **fields: np.asarray(stage(rate=2, **fields)._draw_known(jax.random.key(0), (4000, 8)))
    every = np.arange(8) % 2 == 0
    assert (draw(prefix=0.0) == every).all()
    known = draw(prefix=0.5)
    has_every, first = known[:, every].all(axis=1), np.cumprod(known, axis=1).sum(axis=1)
    assert 0.7 < has_every.mean() < 0.9  # 1/4 know the first frames alone, and some of these are all
    both = has_every & (known[:, 1] > 0)  # 6/28 the first two or more beside every second one, 1/28 all but the last
    assert 0.22 < both.mean() < 0.28
    alone = known[~has_every]
    assert (alone.sum(axis=1) == first[~has_every]).all() and alone[:, 0].all() and set(first) == set(range(1, 9)) - {8}


def test_noise_of_a_level_is_that_of_the_linear_path():
    method, seen = stage(scale=1, rate=2), {}

    class Base(SimpleNamespace):
        def sample(self, params, rng, cond, shape, options):
            seen.update(cond)
            return jnp.full((len(rng), *shape), 0.5)

    method = dataclasses.replace(method, base=Base(reads_given=True))
    small = np.full((2, 16, 32, 32, 3), 255, np.uint8)
    for level in (0.0, 0.4):
        cond = method.given_of(small, 32, level=level) | {"tokens": jnp.zeros((2, 3))}
        made = method.sample({}, jax.random.split(jax.random.key(0), 2), cond, (32, 32, 32, 3), None)
        noisy = np.asarray(seen["given"])[:, ::2, ..., :3]
        assert noisy.mean() == pytest.approx(1 - level, abs=0.01) and noisy.std() == pytest.approx(level, abs=0.01)
        assert (seen["given"][..., 3] == jnp.array([1.0, 0.0] * 16)[:, None, None]).all()
        assert seen["level"].tolist() == pytest.approx([level] * 2) and "low_res" not in seen
        # Known frames are taken as they are where the level is 0, and made again where it is not.
        assert (made[:, ::2] == (1.0 if level == 0 else 0.5)).all() and (made[:, 1::2] == 0.5).all()


@pytest.mark.parametrize(("level", "weight"), [(0.0, 1.0), (0.05, 0.4993), (0.1, 0.1871), (0.4, 0.00932)])
def test_what_is_expected_of_the_video_fades_with_its_noise(level, weight):
    method, given = stage(), stage().given_by(to_float(jnp.asarray(videos())))
    read = method._read({}, given | {"level": jnp.full(2, level)}, (8, 8, 8, 3))
    np.testing.assert_allclose(read["expected"], weight * read["given"][..., :3], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("prediction", "sign"), [("x", 1), ("v", -1)])
def test_a_stage_begins_with_the_enlarged_video(prediction, sign):
    config = load(STAGE)
    config.method.base.prediction = prediction
    method = build_method(config.method, 20, "float32")
    real = videos(2, 4, 32)
    cond = {"tokens": jnp.ones((2, 32), jnp.int32), "frame_rate": jnp.full(2, 4.0)}
    params = method.init(jax.random.key(0), {"inputs": real, "cond": cond})
    read = method._read(cond, method.given_by(to_float(jnp.asarray(real))), real.shape[1:])
    z = jax.random.normal(jax.random.key(1), real.shape)
    predicted = method.base.apply(params, z, jnp.full(2, 0.5), read)
    np.testing.assert_allclose(predicted, sign * read["given"][..., :3], atol=1e-5)


def test_guidance_and_dropping_leave_what_is_given():
    cond = {"tokens": jnp.full((2, 3), 5)} | {name: jnp.ones((2, 1)) for name in conditions.GIVEN}
    for changed in (conditions.empty(cond), conditions.drop(jax.random.key(0), cond, 1.0)):
        assert not (changed["tokens"] == 5).any() and all((changed[name] == 1).all() for name in conditions.GIVEN)
    assert all((conditions.duplicate(cond)[name] == 1).all() for name in conditions.GIVEN)


def test_a_crop_has_the_positions_and_the_pixels_of_its_place():
    whole = sincos_table(6, 6, 16).reshape(6, 6, 16)
    origin = jnp.array([[0, 0], [1, 3]])
    parts = np.asarray(sincos_from(origin, 3, 3, 16)).reshape(2, 3, 3, 16)
    np.testing.assert_allclose(parts, [whole[:3, :3], whole[1:4, 3:6]], atol=1e-6)
    base = SimpleNamespace(network=SimpleNamespace(network=SimpleNamespace(patch_size=2)), reads_given=True)
    method, real = dataclasses.replace(stage(crop=8), base=base), to_float(jnp.asarray(videos(32, 2, 16)))
    x, given = method._cut(jax.random.key(0), real, method.given_by(real))
    assert x.shape == (32, 2, 8, 8, 3) and given["low_res"].shape == (32, 2, 4, 4, 3)
    origins = np.asarray(given["origin"])
    assert (origins % 2 == 0).all() and {0, 8} <= set(origins.reshape(-1).tolist()) and origins.max() == 8
    for i, (down, right) in enumerate(origins):
        np.testing.assert_array_equal(x[i], real[i, :, down : down + 8, right : right + 8])
    np.testing.assert_allclose(given["low_res"], method.smaller(x), atol=1e-6)  # boxes do not reach over the edge


def test_resizing_keeps_a_plain_image():
    x = jnp.full((1, 1, 4, 6, 3), 0.3)
    for method in ("box", "lanczos", "bicubic", "bilinear"):
        for rows, columns in ((8, 12), (2, 3)):
            made = resized(x, rows, columns, method)
            assert made.shape == (1, 1, rows, columns, 3) and np.allclose(made, 0.3, atol=1e-6)


# ---- training and drawing


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Workdirs of a base run, and of stages in time and in space after it."""
    folder = tmp_path_factory.mktemp("cascade")
    quick = {"loop.steps": 1, "loop.grid_every": 0}
    loop.train(tiny(quick | {"loop.grid_prompts": ()}, "configs/video.py:test"), folder / "base")
    loop.train(tiny(quick, "configs/upsample.py:time,test"), folder / "time")
    loop.train(tiny(quick, STAGE), folder / "space")
    return {"folder": folder} | {name: open_run(folder / name) for name in ("base", "time", "space")}


def cascade(runs, names=("time", "space"), **fields):
    base = runs["base"]
    return build("base", base.shape, base.recipe.frame_rate, [(name, runs[name]) for name in names], **fields)


@pytest.mark.slow
def test_a_guide_raises_size_and_rate_as_the_stage_does(runs, command, monkeypatch, tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    media.save(tmp_path / "small.gif", small, runs["space"].recipe.frame_rate)
    monkeypatch.setattr(sampling_flags, "check_shared", lambda *_: None)  # which asks for images of one size
    words = f"--input={tmp_path / 'small.gif'}", f"--guide_workdir={runs['folder'] / 'time'}", "--guidance=1"
    done = command("sample.py", f"--workdir={runs['folder'] / 'space'}", *words, f"--out={tmp_path / 'out.gif'}")
    assert done.code == 2 and "raises size and frame rate by (2, 1), " in done.err and "by (1, 2)" in done.err


@pytest.mark.slow
def test_a_cascade_draws_what_does_not_depend_on_what_is_beside_it(runs):
    captions = ["a small red star", "a large blue circle", "a green square"]
    small = runs["base"].sample(captions, per_device=1)
    draw = cascade(runs, per_device=2, levels=(0.2, 0.0))
    made = draw(small, captions, seed=3)
    assert [part.shape for part in made] == [(3, 8, 16, 16, 3), (3, 8, 32, 32, 3)]
    alone = draw(small[1:2], captions[1:2], seed=3, numbers=np.array([1]))
    for part, one in zip(made, alone, strict=True):
        np.testing.assert_array_equal(part[1:2], one)
    same, other = draw(small[:1], captions[:1], seed=3), draw(small[:1], captions[:1], seed=4)
    assert (other[0] != same[0]).any() and (same[0] == made[0][:1]).all()


@pytest.mark.slow
def test_long_videos_continue_by_prefix_and_short_ones_are_cut(runs):
    captions = ["a small red star"] * 2
    small = runs["base"].sample(captions)
    [made] = cascade(runs, ("time",), frames=20)(small, captions, seed=0)
    assert made.shape == (2, 20, 16, 16, 3)
    [short] = cascade(runs, ("time",))(small, captions, seed=0)
    np.testing.assert_array_equal(made[:, :7], short[:, :7])  # but for the last frame, which was a guess
    np.testing.assert_array_equal(made[:, :8:2], small)


def long_stage(frames, window, small, sampler=None, **fields):
    method = stage(**({"scale": 1, "rate": 2, "prefix": 0.5} | fields))
    recipe = SimpleNamespace(conditions=lambda captions, negative: {"said": [negative] * len(captions)})
    run = SimpleNamespace(shape=(window, 4, 4, 3), method=method, recipe=recipe, params=None)
    return Stage("", run, small, frames, 0.0, sampler or SimpleNamespace(evaluations=3))


@pytest.mark.parametrize(
    ("frames", "window", "small", "fields", "windows"),
    [
        (16, 16, 8, {}, [(0, 0)]),
        (20, 8, 10, {}, [(0, 0), (4, 3), (8, 3), (12, 3)]),  # the last frame of each window has no known one after it
        (22, 12, 11, {}, [(0, 0), (6, 5), (10, 7)]),  # the last one ends where the video ends
        (20, 16, 8, {}, [(0, 0), (4, 11)]),  # 16 frames are given, and four follow
        (32, 16, 10, {}, [(0, 0), (4, 11), (12, 7), (16, 11)]),  # first all that is given, then what follows
        (32, 16, 16, {"prefix": 0.0}, [(0, 0), (14, 1), (16, 13)]),
        (20, 8, 20, {"scale": 2, "rate": 1, "prefix": 0.0}, [(0, 0), (8, 0), (12, 4)]),
        (12, 8, 3, {"rate": 4}, [(0, 0), (4, 1)]),
    ],
)
def test_windows_of_long_videos(frames, window, small, fields, windows):
    made = long_stage(frames, window, small, **fields)
    assert made.windows == windows
    assert made.seams == tuple(start + kept for start, kept in windows[1:])


def test_windows_are_given_the_small_video_and_what_was_drawn_before():
    calls = []

    def sampler(params, cond, seed, part, numbers):
        calls.append((cond, part))
        return np.full((2, 8, 4, 4, 3), 10 * len(calls), np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None, None]

    made = long_stage(12, 8, 6, sampler)
    small = videos(2, 6, 4)
    drawn = made(small, ["a", "b"], seed=0, part=2, negative="blur")
    start, kept = made.windows[1]
    assert drawn[0, :, 0, 0, 0].tolist() == [10, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27] and (start, kept) == (4, 3)
    (first, part), (second, other) = calls
    assert part != other and first["said"] == second["said"] == ["blur"] * 2
    assert first["known"][0].tolist() == [1, 0] * 4 and second["known"][0].tolist() == [1, 1, 1, 0, 1, 0, 1, 0]
    np.testing.assert_array_equal(first["low_res"][:, ::2], to_float(jnp.asarray(small[:, :4])))
    np.testing.assert_array_equal(second["low_res"][:, :3], to_float(jnp.asarray(drawn[:, 4:7])))
    np.testing.assert_array_equal(second["low_res"][:, 4::2], to_float(jnp.asarray(small[:, 4:])))


def test_a_negative_caption_is_of_the_first_stage_alone():
    seen = []

    def sampler(params, cond, seed, part, numbers):
        seen.append((cond["said"], part, numbers.tolist()))
        return np.zeros((1, 8, 4, 4, 3), np.uint8)

    stages = long_stage(8, 8, 4, sampler), long_stage(8, 8, 8, sampler, scale=2, rate=1)
    drawn = Cascade(stages)(videos(1, 4, 4), ["a"], 0, "blur", np.array([7]))
    assert len(drawn) == 2 and seen == [(["blur"], 1, [7]), ([""], 2, [7])]


def fake(shape, frame_rate=None, **fields):
    return "stage", SimpleNamespace(
        shape=shape,
        recipe=SimpleNamespace(frame_rate=frame_rate),
        method=stage(**fields),
        sampler=lambda per_device, **options: SimpleNamespace(evaluations=3),
    )


@pytest.mark.parametrize(
    ("chosen", "fields", "message"),
    [
        ([fake((8, 16, 16, 3), 8.0)], {}, "upsamples 8 x 8 px, and base has 16 x 16 px"),
        ([fake((8, 32, 32, 3), 4.0)], {}, "upsamples videos of 4 frames/s, and base has 8 frames/s"),
        ([fake((1, 32, 32, 3))], {}, "upsamples images, and base has videos"),
        ([fake((8, 32, 32, 3), 8.0)], {"frames": 12}, "12 are wanted: longer videos need a stage with method.prefix"),
        ([fake((8, 32, 32, 3), 8.0)], {"frames": 4}, "4 frames need 4 of base, which has 8: give at least 8"),
        ([fake((16, 16, 16, 3), 16.0, scale=1, rate=2)], {"frames": 17}, "multiply frames by 2: give a multiple"),
        ([fake((8, 32, 32, 3), 8.0)], {"levels": [0.6]}, "level 0.6: stage was trained on levels from 0 to 0.5"),
        ([fake((8, 32, 32, 3), 8.0)], {"levels": [0.1, 0.2]}, "one for each of the 1, got 2"),
        ([fake((16, 32, 32, 3), 8.0)], {}, "draws at least 16 frames, and the 8 it is given make 8: give more"),
        ([fake((16, 32, 32, 3), 8.0, prefix=0.5)], {"frames": 32}, "is given 8 frames, and upsamples at least 16"),
        ([fake((2, 16, 16, 3), 16.0, scale=1, rate=2, prefix=0.5)], {}, "draws 2 frames of one: 16 need a stage that"),
        ([fake((8, 32, 32, 3), 8.0)] * 16, {}, "at most 15 stages"),
    ],
)
def test_stages_that_do_not_fit_are_named(chosen, fields, message):
    with pytest.raises(UserError, match=message):
        build("base", (8, 16, 16, 3), 8.0, chosen, **fields)


def test_stages_in_any_order_fit():
    time_first = [fake((16, 16, 16, 3), 16.0, scale=1, rate=2), fake((16, 32, 32, 3), 16.0)]
    space_first = [fake((8, 32, 32, 3), 8.0), fake((16, 32, 32, 3), 16.0, scale=1, rate=2)]
    for chosen in (time_first, space_first, [fake((16, 32, 32, 3), 16.0, scale=2, rate=2)]):
        made = build("base", (8, 16, 16, 3), 8.0, chosen)
        assert made.frame_rate == 16 and made.stages[-1].frames == 16 and made.evaluations == 3 * len(chosen)


def test_a_run_from_text_is_no_stage():
    with pytest.raises(UserError, match="lacks the ability Upsamples; families with it: upsampling"):
        build("base", (8, 16, 16, 3), 8.0, [("stage", SimpleNamespace(method=SimpleNamespace()))])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method.scale": 1}, "needs scale or rate above 1"),
        ({"method.scale": 0}, "method: scale must be in"),
        ({"method.rate": -1}, "method: rate must be in"),
        ({"method.largest_level": 1.5}, "method: largest_level must be in"),
        ({"method.prefix": -0.5}, "method: prefix must be in"),
        ({"method.crop": 7}, "no multiple of scale"),
        ({"method.resizing": "lanczos"}, "small images of scenes/video_one.* are made by 'box': set it"),
        ({"method.resizing": "boks"}, "unknown resizing 'boks': known: bicubic, bilinear, box"),
        ({"method.base.name": "flow"}, "method.base"),
    ],
)
def test_values_that_cannot_be(tiny, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(tiny(changes, STAGE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method.scale": 3}, "scale 3 does not divide images of 32 x 32"),
        ({"method.rate": 3}, "rate 3 does not divide 8 frames"),
        ({"method.crop": 64}, "larger than the images"),
        ({"loop.grid_prompts": ("a star",), "loop.grid_every": 1}, "draws its grid from the test split"),
    ],
)
def test_values_that_do_not_fit_the_data(tiny, changes, message, tmp_path):
    with pytest.raises(UserError, match=message):
        loop.train(tiny(changes, STAGE), tmp_path / "run")


def test_a_stage_of_other_data_is_named(capsys):
    run = lambda source: SimpleNamespace(recipe=SimpleNamespace(data=SimpleNamespace(source=source)))
    base = run("scenes/one?omit=0")
    sampling_flags.note_other_data("base", base, [("a", run("scenes/one?fps=8")), ("b", run("folder:emoji"))])
    assert capsys.readouterr().err == "note: b was trained on folder:emoji, and base on scenes/one\n"


def test_words_of_images_and_time_exclude_each_other():
    with pytest.raises(UserError, match="images have no frame rate"):
        load("configs/upsample.py:images,time")


@pytest.mark.parametrize("family", ["diffusion", "mean_flow"])
def test_families_that_read_what_is_given_are_stages(tiny, family):
    base = tiny(spec=f"configs/{family}.py:test").method.to_dict()
    method = build_method({"name": "upsampling", "scale": 2, "base": base}, 20, "float32")
    assert isinstance(method, Upsamples) and isinstance(method.base, ReadsGiven) and not isinstance(method, ReadsGiven)


# ---- measures


@pytest.mark.parametrize("fields", [{"scale": 2}, {"scale": 1, "rate": 2}, {"scale": 2, "rate": 2}])
def test_the_real_video_is_consistent_and_its_own_pair(fields):
    method = stage(**fields)
    real = np.repeat(np.repeat(videos(2, 8, 8), 2, axis=2), 2, axis=3)
    context = EvalContext({}, {}, None, None)
    of = lambda images: Sample(images, None, pair=Pair.of(method, real))
    scores = by_consistency(of(real), context) | by_pair(of(real), context)
    assert scores["consistency"].value == scores["pair_psnr"].value == MOST_PSNR
    assert ("pair_psnr_last" in scores) == (method.rate > 1)
    wrong = by_consistency(of(255 - real), context) | by_pair(of(255 - real), context)
    assert wrong["consistency"].value < 15 and wrong["pair_psnr"].value < 15


def test_what_is_enlarged_without_a_network_is_bicubic_with_frames_repeated_or_blended():
    method, real = stage(scale=2, rate=2), videos()
    pair = Pair.of(method, real)
    frames = real.shape[1]
    made = enlarged(pair, frames)
    repeated, blended = made["repeated"], made["blended"]
    assert repeated.shape == blended.shape == real.shape and (repeated[:, ::2] == repeated[:, 1::2]).all()
    expected = Image.fromarray(pair.small[0, 0]).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(repeated[0, 0], np.asarray(expected))
    np.testing.assert_array_equal(blended[:, ::2], repeated[:, ::2])
    mean = (repeated[:, 0].astype(float) + repeated[:, 2]) / 2
    assert np.abs(blended[:, 1] - mean).max() <= 0.5 and (blended[:, -1] == repeated[:, -1]).all()
    assert (enlarged(pair, frames + 2)["repeated"][:, frames:] == repeated[:, -1:]).all()
    assert enlarged(Pair.of(stage(scale=2), real), frames).keys() == {"bicubic"}


def test_seams_are_where_windows_meet():
    jump = np.zeros((3, 8, 4, 4, 3), np.uint8)
    jump[:, 1::2] = 10
    jump[:, 5:] += 40  # at frame 5 by 50, elsewhere by 10
    pair = Pair(stage(), jump[:, :, ::2, ::2], seams=(5,))
    scores = by_seams(Sample(jump, None, pair=pair), EvalContext({}, {}, None, None))
    assert {name: score.value for name, score in scores.items()} == {"seam_change": 50, "inner_change": 10}
    source = open_source("scenes/video_one?fps=8&examples=64", "test", 32, 8)
    moving = np.stack([item["inputs"] for item in source if "moving" in item["text"] and "slow" in item["text"]])
    skipped, pair = moving[:, [0, 1, 3]], Pair(stage(), moving, seams=(2,))
    scores = by_seams(Sample(skipped, None, pair=pair), EvalContext({}, {}, None, "video_one"))
    assert scores["seam_identity"].value == scores["inner_identity"].value == 1
    assert scores["seam_displacement"].value == pytest.approx(2 * scores["inner_displacement"].value, rel=0.1)
    with pytest.raises(UserError, match="give more --frames"):
        by_seams(Sample(jump, None, pair=Pair(stage(), jump)), EvalContext({}, {}, None, None))


def test_pairs_are_of_stages_alone():
    assert Pair.of(SimpleNamespace(), videos()) is None
    for measure in (by_consistency, by_pair, by_seams):
        with pytest.raises(UserError, match="that a stage of a cascade upsampled"):
            measure(Sample(videos(), None), EvalContext({}, {}, None, None))
    with pytest.raises(UserError, match="score the stage by itself"):
        by_pair(Sample(videos(), None, pair=Pair(stage(), videos(2, 8, 4))), EvalContext({}, {}, None, None))


# ---- commands


@pytest.mark.slow
def test_sample_and_score_chain_stages(runs, command, tmp_path):
    stages = [f"--upsample={runs['folder'] / name}" for name in ("time", "space")]
    words = f"--workdir={runs['folder'] / 'base'}", *stages
    out = tmp_path / "x.gif"
    best = "--best_of=3", "--keep=2", "--reward=oracle", "--stages", "--level=0.1"
    done = command("sample.py", *words, "--prompt=a red star", "--prompt=a blue circle", *best, f"--out={out}")
    assert done.code == 0 and "2 stages in" in done.out, done.err
    about = json.loads(media.read_metadata(out)["zoo"])
    assert len(about["prompts"]) == 4 and [stage["level"] for stage in about["stages"]] == [0.1, 0.1]
    with Image.open(out) as grid:
        assert media.gif_rate(grid) == 8 and grid.width > 3 * 2 * 96  # the base and two stages, side by side, twice
    few = "--num=6", "--num_reference=8"
    done = command("zoo/commands/score.py", *words, *few, "--measures=oracle,consistency")
    assert done.code == 0 and "consistency" in done.out, done.err
    content = json.loads((runs["folder"] / "base" / "upsampled_scores.json").read_text())
    assert not (runs["folder"] / "base" / "scores.json").exists()  # these are the base's own
    assert content["model"]["consistency"] < 60 and content["ceiling"]["all"] == 1
    assert content["bicubic"]["consistency"] > 15 and "consistency" not in content["ceiling"]


@pytest.mark.slow
def test_a_stage_upsamples_a_file_and_scores_on_real_pairs(runs, command, tmp_path):
    source = open_source("scenes/video_one?fps=4&examples=64", "test", 16, 4)
    media.save(tmp_path / "small.gif", source[0]["inputs"], 4)
    stage, out = f"--workdir={runs['folder'] / 'time'}", f"--out={tmp_path / 'large.gif'}"
    given = f"--input={tmp_path / 'small.gif'}", f"--upsample={runs['folder'] / 'space'}", "--steps=1"
    given += "--guide_ema=none", "--guidance=1", "--fps=8"
    done = command("sample.py", stage, *given, "--prompt=a star", f"--out={tmp_path / 'chain.gif'}")
    assert done.code == 0, done.err
    about = json.loads(media.read_metadata(tmp_path / "chain.gif")["zoo"])
    assert [Path(one["run"]).name for one in about["stages"]] == ["time", "space"]
    assert (about["frames"], about["fps"], about["settings"]["steps"]) == (8, 8, 1)
    done = command("sample.py", stage, f"--input={tmp_path / 'small.gif'}", "--prompt=a star", "--each", out)
    assert done.code == 0, done.err
    made = read_file(str(tmp_path / "large" / "0000.gif"), 16, 8, 8)
    assert np.abs(made[::2].astype(int) - source[0]["inputs"]).max() <= 8  # known frames, but for a GIF's colours
    alone = command("sample.py", stage, f"--input={tmp_path / 'small.gif'}", f"--out={tmp_path / 'alone.gif'}")
    assert alone.code == 0 and "not like the captions" not in alone.out, alone.err
    assert json.loads(media.read_metadata(tmp_path / "alone.gif")["zoo"])["prompts"] == [""]
    few = "--num=6", "--num_reference=8", "--measures=pair", f"--out={tmp_path / 'x.json'}"
    done = command("zoo/commands/score.py", stage, *few, "--level=0.5")
    assert done.code == 0, done.err
    noisy = json.loads((tmp_path / "x.json").read_text())
    assert noisy["about"]["stages"][0]["level"] == 0.5 and noisy["about"]["frames"] == 8
    done = command("zoo/commands/score.py", stage, *few)
    assert done.code == 0, done.err
    exact = json.loads((tmp_path / "x.json").read_text())
    assert exact["model"]["pair_psnr"] > noisy["model"]["pair_psnr"] and exact["about"]["evaluations"] == 3
    done = command("zoo/commands/score.py", stage, *few[:2], "--frames=12", "--measures=pair,seams", few[-1])
    assert done.code == 0, done.err
    long = json.loads((tmp_path / "x.json").read_text())
    assert long["about"]["frames"] == 12 and {"seam_change", "pair_psnr"} <= long["model"].keys()
    [row] = nfe_sweep(runs["time"], [2], {}, ["pair"], num=6, num_reference=8)
    assert row["scores"] == pytest.approx(exact["model"], rel=0.01)  # not rounded to levels
    names = {"psnr", "psnr_last", "ssim", "ssim_last"}
    assert exact["repeated"].keys() == exact["blended"].keys() == exact["model"].keys()
    assert exact["model"].keys() == {f"pair_{name}" for name in names}


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("time", [], "give it a base run by --workdir BASE --upsample STAGE, or --input"),
        ("time", ["--input=none.gif"], "--input: there is no file none.gif"),
        ("time", ["--input={}/small.png"], "unknown kind of video '.png'"),
        (
            "time",
            ["--input={}/large.gif"],
            "^error: --input: .*large.gif is 32 x 32 px, not 16 x 16 px: give one of this size$",
        ),
        ("time", ["--input={}/fast.gif"], "fast.gif has 8 frames/s, and this stage upsamples 4"),
        ("time", ["--input={}/broken.gif"], "broken.gif cannot be read"),
        ("time", ["--input={}/small.gif", "--fps=4"], "--fps 4: the stages make 8 frames/s of .*small.gif"),
        ("time", ["--input={}/small.gif", "--fps=0"], "--fps 0: the stages make 8 frames/s of .*small.gif"),
        ("time", ["--input={}/small.gif", "--guide_workdir={}/space"], "guide_workdir"),
        ("time", ["--input={}/small.gif", "--steps=0"], "steps"),
        ("base", ["--input={}/small.gif"], "--input is for a stage of a cascade, and .*base draws from text: drop it"),
        ("time", ["--input={}/small.gif", "--guide_workdir={}/base"], "guide_workdir"),
        ("time", ["--input={}/cut.gif"], "--input: .*cut.gif cannot be read"),
        ("base", ["--stages"], "--stages shows what stages were given: name one by --upsample"),
        ("base", ["--each"], "out/0000.gif cannot be written: .* is a file"),
        ("base", ["--keep=2"], "--keep 2 is more than the 1 images of --best_of"),
        ("base", ["--level=0.1"], "--level is of a stage: name one by --upsample"),
        ("base", ["--upsample={}/base"], "base: .*lacks the ability Upsamples"),
        ("base", ["--upsample={}/space"], "space upsamples videos of 8 frames/s, and .*base has 4 frames/s"),
        ("base", ["--upsample={}/time", "--frames=7"], "the stages multiply frames by 2: give a multiple"),
        ("base", ["--upsample={}/time", "--fps=0"], "--fps 0: .*time makes 8 frames/s alone: drop it"),
        ("base", ["--upsample={}/time", "--fps=12"], "--fps 12: .*time makes 8 frames/s alone: drop it"),
    ],
)
@pytest.mark.slow
def test_commands_that_cannot_be(runs, command, name, words, message):
    folder = runs["folder"]
    if not (folder / "small.gif").exists():
        for file, size, rate in (("small.gif", 16, 4), ("large.gif", 32, 4), ("fast.gif", 16, 8)):
            media.save(folder / file, videos(1, 4, size)[0], rate)
        media.save(folder / "small.png", videos(1, 1, 16)[0])
        (folder / "broken.gif").write_bytes(b"GIF89a")
        (folder / "cut.gif").write_bytes((folder / "small.gif").read_bytes()[:-2000])
        (folder / "out").write_text("a file where --each would make a folder")
    given = [word.format(folder) for word in words]
    done = command("sample.py", f"--workdir={folder / name}", "--prompt=a star", *given, f"--out={folder / 'out.gif'}")
    assert done.code == 2 and re.search(message, done.err.strip(), re.MULTILINE), done.err
    assert not (folder / "out.gif").exists()
