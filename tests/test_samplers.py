import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.diffusion.paths import PATHS, Prediction, get_path, shift_time
from zoo.diffusion.samplers import SAMPLERS, integrate, time_grid
from zoo.errors import UserError

BOTH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
MEAN, STD = 0.7, 0.4  # of the data: a Gaussian, so that everything is known in closed form


def marginal_std(path, t):
    """Standard deviation of z_t."""
    return jnp.sqrt((path.alpha(t) * STD) ** 2 + path.sigma(t) ** 2)


def exact(path, z, t):
    """The perfect network: E[x | z_t] and what follows from it."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    surprise = (z - alpha * MEAN) / marginal_std(path, t) ** 2
    x, eps = MEAN + alpha * STD**2 * surprise, sigma * surprise
    return path.convert("v", path.velocity(x, eps, jnp.full(len(z), t)), z, jnp.full(len(z), t))


def flow(path, z, t, s):
    """The exact solution of the probability-flow ODE from time t to s."""
    t, s = jnp.asarray(t), jnp.asarray(s)
    return path.alpha(s) * MEAN + marginal_std(path, s) / marginal_std(path, t) * (z - path.alpha(t) * MEAN)


def one_point(path, z, t):
    """The perfect network of data that are all MEAN."""
    t = jnp.full(len(z), t)
    return path.convert("x", jnp.full_like(z, MEAN), z, t)


def curved(path, z, t):
    """A network that is neither exact nor affine."""
    t = jnp.full(len(z), t)
    return path.convert("v", jnp.sin(3 * z) - z * t, z, t)


def error(sampler, path, steps, start, end):
    """Of the sampler's end against the exact one."""
    z = jnp.array([-1.5, 0.3, 2.0])
    times = time_grid(steps, start=start, end=end)
    found = integrate(sampler, functools.partial(exact, path), path, z, times)
    return float(jnp.abs(found - flow(path, z, start, end)).max())


@BOTH
def test_perfect_network_is_the_conditional_mean(path):
    rng = np.random.default_rng(0)
    x, eps, t = MEAN + STD * rng.normal(size=400_000), rng.normal(size=400_000), 0.6
    z = path.alpha(t) * x + path.sigma(t) * eps
    near = np.abs(z - 0.8) < 0.02
    found = exact(path, jnp.array([0.8]), jnp.float32(t))
    np.testing.assert_allclose(found.x[0], x[near].mean(), atol=0.02)
    np.testing.assert_allclose(found.eps[0], eps[near].mean(), atol=0.03)


@BOTH
@pytest.mark.parametrize("sampler, order", [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(sampler, order, path, x64):
    counts = [32, 64, 128]
    found = [error(sampler, path, steps, 0.9, 0.1) for steps in counts]
    slope = -np.polyfit(np.log(counts), np.log(found), 1)[0]
    assert abs(slope - order) < 0.15, found


@BOTH
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_error_vanishes_on_the_whole_range(sampler, path, x64):
    coarse, fine = (error(sampler, path, steps, 1.0, 0.0) for steps in (16, 128))
    assert fine < 0.012
    assert fine < coarse / 6


@BOTH
def test_second_order_is_better_than_first_at_equal_evaluations(path, x64):
    euler, heun, two_step = (
        error(name, path, steps, 0.9, 0.1) for name, steps in (("euler", 64), ("heun", 32), ("dpmpp_2m", 64))
    )
    assert max(heun, two_step) < euler / 4


def test_ddim_without_noise_is_euler_on_the_linear_path(x64):
    path, z = PATHS["linear"], jnp.linspace(-2, 2, 9)
    euler, ddim = (
        integrate(name, functools.partial(curved, path), path, z, time_grid(10)) for name in ("euler", "ddim")
    )
    np.testing.assert_allclose(ddim, euler, rtol=1e-12)


def test_ddim_is_exact_in_one_step_when_the_network_names_one_point(x64):
    for path in PATHS.values():
        z = jnp.linspace(-2, 2, 9)
        for sampler in ("ddim", "dpmpp_2m"):
            found = integrate(sampler, functools.partial(one_point, path), path, z, jnp.array([0.9, 0.3]))
            eps = (z - path.alpha(0.9) * MEAN) / path.sigma(0.9)
            np.testing.assert_allclose(found, path.alpha(0.3) * MEAN + path.sigma(0.3) * eps, rtol=1e-12)


# DDIM with noise


def noise_like(z, seed=1):
    return lambda index: jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), z.shape)


@BOTH
def test_one_noisy_step_has_the_variance_of_the_posterior(path):
    """q(z_s | z_t, x) of 2107.00630, eq. 30, worked out here from the joint Gaussian of (z_s, z_t) given x."""
    t, s, z_t, count = 0.8, 0.5, 1.1, 200_000
    point = functools.partial(one_point, path)
    z = jnp.full(count, z_t)
    found = integrate("ddim", point, path, z, jnp.array([t, s]), eta=1.0, draw_noise=noise_like(z))
    ratio = path.alpha(t) / path.alpha(s)
    covariance = ratio * path.sigma(s) ** 2  # of z_s and z_t given x
    variance = path.sigma(s) ** 2 - covariance**2 / path.sigma(t) ** 2
    mean = path.alpha(s) * MEAN + covariance / path.sigma(t) ** 2 * (z_t - path.alpha(t) * MEAN)
    np.testing.assert_allclose(found.mean(), mean, atol=0.005)
    np.testing.assert_allclose(found.var(), variance, rtol=0.02)


