"""The critic as a plug-in: two players, their losses and penalties; and the generator that has no loss of its own."""

import dataclasses
import functools
import math
import re
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import Easy
from zoo import loop
from zoo.conditions import END
from zoo.errors import UserError
from zoo.families import build_method, require
from zoo.method import Axis, to_float
from zoo.methods import generator
from zoo.methods.augmentations import AUGMENTATIONS, augment
from zoo.nets.conditioning import build_network
from zoo.nets.convolution import downsample, upsample
from zoo.nets.critic import Critic, ProjectedCritic, changes
from zoo.runs.dependencies import check_shared, open_run, prepare
from zoo.training import parallel, state
from zoo.training.optim import Optimizer
from zoo.trees import matches
from zoo.wrappers.adversarial import OBJECTIVES

RNG = np.random.default_rng(0)
TEXT = dict(conditioner=dict(width=8, depth=1, heads=2))
EMPTY = np.array([END, 0, 0, 0, 0, 0], np.int32)
CRITIC = dict(patch_size=2, widths=(8, 12), blocks=1, bottleneck=2) | TEXT
GENERATOR = dict(
    name="generator",
    net=dict(patch_size=2, widths=(8, 12), blocks=1, bottleneck=2, attention_size=4, heads=2) | TEXT,
    latent_dim=6,
)
AUTOENCODER = dict(
    name="vae", architecture="autoencoder", net=dict(widths=(8, 8), blocks=1, latent_dim=2, mixtures=1), kl_weight=0.1
)
TARFLOW = dict(
    name="flow",
    net=dict(width=8, heads=2, patch_size=4, blocks=2, depth=1, conditioner=dict(width=8, depth=1, heads=2)),
)
BATCH = {
    "inputs": RNG.integers(256, size=(8, 1, 8, 8, 3), dtype=np.uint8),
    "cond": {"tokens": np.pad(RNG.integers(3, 20, size=(8, 5)), ((0, 0), (0, 1))).astype(np.int32)},
}
KEY = jax.random.key(3)
ZERO = np.int32(0)


def method(base=GENERATOR, critic=CRITIC, **changes):
    section = dict(name="adversarial", base=base, critic=critic) | changes
    opened = section.get("feature_network")
    return build_method(section, 20, "float32", lambda key, name, value, protocol: require(opened, protocol))


@functools.cache
def fresh(family="generator", **changes):
    """Parameters that say something: the last layers, which begin at zero, are moved."""
    base = {"generator": GENERATOR, "vae": AUTOENCODER}[family]
    params = jax.jit(method(base, **changes).init)(jax.random.key(0), BATCH)
    leaves, tree = jax.tree.flatten(params)
    return jax.tree.unflatten(tree, [leaf + 0.05 * RNG.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


def metrics_of(plugin, player, params, batch=BATCH, step=ZERO):
    loss = lambda params, batch: plugin.loss(player, params, batch, KEY, Axis(), step)[1].metrics
    return {name: float(value) for name, value in jax.jit(loss)(params, batch).items()}


def gradient_of(plugin, player, params, step=ZERO):
    loss = lambda own: plugin.loss(player, {**params, player: own}, BATCH, KEY, Axis(), step)[0]
    return jax.jit(jax.grad(loss))(params[player])


# ---- the players


OPTIMIZER = Optimizer(learning_rate=0.01, warmup_steps=0, decay="constant", ema_half_lives=(2.0,))


@functools.cache
def two_steps(devices):
    """Two steps of both players in one compiled call: (state before, state after, metrics)."""
    plugin = method(mismatch=0.5)
    optimizers = dict.fromkeys(("model", "critic"), OPTIMIZER)
    begin = jax.device_get(jax.jit(lambda: state.create(plugin, optimizers, jax.random.key(0), BATCH))())
    axis = parallel.Devices() if devices else Axis()
    step = state.Step(plugin, optimizers, 10, 0, axis)
    calls = [BATCH, jax.tree.map(lambda value: value[::-1].copy(), BATCH)]
    if devices:
        after, metrics = parallel.pmap(step)(parallel.replicate(begin), {}, parallel.stack_and_shard(calls))
        return begin, parallel.unreplicate(after), parallel.unreplicate(metrics)
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *calls)
    return begin, *jax.device_get(jax.jit(step)(begin, {}, stacked))


@pytest.mark.slow
def test_both_players_move_inside_one_pmapped_call():
    begin, after, metrics = two_steps(devices=True)
    for player in ("model", "critic"):
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, begin.params[player], after.params[player])
        assert np.mean(jax.tree.leaves(moved)) > 0.5
    assert {"critic/accuracy", "critic/r1", "model/generator_loss", "model/grad_norm"} <= set(metrics)


