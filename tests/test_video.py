"""Videos through the loop: resume, devices, images beside them, a start from images, and sampling at other rates."""

import dataclasses
import functools
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from zoo import loop, media
from zoo.commands import preview
from zoo.config import load
from zoo.errors import UserError
from zoo.families import families_with
from zoo.method import Axis, Generates, Output, to_float
from zoo.methods.flow import Flow
from zoo.methods.generator import spread, style
from zoo.runs.dependencies import open_run, prepare
from zoo.runs.editor import Editor
from zoo.training import parallel
from zoo.training.state import Step

VIDEO = "configs/video.py:test"
TOGETHER = "configs/video.py:images,test"
QUICK = {"loop.grid_every": 0, "loop.checkpoint_every": 2, "loop.steps": 4}


@pytest.fixture(scope="module")
def video(tiny, tmp_path_factory):
    """Workdir of a run of a step on videos."""
    workdir = tmp_path_factory.mktemp("video") / "run"
    loop.train(tiny(QUICK | {"loop.steps": 1}, VIDEO), workdir)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "changes"), [(TOGETHER, {}), ("configs/upsample.py:space,test", {"method.crop": 16})])
def test_half_the_steps_and_the_other_half_equal_all_bit_for_bit(tiny, tmp_path, same, saved_state, spec, changes):
    config = tiny(QUICK | changes, spec)
    loop.train(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    loop.train(config, tmp_path / "run")
    for name, field in saved_state(tmp_path / "whole")[1].items():
        assert same(field, saved_state(tmp_path / "run")[1][name]), name


@dataclasses.dataclass(frozen=True, eq=False)
class NoiseOfRows:
    """A method whose noise is that of a row of the batch, however the batch is dealt out."""

    method: Any
    players = ("model",)

    def loss(self, player, params, batch, rng, axis, step):
        keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(batch["row"])

        def of_row(key, row):
            alone = jax.tree.map(lambda x: x[None], row)
            return self.method.loss(player, params, alone, key, Axis(), step)[0]

        loss = jax.vmap(of_row)(keys, {name: batch[name] for name in ("inputs", "cond")}).mean()
        return loss, Output({"loss": loss})


@pytest.mark.slow
@pytest.mark.parametrize("spec", [VIDEO, "configs/upsample.py:space,time,test"])
def test_one_device_and_four_of_the_same_total_batch_agree(tiny, spec):
    source, recipe = prepare(tiny({}, spec))
    batch = next(recipe.stream(source)) | {"row": np.arange(8)}
    state = recipe.create_state()
    state = dataclasses.replace(state, params=jax.tree.map(lambda x: x + 0.01, state.params))

    def gradient(batch, axis):
        step = Step(NoiseOfRows(recipe.method), recipe.optimizers, 1, 0, axis)
        return axis.pmean(step.gradient("model", state, {}, batch, jax.random.key(0))[0])

    whole = jax.jit(lambda batch: gradient(batch, Axis()))(batch)
    parts = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
    dealt = jax.pmap(lambda part: gradient(part, parallel.Devices()), axis_name=parallel.AXIS_NAME)(parts)
    assert optax.global_norm(whole) > 0.01
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[0], atol=1e-5), whole, dealt)


def test_a_dry_run_counts_the_images_beside_videos(tiny):
    assert preview.examples(*prepare(tiny({}, TOGETHER))) == [
        "examples               64 in scenes/video_one?fps=4&examples=64",
        "images beside them     64 in scenes/video_one?examples=64, 16 in a step",
    ]


