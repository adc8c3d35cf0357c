import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import conditions
from zoo.diffusion.paths import draw_times
from zoo.method import Axis, to_float
from zoo.methods.diffusion import Diffusion, SampleOptions
from zoo.training import state
from zoo.training.optim import Optimizer

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # its threads spin, which on busy cores costs more than they save

from benchmarks import torch_twin as twin  # noqa: E402  it imports torch

SIZE, LENGTH, TOTAL_STEPS = 8, 5, 10
NET = dict(width=32, depth=2, heads=2, patch_size=4, conditioner=dict(width=16, depth=1, heads=1))
METHOD = Diffusion(NET, vocab_size=20, dtype=jnp.float32, caption_drop=0.3)
OPTIMIZER = Optimizer(ema_half_lives=(2.0,), warmup_steps=2, clip_norm=0.1)

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # to compile quickly


@functools.cache
def batch(frames=2):
    random = np.random.default_rng(0)
    lengths = np.arange(4)[:, None] + 1
    tokens = np.where(np.arange(LENGTH) < lengths, random.integers(1, METHOD.vocab_size, (4, LENGTH)), 0)
    pixels = random.integers(0, 256, (4, frames, SIZE, SIZE, 3), dtype=np.uint8)
    return {"inputs": jnp.array(pixels), "cond": {"tokens": jnp.array(tokens, jnp.int32)}}


def random_like(tree):
    """Parameters of which none is zero, or nothing would pass the gates."""
    leaves, treedef = jax.tree.flatten(tree)
    random = np.random.default_rng(1)
    scales = [1 / np.sqrt(np.prod(leaf.shape[-2:-1])) for leaf in leaves]
    fresh = [jnp.array(s * random.normal(size=x.shape), jnp.float32) for x, s in zip(leaves, scales, strict=True)]
    return jax.tree.unflatten(treedef, fresh)


@functools.cache
def initial_state():
    create = functools.partial(state.create, METHOD, {"model": OPTIMIZER}, jax.random.key(0))
    shapes = jax.eval_shape(create, batch())
    params = random_like(shapes.params)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)  # Adam starts from zeros
    return zeros.replace(params=params, ema={"model": {"2": params["model"]}})


def new_twin(params):
    return twin.Transformer(METHOD.network, SIZE, LENGTH).load_flax(params["model"])


def noise(rng, data):
    """What Diffusion.loss draws: x, eps, t, tokens, for the twin."""
    rng_time, rng_noise, rng_drop = jax.random.split(rng, 3)
    x = to_float(data["inputs"])
    t = draw_times(rng_time, len(x), "logit_normal")
    tokens = conditions.drop(rng_drop, data["cond"], METHOD.caption_drop)["tokens"]
    drawn = x, jax.random.normal(rng_noise, x.shape), t, np.asarray(tokens, np.int64)
    return [twin.tensor(value) for value in drawn]


def test_forward_agrees():
    params = initial_state().params
    x, _, t, tokens = noise(jax.random.key(2), batch(frames=1))
    ours = np.asarray(quick_jit(METHOD.apply)(params, x.numpy(), t.numpy(), {"tokens": tokens.numpy()}))
    theirs = new_twin(params)(x, t, tokens).detach().numpy()
    assert np.abs(ours).mean() > 0.1
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4 * np.abs(ours).max())


@functools.cache
def trained():
    """Three steps of the training loop on one batch: the state after them, and the metrics of each."""
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), batch())
    steps = state.Step(METHOD, {"model": OPTIMIZER}, TOTAL_STEPS, 0, Axis())
    return quick_jit(steps)(initial_state(), {}, stacked)


def noise_of_step(step):
    _, key = state.split_seed(0)
    rng = jax.random.fold_in(jax.random.fold_in(key, step), 0)  # of device 0
    return noise(jax.random.fold_in(rng, 0), batch())  # of player 0


def test_loss_and_gradient_norm_agree():
    _, metrics = trained()
    model = new_twin(initial_state().params)
    loss = twin.flow_loss(model, *noise_of_step(0))
    loss.backward()
    norm = torch.stack(torch._foreach_norm([p.grad for p in model.parameters()])).norm()
    assert loss.item() == pytest.approx(float(metrics["model/loss"][0]), rel=1e-4)
    assert norm.item() == pytest.approx(float(metrics["model/grad_norm"][0]), rel=1e-3)


def test_training_steps_agree():
    began, (ended, _) = initial_state(), trained()
    trainer = twin.Trainer(new_twin(began.params), METHOD, OPTIMIZER, TOTAL_STEPS)
    for step in range(3):
        trainer.learn(*noise_of_step(step))

    def flat(params):
        return torch.nn.utils.parameters_to_vector(new_twin(params).parameters()).detach()

    start = flat(began.params)
    ours = {"params": flat(ended.params), "ema": flat({"model": ended.ema["model"]["2"]})}
    theirs = {"params": trainer.params, "ema": trainer.averages[0][0]}
    for name, expected in ours.items():
        gap = torch.nn.utils.parameters_to_vector(theirs[name]).detach() - expected
        assert gap.norm() < 1e-2 * (expected - start).norm(), name


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sampling_agrees_with_the_loop_of_diffusers(shift):
    params, options = initial_state().params, SampleOptions(steps=3, sampler="euler", guidance=1.5, shift=shift)
    shape, tokens = (1, SIZE, SIZE, 3), batch()["cond"]["tokens"]
    noise = METHOD.draw_noise(jax.random.split(jax.random.key(4), len(tokens)), shape)
    ours = quick_jit(METHOD.generate, static_argnums=3)(params | {"frozen": {}}, noise, {"tokens": tokens}, options)
    z = twin.tensor(jax.tree.leaves(noise)[0])
    theirs = twin.diffusers_loop(new_twin(params).eval(), z, twin.tensor(tokens).long(), options).numpy()
    assert np.abs(np.asarray(ours) - z.numpy()).mean() > 0.1
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-3 * np.abs(ours).max())
