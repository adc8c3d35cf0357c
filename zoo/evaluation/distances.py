"""Distances between two sets of images, given as features float32 (N, D) of any network.

Names such as FID, KID or CMMD belong to one network's features (Inception, CLIP); the functions here are the formulas.
All compute in float64 about the mean of the features, so that a large mean costs no digits, and none depends on the
order of the samples beyond the last digits. Distances between N and M samples are made in blocks of rows, never all
at once.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError

BLOCK = 256  # rows at a time: float64 against 50,000 columns is 100 MB
WIDER = 1 + 1e-9  # of squared radii: a distance that equals a radius is within it, however it was rounded
MEDIAN_OF = 1000  # samples of each set


def features64(name: str, features, least: int = 1, why: str = "") -> np.ndarray:
    """Returns features (N, D) as float64.

    Args:
      name: of the features, for the error.
      features: array (N, D) of any float type, on any device.
      least: the fewest samples that are enough.
      why: what needs so many.

    Raises:
      UserError: not two axes, too few samples, or NaN or infinity in them.
    """
    features = np.asarray(features)
    if features.ndim != 2 or not features.shape[1]:
        raise UserError(f"{name}: features must be (samples, channels), got shape {features.shape}")
    features = features.astype(np.float64)
    if len(features) < least:
        raise UserError(f"{name}: {len(features)} samples are too few, {why or 'this measure'} needs at least {least}")
    bad = np.count_nonzero(~np.isfinite(features).all(axis=1))
    if bad:
        raise UserError(f"{name}: {bad} of {len(features)} samples have NaN or infinite features; look at their images")
    return features


def same_channels(**features: np.ndarray) -> None:
    """Raises UserError unless all features (N, D) have the same D."""
    widths = {name: value.shape[-1] for name, value in features.items()}
    if len(set(widths.values())) > 1:
        raise UserError(f"features of one network have one width, got {widths}: extract all of them with the same one")


def unit_vectors(name: str, features: np.ndarray) -> np.ndarray:
    """Returns float64 features (..., D) divided by their lengths. Raises UserError where one is all zeros."""
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    bad = np.count_nonzero(lengths == 0)
    if bad:
        raise UserError(f"{name}: {bad} of {lengths.size} features are all zeros and have no direction")
    return features / lengths


def sorted_rows(features: np.ndarray) -> np.ndarray:
    """Returns features (N, D) in an order that depends on their values alone, so that random draws do, too."""
    rows = np.ascontiguousarray(features).view(np.dtype((np.void, features.itemsize * features.shape[1])))
    return features[np.argsort(rows[:, 0])]


def _pair(a, b, least_a: int, least_b: int, why: str, names: tuple[str, str] = ("a", "b")):
    pair = features64(names[0], a, least_a, why), features64(names[1], b, least_b, why)
    same_channels(**dict(zip(names, pair, strict=True)))
    return pair


def _centred(*sets: np.ndarray) -> list[np.ndarray]:
    """Sets (N, D) about the mean of the first: distances stay what they are and keep their digits."""
    return [features - sets[0].mean(axis=0) for features in sets]


# ---- Frechet


def frechet(a, b) -> float:
    """The Frechet distance between Gaussians with the moments of two sets (Heusel 1706.08500, eq. 6), squared.

        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)),    C unbiased (1 / (N - 1))

    0 for equal moments; lower is nearer. With C = R^T R, R from a QR decomposition of the centred features, the trace
    of the root is the sum of the singular values of R_a R_b^T. So no covariance is formed, no root is taken of
    a rounding error, and singular covariances (N <= D) need no special case.

    The estimate is biased upwards by about 1 / N: compare only figures of the same N, and take N well above D.

    Args:
      a: features (N, D), at least 2.
      b: features (M, D), at least 2.

    Raises:
      UserError: too few samples, NaN or infinity, or widths that differ.
    """
    a, b = _pair(a, b, 2, 2, "a covariance")
    with jax.enable_x64(True):
        return float(_frechet(*_centred(a, b)))


@jax.jit
def _frechet(a: jax.Array, b: jax.Array) -> jax.Array:
    def moments(x):
        mean = x.mean(axis=0)
        return mean, jnp.linalg.qr(x - mean, mode="r") / jnp.sqrt(len(x) - 1)  # (D,), (min(N, D), D)

    (mean_a, root_a), (mean_b, root_b) = moments(a), moments(b)
    cross = jnp.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    traces = jnp.sum(root_a**2) + jnp.sum(root_b**2)
    return jnp.sum((mean_a - mean_b) ** 2) + jnp.maximum(traces - 2 * cross, 0.0)


# ---- maximum mean discrepancies


def kid(a, b, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The kernel distance (Binkowski 1801.01401, section 4): unbiased squared MMD, k(x, y) = (x y / D + 1)^3.

        mean k(x, x') over x != x'  +  mean k(y, y') over y != y'  -  2 mean k(x, y)

    Averaged over random subsets of a and of b. Its expectation is 0 for equal distributions, at any size, so a value
    may be negative; lower is nearer.

    Args:
      a: features (N, D), at least `subset_size`.
      b: features (M, D), at least `subset_size`.
      subsets: how many.
      subset_size: samples of each set in one, at least 2.
      seed: of the subsets. They depend on it and on the values of the features, not on their order.

    Returns:
      The mean and the standard deviation over the subsets. The latter is not the error of the mean: subsets overlap,
      and where `subset_size` is N they are all the same.

    Raises:
      UserError: too few samples, NaN or infinity, widths that differ, or fewer than 1 subset of 2.
    """
    if subsets < 1 or subset_size < 2:
        raise UserError(f"kid: {subsets} subsets of {subset_size} samples; give at least 1 subset of at least 2")
    a, b = _pair(a, b, subset_size, subset_size, f"kid with subset_size {subset_size}")
    a, b = sorted_rows(a), sorted_rows(b)
    rng = np.random.default_rng(seed)
    with jax.enable_x64(True):
        values = [
            float(_unbiased_mmd(*(x[rng.choice(len(x), subset_size, replace=False)] for x in (a, b))))
            for _ in range(subsets)
        ]
    return float(np.mean(values)), float(np.std(values))


