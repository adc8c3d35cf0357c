"""Rewards: changes follow a reward's derivative or its value, the base stays, and the penalty holds."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import Easy, Guide
from zoo import loop
from zoo.adapters import lora
from zoo.errors import UserError
from zoo.evaluation import model_eval
from zoo.evaluation.rerank import get_reward
from zoo.families import build_method
from zoo.method import Axis
from zoo.runs import rewards
from zoo.runs.dependencies import open_run, prepare
from zoo.wrappers.rewarded import advantages

TEXT = dict(conditioner=dict(width=8, depth=1, heads=2))
NET = dict(width=16, depth=1, heads=2, patch_size=4) | TEXT
DIFFUSION = dict(name="diffusion", net=NET)
CLIP = dict(patch_size=4, width=8, depth=1, heads=2, embed_dim=8, conditioner=dict(width=8, depth=1, heads=2))
GENERATOR = dict(
    name="generator",
    net=dict(patch_size=2, widths=(8, 12), blocks=1, bottleneck=2, attention_size=4, heads=2) | TEXT,
    latent_dim=6,
)
RNG = np.random.default_rng(0)
BATCH = {
    "inputs": RNG.integers(256, size=(8, 1, 8, 8, 3), dtype=np.uint8),
    "cond": {"tokens": np.pad(RNG.integers(3, 20, size=(8, 5)), ((0, 0), (0, 1))).astype(np.int32)},
}
SHAPE = (1, 8, 8, 3)
KEY = jax.random.key(3)
KEYS = jax.random.split(jax.random.key(1), 8)
STEPS = dict(steps=3)
LAST = "model/network/out/kernel"


class RewardOf:
    """A reward of images and conditions, by a function."""

    def __init__(self, function, differentiable=True):
        self.function, self.differentiable = function, differentiable

    def __call__(self, frozen, inputs, cond):
        return self.function(jnp.clip(inputs, -1, 1), cond)


BRIGHTNESS = RewardOf(lambda pixels, cond: pixels.mean(axis=(1, 2, 3, 4)) + 0.0 * cond["tokens"].sum())


def method(base=DIFFUSION, reward=BRIGHTNESS, **changes):
    section = dict(name="rewarded", base=base, reward="any", sampling=STEPS, rank=2) | changes
    return Easy(build_method(section, 20, "float32", lambda key, name, value, protocol: reward))


@functools.cache
def fresh(family="diffusion"):
    """Parameters that say something: the last layers and the adapters, which begin at zero, are moved."""
    rewarded = method(DIFFUSION) if family == "diffusion" else method(GENERATOR, sampling={})
    keys = jax.random.split(jax.random.key(0))
    base = jax.jit(rewarded.base.init)(keys[0], BATCH)
    params = jax.jit(rewarded.init)(keys[1], BATCH) | {"frozen": {"base": base}}
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [leaf + 0.1 * RNG.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


def base_of(params):
    return params["frozen"]["base"]


def loss_of(rewarded, params):
    @jax.jit
    def loss(adapters):
        value, output = rewarded.loss("adapters", params | {"adapters": adapters}, BATCH, KEY, Axis(), np.int32(0))
        return value, output.metrics

    return jax.value_and_grad(loss, has_aux=True)(params["adapters"])


@pytest.mark.slow
def test_without_changes_it_is_its_base(same):
    rewarded, params = method(), fresh()
    params = params | jax.jit(rewarded.init)(jax.random.key(0), BATCH)
    made = rewarded.sample(params, KEYS, BATCH["cond"], SHAPE, **STEPS)
    assert same(made, Easy(rewarded.base).sample(base_of(params), KEYS, BATCH["cond"], SHAPE, **STEPS))
    assert set(rewarded.init(KEY, BATCH)) == {"adapters"} and rewarded.players == ("adapters",)


@pytest.mark.parametrize(
    "ability",
    ["generate", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sample", "sample_trajectory"))],
)
def test_abilities_see_the_changes(ability, same):
    rewarded, params = method(), fresh()
    merged = lora.merge(base_of(params), params["adapters"], rewarded.alpha)
    noise = jax.vmap(lambda key: jax.random.normal(key, SHAPE))(KEYS)
    first = (noise, BATCH["cond"]) if ability == "generate" else (KEYS, BATCH["cond"], SHAPE)
    options = STEPS | ({"sampler": "ddim"} if ability == "sample_trajectory" else {})
    found = getattr(rewarded, ability)(params, *first, **options)
    assert same(found, getattr(Easy(rewarded.base), ability)(merged, *first, **options))
    still = params | {"adapters": jax.tree.map(jnp.zeros_like, params["adapters"])}
    assert not np.allclose(found, getattr(rewarded, ability)(still, *first, **options))


@pytest.mark.slow
def test_the_direct_gradient_is_that_of_the_mean_reward_of_images():
    rewarded, params = method(), fresh()
    (loss, metrics), grads = loss_of(rewarded, params)

    def mean_reward(adapters):
        noise = rewarded.draw_noise(jax.random.split(KEY, 8), SHAPE)
        made = rewarded.generate(params | {"adapters": adapters}, noise, BATCH["cond"], **STEPS)
        return jnp.clip(made, -1, 1).mean()

    value, expected = jax.jit(jax.value_and_grad(mean_reward))(params["adapters"])
    np.testing.assert_allclose(-loss, value, rtol=1e-5)
    np.testing.assert_allclose(metrics["reward"], value, rtol=1e-5)
    for found, right in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(-found, right, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_derivatives_of_the_last_step_alone_take_the_one_before_for_given():
    """DRaFT-1: z at the last step is what it is, and x = z - t v(z, t) alone is derived."""
    rewarded, params = method(sampling=STEPS | {"sampler": "ddim", "last": 1}), fresh()
    (loss, _), grads = loss_of(rewarded, params)
    (whole, _), other = loss_of(method(sampling=STEPS | {"sampler": "ddim"}), params)
    np.testing.assert_allclose(loss, whole, rtol=1e-5)
    options = STEPS | {"sampler": "ddim", "eta": 0.0}
    states = rewarded.sample_trajectory(params, jax.random.split(KEY, 8), BATCH["cond"], SHAPE, **options)
    z, t = states[-2], jnp.full(8, 1 / 3)

    def last(adapters):
        merged = rewarded.base_params(params | {"adapters": adapters})
        return -jnp.clip(z - t[0] * rewarded.base.apply(merged, z, t, BATCH["cond"]), -1, 1).mean()

    expected = jax.jit(jax.grad(last))(params["adapters"])
    for found, right in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-3, atol=1e-6)
    assert not np.allclose(grads[LAST]["b"], other[LAST]["b"], rtol=1e-2)


def test_the_density_of_a_trajectory_is_that_of_its_draws():
    """z_s = mean + std noise, and the noise is known."""
    rewarded, params = method(), fresh()
    options = dict(steps=4, sampler="ddim", eta=1.0)
    states = rewarded.sample_trajectory(params, KEYS, BATCH["cond"], SHAPE, **options)
    assert states.shape == (5, 8, *SHAPE)
    np.testing.assert_allclose(
        states[-1],
        rewarded.sample(params, KEYS, BATCH["cond"], SHAPE, **options),
        rtol=1e-4,
        atol=1e-4,
    )
    found = rewarded.trajectory_log_prob(params, states, BATCH["cond"], **options)
    rng_steps = jax.vmap(jax.random.split)(KEYS)[:, 1]
    for i, (t, s) in enumerate([(1.0, 0.75), (0.75, 0.5), (0.5, 0.25)]):
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(rng_steps, i)
        noise = np.asarray(jax.vmap(lambda key: jax.random.normal(key, SHAPE))(keys), np.float64)
        std = np.sqrt((s / t) ** 2 * (t**2 - ((1 - t) / (1 - s) * s) ** 2))
        expected = (-0.5 * noise**2 - 0.5 * np.log(2 * np.pi) - np.log(std)).sum(axis=(1, 2, 3, 4))
        np.testing.assert_allclose(found[i], expected, rtol=1e-4)
    assert found.shape == (3, 8) and rewarded.evaluations(steps=4) == 7


POLICY = dict(gradient="policy", group_size=4, sampling=STEPS | {"sampler": "ddim", "eta": 1.0})


@pytest.mark.slow
def test_policy_needs_no_derivative_of_the_reward():
    """The gradient is - mean of advantage times that of the draws' log-density a dimension."""

    def on_host(pixels, cond):
        mean = lambda x: np.asarray(x).mean(axis=(1, 2, 3, 4))
        return jax.pure_callback(mean, jnp.zeros(8, jnp.float32), pixels)

    rewarded, params = method(reward=RewardOf(on_host, differentiable=False), **POLICY), fresh()
    options = POLICY["sampling"]
    (_, metrics), grads = loss_of(rewarded, params)
    tokens = np.repeat(BATCH["cond"]["tokens"][::4], 4, axis=0)
    states = rewarded.sample_trajectory(params, jax.random.split(KEY, 8), tokens, SHAPE, **options)
    reward = np.clip(states[-1], -1, 1).mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(metrics["reward"], reward.mean(), rtol=1e-4)

    def surrogate(adapters):
        log_prob = rewarded.trajectory_log_prob(params | {"adapters": adapters}, states, tokens, **options)
        return -(advantages(jnp.array(reward), 4) * log_prob).mean() / np.prod(SHAPE)

    expected = jax.jit(jax.grad(surrogate))(params["adapters"])
    found, right = (jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in (grads, expected))
    assert jnp.linalg.norm(found - right) < 1e-2 * jnp.linalg.norm(right)