@BOTH
def test_eta_scales_the_noise_that_is_put_back(path, x64):
    z, times = jnp.array([0.5]), jnp.array([0.8, 0.5])
    point = functools.partial(one_point, path)

    def added(eta):
        low, high = (
            integrate("ddim", point, path, z, times, eta=eta, draw_noise=lambda _, n=n: jnp.full(1, n)) for n in (0, 1)
        )
        return float(high[0] - low[0])

    assert added(1.0) > 0.05
    np.testing.assert_allclose(added(0.5), added(1.0) / 2, rtol=1e-12)


@BOTH
@pytest.mark.parametrize("end", [0.4, 0.0])
def test_ancestral_sampling_keeps_the_marginals(path, end):
    z = jax.random.normal(jax.random.key(0), (20_000,))
    times = time_grid(150, end=end)
    found = integrate("ddim", functools.partial(exact, path), path, z, times, eta=1.0, draw_noise=noise_like(z))
    np.testing.assert_allclose(found.mean(), path.alpha(jnp.array(end)) * MEAN, atol=0.02)
    np.testing.assert_allclose(found.std(), marginal_std(path, jnp.array(end)), rtol=0.03)


def test_noise_is_fresh_in_every_step():
    path, seen = PATHS["linear"], []

    def draw_noise(index):
        jax.debug.callback(lambda i: seen.append(int(i)), index)
        return jnp.zeros(2)

    integrate("ddim", functools.partial(exact, path), path, jnp.ones(2), time_grid(4), eta=0.5, draw_noise=draw_noise)
    jax.effects_barrier()
    assert sorted(seen) == [0, 1, 2, 3]


# The loop


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 5])
def test_the_times_of_evaluations(sampler, steps):
    path, seen = PATHS["linear"], []

    def predict(z, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t)
        return exact(path, z, t)

    integrate(sampler, predict, path, jnp.ones(2), time_grid(steps))
    jax.effects_barrier()
    expected = SAMPLERS[sampler].evaluated(np.asarray(time_grid(steps)))
    np.testing.assert_allclose(sorted(seen), np.sort(expected), atol=1e-6)
    assert min(seen) > 0  # where x or eps is predicted, there is no velocity at the data


def test_heun_evaluates_twice_a_step_but_the_last():
    count = lambda name, steps: len(SAMPLERS[name].evaluated(np.linspace(1, 0, steps + 1)))
    assert [count("heun", steps) for steps in (1, 5)] == [1, 9]
    assert {count(name, 5) for name in ("euler", "ddim", "dpmpp_2m")} == {5}


@BOTH
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_few_steps_from_pure_noise_are_finite(sampler, steps, path):
    z = jnp.linspace(-2, 2, 5)
    for shift in (1.0, 1.7):
        found = integrate(sampler, functools.partial(curved, path), path, z, time_grid(steps, shift=shift))
        assert np.isfinite(found).all()


@BOTH
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_exponential_samplers_end_at_the_predicted_image(sampler, path):
    z = jnp.linspace(-2, 2, 5)
    found = integrate(sampler, functools.partial(one_point, path), path, z, time_grid(3))
    np.testing.assert_allclose(found, MEAN, atol=1e-6)


def test_time_grid_runs_down_evenly_and_then_is_shifted(x64):
    np.testing.assert_allclose(time_grid(4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(time_grid(4, start=0.9, end=0.1), [0.9, 0.7, 0.5, 0.3, 0.1])
    np.testing.assert_allclose(time_grid(4, shift=3.0), shift_time(np.array([1, 0.75, 0.5, 0.25, 0]), 3.0))
    np.testing.assert_allclose(time_grid(2, shift=3.0), [1, 0.75, 0])
    assert time_grid(7, shift=1.7)[-1] == 0
    shifted = time_grid(4, shift=3.0, start=0.99, end=0.1)  # never beyond the start
    np.testing.assert_allclose(shifted[jnp.array([0, -1])], [0.99, 0.1])
    assert (shifted[1:-1] > time_grid(4, start=0.99, end=0.1)[1:-1]).all()


def test_unknown_sampler_is_an_error_with_the_nearest_known():
    with pytest.raises(UserError, match="did you mean 'dpmpp_2m'"):
        integrate("dpmpp_2", None, PATHS["linear"], jnp.ones(1), time_grid(1))


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"ddim"}))
def test_eta_is_refused_by_deterministic_samplers(sampler):
    with pytest.raises(UserError, match="only ddim does"):
        integrate(sampler, None, PATHS["linear"], jnp.ones(1), time_grid(1), eta=0.5)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused(steps):
    with pytest.raises(UserError, match=f"at least 1 step, got steps={steps}"):
        time_grid(steps)


@BOTH
def test_the_trajectory_is_returned(path):
    z, times = jnp.array([0.3, -1.2]), time_grid(4)
    run = functools.partial(integrate, "ddim", functools.partial(curved, path), path, eta=0.5, draw_noise=noise_like(z))
    states = run(z, times, return_trajectory=True)
    assert states.shape == (5, 2) and (states[0] == z).all()
    np.testing.assert_allclose(states[-1], run(z, times), rtol=1e-6)
    np.testing.assert_allclose(states[2], run(z, times[:3]), rtol=1e-6)


def test_noise_that_is_needed_must_be_given():
    predict = lambda z, t: Prediction(z, z, z)
    with pytest.raises(TypeError):
        integrate("ddim", predict, get_path("linear"), jnp.ones((1, 2)), time_grid(2), eta=1.0)