@pytest.mark.parametrize("player, other", [("critic", "model"), ("model", "critic")])
@pytest.mark.slow
def test_a_step_of_one_player_leaves_every_bit_of_the_other(player, other, same):
    plugin, optimizers = method(), dict.fromkeys(("model", "critic"), OPTIMIZER)
    begin = jax.device_get(jax.jit(lambda: state.create(plugin, optimizers, jax.random.key(0), BATCH))())
    step = state.Step(plugin, optimizers, 10, 0)
    after = jax.device_get(jax.jit(lambda s: step.update_player(player, s, {}, BATCH, KEY)[0])(begin))
    for part in ("params", "optimizer", "ema"):
        assert same(getattr(begin, part)[other], getattr(after, part)[other])
    assert not same(begin.params[player], after.params[player])


@pytest.mark.slow
def test_one_device_and_four_of_the_same_total_batch_agree_where_nothing_is_drawn(monkeypatch):
    """Noise is each device's own, so here there is none."""
    monkeypatch.setattr(generator, "normal_each", lambda rng, shape: jnp.zeros((len(rng), *shape)))
    plugin, params = method(mismatch=0.5), fresh()
    pairs = dict(BATCH, negatives=dict(tokens=BATCH["cond"]["tokens"][::-1].copy()))
    optimizers = dict.fromkeys(("model", "critic"), OPTIMIZER)
    begin = state.create(plugin, optimizers, jax.random.key(0), BATCH)

    def step(params, batch, axis):
        one = state.Step(plugin, optimizers, 10, 0, axis)
        s = begin.replace(params=params)
        return axis.pmean([one.gradient(player, s, {}, batch, KEY)[0] for player in ("critic", "model")])

    alone = jax.jit(lambda p, b: step(p, b, Axis()))(params, pairs)
    devices = parallel.Devices()
    split = jax.tree.map(lambda x: np.asarray(x).reshape(4, 2, *x.shape[1:]), pairs)
    together = parallel.unreplicate(
        jax.pmap(lambda p, b: step(p, b, devices), axis_name=parallel.AXIS_NAME)(parallel.replicate(params), split)
    )
    for one, four in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, four, rtol=1e-5, atol=1e-5)


def test_a_critic_may_step_more_often():
    assert method(critic_steps=3).players == ("critic", "critic", "critic", "model")


# ---- the losses


def test_the_objectives_are_those_of_the_papers():
    real, fake = jnp.array([2.0]), jnp.array([-0.5])
    soft = lambda x: math.log1p(math.exp(x))
    expected = {
        "relativistic": (soft(-2.5), soft(2.5)),
        "hinge": (0.5, 0.5),
        "non_saturating": (soft(-2.0) + soft(-0.5), soft(0.5)),
    }
    assert set(expected) == set(OBJECTIVES)
    for name, values in expected.items():
        for loss, value in zip(OBJECTIVES[name], values, strict=True):
            assert float(loss(real, fake)[0]) == pytest.approx(value, abs=1e-6)


