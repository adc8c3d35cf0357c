"""Rewards: changes follow a judge's derivative or its word, the base stays, and the leash holds."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import lora
from zoo.errors import BadInput
from zoo.method import Axis
from zoo.methods.rewarded import Rewarded, advantages
from zoo.run import Run, prepare
from zoo.scoring import ask, rewards
from zoo.scoring.judge import get_judge
from zoo.training import loop

NET = dict(width=16, depth=1, heads=2, patch_size=4, text_width=8, text_depth=1)
DIFFUSION = dict(name="diffusion", net=NET)
GENERATOR = dict(
    name="generator",
    net=dict(
        patch_size=2,
        widths=(8, 12),
        blocks=1,
        bottleneck=2,
        attention_size=4,
        heads=2,
        text_width=8,
        text_depth=1,
        text_heads=2,
    ),
    latent_dim=6,
)
RNG = np.random.default_rng(0)
BATCH = {
    "pixels": RNG.integers(256, size=(8, 1, 8, 8, 3), dtype=np.uint8),
    "tokens": np.pad(RNG.integers(3, 20, size=(8, 5)), ((0, 0), (0, 1))).astype(np.int32),
}
SHAPE = (1, 8, 8, 3)
KEY = jax.random.key(3)
KEYS = jax.random.split(jax.random.key(1), 8)
STEPS = dict(steps=3)


def brightness(pixels, tokens):
    """A judge that can be derived."""
    return jnp.clip(pixels, -1, 1).mean(axis=(1, 2, 3, 4)) + 0.0 * tokens.sum()


def method(base=DIFFUSION, judge=brightness, **changes):
    settings = dict(reward="clip", sampling=STEPS, rank=2) | changes
    return Rewarded(base=base, vocab_size=20, dtype=jnp.float32, **settings).taught_by(judge)


@functools.cache
def fresh(family="diffusion"):
    """Parameters that say something: the last layers and the adapters, which begin at zero, are moved."""
    rewarded = method(DIFFUSION) if family == "diffusion" else method(GENERATOR, sampling={})
    params = jax.jit(rewarded.init)(jax.random.key(0), BATCH)
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [leaf + 0.1 * RNG.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


def loss_of(rewarded, params):
    @jax.jit
    def loss(adapters):
        value, output = rewarded.loss("adapters", params | {"adapters": adapters}, BATCH, KEY, Axis(), np.int32(0))
        return value, output.metrics

    return jax.value_and_grad(loss, has_aux=True)(params["adapters"])


def test_without_changes_it_is_its_base(same):
    rewarded = method()
    params = jax.jit(rewarded.init)(jax.random.key(0), BATCH)
    base = {"model": params["model"]}
    made = rewarded.sample(params, KEYS, BATCH["tokens"], SHAPE, **STEPS)
    assert same(made, rewarded.wrapped.sample(base, KEYS, BATCH["tokens"], SHAPE, **STEPS))
    assert set(params) == {"model", "adapters"} and rewarded.players == ("adapters",)


@pytest.mark.parametrize("ability", ["sample", "generate", "walk"])
def test_abilities_see_the_changes(ability, same):
    rewarded, params = method(), fresh()
    merged = lora.merge({"model": params["model"]}, params["adapters"], rewarded.scale)
    noise = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(KEYS)
    first = (noise, BATCH["tokens"]) if ability == "generate" else (KEYS, BATCH["tokens"], SHAPE)
    found = getattr(rewarded, ability)(params, *first, **STEPS)
    assert same(found, getattr(rewarded.wrapped, ability)(merged, *first, **STEPS))
    still = params | {"adapters": jax.tree.map(jnp.zeros_like, params["adapters"])}
    assert not np.allclose(found, getattr(rewarded, ability)(still, *first, **STEPS))


def test_the_direct_gradient_is_that_of_the_mean_reward_of_pictures():
    rewarded, params = method(), fresh()
    (loss, metrics), grads = loss_of(rewarded, params)

    def mean_reward(adapters):
        noise = rewarded.draw_noise(jax.random.split(KEY, 8), SHAPE)
        made = rewarded.generate(params | {"adapters": adapters}, noise, BATCH["tokens"], **STEPS)
        return jnp.clip(made, -1, 1).mean()

    value, expected = jax.jit(jax.value_and_grad(mean_reward))(params["adapters"])
    np.testing.assert_allclose(-loss, value, rtol=1e-5)
    np.testing.assert_allclose(metrics["reward"], value, rtol=1e-5)
    for found, right in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(-found, right, rtol=1e-3, atol=1e-6)


def test_derivatives_of_the_last_step_alone_take_the_one_before_for_given():
    """DRaFT-1: z at the last step is what it is, and x = z - t v(z, t) alone is derived."""
    rewarded, params = method(sampling=STEPS | {"sampler": "ddim", "last": 1}), fresh()
    (loss, _), grads = loss_of(rewarded, params)
    (whole, _), other = loss_of(method(sampling=STEPS | {"sampler": "ddim"}), params)
    np.testing.assert_allclose(loss, whole, rtol=1e-5)
    states = rewarded.walk(params, jax.random.split(KEY, 8), BATCH["tokens"], SHAPE, **STEPS, eta=0.0)
    z, t = states[-2], jnp.full(8, 1 / 3)

    def last(adapters):
        merged = rewarded.merged(params | {"adapters": adapters})
        return -jnp.clip(z - t[0] * rewarded.wrapped.apply(merged, z, t, BATCH["tokens"]), -1, 1).mean()

    expected = jax.jit(jax.grad(last))(params["adapters"])
    for found, right in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-6)
    assert not np.allclose(grads["model/out/kernel"]["b"], other["model/out/kernel"]["b"], rtol=1e-2)


def test_the_density_of_a_walk_is_that_of_its_draws():
    """z_s = mean + std noise, and the walk's noise is known."""
    rewarded, params = method(), fresh()
    base = rewarded.wrapped
    states = rewarded.walk(params, KEYS, BATCH["tokens"], SHAPE, steps=4)
    assert states.shape == (5, 8, *SHAPE)
    np.testing.assert_allclose(
        states[-1],
        rewarded.sample(params, KEYS, BATCH["tokens"], SHAPE, steps=4, sampler="ddim", eta=1.0),
        rtol=1e-4,
        atol=1e-4,
    )
    found = rewarded.log_prob_of_walk(params, states, BATCH["tokens"], steps=4)
    rng_steps = jax.vmap(jax.random.split)(KEYS)[:, 1]
    for i, (t, s) in enumerate([(1.0, 0.75), (0.75, 0.5), (0.5, 0.25)]):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rng_steps, i)
        noise = np.asarray(jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys), np.float64)
        std = np.sqrt((s / t) ** 2 * (t**2 - ((1 - t) / (1 - s) * s) ** 2))
        expected = (-0.5 * noise**2 - 0.5 * np.log(2 * np.pi) - np.log(std)).sum(axis=(1, 2, 3, 4))
        np.testing.assert_allclose(found[i], expected, rtol=1e-4)
    assert found.shape == (3, 8) and base.evaluations(steps=4) == 7


