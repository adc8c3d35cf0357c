import functools
import json
from pathlib import Path

import numpy as np
import pytest

from zoo.commands.compare import trained_seconds
from zoo.commands.curves import read_metrics
from zoo.errors import UserError
from zoo.evaluation import clip_eval, distances
from zoo.evaluation.clip_score import ref_clip_score
from zoo.evaluation.features import clip_features, of_source
from zoo.evaluation.measures import known_entropy, labels_of
from zoo.evaluation.registry import (
    MEASURES,
    EvalContext,
    Sample,
    Score,
    evaluate,
    first_of,
    floor,
    make_context,
    scrambled,
    shuffled,
)
from zoo.evaluation.report import show, to_json, to_markdown, to_table
from zoo.evaluation.rerank import best_of, get_reward
from zoo.pretrained import clip as clips
from zoo.runs.data import Data
from zoo.scenes.dataset import make_example

CLIP = Path(__file__).parent / "fixtures" / "clip" / "gelu"  # random weights: features, but no sense
DATA = Data("scenes/one?examples=1500", 16)


@functools.cache
def network():
    return clip_features(CLIP)


@functools.cache
def real(count=120):
    return first_of(DATA, "test", count)


@functools.cache
def context():
    return make_context({"clip": network()}, DATA, real(), 200)


# ---- features


def test_features_are_those_of_the_network_one_image_at_a_time():
    clip = clips.load(CLIP)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 2, 24, 24, 3)).astype(np.uint8)  # no resizing: 24 px is what it sees
    found = network().images(pixels)
    for frames, row in zip(pixels, found, strict=True):
        each = clip.model.apply({"params": clip.params}, clip.normalise(frames), method="encode_image")
        np.testing.assert_allclose(row, np.mean(each, axis=0), atol=2e-5)


def test_the_prefix_stands_before_every_caption():
    plain, prefixed = network(), clip_features(CLIP, "a photo of ")
    np.testing.assert_allclose(prefixed.texts(["cats"]), plain.texts(["a photo of cats"]), atol=1e-6)
    assert np.abs(prefixed.texts(["cats"]) - plain.texts(["cats"])).max() > 1e-3


def test_features_of_real_images_are_made_once(monkeypatch, tmp_path):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 1, 24, 24, 3)).astype(np.uint8)
    source = [{"inputs": image, "text": ""} for image in pixels]
    first = of_source(network(), source, {"source": "x"}, [0, 1, 2])
    [file] = (tmp_path / "features").iterdir()
    np.save(file, first + 1)
    assert (of_source(network(), source, {"source": "x"}, [0, 1, 2]) == first + 1).all()
    changed = [source[3], *source[1:]]
    for items, name, indices in ((source, "y", [0, 1, 2]), (source, "x", [0, 1, 3]), (changed, "x", [0, 1, 2])):
        assert len(of_source(network(), items, {"source": name}, indices)) == 3
    assert len(list((tmp_path / "features").iterdir())) == 4


def test_networks_of_other_weights_have_other_names_on_disk():
    assert network().identity == clip_features(CLIP).identity != clip_features(CLIP.parent / "legacy").identity


# ---- measures


def test_real_images_are_near_perfect_and_the_floor_is_not():
    best, missing = evaluate(real(), context(), ["all"])
    of_runs = [name for name, measure in MEASURES.items() if not measure.of_real]  # or of what a stage upsampled
    of_videos = ["clip_score_per_frame", "coherence", "change", "motion_distance"]
    assert set(missing) == {"fid", "inception_kid", "memorization", "ref_clip_score", *of_runs, *of_videos}
    assert "--references" in missing["ref_clip_score"] and "--workdir" in missing["bits_per_dim"]
    assert (
        "--inception" in missing["fid"] and "held-out samples duplicate" in missing["memorization"]
    )  # of so few possible scenes
    worst = floor(real(), context(), [name for name in MEASURES if name not in missing])
    assert best.keys() == worst.keys()
    assert best["all"].value == 1.0 and worst["all"].value < 0.1
    for name in ("cmmd", "cmmd_median", "kid", "frechet"):
        assert best[name].value < worst[name].value, name
    for name, score in {**best, **worst}.items():
        if score.interval:
            assert score.interval[0] <= score.value <= score.interval[1], name
    for name in ("precision", "recall", "coverage"):
        assert best[name].value > worst[name].value, name