@jax.jit
def _unbiased_mmd(a: jax.Array, b: jax.Array) -> jax.Array:
    """Unbiased squared MMD of the cubic kernel. The sets are of one size.

    With c the common mean, the kernel is (u + v)^3, u = c c / D + 1. Its u^3 cancels between the terms; leaving it
    out keeps the digits of the rest when the mean is large.
    """
    n, width = a.shape
    origin = (a.mean(axis=0) + b.mean(axis=0)) / 2
    u = origin @ origin / width + 1
    a, b = a - origin, b - origin

    def kernel(x, y):
        v = (x @ y.T + (x @ origin)[:, None] + y @ origin) / width  # (N, N)
        return v * (3 * u**2 + 3 * u * v + v**2)

    def of_pairs(k):
        return (k.sum() - jnp.trace(k)) / (n * (n - 1))

    return of_pairs(kernel(a, a)) + of_pairs(kernel(b, b)) - 2 * kernel(a, b).mean()


def cmmd(a, b, sigma: float = 10.0, scale: float = 1000.0) -> float:
    """The distance of CMMD (Jayasumana 2401.09603): scale * squared MMD of unit vectors under a Gaussian kernel.

        scale * (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)),    k(x, y) = exp(-|x - y|^2 / (2 sigma^2))

    Features are divided by their lengths first. The paper defines the unbiased estimate; its authors' code, and this,
    computes the biased one (V-statistic), whose means include the pairs of a sample with itself: never negative, 0 for
    equal sets, biased upwards by about 1 / N, so compare figures of the same N. Lower is nearer.

    Unit vectors are at most 2 apart. Under the paper's sigma of 10 the kernel is nearly linear there, and the value
    nearly scale / sigma^2 times the squared distance of the two means; under `median_sigma` it depends on more.

    Args:
      a: features (N, D), at least 2.
      b: features (M, D), at least 2.
      sigma: width of the kernel.
      scale: factor of the result.

    Raises:
      UserError: too few samples, NaN or infinity, features all zeros, widths that differ, or sigma not above 0.
    """
    if sigma <= 0:
        raise UserError(f"cmmd: sigma {sigma} must be above 0")
    a, b = _pair(a, b, 2, 2, "cmmd")
    a, b = _centred(unit_vectors("a", a), unit_vectors("b", b))
    with jax.enable_x64(True):
        within = _mean_kernel(a, a, sigma) + _mean_kernel(b, b, sigma)
        return scale * float(within - 2 * _mean_kernel(a, b, sigma))


