import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import Easy
from zoo.diffusion import ode
from zoo.diffusion.paths import PATHS
from zoo.distributions import LEVELS
from zoo.errors import UserError
from zoo.method import to_float
from zoo.methods.diffusion import Diffusion, log_density_of_levels

SHAPE = (1, 2, 2, 3)
DIMENSIONS = math.prod(SHAPE)
MEAN, STD = 0.3, 0.2
NET = dict(width=16, depth=1, heads=2, patch_size=1, conditioner=dict(width=16, depth=1, heads=2), attention="auto")
TOKENS = np.array([[5, 1, 0], [6, 7, 1], [8, 1, 0], [1, 0, 0]], np.int32)


def method(**changes):
    return Easy(Diffusion(**dict(net=NET, vocab_size=16, dtype=jnp.float32) | changes))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def quick(function, *arguments):
    """Compiled without optimisation: compiling takes nearly all of the time."""
    compiled = jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
    return jax.tree.map(np.asarray, compiled(*arguments))


# ---- a Gaussian in four dimensions, whose ODE is linear and whose density at every time is known

MU = jnp.array([0.5, -0.3, 0.0, 0.8])
SPREAD = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32) * 0.5
COVARIANCE = SPREAD @ SPREAD.T + 0.05 * np.eye(4, dtype=np.float32)


def covariance(path, t):
    return path.alpha(t) ** 2 * COVARIANCE + path.sigma(t) ** 2 * jnp.eye(4)


def gaussian_velocity(path):
    """v(z, t) = E[d_alpha x + d_sigma eps | z] of x ~ N(MU, COVARIANCE)."""

    def velocity(z, t):
        surprise = jnp.linalg.solve(covariance(path, t), (z - path.alpha(t) * MU).T).T  # (B, 4)
        x = MU + path.alpha(t) * surprise @ COVARIANCE
        return path.d_alpha(t) * x + path.d_sigma(t) * path.sigma(t) * surprise

    return velocity


def log_density(path, z, t):
    return jax.scipy.stats.multivariate_normal.logpdf(z, path.alpha(t) * MU, covariance(path, t))


@pytest.mark.parametrize("name", PATHS)
def test_log_prob_of_a_gaussian_is_the_closed_form(name):
    path, start = PATHS[name], 0.004
    z = jax.random.normal(jax.random.key(0), (16, 4))
    times = ode.times_from(start, 1.0, 64)
    found = quick(lambda z: ode.log_prob(gaussian_velocity(path), ode.exact_divergence, z, times), z)
    np.testing.assert_allclose(found, log_density(path, z, jnp.float32(start)), atol=1e-4, rtol=1e-5)


def test_the_error_falls_with_the_fourth_power_of_the_steps():
    path, z = PATHS["linear"], jax.random.normal(jax.random.key(0), (16, 4))
    run = lambda steps: ode.log_prob(gaussian_velocity(path), ode.exact_divergence, z, ode.times_from(0.1, 1.0, steps))
    true = log_density(path, z, jnp.float32(0.1))
    coarse, fine = (np.abs(run(steps) - true).max() for steps in (3, 6))
    assert coarse > 1e-3 and 9 < coarse / fine < 40


@pytest.mark.parametrize("name", PATHS)
def test_the_way_to_noise_and_back_ends_where_it_began_and_noise_is_gaussian(name):
    velocity = gaussian_velocity(PATHS[name])
    z = jax.random.multivariate_normal(jax.random.key(1), MU, COVARIANCE, (2000,))
    times = ode.times_from(0.0, 1.0, 64)
    noise = quick(lambda z: ode.integrate(velocity, z, times), z)
    np.testing.assert_allclose(quick(lambda z: ode.integrate(velocity, z, times[::-1]), noise), z, atol=1e-4)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.1)
    np.testing.assert_allclose(np.cov(noise.T), np.eye(4), atol=0.12)


def test_hutchinsons_mean_is_the_exact_trace_and_signs_have_no_error_on_the_diagonal():
    z, t = jax.random.normal(jax.random.key(0), (3, 4)), jnp.float32(0.4)
    velocity = lambda z, t: jnp.sin(z @ jnp.asarray(SPREAD)) * t + z**2
    v, exact = ode.exact_divergence(velocity, z, t)
    by_hand = [jnp.trace(jax.jacobian(lambda row: velocity(row[None], t)[0])(row)) for row in z]
    np.testing.assert_allclose(exact, by_hand, rtol=1e-5)
    probes = ode.draw_probes(keys(3), 4000, (4,))
    assert set(np.unique(probes)) == {-1.0, 1.0}
    same, found = ode.hutchinson(probes)(velocity, z, t)
    np.testing.assert_array_equal(same, v)
    np.testing.assert_allclose(found, exact, atol=0.06)
    _, one = ode.hutchinson(probes[:1])(lambda z, t: z**2, z, t)
    np.testing.assert_allclose(one, 2 * z.sum(axis=1), rtol=1e-5)


