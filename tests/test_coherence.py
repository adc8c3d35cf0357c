"""Measures of videos against videos whose values are known."""

import dataclasses

import jax
import numpy as np
import pytest

from zoo import loop
from zoo.errors import UserError
from zoo.evaluation import coherence, distances, measures
from zoo.evaluation.features import motion_features
from zoo.evaluation.registry import MEASURES, EvalContext, Sample, evaluate, floor, reordered
from zoo.evaluation.rerank import get_reward
from zoo.runs.dependencies import open_run, prepare
from zoo.runs.run import Run
from zoo.scenes import world
from zoo.scenes.grammar import describe
from zoo.scenes.world import Scene, Thing


def drawn(count, frames=8, rate=None, seed=0):
    rng = np.random.default_rng(seed)
    scenes = [world.draw_scene(rng, "video_one", "test_seen") for _ in range(count)]
    videos = np.stack([world.render(scene, 16, frames, rate) for scene in scenes])
    return videos, [describe(scene, rng, omit=0.0) for scene in scenes], scenes


def test_a_frozen_video_neither_moves_nor_flickers():
    frozen = np.repeat(drawn(5)[0][:, :1], 8, axis=1)
    assert not coherence.change(frozen).any() and not coherence.flicker(frozen).any()


def test_motion_and_flicker_against_the_definitions():
    steps = np.array([0, 10, 20, 30], np.uint8).reshape(1, 4, 1, 1, 1)
    blinks = np.array([0, 10, 0, 10], np.uint8).reshape(1, 4, 1, 1, 1)
    assert coherence.change(np.concatenate([steps, blinks])).tolist() == [10, 10]
    assert coherence.flicker(np.concatenate([steps, blinks])).tolist() == [0, 20]
    with pytest.raises(UserError, match="at least 3 frames, got 2"):
        coherence.flicker(steps[:, :2])


def test_things_keep_their_identity_and_frames_of_different_videos_do_not():
    videos, _, _ = drawn(40)
    assert (coherence.identity(videos, "video_one") == 1).all()
    assert (coherence.readable_frames(videos, "video_one") == 1).all()
    mixed = np.stack([np.stack([videos[(i + t) % 40, t] for t in range(8)]) for i in range(40)])
    assert coherence.identity(mixed, "video_one").mean() < 0.1  # each frame is good, and no two show the same
    assert (coherence.readable_frames(mixed, "video_one") == 1).all()


def test_frames_of_scrambled_places_are_not_readable():
    videos, _, _ = drawn(40)
    order = np.random.default_rng(0).permutation(256)
    noise = videos.reshape(40, 8, 256, 3)[:, :, order].reshape(videos.shape)  # each place keeps its own colours
    assert coherence.readable_frames(noise, "video_one").mean() < 0.1
    assert coherence.identity(noise, "video_one").mean() < 0.1


def test_displacement_is_half_at_twice_the_frame_rate():
    thing = Thing("circle", "red", "small", (0, 0), motion="right", speed="slow")
    slow, fast = (world.render(Scene("video_one", "black", (thing,)), 32, rate, rate)[None] for rate in (8, 16))
    found = [float(coherence.displacement(videos, "video_one")[0]) for videos in (slow, fast)]
    np.testing.assert_allclose(found, [0.4 / 8, 0.4 / 16], rtol=0.03)
    blank = np.zeros((1, 4, 16, 16, 3), np.uint8)
    assert np.isnan(coherence.displacement(blank, "video_one")).all()


def test_measures_of_videos_stand_between_ceiling_and_floor():
    videos, texts, _ = drawn(60)
    context = EvalContext({}, {}, None, "video_one")
    names = ["oracle", "change", "coherence"]
    real, _ = evaluate(Sample(videos, texts, frame_rate=8.0), context, names)
    worthless = floor(Sample(videos, texts, frame_rate=8.0), context, names)
    assert real["all"].value == real["identity"].value == real["readable_frames"].value == 1
    assert worthless["flicker"].value > 1.5 * real["flicker"].value
    assert worthless["displacement"].value > 1.3 * real["displacement"].value
    assert real["flicker"].better == "ceiling" == real["displacement"].better and real["identity"].better == "higher"
    assert {MEASURES[name].floor for name in ("change", "coherence")} == {"reordered"}