def test_policy_takes_the_options_with_a_known_density_by_itself():
    rewarded = method(gradient="policy", group_size=4, sampling=STEPS)
    assert (rewarded.sampling_options.sampler, rewarded.sampling_options.eta) == ("ddim", 1.0)
    loss_of(rewarded, fresh())
    with pytest.raises(UserError, match="last=1 is for derivatives"):
        loss_of(method(gradient="policy", group_size=4, sampling=STEPS | {"last": 1}), fresh())


def test_advantages_are_of_each_group():
    found = advantages(jnp.array([1.0, 3.0, 10.0, 10.0]), 2)
    np.testing.assert_allclose(found, [-1, 1, 0, 0], atol=1e-3)


@pytest.mark.parametrize("penalty", [0.0, 3.0])
@pytest.mark.slow
def test_the_penalty_adds_the_distance_of_the_changes(penalty):
    params = fresh()
    (loss, metrics), _ = loss_of(method(delta_penalty=penalty), params)
    changed = lora.merge(base_of(params), params["adapters"], 8.0)
    names = {name.removeprefix("model/") for name in params["adapters"]}
    before, after = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float64) for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (base_of(params)["model"], changed["model"]))
    )
    share = sum(np.sum((after[n] - before[n]) ** 2) for n in names) / sum(np.sum(before[n] ** 2) for n in names)
    np.testing.assert_allclose(metrics["distance"], share, rtol=1e-3)
    np.testing.assert_allclose(loss, -metrics["reward"] + penalty * share, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
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
        (dict(base=GENERATOR, gradient="policy", sampling={}), ["lacks the ability HasTrajectory", "diffusion"]),
        (dict(base=dict(name="contrastive", net=CLIP)), ["Contrastive lacks the ability Invertible"]),
        (dict(sampling={"step": 3}), ["sampling option of Diffusion 'step'", "steps"]),
        (dict(group_size=1), ["group_size must be in [2, inf)", "1"]),
        (dict(reward=RewardOf(len, differentiable=False)), ["no derivative", "policy"]),
        (dict(target_modules="nothing"), ["nothing", "matches no kernel"]),
    ],
)
def test_settings_that_cannot_be_are_errors(changes, words):
    with pytest.raises(UserError) as error:
        jax.eval_shape(method(**changes).init, KEY, BATCH)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("fields", [{}, {"reward": ""}])