@pytest.mark.slow
def test_the_loss_of_both_is_the_weighted_sum(tiny):
    source, recipe = prepare(tiny({"method.weight": 0.5}, TOGETHER))
    batch = jax.tree.map(jnp.asarray, next(recipe.stream(source)))
    assert batch["inputs"].shape[1] == 4 and batch["images"]["inputs"].shape[:2] == (16, 1)
    assert (batch["cond"]["frame_rate"] == 4).all() and not batch["images"]["cond"]["frame_rate"].any()
    params, base = recipe.create_state().params, recipe.method.base
    total, output = recipe.method.loss("model", params, batch, jax.random.key(3), Axis(), 0)
    keys = jax.random.split(jax.random.key(3))
    videos = base.loss("model", params, batch, keys[0], Axis(), 0)[0]
    images = base.loss("model", params, batch["images"], keys[1], Axis(), 0)[0]
    np.testing.assert_allclose(total, videos + 0.5 * images, rtol=1e-6)
    assert {"video_loss", "image_loss", "loss"} <= set(output.metrics)
    assert output.metrics["loss"] == total and output.fake.shape == batch["inputs"].shape


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (VIDEO, {"data.images": "scenes/one", "data.images_batch_size": 8}, "the method joint reads images"),
        (TOGETHER, {"data.images": "", "data.images_batch_size": 0}, "the method joint reads images"),
        (TOGETHER, {"data.images_batch_size": 0}, "give both or none"),
        (TOGETHER, {"data.images": "scenes/video_two"}, "did you mean"),
        (TOGETHER, {"method.weight": 0.0}, r"method: weight must be in \(0, inf\), got 0"),
        (VIDEO, {"data.source": "scenes/video_one?fps=8"}, "4 frames at 8 frames/s do not show each motion"),
        (VIDEO, {"data.source": "scenes/one"}, "stand still"),
    ],
)
def test_what_cannot_be_is_an_error(tiny, spec, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(tiny(changes, spec))


# ---- a start from images


@pytest.fixture(scope="module")
def images(tiny, tmp_path_factory):
    """Workdir of a run on the first frames of the same scenes."""
    workdir = tmp_path_factory.mktemp("images") / "run"
    source = {"data.source": "scenes/video_one?examples=32", "data.frames": 1, "method.net.space_time": "spatial"}
    loop.train(tiny(QUICK | source, VIDEO), workdir)
    return workdir


@pytest.mark.slow
def test_a_video_run_starts_as_its_image_run_on_every_frame(images, tiny, tmp_path, capsys):
    still = {"players.model.learning_rate": 0.0, "loop.steps": 1, "init": str(images)}
    loop.train(tiny(QUICK | still, VIDEO), tmp_path / "run")
    note = f"init: {images} lacks frame_rate, seconds, temporal, temporal_modulation: they start as drawn"
    assert note in capsys.readouterr().err
    video, image = open_run(tmp_path / "run"), open_run(images)
    z, t = np.random.default_rng(0).normal(size=(2, 4, 16, 16, 3)).astype("f"), jnp.array([0.3, 0.7])
    words = ["a red star at the top left", "a blue ring"]
    found = video.method.apply(video.params, z, t, video.conditions(words))
    each = lambda x: np.repeat(x, 4, axis=0)
    cond = jax.tree.map(each, image.conditions(words))
    expected = image.method.apply(image.params, z.reshape(8, 1, 16, 16, 3), each(t), cond)
    np.testing.assert_allclose(found, np.asarray(expected).reshape(z.shape), atol=1e-6)


@pytest.mark.slow
def test_other_differences_stay_errors(images, tiny):
    with pytest.raises(UserError, match=r"has another model, .*method.net.width: 32 -> 48"):
        prepare(tiny({"init": str(images), "method.net.width": 48}, VIDEO))


def test_an_image_run_does_not_start_from_a_video_run(video, tiny):
    changes = {"data.source": "scenes/video_one?examples=32", "data.frames": 1, "method.net.space_time": "spatial"}
    with pytest.raises(UserError, match="has another model, with .*frame_rate"):
        prepare(tiny({"init": str(video)} | changes, VIDEO))


# ---- sampling


def test_another_rate_and_number_of_frames(video, command, tmp_path):
    words = f"--workdir={video}", "--prompt=a red star moving right", "--num=2", "--steps=1"
    done = command("sample.py", *words, "--frames=8", "--fps=8", f"--out={tmp_path / 'x.gif'}")
    assert done.code == 0, done.err
    with Image.open(tmp_path / "x.gif") as made:
        assert made.info["duration"] == 120 and made.n_frames <= 8  # hundredths of a second
    about = media.read_metadata(tmp_path / "x.gif")["zoo"]
    assert '"fps": 8.0' in about and '"frames": 8' in about and "moving right" in about
    done = command("sample.py", *words, f"--out={tmp_path / 'x.png'}")
    assert done.code == 0 and Image.open(tmp_path / "x.png").width > 4 * 96


@pytest.mark.slow
def test_the_rate_matters_to_the_samples(video):
    run = open_run(video)
    rng = np.random.default_rng(0)  # gates of time, and the last layer, start at zero
    moved = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype("f"), run.params["model"])
    run = dataclasses.replace(run, params=run.params | {"model": moved})
    slow, fast = (run.sample(["a red star"], frame_rate=rate, steps=1) for rate in (4.0, 16.0))
    longer = run.sample(["a red star"], frames=6, steps=1)
    assert slow.shape == (1, 4, 16, 16, 3) and longer.shape[1] == 6 and (slow != fast).any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fps=8"], "--fps: 8 frames/s: this run makes images, which have no frame rate"),
        (["--frames=4", "--out=x.gif"], "this run makes images, and 4 frames are a video"),
    ],
)
def test_an_image_run_makes_no_videos(trained, command, words, message):
    done = command("sample.py", f"--workdir={trained}", "--prompt=a star", *words)
    assert done.code == 2 and message in done.err


