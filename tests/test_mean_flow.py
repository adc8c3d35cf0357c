"""MeanFlow against data whose average velocity is known in closed form."""

import dataclasses
import functools
import math
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import Easy
from zoo import conditions
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
    """A network of the true u of pixels of N(MEAN, STD^2), whose paths keep their order. Words move the mean by 0.1.

    Guidance w leads on by another 0.1 w: the guided field is that of N(MEAN + 0.1 (1 + w), STD^2).
    """

    def apply(method, variables, z, t, span, cond):
        params, r, t = variables["params"], place(t - span), place(t)
        mean = MEAN + 0.1 * (1 + method.guidance) * place((cond["tokens"] > END).sum(axis=-1))
        back = (1 - r) * mean + spread(r) / spread(t) * (z - (1 - t) * mean)
        # The limit at r = t is the velocity, -mean + spread'/spread times what lies above the mean.
        slope = (t - (1 - t) * STD**2) / spread(t) ** 2
        velocity = -mean + slope * (z - (1 - t) * mean)
        span = t - r
        u = params * jnp.where(span < 1e-3, velocity, (z - back) / jnp.where(span < 1e-3, 1.0, span))
        return u if method.prediction == "u" else z - t * u

    network = property(lambda method: SimpleNamespace(apply=functools.partial(apply, method)))
    monkeypatch.setattr(MeanFlow, "network", network)


IMAGES = dict(prediction="x", time_min=0.05)
GUIDED = [dict(), dict(guidance=1.5, caption_drop=0.3), dict(guidance=1.5, caption_drop=0.3, guidance_mix=0.5)]


@pytest.mark.parametrize("changes", [*GUIDED, IMAGES, GUIDED[1] | IMAGES])
def test_the_true_average_velocity_is_where_training_rests(gaussian, changes):
    """The gradient of the squared error is nothing there, and is something beside it."""
    model = method(**dict(data_proportion=0.5, norm_p=0.0, caption_drop=0.0) | changes)

    def slope(scale, caption):
        x = MEAN + 0.1 * caption + STD * jax.random.normal(jax.random.key(1), (4096, *SHAPE))
        data = batch(x) if caption else batch(x) | dict(cond=conditions.empty(batch(x)["cond"]))
        plain = dataclasses.replace(model.method, caption_drop=1e-9)  # all have captions, or none
        one = lambda scale: plain.loss("model", {"model": scale}, data, jax.random.key(0), Axis(), 0)[0]
        return float(jax.grad(one)(scale)) / math.prod(SHAPE)

    for caption in (0, 1):
        assert abs(slope(1.0, caption)) < 0.01 and slope(1.1, caption) > 0.1 and slope(0.9, caption) < -0.1


@pytest.mark.parametrize("prediction", [dict(), IMAGES], ids=["u", "x"])
@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_any_number_of_steps_ends_at_the_same_images(gaussian, steps, prediction):
    tokens = batch(np.zeros(3))["cond"]["tokens"]
    found = method(**prediction).sample({"model": 1.0}, keys(3), tokens, SHAPE, steps=steps, shift=2.0)
    np.testing.assert_allclose(found, MEAN + 0.1 + STD * normal_each(keys(3), SHAPE), atol=1e-4)
    guided = method(guidance=2.0).sample({"model": 1.0}, keys(3), tokens, SHAPE, steps=steps)
    np.testing.assert_allclose(guided - found, 2 * 0.1, atol=1e-4)
    assert method(guidance=2.0).evaluations(steps=steps) == steps


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(guidance=-1.0), r"guidance must be in \[0, inf\), got -1.0"),
        (dict(guidance=1.0, caption_drop=0.0), "needs caption_drop between 0 and 1, got 0.0"),
        (dict(guidance_mix=0.5), "guidance_mix 0.5 needs guidance"),
        (dict(prediction="v"), "unknown prediction 'v'"),
        (dict(prediction="x"), "time_min 0.0 must be"),
        (dict(time_min=1.0), r"time_min must be in \[0, 1\), got 1.0"),
        (dict(guidance=1.0, guidance_mix=1.0), r"guidance_mix must be in \[0, 1\), got 1.0"),
    ],
)
def test_settings_that_cannot_be_are_errors(changes, message):
    with pytest.raises(UserError, match=message):
        method(**changes)


def velocity(z, t, mean, std):
    """The field of N(mean, std^2) on the line to N(0, 1)."""
    return -mean + (t - (1 - t) * std**2) / ((1 - t) ** 2 * std**2 + t**2) * (z - (1 - t) * mean)