@pytest.mark.slow
def test_r1_and_r2_are_the_squared_gradients_at_real_and_at_fake_images():
    """Against central differences in every pixel."""
    plugin, params = method(), fresh()
    real = BATCH["inputs"].astype(np.float32) / 127.5 - 1
    fake = jax.jit(
        lambda: plugin.undropped.loss("model", params, BATCH, jax.random.split(KEY, 3)[0], Axis(), ZERO)[1]
    )()
    score = jax.jit(plugin.score)
    found = metrics_of(plugin, "critic", params)
    for name, images in (("r1", real), ("r2", np.asarray(fake.fake))):
        squared = np.zeros(len(images))
        for place in np.ndindex(images.shape[1:]):
            step = np.zeros_like(images)
            step[(slice(None), *place)] = 0.02
            slope = score(params, images + step, BATCH["cond"]) - score(params, images - step, BATCH["cond"])
            squared += np.square(np.asarray(slope, np.float64) / 0.04)
        assert found[name] == pytest.approx(squared.mean(), rel=1e-2)


@pytest.mark.slow
def test_the_penalty_by_differences_is_in_the_mean_the_exact_one():
    params = fresh()
    exact = metrics_of(method(), "critic", params)["r1"]
    loss = lambda key: method(penalty="difference").loss("critic", params, BATCH, key, Axis(), ZERO)[1].metrics["r1"]
    drawn = jax.jit(jax.vmap(loss))(jax.random.split(jax.random.key(5), 400))
    error = float(drawn.std()) / 20
    assert abs(float(drawn.mean()) - exact) < 4 * error and error < 0.1 * exact


def test_the_critics_loss_is_the_sum_of_its_parts():
    params = fresh()
    plain = metrics_of(method(r1=0.0, r2=0.0), "critic", params)
    both = metrics_of(method(r1=2.0, r2=3.0), "critic", params)
    assert both["loss"] == pytest.approx(plain["loss"] + both["r1"] + 1.5 * both["r2"], rel=1e-5)


@pytest.mark.slow
def test_wrong_captions_are_a_neighbours_or_those_of_the_data():
    params, plugin = fresh(), method(mismatch=1.0, r1=0.0, r2=0.0)
    without = metrics_of(dataclasses.replace(plugin, mismatch=0.0), "critic", params)["loss"]
    real = BATCH["inputs"].astype(np.float32) / 127.5 - 1
    for wrong in (np.roll(BATCH["cond"]["tokens"], 1, axis=0), BATCH["cond"]["tokens"][::-1].copy()):
        given = {} if wrong[1].tolist() == BATCH["cond"]["tokens"][0].tolist() else {"negatives": {"tokens": wrong}}
        found = metrics_of(plugin, "critic", params, dict(BATCH) | given)
        right, other = (plugin.score(params, real, dict(tokens=tokens)) for tokens in (BATCH["cond"]["tokens"], wrong))
        assert found["loss"] == pytest.approx(without + float(jax.nn.softplus(other - right).mean()), rel=1e-5)
        assert found["pair_accuracy"] == pytest.approx(float((right > other).mean()))


@pytest.mark.slow
def test_pair_accuracy_leaves_out_captions_that_are_not_wrong():
    alike = dict(BATCH, cond=dict(tokens=np.tile(BATCH["cond"]["tokens"][:1], (8, 1))))
    loss, plain = (metrics_of(method(mismatch=weight), "critic", fresh(), alike) for weight in (1.0, 0.0))
    assert loss["loss"] == pytest.approx(plain["loss"], rel=1e-6) and loss["pair_accuracy"] == 0


def test_a_wrong_caption_is_never_one_that_was_dropped():
    """Half of the captions are dropped, and all wrong ones are the neighbours' own."""
    plugin, params = method(dict(GENERATOR, caption_drop=0.5), mismatch=1.0, r1=0.0, r2=0.0), fresh()
    given = dict(BATCH, negatives=dict(tokens=np.roll(BATCH["cond"]["tokens"], 1, axis=0)))
    assert metrics_of(plugin, "critic", params) == metrics_of(plugin, "critic", params, given)


@pytest.mark.slow
def test_the_base_has_the_critics_gradient_from_the_start_step_on():
    params = fresh("vae")
    plugin = method(AUTOENCODER, weight=2.0, base_weight=0.5, start=3)
    before, after = (metrics_of(plugin, "model", params, step=np.int32(step)) for step in (2, 3))
    assert before["loss"] == pytest.approx(0.5 * before["base_loss"]) and before["adversarial_weight"] == 0
    assert after["loss"] == pytest.approx(0.5 * after["base_loss"] + 2 * after["generator_loss"], rel=1e-5)


