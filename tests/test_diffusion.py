import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import Easy
from zoo import conditions
from zoo.conditions import END
from zoo.config import build
from zoo.diffusion import ode
from zoo.diffusion.paths import PATHS
from zoo.diffusion.samplers import SAMPLERS
from zoo.errors import UserError
from zoo.method import Axis, to_float
from zoo.methods.diffusion import Diffusion, SampleOptions
from zoo.nets.conditioning import TextTransformer
from zoo.nets.transformer import Transformer

NET = dict(width=16, depth=1, heads=2, patch_size=4, conditioner=dict(width=16, depth=1, heads=2))
FIELDS = dict(net=NET, vocab_size=32, dtype=jnp.float32)
SHAPE = (1, 8, 8, 3)
RNG = np.random.default_rng(0)
BATCH = dict(
    inputs=RNG.integers(0, 256, (4, *SHAPE), dtype=np.uint8),
    cond=dict(tokens=np.array([[5, 6, END, 0], [7, END, 0, 0], [8, 9, 10, END], [11, END, 0, 0]], np.int32)),
)
EMPTY = np.array([END, 0, 0, 0], np.int32)
MEAN, STD = 0.3, 0.2  # of the Gaussian "images" that the oracle network knows


def method(**changes):
    return Easy(Diffusion(**FIELDS | changes))


def keys(*numbers):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(jnp.array(numbers))


@pytest.fixture
def simple(monkeypatch):
    """A network that is one line, and what it was last asked; its parameter is a scalar."""
    asked = {}

    def apply(self, params, z, t, cond):
        tokens = cond["tokens"]
        asked.update(z=z, t=t, tokens=tokens)
        words = (tokens % 7).mean(axis=-1).reshape(-1, 1, 1, 1, 1)
        scale = params["model"] if isinstance(params, dict) else params
        return scale * z + 0.1 * words + t.reshape(-1, 1, 1, 1, 1)

    monkeypatch.setattr(Diffusion, "apply", apply)
    return asked