def median_sigma(a, b) -> float:
    """The median distance between the unit vectors of two sets, for `cmmd` (Gretton et al. 2012, JMLR 13, section 8).

    Args:
      a: features (N, D), at least 2.
      b: features (M, D), at least 2. Of larger sets, `MEDIAN_OF` are drawn, always the same.

    Raises:
      UserError: as `cmmd`, or most samples are copies of one.
    """
    a, b = _pair(a, b, 2, 2, "median_sigma")
    rng = np.random.default_rng(0)
    drawn = [x[rng.permutation(len(x))[:MEDIAN_OF]] for x in (sorted_rows(a), sorted_rows(b))]
    (both,) = _centred(unit_vectors("a and b", np.concatenate(drawn)))
    with jax.enable_x64(True):
        squared = np.asarray(jax.jit(jax.vmap(_squared_distances, (0, None)))(both, both))
    median = float(np.sqrt(np.median(squared[np.triu_indices(len(both), 1)])))
    if not median:
        raise UserError("median_sigma: the median distance is 0, most samples are copies of one; give sigma")
    return median


@jax.jit
def _mean_kernel(a: jax.Array, b: jax.Array, sigma: float) -> jax.Array:
    """The mean of k(x, y) - 1 over all pairs. The ones cancel in an MMD."""

    def of_row(row):
        return jnp.expm1(-_squared_distances(row, b) / (2 * sigma**2)).mean()

    return jax.lax.map(of_row, a, batch_size=BLOCK).mean()


# ---- neighbours


def precision_recall(real, fake, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkaanniemi 1904.06991, eq. 1 and 2), both in [0, 1].

    Precision (quality): the share of fakes that lie within some real sample's ball, whose radius is the distance to
    its k-th nearest other real sample. Recall (variety): the same with real and fake exchanged. Higher is better. Balls
    shrink as samples grow in number: compare figures of the same N.

    Args:
      real: features (N, D), at least k + 1.
      fake: features (M, D), at least k + 1.
      k: number of the neighbour.

    Raises:
      UserError: too few samples, NaN or infinity, widths that differ, or k < 1.
    """
    real, fake = _neighbourhoods(real, fake, k, k + 1, "precision_recall")
    with jax.enable_x64(True):
        precision = np.mean(np.asarray(_balls_around(fake, real, _radii(real, k))) > 0)
        recall = np.mean(np.asarray(_balls_around(real, fake, _radii(fake, k))) > 0)
    return float(precision), float(recall)


def density_coverage(real, fake, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem 2002.09797). Higher is better.

    Density, >= 0: how many real samples' balls (as in `precision_recall`) a fake lies within, on average, over k. Its
    expectation is 1 where fakes are distributed as the real samples; it may exceed 1. Coverage, in [0, 1]: the share
    of real samples whose ball holds a fake. One outlier among the real samples, with its large ball, cannot raise
    either by much.

    A point at a distance of exactly the radius is within, which matters for copies alone.

    Args:
      real: features (N, D), at least k + 1.
      fake: features (M, D), at least 1.
      k: number of the neighbour.

    Raises:
      UserError: too few samples, NaN or infinity, widths that differ, or k < 1.
    """
    real, fake = _neighbourhoods(real, fake, k, 1, "density_coverage")
    with jax.enable_x64(True):
        radii = _radii(real, k)
        density = np.mean(np.asarray(_balls_around(fake, real, radii))) / k
        coverage = np.mean(np.asarray(_nearest(real, fake)[0] <= radii))
    return float(density), float(coverage)


