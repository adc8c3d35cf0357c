"""The critic as a plug-in: two players, their losses and penalties; and the generator that has no loss of its own."""

import dataclasses
import functools
import math
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.augment import AUGMENTATIONS, augment
from zoo.config import build_family
from zoo.data.text import empty_caption
from zoo.errors import BadInput
from zoo.method import Axis, to_float
from zoo.methods import generator
from zoo.methods.adversarial import OBJECTIVES, Adversarial
from zoo.nets.convolution import double, halve
from zoo.nets.critic import Critic, ProjectedCritic, with_motion
from zoo.run import Run, prepare
from zoo.training import loop, parallel, state
from zoo.training.optim import Optimizer
from zoo.trees import matches

RNG = np.random.default_rng(0)
TEXT = dict(text_width=8, text_depth=1, text_heads=2)
CRITIC = dict(patch_size=2, widths=(8, 12), blocks=1, bottleneck=2) | TEXT
GENERATOR = dict(
    name="generator",
    net=dict(patch_size=2, widths=(8, 12), blocks=1, bottleneck=2, attention_size=4, heads=2) | TEXT,
    latent_dim=6,
)
AUTOENCODER = dict(
    name="vae", architecture="autoencoder", net=dict(widths=(8, 8), blocks=1, latent_dim=2, mixtures=1), kl_weight=0.1
)
TARFLOW = dict(name="flow", net=dict(width=8, heads=2, patch_size=4, blocks=2, depth=1, text_width=8, text_depth=1))
BATCH = {
    "pixels": RNG.integers(256, size=(8, 1, 8, 8, 3), dtype=np.uint8),
    "tokens": np.pad(RNG.integers(3, 20, size=(8, 5)), ((0, 0), (0, 1))).astype(np.int32),
}
KEY = jax.random.key(3)
ZERO = np.int32(0)


def method(base=GENERATOR, critic=CRITIC, **changes):
    return Adversarial(base=base, critic=critic, vocab_size=20, dtype=jnp.float32, **changes)


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
    step = state.make_step(plugin, optimizers, 10, 0, axis)
    calls = [BATCH, {name: value[::-1].copy() for name, value in BATCH.items()}]
    if devices:
        after, metrics = parallel.pmap(step)(parallel.replicate(begin), parallel.stack_and_shard(calls))
        return begin, parallel.unreplicate(after), parallel.unreplicate(metrics)
    stacked = jax.tree.map(lambda *parts: np.stack(parts), *calls)
    return begin, *jax.device_get(jax.jit(step)(begin, stacked))


def test_both_players_move_inside_one_pmapped_call():
    begin, after, metrics = two_steps(devices=True)
    for player in ("model", "critic"):
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, begin.params[player], after.params[player])
        assert np.mean(jax.tree.leaves(moved)) > 0.5
    assert {"critic/accuracy", "critic/r1", "model/fooling", "model/grad_norm"} <= set(metrics)


@pytest.mark.parametrize("player, other", [("critic", "model"), ("model", "critic")])
def test_a_step_of_one_player_leaves_every_bit_of_the_other(player, other, same):
    plugin, optimizers = method(), dict.fromkeys(("model", "critic"), OPTIMIZER)
    begin = jax.device_get(jax.jit(lambda: state.create(plugin, optimizers, jax.random.key(0), BATCH))())
    step = lambda s: state.update_player(plugin, player, OPTIMIZER, 10, s, BATCH, KEY, Axis(), 1)[0]
    after = jax.device_get(jax.jit(step)(begin))
    for part in ("params", "optimizer", "ema"):
        assert same(getattr(begin, part)[other], getattr(after, part)[other])
    assert not same(begin.params[player], after.params[player])


def test_one_device_and_four_of_the_same_total_batch_agree_where_nothing_is_drawn(monkeypatch):
    """Noise is each device's own, so here there is none."""
    monkeypatch.setattr(generator, "normal_each", lambda rng, shape: jnp.zeros((len(rng), *shape)))
    plugin, params = method(mismatch=0.5), fresh()
    pairs = dict(BATCH, negatives=BATCH["tokens"][::-1].copy())
    step = lambda params, batch, axis: axis.pmean(
        [state.gradient(plugin, player, params, batch, KEY, axis, ZERO, 1)[0] for player in ("critic", "model")]
    )
    alone = jax.jit(lambda p, b: step(p, b, Axis()))(params, pairs)
    devices = parallel.Devices()
    split = jax.tree.map(lambda x: np.asarray(x).reshape(4, 2, *x.shape[1:]), pairs)
    together = parallel.unreplicate(parallel.pmap(lambda p, b: step(p, b, devices))(parallel.replicate(params), split))
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


