"""The oracle is right on clean images and does not take bad ones for good."""

import subprocess
import sys

import numpy as np
import pytest

from zoo import errors
from zoo.commands import oracle_eval
from zoo.scenes import grammar, oracle, world
from zoo.scenes.world import SPLITS, Scene, Thing

RNG = np.random.default_rng(2)


def draw(name: str, count: int, size: int, frames: int = 1, seed: int = 0):
    rng = np.random.default_rng(seed)
    drawn = [world.draw_scene(rng, name, SPLITS[i % 3]) for i in range(count)]
    texts = [grammar.describe(scene, rng, omit=0.0) for scene in drawn]
    return drawn, np.stack([world.render(scene, size, frames) for scene in drawn]), texts


@pytest.mark.parametrize(
    ("name", "size", "frames", "count"),
    [
        ("one", 16, 1, 500),
        ("full", 32, 1, 500),
        pytest.param("one", 16, 1, 2000, marks=pytest.mark.slow),
        pytest.param("one", 32, 1, 2000, marks=pytest.mark.slow),
        pytest.param("full", 32, 1, 2000, marks=pytest.mark.slow),
        pytest.param("full", 64, 1, 2000, marks=pytest.mark.slow),
        pytest.param("video", 32, 8, 500, marks=pytest.mark.slow),
        ("video", 32, 4, 100),
        ("video_one", 16, 4, 60),
        ("video_one", 16, 16, 30),
        pytest.param("video_one", 16, 8, 500, marks=pytest.mark.slow),
        pytest.param("video_one", 64, 8, 50, marks=pytest.mark.slow),
        ("video", 32, 16, 50),
        pytest.param("video", 64, 8, 50, marks=pytest.mark.slow),
    ],
)
def test_clean_scenes_are_read_right(name, size, frames, count):
    rng = np.random.default_rng(size + frames)
    wrong = 0
    for i in range(count):
        scene = world.draw_scene(rng, name, SPLITS[i % 3])
        found = oracle.observe(world.render(scene, size, frames), name)
        wrong += found.clutter or found.scene != scene.facts()
    assert wrong <= count / 1000


@pytest.mark.parametrize(("name", "size", "frames"), [("one", 16, 1), ("full", 32, 1), ("video", 32, 8)])
def test_real_images_score_one(name, size, frames):
    _, images, texts = draw(name, 40, size, frames)
    scores = oracle.table(images, texts, name)
    assert not scores.pop("unreadable").any() and all(right.all() for right in scores.values())


VIDEO = Scene(
    "video",
    "grey",
    (
        Thing("triangle", "red", "small", (0, 0), motion="right", speed="slow"),
        Thing("star", "blue", "large", (1, 2)),
    ),
)
CAPTION = (
    "two things: a small red triangle at the top left moving right slowly "
    "and a large blue star standing still on a grey background"
)


@pytest.mark.parametrize(
    ("attribute", "old", "new"),
    [
        ("count", "two things", "three things"),
        ("colour", "red", "green"),
        ("shape", "triangle", "ring"),
        ("size", "small red", "large red"),
        ("position", "top left", "top right"),
        ("background", "grey", "brown"),
        ("motion", "moving right", "growing"),
        ("speed", "slowly", "quickly"),
    ],
)
def test_a_swapped_attribute_is_wrong(attribute, old, new):
    video = world.render(VIDEO, 32, 8)
    assert oracle.score(video, CAPTION, "video")["all"] is True
    scores = oracle.score(video, CAPTION.replace(old, new), "video")
    assert [name for name, right in scores.items() if right is False] == [attribute, "all", "unreadable"]


def test_a_swapped_relation_is_wrong():
    video = world.render(VIDEO, 32, 8)
    assert oracle.score(video, "a triangle that starts above a star", "video")["relation"] is True
    scores = oracle.score(video, "a triangle that starts below a star", "video")
    assert scores["relation"] is False and scores["all"] is False


@pytest.mark.parametrize(
    "thing",
    [
        Thing("square", "white", "large", (1, 1), motion=motion, speed=speed)
        for motion in world.MOTIONS[1:]
        for speed in world.SPEEDS
    ],
)
def test_every_motion_is_read_right(thing):
    assert oracle.read(world.render(Scene("video", "black", (thing,)), 32, 8), "video").things == (thing,)


@pytest.mark.parametrize(("name", "size"), [("one", 16), ("full", 32)])
def test_blank_and_noise_are_not_readable(name, size):
    rng = np.random.default_rng(0)
    for value in (*world.BACKGROUNDS.values(), (255, 0, 255), (250, 250, 250)):
        assert oracle.read(np.full((1, size, size, 3), value, np.uint8), name) is None
    for _ in range(50):
        noise = rng.integers(256, size=(1, size, size, 3), dtype=np.uint8)
        assert oracle.read(noise, name) is None
        assert oracle.score(noise, "a thing", name)["all"] is False
        on_grey = oracle_eval.add_noise(np.full((1, size, size, 3), 96, np.uint8), 0.3, rng)
        assert oracle.score(on_grey, "a thing", name)["all"] is False