@pytest.fixture
def gaussian(monkeypatch):
    """The perfect network where all pixels are independent Gaussians; a caption of END and pads alone is no other."""

    def apply(self, params, z, t, cond):
        path, place = PATHS[self.path], t.reshape(-1, 1, 1, 1, 1)
        alpha, sigma = path.alpha(place), path.sigma(place)
        surprise = (z - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        x, eps = MEAN + alpha * STD**2 * surprise, sigma * surprise
        return {"x": x, "eps": eps, "v": path.velocity(x, eps, t)}[self.prediction]

    monkeypatch.setattr(Diffusion, "apply", apply)


def loss_of(model, params=0.5, batch=BATCH, seed=0):
    loss, output = model.loss("model", params, batch, jax.random.key(seed), Axis(), 0)
    np.testing.assert_array_equal(output.metrics["loss"], loss)
    return float(loss)


# The loss


@pytest.mark.parametrize("prediction", ["x", "eps", "v"])
def test_loss_is_that_of_numpy(prediction, simple):
    """From z and t alone: the noise is what takes the image to z."""
    loss, output = method(prediction=prediction).loss("model", 0.5, BATCH, jax.random.key(0), Axis(), 0)
    x = BATCH["inputs"].astype(np.float64) / 127.5 - 1
    z, t, tokens = (np.asarray(simple[name], np.float64) for name in ("z", "t", "tokens"))
    t = t.reshape(-1, 1, 1, 1, 1)
    eps = (z - (1 - t) * x) / t
    value = 0.5 * z + 0.1 * (tokens % 7).mean(axis=-1).reshape(-1, 1, 1, 1, 1) + t
    v = {"x": (z - value) / t, "eps": (value - z) / (1 - t), "v": value}[prediction]
    np.testing.assert_allclose(loss, np.mean((v - (eps - x)) ** 2), rtol=1e-4)
    np.testing.assert_allclose(output.fake, z - t * v, atol=1e-4)
    assert abs(eps.mean()) < 0.15
    assert 0.85 < eps.std() < 1.15
    assert len(np.unique(t)) == 4


def test_loss_adds_fresh_noise_to_each_example_and_step(simple):
    same = dict(inputs=np.zeros((2, *SHAPE), np.uint8), cond=dict(tokens=BATCH["cond"]["tokens"][:2]))
    loss_of(method(time_distribution="uniform"), batch=same)
    first = simple["z"]
    eps = (first + (1 - simple["t"].reshape(-1, 1, 1, 1, 1))) / simple["t"].reshape(-1, 1, 1, 1, 1)
    assert abs(np.corrcoef(eps[0].ravel(), eps[1].ravel())[0, 1]) < 0.3
    loss_of(method(time_distribution="uniform"), batch=same, seed=1)
    assert np.abs(simple["z"] - first).min() < np.abs(simple["z"] - first).max()


def test_times_are_never_earlier_than_time_min(simple):
    loss_of(method(time_mean=-3.0, time_min=0.05))
    assert simple["t"].min() == np.float32(0.05)


def test_perfect_prediction_has_no_loss_and_its_fake_is_the_image(monkeypatch):
    x = to_float(BATCH["inputs"])
    monkeypatch.setattr(Diffusion, "apply", lambda self, params, z, t, cond: x)
    loss, output = method(prediction="x").loss("model", {}, BATCH, jax.random.key(0), Axis(), 0)
    assert loss < 1e-8
    np.testing.assert_array_equal(output.fake, x)


def test_fake_has_a_gradient(simple):
    def brightness(params):
        return method().loss("model", params, BATCH, jax.random.key(0), Axis(), 0)[1].fake.mean()

    step = 1e-2
    slope = (brightness(0.5 + step) - brightness(0.5 - step)) / (2 * step)
    found = jax.grad(brightness)(0.5)
    assert abs(found) > 1e-3
    np.testing.assert_allclose(found, slope, rtol=1e-2)


def test_all_captions_dropped_make_the_loss_independent_of_them(simple):
    other = BATCH | dict(cond=dict(tokens=BATCH["cond"]["tokens"][::-1]))
    assert loss_of(method(caption_drop=1.0)) == loss_of(method(caption_drop=1.0), batch=other)
    np.testing.assert_array_equal(simple["tokens"], [[END, 0, 0, 0]] * 4)
    assert loss_of(method(caption_drop=0.0)) != loss_of(method(caption_drop=0.0), batch=other)
    np.testing.assert_array_equal(simple["tokens"], other["cond"]["tokens"])


def test_captions_are_dropped_whole_and_in_the_configured_share():
    tokens = np.tile(BATCH["cond"]["tokens"], (2500, 1))
    dropped = np.asarray(conditions.drop(jax.random.key(0), {"tokens": tokens}, 0.1)["tokens"])
    changed = (dropped != tokens).any(axis=1)
    assert abs(changed.mean() - 0.1) < 0.01
    np.testing.assert_array_equal(dropped[changed], np.tile(EMPTY, (changed.sum(), 1)))


# Sampling


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", ["x", "eps", "v"])
def test_perfect_network_samples_the_gaussian(path, prediction, gaussian):
    model = method(path=path, prediction=prediction)
    tokens = np.tile(EMPTY, (64, 1))
    for options in (dict(sampler="heun", steps=64), dict(sampler="ddim", steps=200, eta=1.0)):
        found = np.asarray(model.sample({}, keys(*range(64)), tokens, SHAPE, **options))
        assert found.shape == (64, *SHAPE)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.mean(), MEAN, atol=0.015, err_msg=str(options))
        np.testing.assert_allclose(found.std(), STD, rtol=0.05, err_msg=str(options))
        assert abs(np.corrcoef(found.reshape(64, -1))[~np.eye(64, dtype=bool)]).mean() < 0.1  # no two are alike