def test_policy_asks_the_judge_and_needs_no_derivative_of_it():
    """The gradient is - mean of advantage times that of the draws' log-density a dimension."""

    def judge(pixels, tokens):
        mean = lambda x: np.asarray(x).mean(axis=(1, 2, 3, 4))
        return jax.pure_callback(mean, jnp.zeros(8, jnp.float32), jnp.clip(pixels, -1, 1))

    rewarded, params = method(judge=judge, gradient="policy", group=4), fresh()
    (_, metrics), grads = loss_of(rewarded, params)
    tokens = np.repeat(BATCH["tokens"][::4], 4, axis=0)
    states = rewarded.walk(params, jax.random.split(KEY, 8), tokens, SHAPE, **STEPS)
    reward = np.clip(states[-1], -1, 1).mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(metrics["reward"], reward.mean(), rtol=1e-4)

    def surrogate(adapters):
        log_prob = rewarded.log_prob_of_walk(params | {"adapters": adapters}, states, tokens, **STEPS)
        return -(advantages(jnp.array(reward), 4) * log_prob).mean() / np.prod(SHAPE)

    expected = jax.jit(jax.grad(surrogate))(params["adapters"])
    for found, right in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-2, atol=1e-6)


def test_advantages_are_of_each_group():
    found = advantages(jnp.array([1.0, 3.0, 10.0, 10.0]), 2)
    np.testing.assert_allclose(found, [-1, 1, 0, 0], atol=1e-3)


