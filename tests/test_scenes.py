"""Scenes: drawn, held out, rendered, described, parsed, and stored."""

import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest

from zoo import errors
from zoo.data.pipeline import Joined, captions, learned_captions
from zoo.scenes import dataset, grammar, world
from zoo.scenes.world import SPLITS, WORLDS, Scene, Thing


def draw(name: str, count: int, split: str = "train", seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [world.draw_scene(rng, name, split) for _ in range(count)]


# ---- world


@pytest.mark.parametrize("name", WORLDS)
def test_held_out_never_in_train_always_in_test_unseen(name):
    for split in ("train", "test_seen"):
        for scene in draw(name, 500, split):
            pairs = {(thing.colour, thing.shape) for thing in scene.things}
            assert not pairs & world.HELD_OUT_PAIRS
            assert not world.relations(scene) & world.HELD_OUT_RELATIONS
    for scene in draw(name, 500, "test_unseen"):
        pairs = {(thing.colour, thing.shape) for thing in scene.things}
        assert pairs & world.HELD_OUT_PAIRS or world.relations(scene) & world.HELD_OUT_RELATIONS


def test_train_still_shows_every_value_and_every_kind_of_motion():
    things = [thing for scene in draw("video", 1500) for thing in scene.things]
    assert {thing.colour for thing in things} == set(world.COLOURS)
    assert {thing.shape for thing in things} == set(world.SHAPES)
    assert {(thing.motion, thing.speed) for thing in things} == {("static", None)} | {
        (motion, speed) for motion in world.MOTIONS[1:] for speed in world.SPEEDS
    }


def test_a_fifth_is_held_out_and_both_orders_of_two_shapes_never_are():
    assert len(world.HELD_OUT_PAIRS) == 10 and len(world.HELD_OUT_RELATIONS) == 12
    assert not {(name, b, a) for name, a, b in world.HELD_OUT_RELATIONS} & world.HELD_OUT_RELATIONS


def test_things_lie_in_different_cells_and_counts_are_even():
    drawn = draw("full", 1500)
    assert all(len({thing.cell for thing in scene.things}) == len(scene.things) for scene in drawn)
    counts = np.bincount([len(scene.things) for scene in drawn], minlength=4)
    assert counts[0] == 0 and counts[1:].min() > 400


@pytest.mark.parametrize("name", WORLDS)
def test_json_round_trip(name):
    assert all(Scene.from_json(scene.to_json()) == scene for scene in draw(name, 50))


def test_small_image_is_the_box_average_of_a_large_one():
    for scene in draw("full", 50):
        large, small = world.render(scene, 64)[0], world.render(scene, 32)[0]
        averaged = large.reshape(32, 2, 32, 2, 3).astype(float).mean((1, 3))
        assert np.abs(averaged - small).max() <= 1.0


def test_double_frame_rate_contains_the_single_one():
    for scene in draw("video", 30):
        slow = world.render(scene, 32, frames=8, frame_rate=8)
        assert np.array_equal(slow, world.render(scene, 32, frames=16, frame_rate=16)[::2])
        assert np.array_equal(slow, world.render(scene, 32, frames=8))


@pytest.mark.parametrize("name", WORLDS)
def test_nothing_is_cut_off_at_the_border(name):
    for scene in draw(name, 100):
        for thing in scene.things:
            for seconds in (0, 0.4, 1):
                pose = world.pose(thing, WORLDS[name], seconds)
                # The same, with an empty image's width all around.
                centre = tuple((place + 1) / 3 for place in pose.centre)
                cut, _ = world.coverage(thing.shape, pose.centre, pose.radius, pose.angle, 64)
                whole, _ = world.coverage(thing.shape, centre, pose.radius / 3, pose.angle, 192)
                assert cut.sum() == pytest.approx(whole.sum(), abs=0.3)


def test_shapes_are_centred_on_their_mass():
    for shape in world.SHAPES:
        for angle in (0.0, 50.0):
            covered, (top, left) = world.coverage(shape, (0.5, 0.5), 0.35, angle, 64)
            rows = np.arange(covered.shape[0]) + top + 0.5
            columns = np.arange(covered.shape[1]) + left + 0.5
            assert covered.sum(1) @ rows / covered.sum() == pytest.approx(32, abs=0.2)
            assert covered.sum(0) @ columns / covered.sum() == pytest.approx(32, abs=0.2)


def test_shapes_and_sizes_differ_at_16_px():
    images = {}
    for shape in world.SHAPES:
        for size in world.SIZES:
            scene = Scene("one", "black", (Thing(shape, "white", size, (0, 1)),))
            images[shape, size] = world.render(scene, 16).astype(float)
    for first in images:
        for second in images:
            difference = np.abs(images[first] - images[second]).sum() / 3 / 250
            assert first == second or difference > 5  # whole pixels


def test_unknown_world_split_and_bad_frames_are_bad_input():
    rng = np.random.default_rng(0)
    with pytest.raises(errors.UserError, match="did you mean 'video'"):
        world.draw_scene(rng, "videos", "train")
    with pytest.raises(errors.UserError, match="unknown split"):
        world.draw_scene(rng, "one", "test")
    with pytest.raises(errors.UserError, match="0 frames"):
        world.render(draw("one", 1)[0], 16, frames=0)


# ---- grammar


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("omit", [None, 0.0])
def test_captions_are_true_of_their_scene(name, omit):
    rng = np.random.default_rng(1)
    for i in range(2000):
        scene = world.draw_scene(rng, name, SPLITS[i % 3])
        text = grammar.describe(scene, rng, omit)
        holds = grammar.holds(grammar.parse(text), scene)
        assert False not in holds.values(), text
        assert text == text.lower()


@pytest.mark.parametrize("name", WORLDS)
def test_full_captions_leave_nothing_out(name):
    rng = np.random.default_rng(2)
    for scene in draw(name, 200):
        claims = grammar.parse(grammar.describe(scene, rng, omit=0.0))
        grid = WORLDS[name].grid
        said = {(c.shape, c.colour, c.size, c.position, c.motion, c.speed) for c in claims.things}
        assert claims.background == scene.background
        assert said == {
            (
                t.shape,
                t.colour,
                t.size,
                grammar.position_name(t.cell, grid),
                t.motion if WORLDS[name].moves else None,
                t.speed,
            )
            for t in scene.things
        }


@pytest.mark.parametrize("name", WORLDS)
def test_captions_vary_and_leave_out(name):
    rng = np.random.default_rng(3)
    scene = next(scene for scene in draw(name, 50) if len(scene.things) == WORLDS[name].most_things)
    texts = {grammar.describe(scene, rng) for _ in range(200)}
    assert len(texts) >= 20
    for opening in ("there is ", "on a ", "a "):
        assert any(text.startswith(opening) for text in texts)
    claims = [grammar.parse(text) for text in texts]
    assert any(c.background is None for c in claims) and any(c.background for c in claims)
    assert any(t.colour is None for c in claims for t in c.things)
    if world.WORLDS[name].most_things > 1:
        assert any(c.relations for c in claims) and any(c.count for c in claims)


def test_a_false_claim_is_found_for_every_attribute():
    scene = Scene(
        "video",
        "grey",
        (
            Thing("circle", "red", "small", (0, 0), motion="left", speed="slow"),
            Thing("star", "blue", "large", (1, 2)),
        ),
    )
    true = "two things: a small red circle at the top left moving left slowly and a star on a grey background"
    assert grammar.holds(grammar.parse(true), scene) == {
        "count": True,
        "colour": True,
        "shape": True,
        "size": True,
        "position": True,
        "relation": None,
        "background": True,
        "motion": True,
        "speed": True,
    }
    swaps = {
        "count": ("two things", "three things"),
        "colour": ("red", "green"),
        "shape": ("circle", "ring"),
        "size": ("small", "large"),
        "position": ("top left", "top right"),
        "background": ("grey", "black"),
        "motion": ("moving left", "moving right"),
        "speed": ("slowly", "quickly"),
    }
    for attribute, (old, new) in swaps.items():
        holds = grammar.holds(grammar.parse(true.replace(old, new)), scene)
        assert [name for name, right in holds.items() if right is False] == [attribute]
    for relation, right in {"left of": True, "above": True, "right of": False, "below": False}.items():
        holds = grammar.holds(grammar.parse(f"a circle that starts {relation} a star"), scene)
        assert holds["relation"] is right


def test_ambiguous_things_are_matched_in_the_best_way():
    scene = Scene(
        "full",
        "grey",
        (
            Thing("circle", "red", "small", (0, 0)),
            Thing("circle", "blue", "large", (2, 2)),
        ),
    )

    def holds(text):
        return grammar.holds(grammar.parse(text), scene)

    assert holds("a circle at the bottom right")["position"] is True
    assert holds("a circle and a small red circle") == holds("a circle and a circle") | {"size": True, "colour": True}
    assert holds("a circle below a circle")["relation"] is True
    assert holds("a red circle and a red circle")["colour"] is False  # one thing is not two
    assert holds("a circle, a circle and a circle")["shape"] is False
    # Two of three claims hold for the blue one, only one for the red one.
    assert holds("a large blue circle at the top left") == holds("a large blue circle") | {"position": False}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "a red circle under a star",
        "red circle",
        "a small small circle",
        "a circle slowly moving left quickly",
        "a ring, a ring, a ring and a ring",
        "on a grey background: a ring on a black background",
    ],
)
def test_text_outside_of_the_grammar_is_bad_input(text):
    with pytest.raises(errors.UserError) as caught:
        grammar.parse(text)
    assert "\n" not in str(caught.value)