def test_scores_are_those_of_the_functions():
    fake = scrambled(real(), 0)
    features = network().images(fake.images)
    scores, _ = evaluate(fake, context(), ["frechet", "cmmd", "recall"])
    assert scores["frechet"].value == distances.frechet(features, context().reference["clip"])
    assert scores["cmmd"].value == distances.cmmd(features, context().reference["clip"])
    cut = context().reference["clip"][np.linspace(0, 199, 120).round().astype(int)]
    assert scores["recall"].value == distances.precision_recall(cut, features)[1]
    assert "of 120 images" in scores["frechet"].note


def test_too_few_images_for_an_interval_are_noted():
    few = Sample(real().images[:6], real().captions[:6])
    score = evaluate(few, context(), ["precision"])[0]["precision"]
    assert score.interval is None and score.note == "of 6 images, too few for an interval"


def test_references_may_be_of_any_number_and_stay_with_their_images():
    few = Sample(real().images[:3], real().captions[:3], [["a star"], ["a ring", "a red thing"], ["a cross"] * 3])
    found, _ = evaluate(few, context(), ["ref_clip_score"])
    net = network()
    images, texts = net.images(few.images), net.texts(few.captions)
    each = [
        ref_clip_score(images[i : i + 1], texts[i : i + 1], net.texts(lines)[None])[0]
        for i, lines in enumerate(few.references)
    ]
    assert found["ref_clip_score"].value == pytest.approx(np.mean(each), abs=1e-6)
    assert shuffled(few, 0).references == scrambled(few, 0).references == few.references


def test_the_entropy_is_known_of_one_data_set():
    assert known_entropy(Data("scenes/entropy?examples=9", 16)) == 4.0
    assert known_entropy(Data("scenes/entropy", 16), no_captions=True) == pytest.approx(4 + np.log2(1152) / 768)
    assert known_entropy(DATA) is None


