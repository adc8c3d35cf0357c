"""MeanFlow against data whose average velocity is known in closed form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import Easy
from zoo.conditions import END
from zoo.errors import UserError
from zoo.method import Axis, normal_each, to_float
from zoo.methods.mean_flow import MeanFlow
from zoo.nets.conditioning import build_network
from zoo.nets.layers import TimeEmbedding
from zoo.nets.transformer import Transformer

NET = dict(width=16, depth=1, heads=2, patch_size=4, conditioner=dict(width=16, depth=1, heads=2), time_frequency=8.0)
SHAPE = (1, 8, 8, 3)
MEAN, STD = 0.3, 0.4  # of Gaussian "images"


def method(**changes):
    return Easy(MeanFlow(**dict(net=NET, vocab_size=32, dtype=jnp.float32) | changes))


def keys(count):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(count))


def batch(pixels):
    tokens = np.tile(np.array([5, END, 0, 0], np.int32), (len(pixels), 1))
    return dict(inputs=pixels, cond=dict(tokens=tokens))


def place(t):
    return t.reshape(-1, 1, 1, 1, 1)


def spread(t):
    return jnp.sqrt((1 - t) ** 2 * STD**2 + t**2)


@pytest.fixture
def gaussian(monkeypatch):
    """u where all pixels are N(MEAN, STD^2): paths keep a pixel's place among its like. Words move the mean."""

    def apply(self, params, z, r, t, cond):
        r, t = place(r), place(t)
        mean = MEAN + 0.1 * place((cond["tokens"] > END).sum(axis=-1))
        back = (1 - r) * mean + spread(r) / spread(t) * (z - (1 - t) * mean)
        # The limit at r = t is the velocity, -mean + spread'/spread times what lies above the mean.
        slope = (t - (1 - t) * STD**2) / spread(t) ** 2
        velocity = -mean + slope * (z - (1 - t) * mean)
        span = t - r
        return params * jnp.where(span < 1e-3, velocity, (z - back) / jnp.where(span < 1e-3, 1.0, span))

    monkeypatch.setattr(MeanFlow, "apply", apply)


def test_the_true_average_velocity_is_where_training_rests(gaussian):
    """The gradient of the squared error is nothing there, and is something beside it."""
    x = MEAN + 0.1 + STD * jax.random.normal(jax.random.key(1), (4096, *SHAPE))
    model = method(data_proportion=0.5, norm_p=0.0, caption_drop=0.0)

    def slope(scale):
        one = lambda scale: model.loss("model", scale, batch(x), jax.random.key(0), Axis(), 0)[0]
        return float(jax.grad(one)(scale)) / math.prod(SHAPE)

    assert abs(slope(1.0)) < 0.01 and slope(1.1) > 0.1 and slope(0.9) < -0.1


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_any_number_of_steps_ends_at_the_same_images(gaussian, steps):
    tokens = batch(np.zeros(3))["cond"]["tokens"]
    found = method().sample(1.0, keys(3), tokens, SHAPE, steps=steps, shift=2.0)
    np.testing.assert_allclose(found, MEAN + 0.1 + STD * normal_each(keys(3), SHAPE), atol=1e-4)


def test_guidance_goes_on_from_the_empty_caption(gaussian):
    tokens = batch(np.zeros(3))["cond"]["tokens"]
    plain, guided = (method().sample(1.0, keys(3), tokens, SHAPE, guidance=g) for g in (0.0, 2.0))
    np.testing.assert_allclose(guided - plain, 2 * 0.1, atol=1e-5)  # z_0 = z - u, and u has -mean
    assert method().evaluations(steps=3, guidance=2.0) == 6 and method().evaluations() == 1


def test_the_loss_is_the_error_over_its_own_size(gaussian):
    x = jnp.full((8, *SHAPE), 0.5)
    loss = lambda power: method(norm_p=power).loss("model", 1.0, batch(x), jax.random.key(0), Axis(), 0)
    plain, output = loss(0.0)
    assert float(plain) == pytest.approx(float(output.metrics["error"]) * math.prod(SHAPE), rel=1e-5)
    assert float(loss(1.0)[0]) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("equal", [0.0, 0.3, 1.0])
def test_times_are_in_order_and_equal_in_the_configured_share(equal):
    r, t = method(data_proportion=equal)._draw_two_times(jax.random.key(0), 4000)
    assert (r <= t).all() and t.max() < 1 and r.min() > 0
    assert float((r == t).mean()) == pytest.approx(equal, abs=0.03)


@pytest.mark.slow
def test_the_network_learns_one_image_for_one_step():
    model = method(net=NET | dict(patch_size=2), caption_drop=0.0)
    x, adam = np.full((16, *SHAPE), 200, np.uint8), optax.adam(3e-3)
    params = model.init(jax.random.key(0), batch(x))

    @jax.jit
    def step(params, state, rng):
        grads = jax.grad(lambda params: model.loss("model", params, batch(x), rng, Axis(), 0)[0])(params)
        updates, state = adam.update(grads, state)
        return optax.apply_updates(params, updates), state

    state = adam.init(params)
    for i in range(300):
        params, state = step(params, state, jax.random.key(i))
    made = model.sample(params, keys(4), batch(x)["cond"]["tokens"][:4], SHAPE)
    error = lambda made: float(jnp.abs(made - to_float(x[:4])).mean())
    assert error(made) < 0.25 * error(normal_each(keys(4), SHAPE))


def test_the_span_matters_to_the_network_and_is_only_there_where_given():
    x, tokens = jnp.ones((2, *SHAPE)), batch(np.zeros(2))["cond"]["tokens"]
    net, cond = build_network(Transformer, NET, "net", 32, jnp.float32), {"tokens": tokens}
    with_span = net.init(jax.random.key(0), x, jnp.ones(2), jnp.ones(2), cond=cond)["params"]["network"]
    assert "span" in with_span
    assert "span" not in net.init(jax.random.key(0), x, jnp.ones(2), cond=cond)["params"]["network"]


def test_a_low_time_frequency_keeps_the_derivative_by_time_low():
    t, steepest = jnp.linspace(0.1, 0.9, 33), {}
    for highest in (8.0, 1000.0):
        time = TimeEmbedding(16, highest=highest)
        params = time.init(jax.random.key(0), t)
        slope = jax.jvp(lambda t, params=params, time=time: time.apply(params, t), (t,), (jnp.ones_like(t),))[1]
        steepest[highest] = float(jnp.abs(slope).max())
    assert 0 < 20 * steepest[8.0] < steepest[1000.0]


def test_attention_cannot_be_chosen():
    with pytest.raises(UserError, match="attention"):
        method(net=NET | {"attention": "cudnn"}).network  # noqa: B018