# ---- data sets


def test_source_reads_back_what_is_rendered(tmp_path, capsys):
    for name, size, frames in (("one", 16, 1), ("full", 32, 1), ("video", 32, 4), ("entropy", 16, 1)):
        source = dataset.open_source(name, "train", size, frames, examples=20, cache=tmp_path)
        assert len(source) == 20
        for i in range(20):
            pixels, text, scene = dataset.make_example(name, "train", i, size, frames)
            assert source[i]["inputs"].dtype == np.uint8
            assert source[i]["inputs"].shape == (frames, size, size, 3)
            assert np.array_equal(source[i]["inputs"], pixels)
            assert source[i]["text"] == text
            assert Scene.from_json(source[i]["attributes"]) == scene
        assert np.array_equal(source[-1]["inputs"], source[19]["inputs"])
        with pytest.raises(IndexError):
            source[20]
    out, err = capsys.readouterr()
    assert not out and err.count("building scenes ") == 4


def test_source_is_deterministic_and_built_once(tmp_path, capsys):
    first = dataset.open_source("one", "test_unseen", 16, examples=200, cache=tmp_path / "a")
    again = dataset.open_source("one", "test_unseen", 16, examples=200, cache=tmp_path / "a")
    other = dataset.open_source("one", "test_unseen", 16, examples=200, cache=tmp_path / "b")
    assert capsys.readouterr().err.count("building") == 2
    assert len(first) == len(again) == len(other) == 20
    for i in range(20):
        assert world.is_held_out(Scene.from_json(first[i]["attributes"]))
        assert first[i]["text"] == again[i]["text"] == other[i]["text"]
        assert np.array_equal(first[i]["inputs"], other[i]["inputs"])


