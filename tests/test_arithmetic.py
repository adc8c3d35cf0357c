import json

import jax
import numpy as np
import pytest

from zoo.data import world as worlds
from zoo.data.grammar import describe, words
from zoo.data.world import Scene, Thing
from zoo.errors import BadInput
from zoo.scoring import arithmetic, oracle
from zoo.scoring.arithmetic import Arithmetic, Pictures, choose, judge, values_of, with_value

RED_STAR = Scene("one", "grey", (Thing("star", "red", "small", (0, 1)),))
BLOCKS = {kind: list(values_of(kind, "one")) for kind in arithmetic.KINDS}


def pictures(count, seed, split="train"):
    rng = np.random.default_rng(seed)
    scenes = [worlds.draw_scene(rng, "one", split) for _ in range(count)]
    return Pictures(np.stack([worlds.render(scene, 16) for scene in scenes]), scenes)


# ---- what is asked for, and whether it was done


@pytest.mark.parametrize("kind", arithmetic.KINDS)
def test_a_value_can_be_changed_and_the_oracle_sees_it_alone_changed(kind):
    for value in values_of(kind, "one"):
        wanted = with_value(RED_STAR, kind, value)
        assert words(wanted)[kind] == {value}
        others = {name: word for name, word in words(wanted).items() if name != kind}
        assert all(words(RED_STAR)[name] == word for name, word in others.items())
        judged = judge(worlds.render(wanted, 16), wanted, kind)
        assert judged == {"changed": True, "kept": True, "both": True}
        unchanged = words(RED_STAR)[kind] == {value}
        assert judge(worlds.render(RED_STAR, 16), wanted, kind)["changed"] == unchanged


def test_what_else_changed_is_not_kept():
    wanted = with_value(RED_STAR, "colour", "blue")
    larger = worlds.render(with_value(wanted, "size", "large"), 16)
    assert judge(larger, wanted, "colour") == {"changed": True, "kept": False, "both": False}
    same = worlds.render(RED_STAR, 16)
    assert judge(same, wanted, "colour") == {"changed": False, "kept": True, "both": False}


def test_nothing_readable_or_more_than_one_thing_is_neither():
    wanted = with_value(RED_STAR, "colour", "blue")
    nothing = {"changed": False, "kept": False, "both": False}
    noise = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    assert judge(noise, wanted, "colour") == nothing
    two = Scene("one", "grey", (*wanted.things, Thing("ring", "green", "large", (1, 0))))
    assert judge(worlds.render(two, 16), wanted, "colour") == nothing


@pytest.mark.parametrize("kind", arithmetic.KINDS)
def test_another_value_is_chosen_that_training_could_show(kind):
    rng = np.random.default_rng(0)
    chosen = [choose(RED_STAR, kind, rng) for _ in range(200)]
    allowed = {word for word in BLOCKS[kind] if not worlds.is_held_out(with_value(RED_STAR, kind, word))}
    assert set(chosen) == allowed - words(RED_STAR)[kind]


# ---- the edits, with noise that is a code of the scene, so that what comes out is known


class Code:
    """Noise has a block for each attribute with a 1 at the value; a picture shows the largest entries."""

    def invert(self, pixels, captions):
        seen = [words(oracle.read(picture, "one")) for picture in pixels]
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
    return Arithmetic(Code(), pictures(400, 0), pictures(40, 1)).scores("colour", [0.25, 1.0])


def test_a_direction_changes_the_attribute_alone_once_it_is_strong_enough(scores):
    values = {name: score.value for name, score in scores["direction"].items()}
    assert [values[f"colour {name} @0"] for name in arithmetic.JUDGED] == [0, 1, 0]
    assert [values[f"colour {name} @0.25"] for name in arithmetic.JUDGED] == [0, 1, 0]
    assert [values[f"colour {name} @1"] for name in arithmetic.JUDGED] == [1, 1, 1]


def test_a_random_direction_does_much_less(scores):
    values = {name: score.value for name, score in scores["random"].items()}
    assert values["colour changed @0"] == 0 and values["colour kept @0"] == 1
    assert values["colour both @1"] < 0.3


def test_shares_have_intervals_that_hold_them(scores):
    for of in scores.values():
        for score in of.values():
            low, high = score.interval
            assert 0 <= low <= score.value <= high <= 1


def test_the_control_is_as_long_as_the_direction_and_differs_between_pictures():
    rng = np.random.default_rng(0)
    towards = (rng.standard_normal((5, 4, 3)).astype(np.float32), 3 * rng.standard_normal((5, 7)).astype(np.float32))
    drawn = arithmetic.random_like(towards, jax.random.split(jax.random.key(0), 5))
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


def test_directions_of_too_few_pictures_are_told():
    ten = Pictures(worlds.render(RED_STAR, 16)[None].repeat(10, 0), [RED_STAR] * 10)
    with pytest.raises(BadInput, match="10 training pictures have one colour alone"):
        Arithmetic(Code(), ten, pictures(3, 1)).scores("colour", [1.0])
    with pytest.raises(BadInput, match="no training picture is"):
        Arithmetic(Code(), pictures(3, 0), pictures(30, 1)).scores("colour", [1.0])


def test_of_scenes_with_several_things_those_with_one_are_taken():
    class Source(list):
        pass

    rng = np.random.default_rng(0)
    scenes = [worlds.draw_scene(rng, "full", "train") for _ in range(40)]
    source = Source({"pixels": worlds.render(s, 32), "text": "", "attributes": s.to_json()} for s in scenes)
    single = [scene for scene in scenes if len(scene.things) == 1]
    assert arithmetic.of_one_thing(source, 5).scenes == single[:5]
    assert arithmetic.of_one_thing(source, 1000).scenes == single
    with pytest.raises(BadInput, match="0 pictures of one thing"):
        arithmetic.of_one_thing(Source(item for item in source if item["attributes"].count("shape") > 1), 5)


# ---- the command


@pytest.fixture
def zoo_arithmetic(command, trained, tmp_path):
    script = tmp_path / "zoo_arithmetic.py"
    script.write_text("from zoo.scoring.arithmetic import define_flags, main\n\ndefine_flags()\n")

    def zoo_arithmetic(*given, workdir=trained):
        return command(str(script), f"--workdir={workdir}", f"--out={tmp_path / 'found.json'}", *given)

    return zoo_arithmetic


def test_a_run_gets_a_table_a_file_and_a_chart(zoo_arithmetic, tmp_path):
    done = zoo_arithmetic("--num=4", "--num_train=64", "--attributes=size,colour", "--strengths=1", "--per_device=4")
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
    ],
)
def test_what_cannot_be_is_told_in_one_line(zoo_arithmetic, given, message):
    done = zoo_arithmetic(*given)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1


def test_data_whose_truth_is_not_known_is_told(zoo_arithmetic, copied, monkeypatch):
    monkeypatch.setattr(oracle, "world_of", lambda source: None)
    done = zoo_arithmetic(workdir=copied)
    assert done.code == 2 and "the oracle knows the truth of scenes alone" in done.err
