import json

import jax
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.evaluation import attribute_editing
from zoo.evaluation.attribute_editing import Arithmetic, Images, choose, compare, values_of, with_value
from zoo.scenes import oracle
from zoo.scenes import world as worlds
from zoo.scenes.grammar import describe, words
from zoo.scenes.world import Scene, Thing

RED_STAR = Scene("one", "grey", (Thing("star", "red", "small", (0, 1)),))
BLOCKS = {kind: list(values_of(kind, "one")) for kind in attribute_editing.KINDS}


def images(count, seed, split="train"):
    rng = np.random.default_rng(seed)
    scenes = [worlds.draw_scene(rng, "one", split) for _ in range(count)]
    return Images(np.stack([worlds.render(scene, 16) for scene in scenes]), scenes)


# ---- what is asked for, and whether it was done


@pytest.mark.parametrize("kind", attribute_editing.KINDS)
def test_a_value_can_be_changed_and_the_oracle_reads_that_alone_changed(kind):
    for value in values_of(kind, "one"):
        wanted = with_value(RED_STAR, kind, value)
        assert words(wanted)[kind] == {value}
        others = {name: word for name, word in words(wanted).items() if name != kind}
        assert all(words(RED_STAR)[name] == word for name, word in others.items())
        found = compare(worlds.render(wanted, 16), wanted, kind)
        assert found == {"changed": True, "kept": True, "both": True}
        unchanged = words(RED_STAR)[kind] == {value}
        assert compare(worlds.render(RED_STAR, 16), wanted, kind)["changed"] == unchanged


def test_what_else_changed_is_not_kept():
    wanted = with_value(RED_STAR, "colour", "blue")
    larger = worlds.render(with_value(wanted, "size", "large"), 16)
    assert compare(larger, wanted, "colour") == {"changed": True, "kept": False, "both": False}
    same = worlds.render(RED_STAR, 16)
    assert compare(same, wanted, "colour") == {"changed": False, "kept": True, "both": False}


def test_nothing_readable_or_more_than_one_thing_is_neither():
    wanted = with_value(RED_STAR, "colour", "blue")
    nothing = {"changed": False, "kept": False, "both": False}
    noise = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    assert compare(noise, wanted, "colour") == nothing
    two = Scene("one", "grey", (*wanted.things, Thing("ring", "green", "large", (1, 0))))
    assert compare(worlds.render(two, 16), wanted, "colour") == nothing


@pytest.mark.parametrize("kind", attribute_editing.KINDS)
def test_another_value_is_chosen_that_training_could_show(kind):
    rng = np.random.default_rng(0)
    chosen = [choose(RED_STAR, kind, rng) for _ in range(200)]
    allowed = {word for word in BLOCKS[kind] if not worlds.is_held_out(with_value(RED_STAR, kind, word))}
    assert set(chosen) == allowed - words(RED_STAR)[kind]


# ---- the edits, with noise that is a code of the scene, so that what comes out is known


class Code:
    """Noise has a block for each attribute with a 1 at the value; an image shows the largest entries."""

    def invert(self, pixels, captions):
        seen = [words(oracle.read(image, "one")) for image in pixels]
        return {
            kind: np.array([[float(word in row[kind]) for word in block] for row in seen], np.float32)
            for kind, block in BLOCKS.items()
        }

    def generate(self, noise, captions):
        made = []
        for i in range(len(captions)):
            scene = RED_STAR
            for kind, block in BLOCKS.items():
                scene = with_value(scene, kind, block[int(np.argmax(noise[kind][i]))])
            made.append(worlds.render(scene, 16))
        return np.stack(made)


@pytest.fixture(scope="module")
def scores():
    return Arithmetic(Code(), images(400, 0), images(40, 1)).scores("colour", [0.25, 1.0])


def test_a_direction_changes_the_attribute_alone_once_it_is_strong_enough(scores):
    values = {name: score.value for name, score in scores["direction"].items()}
    assert [values[f"colour {name} @0"] for name in attribute_editing.OUTCOMES] == [0, 1, 0]
    assert [values[f"colour {name} @0.25"] for name in attribute_editing.OUTCOMES] == [0, 1, 0]
    assert [values[f"colour {name} @1"] for name in attribute_editing.OUTCOMES] == [1, 1, 1]


def test_a_random_direction_does_much_less(scores):
    values = {name: score.value for name, score in scores["random"].items()}
    assert values["colour changed @0"] == 0 and values["colour kept @0"] == 1
    assert values["colour both @1"] < 0.3