@pytest.mark.slow
def test_the_adaptive_weight_makes_both_gradients_of_the_last_layer_alike():
    params, on = fresh("vae"), "decoder/head/kernel"
    plugin = method(AUTOENCODER, weight=3.0, last_layer=on)

    def length(**weights):
        gradient = gradient_of(dataclasses.replace(plugin, last_layer="", **weights), "model", params)
        return np.linalg.norm(gradient["network"]["decoder"]["head"]["kernel"])

    ratio = length(weight=0.0) / (length(weight=1.0, base_weight=0.0) + 1e-4)
    assert metrics_of(plugin, "model", params)["adversarial_weight"] == pytest.approx(3 * ratio, rel=1e-3)
    assert sum(jax.tree.leaves(matches(params["model"], on))) == 1


@pytest.mark.slow
def test_the_adaptive_weight_is_one_for_all_devices():
    plugin, devices = method(AUTOENCODER, last_layer="decoder/head/kernel"), parallel.Devices()
    metrics = lambda params, batch: plugin.loss("model", params, batch, KEY, devices, ZERO)[1].metrics
    weight = jax.pmap(lambda params, batch: metrics(params, batch)["adversarial_weight"], axis_name=parallel.AXIS_NAME)
    split = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), BATCH)
    found = np.asarray(weight(parallel.replicate(fresh("vae")), split))
    assert found.shape == (4,) and len(set(found.tolist())) == 1 and found[0] > 0


@pytest.mark.slow
def test_a_base_without_a_loss_needs_no_adaptive_weight():
    assert metrics_of(method(weight=0.7, last_layer="^network/out/kernel"), "model", fresh())[
        "adversarial_weight"
    ] == pytest.approx(0.7)


@pytest.mark.slow
def test_feature_matching_is_nothing_where_the_fake_is_the_image(monkeypatch):
    plugin, params = method(AUTOENCODER, feature_matching=10.0), fresh("vae")
    plain = dataclasses.replace(plugin, feature_matching=0.0)
    more, less = (metrics_of(each, "model", params)["generator_loss"] for each in (plugin, plain))
    assert more > less + 0.1
    perfect = type(plugin.base).loss

    def copies(self, player, params, batch, rng, axis, step):
        loss, output = perfect(self, player, params, batch, rng, axis, step)
        return loss, output.replace(fake=jnp.float32(batch["inputs"]) / 127.5 - 1)

    monkeypatch.setattr(type(plugin.base), "loss", copies)
    assert metrics_of(plugin, "model", params)["generator_loss"] == pytest.approx(math.log(2), rel=1e-5)


@pytest.mark.slow
def test_a_critic_with_noise_gets_noisy_images_and_their_level():
    params = fresh(noise=(0.0, 1.0))
    assert "time" in params["critic"]["network"] and "time" not in fresh()["critic"]["network"]
    real = BATCH["inputs"].astype(np.float32) / 127.5 - 1
    shown, t = method(noise=(0.3, 0.3))._augment_and_noise(KEY, real, -real)
    eps = [(x - 0.7 * pixels) / 0.3 for x, pixels in zip(shown, (real, -real), strict=True)]
    np.testing.assert_allclose(t, 0.3, rtol=1e-6)
    assert all(abs(e.mean()) < 0.1 and abs(e.std() - 1) < 0.1 for e in eps) and abs((eps[0] * eps[1]).mean()) < 0.1
    apply = method(noise=(0.0, 1.0))._apply_critic
    scores = [apply(params, real, BATCH["cond"], jnp.full(8, t)).score for t in (0.0, 0.7)]
    assert np.abs(scores[0] - scores[1]).max() > 1e-4