def test_a_missing_reward_is_an_error(fields):
    with pytest.raises(UserError, match="config section method lacks reward"):
        build_method(dict(name="rewarded", base=DIFFUSION) | fields, 20, "float32")


def test_a_group_must_divide_the_batch():
    with pytest.raises(UserError, match="group_size 3 does not divide the 8 samples"):
        loss_of(method(**POLICY | {"group_size": 3}), fresh())


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


@pytest.mark.parametrize(
    "words, reward",
    [
        ("policy", "oracle"),
        pytest.param("reward", "zoo:clip", marks=pytest.mark.slow),
        pytest.param("policy", "zoo:clip", marks=pytest.mark.slow),
    ],
)
def test_training_changes_the_adapters_alone(tiny, trained, tmp_path, same, words, reward):
    changes = {"method.reward": reward, "method.group_size": 2, "loop.grid_every": 2}
    state = loop.train(config_of(tiny, trained, changes, words), tmp_path / "run")
    assert set(state.params) == set(state.optimizer) == set(state.ema) == {"adapters"}
    assert any(np.abs(pair["b"]).max() > 0 for pair in state.params["adapters"].values()) or reward == "oracle"
    again = open_run(tmp_path / "run")
    assert same(again.params["frozen"]["base"], {"model": open_run(trained).params["model"]})
    assert again.sample(["a star"]).shape == (1, 1, 16, 16, 3)
    assert (tmp_path / "run/samples/step_0000002.png").exists()


