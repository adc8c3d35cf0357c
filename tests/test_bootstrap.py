import numpy as np
import pytest

from zoo.errors import UserError
from zoo.evaluation import distances
from zoo.evaluation.bootstrap import interval, interval_of


def flat_frechet(a, b):
    """The Frechet distance of one channel, in numpy."""
    return (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2


def test_intervals_of_a_mean_hold_it_at_their_level():
    rng = np.random.default_rng(0)
    held = [low < 2.0 < high for low, high in (interval(rng.exponential(2.0, 60), 0.8, 200) for _ in range(300))]
    assert 0.72 < np.mean(held) < 0.88


def test_an_interval_of_a_mean_has_the_width_of_theory():
    values = np.random.default_rng(0).normal(size=400)
    low, high = interval(values, resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.06)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.01)
    assert interval(np.full(30, 0.25)) == (0.25, 0.25)


def test_an_interval_of_a_share_is_wilsons():
    """Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for right, count, expected in ((81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611))):
        found = interval(np.arange(count) < right)
        assert found == pytest.approx(expected, abs=1e-4)
    assert interval(np.ones(16)) == pytest.approx((1 - 0.1936, 1.0), abs=1e-3)
    assert interval(np.arange(29) < 1) == pytest.approx((0.0061, 0.1718), abs=1e-4)


@pytest.mark.parametrize("sizes", [(80, 80), (60, 200)])
def test_intervals_of_a_measure_hold_its_expectation_at_their_level(sizes):
    rng = np.random.default_rng(0)
    draw = lambda: (rng.normal(0.0, 1.0, (sizes[0], 1)), rng.normal(0.6, 1.5, (sizes[1], 1)))
    expectation = np.mean([flat_frechet(*draw()) for _ in range(4000)])
    intervals = [interval_of(flat_frechet, *draw(), level=0.8, resamples=60) for _ in range(300)]
    held = [low < expectation < high for low, high in intervals]
    assert 0.70 < np.mean(held) < 0.88


def test_an_interval_of_a_measure_has_the_width_of_theory():
    values = np.random.default_rng(0).normal(size=(400, 1))
    low, high = interval_of(lambda x: float(x.mean()), values, resamples=2000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)
    assert (low + high) / 2 == pytest.approx(values.mean(), rel=1e-9)


def test_an_interval_holds_scores_that_copies_would_raise():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(60, 16)), rng.normal(size=(60, 16)) + 0.2
    score = distances.frechet(real, fake)
    low, high = interval_of(distances.frechet, real, fake, resamples=20)
    assert low < score < high
    resampled = [distances.frechet(*(x[rng.integers(60, size=60)] for x in (real, fake))) for _ in range(20)]
    assert min(resampled) > score  # why rows are not drawn with replacement


def test_intervals_do_not_depend_on_the_order_and_do_on_the_seed():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 2)), rng.normal(size=(40, 2))
    frechet = lambda a, b: flat_frechet(a[:, :1], b[:, 1:])
    expected = interval_of(frechet, a, b)
    assert interval_of(frechet, rng.permutation(a), rng.permutation(b)) == pytest.approx(expected, rel=1e-12)
    assert interval_of(frechet, a, b, seed=1) != expected
    assert interval(rng.permutation(a[:, 0])) == interval(a[:, 0]) != interval(a[:, 0], seed=1)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: interval([0.5]), "1 samples.*at least 2"),
        (lambda: interval([0.5, np.nan, np.inf]), "2 of 3"),
        (lambda: interval([0.5, 0.6], level=95), "level 95"),
        (lambda: interval([0.5, 0.6], resamples=1), "resamples 1"),
        (lambda: interval_of(flat_frechet, np.ones((9, 1)), np.ones((3, 1))), "features 1: 3 samples.*at least 4"),
        (lambda: interval_of(flat_frechet, np.ones((9, 1)), np.ones((9, 1)), level=1), "level 1"),
        (lambda: interval_of(distances.precision_recall, np.ones((6, 1)), np.ones((6, 1))), "3 samples.*at least 4"),
    ],
)
def test_what_gives_no_interval_is_an_error(call, words):
    with pytest.raises(UserError, match=words):
        call()