def test_what_is_compared_has_the_same_noise():
    x = to_float(BATCH["inputs"])
    for feature_matching, alike in ((0.0, False), (1.0, True)):
        (real, fake), _ = method(AUTOENCODER, noise=(0.2, 0.8), feature_matching=feature_matching)._augment_and_noise(
            KEY, x, x
        )
        assert np.array_equal(real, fake) == alike


@pytest.mark.slow
def test_a_critic_is_shown_what_augmentations_make_of_images():
    plain, changed = (metrics_of(method(augmentations=names), "critic", fresh())["loss"] for names in ((), ("colour",)))
    assert abs(plain - changed) > 1e-6


def test_base_and_critic_get_the_same_captions():
    plugin = method(dict(GENERATOR, caption_drop=1.0))
    assert plugin.undropped.caption_drop == 0
    empty = dict(BATCH, cond=dict(tokens=np.tile(np.asarray(EMPTY), (8, 1))))
    dropped = metrics_of(plugin, "critic", fresh())
    assert dropped == pytest.approx(metrics_of(method(), "critic", fresh(), empty), rel=1e-5)


# ---- abilities


def test_the_family_keeps_its_abilities():
    params, plugin = fresh("vae"), method(AUTOENCODER)
    pixels = jnp.zeros((2, 1, 8, 8, 3))
    np.testing.assert_array_equal(plugin.encode(params, pixels), plugin.base.encode(params, pixels))
    assert not hasattr(method(), "bits_per_dim") and not hasattr(method(), "encode")
    assert Easy(method()).evaluations() == 1


@pytest.mark.slow
def test_the_generator_makes_the_same_image_of_the_same_noise_and_can_find_noise():
    gan, params = Easy(method()), fresh()
    keys = jax.random.split(KEY, 2)
    tokens = BATCH["cond"]["tokens"][:2]
    noise = gan.draw_noise(keys, (1, 8, 8, 3))
    made = jax.jit(gan.generate)(params, noise, tokens)
    np.testing.assert_allclose(made, gan.sample(params, keys, tokens, (1, 8, 8, 3)), atol=1e-5)
    assert made.shape == (2, 1, 8, 8, 3) and np.abs(made[0] - made[1]).max() > 1e-3
    found = jax.jit(gan.invert)(params, jax.random.split(jax.random.key(9), 2), made, tokens)
    start = gan.draw_noise(jax.random.split(jax.random.key(9), 2), (1, 8, 8, 3))
    error = lambda noise: np.square(gan.generate(params, noise, tokens) - made).mean()
    assert error(found) < 0.1 * error(start)


def test_noise_and_captions_matter_to_the_generator():
    gan, params = Easy(method()), fresh()
    noise = gan.draw_noise(jax.random.split(KEY, 2), (1, 8, 8, 3))
    one = gan.generate(params, noise, BATCH["cond"]["tokens"][:2])
    assert np.abs(one - gan.generate(params, noise, BATCH["cond"]["tokens"][2:4])).max() > 1e-4
    np.testing.assert_allclose(
        gan.generate(params, noise, BATCH["cond"]["tokens"][:2], temperature=0.0),
        gan.generate(params, 0 * noise, BATCH["cond"]["tokens"][:2]),
        atol=1e-6,
    )


def test_what_blocks_add_does_not_drown_the_noise():
    gan, params = Easy(method()), fresh()
    grown = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 100.0 if re.search(r"block_1_.*up.*bias", jax.tree_util.keystr(path)) else leaf,
        {"model": params["model"]},
    )
    made = gan.generate(
        grown, gan.draw_noise(jax.random.split(KEY, 8), (1, 8, 8, 3)), BATCH["cond"]["tokens"][:1].repeat(8, 0)
    )
    assert jnp.std(made, axis=0).mean() > 0.05 * jnp.abs(made).mean()


# ---- a critic of the features of a frozen network

CONDITIONER = dict(width=8, depth=1, heads=1)
DIFFUSION = dict(name="diffusion", net=dict(width=16, depth=2, heads=2, patch_size=4, conditioner=CONDITIONER))
HEADS = dict(width=8, blocks=1, bottleneck=2) | TEXT


