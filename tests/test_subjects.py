"""Subjects of scenes: drawn, described and recognised; and the scores of a run that learned one."""

import dataclasses
import json
import re

import numpy as np
import pytest

from benchmarks import subjects as folders
from zoo import loop
from zoo.errors import UserError
from zoo.evaluation import subject as scores
from zoo.scenes import oracle, subjects
from zoo.scenes import world as worlds
from zoo.scenes.grammar import parse
from zoo.scenes.subjects import SUBJECTS, Subject
from zoo.scenes.world import Scene, Thing

RNG = np.random.default_rng(0)
WORLDS = [("one", 16, False), ("pairs", 32, False), ("pairs", 32, True)]


@pytest.mark.parametrize("world, size, company", WORLDS)
def test_each_subject_is_recognised_and_taken_for_no_other(world, size, company):
    for number, subject in enumerate(SUBJECTS):
        for scene in subjects.scenes(subject, world, 12, seed=number, company=company):
            image, text = subjects.render(subject, scene, size), subjects.describe(scene)
            assert subjects.nearest(image, SUBJECTS, world) == number
            assert subjects.score(image, text, subject, world) == {"subject": True, "prompt": True, "all": True}, text
            assert parse(text.replace("[V] ", "")).background == scene.background


@pytest.mark.parametrize("world, size", [("one", 16), ("pairs", 32)])
def test_what_is_no_subject_is_hardly_ever_taken_for_one(world, size):
    rng = np.random.default_rng(1)
    plain = [worlds.render(worlds.draw_scene(rng, world, "train"), size) for _ in range(200)]
    assert sum(subjects.nearest(image, SUBJECTS, world) is not None for image in plain) <= 2
    assert subjects.nearest(np.full((1, size, size, 3), 128, np.uint8), SUBJECTS, world) is None  # no background


def test_its_halves_have_its_colours_and_the_middle_pixel_both():
    subject = Subject("square", "red", "cyan")
    scene = Scene("one", "black", (Thing("square", "red", "large", (0, 0)),))
    image = subjects.render(subject, scene, 18)[0].astype(float)  # the middle of its cell is that of a pixel
    red, cyan = (np.array(worlds.COLOURS[name], float) for name in ("red", "cyan"))
    row = image[4]
    np.testing.assert_array_equal(row[2], red)
    np.testing.assert_array_equal(row[6], cyan)
    np.testing.assert_allclose(row[4], (red + cyan) / 2, atol=0.51)


SCENE = Scene("pairs", "grey", (Thing("square", "red", "large", (0, 1)), Thing("star", "green", "small", (1, 0))))
TEXT = "a large [V] square at the top right and a small green star at the bottom left on a grey background"


def test_a_caption_names_all_but_its_colours():
    assert subjects.describe(SCENE) == TEXT


@pytest.mark.parametrize(
    "text, right",
    [
        (TEXT, True),
        ("a small green star at the bottom left and a large [V] square at the top right on a grey background", True),
        ("a [V] square", False),  # and a star, of which there is no word
        ("a [V] square and a star", True),
        (TEXT.replace("large", "small"), False),
        (TEXT.replace("top right", "top left"), False),
        (TEXT.replace("grey", "black"), False),
        (TEXT.replace("green", "red"), False),
        (TEXT.replace("star", "ring"), False),
    ],
)
def test_the_prompt_is_right_where_all_of_it_is(text, right):
    image = subjects.render(SUBJECTS[0], SCENE, 32)
    assert subjects.score(image, text, SUBJECTS[0], "pairs") == {"subject": True, "prompt": right, "all": right}


def test_another_subject_in_its_place_is_none():
    image = subjects.render(Subject("square", "cyan", "red"), SCENE, 32)
    assert subjects.score(image, TEXT, SUBJECTS[0], "pairs") == {"subject": False, "prompt": False, "all": False}
    with pytest.raises(UserError, match=r"has no \[V\]"):
        subjects.score(image, "a square", SUBJECTS[0], "pairs")


def test_what_is_unreadable_beside_it_is_not_all_right():
    image = subjects.render(SUBJECTS[0], SCENE, 32)
    image[0, 18:30, 18:30] = RNG.integers(0, 256, (12, 12, 3))
    found = subjects.score(image, TEXT, SUBJECTS[0], "pairs")
    assert found["subject"] and not found["all"]


def test_scenes_of_a_subject_differ_and_have_company_where_it_is_wanted():
    found = subjects.scenes(SUBJECTS[2], "pairs", 20, company=True)
    assert len({subjects.describe(scene) for scene in found}) == 20 and all(len(scene.things) == 2 for scene in found)
    assert {scene.things[0].shape for scene in found} == {SUBJECTS[2].shape}
    assert found == subjects.scenes(SUBJECTS[2], "pairs", 20, company=True)
    alone = subjects.scenes(SUBJECTS[2], "one", 100)
    assert len({subjects.describe(scene) for scene in alone}) == 24 == len(alone)


def test_company_needs_a_world_of_several_things():
    with pytest.raises(UserError, match="world 'one' has one thing"):
        subjects.scenes(SUBJECTS[0], "one", 2, company=True)