def test_image_does_not_depend_on_those_made_beside_it():
    """With a real network none of whose parameters is zero, guidance, and noise in every step."""
    model, rng = method(), np.random.default_rng(0)
    tree = jax.eval_shape(model.init, jax.random.key(0), BATCH)
    params = jax.tree.map(lambda p: 0.2 * rng.normal(size=p.shape).astype(np.float32), tree)
    options = dict(steps=3, sampler="ddim", eta=1.0, guidance=1.5)
    make = jax.jit(
        lambda rng, tokens: model.sample(params, rng, tokens, SHAPE, **options),
        compiler_options={"xla_backend_optimization_level": 0},  # compiling takes nearly all of the time
    )
    batch = make(keys(7, 8, 9, 10), BATCH["cond"]["tokens"])
    other = make(keys(9, 7, 11, 12), BATCH["cond"]["tokens"][[2, 0, 3, 3]])
    np.testing.assert_allclose(other[:2], batch[np.array([2, 0])], atol=1e-5)
    assert np.abs(batch[0] - batch[1]).max() > 0.1


@pytest.mark.parametrize("options", [dict(sampler="dpmpp_2m"), dict(sampler="ddim", eta=1.0)], ids=["plain", "noisy"])
def test_image_does_not_depend_on_how_many_are_made(options, simple):
    make = functools.partial(method().sample, 0.5, shape=SHAPE, steps=3, guidance=1.5, **options)
    batch = make(keys(7, 8, 9, 10), BATCH["cond"]["tokens"])
    np.testing.assert_allclose(make(keys(9), BATCH["cond"]["tokens"][2:3])[0], batch[2], atol=1e-5)


def test_guidance_zero_is_bit_for_bit_no_guidance(simple):
    model = method()
    make = functools.partial(model.sample, 0.5, keys(1, 2, 3, 4), BATCH["cond"]["tokens"], SHAPE, steps=2)
    plain, same = np.asarray(make()), model.as_guide(0.5)
    np.testing.assert_array_equal(make(guidance=0.0, guide=model.as_guide(0.9)), plain)
    np.testing.assert_allclose(make(guidance=1.0, guide=same), plain, atol=1e-5)
    assert np.abs(make(guidance=1.0) - plain).max() > 1e-3


def test_guidance_goes_away_from_the_empty_caption(simple):
    """One Euler step on the line: x = z - v, with v guided by hand."""
    make = functools.partial(method().sample, 0.5, keys(1, 2, 3, 4), shape=SHAPE, steps=1, sampler="euler")
    good, bad = make(cond=BATCH["cond"]["tokens"]), make(cond=jnp.tile(EMPTY, (4, 1)))
    np.testing.assert_allclose(make(cond=BATCH["cond"]["tokens"], guidance=2.0), good + 2 * (good - bad), atol=1e-5)


def test_guide_is_the_worse_model(simple):
    model = method()
    make = functools.partial(model.sample, rng=keys(1, 2, 3, 4), cond=BATCH["cond"]["tokens"], shape=SHAPE, steps=1)
    good, bad = make(0.5), make(0.9)
    guided = make(0.5, guidance=2.0, guide=method(net=NET | dict(width=8)).as_guide(0.9))
    np.testing.assert_allclose(guided, good + 2 * (good - bad), atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 20, 100])
@pytest.mark.parametrize("prediction, first", [("x", 0.05), ("v", 0.05), ("eps", 0.05)])
def test_no_sampler_evaluates_the_network_below_its_first_time(steps, prediction, first):
    times = np.asarray(method(prediction=prediction, time_min=0.05)._times(SampleOptions(steps=steps, shift=0.5)))
    assert len(times) == steps + 1 and times[0] > 0.98 and times[-1] == 0 and (np.diff(times) < 0).all()
    assert times[-2] >= first - 1e-7
    assert 0 < np.asarray(method(prediction="v")._times(SampleOptions(steps=4)))[-2] <= 0.25