def test_a_measure_given_by_name_must_be_had():
    nothing = EvalContext({}, {}, None, None)
    for name, message in (
        ("oracle", "needs scenes"),
        ("clip_score", "needs clip: give its network by --clip"),
        ("fid", "needs inception"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate(real(), nothing, [name])
    with pytest.raises(UserError, match="needs real images to compare with"):
        evaluate(real(), EvalContext({"clip": network()}, {}, None, None), ["kid"])
    with pytest.raises(UserError, match="needs the captions"):
        evaluate(Sample(real().images, None), context(), ["clip_score"])
    with pytest.raises(UserError, match="did you mean 'frechet'"):
        evaluate(real(), context(), ["freche"])
    with pytest.raises(UserError, match="r_precision: 9 different captions|r_precision: 8 different|r_precision: 10"):
        evaluate(Sample(real().images[:10], real().captions[:10]), context(), ["r_precision"])


def test_shuffled_captions_are_all_anothers_and_scrambled_pixels_are_the_same_ones():
    sample = Sample(real().images, [f"caption {i}" for i in range(120)])
    assert sorted(shuffled(sample, 0).captions) == sorted(sample.captions)
    assert not any(a == b for a, b in zip(shuffled(sample, 0).captions, sample.captions, strict=True))
    mixed = scrambled(sample, 0).images
    assert not (mixed == sample.images).all()
    for a, b in zip(mixed, sample.images, strict=True):
        assert (np.sort(a.reshape(-1, 3), axis=0) == np.sort(b.reshape(-1, 3), axis=0)).all()


def test_labels():
    texts = ["a red star", "a small ring and a star", "a blue thing"]
    assert labels_of(texts, "full") == ["star", None, None]
    assert labels_of(["cat"] * 5 + ["dog"] * 4, None) == ["cat"] * 5 + [None] * 4


def test_accuracy_separates_shapes_from_scrambled_ones():
    good, _ = evaluate(real(), context(), ["accuracy"])
    lost, _ = evaluate(shuffled(real(), 0), context(), ["accuracy"])
    assert good["accuracy"].value > lost["accuracy"].value + 0.2


# ---- reports


def test_reports():
    model = {"all": Score(0.5, (0.25, 0.75)), "kid": Score(-1e-5, None, "few")}
    scores = {"model": model, "floor": {"all": Score(0.0)}}
    lines = to_table(scores).splitlines()
    assert lines[0].split() == ["model", "floor"] and lines[1].split() == ["all", "0.5", "[0.25,", "0.75]", "0"]
    assert lines[2].split() == ["kid", "-1e-05", "-"] and lines[3] == "kid: few"
    said = to_json(scores, {"num": 3})
    assert json.loads(json.dumps(said)) == {
        "model": {"all": 0.5, "kid": -1e-5},
        "floor": {"all": 0.0},
        "intervals": {"model": {"all": [0.25, 0.75]}, "floor": {}},
        "about": {"num": 3},
    }
    assert show(None) == "-"
    assert to_markdown(["", "a"], [["x", "1"]]) == "|  | a |\n| --- | --- |\n| x | 1 |"


def test_seconds_of_training_are_summed_over_windows_and_not_over_restarts(tmp_path):
    lines = [
        {"step": 2},
        {"step": 4, "images_per_second": 8.0},
        {"step": 6, "images_per_second": 4.0},
        {"step": 6, "images_per_second": 2.0},  # trained again after a kill
        {"step": 6, "score/all": 1.0},
    ]
    assert trained_seconds(tmp_path, 8) is None
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert trained_seconds(tmp_path, 8) == pytest.approx(4 * 8 / 8 + 2 * 8 / 2)  # the start goes at the first rate


# ---- rewards


def test_the_oracle_picks_the_image_that_fits():
    images = np.stack([make_example("one", "train", i, 16, 1)[0] for i in range(6)])
    texts = [make_example("one", "train", i, 16, 1)[1] for i in range(6)]
    reward = get_reward("oracle", "one")
    assert reward(images, texts).tolist() == [2.0] * 6
    assert reward(images[[1]], ["a thing on a grey background"])[0] in (1.0 + 1, 0.0)
    tripled = np.concatenate([np.stack([images[(i + 1) % 6], images[i], images[(i + 2) % 6]]) for i in range(6)])
    chosen, rewards = best_of(tripled, texts, 3, reward)
    assert np.array_equal(rewards, reward(tripled, [text for text in texts for _ in range(3)]))
    assert (reward(tripled[chosen], texts) == 2.0).all()
    assert chosen.tolist() == [int(i) for i in np.arange(6) * 3 + (chosen % 3)]


def test_rewards_are_named():
    with pytest.raises(UserError, match="did you mean 'oracle'"):
        get_reward("oracel", "one")
    with pytest.raises(UserError, match="zoo:clip"):
        get_reward("oracle", None)
    scores = get_reward(str(CLIP), None)(real().images[:3], real().captions[:3])
    assert scores.shape == (3,) and (scores >= 0).all()


# ---- clip_eval


def test_auc_and_ranks_against_the_definitions():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 40), rng.integers(0, 5, 30)
    pairs = [(x > y) + 0.5 * (x == y) for x in a for y in b]
    assert clip_eval.auc(a, b) == pytest.approx(np.mean(pairs))
    values = np.array([3.0, 1.0, 3.0, 2.0])
    assert clip_eval.ranks(values).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_recall_at_1_counts_equal_captions_as_right():
    eye = np.eye(3, dtype=np.float32)
    assert clip_eval.recall_at_1(eye, eye[[0, 2, 1]], ["a", "b", "b"])["image_to_text_r1"] == 1.0
    said = clip_eval.recall_at_1(eye, eye[[0, 2, 1]], ["a", "b", "c"])
    assert said == {"image_to_text_r1": 1 / 3, "text_to_image_r1": 1 / 3}


def test_hard_negatives_are_false_of_their_scene():
    from zoo.scenes.grammar import holds, parse

    made = 0
    for i in range(100):
        _, text, scene = make_example("full", "test_seen", i, 32, 1)
        item = {"text": text, "attributes": scene.to_json()}
        wrong = clip_eval.hard_negative(item, 1, np.random.default_rng(i))
        if wrong is not None:
            assert False in holds(parse(wrong), scene).values()
            made += 1
    assert made > 80


def test_the_last_row_of_a_step_counts(tmp_path):
    lines = [{"step": 2, "a": 1.0, "b": 5.0}, {"step": 4, "a": 2.0}, {"step": 2, "a": 3.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_metrics(tmp_path) == [{"step": 2, "a": 3.0, "b": 5.0}, {"step": 4, "a": 2.0}]