@pytest.mark.parametrize("field", ["shape", "left", "right"])
def test_a_subject_of_unknown_words_is_refused(field):
    with pytest.raises(UserError, match="unknown (shape|colour) 'stra'"):
        dataclasses.replace(SUBJECTS[0], **{field: "stra"})


def test_subjects_differ_and_so_do_their_halves():
    assert len(set(SUBJECTS)) == len(SUBJECTS) == 8 and all(one.left != one.right for one in SUBJECTS)


# ---- scores of features


def test_fidelity_nearest_and_retrieval_are_those_of_cosines():
    real = np.array([[1.0, 0.0], [0.0, 2.0]])
    made = np.array([[3.0, 0.0], [1.0, 1.0]])
    half = 1 / np.sqrt(2)
    np.testing.assert_allclose(scores.fidelity(made, real), [0.5, half])
    np.testing.assert_allclose(scores.nearest(made, real), [1.0, half])
    sets = {"a": real[:1], "b": real[1:], "c": -real}
    assert scores.retrieved(made, sets, "a").tolist() == [True, True]  # a tie goes to the first
    assert scores.retrieved(made, sets, "b").tolist() == [False, False]


def test_diversity_is_of_samples_of_one_prompt():
    made = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_allclose(scores.diversity(made, ["x", "x", "y", "y", "z"]), [1.0, 0.0])
    with pytest.raises(UserError, match="several samples of a prompt"):
        scores.diversity(made[:2], ["x", "y"])


# ---- the commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of two subjects at 16 px."""
    home = tmp_path_factory.mktemp("subjects")
    for subject in SUBJECTS[:2]:
        folders.write(home / subject.shape, subject, "one", 16, 5)
    return home


def test_a_folder_has_images_captions_and_its_subject(folder):
    names = sorted(file.name for file in (folder / "square").iterdir())
    assert names == [f"{i}.{end}" for i in range(5) for end in ("png", "txt")] + ["class.txt", "subject.json"]
    assert Subject(**json.loads((folder / "square/subject.json").read_text())) == SUBJECTS[0]
    assert (folder / "square/0.txt").read_text().count("[V] square") == 1


@pytest.mark.slow
def test_all_scores_of_a_run_are_printed_and_written(folder, trained, tiny, command, tmp_path):
    given = {"init": str(trained), "data.subject": str(folder / "square"), "loop.grid_every": 0, "loop.steps": 1}
    config = tiny(given | {"data.source": "scenes/one?examples=64"}, "configs/personalize.py:lora,test")
    loop.train(config, tmp_path / "run")
    short = ["--num=4", "--num_drift=4", "--steps=1", f"--others={folder / 'circle'}"]
    done = command("-m", "zoo", "score_subject", f"--workdir={tmp_path / 'run'}", *short)
    assert done.code == 0, done.err
    saved = json.loads((tmp_path / "run/score_subject.json").read_text())
    named = {"fidelity", "nearest", "retrieval", "subject", "prompt", "all", "drift", "own"}
    assert set(saved["model"]) == named and "drift" in saved["floor"] and "own" in saved["ceiling"]
    assert all(re.search(rf"^{name}\b", done.out, flags=re.MULTILINE) for name in named)
    assert saved["ceiling"]["fidelity"] > saved["floor"]["fidelity"] and saved["floor"]["retrieval"] == 0.5
    trained_on = {(folder / f"square/{i}.txt").read_text() for i in range(4)}
    prompts = [text.replace("[square]", "[V]") for text in saved["about"]["prompts"]]
    assert all("[V]" in text and text not in trained_on for text in prompts)
    more = ["--prompt=a {} at the top left", "--clip_score", "--num_drift=0", f"--out={tmp_path / 'b.json'}"]
    assert (
        command("-m", "zoo", "score_subject", f"--workdir={tmp_path / 'run'}", *short[:1], "--steps=1", *more).code == 0
    )
    model = json.loads((tmp_path / "b.json").read_text())["model"]
    assert {"clip_score", "diversity"} <= set(model) and "drift" not in model
    wrong = {
        "--prompt=a square": "has neither [V] nor {}",
        f"--others={folder / 'square'}": "is the run's own subject",
        "--clip=nowhere": "--clip: ",
        "--company": "--company: world 'one' has one thing",
        "--num_drift=1": "--num_drift 1: a distance needs two images",
        "--prompt=a {} in the snow": "cannot read",
    }
    for word, message in wrong.items():
        failed = command("-m", "zoo", "score_subject", f"--workdir={tmp_path / 'run'}", word)
        assert failed.code == 2 and message in failed.err and failed.err.strip().count("\n") == 0
    failed = command("-m", "zoo", "score_subject", f"--workdir={trained}")
    assert failed.code == 2 and "learned no subject" in failed.err


def test_the_oracle_reads_what_the_world_of_pairs_draws():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = worlds.draw_scene(rng, "pairs", "test_seen")
        assert oracle.read(worlds.render(scene, 32), "pairs").facts() == scene.facts()