def test_no_likelihood_evaluates_the_network_below_its_first_time(simple, monkeypatch):
    starts, times_from = [], ode.times_from
    monkeypatch.setattr(ode, "times_from", lambda start, *rest: starts.append(start) or times_from(start, *rest))
    for prediction, first in (("x", 0.05), ("v", 0.05), ("eps", 1 / 256)):
        model = method(prediction=prediction, time_min=0.0 if prediction == "eps" else 0.05)
        model.bits_per_dim({"model": 1.0}, keys(0, 1, 2, 3), BATCH, steps=1)
        assert starts.pop() == first


@pytest.mark.parametrize("changes", [dict(path="cosine"), dict(prediction="x")])
def test_guide_must_mean_the_same_by_its_output(changes):
    guide = method(**changes).as_guide({})
    with pytest.raises(UserError, match="a guide must predict v on the linear path.*; it predicts"):
        method().sample({}, keys(1), BATCH["cond"]["tokens"][:1], SHAPE, guidance=1.0, guide=guide)


# From noise and back


def test_samples_are_generated_from_the_noise_that_their_keys_draw(simple):
    model, rng = method(), keys(1, 2, 3, 4)
    for options in ({}, dict(sampler="dpmpp_2m", steps=5, guidance=1.5, interval=(0.2, 0.8), shift=2.0)):
        made = model.generate(0.5, model.draw_noise(rng, SHAPE), BATCH["cond"]["tokens"], **options)
        np.testing.assert_array_equal(made, model.sample(0.5, rng, BATCH["cond"]["tokens"], SHAPE, **options))


def test_noise_is_standard_gaussian_and_an_images_own():
    noise = method().draw_noise(keys(*range(64)), SHAPE)
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    np.testing.assert_array_equal(method().draw_noise(keys(5), SHAPE)[0], noise[5])


def test_given_noise_is_not_mixed_with_other(simple):
    with pytest.raises(UserError, match="eta=0.5 draws noise"):
        method().generate(0.5, jnp.zeros((4, *SHAPE)), BATCH["cond"]["tokens"], sampler="ddim", eta=0.5)


@pytest.mark.parametrize(
    "path, prediction, time_min", [("linear", "v", 0.0), ("cosine", "eps", 0.0), ("linear", "x", 0.01)]
)
def test_noise_that_was_found_makes_the_image_again(path, prediction, time_min, gaussian):
    model = method(path=path, prediction=prediction, time_min=time_min)
    pixels = MEAN + STD * np.random.default_rng(0).normal(size=(16, *SHAPE)).astype(np.float32)
    tokens = np.tile(EMPTY, (16, 1))
    noise = model.invert({}, keys(*range(16)), pixels, tokens, steps=40)
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.05
    found = model.generate({}, noise, tokens, steps=200)
    np.testing.assert_allclose(found, pixels, atol=0.05 if time_min else 0.02)  # noise of time_min comes on top
    assert np.abs(found - pixels).mean() < 0.01


def test_noise_is_found_under_the_same_guidance(simple):
    model, cond, rng = method(), BATCH["cond"]["tokens"], keys(1, 2, 3, 4)
    same = model.as_guide(0.9)
    for options in (
        dict(),
        dict(guidance=1.5),
        dict(guidance=1.5, interval=(0.3, 0.6)),
        dict(guidance=1.5, guide=same),
    ):
        noise = model.draw_noise(rng, SHAPE)
        made = model.generate(-0.5, noise, cond, steps=200, **options)
        other = model.invert(-0.5, rng, made, cond)
        error = np.abs(model.invert(-0.5, rng, made, cond, steps=100, **options) - noise).max()
        assert error < 0.01, options
        assert not options or np.abs(other - noise).max() > 10 * error, options