@pytest.mark.parametrize("leash", [0.0, 3.0])
def test_the_leash_adds_the_distance_of_the_changes(leash):
    params = fresh()
    (loss, metrics), _ = loss_of(method(leash=leash), params)
    changed = lora.merge({"model": params["model"]}, params["adapters"], 8.0)
    names = {name.removeprefix("model/") for name in params["adapters"]}
    before, after = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float64) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (params["model"], changed["model"]))
    )
    share = sum(np.sum((after[n] - before[n]) ** 2) for n in names) / sum(np.sum(before[n] ** 2) for n in names)
    np.testing.assert_allclose(metrics["distance"], share, rtol=1e-3)
    np.testing.assert_allclose(loss, -metrics["reward"] + leash * share, rtol=1e-3, atol=1e-5)


def test_a_family_without_steps_learns_directly_too():
    params = fresh("generator")
    rewarded = method(GENERATOR, sampling={})
    (loss, _), grads = loss_of(rewarded, params)
    step = jax.tree.map(lambda leaf, grad: leaf - 1e-3 * grad, params["adapters"], grads)
    assert loss_of(rewarded, params | {"adapters": step})[0][0] < loss


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(gradient="reinforce"), ["method.gradient 'reinforce'", "policy"]),
        (dict(base=GENERATOR, gradient="policy", sampling={}), ["cannot walk", "diffusion"]),
        (dict(sampling={"step": 3}), ["sampling option of Diffusion 'step'", "steps"]),
        (dict(gradient="policy", sampling={"sampler": "heun"}), ["option of walk 'sampler'"]),
        (dict(group=1), ["method.group", "1"]),
        (dict(adapt="nothing"), ["nothing", "matches no kernel"]),
    ],
)
def test_settings_that_cannot_be_are_said(changes, words):
    with pytest.raises(BadInput) as error:
        jax.eval_shape(method(**changes).init, KEY, BATCH)
    assert all(word in str(error.value) for word in words), error.value


def test_a_group_must_divide_the_batch():
    with pytest.raises(BadInput, match="group 3 does not divide the 8 pictures"):
        loss_of(method(gradient="policy", group=3), fresh())


# ---- through the loop


def config_of(tiny, trained, changes=None, words="reward"):
    return tiny(
        {"init": str(trained), "loop.grid_every": 0, "method.sampling.steps": 3} | (changes or {}),
        f"configs/diffusion.py:{words},test",
    )


@pytest.fixture(scope="module")
def critic(tiny, tmp_path_factory):
    """Workdir of a run with a critic."""
    workdir = tmp_path_factory.mktemp("critic") / "run"
    loop.train(tiny({"loop.steps": 1, "loop.grid_every": 0}, "configs/gan.py:test"), workdir)
    return workdir


@pytest.mark.parametrize("words, reward", [("reward", "clip"), ("policy", "oracle"), ("policy", "clip")])
def test_training_changes_the_adapters_alone(tiny, trained, tmp_path, same, words, reward):
    changes = {"method.reward": reward, "method.group": 2, "loop.grid_every": 2}
    state = loop.train(config_of(tiny, trained, changes, words), tmp_path / "run")
    before = jax.tree.map(np.asarray, Run.open(trained).params["model"])
    assert same(state.params["model"], before) and set(state.optimizer) == set(state.ema) == {"adapters"}
    assert any(np.abs(pair["b"]).max() > 0 for pair in state.params["adapters"].values()) or reward == "oracle"
    again = Run.open(tmp_path / "run")
    assert again.sampler(2)(again.params, again.recipe.tokenizer.encode(["a star"]), seed=0).shape == (1, 1, 16, 16, 3)
    assert (tmp_path / "run/samples/step_0000002.png").exists()


@pytest.mark.parametrize("name", ["clip", "critic", "oracle"])
def test_a_reward_is_what_the_judge_of_that_name_says(tiny, trained, critic, name):
    """Of pictures in whole levels; CLIP's then differs by the rounding of resized pixels."""
    name = str(critic) if name == "critic" else name
    gradient = "policy" if name == "oracle" else "reward"
    config = config_of(tiny, trained, {"method.reward": name}, gradient)
    source, recipe = prepare(config)
    items = [source[i] for i in range(6)]
    pictures, texts = np.stack([item["pixels"] for item in items]), [item["text"] for item in items]
    texts[3] = texts[4]
    reward = jax.jit(rewards.open_reward(recipe))
    found = reward(pictures / np.float32(127.5) - 1, recipe.tokenizer.encode(texts))
    expected = get_judge(name, "one")(pictures, texts)
    scale = {"oracle": 2.0}.get(name, 1.0)
    if name == "clip":
        assert np.corrcoef(found, expected)[0, 1] > 0.99
    else:
        np.testing.assert_allclose(np.asarray(found) * scale, expected, rtol=1e-4, atol=1e-4)


