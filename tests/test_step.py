import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.method import Axis, Output
from zoo.training import parallel
from zoo.training.optim import Optimizer
from zoo.training.state import Step, create

OPTIMIZER = Optimizer(
    learning_rate=0.1, warmup_steps=0, decay="constant", clip_norm=1e9, ema_half_lives=(2.0, 8.0), ema_rampup=1e9
)


class Regression:
    """Its only randomness is the batch."""

    players = ("model",)

    def init(self, rng, batch):
        return {"model": {"w": jnp.array([0.5, -0.5, 1.0])}}

    def loss(self, player, params, batch, rng, axis, step):
        loss = jnp.square(batch["x"] @ params["model"]["w"] - batch["y"]).mean()
        return loss, Output({"loss": loss})


class Contrastive(Regression):
    """Each row against all rows of the whole batch, which it also normalises by the whole batch's mean."""

    def loss(self, player, params, batch, rng, axis, step):
        own = batch["x"] * params["model"]["w"]  # (B, 3)
        own = own - axis.pmean(own.mean(0))
        everyone = axis.all_gather(own)
        first = axis.index * len(own)
        logits = own @ everyone.T
        loss = -_own(logits, first)
        return loss.mean(), Output({"loss": loss.mean(), "rows": jnp.float32(len(everyone))})


def _own(logits, first):
    rows = jnp.arange(len(logits))
    return jax.nn.log_softmax(logits)[rows, rows + first]


class Draws(Regression):
    """Tells what each device drew."""

    players = ("model", "critic")

    def init(self, rng, batch):
        return {player: {"w": jnp.ones(1)} for player in self.players}

    def loss(self, player, params, batch, rng, axis, step):
        drawn = axis.all_gather(jax.random.uniform(rng, (1,)))
        return params[player]["w"].sum(), Output({f"draw{i}": value for i, value in enumerate(drawn)})


class Duel(Regression):
    """The second player's loss shows what it sees of the first."""

    players = ("first", "second")

    def init(self, rng, batch):
        return {"first": {"w": jnp.float32(1.0)}, "second": {"w": jnp.float32(2.0)}}

    def loss(self, player, params, batch, rng, axis, step):
        first, second = params["first"]["w"], params["second"]["w"]
        loss = first * second if player == "first" else (first - second) ** 2
        return loss, Output({"loss": loss, "first": first, "second": second})


def batches(steps=3, size=8, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {"x": rng.normal(size=(size, 3)).astype(np.float32), "y": rng.normal(size=size).astype(np.float32)}
        for _ in range(steps)
    ]


def begin(method, optimizer=OPTIMIZER):
    return create(method, {player: optimizer for player in method.players}, jax.random.key(0), batches(1)[0])


@functools.cache
def compiled(method, optimizer, accumulate, devices):
    optimizers = {player: optimizer for player in method.players}
    axis = parallel.Devices() if devices else Axis()
    step = Step(method, optimizers, 100, 3, axis, accumulate)
    return parallel.pmap(step) if devices else jax.jit(step)


METHODS = {cls: cls() for cls in (Regression, Contrastive, Draws, Duel)}


def train(cls, data, optimizer=OPTIMIZER, accumulate=1, state=None, devices=False):
    """All batches in one call: (state, {metric: an entry a step}), as numpy; with devices, of the first one."""
    method = METHODS[cls]
    step = compiled(method, optimizer, accumulate, devices)
    state = begin(method, optimizer) if state is None else state
    if devices:
        state, metrics = step(parallel.replicate(state), {}, parallel.stack_and_shard(data))
        for leaf in jax.tree.leaves((state, metrics)):
            assert all((np.asarray(leaf[0]) == np.asarray(copy)).all() or np.isnan(copy).any() for copy in leaf)
        return parallel.unreplicate(state), parallel.unreplicate(metrics)
    return jax.tree.map(np.asarray, step(state, {}, jax.tree.map(lambda *x: np.stack(x), *data)))


def close(a, b, tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance), a, b)


def test_there_are_four_devices():
    assert jax.device_count() == 4


def test_players_are_trained_in_order_and_the_second_gets_the_firsts_update():
    state, metrics = train(Duel, batches(1))
    updated = 1.0 - 0.1  # Adam's first step is the learning rate
    assert metrics["first/first"][0] == 1.0 and metrics["first/second"][0] == 2.0
    assert metrics["second/first"][0] == pytest.approx(updated, abs=1e-5) and metrics["second/second"][0] == 2.0
    assert state.params["first"]["w"] == pytest.approx(updated, abs=1e-5)