@pytest.mark.slow
def test_one_frame_has_no_rate_and_short_videos_no_oracle(video, command, tmp_path):
    run = open_run(video)
    image = run.sample(["a red star"], frames=1, steps=1)
    sampler = run.sampler(1, 1, steps=1)
    np.testing.assert_array_equal(image, sampler(run.params, run.recipe.conditions(["a red star"], frames=1), 0))
    words = f"--workdir={video}", "--prompt=a red star", "--steps=1", "--frames=3", f"--out={tmp_path / 'x.gif'}"
    done = command("sample.py", *words)
    assert done.code == 0 and "no oracle: 3 frames at 4 frames/s do not show each motion" in done.out
    done = command("sample.py", *words, "--best_of=2", "--reward=oracle")
    assert done.code == 2 and "--reward oracle: 3 frames" in done.err


@pytest.mark.slow
def test_editing_keeps_frames_and_rate(video, command, tmp_path):
    words = "vary", f"--workdir={video}", "--prompt=a red star", "--steps=1", "--guidance=0"
    done = command("zoo/commands/edit.py", *words, "--fps=8", f"--out={tmp_path / 'x.gif'}")
    assert done.code == 2 and "--fps cannot be changed by edit" in done.err
    done = command("zoo/commands/edit.py", *words, f"--out={tmp_path / 'x.png'}")
    assert done.code == 0 and Image.open(tmp_path / "x.png").width > 4 * 96, done.err


def test_a_family_whose_networks_differ_for_images_is_refused(tiny, monkeypatch):
    monkeypatch.delattr(Flow, "MAY_BE_NEW")
    config = tiny({}, TOGETHER)
    config.method.base, config.sample = tiny({}, "configs/flow.py:test").method, {}
    with pytest.raises(UserError, match="a Flow cannot train on images beside videos"):
        prepare(config)[1].create_state()


def test_images_that_cannot_be_dealt_out_are_an_error_before_training(tiny, tmp_path):
    with pytest.raises(UserError, match="data.images_batch_size 6 cannot be divided by 4 devices"):
        loop.train(tiny({"data.images_batch_size": 6}, TOGETHER), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_a_frozen_base_has_all_its_parts(images, tiny):
    config = tiny({"init": str(images)}, "configs/diffusion.py:policy,test")
    config.method.base = tiny({}, VIDEO).method
    config.data = tiny({}, VIDEO).data
    with pytest.raises(UserError, match="has another model, without .*frame_rate"):
        prepare(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_rate": 0.0}, "the frame rate must be above 0, got 0"),
        ({"frame_rate": float("nan")}, "the frame rate must be above 0, got nan"),
        ({"frame_rate": 8.0, "frames": 1}, "one frame has no frame rate"),
        ({"frames": -1}, "frames must be a whole number of at least 1, got -1"),
        ({"frames": 2.5}, "frames must be a whole number of at least 1, got 2.5"),
        ({"frames": 0}, "frames must be a whole number of at least 1, got 0"),
    ],
)
def test_rates_and_lengths_that_cannot_be_sampled(video, options, message):
    with pytest.raises(UserError, match=message):
        open_run(video).sample(["a red star"], **options)


def test_videos_are_inverted_at_their_own_rate(video):
    run = open_run(video)
    rates = [Editor(run, frame_rate=rate)._rows(np.zeros((1, 4, 16, 16, 3)), ["a star"])["cond"] for rate in (None, 16)]
    assert [cond["frame_rate"].tolist() for cond in rates] == [[4], [16]]