def reward_of(config):
    """The reward of a new run, as a function of images in [-1, 1] and conditions; its recipe and its data."""
    source, recipe = prepare(config)
    frozen, reward = recipe.dependencies.frozen, recipe.method.reward
    return jax.jit(lambda pixels, cond: reward(frozen, pixels, cond)), recipe, source


@pytest.mark.parametrize("name", ["zoo:clip", "critic", "oracle"])
@pytest.mark.slow
def test_training_and_rerank_share_their_rewards(tiny, trained, critic, name):
    """Of images in whole levels; CLIP's then differs by the rounding of resized pixels."""
    name = str(critic) if name == "critic" else name
    gradient = "policy" if name == "oracle" else "reward"
    reward, recipe, source = reward_of(config_of(tiny, trained, {"method.reward": name}, gradient))
    items = [source[i] for i in range(6)]
    images, texts = np.stack([item["inputs"] for item in items]), [item["text"] for item in items]
    texts[3] = texts[4]
    found = reward(images / np.float32(127.5) - 1, recipe.conditions(texts))
    expected = get_reward(name, "one")(images, texts)
    scale = {"oracle": 2.0}.get(name, 1.0)
    if name == "zoo:clip":
        assert np.corrcoef(found, expected)[0, 1] > 0.99
    else:
        np.testing.assert_allclose(np.asarray(found) * scale, expected, rtol=1e-4, atol=1e-4)


def test_a_reward_gets_the_images_that_latents_decode_to(tiny, trained):
    _, recipe = prepare(config_of(tiny, trained, {"method.reward": "zoo:clip"}))
    latents = RNG.uniform(-3, 3, (2, 1, 16, 16, 3)).astype(np.float32)
    cond, frozen = recipe.conditions(["a red circle", "a blue star"]), recipe.dependencies.frozen
    expected = recipe.method.reward(frozen, np.clip(latents / 2, -1, 1), cond)
    codec = SimpleNamespace(decode=lambda frozen, z: z / frozen["latents"])
    found = dataclasses.replace(recipe.method.reward, codec=codec)(frozen | {"latents": 2}, latents, cond)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_critic_of_latents_encodes_what_it_scores(critic):
    run, captions = open_run(critic), ["a red circle", "a blue star"]
    images = RNG.integers(256, size=(2, 1, 16, 16, 3), dtype=np.uint8)
    pixels = images / np.float32(127.5) - 1
    expected = run.method.score(run.params, pixels / 2, run.conditions(captions))
    run.recipe.codec = SimpleNamespace(encode=lambda frozen, x: x / frozen["latents"])
    run = dataclasses.replace(run, params=run.params | {"frozen": {"latents": jnp.float32(2)}})
    np.testing.assert_allclose(model_eval.score(run, images, captions), expected, rtol=1e-4, atol=1e-5)
    reward = rewards.build_reward(run, "scenes/one", run.shape, None, run.recipe.tokenizer, None)
    found = reward({"reward": run.params}, pixels, run.conditions(captions))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_changed_run_is_a_guide_with_its_changes():
    rewarded, params = method(), fresh()
    guide = Guide(rewarded.method, params)
    make = functools.partial(rewarded.sample, params, KEYS, BATCH["cond"], SHAPE, **STEPS)
    np.testing.assert_allclose(make(guidance=2.0, guide=guide), make(), atol=1e-4)  # nothing to guide away from
    bare = Guide(rewarded.base, base_of(params))
    assert not np.allclose(make(guidance=2.0, guide=bare), make(), atol=1e-2)


def test_videos_are_scored_at_their_own_rate_not_at_that_of_the_scoring_run():
    conditions = lambda texts: {"tokens": np.zeros((len(texts), 3), "i4"), "frame_rate": np.full(len(texts), 4.0, "f4")}
    its, own = SimpleNamespace(conditions=conditions), SimpleNamespace(decode=lambda tokens: ["a star"] * len(tokens))
    cond = {"tokens": jnp.ones((2, 5), jnp.int32), "frame_rate": jnp.array([8.0, 16.0])}
    found = rewards.ScoreReward(its, own)._its_conditions(cond)
    assert found["frame_rate"].tolist() == [8.0, 16.0] and found["tokens"].shape == (2, 3)


