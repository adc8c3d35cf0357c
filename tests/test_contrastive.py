import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.families import require
from zoo.method import Axis, Method
from zoo.methods.contrastive import Contrastive, cross_entropy, sigmoid_loss
from zoo.runs.sampler import Sampler
from zoo.training import parallel
from zoo.training.optim import Optimizer
from zoo.training.state import Step, create

NET = dict(
    image_size=8,
    patch_size=4,
    width=32,
    depth=1,
    heads=2,
    mlp_width=32,
    text_width=32,
    text_depth=1,
    text_heads=2,
    text_mlp_width=32,
    text_length=6,
    projection=16,
    activation="gelu",
    text_activation="gelu",
    eps=1e-5,
)


def method(**changes):
    return Contrastive(**dict(net=NET, vocab_size=20, dtype=jnp.float32) | changes)


def make_batch(seed=0, size=8, frames=1, negatives=True):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 20, (2, size, 6)).astype(np.int32)
    tokens[..., -1] = 1
    batch = {"inputs": rng.integers(0, 256, (size, frames, 8, 8, 3)).astype(np.uint8), "cond": {"tokens": tokens[0]}}
    return batch | ({"negatives": {"tokens": tokens[1]}} if negatives else {})


def loss_of(model, params, batch):
    return model.loss("model", params, batch, jax.random.key(0), Axis(), 0)


def features(model, params, batch):
    images = model.embed(params, jnp.asarray(batch["inputs"]) / 127.5 - 1, None)
    texts = [model.text_features(params, batch[name]) for name in ("cond", "negatives") if name in batch]
    return np.float64(images), np.concatenate(np.float64(texts))


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("negatives", [True, False])
def test_info_nce_is_the_papers(negatives):
    model, batch = method(), make_batch(negatives=negatives)
    params = model.init(jax.random.key(0), batch)
    loss, output = loss_of(model, params, batch)
    images, texts = features(model, params, batch)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    logits = images @ texts.T / 0.07
    wanted = -(np.diag(log_softmax(logits)).mean() + np.diag(log_softmax(logits[:, :8].T)).mean()) / 2
    assert float(loss) == pytest.approx(wanted, rel=1e-4)
    assert float(output.metrics["accuracy"]) == np.mean(logits.argmax(1) == np.arange(8))
    if negatives:
        pair_accuracy = np.mean(np.diag(logits) > np.diag(logits[:, 8:]))
        assert float(output.metrics["pair_accuracy"]) == pair_accuracy
    assert ("pair_accuracy" in output.metrics) == negatives


def test_siglip_is_the_papers():
    model, batch = method(objective="siglip"), make_batch()
    params = model.init(jax.random.key(0), batch)
    images, texts = features(model, params, batch)
    logits = 10 * images @ texts.T - 10
    sign = np.concatenate([2 * np.eye(8) - 1, -np.ones((8, 8))], axis=1)
    wanted = np.log1p(np.exp(-sign * logits)).sum() / 8
    assert float(loss_of(model, params, batch)[0]) == pytest.approx(wanted, rel=1e-4)


def test_losses_at_known_points():
    own = jnp.arange(4)
    assert float(cross_entropy(jnp.zeros((4, 10)), own)) == pytest.approx(math.log(10))
    assert float(cross_entropy(50.0 * jnp.eye(4), own)) == pytest.approx(0, abs=1e-6)
    assert float(sigmoid_loss(jnp.zeros((4, 10)), own)) == pytest.approx(10 * math.log(2))
    assert float(sigmoid_loss(50.0 * (2 * jnp.eye(4) - 1), own)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("objective", ["info_nce", "siglip"])
def test_a_scale_above_the_limit_keeps_its_derivative(objective):
    """Else no step could bring it back."""
    model, batch = method(objective=objective), make_batch()
    params = model.init(jax.random.key(0), batch)

    def slope(log_scale):
        def loss(log_scale):
            clip = params["model"]["clip"] | {"logit_scale": log_scale}
            return loss_of(model, {"model": params["model"] | {"clip": clip}}, batch)[0]

        return float(jax.grad(loss)(jnp.float32(log_scale)))

    assert slope(6.0) != 0
    if objective == "info_nce":
        assert slope(6.0) == pytest.approx(slope(math.log(100.0)), rel=1e-4)


def test_the_scale_of_siglips_logits_has_no_limit():
    model, batch = method(objective="siglip"), make_batch()
    params = model.init(jax.random.key(0), batch)
    params["model"]["clip"]["logit_scale"] = jnp.float32(6.0)
    assert float(loss_of(model, params, batch)[1].metrics["scale"]) == pytest.approx(math.exp(6.0), rel=1e-5)


def test_the_scale_of_the_logits_is_limited():
    model, batch = method(), make_batch()
    params = model.init(jax.random.key(0), batch)
    params["model"]["clip"]["logit_scale"] = jnp.float32(9.0)
    assert float(loss_of(model, params, batch)[1].metrics["scale"]) == pytest.approx(100.0)


def test_the_features_of_a_video_are_the_mean_of_its_frames():
    model, batch = method(), make_batch(frames=3)
    params = model.init(jax.random.key(0), batch)
    pixels = jnp.asarray(batch["inputs"]) / 127.5 - 1
    frames = np.stack([model.embed(params, pixels[:, i : i + 1], None) for i in range(3)])
    mean = frames.mean(0)
    wanted = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed(params, pixels, None), wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["info_nce", pytest.param("siglip", marks=pytest.mark.slow)])