def test_times_go_from_end_to_end_in_growing_steps():
    times = np.asarray(ode.times_from(0.004, 0.99, 20))
    np.testing.assert_allclose(times[[0, -1]], [0.004, 0.99], atol=1e-6)
    assert (np.diff(times, n=2) > 0).all()
    with pytest.raises(UserError, match="at least 1 step"):
        ode.times_from(0.0, 1.0, 0)


# ---- bits per dimension of images whose distribution is known


def levels_posterior(z, alpha, sigma, log_weights):
    """E[x | z] of pixels that are independent and have these log-probabilities of the 256 levels."""
    levels = to_float(jnp.arange(LEVELS, dtype=jnp.uint8))
    logits = log_weights - 0.5 * jnp.square((z[..., None] - alpha[..., None] * levels) / sigma[..., None])
    return jax.nn.softmax(logits) @ levels


@pytest.fixture
def perfect(monkeypatch):
    """perfect(log_weights) makes the network the perfect one for pixels of these log-probabilities of levels."""

    def perfect(log_weights):
        def apply(self, params, z, t, cond):
            path, place = PATHS[self.path], t.reshape(-1, 1, 1, 1, 1)
            alpha, sigma = path.alpha(place), path.sigma(place)
            x = levels_posterior(z, alpha, sigma, log_weights)
            eps = (z - alpha * x) / sigma
            return {"x": x, "eps": eps, "v": path.velocity(x, eps, t)}[self.prediction]

        monkeypatch.setattr(Diffusion, "apply", apply)

    return perfect


def of_gaussian():
    """log-probabilities of levels, those of a Gaussian."""
    levels = np.asarray(to_float(np.arange(LEVELS, dtype=np.uint8)))
    logits = -0.5 * ((levels - MEAN) / STD) ** 2
    return logits - np.log(np.exp(logits).sum())


def of_sixteen():
    """Noise of 16 equally likely levels: 4 bits."""
    chances = np.where((np.arange(LEVELS) >= 64) & (np.arange(LEVELS) < 80), 1 / 16, 0.0)
    return np.where(chances > 0, np.log(np.maximum(chances, 1e-30)), -1e9)


def draw(log_weights, count, seed=0):
    chances = np.exp(log_weights)
    chosen = np.random.default_rng(seed).choice(LEVELS, size=(count, *SHAPE), p=chances / chances.sum())
    return dict(inputs=chosen.astype(np.uint8), cond=dict(tokens=np.tile(TOKENS[:1], (count, 1))))


@pytest.mark.parametrize("prediction, path", [("x", "linear"), ("eps", "linear"), ("v", "linear"), ("v", "cosine")])
def test_bits_are_the_bound_that_is_documented(prediction, path, perfect):
    """Of Gaussian pixels with the perfect network, against log p(z) in closed form, for the same z."""
    perfect(of_gaussian())
    model, batch = method(path=path, prediction=prediction), draw(of_gaussian(), 4)
    found = quick(lambda b: model.bits_per_dim({}, keys(4), b, steps=48, trace="exact", start=0.01), batch)
    noise = jnp.stack([jax.random.normal(jax.random.split(key)[0], SHAPE) for key in keys(4)])
    x, alpha, sigma = to_float(batch["inputs"]), *(getattr(PATHS[path], n)(0.01) for n in ("alpha", "sigma"))
    z = np.asarray(alpha * x + sigma * noise, np.float64)[..., None]
    each = -0.5 * ((z - alpha * np.linspace(-1, 1, LEVELS)) / sigma) ** 2 - np.log(sigma * np.sqrt(2 * np.pi))
    log_p = np.log(np.sum(np.exp(each + of_gaussian()), axis=-1))
    bound = -(log_p - np.log(np.exp(each).sum(-1))).sum((1, 2, 3, 4)) / DIMENSIONS / np.log(2)
    # An eps-network's noise begins at 0.99, where the image still shows a little.
    np.testing.assert_allclose(found, bound, atol=2e-2 if prediction == "eps" else 3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [of_gaussian, of_sixteen])