@functools.cache
def feature_network():
    """A diffusion network that is not at its start: (method, parameters)."""
    base = build_method(DIFFUSION, 20, "float32")
    return base, jax.tree.map(lambda leaf: leaf + 0.05, jax.jit(base.init)(jax.random.key(4), BATCH))


def projected(network=None, **changes):
    return method(critic=HEADS, feature_network=network or feature_network()[0], **changes)


def with_features(params, frozen=None):
    return params | {"frozen": {"feature_network": frozen or feature_network()[1]}}


@functools.cache
def projected_params():
    return with_features(jax.tree.map(lambda leaf: leaf + 0.05, jax.jit(projected().init)(jax.random.key(0), BATCH)))


def head(params, features, tokens):
    network = build_network(ProjectedCritic, HEADS, "critic", 20, jnp.float32)
    return network.apply({"params": params["critic"]}, features, cond={"tokens": tokens})


@pytest.mark.slow
def test_a_projected_critic_scores_the_features_of_its_network():
    plugin, params = projected(), projected_params()
    assert set(jax.eval_shape(plugin.init, KEY, BATCH)) == {"critic", "model"}
    pixels, tokens = to_float(BATCH["inputs"]), BATCH["cond"]["tokens"]
    base, frozen = feature_network()
    seen = base.features(frozen, pixels, BATCH["cond"], None)
    expected = head(params, seen, tokens)
    np.testing.assert_allclose(plugin.score(params, pixels, BATCH["cond"]), expected.score, rtol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(expected.features, seen, strict=True))
    reversed_ = plugin.score(params, pixels, {"tokens": tokens[::-1]})
    assert np.abs(expected.score - reversed_).max() > 1e-4


@pytest.mark.slow
def test_a_projected_critic_teaches_through_its_network():
    plugin, params = projected(r1=0.0, r2=0.0), projected_params()
    before = metrics_of(plugin, "model", params)["generator_loss"]
    grads = gradient_of(plugin, "model", params)
    better = jax.tree.map(lambda leaf, grad: leaf - 1e-3 * grad, params["model"], grads)
    assert metrics_of(plugin, "model", params | {"model": better})["generator_loss"] < before


@pytest.mark.slow
def test_a_feature_network_gets_the_noise_level_of_the_critics_input():
    """The critic's loss, put together by hand from the features at the one level of noise there is."""
    plugin, params = projected(noise=(0.4, 0.4), r1=0.0, r2=0.0), projected_params()
    (base, frozen), cond, t = feature_network(), BATCH["cond"], jnp.full(8, 0.4)
    rng_base, _, rng_critic = jax.random.split(KEY, 3)
    fake = plugin.undropped.loss("model", params, BATCH, rng_base, Axis(), ZERO)[1].fake
    shown, _ = plugin._augment_and_noise(jax.random.split(rng_critic)[0], to_float(BATCH["inputs"]), fake)

    def loss_at(t):
        real, made = (head(params, base.features(frozen, x, cond, t), cond["tokens"]).score for x in shown)
        return float(jax.nn.softplus(made - real).mean())

    assert metrics_of(plugin, "critic", params)["loss"] == pytest.approx(loss_at(t), rel=1e-5)
    assert abs(loss_at(None) - loss_at(t)) > 1e-5


def test_features_have_noise_on_the_linear_path_alone():
    base = build_method(DIFFUSION | dict(path="cosine"), 20, "float32")
    with pytest.raises(UserError, match="trained on cosine: set noise=\\(\\)"):
        base.features({}, to_float(BATCH["inputs"]), BATCH["cond"], jnp.zeros(8))


@pytest.mark.slow
def test_a_critic_can_be_the_feature_network_of_another():
    seen = method().features(fresh(), to_float(BATCH["inputs"]), BATCH["cond"], None)
    assert [x.shape for x in seen] == [(8, 1, 4, 4, 8), (8, 1, 2, 2, 12)]
    plugin = projected(method())
    params = with_features(jax.jit(plugin.init)(jax.random.key(0), BATCH), fresh())
    assert plugin.score(params, to_float(BATCH["inputs"]), BATCH["cond"]).shape == (8,)


