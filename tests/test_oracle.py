"""The oracle is right on clean pictures and does not take bad ones for good."""

import subprocess
import sys

import numpy as np
import pytest

from zoo import errors
from zoo.data import grammar, world
from zoo.data.world import SPLITS, Scene, Thing
from zoo.scoring import oracle


def draw(name: str, count: int, size: int, frames: int = 1, seed: int = 0):
    rng = np.random.default_rng(seed)
    drawn = [world.draw_scene(rng, name, SPLITS[i % 3]) for i in range(count)]
    texts = [grammar.describe(scene, rng, omit=0.0) for scene in drawn]
    return drawn, np.stack([world.render(scene, size, frames) for scene in drawn]), texts


@pytest.mark.parametrize(
    ("name", "size", "frames", "count"),
    [
        ("one", 16, 1, 2000),
        ("one", 32, 1, 2000),
        ("full", 32, 1, 2000),
        ("full", 64, 1, 2000),
        ("clips", 32, 8, 500),
        ("clips", 32, 4, 100),
        ("clips", 32, 16, 50),
        ("clips", 64, 8, 50),
    ],
)
def test_clean_scenes_are_read_right(name, size, frames, count):
    rng = np.random.default_rng(size + frames)
    wrong = 0
    for i in range(count):
        scene = world.draw_scene(rng, name, SPLITS[i % 3])
        reading = oracle.look(world.render(scene, size, frames), name)
        wrong += reading.clutter or reading.scene != scene.facts()
    assert wrong <= count / 1000


@pytest.mark.parametrize(("name", "size", "frames"), [("one", 16, 1), ("full", 32, 1), ("clips", 32, 8)])
def test_real_pictures_score_one(name, size, frames):
    _, pictures, texts = draw(name, 40, size, frames)
    assert all(right.all() for right in oracle.table(pictures, texts, name).values())


CLIP = Scene(
    "clips",
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
def test_a_swapped_attribute_is_judged_wrong(attribute, old, new):
    clip = world.render(CLIP, 32, 8)
    assert oracle.score(clip, CAPTION, "clips")["all"] is True
    judged = oracle.score(clip, CAPTION.replace(old, new), "clips")
    assert [name for name, right in judged.items() if right is False] == [attribute, "all"]


def test_a_swapped_relation_is_judged_wrong():
    clip = world.render(CLIP, 32, 8)
    assert oracle.score(clip, "a triangle that starts above a star", "clips")["relation"] is True
    judged = oracle.score(clip, "a triangle that starts below a star", "clips")
    assert judged["relation"] is False and judged["all"] is False


@pytest.mark.parametrize(
    "thing",
    [
        Thing("square", "white", "large", (1, 1), motion=motion, speed=speed)
        for motion in world.MOTIONS[1:]
        for speed in world.SPEEDS
    ],
)
def test_every_motion_is_told_from_every_other(thing):
    assert oracle.read(world.render(Scene("clips", "black", (thing,)), 32, 8), "clips").things == (thing,)


@pytest.mark.parametrize(("name", "size"), [("one", 16), ("full", 32)])
def test_blank_and_noise_are_not_readable(name, size):
    rng = np.random.default_rng(0)
    for value in (*world.BACKGROUNDS.values(), (255, 0, 255), (250, 250, 250)):
        assert oracle.read(np.full((1, size, size, 3), value, np.uint8), name) is None
    for _ in range(50):
        noise = rng.integers(256, size=(1, size, size, 3), dtype=np.uint8)
        assert oracle.read(noise, name) is None
        assert oracle.score(noise, "a thing", name)["all"] is False
        on_grey = oracle.add_noise(np.full((1, size, size, 3), 96, np.uint8), 0.3, rng)
        assert oracle.score(on_grey, "a thing", name)["all"] is False


@pytest.mark.parametrize(("name", "size"), [("one", 16), ("full", 32)])
def test_the_more_blur_the_less_is_right(name, size):
    _, pictures, texts = draw(name, 150, size)
    right = [
        oracle.table(np.stack([oracle.blur(p, sigma) for p in pictures]), texts, name)["all"].mean()
        for sigma in (0.5, 1.0, 3.0)
    ]
    assert right[0] >= 0.99 and right[1] < 0.8 and right[2] <= 0.02


@pytest.mark.parametrize("width", [2.0, 2.5, 3.0, 4.0])
def test_a_smooth_spot_is_no_thing(width):
    y, x = np.mgrid[:16, :16] + 0.5
    glow = np.exp(-((y - 4) ** 2 + (x - 4) ** 2) / (2 * width**2))[None, ..., None]
    picture = (glow * np.array(world.COLOURS["red"])).astype(np.uint8)
    assert oracle.read(picture, "one") is None


def test_an_unexplained_thing_spoils_all():
    scene = Scene("full", "black", (Thing("circle", "red", "large", (0, 0)),))
    picture = world.render(scene, 32)
    assert oracle.score(picture, "one thing: a red circle", "full")["all"] is True
    picture[0, 20:23, 12:31] = world.COLOURS["green"]  # a bar
    judged = oracle.score(picture, "one thing: a red circle", "full")
    assert judged["colour"] is True and judged["count"] is False and judged["all"] is False
    assert oracle.score(picture, "a red circle", "full")["all"] is False


def test_world_one_holds_one_thing():
    two = (Thing("circle", "red", "large", (0, 0)), Thing("star", "blue", "large", (1, 1)))
    assert oracle.score(world.render(Scene("one", "black", two), 16), "a red circle", "one")["all"] is False
    assert oracle.score(world.render(Scene("one", "black", two[:1]), 16), "a red circle", "one")["all"] is True


def test_a_thing_that_jumps_or_changes_is_not_read():
    clip = world.render(Scene("clips", "black", (Thing("circle", "red", "large", (0, 0)),)), 32, 8)
    jump = clip.copy()
    jump[4:] = np.roll(clip[4:], (10, 10), (1, 2))
    assert oracle.look(jump, "clips").clutter
    assert oracle.score(jump, "a red circle", "clips")["all"] is False
    change = clip.copy()
    change[2:] = world.render(Scene("clips", "black", (Thing("cross", "red", "large", (0, 0)),)), 32, 6)
    assert oracle.read(change, "clips") is None


def test_bad_input():
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    for pixels, name, message in (
        (picture.astype(float), "full", "uint8"),
        (picture[0], "full", "uint8"),
        (picture[:, :16, :16], "full", "at least 32 px"),
        (picture, "clips", "at least 4 frames"),
        (np.repeat(picture, 8, 0), "full", "has 1 frame"),
        (picture, "ful", "did you mean 'full'"),
    ):
        with pytest.raises(errors.BadInput, match=message):
            oracle.read(pixels, name)
    with pytest.raises(errors.BadInput, match="cannot read"):
        oracle.score(picture, "a cat", "full")
    with pytest.raises(errors.BadInput, match="2 captions"):
        oracle.table(picture[None], ["a ring", "a ring"], "full")


def test_command_prints_the_curve():
    command = [sys.executable, "-m", "zoo.scoring.oracle", "--world", "one", "--size", "16", "--num", "5"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert len(lines) == len(oracle.BLURS) + len(oracle.NOISES)
    assert lines[0].startswith("blur 0 ") and lines[0].endswith("all 1.000")