@pytest.mark.parametrize(("name", "size"), [("one", 16), ("full", 32)])
def test_the_more_blur_the_less_is_right(name, size):
    _, images, texts = draw(name, 150, size)
    right = [
        oracle.table(np.stack([oracle_eval.blur(p, sigma) for p in images]), texts, name)["all"].mean()
        for sigma in (0.5, 1.0, 3.0)
    ]
    assert right[0] >= 0.99 and right[1] < 0.8 and right[2] <= 0.02


@pytest.mark.parametrize("width", [2.0, 2.5, 3.0, 4.0])
def test_a_smooth_spot_is_no_thing(width):
    y, x = np.mgrid[:16, :16] + 0.5
    glow = np.exp(-((y - 4) ** 2 + (x - 4) ** 2) / (2 * width**2))[None, ..., None]
    image = (glow * np.array(world.COLOURS["red"])).astype(np.uint8)
    assert oracle.read(image, "one") is None


def test_what_can_be_read_of_an_image_that_is_not_readable_is_compared():
    y, x = np.mgrid[:16, :16] + 0.5
    glow = np.exp(-((y - 4) ** 2 + (x - 4) ** 2) / (2 * 2.5**2))[None, ..., None]
    image = (glow * np.array(world.COLOURS["red"])).astype(np.uint8)  # no thing has this shape
    claims = "a small red circle at the top left on a black background"
    scores = oracle.score(image, claims, "one")
    assert scores == scores | dict(colour=True, position=True, background=True, shape=False, size=False)
    assert (scores["all"], scores["unreadable"]) == (False, True)
    other = oracle.score(image, "a blue circle at the bottom right on a brown background", "one")
    assert not any(other[name] for name in ("colour", "position", "background"))


@pytest.mark.parametrize(("name", "size"), [("one", 16), ("full", 32)])
def test_colour_place_and_background_are_read_under_moderate_noise(name, size):
    _, images, texts = draw(name, 150, size)
    rng = np.random.default_rng(1)
    noisy = np.stack([oracle_eval.add_noise(image, 0.1, rng) for image in images])
    scores = {name: right.mean() for name, right in oracle.table(noisy, texts, name).items()}
    assert scores["unreadable"] > 0.3 and scores["all"] < 0.7
    assert scores["background"] >= 0.99 and scores["colour"] >= 0.9 and scores["position"] >= 0.9
    found = [oracle.observe(image, name) for image in noisy]
    assert np.mean([seen.scene is None or seen.clutter for seen in found]) == scores["unreadable"]


@pytest.mark.parametrize("damage", [lambda p: oracle_eval.blur(p, 1.0), lambda p: oracle_eval.add_noise(p, 0.1, RNG)])
def test_motions_are_read_under_blur_and_noise(damage):
    _, videos, texts = draw("video_one", 60, 16, 8)
    table = lambda damaged: {name: x.mean() for name, x in oracle.table(damaged, texts, "video_one").items()}
    scores = table([damage(video) for video in videos])
    assert scores["unreadable"] > 0.4 and scores["motion"] >= 0.9 and scores["speed"] >= 0.9
    still = np.mean(["standing still" in text for text in texts])
    for order in (RNG.permutation(8), np.arange(8)[::-1]):  # what stands still has no order
        assert table([damage(video[order]) for video in videos])["motion"] <= still + 0.1


def test_a_motion_that_only_shapes_show_is_not_read_without_them():
    thing = Thing("square", "red", "large", (1, 1), motion="spinning", speed="fast")
    video = world.render(Scene("video", "black", (thing,)), 32, 8)
    claims = "a large red square in the centre {} on a black background"
    assert oracle.score(video, claims.format("spinning quickly"), "video")["all"]
    damaged = oracle_eval.blur(video, 2.0)
    for motion in ("spinning quickly", "standing still"):
        scores = oracle.score(damaged, claims.format(motion), "video")
        assert scores["unreadable"] and scores["colour"] and not scores["motion"]


@pytest.mark.parametrize(("name", "size"), [("one", 16), ("full", 32)])
def test_nothing_is_read_of_noise_but_what_chance_gives(name, size):
    _, images, texts = draw(name, 100, size)
    noise = np.random.default_rng(0).integers(256, size=images.shape, dtype=np.uint8)
    scores = {name: right.mean() for name, right in oracle.table(noise, texts, name).items()}
    assert scores["unreadable"] == 1 and scores["all"] == 0
    assert max(scores[name] for name in ("colour", "shape", "size", "background")) <= 0.2


def test_clean_images_are_compared_as_a_whole():
    _, images, texts = draw("full", 40, 32)
    wrong = [*texts[1:], texts[0]]
    assert not oracle.table(images, wrong, "full")["unreadable"].any()


def test_an_unexplained_thing_spoils_all():
    scene = Scene("full", "black", (Thing("circle", "red", "large", (0, 0)),))
    image = world.render(scene, 32)
    assert oracle.score(image, "one thing: a red circle", "full")["all"] is True
    image[0, 20:23, 12:31] = world.COLOURS["green"]  # a bar
    scores = oracle.score(image, "one thing: a red circle", "full")
    assert scores["colour"] is True and scores["count"] is False and scores["all"] is False
    assert oracle.score(image, "a red circle", "full")["all"] is False


