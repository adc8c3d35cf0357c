"""Losses on items that training does not see."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import loop
from zoo.evaluation.held_out import LEVELS, HeldOut
from zoo.method import Axis, to_float
from zoo.methods.diffusion import Diffusion
from zoo.runs.data import Data
from zoo.runs.dependencies import prepare
from zoo.training import parallel


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def recipe(tiny):
    return prepare(tiny({"data.batch_size": 8}))[1]


def losses(recipe, num=20, params=None):
    params = recipe.create_state().params if params is None else params
    return HeldOut(recipe, recipe.data.open("test"), num)(parallel.replicate(params), parallel.replicate({}), 0)


@pytest.mark.slow
def test_they_stand_beside_the_metrics_of_training(tiny, recipe, tmp_path):
    config = tiny({"loop.steps": 3, "loop.held_out_every": 2, "loop.held_out_num": 8, "loop.grid_every": 0})
    final = loop.train(config, tmp_path / "run")
    found = {line["step"]: line for line in lines_of(tmp_path / "run") if "held_out/model/loss" in line}
    assert list(found) == [2, 3]
    for name, value in losses(recipe, 8, final.params).items():
        assert found[3][name] == pytest.approx(value, rel=1e-5)


def test_the_noise_is_the_same_each_time_and_the_items_are_those_of_the_test_split(recipe, monkeypatch):
    seen, plain = [], type(recipe).stream
    monkeypatch.setattr(
        type(recipe), "stream", lambda self, source, **at: seen.append(source) or plain(self, source, **at)
    )
    assert losses(recipe) == losses(recipe)
    test = recipe.data.open("test")
    for source in seen:
        assert [source[i]["text"] for i in range(5)] == [test[i]["text"] for i in range(5)]


def test_a_test_split_that_is_the_training_data_is_noted(tiny, tmp_path, capsys, monkeypatch):
    plain = Data.open
    changes = {"loop.held_out_every": 2, "loop.held_out_num": 8, "loop.grid_every": 0}
    loop.Training(tiny(changes), tmp_path / "run").held_out  # noqa: B018
    assert "hold some out" not in capsys.readouterr().err
    monkeypatch.setattr(Data, "open", lambda self, split: plain(self, "train"))
    loop.Training(tiny(changes), tmp_path / "again").held_out  # noqa: B018
    assert "on the training data, which the test split is: hold some out" in capsys.readouterr().err


@pytest.mark.slow
def test_a_loss_is_the_mean_over_batches_and_devices(tiny):
    recipe = prepare(tiny({"data.batch_size": 8, "data.source": "scenes/one?examples=256"}))[1]
    assert len(recipe.data.open("test")) >= 20
    params = recipe.create_state().params
    stream, sums = recipe.stream(recipe.data.open("test")), []
    for number in range(2):
        parts = parallel.stack_and_shard([next(stream)])
        for device in range(jax.local_device_count()):
            batch = jax.tree.map(lambda x, device=device: jnp.asarray(x[device, 0]), parts)
            rng = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), number), device)
            sums.append(float(recipe.method.loss("model", params, batch, rng, Axis(), 0)[0]))
    assert losses(recipe, 20)["held_out/model/loss"] == pytest.approx(np.mean(sums), rel=1e-4)


def test_diffusion_gives_its_loss_at_noise_levels(recipe, monkeypatch):
    names = [f"held_out/model/loss_at_{t:g}" for t in LEVELS]
    assert set(losses(recipe)) == {"held_out/model/loss", *names}
    monkeypatch.setattr(Diffusion, "apply", lambda self, params, z, t, cond: z * t[:, None, None, None, None])
    x = np.random.default_rng(0).integers(256, size=(4, 1, 8, 8, 3), dtype=np.uint8)
    rng = jax.random.key(3)
    eps = np.asarray(jax.random.normal(rng, x.shape))
    for t in (0.25, 0.75):
        z = (1 - t) * to_float(x) + t * eps
        expected = np.square(t * z - (eps - to_float(x))).mean()
        found = recipe.method.loss_at({}, {"inputs": x, "cond": {"tokens": np.ones((4, 3), np.int32)}}, rng, t)
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_each_item_is_taken_once_and_a_small_split_is_noted(recipe, tiny, tmp_path, capsys):
    test = recipe.data.open("test")
    assert len(test) == 6
    small = prepare(tiny({"data.batch_size": 4}))[1]
    assert len(HeldOut(small, small.data.open("test"), 512)._batches) == 1
    config = tiny({"data.batch_size": 8, "loop.held_out_every": 1, "loop.grid_every": 0})
    loop.Training(config, tmp_path / "run").held_out  # noqa: B018
    assert "take the 6 items of the test split again and again" in capsys.readouterr().err


@pytest.mark.slow
def test_losses_that_compare_items_compare_those_of_a_part_as_in_training(recipe, monkeypatch):
    sizes, plain = [], Diffusion.loss

    def loss(self, player, params, batch, *rest):
        sizes.append(len(batch["inputs"]))
        return plain(self, player, params, batch, *rest)

    monkeypatch.setattr(Diffusion, "loss", loss)
    params, test = parallel.replicate(recipe.create_state().params), recipe.data.open("test")
    whole, parts = (HeldOut(recipe, test, 8, count)(params, parallel.replicate({}), 0) for count in (1, 2))
    each = 8 // jax.local_device_count()
    assert set(sizes) == {each, each // 2} and whole.keys() == parts.keys()
    assert parts["held_out/model/loss"] == pytest.approx(whole["held_out/model/loss"], rel=0.5)


def test_no_loss_is_named_by_a_time_that_is_not_trained(tiny):
    _, recipe = prepare(tiny({"data.batch_size": 8, "method.time_min": 0.2}))
    found = losses(recipe, 8)
    assert "held_out/model/loss_at_0.3" in found and "held_out/model/loss_at_0.1" not in found


@pytest.mark.slow
def test_every_player_has_its_own(tiny):
    _, recipe = prepare(tiny({"data.batch_size": 8}, "configs/gan.py:test"))
    found = losses(recipe, 8)
    assert {"held_out/critic/loss", "held_out/critic/accuracy", "held_out/model/generator_loss"} <= set(found)
    assert all(np.isfinite(value) for value in found.values())