@pytest.mark.slow
def test_so_can_a_critic_that_has_a_feature_network_itself():
    inner = projected()
    plugin = projected(inner)
    params = with_features(jax.jit(plugin.init)(jax.random.key(0), BATCH), projected_params())
    assert plugin.score(params, to_float(BATCH["inputs"]), BATCH["cond"]).shape == (8,)


@pytest.mark.slow
def test_a_run_with_a_feature_network_opens_it_again_without_the_other_run(tiny, copied, tmp_path, same):
    config = tiny({"method.feature_network": str(copied), "loop.steps": 1}, "configs/gan.py:projected,test")
    expected = open_run(copied).params["model"]
    loop.train(config, tmp_path / "run")
    shutil.rmtree(copied)
    run = open_run(tmp_path / "run")
    pixels = np.zeros((2, 1, 16, 16, 3), np.float32)
    score = run.method.score(run.params, pixels, run.conditions(["a star", "a red ring"]))
    assert np.isfinite(score).all()
    kept = run.params["frozen"]["feature_network"]["model"]
    assert same(jax.tree.map(np.asarray, kept), jax.tree.map(np.asarray, expected))
    config.loop.steps = 2
    assert loop.train(config, tmp_path / "run").step == 2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method.feature_network": "no/such/run"}, "method.feature_network: no such run: 'no/such/run'"),
        ({"data.size": 32}, "method.feature_network: .* images of \\(1, 16, 16, 3\\), not \\(1, 32, 32, 3\\)"),
        ({"data.source": "scenes/one?examples=8&omit=0"}, "method.feature_network: .* has another tokenizer"),
        ({"method.critic.patch_size": 4}, "config key in method.critic 'patch_size'"),
        ({"method.feature_network": "zoo:clip"}, "method.feature_network: zoo:clip has a tokenizer of its own"),
    ],
)
def test_a_feature_network_that_cannot_be_is_an_error(tiny, trained, changes, message):
    config = tiny({"method.feature_network": str(trained)}, "configs/gan.py:projected,test")
    with config.unlocked():
        for key, value in changes.items():
            section, _, name = key.rpartition(".")
            functools.reduce(lambda part, name: part[name], section.split("."), config)[name] = value
    with pytest.raises(UserError, match=message):
        prepare(config)[1].create_state()


def test_a_feature_network_of_other_latents_is_an_error(tiny, trained):
    _, recipe = prepare(tiny({"method.feature_network": str(trained)}, "configs/gan.py:projected,test"))
    recipe.dependencies.runs["latents"] = SimpleNamespace(identity="another")
    with pytest.raises(UserError, match="method.feature_network: .* was trained with another data.latents"):
        check_shared("method.feature_network", str(trained), open_run(trained), recipe)


def test_a_network_without_features_is_an_error():
    with pytest.raises(
        UserError, match="Flow lacks the ability FeatureExtractor; families with it: diffusion, adversarial"
    ):
        projected(build_method(TARFLOW, 20, "float32"))


# ---- networks and augmentations


def test_downsampling_and_upsampling_keep_flat_images_and_are_each_others_transpose():
    flat = np.full((1, 8, 4, 2), 3.0, np.float32)
    np.testing.assert_allclose(downsample(flat), 3.0, atol=1e-6)
    np.testing.assert_allclose(upsample(flat), 3.0, atol=1e-6)
    x, y = RNG.normal(size=(1, 8, 4, 2)), RNG.normal(size=(1, 4, 2, 2))
    np.testing.assert_allclose((downsample(x) * y).sum() * 4, (x * upsample(y)).sum(), rtol=1e-4)


def test_the_finest_stripes_do_not_pass_downsampling():
    stripes = np.tile(np.array([1.0, -1.0], np.float32), 8)[None, :, None, None] * np.ones((1, 1, 16, 1), np.float32)
    assert np.abs(downsample(stripes)[:, 1:-1]).max() < 1e-6