def test_split_test_is_test_seen(tmp_path):
    one, other = (dataset.open_source("one", split, 16, examples=20, cache=tmp_path) for split in ("test", "test_seen"))
    assert [one[i]["text"] for i in range(len(one))] == [other[i]["text"] for i in range(len(other))]


def test_source_can_be_pickled(tmp_path):
    source = dataset.open_source("one", "train", 16, examples=10, cache=tmp_path)
    assert pickle.loads(pickle.dumps(source))[7]["text"] == source[7]["text"]


def test_captions_omit_as_often_as_configured(tmp_path):
    none, some = (dataset.open_source("one", "train", 16, examples=400, omit=o, cache=tmp_path) for o in (0, 0.3))
    assert _share_silent(captions(none)) == 0
    assert 0.25 < _share_silent(captions(some)) < 0.35  # five standard deviations of 2,000 draws
    assert captions(pickle.loads(pickle.dumps(some))) == captions(some)


@pytest.mark.parametrize("omit", [None, 0])
def test_a_tokenizer_learns_the_words_of_motion_from_first_frames(tmp_path, omit):
    stills, videos, images = (
        dataset.open_source(name, "train", 16, frames, examples=30, omit=omit, cache=tmp_path)
        for name, frames in (("video_one", 1), ("video_one", 8), ("one", 1))
    )
    assert learned_captions(stills, 30) == captions(videos) == learned_captions(videos, 30) != captions(stills)
    assert learned_captions(images, 30) == captions(images)
    assert learned_captions(Joined([images, stills]), 60) == captions(images) + captions(videos)


