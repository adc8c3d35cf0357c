import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.distributions import (
    MIXTURE_PARTS,
    Gaussian,
    Latent,
    dequantise,
    dequantised_log_det,
    mixture_log_prob,
    mixture_mean,
    normal_kl,
    normal_log_prob,
    sum_except_batch,
    to_bits_per_dim,
)

LEVELS = np.arange(256) / 127.5 - 1


def random_mixture(seed, *shape, components=3):
    """Parameters whose logistics lie in and around [-1, 1], some narrow and some wide."""
    rng = np.random.default_rng(seed)
    logits, means, log_scales, coefficients = (rng.normal(size=(*shape, count, components)) for count in (1, 3, 3, 3))
    parts = logits, 0.7 * means, log_scales - 2.0, coefficients
    return np.concatenate(parts, axis=-2).reshape(*shape, -1).astype(np.float32)


def reference(raw, colour, least):
    """P(colour) in float64: eq. 2 and 3 of 1701.05517, by the difference of two sigmoids. raw: (10 * K,)."""
    raw = np.asarray(raw, np.float64).reshape(MIXTURE_PARTS, -1)
    weights = np.exp(raw[0] - raw[0].max())
    weights /= weights.sum()
    red, green, blue = raw[1:4]
    a, b, c = np.tanh(raw[7:10])
    centres = red, green + a * colour[0], blue + b * colour[0] + c * colour[1]
    scales = np.exp(np.clip(raw[4:7], least, 7))
    total = weights
    for x, centre, scale in zip(colour, centres, scales, strict=True):
        upper = 1.0 if x > 0.999 else sigmoid((x + 1 / 255 - centre) / scale)
        lower = 0.0 if x < -0.999 else sigmoid((x - 1 / 255 - centre) / scale)
        total = total * (upper - lower)
    return total.sum()


log_prob = jax.jit(mixture_log_prob)
mean_colour = jax.jit(mixture_mean)


def sigmoid(x):
    return 0.5 + 0.5 * np.tanh(x / 2)


# ---- the mixture of logistics