def test_few_steps_of_inversion_are_worse_than_many(gaussian):
    pixels = np.full((1, *SHAPE), 0.4, np.float32)
    find = lambda steps: method().invert({}, keys(0), pixels, BATCH["cond"]["tokens"][:1], steps=steps)
    assert np.abs(find(2) - find(64)).max() > 10 * np.abs(find(16) - find(64)).max()


def test_reconstructions_are_near_the_images_and_in_range(gaussian):
    pixels = np.random.default_rng(0).integers(120, 210, (4, *SHAPE)).astype(np.uint8)
    again = method().reconstruct({}, keys(1, 2, 3, 4), BATCH | dict(inputs=pixels))
    assert np.abs(again - to_float(pixels)).max() < 0.05
    wild = method().reconstruct({}, keys(1, 2, 3, 4), BATCH)
    assert np.abs(wild).max() <= 1


# Every key is read

SAMPLE_CHANGES = dict(
    steps=dict(steps=5),
    sampler=dict(sampler="heun"),
    guidance=dict(guidance=2.0),
    interval=dict(interval=(0.4, 0.6)),
    eta=dict(eta=0.5),
    shift=dict(shift=2.0),
    guide=None,
)


@pytest.mark.parametrize("option", SAMPLE_CHANGES)
def test_every_sampling_option_changes_the_image(option, simple):
    model = method()
    base = dict(steps=4, sampler="ddim", guidance=1.0)
    changes = SAMPLE_CHANGES[option] or dict(guide=model.as_guide(0.9))
    make = functools.partial(model.sample, 0.5, keys(1, 2), BATCH["cond"]["tokens"][:2], SHAPE)
    assert np.abs(make(**base | changes) - make(**base)).max() > 1e-3


def test_every_sampling_option_is_among_those_tested():
    options = {field.name for field in dataclasses.fields(Diffusion.SampleOptions)}
    assert options - {"last"} == set(SAMPLE_CHANGES)  # which changes derivatives, see test_rewarded


@pytest.mark.slow
def test_features_are_the_patches_after_each_layer():
    """The first layer of two sees what a network of that layer alone does."""
    two, one = (method(net=NET | dict(depth=depth)) for depth in (2, 1))
    params = jax.tree.map(lambda leaf: leaf + 0.05, two.init(jax.random.key(0), BATCH))
    model = params["model"]
    first = {
        "model": model
        | {"network": model["network"] | {"layers": jax.tree.map(lambda leaf: leaf[:1], model["network"]["layers"])}}
    }
    pixels, tokens = to_float(BATCH["inputs"]), BATCH["cond"]["tokens"]
    seen = two.features(params, pixels, tokens, jnp.full(len(pixels), 0.3))
    side = pixels.shape[2] // NET["patch_size"]
    assert [x.shape for x in seen] == 2 * [(len(pixels), pixels.shape[1], side, side, NET["width"])]
    np.testing.assert_allclose(seen[0], one.features(first, pixels, tokens, jnp.full(len(pixels), 0.3))[0], rtol=1e-5)
    assert not np.allclose(seen[0], two.features(params, pixels, tokens, None)[0]) and not np.allclose(*seen)


LOSS_CHANGES = dict(
    path="cosine",
    prediction="x",
    loss_space="x",
    time_distribution="uniform",
    time_mean=1.0,
    time_std=0.3,
    time_steps=1,
    time_shift=3.0,
    time_min=0.9,
    caption_drop=0.9,
)


@pytest.mark.parametrize("key", LOSS_CHANGES)
def test_every_key_of_diffusion_changes_the_loss(key, simple):
    base = dict(time_distribution="steps") if key == "time_steps" else {}  # it is read with these alone
    assert abs(loss_of(method(**base, **{key: LOSS_CHANGES[key]})) / loss_of(method(**base)) - 1) > 1e-3