def test_world_one_holds_one_thing():
    two = (Thing("circle", "red", "large", (0, 0)), Thing("star", "blue", "large", (1, 1)))
    assert oracle.score(world.render(Scene("one", "black", two), 16), "a red circle", "one")["all"] is False
    assert oracle.score(world.render(Scene("one", "black", two[:1]), 16), "a red circle", "one")["all"] is True


def test_a_thing_that_jumps_or_changes_is_not_read():
    video = world.render(Scene("video", "black", (Thing("circle", "red", "large", (0, 0)),)), 32, 8)
    jump = video.copy()
    jump[4:] = np.roll(video[4:], (10, 10), (1, 2))
    assert oracle.observe(jump, "video").clutter
    assert oracle.score(jump, "a red circle", "video")["all"] is False
    change = video.copy()
    change[2:] = world.render(Scene("video", "black", (Thing("cross", "red", "large", (0, 0)),)), 32, 6)
    assert oracle.read(change, "video") is None


def test_bad_input():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    for pixels, name, message in (
        (image.astype(float), "full", "uint8"),
        (image[0], "full", "uint8"),
        (image[:, :16, :16], "full", "at least 32 px"),
        (np.repeat(image, 3, 0), "video", "use at least 4"),
        (np.repeat(image, 8, 0), "full", "has 1 frame"),
        (image, "ful", "did you mean 'full'"),
    ):
        with pytest.raises(errors.UserError, match=message):
            oracle.read(pixels, name)
    with pytest.raises(errors.UserError, match="cannot read"):
        oracle.score(image, "a cat", "full")
    with pytest.raises(errors.UserError, match="2 captions"):
        oracle.table(image[None], ["a ring", "a ring"], "full")


@pytest.mark.parametrize(("rate", "seconds"), [(4, 2), (8, 2), (16, 1)])
def test_motion_is_read_at_other_frame_rates(rate, seconds):
    rng = np.random.default_rng(rate)
    for _ in range(40):
        scene = world.draw_scene(rng, "video_one", "test_seen")
        video = world.render(scene, 16, rate * seconds, rate)
        assert oracle.observe(video, "video_one", rate).scene.facts() == scene.facts()
        text = grammar.describe(scene, rng, omit=0.0)
        assert oracle.score(video, text, "video_one", rate)["all"] is True


def test_frames_in_another_order_show_another_motion():
    moving = [scene for scene in draw("video_one", 300, 16, 8)[0] if scene.things[0].motion in world.DIRECTIONS]
    rng, right = np.random.default_rng(0), []
    for scene in moving:
        video, text = world.render(scene, 16, 8), grammar.describe(scene, rng, omit=0.0)
        for other in (video[::-1], video[rng.permutation(8)], video[[0] * 8]):
            right.append(oracle.score(other, text, "video_one")["motion"])
    assert np.mean(right) < 0.02 and len(right) > 300  # a slow thing may stay near its way


def test_one_frame_is_scored_without_its_motion():
    scenes, videos, texts = draw("video_one", 50, 16, 8)
    for scene, video, text in zip(scenes, videos, texts, strict=True):
        scores = oracle.score(video[:1], text, "video_one")
        assert scores["all"] is True and scores["motion"] is None and scores["speed"] is None
        assert oracle.observe(video[:1], "video_one").scene.things[0].shape == scene.things[0].shape


def test_a_thing_that_moves_aslant_is_not_read():
    thing = Thing("circle", "red", "small", (0, 0), motion="right", speed="fast")
    video = world.render(Scene("video_one", "black", (thing,)), 32, 8)
    aslant = np.stack([np.roll(frame, i, axis=0) for i, frame in enumerate(video)])
    assert oracle.observe(video, "video_one").scene and oracle.observe(aslant, "video_one").clutter


def test_command_prints_the_curve():
    command = [sys.executable, "-m", "zoo", "oracle_eval", "--world", "one", "--size", "16", "--num", "5"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert len(lines) == len(oracle_eval.BLURS) + len(oracle_eval.NOISES)
    assert lines[0].startswith("blur 0 ") and lines[0].endswith("all 1.000  unreadable 0.000")


def test_things_of_one_colour_and_of_two_differ():
    scenes, images, _ = draw("one", 20, 16)
    for scene, image in zip(scenes, images, strict=True):
        (share,) = oracle.colour_shares(image, "one")
        assert share > 0.99
        thing = np.abs(image[0].astype(int) - image[0, 0, 0]).max(axis=-1) > 60
        right = np.arange(16) > np.flatnonzero(thing.any(axis=0)).mean()
        other = "red" if scene.things[0].colour in ("blue", "green", "cyan") else "blue"
        image[0, thing & right] = world.COLOURS[other]
        (share,) = oracle.colour_shares(image, "one")
        assert 0.3 < share < 0.8
    assert oracle.colour_shares(np.full((1, 16, 16, 3), images[0, 0, 0, 0], np.uint8), "one") == []
