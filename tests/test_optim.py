import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo.errors import UserError
from zoo.training.optim import Optimizer, build_all
from zoo.trees import matches

PARAMS = {"first": {"kernel": jnp.array([1.0, 2.0]), "bias": jnp.array([3.0])}, "last": {"kernel": jnp.array([4.0])}}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
ONES = jax.tree.map(jnp.ones_like, PARAMS)


def steady(**changes):
    """An optimizer without warm-up or decay."""
    return Optimizer(**dict(learning_rate=0.1, warmup_steps=0, decay="constant") | changes)


def train(optimizer, gradients, steps=1, params=PARAMS):
    """The parameters after some steps with the same gradients."""
    state, rate = optimizer.init(params), optimizer.schedule(total_steps=100)
    for step in range(steps):
        updates, state = optimizer.update(gradients, state, params, rate(step))
        params = optax.apply_updates(params, updates)
    return params


def rates(steps, **changes):
    schedule = Optimizer(**dict(learning_rate=2.0, warmup_steps=0) | changes).schedule(100)
    return np.array([schedule(jnp.int32(step)) for step in steps])


def test_warm_up_rises_in_a_line_to_the_highest_rate():
    values = rates([0, 1, 4, 9, 10, 20], warmup_steps=10, decay="constant")
    np.testing.assert_allclose(values, [0.2, 0.4, 1.0, 2.0, 2.0, 2.0], rtol=1e-6)


def test_linear_decay_begins_at_its_start_and_ends_at_zero():
    values = rates([0, 40, 60, 80, 100, 200], decay="linear", decay_start=0.6)
    np.testing.assert_allclose(values, [2.0, 2.0, 2.0, 1.0, 0.0, 0.0], atol=1e-6)


def test_cosine_decay():
    values = rates([0, 50, 75, 100], decay="cosine", decay_start=0.5)
    np.testing.assert_allclose(values, [2.0, 2.0, 1.0, 0.0], atol=1e-6)
    assert rates([62], decay="cosine")[0] > rates([62], decay="linear")[0]  # starts slower


def test_constant_never_decays():
    assert rates([0, 99, 1000], decay="constant").tolist() == [2.0] * 3


def test_a_decay_start_of_one_is_no_decay_before_the_end():
    assert rates([0, 50, 99], decay="linear", decay_start=1.0).tolist() == [2.0] * 3


def test_the_schedule_is_what_moves_the_parameters():
    params = train(Optimizer(learning_rate=0.1, warmup_steps=10, decay="constant", betas=(0.0, 0.0)), ONES, steps=2)
    moved = jax.tree.map(lambda old, new: old - new, PARAMS, params)
    np.testing.assert_allclose(jax.tree.leaves(moved)[0], 0.01 + 0.02, rtol=1e-4)


def test_unknown_decay_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        Optimizer(decay="cosin").schedule(10)


def first_moment(optimizer, gradients):
    _, state = optimizer.update(gradients, optimizer.init(PARAMS), PARAMS, rate=1.0)
    return optax.tree.get(state, "mu")


def test_a_gradient_longer_than_the_clip_is_scaled_to_it_and_a_shorter_one_is_left():
    long, small = jax.tree.map(lambda x: 10 * x, ONES), jax.tree.map(lambda x: 0.1 * x, ONES)
    clipped, left = (first_moment(steady(clip_norm=1.5, betas=(0.5, 0.9)), g) for g in (long, small))
    assert float(optax.global_norm(clipped)) == pytest.approx(0.5 * 1.5, rel=1e-5)
    assert float(optax.global_norm(left)) == pytest.approx(0.5 * 0.2, rel=1e-5)  # four entries of 0.1