NET_CHANGES = dict(
    width=32,
    depth=2,
    heads=4,
    patch_size=2,
    text="cross",
    space_time="factorized",
    positions="learned",
    time_frequency=8.0,
    remat="all",
    attention="cudnn",
)


CONDITIONER_CHANGES = dict(width=32, depth=2, heads=1)


def program(**changes):
    """The computation of a network as text: its parameters, every operation and every constant."""
    model = method(**changes)
    params = jax.eval_shape(model.init, jax.random.key(0), BATCH)
    jaxpr = jax.make_jaxpr(model.apply)(params, to_float(BATCH["inputs"]), jnp.ones(4), BATCH["cond"])
    return f"{jaxpr} {jaxpr.consts}"


@pytest.mark.parametrize("key", [*NET_CHANGES, *(f"text {key}" for key in CONDITIONER_CHANGES), "vocab_size", "dtype"])
def test_every_key_of_the_network_changes_its_program(key, monkeypatch):
    # The fused kernel exists on GPUs alone; that it was asked for is what counts here.
    plain = jax.nn.dot_product_attention
    seen = []

    def attention(*args, implementation, **kwargs):
        seen.append(implementation)
        return plain(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    own = dict(vocab_size=64, dtype=jnp.bfloat16)
    net = NET | {key: NET_CHANGES[key]} if key in NET_CHANGES else NET
    if key.startswith("text "):
        name = key.removeprefix("text ")
        net = NET | {"conditioner": NET["conditioner"] | {name: CONDITIONER_CHANGES[name]}}
    changes = {key: own[key]} if key in own else dict(net=net)
    changed = program(**changes), set(seen)
    seen.clear()
    assert changed != (program(), set(seen))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(guidance=1.0),
        dict(guidance=1.0, interval=(0.3, 0.8)),
        dict(guidance=1.0, shift=3.0, interval=(0.5, 0.75)),
    ],
)
def test_the_evaluations_are_those_that_are_made(monkeypatch, sampler, options):
    """Counted in rows of batches."""
    rows = []

    def apply(self, params, z, t, cond):
        jax.debug.callback(lambda: rows.append(len(z)))
        return 0.1 * z

    monkeypatch.setattr(Diffusion, "apply", apply)
    model, options = method(), dict(sampler=sampler, steps=4) | options
    jax.block_until_ready(model.sample({}, keys(0, 1), BATCH["cond"]["tokens"][:2], SHAPE, **options))
    jax.effects_barrier()
    assert sum(rows) == 2 * model.evaluations(**options)


def test_every_key_is_among_those_tested():
    assert {f.name for f in dataclasses.fields(Diffusion)} == {*LOSS_CHANGES, *FIELDS}
    own = {f.name for f in dataclasses.fields(Transformer)} - {"parent", "name"}
    assert own == {*NET_CHANGES, "dtype"}
    own = {f.name for f in dataclasses.fields(TextTransformer)} - {"parent", "name"}
    assert own == {*CONDITIONER_CHANGES, "vocab_size", "dtype", "attention", "remat"}


@pytest.mark.parametrize(
    "changes, nearest",
    [
        (dict(path="cosin"), "cosine"),
        (dict(prediction="epss"), "eps"),
        (dict(loss_space="min_srn"), "min_snr"),
        (dict(time_distribution="uniformly"), "uniform"),
    ],
)
def test_unknown_names_are_errors_with_the_nearest_known(changes, nearest, simple):
    with pytest.raises(UserError, match=f"did you mean '{nearest}'"):
        loss_of(method(**changes))


def test_unknown_keys_are_errors_with_the_nearest_known():
    with pytest.raises(UserError, match="in method 'captions_drop': did you mean 'caption_drop'"):
        build(Diffusion, dict(net=NET, captions_drop=0.1), "method", vocab_size=32, dtype=jnp.float32)
    with pytest.raises(UserError, match="in method.net 'patchsize': did you mean 'patch_size'"):
        _ = method(net=NET | dict(patchsize=2)).network
