import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.diffusion.paths import (
    PATHS,
    Prediction,
    draw_times,
    get_path,
    shift_time,
    squared_error,
)
from zoo.diffusion.samplers import time_grid
from zoo.errors import UserError

BOTH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
SHAPE = (64, 2, 3)


def random_pair(seed=0):
    """x, eps (64, 2, 3) and interior times (64,)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=SHAPE), rng.normal(size=SHAPE), rng.uniform(0.02, 0.98, SHAPE[0])


@BOTH
def test_path_runs_from_the_image_to_the_noise(path, x64):
    x, eps, _ = random_pair()
    np.testing.assert_allclose(path.interpolate(x, eps, np.zeros(64)), x, atol=1e-15)
    np.testing.assert_allclose(path.interpolate(x, eps, np.ones(64)), eps, atol=1e-15)


@BOTH
def test_signal_to_noise_falls_all_the_way(path, x64):
    snr = path.snr(np.linspace(1e-3, 1, 200))
    assert np.all(np.diff(snr) < 0)
    assert np.isclose(snr[-1], 0)


def test_cosine_path_preserves_variance_and_linear_is_straight(x64):
    t = np.linspace(0, 1, 11)
    cosine, linear = PATHS["cosine"], PATHS["linear"]
    np.testing.assert_allclose(cosine.alpha(t) ** 2 + cosine.sigma(t) ** 2, 1, rtol=1e-14)
    np.testing.assert_allclose(linear.alpha(t), 1 - t)
    np.testing.assert_allclose(linear.sigma(t), t)


@BOTH
def test_velocity_is_the_derivative_of_z(path, x64):
    x, eps, t = random_pair()
    h = 1e-5
    slope = (path.interpolate(x, eps, t + h) - path.interpolate(x, eps, t - h)) / (2 * h)
    np.testing.assert_allclose(path.velocity(x, eps, t), slope, atol=1e-8)


def test_linear_velocity_is_noise_minus_image(x64):
    x, eps, t = random_pair()
    np.testing.assert_allclose(PATHS["linear"].velocity(x, eps, t), eps - x, rtol=1e-14)


@BOTH
@pytest.mark.parametrize("prediction", Prediction._fields)
def test_each_prediction_gives_back_all_three(path, prediction, x64):
    x, eps, t = random_pair()
    truth = Prediction(x, eps, path.velocity(x, eps, t))
    found = path.convert(prediction, getattr(truth, prediction), path.interpolate(x, eps, t), t)
    for name in Prediction._fields:
        np.testing.assert_allclose(getattr(found, name), getattr(truth, name), atol=1e-11, err_msg=name)


@BOTH
@pytest.mark.parametrize("prediction", Prediction._fields)
def test_any_output_of_a_network_gives_a_consistent_estimate(path, prediction, x64):
    value, z, t = random_pair(1)
    found = path.convert(prediction, value, z, t)
    np.testing.assert_allclose(getattr(found, prediction), value)
    np.testing.assert_allclose(path.interpolate(found.x, found.eps, t), z, atol=1e-11)
    np.testing.assert_allclose(path.velocity(found.x, found.eps, t), found.v, atol=1e-11)


@BOTH
@pytest.mark.parametrize("prediction", Prediction._fields)
def test_a_prediction_of_what_is_missing_becomes_one_of_the_image(path, prediction, x64):
    x, eps, t = random_pair()
    expected = np.random.default_rng(1).normal(size=SHAPE)
    missing = Prediction(x - expected, eps, path.velocity(x - expected, eps, t))
    whole = Prediction(x, eps, path.velocity(x, eps, t))
    made = path.with_expected(prediction, getattr(missing, prediction), {"expected": expected}, t)
    np.testing.assert_allclose(made, getattr(whole, prediction), rtol=1e-9, atol=1e-12)
    assert path.with_expected(prediction, x, {}, t) is x
    with pytest.raises(UserError, match="prediction 'y'"):
        path.with_expected("y", x, {}, t)


@BOTH
def test_velocity_converts_at_both_ends(path, x64):
    x, eps, _ = random_pair()
    for t in (np.zeros(64), np.ones(64)):
        found = path.convert("v", path.velocity(x, eps, t), path.interpolate(x, eps, t), t)
        np.testing.assert_allclose(found.x, x, atol=1e-13)
        np.testing.assert_allclose(found.eps, eps, atol=1e-13)


def test_float32_keeps_what_each_conversion_promises():
    x, eps, t = (jnp.float32(a) for a in random_pair())
    for path in PATHS.values():
        z, v = path.interpolate(x, eps, t), path.velocity(x, eps, t)
        found = path.convert("v", v, z, t)
        assert found.x.dtype == jnp.float32
        np.testing.assert_allclose(found.x, x, atol=1e-5)
        np.testing.assert_allclose(found.eps, eps, atol=1e-5)


# Times


@pytest.mark.parametrize("count", [1, 7, 64])
@pytest.mark.parametrize("seed", range(3))
def test_uniform_times_hit_every_bin_once(count, seed):
    t = np.sort(draw_times(jax.random.key(seed), count, "uniform"))
    assert t.dtype == np.float32
    assert np.all((t >= 0) & (t < 1))
    np.testing.assert_allclose(np.diff(t), 1 / count, atol=1e-5)
    np.testing.assert_array_equal(np.floor(t * count + 1e-4), np.arange(count))


def test_uniform_times_of_many_batches_are_uniform():
    first = jax.vmap(lambda key: draw_times(key, 4, "uniform")[0])(jax.random.split(jax.random.key(0), 20_000))
    np.testing.assert_allclose(np.quantile(first, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)


@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (-0.8, 0.6)])
def test_logit_normal_times_have_their_mean_and_deviation(mean, std):
    t = np.asarray(draw_times(jax.random.key(0), 40_000, "logit_normal", mean=mean, std=std), np.float64)
    assert np.all((t > 0) & (t < 1))
    quantiles = mean + std * np.array([-1.2816, 0, 1.2816])  # 10%, 50%, 90% of a Gaussian
    np.testing.assert_allclose(np.quantile(t, [0.1, 0.5, 0.9]), 1 / (1 + np.exp(-quantiles)), atol=0.01)
    logits = np.log(t / (1 - t))
    np.testing.assert_allclose([logits.mean(), logits.std()], [mean, std], atol=0.02)


def test_shift_fixes_the_ends_and_is_known_between(x64):
    t = np.array([0, 0.25, 0.5, 1])
    np.testing.assert_allclose(shift_time(t, 3.0), [0, 0.5, 0.75, 1])
    np.testing.assert_allclose(shift_time(t, 1.0), t)
    np.testing.assert_allclose(shift_time(shift_time(t, 3.0), 1 / 3), t)


def test_shift_divides_the_linear_paths_signal_to_noise_by_its_square(x64):
    linear, t = PATHS["linear"], np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(linear.snr(shift_time(t, 2.5)), linear.snr(t) / 2.5**2, rtol=1e-12)


@pytest.mark.parametrize("steps, shift", [(1, 1.0), (4, 1.0), (3, 2.0)])
def test_times_of_a_samplers_steps_are_the_samplers(steps, shift):
    t = draw_times(jax.random.key(0), 6000, "steps", steps=steps, shift=shift)
    found, counts = np.unique(np.asarray(t).round(5), return_counts=True)
    np.testing.assert_allclose(found, np.sort(time_grid(steps, shift=shift)[:-1]), atol=1e-5)
    assert counts.min() > 0.9 * len(t) / steps


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_shift_moves_the_drawn_times_towards_noise(distribution):
    plain = draw_times(jax.random.key(0), 1000, distribution)
    shifted = draw_times(jax.random.key(0), 1000, distribution, shift=3.0)
    np.testing.assert_allclose(shifted, 3 * plain / (1 + 2 * plain), atol=1e-6)
    assert shifted.mean() > plain.mean() + 0.1
    assert np.all((shifted >= 0) & (shifted <= 1))


# Errors


def errors(path):
    """The error of the same wrong image in every space, (64,), and the times."""
    x, eps, t = random_pair()
    wrong, z = x + random_pair(2)[0], path.interpolate(x, eps, t)
    target = Prediction(x, eps, path.velocity(x, eps, t))
    estimate = path.convert("x", wrong, z, t)
    found = {space: squared_error(space, path, estimate, target, t) for space in ("x", "eps", "v", "min_snr")}
    return found, np.square(wrong - x).mean(axis=(1, 2)), t


@BOTH
def test_error_of_x_is_a_mean_over_each_example_alone(path, x64):
    found, expected, _ = errors(path)
    assert found["x"].shape == (64,)
    np.testing.assert_allclose(found["x"], expected, rtol=1e-12)


@BOTH
def test_error_of_eps_is_the_error_of_x_times_the_signal_to_noise_ratio(path, x64):
    found, expected, t = errors(path)
    np.testing.assert_allclose(found["eps"], expected * path.snr(t), rtol=1e-8)


def test_error_of_v_on_the_linear_path_is_the_error_of_x_over_t_squared(x64):
    found, expected, t = errors(PATHS["linear"])
    np.testing.assert_allclose(found["v"], expected / t**2, rtol=1e-8)


def test_error_of_v_on_the_cosine_path_weighs_by_one_plus_the_signal_to_noise_ratio(x64):
    found, expected, t = errors(PATHS["cosine"])
    weight = (np.pi / 2) ** 2 * (1 + PATHS["cosine"].snr(t))
    np.testing.assert_allclose(found["v"], expected * weight, rtol=1e-8)


@BOTH
def test_min_snr_weighs_the_error_of_x_by_at_most_five(path, x64):
    found, expected, t = errors(path)
    weight = np.minimum(path.snr(t), 5)
    assert (weight == 5).any()
    assert (weight < 5).any()
    np.testing.assert_allclose(found["min_snr"], expected * weight, rtol=1e-8)


def test_min_snr_is_finite_where_there_is_no_noise():
    one = jnp.ones((1, 2))
    zero = Prediction(one * 0, one * 0, one * 0)
    assert squared_error("min_snr", PATHS["linear"], Prediction(one, one, one), zero, jnp.zeros(1)) == 5


@pytest.mark.parametrize(
    "call, nearest",
    [
        (lambda: get_path("lineer"), "linear"),
        (lambda: draw_times(jax.random.key(0), 2, "logit-normal"), "logit_normal"),
        (lambda: PATHS["linear"].convert("epss", jnp.ones(1), jnp.ones(1), jnp.ones(1)), "eps"),
        (lambda: squared_error("min_srn", PATHS["linear"], None, None, None), "min_snr"),
    ],
)
def test_unknown_name_is_an_error_with_the_nearest_known(call, nearest):
    with pytest.raises(UserError, match=f"did you mean '{nearest}'"):
        call()