def _share_silent(texts):
    claims = [grammar.parse(text) for text in texts]
    said = [(c.background, *(getattr(c.things[0], a) for a in ("colour", "shape", "size", "position"))) for c in claims]
    return np.mean([word is None for words in said for word in words])


@pytest.mark.parametrize(
    ("name", "omit"), [("one", -0.1), ("one", 1.0), ("one", float("nan")), ("entropy", 0.3), ("modes", 0.3)]
)
def test_a_share_to_omit_that_is_none_is_bad_input(tmp_path, name, omit):
    with pytest.raises(errors.UserError, match="omit"):
        dataset.open_source(name, "train", 16, omit=omit, cache=tmp_path)


def test_sizes_of_one_example_show_one_scene():
    _, text, scene = dataset.make_example("full", "train", 5, 32, 1)
    _, other_text, other_scene = dataset.make_example("full", "train", 5, 64, 1)
    assert (text, scene) == (other_text, other_scene)


def test_what_a_killed_build_left_is_not_used(tmp_path):
    home = tmp_path / "scenes" / "one-16px-1f-10"
    leftover = home / "incomplete.ABCDEF_1.0.0"
    leftover.mkdir(parents=True)
    (leftover / "scenes-train.array_record-00000-of-00001").write_bytes(b"half")
    assert len(dataset.open_source("one", "train", 16, examples=10, cache=tmp_path)) == 10
    assert not leftover.exists()


