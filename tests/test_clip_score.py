import math

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.evaluation.clip_score import clip_score, r_precision, ref_clip_score


def features(*shape, mean=0.0, seed=0):
    return (np.random.default_rng(seed).normal(size=shape) + mean).astype(np.float32)


def numpy_cosine(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


# ---- CLIPScore


def test_clip_score_by_hand():
    image = np.array([[2.0, 0.0]] * 4)
    text = np.array([[0.1, 0.0], [-3.0, 0.0], [0.0, 5.0], [1.0, 1.0]])  # along, against, across, half way
    np.testing.assert_allclose(clip_score(image, text), [2.5, 0, 0, 2.5 * math.sqrt(0.5)], atol=1e-15)
    np.testing.assert_allclose(clip_score(image, text, w=1.0)[3], math.sqrt(0.5))


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_clip_score_agrees_with_numpy(mean):
    images, texts = features(30, 16, mean=mean), features(30, 16, mean=mean, seed=1)
    expected = 2.5 * np.maximum(numpy_cosine(images, texts), 0)
    np.testing.assert_allclose(clip_score(images, texts), expected, rtol=1e-12, atol=1e-15)


def test_ref_clip_score_by_hand():
    across, along = [0.0, 1.0], [1.0, 0.0]
    image = text = np.array([along] * 4)
    references = np.array([[along, across], [across, along], [across, across], [[-1.0, 0.0], [1.0, 1.0]]])
    half_way = 2 * 2.5 * math.sqrt(0.5) / (2.5 + math.sqrt(0.5))
    best = 2 * 2.5 / (2.5 + 1)
    np.testing.assert_allclose(ref_clip_score(image, text, references), [best, best, 0, half_way], rtol=1e-12)
    assert ref_clip_score(-image, text, references)[0] == 0  # whatever the references


def test_ref_clip_score_agrees_with_numpy():
    images, texts, references = features(20, 5), features(20, 5, seed=1), features(20, 3, 5, seed=2)
    fit = 2.5 * np.maximum(numpy_cosine(images, texts), 0)
    likeness = np.maximum(numpy_cosine(texts[:, None], references).max(1), 0)
    both = np.minimum(fit, likeness) > 0
    assert 3 < both.sum() < 20
    expected = np.zeros(20)
    expected[both] = 2 / (1 / fit[both] + 1 / likeness[both])
    np.testing.assert_allclose(ref_clip_score(images, texts, references), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: clip_score(x, x[:5]), "'images': 9, 'texts': 5"),
        (lambda x: clip_score(x, x[:, :2]), "'texts': 2"),
        (lambda x: clip_score(x[:0], x[:0]), "0 samples"),
        (lambda x: clip_score(x, x * np.nan), "texts: 9 of 9.*NaN"),
        (lambda x: clip_score(x * (x > 9), x), "images: 9 of 9.*zeros"),
        (lambda x: ref_clip_score(x, x, x), r"\(9, 4\)"),
        (lambda x: ref_clip_score(x, x, x[:, None][:, :0]), r"\(9, 0, 4\)"),
        (lambda x: ref_clip_score(x, x, x[:, None] * np.inf), "references: 9 of 9"),
    ],
)
def test_what_cannot_be_scored_is_an_error(call, words):
    with pytest.raises(UserError, match=words):
        call(features(9, 4))


# ---- R-precision


def numpy_r_precision(images, texts, captions, candidates, draws, rng):
    """As the paper does it: draws other captions, and looks."""
    first = {}
    for i, caption in enumerate(captions):
        first.setdefault(caption, i)
    wins = np.zeros(len(captions))
    for i, caption in enumerate(captions):
        own = numpy_cosine(images[i], texts[i])
        cosines = numpy_cosine(images[i], texts[[j for other, j in first.items() if other != caption]])
        for _ in range(draws):
            wins[i] += own > rng.choice(cosines, candidates - 1, replace=False).max()
    return wins / draws


def test_r_precision_agrees_with_drawing():
    captions = [f"caption {i % 12}" for i in range(20)]
    texts = features(12, 6, seed=1)[np.arange(20) % 12]
    images = texts + features(20, 6)
    found = r_precision(images, texts, captions, candidates=4)
    drawn = numpy_r_precision(images, texts, captions, 4, 3000, np.random.default_rng(0))
    np.testing.assert_allclose(found, drawn, atol=4.5 * 0.5 / math.sqrt(3000))
    assert np.sum((found > 0) & (found < 1)) > 5


def test_r_precision_by_hand():
    # Of 2 others, one is better: a single one of them, drawn, is worse half of the time.
    texts = np.array([[1.0, 0.2], [1.0, 0.0], [0.0, 1.0]])
    images = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(r_precision(images, texts, ["a", "b", "c"], candidates=2), [0.5, 1, 0])
    np.testing.assert_allclose(r_precision(images, texts, ["a", "b", "c"], candidates=3), [0, 1, 0])


def test_r_precision_of_images_that_are_their_captions_is_one():
    captions = [f"caption {i % 120}" for i in range(240)]  # each caption twice: equal ones do not compete
    texts = np.eye(120)[np.arange(240) % 120]
    np.testing.assert_array_equal(r_precision(texts, texts, captions), 1)


@pytest.mark.parametrize("mean", [1.0, 1e4])
def test_r_precision_of_constant_features_is_chance(mean):
    captions = [f"caption {i}" for i in range(300)]
    constant = np.full((300, 7), mean, np.float32) + np.arange(7, dtype=np.float32)
    np.testing.assert_allclose(r_precision(constant, constant, captions), 0.01, rtol=1e-9)


def test_r_precision_of_noise_is_chance():
    captions = [f"caption {i}" for i in range(700)]
    found = r_precision(features(700, 30), features(700, 30, seed=1), captions).mean()
    assert 0.005 < found < 0.015


def test_r_precision_depends_on_no_order():
    captions = [f"caption {i % 110}" for i in range(150)]
    texts = features(110, 6, seed=1)[np.arange(150) % 110]
    images, order = texts + features(150, 6), np.random.default_rng(3).permutation(150)
    shuffled = r_precision(images[order], texts[order], [captions[i] for i in order])
    np.testing.assert_allclose(shuffled, r_precision(images, texts, captions)[order], rtol=1e-12)


def test_r_precision_needs_as_many_captions_as_candidates():
    x = features(150, 4)
    with pytest.raises(UserError, match="60 different captions.*at least 100"):
        r_precision(x, x, [f"caption {i % 60}" for i in range(150)])
    with pytest.raises(UserError, match="149 captions for 150"):
        r_precision(x, x, ["caption"] * 149)
    with pytest.raises(UserError, match="1 candidates"):
        r_precision(x, x, [f"caption {i}" for i in range(150)], candidates=1)
    with pytest.raises(UserError, match="NaN"):
        r_precision(x * np.nan, x, ["caption"] * 150)
