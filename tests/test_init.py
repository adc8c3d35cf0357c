"""A run that starts from another one's parameters."""

import shutil

import jax
import numpy as np
import pytest

from zoo import loop
from zoo.errors import UserError
from zoo.runs.dependencies import open_run, prepare
from zoo.training import parallel
from zoo.training.state import split_seed


@pytest.fixture
def first_step_of(tiny, tmp_path):
    """first_step_of(changes, spec) -> the state after one step without a learning rate, and its workdir."""

    def first_step_of(changes, **keywords):
        still = {"players.model.learning_rate": 0.0, "loop.steps": 1, "loop.grid_every": 0}
        return loop.train(tiny(still | changes, **keywords), tmp_path / "run"), tmp_path / "run"

    return first_step_of


@pytest.mark.slow
def test_a_run_starts_as_another_one_ended(trained, first_step_of, same):
    run = open_run(trained)
    state, workdir = first_step_of({"init": str(trained), "seed": 5})
    expected = jax.tree.map(np.asarray, run.params["model"])
    assert same(state.params["model"], expected)
    assert state.ema["model"] and all(same(average, expected) for average in state.ema["model"].values())
    fresh = open_run(workdir).recipe.create_state()
    assert not same(jax.tree.map(np.asarray, fresh.params["model"]), expected)


def test_it_reads_captions_as_that_one_does(trained, tiny):
    data = {"data.source": "scenes/one?examples=8&omit=0"}
    alone = prepare(tiny(data))[1].tokenizer
    started = prepare(tiny(data | {"init": str(trained)}))[1].tokenizer
    assert started.to_json() == open_run(trained).recipe.tokenizer.to_json() != alone.to_json()


@pytest.mark.slow
def test_a_player_that_the_other_run_lacks_is_drawn(trained, tiny, same):
    config, plain = tiny({"init": str(trained)}, "configs/gan.py:test"), tiny()
    config.method.base, config.sample = plain.method, plain.sample
    _, recipe = prepare(config)
    state = recipe.initial_state()
    assert same(
        jax.tree.map(np.asarray, state.params["model"]), jax.tree.map(np.asarray, open_run(trained).params["model"])
    )
    assert same(state.params["critic"], recipe.create_state().params["critic"])


def test_another_architecture_is_an_error_that_names_the_key(trained, tiny):
    message = r"has another model, .*; its config differs in method.net.width: 32 -> 48"
    with pytest.raises(UserError, match=message):
        prepare(tiny({"init": str(trained), "method.net.width": 48}))


@pytest.mark.slow
def test_resuming_does_not_need_the_other_run(copied, tiny, tmp_path):
    config = tiny({"init": str(copied), "loop.steps": 1})
    loop.train(config, tmp_path / "run")
    shutil.rmtree(copied)
    config.loop.steps = 2
    assert loop.train(config, tmp_path / "run").step == 2


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"init": "no/such/run"}, ["init", "no/such/run"]),
        ({"method.net.conditioner.width": 32}, ["another model", "16", "32"]),
        ({"method.net.text": "cross"}, ["another model", "with"]),
        ({"method.net.depth": 2}, ["another model", "(1, 16, 2, 16) and not (2, 16, 2, 16)"]),
        ({"data.text_length": 8}, ["data.text_length is 8", "16"]),
    ],
)
def test_what_a_run_cannot_start_from_is_an_error(trained, tiny, tmp_path, changes, words):
    with pytest.raises(UserError) as error:
        loop.train(tiny({"init": str(trained)} | changes), tmp_path / "run")
    assert all(word in str(error.value) for word in words), error.value


# ---- drawing the first parameters


def test_they_are_drawn_by_a_program_that_does_not_grow_with_depth(tiny, monkeypatch):
    def lines(depth):
        programs, jit = [], jax.jit

        def compiled(function):
            return lambda *args: programs.append(jit(function).lower(*args).as_text())

        recipe = prepare(tiny({"method.net.depth": depth, "method.net.conditioner.depth": depth}))[1]
        monkeypatch.setattr(jax, "jit", compiled)
        recipe.create_state()
        monkeypatch.undo()
        return programs[-1].count("\n")

    assert lines(6) == lines(3)


FAMILIES = ["diffusion.py", "vae.py", "vae.py:autoencoder", "flow.py", "flow.py:jet", "gan.py", "clip.py:video"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_layers_that_are_written_out(tiny, family):
    recipe = prepare(tiny({}, f"configs/{family}{',' if ':' in family else ':'}test"))[1]
    key, _ = split_seed(recipe.config.seed)
    written_out = jax.jit(recipe.method.init)(key, recipe.blank_batch(1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), written_out, recipe.create_state().params)


def test_they_are_drawn_on_the_host_without_fused_attention(tiny, monkeypatch):
    taken, plain = [], jax.nn.dot_product_attention

    def attention(*args, implementation, **rest):
        taken.append(implementation)
        return plain(*args, implementation="xla", **rest)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    recipe = prepare(tiny({"method.net.attention": "cudnn"}))[1]
    with jax.default_device(jax.local_devices()[1]):  # as an accelerator would be
        leaves = jax.tree.leaves(recipe.create_state())
    assert not any(leaf.committed for leaf in leaves)
    assert set(taken) == {"xla"}
    assert {device for leaf in leaves for device in leaf.devices()} == {jax.local_devices(backend="cpu")[0]}


def test_the_host_is_the_first_device_where_jax_has_no_other(monkeypatch):
    first = jax.local_devices()

    def devices(backend=None):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return first

    monkeypatch.setattr(jax, "local_devices", devices)
    assert parallel.host() == first[0]