@pytest.mark.parametrize("name", ["change", "coherence", "clip_score_per_frame"])
def test_images_have_none(name):
    videos, texts, _ = drawn(2)
    context = EvalContext({"clip": None}, {}, None, "video_one")  # no network is needed to refuse
    with pytest.raises(UserError, match=f"{name}: needs videos, and these are images"):
        evaluate(Sample(videos[:, :1], texts), context, [name])


# ---- in the features of a run that sees motion


@pytest.fixture(scope="module")
def seeing(tiny, tmp_path_factory):
    """Workdir of a run of two steps that is trained on motion."""
    workdir = tmp_path_factory.mktemp("motion") / "run"
    loop.train(tiny(spec="configs/clip.py:video,test"), workdir)
    return workdir


@pytest.fixture(scope="module")
def motion(tiny):
    """Features of a run that did not train, with layers of time that are not the identity."""
    _, recipe = prepare(tiny(spec="configs/clip.py:video,test"))
    run = Run(recipe, 0, recipe.create_state().params | {"frozen": {}})
    time = jax.tree.map(lambda x: x + 0.5 if np.abs(x).max() < 0.1 else x, run.params["model"]["time"])
    return motion_features(
        dataclasses.replace(run, params=run.params | {"model": run.params["model"] | {"time": time}})
    )


def test_the_features_of_motion_see_the_order_of_frames_and_their_rate(motion):
    videos = drawn(12, frames=4, rate=4.0)[0]
    made = motion.images(videos, 8.0)
    assert made.shape == (12, 64)
    assert np.abs(made - motion.images(videos[:, ::-1], 8.0)).max() > 1e-3
    assert np.abs(made - motion.images(videos, 16.0)).max() > 1e-3


def test_the_distance_of_motion_is_zero_of_the_same_and_frechets_of_many(motion, monkeypatch):
    videos, captions, _ = drawn(24, frames=4, rate=4.0)
    sample = Sample(videos, captions, frame_rate=8.0)
    context = EvalContext({"motion": motion}, {"motion": sample.features(motion)}, None, "video_one")
    (few,) = evaluate(sample, context, ["motion_distance"])[0].items()
    monkeypatch.setattr(measures, "FRECHET_VIDEOS", 24)
    (many,) = evaluate(sample, context, ["motion_distance"])[0].items()
    assert (few[0], many[0]) == ("motion_mmd", "motion_frechet")
    assert few[1].value == pytest.approx(0, abs=1e-6) and many[1].value == pytest.approx(0, abs=1e-7)
    mixed = floor(sample, context, ["motion_distance"])["motion_frechet"].value
    assert mixed == pytest.approx(distances.frechet(reordered(sample, 0).features(motion), sample.features(motion)))
    assert mixed > 1e-6


def test_what_the_features_of_motion_refuse(motion, trained):
    videos = drawn(4, frames=4, rate=4.0)[0]
    for pixels, message in ((videos[:, :1], "these are images"), (videos[:, :, :8, :8], "of 16 px, not 8")):
        with pytest.raises(UserError, match=message):
            motion.images(pixels, 8.0)
    with pytest.raises(UserError, match="train one by configs/clip.py:video"):
        motion_features(open_run(trained))
    with pytest.raises(UserError, match="--motion"):
        evaluate(Sample(videos, None), EvalContext({}, {}, None, None), ["motion_distance"])


@pytest.mark.slow
def test_the_best_of_several_videos_is_chosen_at_their_rate(seeing, monkeypatch):
    asked = []
    plain = Run.conditions
    monkeypatch.setattr(
        Run, "conditions", lambda self, texts, rate=None: asked.append(rate) or plain(self, texts, rate)
    )
    scores = get_reward(str(seeing), None, 8.0)(drawn(3, frames=4, rate=4.0)[0], ["a star"] * 3)
    assert asked == [8.0] and np.isfinite(scores).all()


@pytest.mark.slow
def test_a_run_trained_on_motion_is_no_clip_of_images(seeing, command, tmp_path):
    done = command("zoo/commands/export_clip.py", f"--workdir={seeing}", f"--out={tmp_path / 'clip'}")
    assert done.code == 2 and "layers of time" in done.err and not (tmp_path / "clip").exists()


def test_displacement_follows_one_thing():
    still = Thing("circle", "red", "small", (0, 0), motion="static")
    blinks = Thing("square", "blue", "large", (1, 1), motion="blinking", speed="fast")
    video = world.render(Scene("video", "grey", (still, blinks)), 64, 8, 8.0)
    assert coherence.displacement(video[None], "video") == pytest.approx([0.0], abs=0.02)