def test_a_players_loss_does_not_move_the_other_player():
    # (first - second)^2 would pull the first up; its own loss, a product with a positive number, only lowers it.
    state, metrics = train(Duel, batches(1))
    assert metrics["first/grad_norm"][0] == pytest.approx(2.0)  # d(first * second) / d first
    assert metrics["second/grad_norm"][0] == pytest.approx(2 * (2.0 - 0.9), rel=1e-4)
    assert state.params["second"]["w"] == pytest.approx(2.0 - 0.1, abs=1e-5)


def test_each_player_reports_its_numbers_under_its_name():
    _, metrics = train(Duel, batches(2))
    for player in Duel.players:
        for name in ("loss", "grad_norm", "update_norm", "learning_rate"):
            assert metrics[f"{player}/{name}"].shape == (2,)


def test_the_gradient_is_that_of_the_mean_loss():
    [batch] = batches(1)
    w = np.array([0.5, -0.5, 1.0], np.float32)
    expected = 2 * batch["x"].T @ (batch["x"] @ w - batch["y"]) / len(batch["y"])
    for devices in (False, True):
        _, metrics = train(Regression, [batch], devices=devices)
        assert metrics["model/grad_norm"][0] == pytest.approx(np.linalg.norm(expected), rel=1e-5)


@pytest.mark.parametrize("cls", [Regression, Contrastive])
def test_one_device_and_four_of_the_same_total_batch_agree(cls):
    alone, together = (train(cls, batches(5), devices=devices) for devices in (False, True))
    close(alone, together, 1e-5)
    assert not np.allclose(together[0].params["model"]["w"], begin(METHODS[cls]).params["model"]["w"], atol=0.05)


def test_all_gather_gives_the_whole_batch():
    _, metrics = train(Contrastive, batches(1, size=12), devices=True)
    assert metrics["model/rows"][0] == 12


def test_all_gather_keeps_the_order_of_the_devices_and_carries_gradients_to_each():
    weights = jnp.arange(1.0, 9.0)

    def loss(x):
        return (parallel.Devices().all_gather(x) * weights).sum()

    value, gradient = jax.pmap(jax.value_and_grad(loss), axis_name=parallel.AXIS_NAME)(jnp.arange(8.0).reshape(4, 2))
    assert value.tolist() == [float((np.arange(8) * np.arange(1, 9)).sum())] * 4
    assert gradient.ravel().tolist() == (4 * weights).tolist()  # each device's loss sends its share


def test_the_axis_of_one_device_is_the_identity():
    axis, x = Axis(), jnp.arange(3.0)
    assert axis.pmean({"a": x})["a"] is x and axis.all_gather(x) is x and axis.index == 0


def test_the_axis_of_devices_has_its_index():
    index = jax.pmap(lambda x: parallel.Devices().index, axis_name=parallel.AXIS_NAME)(jnp.ones(4, int))
    assert index.tolist() == [0, 1, 2, 3]


def test_every_device_step_and_player_draws_other_noise():
    _, metrics = train(Draws, batches(3), devices=True)
    drawn = [metrics[f"{player}/draw{i}"][step] for player in Draws.players for i in range(4) for step in range(3)]
    assert len(set(map(float, drawn))) == 2 * 4 * 3


def test_noise_depends_on_the_step_and_not_on_the_call_it_is_in():
    _, whole = train(Draws, batches(2), devices=True)
    state, _ = train(Draws, batches(1), devices=True)
    _, second = train(Draws, batches(1), devices=True, state=state)
    assert whole["model/draw2"][1] == second["model/draw2"][0]


def test_steps_in_one_call_equal_single_calls(same):
    data = batches(4)
    whole, metrics = train(Regression, data)
    state, singles = None, []
    for batch in data:
        state, one = train(Regression, [batch], state=state)
        singles.append(one["model/loss"][0])
    close(state, whole, 1e-6)
    np.testing.assert_allclose(metrics["model/loss"], singles, rtol=1e-6)
    assert state.step == whole.step == 4


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_batch_in_parts_equals_the_batch_at_once(accumulate):
    data = batches(3)
    close(train(Regression, data), train(Regression, data, accumulate=accumulate), 1e-6)


def test_parts_and_devices_together_equal_one_device(same):
    data = batches(3, size=16)
    close(train(Regression, data), train(Regression, data, accumulate=2, devices=True), 1e-5)


