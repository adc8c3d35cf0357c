import numpy as np
import pytest

from zoo.errors import UserError
from zoo.evaluation import accuracy
from zoo.evaluation.accuracy import classification_accuracy


def problem(n, classes=4, width=6, seed=0):
    """Features float32 (n, D) and labels that depend on them and on luck."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, width))
    directions = np.random.default_rng(99).normal(size=(width, classes))
    return x.astype(np.float32), [f"class {i}" for i in np.argmax(x @ directions + rng.gumbel(size=(n, classes)), 1)]


def numpy_accuracy(train, train_labels, test, test_labels):
    """Plain gradient descent on the same loss until nothing moves."""
    train, test = train.astype(np.float64), test.astype(np.float64)
    mean, std = train.mean(0), train.std(0)
    x = np.hstack([(train - mean) / std, np.ones((len(train), 1))])
    classes = sorted(set(train_labels))
    y = np.array([[label == c for c in classes] for label in train_labels], float)
    w, decay = np.zeros((x.shape[1], len(classes))), accuracy.PENALTY * np.ones((x.shape[1], 1))
    decay[-1] = 0  # the bias
    for _ in range(5000):
        p = np.exp(x @ w)
        w -= 1.0 * (x.T @ (p / p.sum(1, keepdims=True) - y) / len(x) + decay * w)
    named = np.argmax(np.hstack([(test - mean) / std, np.ones((len(test), 1))]) @ w, 1)
    return np.mean([classes[i] == label for i, label in zip(named, test_labels, strict=True)])


def test_it_agrees_with_gradient_descent_in_numpy():
    train, test = problem(200), problem(1000, seed=1)
    expected = numpy_accuracy(*train, *test)
    assert 0.5 < expected < 0.95
    assert classification_accuracy(*train, *test) == pytest.approx(expected, abs=1.5e-3)  # one example at a border


def test_two_classes_meet_half_way():
    train, labels = np.array([[-3.0], [-1.0], [1.0], [3.0]]), ["left", "left", "right", "right"]
    test = np.array([[-100.0], [-1e-3], [1e-3], [100.0]])
    assert classification_accuracy(train, labels, test, labels) == 1
    assert classification_accuracy(train, labels, test, labels[::-1]) == 0
    assert classification_accuracy(train, labels, test, ["left", "right", "left", "right"]) == 0.5


def test_a_label_that_was_never_generated_counts_as_wrong():
    train, labels = np.array([[-1.0], [1.0]] * 2), ["left", "right"] * 2
    assert classification_accuracy(train, labels, np.array([[-1.0], [1.0]]), ["left", "middle"]) == 0.5


def test_wrong_labels_teach_nothing():
    train, test = problem(200), problem(1000, seed=1)
    shuffled = list(np.random.default_rng(2).permutation(train[1]))
    assert classification_accuracy(train[0], shuffled, *test) < 0.45 < classification_accuracy(*train, *test)


def test_scale_offset_constants_and_order_do_not_matter():
    (x, labels), (test, answers) = problem(200), problem(500, seed=1)
    x, test = np.round(x * 64) / 64, np.round(test * 64) / 64  # so that float32 at 1e4 holds them exactly
    expected = classification_accuracy(x, labels, test, answers)
    far = [np.hstack([y + np.float32(1e4), np.full((len(y), 1), 12345.678, np.float32)]) for y in (x, test)]
    assert classification_accuracy(far[0], labels, far[1], answers) == pytest.approx(expected, abs=2.5e-3)
    order = np.random.default_rng(3).permutation(200)
    again = classification_accuracy(x[order] * 1e-6, [labels[i] for i in order], test * 1e-6, answers)
    assert again == pytest.approx(expected, abs=2.5e-3)


def test_more_channels_than_samples_and_copies():
    x, labels = problem(30, classes=3, width=50)
    assert classification_accuracy(np.repeat(x, 2, 0), list(np.repeat(labels, 2)), x, labels) == 1


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda x, y: (x, y[:9], x, y), "train: 9 labels for 10"),
        (lambda x, y: (x, y, x, y[:9]), "test: 9 labels for 10"),
        (lambda x, y: (x, ["dog"] * 10, x, y), "all labels are 'dog'"),
        (lambda x, y: (x[:1], y[:1], x, y), "1 samples"),
        (lambda x, y: (x, y, x[:, :2], y), "'test_features': 2"),
        (lambda x, y: (x, y, x * np.nan, y), "test_features: 10 of 10.*NaN"),
    ],
)
def test_what_cannot_be_classified_is_an_error(change, words):
    with pytest.raises(UserError, match=words):
        classification_accuracy(*change(*problem(10)))