def test_shares_have_intervals_that_hold_them(scores):
    for of in scores.values():
        for score in of.values():
            low, high = score.interval
            assert 0 <= low <= score.value <= high <= 1


def test_the_control_is_as_long_as_the_direction_and_differs_between_images():
    rng = np.random.default_rng(0)
    towards = (rng.standard_normal((5, 4, 3)).astype(np.float32), 3 * rng.standard_normal((5, 7)).astype(np.float32))
    drawn = attribute_editing.random_like(towards, jax.random.split(jax.random.key(0), 5))
    for x, d in zip(towards, drawn, strict=True):
        x, d = np.reshape(x, (5, -1)), np.reshape(d, (5, -1))
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), np.linalg.norm(d, axis=1), rtol=1e-5)
        assert len(np.unique(d.round(3), axis=0)) == 5


def test_captions_of_the_new_value_differ_in_the_attribute_alone():
    for seed in range(10):
        text, new = (
            describe(scene, np.random.default_rng(seed), omit=0.0)
            for scene in (RED_STAR, with_value(RED_STAR, "colour", "blue"))
        )
        assert new == text.replace("red", "blue") != text


def test_directions_of_too_few_images_are_an_error():
    ten = Images(worlds.render(RED_STAR, 16)[None].repeat(10, 0), [RED_STAR] * 10)
    with pytest.raises(UserError, match="10 training images have one colour alone"):
        Arithmetic(Code(), ten, images(3, 1)).scores("colour", [1.0])
    with pytest.raises(UserError, match="no training image is"):
        Arithmetic(Code(), images(3, 0), images(30, 1)).scores("colour", [1.0])


def test_of_scenes_with_several_things_those_with_one_are_taken():
    class Source(list):
        pass

    rng = np.random.default_rng(0)
    scenes = [worlds.draw_scene(rng, "full", "train") for _ in range(40)]
    source = Source({"inputs": worlds.render(s, 32), "text": "", "attributes": s.to_json()} for s in scenes)
    single = [scene for scene in scenes if len(scene.things) == 1]
    assert attribute_editing.of_one_thing(source, 5).scenes == single[:5]
    assert attribute_editing.of_one_thing(source, 1000).scenes == single
    with pytest.raises(UserError, match="0 images of one thing"):
        attribute_editing.of_one_thing(Source(item for item in source if item["attributes"].count("shape") > 1), 5)


# ---- the command


@pytest.fixture
def run_command(command, trained, tmp_path):
    def run_command(*given, workdir=trained):
        return command(
            "zoo/commands/attribute_editing.py", f"--workdir={workdir}", f"--out={tmp_path / 'found.json'}", *given
        )

    return run_command


def test_a_run_gets_a_table_a_file_and_a_chart(run_command, tmp_path):
    done = run_command("--num=4", "--num_train=64", "--attributes=size,colour", "--strengths=1", "--per_device=4")
    assert done.code == 0, done.err
    for line in ("size both @0", "size changed @1", "colour kept @1", "colour both"):
        assert line in done.out
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found) == {"direction", "random", "caption", "intervals", "about"}
    assert found["about"]["num"] == 4 and found["about"]["num_train"] == 64
    assert found["direction"]["size both @0"] == found["random"]["size both @0"] == 0
    assert (tmp_path / "found.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "given, message",
    [
        (["--attributes=color"], "unknown attribute 'color': did you mean 'colour'"),
        (["--strengths=a"], "--strengths a: give numbers"),
        (["--strengths=0,1"], "--strengths 0,1: give positive numbers"),
        (["more"], "no such argument: 'more'"),
        (["--negative=a ring"], "drop --negative"),
    ],
)
def test_a_wrong_flag_is_an_error_of_one_line(run_command, given, message):
    done = run_command(*given)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1


def test_data_that_the_oracle_cannot_read_is_an_error(run_command, copied, monkeypatch):
    monkeypatch.setattr(oracle, "world_of", lambda source: None)
    done = run_command(workdir=copied)
    assert done.code == 2 and "the oracle reads scenes alone" in done.err


@pytest.mark.parametrize(("frames", "rate"), [(1, None), (8, None), (16, 8.0)])
def test_videos_are_compared_at_their_frame_rate_and_single_frames_without_motion(frames, rate):
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = worlds.draw_scene(rng, "video_one", "train").facts()
        image = worlds.render(scene, 16, frames, rate)
        assert compare(image, scene, "colour", rate) == dict.fromkeys(attribute_editing.OUTCOMES, True)