@pytest.mark.slow
def test_a_trained_network_samples_the_guided_distribution(monkeypatch):
    """Conditional N(1, 0.3^2), unconditional N(0, 1), guidance 1: the guided ODE ends at mean 1.177, std 0.090."""
    z, count = np.random.default_rng(0).normal(size=20_000), 4000
    for i in range(count, 0, -1):
        t = (i - 0.5) / count
        z = z - (2 * velocity(z, t, 1.0, 0.3) - velocity(z, t, 0.0, 1.0)) / count
    assert (z.mean(), z.std()) == (pytest.approx(1.177, abs=0.01), pytest.approx(0.090, abs=0.005))

    def init(rng):
        sizes = [4, 64, 64, 64, 1]
        keys = jax.random.split(rng, len(sizes))
        return [
            (jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, jnp.zeros(b))
            for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
        ]

    def apply(self, params, z, r, t, cond):
        has_words = (cond["tokens"] > END).any(axis=-1)
        x = jnp.stack([z.reshape(-1), t, t - r, has_words.astype(jnp.float32)], axis=-1)
        for weight, bias in params[:-1]:
            x = nn.silu(x @ weight + bias)
        return (x @ params[-1][0] + params[-1][1]).reshape(z.shape)

    monkeypatch.setattr(MeanFlow, "apply", apply)
    model = method(
        guidance=1.0, guidance_mix=0.5, caption_drop=0.5, norm_p=0.0, time_mean=0.0, time_std=2.0, data_proportion=0.25
    )
    steps, size = 8_000, 512
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-3, steps)))
    tokens = jnp.where(jnp.arange(4) < 2, jnp.array([5, END, 0, 0]), 0)

    def step(carry, rng):
        params, state, average = carry
        rng_x, rng_c, rng_loss = jax.random.split(rng, 3)
        captioned = jax.random.bernoulli(rng_c, 0.5, (size, 1, 1, 1, 1))
        noise = jax.random.normal(rng_x, (size, 1, 1, 1, 1))
        x = jnp.where(captioned, 1.0 + 0.3 * noise, noise)
        empty = jnp.zeros(4, jnp.int32).at[0].set(END)
        cond = dict(tokens=jnp.where(captioned.reshape(-1, 1), tokens, empty))
        plain = dataclasses.replace(model.method, caption_drop=1e-9)
        grads = jax.grad(lambda p: plain.loss("model", p, dict(inputs=x, cond=cond), rng_loss, Axis(), 0)[0])(params)
        updates, state = adam.update(grads, state)
        params = optax.apply_updates(params, updates)
        return (params, state, jax.tree.map(lambda a, b: 0.999 * a + 0.001 * b, average, params)), None

    params = init(jax.random.key(0))
    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    params = run((params, adam.init(params), params), jax.random.split(jax.random.key(1), steps))[2]
    cond = dict(tokens=jnp.tile(tokens, (20_000, 1)))
    for count in (1, 2, 50):
        made = model.sample(params, jax.random.split(jax.random.key(2), 20_000), cond, (1, 1, 1, 1), steps=count)
        assert float(made.mean()) == pytest.approx(z.mean(), abs=0.05), count
        assert float(made.std()) == pytest.approx(z.std(), abs=0.05), count


def test_the_loss_is_the_error_over_its_own_size(gaussian):
    x = jnp.full((8, *SHAPE), 0.5)
    loss = lambda power: method(norm_p=power).loss("model", {"model": 1.0}, batch(x), jax.random.key(0), Axis(), 0)
    plain, output = loss(0.0)
    assert float(plain) == pytest.approx(float(output.metrics["error"]) * math.prod(SHAPE), rel=1e-5)
    assert float(loss(1.0)[0]) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("equal", [0.0, 0.3, 1.0])
def test_times_are_in_order_and_equal_in_the_configured_share(equal):
    r, t = method(data_proportion=equal)._draw_two_times(jax.random.key(0), 4000)
    assert (r <= t).all() and t.max() < 1 and r.min() > 0
    assert float((r == t).mean()) == pytest.approx(equal, abs=0.03)
    later = method(data_proportion=equal, time_min=0.3)._draw_two_times(jax.random.key(0), 4000)
    np.testing.assert_allclose(later[1], np.maximum(t, 0.3), atol=1e-6)
    np.testing.assert_allclose(later[0], np.where(r == t, later[1], r), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", [dict(), IMAGES], ids=["u", "x"])
def test_the_network_learns_one_image_for_one_step(prediction):
    model = method(net=NET | dict(patch_size=2), caption_drop=0.0, **prediction)
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


def test_guidance_needs_steps_on_the_velocity_itself():
    with pytest.raises(UserError, match="guidance needs data_proportion above 0"):
        method(guidance=1.5, data_proportion=0.0)


@pytest.mark.parametrize("t", [0.05, 0.4])
def test_the_derivative_of_predicted_images_by_time_is_whole_at_time_min(monkeypatch, t):
    """A network that predicts 0: u = z / t, and du/dt = -z / t^2."""
    network = property(lambda method: SimpleNamespace(apply=lambda variables, z, *_, **__: jnp.zeros_like(z)))
    monkeypatch.setattr(MeanFlow, "network", network)
    model, z, times = method(prediction="x", time_min=0.05), jnp.ones((1, *SHAPE)), jnp.full(1, t)
    at = lambda t: model.apply({"model": None}, z, times, t, {})
    u, slope = jax.jvp(at, (times,), (jnp.ones(1),))
    np.testing.assert_allclose(u, np.full(z.shape, 1 / t), rtol=1e-5)
    np.testing.assert_allclose(slope, np.full(z.shape, -1 / t**2), rtol=1e-5)