@pytest.mark.slow
def test_a_critic_depends_on_motion():
    video = RNG.normal(size=(2, 3, 8, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(changes(video)[:, 1], video[:, 1] - video[:, 0], atol=1e-6)
    np.testing.assert_array_equal(changes(video)[:, 0], 0.0)
    critic = build_network(Critic, CRITIC, "critic", 20, jnp.float32)
    cond = dict(tokens=BATCH["cond"]["tokens"][:2], frame_rate=jnp.full(2, 8.0))
    params = critic.init(jax.random.key(0), video, cond=cond)
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)
    score, features = critic.apply(params, video, cond=cond)
    assert score.shape == (2,) and [f.shape for f in features] == [(2, 3, 4, 4, 8), (2, 3, 2, 2, 12)]
    backwards, _ = critic.apply(params, video[:, ::-1], cond=cond)
    assert np.abs(score - backwards).max() > 1e-4


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_changes_videos_each_in_its_own_way_and_all_frames_alike(name):
    frame = RNG.uniform(-1, 1, size=(1, 1, 16, 16, 3)).astype(np.float32)
    videos = jnp.tile(frame, (6, 2, 1, 1, 1))
    changed = augment(KEY, videos, (name,))
    np.testing.assert_array_equal(changed[:, 0], changed[:, 1])
    assert len({np.asarray(video).tobytes() for video in changed}) > 3
    np.testing.assert_array_equal(changed, augment(KEY, videos, (name,)))
    gradient = jax.grad(lambda x: jnp.square(augment(KEY, x, (name,))).sum())(videos)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_translation_moves_by_at_most_an_eighth():
    x = jnp.tile(jnp.arange(16.0)[None, None, :, None, None], (32, 1, 1, 16, 1))
    moved = np.asarray(augment(KEY, x, ("translation",)))[:, 0, 8, 8, 0] - 8
    assert set(moved) == {-2, -1, 0, 1, 2}


# ---- bad input


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(objective="relativist"), "unknown objective 'relativist': did you mean 'relativistic'"),
        (dict(penalty="exakt"), "unknown penalty 'exakt': did you mean 'exact'"),
        (dict(critic_steps=0), r"method: critic_steps must be in \[1, inf\), got 0"),
        (dict(noise=(0.5, 0.1)), "method.noise must be .* got \\(0.5, 0.1\\)"),
        (dict(augmentations=("colors",)), "unknown augmentation 'colors'"),
        (dict(feature_matching=1.0), "Generator draws samples: set it to 0"),
        (
            dict(base=dict(name="contrastive", net={})),
            "Contrastive lacks the ability HasFakeSample; families with it: diffusion",
        ),
        (
            dict(base=dict(name="adversarial", base=GENERATOR, critic=CRITIC)),
            "method.base: Adversarial lacks the ability HasFakeSample",
        ),
        (dict(base=dict(name="generater", net={})), "unknown method.base 'generater': did you mean 'generator'"),
        (dict(base=dict(GENERATOR, latent=3)), "config key in method.base 'latent': did you mean 'latent_dim'"),
        (dict(base=dict(GENERATOR, latent_dim=0)), r"method.base: latent_dim must be in \[1, inf\), got 0"),
        (dict(critic=CRITIC | dict(width=3)), "config key in method.critic 'width': did you mean 'widths'"),
        (dict(critic=CRITIC | dict(widths=(8, 8, 8, 8))), "needs sides divisible by 16, got 8 x 8"),
        (dict(base=AUTOENCODER, last_layer="no_such"), "pattern 'no_such' matches no parameter"),
        (dict(base=TARFLOW), "with these settings Flow yields no differentiable sample"),
    ],
)
def test_what_cannot_be_is_an_error(changes, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: method(**changes).init(jax.random.key(0), BATCH))


@pytest.mark.parametrize(
    "shape, message", [((8, 1, 10, 8, 3), "divisible by 4, got 10 x 8"), ((8, 2, 8, 8, 3), "the videos' frame rate")]
)
def test_a_generator_of_another_size_or_of_videos_without_a_rate_is_refused(shape, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(method().init, jax.random.key(0), dict(BATCH, inputs=np.zeros(shape, np.uint8)))