def test_r1_and_r2_are_the_squared_gradients_at_real_and_at_fake_pictures():
    """Against central differences in every pixel."""
    plugin, params = method(), fresh()
    real = BATCH["pixels"].astype(np.float32) / 127.5 - 1
    fake = jax.jit(lambda: plugin.wrapped.loss("model", params, BATCH, jax.random.split(KEY, 3)[0], Axis(), ZERO)[1])()
    rate = jax.jit(plugin.rate)
    found = metrics_of(plugin, "critic", params)
    for name, pictures in (("r1", real), ("r2", np.asarray(fake.fake))):
        squared = np.zeros(len(pictures))
        for place in np.ndindex(pictures.shape[1:]):
            step = np.zeros_like(pictures)
            step[(slice(None), *place)] = 0.02
            slope = rate(params, pictures + step, BATCH["tokens"]) - rate(params, pictures - step, BATCH["tokens"])
            squared += np.square(np.asarray(slope, np.float64) / 0.04)
        assert found[name] == pytest.approx(squared.mean(), rel=1e-2)


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


def test_wrong_captions_are_a_neighbours_or_those_of_the_data():
    params, plugin = fresh(), method(mismatch=1.0, r1=0.0, r2=0.0)
    without = metrics_of(dataclasses.replace(plugin, mismatch=0.0), "critic", params)["loss"]
    real = BATCH["pixels"].astype(np.float32) / 127.5 - 1
    for wrong in (np.roll(BATCH["tokens"], 1, axis=0), BATCH["tokens"][::-1].copy()):
        given = {} if wrong[1].tolist() == BATCH["tokens"][0].tolist() else {"negatives": wrong}
        found = metrics_of(plugin, "critic", params, dict(BATCH) | given)
        right, other = (plugin.rate(params, real, tokens) for tokens in (BATCH["tokens"], wrong))
        assert found["loss"] == pytest.approx(without + float(jax.nn.softplus(other - right).mean()), rel=1e-5)
        assert found["told_apart"] == pytest.approx(float((right > other).mean()))


def test_a_caption_that_is_not_wrong_is_not_told_apart():
    alike = dict(BATCH, tokens=np.tile(BATCH["tokens"][:1], (8, 1)))
    loss, plain = (metrics_of(method(mismatch=weight), "critic", fresh(), alike) for weight in (1.0, 0.0))
    assert loss["loss"] == pytest.approx(plain["loss"], rel=1e-6) and loss["told_apart"] == 0


def test_a_wrong_caption_is_never_one_that_was_dropped():
    """Half of the captions are dropped, and all wrong ones are the neighbours' own."""
    plugin, params = method(dict(GENERATOR, caption_drop=0.5), mismatch=1.0, r1=0.0, r2=0.0), fresh()
    given = dict(BATCH, negatives=np.roll(BATCH["tokens"], 1, axis=0))
    assert metrics_of(plugin, "critic", params) == metrics_of(plugin, "critic", params, given)


def test_the_base_feels_the_critic_from_the_start_step_on():
    params = fresh("vae")
    plugin = method(AUTOENCODER, weight=2.0, base_weight=0.5, start=3)
    before, after = (metrics_of(plugin, "model", params, step=np.int32(step)) for step in (2, 3))
    assert before["loss"] == pytest.approx(0.5 * before["base_loss"]) and before["share"] == 0
    assert after["loss"] == pytest.approx(0.5 * after["base_loss"] + 2 * after["fooling"], rel=1e-5)


def test_the_adaptive_weight_makes_both_gradients_of_the_last_layer_alike():
    params, on = fresh("vae"), "decoder/head/kernel"
    plugin = method(AUTOENCODER, weight=3.0, adaptive_on=on)

    def length(**weights):
        gradient = gradient_of(dataclasses.replace(plugin, adaptive_on="", **weights), "model", params)
        return np.linalg.norm(gradient["decoder"]["head"]["kernel"])

    ratio = length(weight=0.0) / (length(weight=1.0, base_weight=0.0) + 1e-4)
    assert metrics_of(plugin, "model", params)["share"] == pytest.approx(3 * ratio, rel=1e-3)
    assert sum(jax.tree.leaves(matches(params["model"], on))) == 1