def test_weight_decay_shrinks_what_it_matches_and_nothing_else():
    params = train(steady(weight_decay=0.5, weight_decay_on="kernel$"), ZEROS)
    np.testing.assert_allclose(params["first"]["kernel"], PARAMS["first"]["kernel"] * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_allclose(params["last"]["kernel"], PARAMS["last"]["kernel"] * (1 - 0.1 * 0.5), rtol=1e-6)
    assert params["first"]["bias"] == PARAMS["first"]["bias"]


def test_weight_decay_does_not_depend_on_the_gradient():
    decayed, plain = (train(steady(weight_decay=w), ONES) for w in (0.5, 0.0))
    np.testing.assert_allclose(
        plain["last"]["kernel"] - decayed["last"]["kernel"], 0.1 * 0.5 * PARAMS["last"]["kernel"], rtol=1e-4
    )


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_frozen_parameters_stay_bit_identical_and_the_others_learn(weight_decay):
    params = train(steady(freeze="^first/", weight_decay=weight_decay), ONES, steps=5)
    for name in ("kernel", "bias"):
        assert params["first"][name].tobytes() == PARAMS["first"][name].tobytes()
    expected = train(steady(weight_decay=weight_decay), ONES, steps=5)["last"]["kernel"]
    np.testing.assert_allclose(params["last"]["kernel"], expected, rtol=1e-6)
    assert params["last"]["kernel"] != PARAMS["last"]["kernel"]


def test_frozen_parameters_get_no_moments():
    def floats(optimizer):
        state = optimizer.init(PARAMS)
        return sum(x.size for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating))

    assert floats(steady()) == 2 * 4
    assert floats(steady(freeze="^first/", weight_decay=0.1)) == 2 * 1


def test_frozen_gradients_do_not_count_for_the_clip():
    gradients = {"first": jax.tree.map(lambda x: 1e6 * x, ONES["first"]), "last": ONES["last"]}
    mu = first_moment(steady(freeze="^first/", clip_norm=1.0, betas=(0.5, 0.9)), gradients)
    assert float(jax.tree.leaves(mu)[0][0]) == pytest.approx(0.5)


@pytest.mark.parametrize("changes", [{"freeze": "kernels"}, {"weight_decay": 0.1, "weight_decay_on": "^bias"}])
def test_a_pattern_that_matches_nothing_is_an_error_with_examples_of_paths(changes):
    with pytest.raises(UserError, match="matches no parameter.*first/bias"):
        train(steady(**changes), ONES)


def test_a_pattern_may_match_anywhere_in_the_path():
    assert jax.tree.leaves(matches(PARAMS, "first|last")) == [True] * 3
    assert matches(PARAMS, "st/ker") == {"first": {"kernel": True, "bias": False}, "last": {"kernel": True}}


@pytest.mark.parametrize("half_life", [1.0, 7.0, 500.0, 1e6])
def test_after_a_half_life_half_of_the_old_weight_is_left(half_life):
    """Of float32 parameters that shifted by 1%, half of the shift is in the average."""
    optimizer, start = Optimizer(), 20_000_000  # beyond the ramp

    def step(average, i):
        return optimizer.average(half_life, start + i, average, jnp.float32(1.01)), None

    average, _ = jax.lax.scan(step, jnp.float32(1.0), jnp.arange(int(half_life)))
    assert float(average) - 1 == pytest.approx(0.005, rel=0.02)


def test_no_half_life_exceeds_its_share_of_the_steps_so_far():
    optimizer = Optimizer(ema_rampup=0.1)
    for step in (10, 100, 1000):
        assert float(optimizer.ema_rate(1e9, jnp.int32(step))) == pytest.approx(1 - 0.5 ** (1 / (0.1 * step)), rel=1e-5)
    assert float(optimizer.ema_rate(50.0, jnp.int32(10_000))) == pytest.approx(1 - 0.5 ** (1 / 50), rel=1e-5)
    assert float(optimizer.ema_rate(900.0, jnp.int32(20_000_000))) == pytest.approx(math.log(2) / 900, rel=1e-3)


def test_the_first_average_is_the_parameters_themselves():
    assert float(Optimizer().ema_rate(500.0, jnp.int32(0))) == 1.0


def test_each_half_life_has_a_name_of_its_own():
    assert Optimizer(ema_half_lives=(1_000_000, 1_000_001, 0.5)).ema_names.keys() == {"1000000", "1000001", "0.5"}
    with pytest.raises(UserError, match="the same one twice"):
        _ = Optimizer(ema_half_lives=(50, 50.0)).ema_names


def test_a_player_without_a_section_gets_the_defaults():
    built = build_all({"critic": {"learning_rate": 0.5}}, ("model", "critic"))
    assert built == {"model": Optimizer(), "critic": Optimizer(learning_rate=0.5)}


def test_a_section_for_an_unknown_player_names_the_nearest():
    with pytest.raises(UserError, match="unknown player 'modle': did you mean 'model'"):
        build_all({"modle": {}}, ("model",))


def test_an_unknown_key_of_a_player_names_its_section():
    with pytest.raises(UserError, match="players.model 'learning_rates': did you mean 'learning_rate'"):
        build_all({"model": {"learning_rates": 1.0}}, ("model",))