def test_two_processes_build_one_data_set(tmp_path):
    code = (
        "from zoo.scenes.dataset import open_source;"
        f"print(len(open_source('one', 'train', 16, examples=500, cache={str(tmp_path)!r})))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [run.communicate(timeout=60) for run in runs]
    assert [out.strip() for out, _ in said] == ["500", "500"]
    assert sum(err.count("building") for _, err in said) == 1


def test_tensorflow_is_never_imported(tmp_path):
    code = (
        "import sys; from zoo.scenes.dataset import open_source;"
        f"open_source('one', 'train', 16, examples=10, cache={str(tmp_path)!r})[0];"
        "assert 'tensorflow' not in sys.modules and 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ones", "train", 16), "did you mean 'one'"),
        (("one", "tests", 16), "unknown split 'tests'"),
        (("entropy", "test_unseen", 16), "unknown split"),
        (("one", "train", 15), "at least 16 px"),
        (("full", "train", 16), "at least 32 px"),
        (("video", "train", 32, 3), "3 frames at 3 frames/s do not show each motion: use at least 4"),
        (("video", "train", 32, 8, 2.0), "8 frames at 2 frames/s"),
        (("video_one", "train", 16, 8, 16.0), "for at least 1 s"),
        (("video_one", "train", 16, 1, 8.0), "one frame has no frame rate, got fps=8"),
        (("full", "train", 32, 8), "stand still"),
        (("one", "train", 16, 1, None, 0), "at least 1 example"),
    ],
)
def test_bad_input(arguments, message, tmp_path):
    with pytest.raises(errors.UserError, match=message):
        dataset.open_source(*arguments, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_frame_of_a_video_is_an_image_whose_caption_names_no_motion(tmp_path):
    for i in range(50):
        video, moving, scene = dataset.make_example("video_one", "train", i, 16, 8, 8.0, omit=0.0)
        image, still, same = dataset.make_example("video_one", "train", i, 16, 1, omit=0.0)
        assert scene == same
        np.testing.assert_array_equal(image, video[:1])
        (claim,), (other,) = grammar.parse(moving).things, grammar.parse(still).things
        assert claim.motion == scene.things[0].motion and other == dataclasses.replace(claim, motion=None, speed=None)
        assert "video" not in still
    videos = dataset.open_source("video_one", "train", 16, 8, fps=4.0, examples=10, cache=tmp_path)
    images = dataset.open_source("video_one", "train", 16, examples=10, cache=tmp_path)
    assert videos[0]["frame_rate"] == 4.0 and "frame_rate" not in images[0]


@pytest.mark.parametrize("name", ["video_one", "video"])
def test_movement_stops_at_the_edge_of_the_grid(name):
    rules = world.world_named(name)
    for scene in draw(name, 200):
        ways = [world._cells_entered(thing, rules) for thing in scene.things]
        cells = [cell for way in ways for cell in way]
        assert len(set(cells)) == len(cells)  # no two things ever meet
        for thing, way in zip(scene.things, ways, strict=True):
            late, later = (world.pose(thing, rules, seconds).centre for seconds in (10.0, 11.0))
            assert late == later
            at_start = world.pose(thing, rules, 0.0).centre
            moved = (np.array(late) - at_start) * rules.grid
            np.testing.assert_allclose(moved, np.subtract(way[-1], way[0]), atol=1e-9)


def test_a_video_lasts_as_long_as_its_frames_do():
    thing = Thing("circle", "red", "small", (0, 0), motion="right", speed="fast")
    video = world.render(Scene("video_one", "black", (thing,)), 64, frames=16, frame_rate=8)
    columns = [np.nonzero(frame.any(axis=(0, 2)))[0].mean() for frame in video]
    np.testing.assert_allclose(np.diff(columns[:9]), 32 / 8, atol=0.6)  # a cell in a second
    np.testing.assert_allclose(np.diff(columns[8:]), 0, atol=1e-6)


def test_cache_that_is_a_file_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match="set ZOO_CACHE"):
        dataset.open_source("one", "train", 16, examples=10, cache=tmp_path / "file")


# ---- entropy


def test_entropy_scenes_stay_apart_without_their_low_bits():
    levels = dataset.NOISE_LEVELS
    clean = [world.render(scene, 16) for scene in dataset.equal_scenes("entropy")]
    seen = {(image // levels).tobytes() for image in clean}
    assert len(seen) == len(dataset.equal_scenes("entropy")) == 2 * 4 * 3 * 6 * 8
    noisy = dataset.noisy(clean[0], np.random.default_rng(0))
    assert np.array_equal(noisy // levels, clean[0] // levels)


def test_entropy_noise_is_uniform():
    values = dataset.noisy(np.full((500, 500), 250, np.uint8), np.random.default_rng(0))
    counts = np.bincount(values.ravel() - 240, minlength=16)
    expected = 500 * 500 / 16
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert len(counts) == 16 and chi_square < 37.7  # 99.9% of chi-square with 15 degrees of freedom


def test_entropy_figure_by_brute_force():
    # -sum p log2 p over every image there is, for one dimension's noise at a time: the noise is independent.
    scene_bits = -sum(1 / 1152 * np.log2(1 / 1152) for _ in dataset.equal_scenes("entropy"))
    noise_bits = -sum(1 / 16 * np.log2(1 / 16) for _ in range(16)) * 16 * 16 * 3
    assert dataset.entropy_bits_per_dim(16) == pytest.approx((scene_bits + noise_bits) / 768, abs=1e-12)
    assert dataset.entropy_bits_per_dim(32) == pytest.approx(4 + np.log2(1152) / 3072, abs=1e-12)


def test_entropy_examples_are_equiprobable():
    names = [dataclasses.astuple(dataset.make_example("entropy", "train", i, 16, 1)[2]) for i in range(600)]
    backgrounds = np.unique([name[1] for name in names], return_counts=True)[1]
    assert len(backgrounds) == 3 and backgrounds.min() > 150 and len(set(names)) > 400