def test_the_adaptive_weight_is_one_for_all_devices():
    plugin, devices = method(AUTOENCODER, adaptive_on="decoder/head/kernel"), parallel.Devices()
    metrics = lambda params, batch: plugin.loss("model", params, batch, KEY, devices, ZERO)[1].metrics
    share = parallel.pmap(lambda params, batch: (params, metrics(params, batch)["share"]))
    split = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), BATCH)
    found = np.asarray(share(parallel.replicate(fresh("vae")), split)[1])
    assert found.shape == (4,) and len(set(found.tolist())) == 1 and found[0] > 0


def test_a_base_without_a_loss_needs_no_adaptive_weight():
    assert metrics_of(method(weight=0.7, adaptive_on="^out/kernel"), "model", fresh())["share"] == pytest.approx(0.7)


def test_feature_matching_is_nothing_where_the_fake_is_the_picture(monkeypatch):
    plugin, params = method(AUTOENCODER, feature_matching=10.0), fresh("vae")
    plain = dataclasses.replace(plugin, feature_matching=0.0)
    more, less = (metrics_of(each, "model", params)["fooling"] for each in (plugin, plain))
    assert more > less + 0.1
    perfect = type(plugin.wrapped).loss

    def copying(self, player, params, batch, rng, axis, step):
        loss, output = perfect(self, player, params, batch, rng, axis, step)
        return loss, output.replace(fake=jnp.float32(batch["pixels"]) / 127.5 - 1)

    monkeypatch.setattr(type(plugin.wrapped), "loss", copying)
    assert metrics_of(plugin, "model", params)["fooling"] == pytest.approx(math.log(2), rel=1e-5)


def test_a_critic_that_knows_noise_is_shown_and_told_of_it():
    params = fresh(noise=(0.0, 1.0))
    assert "time" in params["critic"] and "time" not in fresh()["critic"]
    real = BATCH["pixels"].astype(np.float32) / 127.5 - 1
    shown, t = method(noise=(0.3, 0.3))._show(KEY, real, -real)
    eps = [(x - 0.7 * pixels) / 0.3 for x, pixels in zip(shown, (real, -real), strict=True)]
    np.testing.assert_allclose(t, 0.3, rtol=1e-6)
    assert all(abs(e.mean()) < 0.1 and abs(e.std() - 1) < 0.1 for e in eps) and abs((eps[0] * eps[1]).mean()) < 0.1
    judge = method(noise=(0.0, 1.0))._judge
    told = [judge(params, real, BATCH["tokens"], jnp.full(8, t)).score for t in (0.0, 0.7)]
    assert np.abs(told[0] - told[1]).max() > 1e-4


def test_what_is_compared_has_the_same_noise():
    x = to_float(BATCH["pixels"])
    for feature_matching, alike in ((0.0, False), (1.0, True)):
        (real, fake), _ = method(AUTOENCODER, noise=(0.2, 0.8), feature_matching=feature_matching)._show(KEY, x, x)
        assert np.array_equal(real, fake) == alike


def test_a_critic_is_shown_what_augmentations_make_of_pictures():
    plain, changed = (metrics_of(method(augmentations=names), "critic", fresh())["loss"] for names in ((), ("colour",)))
    assert abs(plain - changed) > 1e-6


def test_base_and_critic_hear_the_same_captions():
    plugin = method(dict(GENERATOR, caption_drop=1.0))
    assert plugin.wrapped.caption_drop == 0
    empty = dict(BATCH, tokens=np.tile(np.asarray(empty_caption(6)), (8, 1)))
    dropped = metrics_of(plugin, "critic", fresh())
    assert dropped == pytest.approx(metrics_of(method(), "critic", fresh(), empty), rel=1e-5)


# ---- abilities


def test_the_family_keeps_its_abilities():
    params, plugin = fresh("vae"), method(AUTOENCODER)
    pixels = jnp.zeros((2, 1, 8, 8, 3))
    np.testing.assert_array_equal(plugin.encode(params, pixels), plugin.wrapped.encode(params, pixels))
    assert not hasattr(method(), "bits_per_dim") and not hasattr(method(), "encode")
    assert method().evaluations() == 1