@pytest.mark.slow
def test_a_critic_of_other_words_reads_the_caption_again(tiny, trained, tmp_path):
    data = {"data.source": "scenes/one?examples=8&omit=0", "data.text_length": 20}
    loop.train(tiny(data | {"loop.steps": 1, "loop.grid_every": 0}, "configs/gan.py:test"), tmp_path / "critic")
    reward, recipe, _ = reward_of(config_of(tiny, trained, {"method.reward": str(tmp_path / "critic")}))
    run, texts = open_run(tmp_path / "critic"), ["a large red circle", "a blue star"]
    pixels = RNG.uniform(-1, 1, (2, 1, 16, 16, 3)).astype(np.float32)
    assert run.recipe.tokenizer.to_json() != recipe.tokenizer.to_json()
    expected = run.method.score(run.params, pixels, run.conditions(texts))
    np.testing.assert_allclose(reward(pixels, recipe.conditions(texts)), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def rewarded_run(tiny, trained, tmp_path_factory):
    """Workdir of a run by a reward, whose changes are not zero."""
    workdir = tmp_path_factory.mktemp("rewarded") / "run"
    changes = {"method.reward": "zoo:clip", "loop.steps": 1, "players.adapters.learning_rate": 0.1}
    loop.train(config_of(tiny, trained, changes), workdir)
    return workdir


def merged_of(workdir):
    run = open_run(workdir)
    return jax.tree.map(np.asarray, run.method.base_params(run.params)["model"])


@pytest.mark.slow
def test_a_run_starts_from_a_rewarded_one_with_its_changes(tiny, rewarded_run, same):
    _, recipe = prepare(tiny({"init": str(rewarded_run)}))
    assert same(jax.tree.map(np.asarray, recipe.initial_state().params["model"]), merged_of(rewarded_run))


@pytest.mark.slow
def test_a_rewarded_run_can_be_the_base_of_another(tiny, rewarded_run, tmp_path, same):
    changes = {"method.reward": "zoo:clip", "loop.steps": 1}
    loop.train(config_of(tiny, rewarded_run, changes), tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert same(jax.tree.map(np.asarray, run.params["frozen"]["base"]["model"]), merged_of(rewarded_run))
    assert run.sample(["a star"]).shape == (1, 1, 16, 16, 3)


@pytest.mark.slow
def test_a_rewarded_run_serves_as_feature_network(tiny, rewarded_run, tmp_path):
    changes = {"method.feature_network": str(rewarded_run), "loop.grid_every": 0}
    loop.train(tiny(changes | {"loop.steps": 1}, "configs/gan.py:projected,test"), tmp_path / "run")
    assert open_run(tmp_path / "run").step == 1


@pytest.mark.slow
def test_a_clip_that_was_trained_here_rewards_a_run_that_resumes(tiny, trained, tmp_path):
    """Its temperature is a single number, which the file of frozen networks must keep."""
    loop.train(tiny({"loop.steps": 1}, "configs/clip.py:test"), tmp_path / "clip")
    config = config_of(tiny, trained, {"method.reward": str(tmp_path / "clip"), "loop.steps": 1})
    loop.train(config, tmp_path / "run")
    config.loop.steps = 2
    assert loop.train(config, tmp_path / "run").step == 2


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"init": ""}, ["--config.init=RUN"]),
        ({"method.reward": "no/such/run"}, ["method.reward", "no/such/run"]),
        ({"method.reward": "zoo:clop"}, ["method.reward", "'clop'", "clip"]),
        ({"method.reward": "oracle"}, ["no derivative", "policy"]),
        ({"method.reward": "TRAINED"}, ["method.reward", "lacks the ability Scorer", "contrastive"]),
    ],
)
def test_what_cannot_reward_is_an_error(tiny, trained, tmp_path, changes, words):
    changes = {key: str(trained) if value == "TRAINED" else value for key, value in changes.items()}
    with pytest.raises(UserError) as error:
        loop.train(config_of(tiny, trained, changes), tmp_path / "run")
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.slow
def test_a_critic_of_another_size_cannot_reward(tiny, trained, critic, tmp_path):
    with pytest.raises(UserError, match=r"\(1, 16, 16, 3\).*data.size"):
        loop.train(config_of(tiny, trained, {"data.size": 32, "method.reward": str(critic)}), tmp_path / "run")


def test_the_oracle_rewards_scenes_alone():
    with pytest.raises(UserError, match="folder:somewhere"):
        rewards.build_reward(None, "folder:somewhere", (1, 16, 16, 3), None, None, None)