def test_one_device_and_four_agree_since_all_see_the_whole_batch(objective):
    model = method(objective=objective)
    optimizer = Optimizer(learning_rate=1e-2, warmup_steps=0, decay="constant", ema_half_lives=(2.0,))
    begin = functools.partial(create, model, {"model": optimizer}, jax.random.key(0), make_batch())
    batches = [make_batch(seed) for seed in range(3)]
    steps = {axis: Step(model, {"model": optimizer}, 100, 0, axis) for axis in (Axis(), parallel.Devices())}
    alone, together = steps.values()
    one, metrics = jax.jit(alone)(begin(), {}, jax.tree.map(lambda *x: np.stack(x), *batches))
    four, spread = parallel.pmap(together)(parallel.replicate(begin()), {}, parallel.stack_and_shard(batches))
    four, spread = parallel.unreplicate(four), parallel.unreplicate(spread)
    for name in ("model/loss", "model/grad_norm", "model/accuracy", "model/pair_accuracy"):
        np.testing.assert_allclose(metrics[name], spread[name], rtol=1e-5, atol=1e-5, err_msg=name)
    for (path, a), b in zip(jax.tree.leaves_with_path(one.params), jax.tree.leaves(four.params), strict=True):
        if not jax.tree_util.keystr(path, simple=True, separator="/").endswith("key/bias"):  # has no gradient at all
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=str(path))


def test_an_unknown_objective_is_named():
    with pytest.raises(UserError, match="did you mean 'siglip'"):
        method(objective="siglib").init(jax.random.key(0), make_batch())


def test_it_makes_no_images_and_names_who_does():
    with pytest.raises(UserError, match="Contrastive lacks the ability Generates; families with it: diffusion"):
        Sampler(method(), (1, 8, 8, 3), {})
    assert require(method(), Method)


# ---- videos


def video_batch(frames=4):
    batch = make_batch(frames=frames)
    return batch | {"cond": batch["cond"] | {"frame_rate": np.full(8, 4.0, np.float32)}}


def opened(params):
    """Parameters whose layers of time are not the identity."""
    return jax.tree.map(lambda x: x + 0.5 if not np.any(x) else x, params)


def test_layers_of_time_start_as_the_mean_of_the_frames_and_then_see_their_order():
    model, plain, batch = method(time_layers=1), method(), video_batch()
    params, rate = model.init(jax.random.key(0), batch), batch["cond"]["frame_rate"]
    pixels = jnp.asarray(batch["inputs"]) / 127.5 - 1
    embed = lambda params, pixels, rate=rate: model.embed(params, pixels, rate)
    np.testing.assert_allclose(embed(params, pixels), plain.embed(params, pixels, None), atol=1e-6)
    params = {"model": params["model"] | {"time": opened(params["model"]["time"])}}
    assert np.abs(embed(params, pixels) - embed(params, pixels[:, ::-1])).max() > 1e-3
    assert np.abs(embed(params, pixels) - embed(params, pixels, 2 * rate)).max() > 1e-3
    np.testing.assert_allclose(np.linalg.norm(embed(params, pixels), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embed(params, pixels)[:3], embed(params, pixels[:3], rate[:3]), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "batch", "message"),
    [
        (dict(time_layers=1), make_batch(), "time_layers 1 are for videos"),
        (dict(time_layers=-1), video_batch(), r"time_layers must be in \[0, inf\), got -1"),
        (dict(time_heads=0), make_batch(), "time_heads must be in"),
        (dict(time_layers=1, time_heads=3), video_batch(), "not divisible by heads 3"),
    ],
)
def test_layers_of_time_that_cannot_be(changes, batch, message):
    with pytest.raises(UserError, match=message):
        method(**changes).init(jax.random.key(0), batch)


def test_layers_of_time_need_a_frame_rate():
    with pytest.raises(UserError, match="need the videos' frame rate"):
        model = method(time_layers=1)
        model.score(model.init(jax.random.key(0), video_batch()), jnp.zeros((8, 4, 8, 8, 3)), make_batch()["cond"])