def test_the_generator_makes_the_same_picture_of_the_same_noise_and_can_find_noise():
    gan, params = method(), fresh()
    keys = jax.random.split(KEY, 2)
    tokens = BATCH["tokens"][:2]
    noise = gan.draw_noise(keys, (1, 8, 8, 3))
    made = jax.jit(gan.generate)(params, noise, tokens)
    np.testing.assert_allclose(made, gan.sample(params, keys, tokens, (1, 8, 8, 3)), atol=1e-5)
    assert made.shape == (2, 1, 8, 8, 3) and np.abs(made[0] - made[1]).max() > 1e-3
    found = jax.jit(gan.invert)(params, jax.random.split(jax.random.key(9), 2), made, tokens)
    start = gan.draw_noise(jax.random.split(jax.random.key(9), 2), (1, 8, 8, 3))
    error = lambda noise: np.square(gan.generate(params, noise, tokens) - made).mean()
    assert error(found) < 0.1 * error(start)


def test_noise_and_captions_matter_to_the_generator():
    gan, params = method(), fresh()
    noise = gan.draw_noise(jax.random.split(KEY, 2), (1, 8, 8, 3))
    one = gan.generate(params, noise, BATCH["tokens"][:2])
    assert np.abs(one - gan.generate(params, noise, BATCH["tokens"][2:4])).max() > 1e-4
    np.testing.assert_allclose(
        gan.generate(params, noise, BATCH["tokens"][:2], temperature=0.0),
        gan.generate(params, 0 * noise, BATCH["tokens"][:2]),
        atol=1e-6,
    )


def test_what_blocks_add_does_not_drown_the_noise():
    gan, params = method(), fresh()
    grown = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf + 100.0 if re.search(r"block_1_.*up.*bias", jax.tree_util.keystr(path)) else leaf,
        {"model": params["model"]},
    )
    made = gan.generate(grown, gan.draw_noise(jax.random.split(KEY, 8), (1, 8, 8, 3)), BATCH["tokens"][:1].repeat(8, 0))
    assert jnp.std(made, axis=0).mean() > 0.05 * jnp.abs(made).mean()


# ---- a critic that looks through a frozen network

DIFFUSION = dict(name="diffusion", net=dict(width=16, depth=2, heads=2, patch_size=4, text_width=8, text_depth=1))
HEADS = dict(width=8, blocks=1, bottleneck=2) | TEXT


@functools.cache
def trunk():
    """A diffusion network that says something: (method, parameters)."""
    base = build_family(DIFFUSION, "method", 20, jnp.float32)
    return base, jax.tree.map(lambda leaf: leaf + 0.05, jax.jit(base.init)(jax.random.key(4), BATCH))


def projected(**changes):
    return method(critic=HEADS, trunk="runs/trunk", **changes).given({"method.trunk": trunk()})


@functools.cache
def projected_params():
    return jax.tree.map(lambda leaf: leaf + 0.05, jax.jit(projected().init)(jax.random.key(0), BATCH))


def test_a_projected_critic_judges_what_the_trunk_sees():
    plugin, params = projected(), projected_params()
    assert plugin.needs_runs == {"method.trunk": "runs/trunk"} and set(params) == {"critic", "model"}
    pixels = to_float(BATCH["pixels"])
    base, frozen = trunk()
    seen = base.see(frozen, pixels, BATCH["tokens"], None)
    expected = ProjectedCritic(vocab_size=20, **HEADS).apply({"params": params["critic"]}, seen, BATCH["tokens"])
    np.testing.assert_allclose(plugin.rate(params, pixels, BATCH["tokens"]), expected.score, rtol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(expected.features, seen, strict=True))
    assert np.abs(expected.score - plugin.rate(params, pixels, BATCH["tokens"][::-1])).max() > 1e-4


def test_a_projected_critic_teaches_through_its_trunk():
    plugin, params = projected(r1=0.0, r2=0.0), projected_params()
    before = metrics_of(plugin, "model", params)["fooling"]
    grads = gradient_of(plugin, "model", params)
    better = jax.tree.map(lambda leaf, grad: leaf - 1e-3 * grad, params["model"], grads)
    assert metrics_of(plugin, "model", params | {"model": better})["fooling"] < before


