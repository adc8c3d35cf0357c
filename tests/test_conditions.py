"""Conditions: what is empty, how training drops them, and how guidance leads away from others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import conditions, loop
from zoo.conditions import END, Condition
from zoo.data import pipeline
from zoo.runs.dependencies import open_run, prepare

COND = {"tokens": jnp.arange(24).reshape(4, 6) + 2}
EMPTY = np.eye(1, 6, dtype=int).repeat(4, 0) * END


def as_floats(values, tokenize):
    return np.array([value or 0.0 for value in values], np.float32)


@pytest.fixture
def with_frame_rate(monkeypatch):
    """Adds a condition that training never drops."""
    monkeypatch.setitem(conditions.CONDITIONS, "frame_rate", Condition("fps", as_floats, jnp.zeros_like, drops=False))
    return COND | {"frame_rate": jnp.array([8.0, 4.0, 2.0, 1.0])}


def test_conditions_of_the_data_are_encoded_and_missing_ones_are_empty(with_frame_rate):
    items = [{"text": "a star", "fps": 8.0, "inputs": 0}, {"text": "a ring"}, {"fps": 4.0}]
    tokenize = lambda texts: np.array([[len(text), END] for text in texts])
    assert conditions.of_item(items[0]) == ("tokens", "frame_rate") and conditions.of_item(items[1]) == ("tokens",)
    found = conditions.encode(("tokens", "frame_rate"), items, tokenize)
    np.testing.assert_array_equal(found["tokens"][:, 0], [6, 6, 0])
    np.testing.assert_array_equal(found["frame_rate"], [8.0, 0.0, 4.0])
    assert set(conditions.encode(("tokens",), items, tokenize)) == {"tokens"}


def test_the_empty_caption_is_its_end():
    np.testing.assert_array_equal(conditions.empty(COND)["tokens"], EMPTY)


def test_what_training_never_drops_stays(with_frame_rate):
    for cond in (conditions.empty(with_frame_rate), conditions.drop(jax.random.key(0), with_frame_rate, 1.0)):
        np.testing.assert_array_equal(cond["frame_rate"], with_frame_rate["frame_rate"])
        np.testing.assert_array_equal(cond["tokens"], EMPTY)


def test_a_share_is_dropped_and_the_rest_stays():
    tokens = jnp.arange(6 * 4000).reshape(4000, 6) + 2
    dropped = conditions.drop(jax.random.key(0), {"tokens": tokens}, 0.3)["tokens"]
    empty = np.all(np.asarray(dropped) == EMPTY[0], axis=1)
    assert 0.27 < empty.mean() < 0.33
    np.testing.assert_array_equal(dropped[~empty], tokens[~empty])
    np.testing.assert_array_equal(conditions.drop(jax.random.key(0), COND, 0.0)["tokens"], COND["tokens"])


def test_conditions_of_a_sample_are_dropped_together(monkeypatch):
    monkeypatch.setitem(conditions.CONDITIONS, "label", Condition("label", as_floats, jnp.zeros_like, drops=True))
    cond = {"tokens": jnp.full((1000, 3), 7), "label": jnp.ones(1000)}
    dropped = conditions.drop(jax.random.key(1), cond, 0.5)
    np.testing.assert_array_equal(np.asarray(dropped["label"]) == 0, np.asarray(dropped["tokens"])[:, 0] == END)
    assert 400 < int(dropped["label"].sum()) < 600


def test_negative_conditions_stand_in_place_of_the_empty_ones(with_frame_rate):
    np.testing.assert_array_equal(conditions.duplicate(COND)["tokens"], np.concatenate([COND["tokens"], EMPTY]))
    negative = {"tokens": COND["tokens"] + 100}
    both = conditions.duplicate(with_frame_rate | {"negative": negative})
    np.testing.assert_array_equal(both["tokens"], np.concatenate([COND["tokens"], negative["tokens"]]))
    np.testing.assert_array_equal(both["frame_rate"], [8.0, 4.0, 2.0, 1.0] * 2)
    assert set(both) == {"tokens", "frame_rate"}


def test_guidance_leads_from_the_bad_prediction_beyond_the_good_one():
    good, bad = jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])
    np.testing.assert_allclose(conditions.guide(good, bad, 0.5), [1.5, 1.0])
    np.testing.assert_array_equal(conditions.guide(good, bad, 0.0), good)


class Labelled:
    """Four items with a label beside the caption."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {"inputs": np.full((1, 16, 16, 3), i, np.uint8), "text": f"number {i}", "label": i + 1}


@pytest.mark.slow
def test_a_new_condition_of_the_data_is_in_batches_and_in_samples(monkeypatch, tiny, tmp_path):
    monkeypatch.setitem(conditions.CONDITIONS, "label", Condition("label", as_floats, jnp.zeros_like, drops=True))
    monkeypatch.setitem(pipeline.SOURCES, "labelled", lambda name, split, size, frames: Labelled())
    config = tiny({"data.source": "labelled:x", "loop.steps": 1, "loop.grid_every": 0})
    source, recipe = prepare(config)
    assert recipe.names == ("tokens", "label")
    batch = next(recipe.stream(source))
    np.testing.assert_array_equal(batch["cond"]["label"], batch["inputs"][:, 0, 0, 0, 0] + 1.0)
    assert recipe.conditions(["a", "b"], "c")["negative"]["label"].tolist() == [0.0, 0.0]
    loop.train(config, tmp_path / "run")
    assert open_run(tmp_path / "run").recipe.names == ("tokens", "label")
    assert open_run(tmp_path / "run").sample(["number 1"]).shape == (1, 1, 16, 16, 3)
