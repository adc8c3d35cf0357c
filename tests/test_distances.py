from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.evaluation import distances

FIXTURE = Path(__file__).with_name("fixtures") / "frechet.npz"


def gaussian(n, width, mean=0.0, std=1.0, seed=0):
    return (np.random.default_rng(seed).normal(size=(n, width)) * std + mean).astype(np.float32)


def multiples(x):
    """Features as multiples of 1/64, which float32 holds exactly at a mean of 1e4, too."""
    return np.round(x * 64) / np.float32(64)


def exact(n, mean, covariance, seed=0):
    """Samples float64 (n, D) whose mean and unbiased covariance are these to the last digits."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x = np.linalg.qr(x - x.mean(0))[0]
    return x * np.sqrt(n - 1) @ np.linalg.cholesky(covariance).T + mean


def brute(a, b):
    """Euclidean distances (N, M), one difference at a time."""
    return np.sqrt(((a[:, None].astype(np.float64) - b[None]) ** 2).sum(-1))


# ---- Frechet


def numpy_frechet(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0))
    return np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(sum(covariances)) - 2 * roots.sum()


def test_frechet_agrees_with_eigenvalues_of_the_product():
    mixing = np.random.default_rng(1).normal(size=(12, 12))
    a, b = gaussian(300, 12) @ mixing, gaussian(170, 12, 0.3, 1.4, seed=2) @ mixing
    assert distances.frechet(a, b) == pytest.approx(numpy_frechet(a, b), rel=1e-9)


def test_frechet_of_covariances_that_do_not_commute_is_the_closed_form():
    mean_a, mean_b = np.array([1.0, -2.0]), np.array([0.5, 1.0])
    a, b = np.array([[2.0, 0.9], [0.9, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    product = a @ b  # of a 2 x 2 matrix, (tr root)^2 = tr + 2 sqrt(det)
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 0.25 + 9.0 + np.trace(a + b) - 2 * root
    assert distances.frechet(exact(50, mean_a, a), exact(80, mean_b, b, 1)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("samples", [3, 8, 40])
def test_frechet_of_fewer_samples_than_channels(samples):
    a = gaussian(samples, 32).astype(np.float64)
    variance = a.var(axis=0, ddof=1).sum()
    assert distances.frechet(a, 3 * a) == pytest.approx(4 * variance + 4 * np.sum(a.mean(0) ** 2), rel=1e-12)
    assert distances.frechet(a, a) == pytest.approx(0, abs=1e-12 * variance)
    apart = np.hstack([a, 0 * a]), np.hstack([0 * a, a])  # no direction in common
    expected = 2 * variance + 2 * np.sum(a.mean(0) ** 2)
    assert distances.frechet(*apart) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("reference", ["pytorch_fid", "clean_fid"])
def test_frechet_agrees_with_published_implementations(reference):
    with np.load(FIXTURE) as there:
        found = distances.frechet(there["features_a"], there["features_b"])
        assert found == pytest.approx(float(there[reference]), rel=1e-6)


# ---- maximum mean discrepancies


def exact_kid(a, b):
    """In whole numbers; of features that are multiples of 1/64."""
    a, b = ((x * 64).astype(int).astype(object) for x in (a, b))
    one = a.shape[1] * 64**2
    kernel = lambda x, y: (x @ y.T + one) ** 3
    pairs = lambda k: Fraction(k.sum() - np.trace(k), len(k) * (len(k) - 1))
    return float((pairs(kernel(a, a)) + pairs(kernel(b, b)) - 2 * Fraction(kernel(a, b).sum(), len(a) ** 2)) / one**3)


@pytest.mark.parametrize("mean, tolerance", [(0.0, 1e-10), (1e4, 1e-8)])
def test_kid_of_everything_is_the_unbiased_estimate(mean, tolerance):
    a, b = multiples(gaussian(60, 8, mean)), multiples(gaussian(60, 8, mean + 0.2, 1.3, seed=1))
    value, spread = distances.kid(a, b, subsets=3, subset_size=60)
    assert value == pytest.approx(exact_kid(a, b), rel=tolerance)
    assert spread == pytest.approx(0, abs=tolerance * abs(value))


def test_kid_by_hand():
    # Pairs within a: (-1 + 1)^3 = 0; within b: 1; across: 1.
    assert distances.kid(np.array([[1.0], [-1.0]]), np.zeros((2, 1)), 1, 2)[0] == pytest.approx(-1)


def test_kid_is_unbiased_at_any_subset_size():
    a, b = np.repeat([[1.0], [-1.0]], 500, axis=0), np.repeat([[2.0], [-2.0]], 500, axis=0)
    expected = 4 + 49 - 2 * 13  # of independent draws: k is 8 or 0, 125 or -27, 27 or -1
    for size in (3, 12):
        value, spread = distances.kid(a, b, subsets=400, subset_size=size)
        assert abs(value - expected) < 4 * spread / np.sqrt(400)


def test_subsets_of_kid_come_from_the_seed():
    a, b = gaussian(50, 4), gaussian(50, 4, seed=1)
    first, again, other = (distances.kid(a, b, 5, 20, seed) for seed in (0, 0, 1))
    assert first == again != other


def numpy_cmmd(a, b, sigma=10.0, scale=1000.0):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a.astype(np.float64), b.astype(np.float64)))
    k = lambda x, y: np.exp(-(brute(x, y) ** 2) / (2 * sigma**2)).mean()
    return scale * (k(a, a) + k(b, b) - 2 * k(a, b))


@pytest.mark.parametrize("sigma", [0.5, 10.0])
def test_cmmd_agrees_with_numpy_across_blocks(sigma):
    a, b = gaussian(distances.BLOCK + 44, 6), gaussian(90, 6, 0.5, seed=1)
    assert distances.cmmd(a, b, sigma) == pytest.approx(numpy_cmmd(a, b, sigma), rel=1e-9)


def test_cmmd_by_hand():
    a, b = np.tile([[3.0, 0.0]], (4, 1)), np.tile([[0.0, 0.1]], (7, 1))  # unit vectors, squared distance 2
    assert distances.cmmd(a, b) == pytest.approx(2000 * (1 - np.exp(-2 / 200)), rel=1e-12)
    assert distances.cmmd(a, b, sigma=1.0, scale=1.0) == pytest.approx(2 * (1 - np.exp(-1)), rel=1e-12)
    assert distances.cmmd(b, b) == 0


def test_cmmd_at_the_papers_sigma_is_nearly_the_squared_distance_of_the_means():
    a, b = gaussian(200, 16), gaussian(200, 16, 0.5, seed=1)
    means = [(x / np.linalg.norm(x, axis=1, keepdims=True)).mean(0) for x in (a, b)]
    assert distances.cmmd(a, b) == pytest.approx(10 * np.sum((means[0] - means[1]) ** 2), rel=0.02)


def test_median_sigma():
    a, b = gaussian(30, 5), gaussian(21, 5, 1.0, seed=1)
    both = np.concatenate([a, b]).astype(np.float64)
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    expected = np.median(brute(both, both)[np.triu_indices(51, 1)])
    assert distances.median_sigma(a, b) == pytest.approx(expected, rel=1e-9)
    assert distances.median_sigma(np.eye(40)[:20], np.eye(40)[20:]) == pytest.approx(np.sqrt(2))
    with pytest.raises(UserError, match="copies"):
        distances.median_sigma(np.ones((5, 3)), np.ones((5, 3)))


# ---- neighbours


def numpy_neighbours(real, fake, k):
    """Precision, recall, density, coverage."""
    radii = lambda x: np.sort(brute(x, x), axis=1)[:, k]  # column 0 is the sample itself
    across = brute(real, fake)
    in_real, in_fake = across <= radii(real)[:, None], across <= radii(fake)[None]
    return in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum(0).mean() / k, in_real.any(1).mean()


@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_agree_with_numpy_across_blocks(k):
    real, fake = gaussian(distances.BLOCK + 44, 7), gaussian(200, 7, 0.3, 0.9, seed=1)
    found = (*distances.precision_recall(real, fake, k), *distances.density_coverage(real, fake, k))
    assert found == pytest.approx(numpy_neighbours(real, fake, k), abs=1e-12)
    assert all(0 < value < 1 for value in found[:2])  # or there would be nothing to agree on


def test_a_neighbour_at_exactly_the_radius_is_within():
    real = gaussian(301, 33)
    fake = np.random.default_rng(0).permutation(real)[:77]  # each is some real sample's fifth neighbour
    assert distances.density_coverage(real, fake, 5)[0] == pytest.approx(numpy_neighbours(real, fake, 5)[2], abs=1e-12)


@pytest.mark.parametrize("copies", [1, 4])
def test_neighbours_of_equal_disjoint_and_half_covered_sets(copies):
    # With 4 copies the third neighbour is a copy and every ball is a point.
    left, right = (np.repeat(gaussian(20, 6, mean, seed=seed), copies, axis=0) for mean, seed in ((0, 0), (1e3, 1)))
    both = np.concatenate([left, right])
    for real, fake, expected in [
        (left, left, (1, 1)),
        (left, right, (0, 0)),
        (both, left, (1, 0.5)),
        (left, both, (0.5, 1)),
    ]:
        assert distances.precision_recall(real, fake, 3) == expected
        assert distances.density_coverage(real, fake, 3)[1] == expected[1]
    assert distances.density_coverage(left, right, 3)[0] == 0
    # A ball holds its own centre, its 3 nearest neighbours, and, if they coincide, no more than they.
    assert distances.density_coverage(left, left, 3)[0] == pytest.approx(4 / 3)


def test_nearest_agrees_with_numpy_and_finds_copies():
    train = gaussian(150, 9, 1e4)
    fake = np.concatenate([gaussian(distances.BLOCK + 10, 9, 1e4, 2.0, seed=1), train[[7, 3, 7]]])
    found, indices = distances.nearest(fake, train)
    expected = brute(fake, train)
    np.testing.assert_array_equal(indices, expected.argmin(1))
    np.testing.assert_allclose(found, expected.min(1), rtol=1e-12)
    assert list(found[-3:]) == [0, 0, 0] and list(indices[-3:]) == [7, 3, 7]


def test_memorization_counts_copies_and_no_new_samples():
    train, held_out, new = (gaussian(400, 3, seed=seed) for seed in range(3))
    assert distances.memorization(train[:50] + np.float32(1e-4), train, held_out) == 1
    assert distances.memorization(new + 100, train, held_out) == 0
    half = np.concatenate([train[:50], held_out[:50] + 100])
    assert distances.memorization(half, train, held_out) == 0.5
    # Of 101 values, the tenth percentile is the eleventh smallest, and 10 are below it.
    assert distances.memorization(held_out[:101], train, held_out[:101], percentile=10) == pytest.approx(10 / 101)
    assert distances.memorization(new, train, held_out, percentile=10) == pytest.approx(0.1, abs=0.06)


# ---- what all share

MEASURES = {
    "frechet": distances.frechet,
    "kid": lambda a, b: distances.kid(a, b, 3, 20),
    "cmmd": distances.cmmd,
    "median_sigma": distances.median_sigma,
    "precision_recall": distances.precision_recall,
    "density_coverage": distances.density_coverage,
    "nearest": lambda a, b: distances.nearest(a, b)[0].mean(),
    "memorization": lambda a, b: distances.memorization(a, b, a + 1, percentile=10),
}
each_measure = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


@each_measure
def test_the_order_of_samples_does_not_matter(measure):
    a, b = gaussian(48, 5, 10.0), gaussian(48, 5, 10.1, seed=1)
    a[40:] = a[:8]  # ties
    rng = np.random.default_rng(2)
    assert measure(rng.permutation(a), rng.permutation(b)) == pytest.approx(measure(a, b), rel=1e-10)


@pytest.mark.parametrize("name, reference, tolerance", [("frechet", numpy_frechet, 1e-9), ("cmmd", numpy_cmmd, 1e-5)])
def test_a_large_mean_costs_no_digits(name, reference, tolerance):
    a, b = gaussian(80, 5, 1e4), gaussian(70, 5, 1e4 + 0.1, 2.0, seed=1)
    assert MEASURES[name](a, b) == pytest.approx(reference(a, b), rel=tolerance)  # of cmmd, numpy's digits run short


def test_a_large_mean_does_not_change_what_only_distances_decide():
    a, b = (multiples(gaussian(80, 5, 0.2 * seed, seed=seed)) for seed in (0, 1))
    far = a + np.float32(1e4), b + np.float32(1e4)
    for name in ("frechet", "precision_recall", "density_coverage", "nearest"):
        assert MEASURES[name](*far) == pytest.approx(MEASURES[name](a, b), rel=1e-10)


@each_measure
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_errors(measure, bad):
    a, b = gaussian(50, 4), gaussian(50, 4, seed=1)
    b[[3, 9], 2] = bad
    with pytest.raises(UserError, match="2 of 50"):
        measure(a, b)


@each_measure
def test_shapes_that_do_not_fit_are_errors(measure):
    with pytest.raises(UserError, match="width"):
        measure(gaussian(50, 4), gaussian(50, 5))
    with pytest.raises(UserError, match=r"\(2, 3, 4\)"):
        measure(np.zeros((2, 3, 4)), gaussian(50, 4))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: distances.frechet(x, x[:1]), "1 samples.*at least 2"),
        (lambda x: distances.kid(x, x), "50 samples.*at least 1000"),
        (lambda x: distances.kid(x, x, 0, 10), "0 subsets"),
        (lambda x: distances.cmmd(x[:1], x), "1 samples.*at least 2"),
        (lambda x: distances.cmmd(x, x, sigma=0), "sigma 0"),
        (lambda x: distances.cmmd(x, 0 * x), "50 of 50.*zeros"),
        (lambda x: distances.precision_recall(x, x[:3]), "fake: 3 samples.*at least 4"),
        (lambda x: distances.precision_recall(x, x, k=0), "k 0"),
        (lambda x: distances.density_coverage(x[:5], x), "real: 5 samples.*at least 6"),
        (lambda x: distances.nearest(x[:0], x), "fake: 0 samples"),
        (lambda x: distances.memorization(x, x, x), "held_out: 50 samples.*at least 100"),
        (lambda x: distances.memorization(x, x, x, percentile=10), "duplicate"),
        (lambda x: distances.memorization(x, x, x, percentile=0), "percentile 0"),
    ],
)
def test_what_cannot_be_measured_is_an_error(call, words):
    with pytest.raises(UserError, match=words) as error:
        call(gaussian(50, 4))
    assert "\n" not in str(error.value)


def test_fifty_thousand_by_fifty_thousand_is_never_made_at_once():
    with jax.enable_x64(True):
        many, radii = jax.ShapeDtypeStruct((50_000, 4), np.float64), jax.ShapeDtypeStruct((50_000,), np.float64)
        programs = [
            distances._radii.lower(many, k=3),
            distances._balls_around.lower(many, many, radii),
            distances._nearest.lower(many, many),
            distances._mean_kernel.lower(many, many, 10.0),
        ]
        for program in programs:
            assert program.compile().memory_analysis().temp_size_in_bytes < 1e9  # all at once would be 20e9