def test_a_trunk_is_told_the_noise_that_the_critic_is_shown():
    """The critic's loss, put together by hand from what the trunk sees at the one level of noise there is."""
    plugin, params = projected(noise=(0.4, 0.4), r1=0.0, r2=0.0), projected_params()
    (base, frozen), tokens, t = trunk(), BATCH["tokens"], jnp.full(8, 0.4)
    rng_base, _, rng_critic = jax.random.split(KEY, 3)
    fake = plugin.wrapped.loss("model", params, BATCH, rng_base, Axis(), ZERO)[1].fake
    shown, _ = plugin._show(jax.random.split(rng_critic)[0], to_float(BATCH["pixels"]), fake)
    head = lambda seen: ProjectedCritic(vocab_size=20, **HEADS).apply({"params": params["critic"]}, seen, tokens).score

    def loss_where_told(t):
        real, made = (head(base.see(frozen, x, tokens, t)) for x in shown)
        return float(jax.nn.softplus(made - real).mean())

    assert metrics_of(plugin, "critic", params)["loss"] == pytest.approx(loss_where_told(t), rel=1e-5)
    assert abs(loss_where_told(None) - loss_where_told(t)) > 1e-5


def test_a_trunk_knows_noise_on_the_linear_path_alone():
    base = build_family(DIFFUSION | dict(path="cosine"), "method", 20, jnp.float32)
    with pytest.raises(BadInput, match="trained on cosine: set noise=\\(\\)"):
        base.see({}, to_float(BATCH["pixels"]), BATCH["tokens"], jnp.zeros(8))


def test_a_trunk_has_second_derivatives_whatever_its_attention():
    """cuDNN's has none, and is refused where there is no such device."""
    base = build_family(DIFFUSION | dict(net=DIFFUSION["net"] | dict(attention="cudnn")), "method", 20, jnp.float32)
    plain, frozen = trunk()
    x = to_float(BATCH["pixels"])
    seen, expected = (m.see(frozen, x, BATCH["tokens"], None) for m in (base, plain))
    np.testing.assert_array_equal(seen[-1], expected[-1])


def test_a_critic_can_be_the_trunk_of_another():
    seen = method().see(fresh(), to_float(BATCH["pixels"]), BATCH["tokens"], None)
    assert [x.shape for x in seen] == [(8, 1, 4, 4, 8), (8, 1, 2, 2, 12)]
    leaning = method(critic=HEADS, trunk="x").given({"method.trunk": (method(), fresh())})
    params = jax.jit(leaning.init)(jax.random.key(0), BATCH)
    assert leaning.rate(params, to_float(BATCH["pixels"]), BATCH["tokens"]).shape == (8,)


def test_a_run_with_a_trunk_opens_it_again(tiny, trained, tmp_path):
    config = tiny({"method.trunk": str(trained), "loop.steps": 1}, "configs/gan.py:projected,test")
    loop.train(config, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    pixels = np.zeros((2, 1, 16, 16, 3), np.float32)
    score = run.recipe.method.rate(run.params, pixels, run.recipe.tokenizer.encode(["a star", "a red ring"]))
    assert np.isfinite(score).all()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method.trunk": "no/such/run"}, "method.trunk: no such run: 'no/such/run'"),
        ({"data.size": 32}, "method.trunk: .* sees examples of \\(1, 16, 16, 3\\), not \\(1, 32, 32, 3\\)"),
        ({"data.source": "scenes/one?examples=8&omit=0"}, "method.trunk: .* by another tokenizer"),
        ({"method.critic.patch_size": 4}, "config key in method.critic 'patch_size'"),
    ],
)
def test_a_trunk_that_cannot_be_is_told(tiny, trained, changes, message):
    config = tiny({"method.trunk": str(trained)}, "configs/gan.py:projected,test")
    with config.unlocked():
        for key, value in changes.items():
            section, _, name = key.rpartition(".")
            functools.reduce(lambda part, name: part[name], section.split("."), config)[name] = value
    with pytest.raises(BadInput, match=message):
        prepare(config)[1].create_state()


def test_a_trunk_of_other_latents_is_told(tiny, trained):
    _, recipe = prepare(tiny({"method.trunk": str(trained)}, "configs/gan.py:projected,test"))
    recipe.codec = SimpleNamespace(identity="another")
    with pytest.raises(BadInput, match="method.trunk: .* was trained with another data.latents"):
        recipe._with_runs(recipe.method)


def test_a_trunk_that_sees_nothing_is_told():
    leaning = method(critic=HEADS, trunk="x").given(
        {"method.trunk": (build_family(TARFLOW, "method", 20, jnp.float32), {})}
    )
    with pytest.raises(BadInput, match="Flow cannot see; a run of these can: adversarial, diffusion"):
        jax.eval_shape(leaning.init, jax.random.key(0), BATCH)


# ---- networks and augmentations