def test_a_reward_sees_the_pictures_that_latents_decode_to(tiny, trained):
    _, recipe = prepare(config_of(tiny, trained, {"method.reward": "clip"}))
    latents = RNG.uniform(-3, 3, (2, 1, 16, 16, 3)).astype(np.float32)
    tokens = recipe.tokenizer.encode(["a red circle", "a blue star"])
    expected = rewards.open_reward(recipe)(np.clip(latents / 2, -1, 1), tokens)
    recipe.codec = SimpleNamespace(params=(), decode=lambda params, z: z / 2)
    np.testing.assert_allclose(rewards.open_reward(recipe)(latents, tokens), expected, rtol=1e-5)


def test_a_critic_of_latents_encodes_what_it_rates(tiny, trained, critic, monkeypatch):
    run, captions = Run.open(critic), ["a red circle", "a blue star"]
    pictures = RNG.integers(256, size=(2, 1, 16, 16, 3), dtype=np.uint8)
    pixels = pictures / np.float32(127.5) - 1
    expected = run.recipe.method.rate(run.params, pixels / 2, run.recipe.tokenizer.encode(captions))
    run.recipe.codec = SimpleNamespace(params=(), encode=lambda params, x: x / 2)
    np.testing.assert_allclose(ask.rate(run, pictures, captions), expected, rtol=1e-4, atol=1e-5)
    _, recipe = prepare(config_of(tiny, trained, {"method.reward": str(critic)}))
    monkeypatch.setattr(rewards, "open_named", lambda key, workdir: run)
    found = rewards.open_reward(recipe)(pixels, recipe.tokenizer.encode(captions))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_changed_run_is_a_guide_with_its_changes(same):
    rewarded, params = method(), fresh()
    guide = rewarded.as_guide(params)
    assert guide.method == rewarded.wrapped and same(guide.params["model"], rewarded.merged(params)["model"])
    make = functools.partial(rewarded.sample, params, KEYS, BATCH["tokens"], SHAPE, **STEPS)
    np.testing.assert_allclose(make(guidance=2.0, guide=guide), make(), atol=1e-4)  # nothing to guide away from


def test_a_critic_of_other_words_reads_the_caption_again(tiny, trained, tmp_path):
    data = {"data.source": "scenes/one?examples=8&omit=0", "data.text_length": 20}
    loop.train(tiny(data | {"loop.steps": 1, "loop.grid_every": 0}, "configs/gan.py:test"), tmp_path / "critic")
    _, recipe = prepare(config_of(tiny, trained, {"method.reward": str(tmp_path / "critic")}))
    run, texts = Run.open(tmp_path / "critic"), ["a large red circle", "a blue star"]
    pixels = RNG.uniform(-1, 1, (2, 1, 16, 16, 3)).astype(np.float32)
    assert run.recipe.tokenizer.to_json() != recipe.tokenizer.to_json()
    found = jax.jit(rewards.open_reward(recipe))(pixels, recipe.tokenizer.encode(texts))
    expected = run.recipe.method.rate(run.params, pixels, run.recipe.tokenizer.encode(texts))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"init": ""}, ["Rewarded", "--config.init=RUN"]),
        ({"method.reward": "no/such/run"}, ["method.reward", "no/such/run"]),
        ({"method.reward": "clop"}, ["method.reward 'clop'", "clip"]),
        ({"method.reward": "oracle"}, ["no derivative", "policy"]),
        ({"method.reward": "TRAINED"}, ["cannot rate", "contrastive"]),
        ({"data.size": 32, "method.reward": "CRITIC"}, ["(1, 16, 16, 3)", "data.size"]),
    ],
)
def test_what_cannot_reward_is_said(tiny, trained, critic, tmp_path, changes, words):
    named = {"TRAINED": str(trained), "CRITIC": str(critic)}
    changes = {key: named.get(value, value) for key, value in changes.items()}
    with pytest.raises(BadInput) as error:
        loop.train(config_of(tiny, trained, changes), tmp_path / "run")
    assert all(word in str(error.value) for word in words), error.value


def test_the_oracle_rewards_scenes_alone(tiny, trained):
    _, recipe = prepare(config_of(tiny, trained, {"method.reward": "oracle"}, "policy"))
    recipe.data = dataclasses.replace(recipe.data, source="folder:somewhere")
    with pytest.raises(BadInput, match="folder:somewhere"):
        rewards.open_reward(recipe)
