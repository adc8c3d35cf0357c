import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.diffusion.guidance import autoguidance, classifier_free, is_within
from zoo.diffusion.paths import PATHS, Prediction
from zoo.errors import UserError

EMPTY = jnp.array([1, 0, 0])


def network(z, t, cond):
    """Depends on all three, each example on itself alone."""
    tokens = cond["tokens"]
    place = (-1, 1, 1)
    return jnp.tanh(z) * (1 + t) + jnp.sin(tokens @ jnp.array([1.0, 0.5, 0.3])).reshape(place)


def worse(z, t, cond):
    return network(0.8 * z, t, cond) - 0.2


FORMS = pytest.mark.parametrize(
    "guide",
    [functools.partial(classifier_free, network), functools.partial(autoguidance, network, worse)],
    ids=["classifier_free", "autoguidance"],
)


@pytest.fixture(scope="module")
def inputs():
    z = jax.random.normal(jax.random.key(0), (4, 2, 3))
    return z, jnp.array(0.4), {"tokens": jnp.array([[5, 1, 0], [7, 8, 1], [1, 0, 0], [9, 1, 0]])}


def test_classifier_free_is_two_separate_calls(inputs):
    z, t, cond = inputs
    good, bad = network(z, t, cond), network(z, t, {"tokens": jnp.tile(EMPTY, (4, 1))})
    found = classifier_free(network, 1.5)(z, t, cond)
    np.testing.assert_allclose(found, good + 1.5 * (good - bad), atol=1e-6)
    assert np.abs(found - good).max() > 0.1


def test_classifier_free_runs_the_network_once(inputs):
    calls = []

    def counted(z, t, cond):
        calls.append((len(z), t.shape, len(cond["tokens"])))
        return network(z, t, cond)

    classifier_free(counted, 1.5)(*inputs)
    assert calls == [(8, (), 8)]


def test_the_empty_caption_is_not_guided(inputs):
    found = classifier_free(network, 4.0)(*inputs)
    np.testing.assert_allclose(found[2], network(*inputs)[2], atol=1e-6)


def test_a_negative_takes_the_place_of_the_empty_caption(inputs):
    z, t, cond = inputs
    negative = {"tokens": jnp.tile(jnp.array([4, 0, 1]), (4, 1))}
    good, bad = network(z, t, cond), network(z, t, negative)
    found = classifier_free(network, 1.5)(z, t, cond | {"negative": negative})
    np.testing.assert_allclose(found, good + 1.5 * (good - bad), atol=1e-6)
    assert np.abs(found - classifier_free(network, 1.5)(z, t, cond)).max() > 0.1


def test_autoguidance_pushes_away_from_the_worse_network(inputs):
    good, bad = network(*inputs), worse(*inputs)
    np.testing.assert_allclose(autoguidance(network, worse, 0.7)(*inputs), good + 0.7 * (good - bad), atol=1e-6)


@FORMS
def test_scale_zero_is_the_plain_network(guide, inputs):
    np.testing.assert_allclose(guide(0.0)(*inputs), network(*inputs), atol=1e-6)


@FORMS
@pytest.mark.parametrize("t, within", [(0.1, False), (0.3, True), (0.4, True), (0.9, False)])
def test_interval_guides_those_times_alone_and_the_other_evaluation_is_not_made(guide, t, within, inputs):
    (z, _, cond), t = inputs, jnp.array(t)
    rows = []

    def counted(z, t, cond):
        jax.debug.callback(lambda: rows.append(len(z)))
        return network(z, t, cond)

    plain, whole = network(z, t, cond), guide(2.0)(z, t, cond)
    counting = functools.partial(guide.func, *[counted] * len(guide.args))
    part = guide(2.0, (0.3, 0.7))(z, t, cond)
    np.testing.assert_allclose(part, whole if within else plain, atol=1e-6)
    assert np.abs(whole - plain).max() > 0.1
    jax.block_until_ready(counting(2.0, (0.3, 0.7))(z, t, cond))
    jax.effects_barrier()
    assert sum(rows) == (8 if within else 4)


@FORMS
def test_an_interval_from_late_to_early_is_an_error(guide, inputs):
    with pytest.raises(UserError, match="from the earlier time to the later"):
        guide(2.0, (0.7, 0.3))(*inputs)


def test_interval_includes_its_ends():
    t = jnp.array([0.0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_array_equal(is_within(t, (0.25, 0.75)), [False, True, True, True, False])
    assert is_within(t, (0.0, 1.0)).all()


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("prediction", Prediction._fields)
def test_guiding_the_raw_prediction_guides_image_noise_and_velocity_alike(path, prediction, inputs):
    """Every conversion is affine in the prediction with weights that sum to one, so it commutes with guidance."""
    z, t, _ = inputs
    networks = network, worse, autoguidance(network, worse, 2.0)
    good, bad, guided = (path.convert(prediction, f(*inputs), z, t) for f in networks)
    for name in Prediction._fields:
        a, b = getattr(good, name), getattr(bad, name)
        np.testing.assert_allclose(getattr(guided, name), a + 2.0 * (a - b), atol=2e-4, err_msg=name)