def test_halving_and_doubling_keep_flat_pictures_and_are_each_others_transpose():
    flat = np.full((1, 8, 4, 2), 3.0, np.float32)
    np.testing.assert_allclose(halve(flat), 3.0, atol=1e-6)
    np.testing.assert_allclose(double(flat), 3.0, atol=1e-6)
    x, y = RNG.normal(size=(1, 8, 4, 2)), RNG.normal(size=(1, 4, 2, 2))
    np.testing.assert_allclose((halve(x) * y).sum() * 4, (x * double(y)).sum(), rtol=1e-4)


def test_the_finest_stripes_do_not_pass_halving():
    stripes = np.tile(np.array([1.0, -1.0], np.float32), 8)[None, :, None, None] * np.ones((1, 1, 16, 1), np.float32)
    assert np.abs(halve(stripes)[:, 1:-1]).max() < 1e-6


def test_a_critic_sees_motion():
    clip = RNG.normal(size=(2, 3, 8, 8, 3)).astype(np.float32)
    seen = with_motion(clip)
    np.testing.assert_allclose(seen[:, 1, ..., 3:], clip[:, 1] - clip[:, 0], atol=1e-6)
    np.testing.assert_array_equal(seen[:, 0, ..., 3:], 0.0)
    critic = Critic(vocab_size=20, **CRITIC)
    params = critic.init(jax.random.key(0), clip, BATCH["tokens"][:2])
    params = jax.tree.map(lambda leaf: leaf + 0.05, params)
    score, features = critic.apply(params, clip, BATCH["tokens"][:2])
    assert score.shape == (2,) and [f.shape for f in features] == [(2, 3, 4, 4, 8), (2, 3, 2, 2, 12)]
    backwards, _ = critic.apply(params, clip[:, ::-1], BATCH["tokens"][:2])
    assert np.abs(score - backwards).max() > 1e-4


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_augmentation_changes_clips_each_in_its_own_way_and_all_frames_alike(name):
    frame = RNG.uniform(-1, 1, size=(1, 1, 16, 16, 3)).astype(np.float32)
    clips = jnp.tile(frame, (6, 2, 1, 1, 1))
    changed = augment(KEY, clips, (name,))
    np.testing.assert_array_equal(changed[:, 0], changed[:, 1])
    assert len({np.asarray(clip).tobytes() for clip in changed}) > 3
    np.testing.assert_array_equal(changed, augment(KEY, clips, (name,)))
    gradient = jax.grad(lambda x: jnp.square(augment(KEY, x, (name,))).sum())(clips)
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
        (dict(critic_steps=0), "method.critic_steps must be at least 1, got 0"),
        (dict(noise=(0.5, 0.1)), "method.noise must be .* got \\(0.5, 0.1\\)"),
        (dict(augmentations=("colors",)), "unknown augmentation 'colors'"),
        (dict(feature_matching=1.0), "generator makes fresh ones"),
        (dict(base=dict(name="contrastive", net={})), "contrastive shows a critic no picture; these do: .*diffusion"),
        (dict(base=dict(name="adversarial", base=GENERATOR, critic=CRITIC)), "adversarial shows a critic no picture"),
        (dict(base=dict(name="generater", net={})), "unknown method.base 'generater': did you mean 'generator'"),
        (dict(base=dict(GENERATOR, latent=3)), "config key in method.base 'latent': did you mean 'latent_dim'"),
        (dict(base=dict(GENERATOR, latent_dim=0)), "latent_dim must be at least 1"),
        (dict(critic=CRITIC | dict(width=3)), "config key in method.critic 'width': did you mean 'widths'"),
        (dict(critic=CRITIC | dict(widths=(8, 8, 8, 8))), "needs sides divisible by 16, got 8 x 8"),
        (dict(base=AUTOENCODER, adaptive_on="no_such"), "pattern 'no_such' matches no parameter"),
        (dict(base=TARFLOW), "with these settings flow shows a critic no picture"),
    ],
)
def test_what_cannot_be_is_told(changes, message):
    with pytest.raises(BadInput, match=message):
        jax.eval_shape(method(**changes).init, jax.random.key(0), BATCH)


@pytest.mark.parametrize(
    "shape, message", [((8, 1, 10, 8, 3), "divisible by 4, got 10 x 8"), ((8, 2, 8, 8, 3), "not clips of 2 frames")]
)
def test_a_generator_of_another_size_or_of_clips_is_refused(shape, message):
    with pytest.raises(BadInput, match=message):
        jax.eval_shape(method().init, jax.random.key(0), dict(BATCH, pixels=np.zeros(shape, np.uint8)))