def test_the_averages_are_those_of_the_formula():
    data, seen, state = batches(6), [], None
    for batch in data:
        state, _ = train(Regression, [batch], state=state)
        seen.append(state.params["model"]["w"])
    for half_life in (2.0, 8.0):
        keep, average = 0.5 ** (1 / half_life), seen[0]  # the ramp-up forgets the start
        for params in seen[1:]:
            average = keep * average + (1 - keep) * params
        np.testing.assert_allclose(state.ema["model"][f"{half_life:g}"]["w"], average, rtol=1e-5)


def test_half_of_an_old_average_is_left_after_its_half_life():
    still = dataclasses.replace(OPTIMIZER, learning_rate=0.0)
    state, _ = train(Regression, batches(1), still)
    moved = state.replace(ema=jax.tree.map(lambda x: x + 1.0, state.ema))
    for steps, name in ((2, "2"), (8, "8")):
        after, _ = train(Regression, batches(steps), still, state=moved)
        np.testing.assert_allclose(after.ema["model"][name]["w"] - after.params["model"]["w"], 0.5, rtol=1e-5)


def test_the_state_begins_with_averages_equal_to_the_parameters(same):
    state = begin(METHODS[Duel])
    assert set(state.ema["first"]) == {"2", "8"}
    assert same(state.ema["second"]["8"], state.params["second"]) and state.step == state.skipped == 0


def poisoned(data, step, row=0):
    data = [dict(batch) for batch in data]
    data[step]["y"] = data[step]["y"].copy()
    data[step]["y"][row] = np.nan
    return data


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_leaves_no_trace_but_its_count(same, value):
    before, _ = train(Regression, batches(2))
    [bad] = batches(1)
    bad["y"] = np.full_like(bad["y"], value)
    after, _ = train(Regression, [bad], state=before)
    for field in ("params", "optimizer", "ema"):
        assert same(getattr(after, field), getattr(before, field)), field
    assert (after.step, after.skipped, after.consecutive_nonfinite) == (3, 1, 1)


def test_training_goes_on_after_a_bad_step_as_if_it_had_not_been(same):
    data = batches(5)
    interrupted, _ = train(Regression, poisoned(data, 2))
    smooth, _ = train(Regression, data[:2] + data[3:])
    close(
        (interrupted.params, interrupted.optimizer, interrupted.ema),
        (smooth.params, smooth.optimizer, smooth.ema),
        1e-6,
    )
    assert (interrupted.step, interrupted.skipped, interrupted.consecutive_nonfinite) == (5, 1, 0)


def test_bad_steps_in_a_row_are_counted_until_a_good_one():
    data = batches(5)
    three, _ = train(Regression, poisoned(poisoned(poisoned(data, 1), 3), 4))
    assert (three.skipped, three.consecutive_nonfinite) == (3, 2)


def test_a_player_that_is_not_finite_is_skipped_alone(same):
    class Half(Duel):
        def loss(self, player, params, batch, rng, axis, step):
            loss, output = super().loss(player, params, batch, rng, axis, step)
            return (loss, output) if player == "first" else (loss * jnp.nan, output)

    METHODS[Half] = Half()
    before = jax.tree.map(np.asarray, begin(METHODS[Half]))
    after, metrics = train(Half, batches(1))
    (whole, _) = train(Duel, batches(1))
    for field in ("params", "optimizer", "ema"):
        assert same(getattr(after, field)["second"], getattr(before, field)["second"]), field
        assert same(getattr(after, field)["first"], getattr(whole, field)["first"]), field
    assert (after.skipped, after.consecutive_nonfinite) == (1, 1)
    assert np.isnan(metrics["second/grad_norm"]).all() and not metrics["second/update_norm"].any()


def test_the_guard_keeps_no_second_state():
    """Beside its donated arguments a step needs a gradient and what is computed of it, not another state."""

    class Large(Regression):
        def init(self, rng, batch):
            return {"model": {name: jnp.zeros((512, 512)) for name in "abcd"}}

        def loss(self, player, params, batch, rng, axis, step):
            loss = sum(jnp.square(w * batch["x"].mean()).sum() for w in params["model"].values())
            return loss, Output({"loss": loss})

    method, size = Large(), 4 * 512 * 512 * 4
    batch = jax.tree.map(lambda x: x[None], batches(1)[0])
    optimizers = {"model": dataclasses.replace(OPTIMIZER, ema_half_lives=(2.0, 8.0, 16.0))}
    start = jax.eval_shape(lambda: create(method, optimizers, jax.random.key(0), batches(1)[0]))
    step = jax.jit(Step(method, optimizers, 10, 0), donate_argnums=0)
    memory = step.lower(start, {}, batch).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= 6 * size  # parameters, two moments, three averages
    assert memory.temp_size_in_bytes < 3 * size  # of a state kept for the choice after it: 4


