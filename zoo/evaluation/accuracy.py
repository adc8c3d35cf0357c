"""Classification accuracy score: accuracy on real images of a classifier that was trained on generated ones."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoo.errors import UserError
from zoo.evaluation.distances import features64, same_channels

PENALTY = 1e-3  # of half the squared weights, beside a mean cross-entropy
STEPS, TOLERANCE = 1000, 1e-6  # of the gradient's largest entry


def classification_accuracy(
    train_features, train_labels: Sequence[str], test_features, test_labels: Sequence[str]
) -> float:
    """Classification accuracy score (Ravuri & Vinyals 1905.10887), here of a linear classifier on features.

    A multinomial logistic regression is fitted to generated images and the labels of their captions; the score is
    the share of real images that it names right, in [0, 1], higher is better. The paper trains a ResNet-50 on pixels
    instead. Compare a score with the one of real training images, and with the commonest label's share.

    The features are standardised by the training ones. The fit is the single minimum of a convex loss (mean
    cross-entropy + `PENALTY` / 2 times the squared weights), found by L-BFGS from zero, so nothing is random.

    Args:
      train_features: features of generated images, (N, D).
      train_labels: their labels, N, at least 2 different ones.
      test_features: features of real images, (M, D), at least 1.
      test_labels: their labels, M. One that was never trained on counts as named wrong.

    Raises:
      UserError: too few samples or labels, NaN or infinity, or shapes that differ.
    """
    train = features64("train_features", train_features, 2, "a classifier")
    test = features64("test_features", test_features)
    same_channels(train_features=train, test_features=test)
    for name, features, labels in (("train", train, train_labels), ("test", test, test_labels)):
        if len(features) != len(labels):
            raise UserError(f"{name}: {len(labels)} labels for {len(features)} features; give one each")
    classes, indices = np.unique(np.array(train_labels, object), return_inverse=True)
    if len(classes) < 2:
        raise UserError(f"train: all labels are {classes[0]!r}; a classifier needs at least 2 different ones")
    mean, std = train.mean(axis=0), train.std(axis=0)
    scale = np.where(std > 1e-9 * np.abs(mean), std, 1.0)  # what is constant but for rounding stays so
    with jax.enable_x64(True):
        weights, bias = (np.asarray(x) for x in _fit((train - mean) / scale, jax.nn.one_hot(indices, len(classes))))
    named = classes[np.argmax((test - mean) / scale @ weights + bias, axis=1)]
    return float(np.mean(named == np.array(test_labels, object)))


@jax.jit
def _fit(features: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """features: (N, D); targets: one-hot (N, K) -> weights (D, K), bias (K,)."""

    def loss(params):
        weights, bias = params
        cross_entropy = optax.softmax_cross_entropy(features @ weights + bias, targets).mean()
        return cross_entropy + PENALTY / 2 * jnp.sum(weights**2)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry):
        params, state, _ = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return optax.apply_updates(params, updates), state, optax.tree.norm(grad, ord=jnp.inf)

    def unfinished(carry):
        _, state, slope = carry
        return (slope > TOLERANCE) & (optax.tree.get(state, "count") < STEPS)

    params: Any = jnp.zeros((features.shape[1], targets.shape[1])), jnp.zeros(targets.shape[1])
    last: Any = jax.lax.while_loop(unfinished, step, (params, optimizer.init(params), jnp.inf))
    return last[0]