@pytest.mark.slow
def test_scores_of_another_rate_stand_beside_real_videos_of_that_rate(video, command, tmp_path):
    words = f"--workdir={video}", "--num=6", "--num_reference=8", "--measures=change,bits_per_dim", "--steps=1"
    at = lambda *more: command("zoo/commands/score.py", *words, f"--out={tmp_path / 'x.json'}", *more)
    ceilings = []
    for rate in (4, 16):
        done = at("--frames=16", f"--fps={rate}")
        assert done.code == 0, done.err
        ceilings.append(json.loads((tmp_path / "x.json").read_text())["ceiling"]["change"])
    assert ceilings[1] < 0.6 * ceilings[0]  # things go a fourth of the way from frame to frame
    done = at("--reference=scenes/video_one?fps=8&examples=64", "--frames=8")
    assert done.code == 2 and "--reference has 8 frames/s and the samples 4: add ?fps=" in done.err


def test_a_rate_that_is_none_is_an_error(video, command):
    done = command("sample.py", f"--workdir={video}", "--prompt=a star", "--fps=0")
    assert done.code == 2 and "--fps: the frame rate must be above 0, got 0" in done.err


@pytest.mark.slow
def test_the_step_takes_two_static_shapes(tiny):
    source, recipe = prepare(tiny({}, TOGETHER))
    step = recipe.step(1)
    batch = jax.tree.map(lambda x: x[None], next(recipe.stream(source)))
    state, metrics = jax.jit(step)(recipe.create_state(), {}, batch)
    assert state.step == 1 and np.isfinite(metrics["model/image_loss"]).all()


GENERATORS = [
    "configs/diffusion.py:test",
    "configs/diffusion.py:critic,test",
    "configs/mean_flow.py:test",
    "configs/vae.py:test",
    "configs/vae.py:autoencoder,critic,test",
    "configs/flow.py:test",
    "configs/flow.py:jet,test",
    "configs/gan.py:test",
    "configs/tokens.py:masked,test",
    "configs/tokens.py:masked,critic,test",
    "configs/tokens.py:autoregressive,test",
    "configs/tokens.py:continuous,test",
]


def test_each_family_that_generates_is_among_those_that_make_videos():
    names = [load(spec).method.name for spec in GENERATORS]
    within_others = {"generator", "coarse"}  # in a critic; on a run, with videos of codes in test_patches
    assert {*families_with(Generates)} <= {*names, *within_others}


@pytest.mark.parametrize("spec", GENERATORS)
def test_each_family_learns_from_videos_and_makes_them(tiny, spec):
    source = {"data.source": "scenes/video_one?fps=4&examples=64", "data.frames": 4}
    recipe = prepare(tiny(source, spec))[1]
    batch, method = recipe.blank_batch(2), recipe.method
    frames, params = batch["inputs"].shape[1:], recipe.state_shapes().params
    assert frames == (4, 16, 16, 3)
    rest = batch, jax.random.key(0), Axis(), jnp.zeros((), jnp.int32)
    for player in dict.fromkeys(method.players):
        loss = lambda params, player=player: method.loss(player, params, *rest)[0]
        assert jax.eval_shape(loss, params).shape == ()
    keys, options = jax.random.split(jax.random.key(0), 2), recipe.sampler().options
    sampled = jax.eval_shape(lambda params: method.sample(params, keys, batch["cond"], frames, options), params)
    assert sampled.shape == (2, *frames)


def test_the_style_of_noise_is_normal_and_its_spread_has_it():
    noise = jax.random.normal(jax.random.key(0), (500, 8, 6))
    assert abs(style(noise).std() - 1) < 0.03
    np.testing.assert_allclose(style(spread(noise[:, 0], 8)), noise[:, 0], rtol=1e-6)


@pytest.mark.slow
def test_the_noise_that_inverts_a_video_has_equal_frames_and_the_norm_of_its_style(tiny):
    source = {"data.source": "scenes/video_one?fps=4&examples=64", "data.frames": 4}
    recipe = prepare(tiny(source, "configs/gan.py:test"))[1]
    batch, params, base = recipe.blank_batch(2), recipe.create_state().params, recipe.method.base
    keys, options = jax.random.split(jax.random.key(0), 2), base.SampleOptions(inversion_steps=2)
    found = base.invert(params, keys, to_float(batch["inputs"]), batch["cond"], options)
    assert found.shape == (2, 4, base.latent_dim)
    np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1], found.shape))
    np.testing.assert_allclose(jnp.linalg.norm(found, axis=(1, 2)), jnp.linalg.norm(style(found), axis=1), rtol=1e-5)
