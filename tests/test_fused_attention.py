"""Fused attention has a first derivative in reverse alone: maths that takes another gets XLA's, whatever was chosen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import config as configs
from zoo.families import build_method
from zoo.method import Axis
from zoo.nets import layers

BATCH = {
    "inputs": np.zeros((4, 1, 16, 16, 3), np.uint8),
    "cond": {"tokens": np.ones((4, 6), np.int32)},
}
KEYS = jax.random.split(jax.random.key(0), 4)


@pytest.fixture
def fused(monkeypatch):
    """Makes all attention fused where it may be; returns the names of the implementations that were taken."""
    plain, taken = jax.nn.dot_product_attention, []

    def attention(q, k, v, *, implementation, **rest):
        taken.append(implementation)
        if implementation == "xla":
            return plain(q, k, v, implementation="xla", **rest)

        def backward(inputs, cotangent):
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)
            return jax.pure_callback(lambda *_: inputs, shapes, *inputs, cotangent)  # has no derivative

        kernel = jax.custom_vjp(lambda q, k, v: q + 0 * (k.sum() + v.sum()))  # has no forward derivative
        kernel.defvjp(lambda q, k, v: (q, (q, k, v)), backward)
        return kernel(q, k, v)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    monkeypatch.setattr(layers, "has_fused_attention", lambda q, k: True, raising=False)
    return taken


def family(spec, **dependencies):
    """A family of a recipe for tests, and the shapes of its parameters."""
    section = configs.load(spec).method.to_dict()
    method = build_method(section, 64, "float32", lambda key, name, value, protocol: dependencies[name])
    return method, jax.eval_shape(method.init, jax.random.key(0), BATCH)


def kernels_of_step(taken, method, params, player, **frozen):
    """Traces the gradient of a player's loss; returns the implementations of attention that were taken."""
    fixed = {"frozen": {name: shapes for name, shapes in frozen.items()}} if frozen else {}

    def loss(own, params):
        tree = {**params, player: own}
        return method.loss(player, tree, BATCH, jax.random.key(0), Axis(), jnp.zeros((), jnp.int32))[0]

    taken.clear()
    jax.eval_shape(jax.grad(loss), params[player], {**params, **fixed})
    return set(taken)


@pytest.mark.parametrize("spec", ["diffusion:test", "flow:test", "vae:test", "gan:test"])
def test_plain_losses_take_the_fused_kernel(fused, spec):
    assert kernels_of_step(fused, *family(spec), "model") == {"cudnn"}


def test_the_forward_derivative_of_mean_flow(fused):
    method, params = family("mean_flow:test")
    assert kernels_of_step(fused, method, params, "model") == {"xla"}
    fused.clear()
    options = method.SampleOptions()
    jax.eval_shape(lambda p: method.sample(p, KEYS, BATCH["cond"], (1, 16, 16, 3), options), params)
    assert set(fused) == {"cudnn"}


def test_the_divergence_of_a_likelihood(fused):
    method, params = family("diffusion:test")
    fused.clear()
    jax.eval_shape(lambda p: method.bits_per_dim(p, KEYS, BATCH, method.LikelihoodOptions(steps=1)), params)
    assert set(fused) == {"xla"}


def test_a_loss_of_denoised_samples(fused):
    assert kernels_of_step(fused, *family("flow:jet,critic,test"), "model") == {"xla", "cudnn"}


@pytest.mark.parametrize("spec", ["diffusion:critic,test", pytest.param("vae:critic,test", marks=pytest.mark.slow)])
def test_the_adaptive_weight_of_a_critic(fused, spec):
    method, params = family(spec)
    assert method.last_layer and kernels_of_step(fused, method, params, "model") == {"cudnn"}


@pytest.mark.slow
def test_the_penalty_of_a_critic_of_the_features_of_a_network(fused):
    features, frozen = family("diffusion:test")
    method, params = family("gan:projected,test", feature_network=features)
    method = dataclasses.replace(method, r1=1.0)
    assert "xla" in kernels_of_step(fused, method, params, "critic", feature_network=frozen)
    assert kernels_of_step(fused, method, params, "model", feature_network=frozen) == {"cudnn"}