def nearest(fake, train) -> tuple[np.ndarray, np.ndarray]:
    """The nearest training sample of each fake.

    Args:
      fake: features (N, D), at least 1.
      train: features (M, D), at least 1.

    Returns:
      Euclidean distances float64 (N,), exactly 0 for copies, and indices into `train` int (N,).

    Raises:
      UserError: no samples, NaN or infinity, or widths that differ.
    """
    fake, train = _pair(fake, train, 1, 1, "nearest", ("fake", "train"))
    with jax.enable_x64(True):
        indices = np.asarray(_nearest(*reversed(_centred(train, fake)))[1])
    return np.linalg.norm(fake - train[indices], axis=1), indices


def memorization(fake, train, held_out, percentile: float = 1.0) -> float:
    """The share of fakes that are nearer to a training image than nearly all unseen real images are.

    A fake counts if the distance to its nearest training sample is below the `percentile`-th percentile of the same
    distance of held-out real samples. A model that draws new samples of the data's distribution scores
    `percentile` / 100; much above it, training images are reproduced; below it, fakes are farther from the data than
    the data is from itself. In what sense "near" is decided by the network that made the features.

    Args:
      fake: features (N, D), at least 1.
      train: features (M, D), at least 1.
      held_out: features (L, D) of samples that were not trained on, at least 100 / `percentile`.
      percentile: above 0, below 100.

    Raises:
      UserError: as `nearest`; too few held-out samples for the percentile; or so many of them are copies of
        training samples that the percentile is 0.
    """
    if not 0 < percentile < 100:
        raise UserError(f"memorization: percentile {percentile} must be above 0 and below 100")
    least = int(np.ceil(100 / percentile))
    held_out = features64("held_out", held_out, least, f"memorization at percentile {percentile}")
    threshold = np.percentile(nearest(held_out, train)[0], percentile)
    if not threshold:
        raise UserError("memorization: held-out samples duplicate training samples, so memorization cannot be measured")
    return float((nearest(fake, train)[0] < threshold).mean())


def _neighbourhoods(real, fake, k: int, least_fakes: int, measure: str) -> list[np.ndarray]:
    if k < 1:
        raise UserError(f"{measure}: k {k} must be at least 1")
    return _centred(*_pair(real, fake, k + 1, least_fakes, f"{measure} with k={k}", ("real", "fake")))


def _squared_distances(row: jax.Array, others: jax.Array) -> jax.Array:
    """(D,), (M, D) -> (M,). Differences below the rounding of float32 features are 0, so that copies are copies."""
    lengths = row @ row + jnp.sum(others**2, axis=-1)  # (M,)
    squared = lengths - 2 * (others @ row)
    return jnp.where(squared > 1e-13 * lengths, squared, 0.0)


@functools.partial(jax.jit, static_argnames="k")
def _radii(x: jax.Array, k: int) -> jax.Array:
    """Squared distances (N,) of samples (N, D) to their k-th nearest other one, a touch wider."""

    def radius(row):
        squared = _squared_distances(row, x)
        for _ in range(k):  # the first is the sample itself; top_k sorts all, which takes several times as long
            squared = squared.at[jnp.argmin(squared)].set(jnp.inf)
        return squared.min()

    return jax.lax.map(radius, x, batch_size=BLOCK) * WIDER


@jax.jit
def _balls_around(points: jax.Array, centres: jax.Array, radii: jax.Array) -> jax.Array:
    """Counts (N,) of the balls, centres (M, D) and squared radii (M,), that points (N, D) lie within."""

    def count(point):
        return jnp.sum(_squared_distances(point, centres) <= radii)

    return jax.lax.map(count, points, batch_size=BLOCK)


@jax.jit
def _nearest(points: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Squared distances (N,) and indices (N,) of the nearest of `others` (M, D) to points (N, D)."""

    def of_point(point):
        squared = _squared_distances(point, others)
        index = jnp.argmin(squared)
        return squared[index], index

    return jax.lax.map(of_point, points, batch_size=BLOCK)