@pytest.mark.parametrize(("seed", "least"), [*((seed, -7.0) for seed in range(5)), (0, -2.5)])
def test_the_mixture_agrees_with_float64(seed, least):
    rng = np.random.default_rng(seed)
    raw = random_mixture(seed, 40)
    colours = np.concatenate([rng.choice(LEVELS, (30, 3)), rng.choice([-1.0, 1.0], (10, 3))])
    expected = np.array([reference(*pair, least) for pair in zip(raw, colours, strict=True)])
    clear = expected > 1e-12  # below, float64 loses the difference of two sigmoids too
    assert clear.sum() > 15
    found = log_prob(raw, colours.astype(np.float32), least)
    assert found.dtype == jnp.float32 and found.shape == (40,)
    np.testing.assert_allclose(found[clear], np.log(expected[clear]), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("certain", [0, 1, 2])
def test_all_colours_have_probability_one_together(certain):
    """All pairs of two levels, where the third is surely the highest."""
    raw = random_mixture(7, components=2).reshape(MIXTURE_PARTS, 2)
    raw[1 + certain], raw[4 + certain] = 50.0, -3.0
    pair = np.stack(np.meshgrid(LEVELS, LEVELS), axis=-1).reshape(-1, 2)
    colours = np.insert(pair, certain, 1.0, axis=1).astype(np.float32)
    each = np.exp(np.asarray(log_prob(raw.reshape(-1), colours), np.float64))
    assert each.max() < 0.5 and each.sum() == pytest.approx(1.0, abs=1e-4)


def test_each_colour_has_probability_one_whatever_the_scale():
    """With the other two colours certain, what is left is the sum over one."""
    raw = np.zeros((5, 6, 1, MIXTURE_PARTS), np.float32)
    raw[..., 1] = np.array([-50.0, -1.0, 0.1234, 1.0, 3.0])[:, None, None]
    raw[..., 2:4] = 50.0
    raw[..., 4] = np.array([-30.0, -7.0, -4.0, 0.0, 7.0, 30.0])[:, None]
    raw[..., 5:7] = -7.0
    colours = np.stack([LEVELS, np.ones(256), np.ones(256)], axis=-1).astype(np.float32)
    each = np.exp(np.asarray(log_prob(raw, colours), np.float64))
    np.testing.assert_allclose(each.sum(axis=-1), 1.0, atol=2e-5)


def test_the_first_and_last_level_have_all_that_lies_beyond():
    raw = np.zeros(MIXTURE_PARTS, np.float32)
    raw[1:4], raw[4:7] = (-9.0, 9.0, 0.0), -2.0
    assert log_prob(raw, jnp.array([-1.0, 1.0, 0.0])) > log_prob(raw, jnp.array([-1.0, 1.0, 0.5]))
    raw[3] = 9.0
    assert log_prob(raw, jnp.array([-1.0, 1.0, 1.0])) == pytest.approx(0.0, abs=1e-5)


def test_green_depends_on_red_and_blue_on_both():
    """Only through the coefficients: red on green, red on blue, green on blue."""
    raw = np.zeros(MIXTURE_PARTS, np.float32)
    raw[4:7] = -5.0
    raw[7:] = np.arctanh([0.5, 0.25, -0.75])
    red, green = LEVELS[200], LEVELS[150]
    all_greens = np.stack([np.full(256, red), LEVELS, np.zeros(256)], -1).astype(np.float32)
    all_blues = np.stack([np.full(256, red), np.full(256, green), LEVELS], -1).astype(np.float32)
    flat = raw.copy()
    flat[8:] = 0.0
    assert LEVELS[np.argmax(log_prob(flat, all_greens))] == pytest.approx(0.5 * red, abs=1 / 255)
    likeliest = LEVELS[np.argmax(log_prob(raw, all_blues))]
    assert likeliest == pytest.approx(0.25 * red - 0.75 * green, abs=1 / 255)


def test_values_and_gradients_are_finite_however_wrong_the_parameters():
    rng = np.random.default_rng(0)
    size = 10.0 ** (np.arange(64) // 8)
    raw = (size[:, None] * rng.normal(size=(64, 3 * MIXTURE_PARTS))).astype(np.float32)
    colours = rng.choice([-1.0, LEVELS[1], 0.5, LEVELS[254], 1.0], (64, 3)).astype(np.float32)
    colours = np.float32(LEVELS[np.abs(colours[..., None] - LEVELS).argmin(-1)])
    values, gradient = jax.jit(jax.value_and_grad(lambda raw: log_prob(raw, colours).sum()))(raw)
    assert np.isfinite(values) and np.isfinite(gradient).all()
    assert log_prob(raw, colours).max() <= 1e-4


def test_the_gradient_pulls_the_mean_to_a_pixel_that_is_far_away():
    """Where a difference of sigmoids is 0 in float32 and its logarithm says nothing."""
    raw = np.zeros(MIXTURE_PARTS, np.float32)
    raw[4:7] = -7.0
    gradient = jax.jit(jax.grad(lambda raw: log_prob(raw, jnp.float32(LEVELS[[250, 3, 128]]))))(raw)
    assert gradient[1] > 100 and gradient[2] < -100


def test_the_mean_is_that_of_drawn_colours_where_no_logistic_reaches_the_ends():
    rng = np.random.default_rng(0)
    parts = random_mixture(1, components=2).reshape(MIXTURE_PARTS, 2).astype(np.float64)
    parts *= np.array([1.0] + 3 * [0.2] + 3 * [0.0] + 3 * [0.3])[:, None]
    parts[4:7] = -4.0
    count = 200_000
    component = rng.choice(2, count, p=np.exp(parts[0]) / np.exp(parts[0]).sum())
    means, noise = parts[1:4, component], rng.logistic(size=(3, count)) * np.exp(-4.0)
    green_red, blue_red, blue_green = np.tanh(parts[7:, component])
    red = means[0] + noise[0]
    green = means[1] + green_red * red + noise[1]
    blue = means[2] + blue_red * red + blue_green * green + noise[2]
    drawn = np.stack([red, green, blue])
    assert np.abs(drawn).max() < 1
    np.testing.assert_allclose(mean_colour(parts.reshape(-1)), drawn.mean(axis=1), atol=2e-3)


def test_the_mean_stays_a_colour():
    raw = 50 * random_mixture(2, 100)
    mean = mean_colour(raw)
    assert mean.shape == (100, 3) and np.abs(mean).max() <= 1.0


# ---- Gaussians


def test_the_density_integrates_to_one():
    x, step = np.linspace(-12, 12, 20_001, retstep=True)
    gaussian = Gaussian(jnp.float32(1.0), jnp.log(0.7))
    assert jnp.exp(gaussian.log_prob(x)).sum() * step == pytest.approx(1.0, abs=1e-4)
    assert jnp.exp(normal_log_prob(x)).sum() * step == pytest.approx(1.0, abs=1e-4)


def test_whitening_undoes_sampling():
    rng = np.random.default_rng(0)
    mean, log_std, eps = rng.normal(size=(3, 100)).astype(np.float32)
    gaussian = Gaussian(mean, log_std)
    np.testing.assert_allclose(gaussian.standardize(gaussian.sample(eps)), eps, atol=1e-5)


def test_kl_of_equal_gaussians_is_zero_and_of_others_as_known():
    assert normal_kl(0.3, -1.0, 0.3, -1.0) == pytest.approx(0.0, abs=1e-7)
    assert normal_kl(2.0, 0.0, 0.0, 0.0) == pytest.approx(2.0)  # half the squared distance
    half = np.log(0.5)
    assert normal_kl(0.0, half, 0.0, 0.0) == pytest.approx(0.5 * (0.25 - 1) - half)


def latent(seed=0, count=3, size=2000, draws=1):
    """Latents of `count` images, of which each is drawn from its posterior."""
    rng = np.random.default_rng(seed)
    posterior, prior = (Gaussian(*rng.normal(size=(2, count, size)).astype(np.float32) * 0.5) for _ in range(2))
    eps = rng.normal(size=(draws, count, size)).astype(np.float32)
    return [Latent(posterior, prior, posterior.sample(one)) for one in eps]


def test_kl_is_the_mean_of_the_log_ratio():
    drawn = latent(draws=400)
    ratios = np.array([one.log_ratio() for one in drawn])  # (400, 3)
    error = ratios.std(0) / np.sqrt(len(ratios))
    kl = drawn[0].kl().sum(axis=1)  # of all groups
    assert np.abs(ratios.mean(0) + kl).max() < 4 * error.max()
    assert error.max() < 0.02 * kl.min()


def test_a_latent_determines_the_noise_its_prior_makes_it_of():
    [one] = latent()
    np.testing.assert_allclose(one.prior.sample(one.noise()), one.z, atol=1e-5)


# ---- pixels


def test_dequantised_pixels_stay_in_their_level_and_fill_it():
    pixels = np.tile(np.array([[0, 3, 255]], np.uint8), (4000, 1))
    keys = jax.random.split(jax.random.key(0), 4000)
    y = np.asarray(dequantise(keys, pixels), np.float64)
    place = (y + 1) * 128 - pixels  # within the level
    assert place.min() >= 0 and place.max() <= 1
    assert np.abs(place.mean(0) - 0.5).max() < 0.03 and np.abs(place.var(0) - 1 / 12).max() < 0.01


def test_uniform_pixels_cost_eight_bits():
    dimensions = 12
    log_prob = jnp.full(5, -dimensions * np.log(2.0))  # the uniform density on [-1, 1]
    bits = to_bits_per_dim(log_prob + dequantised_log_det(dimensions), dimensions)
    np.testing.assert_allclose(bits, 8.0, rtol=1e-6)


def test_sums_are_of_each_example():
    np.testing.assert_array_equal(sum_except_batch(jnp.arange(12.0).reshape(2, 3, 2)), [15, 51])