def test_no_mean_falls_below_the_entropy_and_the_perfect_network_is_near_it(weights, perfect):
    weights = weights()
    perfect(weights)
    entropy = -np.sum(np.exp(weights) * np.maximum(weights, -100)) / np.log(2)
    batch = draw(weights, 96)
    bits = quick(lambda b: method().bits_per_dim({}, keys(96), b, steps=32, trace="exact"), batch)
    error = bits.std() / np.sqrt(len(bits))
    assert entropy - 3 * error < bits.mean() < entropy + 0.1 + 3 * error


def test_a_wrong_network_takes_more_bits(perfect):
    perfect(of_gaussian())
    bits = lambda batch: quick(lambda b: method().bits_per_dim({}, keys(8), b, steps=8, trace="exact"), batch).mean()
    assert bits(draw(of_sixteen(), 8)) > bits(draw(of_gaussian(), 8)) + 1


@pytest.mark.slow
def test_every_start_is_a_bound_and_more_noise_a_looser_one(perfect):
    weights = of_sixteen()
    perfect(weights)
    batch = draw(weights, 48)
    bits = [
        quick(lambda b, t=t: method().bits_per_dim({}, keys(48), b, trace="exact", start=t), batch).mean()
        for t in (1 / 256, 1 / 32, 1 / 8)
    ]
    assert 3.95 < bits[0] < bits[1] < bits[2] < 8


def test_density_of_levels_sums_to_256_and_is_flat_at_half_a_level():
    z = jnp.linspace(-1.5, 1.5, 20001)[None]
    density = np.exp(log_density_of_levels(PATHS["linear"], z, jnp.full(1, 1 / 256)))[0]
    np.testing.assert_allclose(density.sum() * 3 / 20000, LEVELS, rtol=1e-4)
    inside = density[(np.asarray(z[0]) > -0.9) & (np.asarray(z[0]) < 0.9)]
    assert inside.std() / inside.mean() < 0.02


# ---- with a real network


@functools.cache
def params():
    model, rng = method(), np.random.default_rng(0)
    tree = jax.eval_shape(
        model.init, jax.random.key(0), dict(inputs=jnp.zeros((1, *SHAPE)), cond=dict(tokens=TOKENS[:1]))
    )
    return jax.tree.map(lambda p: (0.15 * rng.normal(size=p.shape)).astype(np.float32), tree)


BATCH = dict(inputs=np.random.default_rng(0).integers(0, 256, (4, *SHAPE), dtype=np.uint8), cond=dict(tokens=TOKENS))


def bits_of(batch, rng, model=None, **options):
    return quick(lambda b: (model or method()).bits_per_dim(params(), rng, b, **dict(steps=4) | options), batch)


def test_bits_do_not_depend_on_the_images_beside_it():
    whole, order = bits_of(BATCH, keys(4)), np.array([2, 0])
    part = bits_of(jax.tree.map(lambda x: x[order], BATCH), keys(4)[order])
    np.testing.assert_allclose(part, whole[order], rtol=1e-4)
    other = bits_of(BATCH | dict(cond=dict(tokens=TOKENS[::-1])), keys(4))
    assert np.abs(other - whole).max() > 1e-4  # captions are read


def test_every_option_of_bits_is_read_and_probes_come_nearer_to_the_exact_trace(monkeypatch):
    mix = np.random.default_rng(0).normal(size=(DIMENSIONS, DIMENSIONS)).astype(np.float32)

    def apply(self, params, z, t, cond):
        return jnp.tanh(z.reshape(len(z), -1) @ mix).reshape(z.shape)

    monkeypatch.setattr(Diffusion, "apply", apply)
    exact = bits_of(BATCH, keys(4), trace="exact")
    errors = [np.abs(bits_of(BATCH, keys(4), probes=count) - exact).max() for count in (1, 400)]
    assert 0 < errors[1] < errors[0] / 4
    for changes in (dict(steps=5), dict(start=0.1)):
        assert np.abs(bits_of(BATCH, keys(4), trace="exact", **changes) - exact).max() > 1e-4
    options = {field.name for field in dataclasses.fields(Diffusion.LikelihoodOptions)}
    assert options == {"steps", "trace", "probes", "start"}


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(trace="exakt"), "did you mean 'exact'"),
        (dict(probes=0), r"probes must be in \[1, inf\)"),
        (dict(steps=0), r"steps must be in \[1, inf\)"),
        (dict(start=0.0), "start must lie between 0 and 1"),
    ],
)
def test_options_that_cannot_be_are_errors(options, message):
    with pytest.raises(UserError, match=message):
        method().bits_per_dim(params(), keys(4), BATCH, **options)


def test_latents_have_no_levels():
    with pytest.raises(UserError, match="latents"):
        method().bits_per_dim(params(), keys(4), BATCH | dict(inputs=np.zeros((4, *SHAPE), np.float32)))
