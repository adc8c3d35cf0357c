"""Measures of videos against videos whose values are known."""

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.evaluation import coherence
from zoo.evaluation.registry import MEASURES, EvalContext, Sample, evaluate, floor
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