def test_an_update_of_too_large_a_gradient_is_left_out_and_counted_but_is_not_bad(same):
    """One of five batches has targets far off; what follows is as if it had not been, and no step was bad."""
    data = batches(5)
    data[2]["y"] = data[2]["y"] + 1e4
    careful = dataclasses.replace(OPTIMIZER, skip_norm=100.0)
    skipped, metrics = train(Regression, data, careful)
    smooth, _ = train(Regression, data[:2] + data[3:], careful)
    assert metrics["model/grad_norm"][2] > 100 > np.delete(metrics["model/grad_norm"], 2).max()
    for field in ("params", "optimizer", "ema"):
        close(getattr(skipped, field), getattr(smooth, field), 1e-6)
    assert (skipped.step, skipped.skipped, skipped.consecutive_nonfinite) == (5, 1, 0)
    assert train(Regression, data)[0].skipped == 0  # none is left out by default


def test_a_player_that_skips_does_not_hold_back_the_other(same):
    """Their gradients have norms of 2 and of 2 (2 - 0.9)."""
    before = begin(METHODS[Duel])
    after, _ = train(Duel, batches(1), dataclasses.replace(OPTIMIZER, skip_norm=2.1))
    assert same(after.params["second"], jax.tree.map(np.asarray, before.params["second"]))
    assert after.params["first"]["w"] != before.params["first"]["w"] and (
        after.skipped,
        after.consecutive_nonfinite,
    ) == (1, 0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_that_is_not_finite_is_bad_and_counted_once_where_large_gradients_are_skipped_too(value):
    [bad] = batches(1)
    bad["y"] = np.full_like(bad["y"], value)
    after, _ = train(Regression, [bad], dataclasses.replace(OPTIMIZER, skip_norm=100.0))
    assert (after.step, after.skipped, after.consecutive_nonfinite) == (1, 1, 1)


@pytest.mark.parametrize("row", [0, 7])
def test_one_device_that_is_not_finite_holds_back_all(same, row):
    data = batches(2)
    good, _ = train(Regression, data[:1], devices=True)
    state, metrics = train(Regression, poisoned(data, 1, row), devices=True)  # checks that devices agree
    assert same(state.params, good.params) and same(state.optimizer, good.optimizer) and same(state.ema, good.ema)
    assert state.skipped == 1 and np.isnan(metrics["model/loss"][1])


def test_the_learning_rate_metric_is_the_rate_that_was_used():
    rising = dataclasses.replace(OPTIMIZER, warmup_steps=10, betas=(0.0, 0.0))  # moves by the rate in each of three
    _, metrics = train(Regression, poisoned(batches(4), 1), rising)
    used = metrics["model/update_norm"] / np.sqrt(3)
    good = [0, 2, 3]
    np.testing.assert_allclose(metrics["model/learning_rate"][good], used[good], rtol=1e-4)


def test_frozen_parameters_of_a_player_stay_in_its_averages_too(same):
    class Two(Regression):
        def init(self, rng, batch):
            return {"model": {"w": jnp.ones(3), "fixed": jnp.full(1, 1 / 3)}}

        def loss(self, player, params, batch, rng, axis, step):
            own = params["model"]
            loss = jnp.square(batch["x"] @ own["w"] - own["fixed"]).mean()
            return loss, Output({"loss": loss})

    METHODS[Two] = Two()
    before = begin(METHODS[Two])
    after, _ = train(
        Two, batches(3), dataclasses.replace(OPTIMIZER, freeze="fixed", weight_decay=0.1, weight_decay_on="w")
    )
    for tree in (after.params["model"], after.ema["model"]["8"]):
        assert same(tree["fixed"], np.asarray(before.params["model"]["fixed"]))
        assert not np.allclose(tree["w"], 1.0)


@pytest.mark.parametrize("size, accumulate, advice", [(6, 1, "multiple of 4"), (8, 3, "multiple of 12")])
def test_a_batch_that_devices_and_parts_do_not_divide_is_an_error(size, accumulate, advice):
    with pytest.raises(ValueError, match=advice):
        parallel.per_device(size, accumulate)
    assert parallel.per_device(24, 3) == 6


def test_a_batch_is_dealt_out_in_order():
    one, two = ({"x": np.arange(8) + start} for start in (0, 100))
    dealt = parallel.stack_and_shard([one, two])["x"]
    assert dealt.shape == (4, 2, 2)
    assert dealt[1].tolist() == [[2, 3], [102, 103]]
