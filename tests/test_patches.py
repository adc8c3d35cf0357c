"""Patch tokenizers: quantisers, the network, and runs on the codes that they make."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.helpers import random_like
from zoo import loop
from zoo.config import build
from zoo.errors import UserError
from zoo.families import build_method, family_class
from zoo.method import Axis, to_float, to_uint8
from zoo.methods.autoregressive import SampleOptions as AutoregressiveOptions
from zoo.methods.masked import SampleOptions as MaskedOptions
from zoo.nets.patch_encoder import PatchAutoencoder
from zoo.nets.quantisation import Binary, Levels, Vectors, build_quantiser, frequencies, usage
from zoo.runs.code_editor import CodeEditor
from zoo.runs.dependencies import open_run, prepare
from zoo.wrappers.coarse import Coarse

PATCHES, MASKED, AUTOREGRESSIVE = (
    "configs/patches.py:test",
    "configs/tokens.py:masked,test",
    "configs/tokens.py:autoregressive,test",
)

# ---- quantisers


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2,), (2, 3, 4), (7, 2)])
def test_codes_and_vectors_are_a_bijection(levels):
    quantiser = Levels(levels)
    codes = jnp.arange(quantiser.codes)
    vectors = quantiser.vector(codes)
    assert (quantiser.index(vectors) == codes).all()
    assert len(np.unique(vectors, axis=0)) == quantiser.codes == np.prod(levels)
    np.testing.assert_allclose(quantiser.quantised(vectors), vectors, atol=1e-6)
    assert (np.abs(vectors) < 1).all()


def test_levels_are_of_equal_width_and_of_equal_mass():
    grid = jnp.linspace(-0.99999, 0.99999, 100_001)[:, None]
    np.testing.assert_allclose(np.bincount(Levels((4,)).index(grid)) / len(grid), 1 / 4, atol=1e-4)
    np.testing.assert_allclose(np.bincount(Levels((5,)).index(grid)) / len(grid), 1 / 5, atol=1e-4)
    raw = jax.random.normal(jax.random.key(0), (100_000, 1))
    share = np.bincount(Levels((5,)).index(Levels((5,)).bounded(raw))) / len(raw)
    np.testing.assert_allclose(share, 1 / 5, atol=0.02)


def test_rounding_has_the_gradient_of_the_identity():
    y = jnp.array([[0.3, -0.7]])
    gradient = jax.grad(lambda y: (Levels((4, 5)).quantised(y) * jnp.array([2.0, 3.0])).sum())(y)
    np.testing.assert_allclose(gradient, [[2.0, 3.0]])
    np.testing.assert_allclose(Levels((4, 5)).quantised(y), [[0.25, -0.8]], atol=1e-6)


def test_the_entropy_penalty_wants_decided_bits_that_divide_the_codes_in_two():
    quantiser = Binary((2, 2), entropy_weight=1.0)
    decided = jnp.array([[9.0, -9.0], [-9.0, 9.0]])
    np.testing.assert_allclose(quantiser.penalty(decided, Axis()), -1.0, atol=1e-3)
    np.testing.assert_allclose(quantiser.penalty(jnp.zeros((2, 2)), Axis()), 0.0, atol=1e-5)
    np.testing.assert_allclose(quantiser.penalty(jnp.full((2, 2), 9.0), Axis()), 0.0, atol=1e-3)
    assert Levels((2, 2)).penalty(decided, Axis()) == 0


def test_vectors_have_one_length_and_noise_in_training_alone():
    quantiser = Vectors(channels=8, noise=0.5)
    y = quantiser.bounded(3 * jax.random.normal(jax.random.key(0), (500, 8)))
    np.testing.assert_allclose(jnp.square(y).mean(axis=-1), 1.0, rtol=1e-4)
    assert (quantiser.quantised(y) == y).all() and quantiser.codes is None
    np.testing.assert_allclose(np.std(quantiser.disturbed(jax.random.key(1), y) - y), 0.5, rtol=0.05)


def test_usage_and_perplexity():
    share, perplexity = usage(frequencies(jnp.array([[0, 0], [3, 3]]), 4))
    assert share == 0.5
    np.testing.assert_allclose(perplexity, 2.0, rtol=1e-5)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"name": "levels", "levels": (8, 1)}, "levels must be in"),
        ({"name": "levels", "levels": ()}, "levels must make 2 to 65536 codes"),
        ({"name": "levels", "levels": (2.5, 4)}, "levels must be whole numbers"),
        ({"name": "levels", "levels": (256, 257)}, "65536 codes, and .256, 257. make 65792"),
        ({"name": "binary", "levels": (2, 3)}, "levels must be in"),
        ({"name": "vectors", "channels": 1}, "channels"),
        ({"name": "level"}, "did you mean 'levels'"),
        ({"name": "levels", "noise": 0.1}, "unknown config key in method.quantiser 'noise'"),
    ],
)
def test_quantisers_that_cannot_be_are_errors(fields, words):
    with pytest.raises(UserError, match=words):
        build_quantiser(fields, "method.quantiser")
    assert build(Levels, {"levels": [16, 16, 16, 16]}, "here").codes == 65_536


# ---- the network


def network(**fields):
    return PatchAutoencoder(**dict(channels=3, width=16, depth=2, heads=2, patch_size=4) | fields)


def test_chunks_are_encoded_and_decoded_without_those_after_them():
    net, x = network(frame_patch=2), jax.random.normal(jax.random.key(0), (1, 5, 8, 8, 3))
    params = random_like(net.init(jax.random.key(0), x))
    whole = net.apply(params, x, method="encode")
    assert whole.shape == (1, 3, 2, 2, 3)
    np.testing.assert_allclose(net.apply(params, x[:, :3], method="encode"), whole[:, :2], atol=1e-5)
    np.testing.assert_allclose(net.apply(params, x[:, :1], method="encode"), whole[:, :1], atol=1e-5)
    made = net.apply(params, whole, method="decode")
    assert made.shape == x.shape
    np.testing.assert_allclose(net.apply(params, whole[:, :2], method="decode"), made[:, :3], atol=1e-5)
    later = net.apply(params, x.at[:, 4].add(1.0), method="encode")
    assert np.abs(later - whole)[:, 2].max() > 1e-3  # the last chunk reads its frames
    earlier = net.apply(params, x.at[:, 0].add(1.0), method="encode")
    assert np.abs(earlier - whole)[:, 2].max() > 1e-4  # and those before


def test_without_chunks_each_frame_is_an_image():
    net, x = network(), jax.random.normal(jax.random.key(0), (2, 3, 8, 8, 3))
    params = random_like(net.init(jax.random.key(0), x[:, :1]))
    each = net.apply(params, x.reshape(6, 1, 8, 8, 3)).reshape(x.shape)
    np.testing.assert_allclose(net.apply(params, x), each, atol=1e-5)


def test_a_video_that_chunks_do_not_fill_is_an_error():
    with pytest.raises(UserError, match=r"1 \+ k 2 frames, got 4"):
        network(frame_patch=2).init(jax.random.key(0), jnp.zeros((1, 4, 8, 8, 3)))


# ---- runs on codes


@pytest.fixture(scope="module")
def tokenizer(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tokenizer") / "run"
    loop.train(tiny({}, PATCHES), workdir)
    return workdir


def on_codes(tiny, tokenizer, recipe=MASKED, **changes):
    own = {"method.net.patch_size": 1} if recipe == MASKED else {}
    return tiny({"data.codes": str(tokenizer)} | own | changes, recipe)


def test_codes_give_the_reconstruction(tokenizer, tiny):
    run = open_run(tokenizer)
    source, recipe = prepare(on_codes(tiny, tokenizer))
    batch = next(recipe.stream(source))
    assert batch["inputs"].shape == (8, 1, 4, 4, 1) and batch["inputs"].dtype == np.uint16
    assert batch["inputs"].max() < recipe.codec.codes == 12
    images = recipe.data.open("train")[3]["inputs"][None]
    codes = recipe.codec.encode(recipe.dependencies.frozen, images)
    assert (codes[0] == source[3]["inputs"]).all()
    decoded = recipe.codec.decode(recipe.dependencies.frozen, codes)
    batch = {"inputs": images, "cond": run.recipe.conditions(["a star"])}
    np.testing.assert_allclose(decoded, run.method.reconstruct(run.params, None, batch), atol=1e-5)
    encoded = run.method.encode(run.params, to_float(images))
    np.testing.assert_allclose(run.method.decode(run.params, encoded), decoded, atol=1e-5)


def test_a_tokenizer_is_scored_by_its_reconstructions(tokenizer, command, tmp_path):
    words = "-m", "zoo", "score", f"--workdir={tokenizer}", "--num=4", f"--out={tmp_path / 's.json'}"
    done = command(*words, "--measures=psnr,code_usage,oracle")
    assert done.code == 0, done.err
    scores = json.loads((tmp_path / "s.json").read_text())["model"]
    assert 0 < scores["code_usage"] <= 1 and scores["psnr"] > 5 and 0 <= scores["all"] <= 1
    done = command(*words, "--guidance=1")
    assert done.code == 2 and "--guidance is for samples: this run reconstructs" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [MASKED, AUTOREGRESSIVE])
def test_runs_on_codes_sample_images(recipe, tokenizer, tiny, tmp_path):
    loop.train(on_codes(tiny, tokenizer, recipe), tmp_path / "run")
    made = open_run(tmp_path / "run").sample(["a red circle", "a blue star", "a star"])
    assert made.shape == (3, 1, 16, 16, 3) and made.dtype == np.uint8


def test_pixels_are_codes_of_themselves(tiny):
    source, recipe = prepare(tiny({}, MASKED))
    assert recipe.codec.codes == 256 and recipe.shape == (1, 16, 16, 3)
    image = recipe.data.open("train")[5]["inputs"]
    assert (source[5]["inputs"] == image).all()
    assert (np.round((recipe.codec.decode({}, image[None]) + 1) * 127.5) == image).all()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data.codes": "no/such/run"}, "data.codes: no such run: 'no/such/run'"),
        ({"data.codes": ""}, "the families of codes are masked, autoregressive.*name a tokenizer by data.codes"),
        ({"data.size": 32}, "16 px, and data.size is 32"),
        ({"data.flip": True}, "data.flip"),
        ({"data.latents": "here"}, "give one of them"),
        ({"method.net.patch_size": 3}, "patch_size 3"),
        ({"method.mask_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"method.codes": 5}, "unknown config key in method 'codes'"),
    ],
)
def test_codes_that_cannot_be_trained_on_are_errors(tiny, tokenizer, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        loop.train(on_codes(tiny, tokenizer, **changes), tmp_path / "run")


def test_a_family_of_images_refuses_codes(tiny, tokenizer, trained):
    with pytest.raises(UserError, match="diffusion is none: drop data.codes"):
        prepare(tiny({"data.codes": str(tokenizer)}))
    with pytest.raises(UserError, match="data.codes: .* lacks the ability Tokenizes; families with it: patches"):
        prepare(on_codes(tiny, trained))


def test_vectors_are_latents_and_no_codes(tiny, tmp_path):
    loop.train(tiny({}, f"{PATCHES},vectors"), tmp_path / "run")
    with pytest.raises(UserError, match="makes vectors without codes: name it by data.latents"):
        prepare(on_codes(tiny, tmp_path / "run"))
    source, recipe = prepare(tiny({"data.latents": str(tmp_path / "run"), "method.net.patch_size": 1}))
    assert recipe.shape == (1, 4, 4, 16) and source[0]["inputs"].dtype == np.float32


# ---- generators


@pytest.fixture(scope="module")
def masked_run(tokenizer, tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("masked") / "run"
    loop.train(on_codes(tiny, tokenizer), workdir)
    return open_run(workdir)


def test_inpainting_draws_the_touched_patches_and_keeps_the_known_pixels(masked_run):
    images = np.stack([masked_run.recipe.data.open("test")[i]["inputs"] for i in range(3)])
    mask = np.zeros((16, 16), bool)
    mask[2:6, 9:11] = True
    made = CodeEditor(masked_run).inpaint(images, mask, ["a star"] * 3)
    assert (made[:, :, ~mask] == images[:, :, ~mask]).all()
    assert (made[:, :, mask] != images[:, :, mask]).any()
    other = images.copy()
    other[:, :, mask] ^= 255
    assert (CodeEditor(masked_run).inpaint(other, mask, ["a star"] * 3) == made).all()  # what is hidden is not read


def test_varying_draws_a_share_of_the_codes(masked_run):
    recipe, images = masked_run.recipe, masked_run.recipe.data.open("test")[0]["inputs"][None].repeat(64, axis=0)
    editor = CodeEditor(masked_run, seed=1)
    decoded = recipe.codec.decode(recipe.dependencies.frozen, recipe.codec.encode(recipe.dependencies.frozen, images))
    assert (editor.vary(images, 0.0, ["a star"] * 64) == np.asarray(to_uint8(decoded))).all()
    varied = editor.vary(images, 0.5, ["a star"] * 64)
    assert len(np.unique(varied.reshape(64, -1), axis=0)) > 32
    with pytest.raises(
        UserError, match="lacks the ability Fills; families with it: masked, autoregressive, continuous"
    ):
        CodeEditor(SimpleNamespace(recipe=recipe, method=object(), params={}))


@pytest.mark.parametrize("recipe", [MASKED, AUTOREGRESSIVE, f"{MASKED},critic", "configs/tokens.py:continuous,test"])
@pytest.mark.parametrize("frames", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_filling_keeps_known_codes_and_each_sample_by_itself(recipe, frames, tiny):
    config = tiny({}, recipe)
    codes = None if "continuous" in recipe else 11
    method = build_method(config.method.to_dict(), 64, "float32", codes=codes)
    rng, shape = jax.random.key(0), (3, frames, 4, 4, 3)
    inputs = jax.random.normal(rng, shape) if codes is None else jax.random.randint(rng, shape, 0, codes)
    cond = {"tokens": jnp.full((3, 4), 5)} | ({"frame_rate": jnp.full(3, 8.0)} if frames > 1 else {})
    params = {name: random_like(tree) for name, tree in method.init(rng, {"inputs": inputs, "cond": cond}).items()}
    known = jax.random.bernoulli(rng, 0.5, shape[:4]).at[2].set(True)
    options = method.SampleOptions(guidance=1.0)
    keys = jax.random.split(rng, 3)
    made = method.fill(params, keys, inputs, known, cond, options)
    assert (made[known] == inputs[known]).all()
    assert (made[2] == inputs[2]).all()  # of which nothing is missing
    assert (made[0] != inputs[0]).any() and made.dtype == (jnp.float32 if codes is None else jnp.int32)
    alone = method.fill(params, keys[1:2], inputs[1:2], known[1:2], jax.tree.map(lambda x: x[1:2], cond), options)
    np.testing.assert_allclose(alone[0], made[1], atol=1e-4)
    negative = cond | {"negative": cond | {"tokens": jnp.full((3, 4), 9)}}
    assert (method.fill(params, keys, inputs, known, negative, options) != made).any()


def test_the_mask_of_65536_codes_is_no_code(tiny):
    method = build_method(tiny({}, MASKED).method.to_dict(), 64, "float32", codes=65_536)
    ids = jnp.zeros((2, 1, 4, 4, 1), jnp.uint16)
    seen = []

    class Watched(type(method)):
        def logits(self, params, ids, cond):
            seen.append(ids)
            return jnp.zeros((*ids.shape, 8))

    fields = {name: value for name, value in tiny({}, MASKED).method.to_dict().items() if name != "name"}
    watched = Watched(**fields, vocab_size=64, dtype=jnp.float32, codes=65_536)
    watched.loss("model", {}, {"inputs": ids, "cond": {"tokens": jnp.full((2, 3), 5)}}, jax.random.key(0), None, 0)
    assert set(np.unique(seen[0])) == {0, 65_536}


def token_critic(tiny):
    config = tiny({"method.critic.depth": 1}, f"{MASKED},critic")
    return build_method(config.method.to_dict(), 64, "float32", codes=11)


def test_a_token_critic_learns_which_codes_were_drawn(tiny):
    method = token_critic(tiny)
    rng, cond = jax.random.key(0), {"tokens": jnp.full((64, 3), 5)}
    batch = {"inputs": jnp.zeros((64, 1, 4, 4, 1), jnp.uint16), "cond": cond}  # all codes are 0, drawn ones are any
    params = method.init(rng, batch)
    loss = lambda params, rng: method.loss("critic", params, batch, rng, Axis(), 0)
    value, output = loss(params, rng)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-4)  # its scores start at 0
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(critic, state, rng):
        gradient = jax.grad(lambda critic: loss(params | {"critic": critic}, rng)[0])(critic)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(critic, updates), state

    critic, state = params["critic"], optimizer.init(params["critic"])
    for i in range(60):
        critic, state = step(critic, state, jax.random.fold_in(rng, i))
    _, output = loss(params | {"critic": critic}, jax.random.key(1))
    assert output.metrics["accuracy"] > 0.9
    score = method.score_codes(
        {"critic": critic}, jnp.zeros((1, 1, 4, 4, 1), int).at[0, 0, 1, 2].set(7), {"tokens": cond["tokens"][:1]}
    )
    assert np.asarray(score).argmin() == 6


def test_a_token_critic_masks_what_it_scores_lowest(tiny):
    method = token_critic(tiny)
    options = method.SampleOptions(steps=3, noise=0.0)
    assert options.erase == "critic" and method.evaluations(options, (1, 4, 4, 1)) == 5
    assert method.evaluations(method.SampleOptions(steps=3, erase="none"), (1, 4, 4, 1)) == 3
    drawn = []

    class Low(type(method)):
        def score_codes(self, params, ids, cond):
            drawn.append(1)
            return jnp.arange(16.0).reshape(1, 1, 4, 4, 1) + 0 * ids

    class Watched(type(method.base)):
        def logits(self, params, ids, cond):
            jax.debug.callback(lambda ids: drawn.append(np.asarray(ids).ravel() == 11), ids, ordered=True)
            return jnp.zeros((*ids.shape, 11))

    base = {name: value for name, value in tiny({}, MASKED).method.to_dict().items() if name != "name"}
    base = Watched(**base, vocab_size=64, dtype=jnp.float32, codes=11)
    low = Low(base=base, critic={}, vocab_size=64, dtype=jnp.float32)
    low.sample({}, jax.random.split(jax.random.key(0), 1), {"tokens": jnp.full((1, 3), 5)}, (1, 4, 4, 1), options)
    jax.effects_barrier()
    masks = [mask for mask in drawn if not isinstance(mask, int)]
    assert [mask.sum() for mask in masks] == [16, 13, 8]  # cosine: 16 cos(pi / 6), 16 cos(pi / 3)
    assert all(mask[: mask.sum()].all() for mask in masks)  # those with the lowest scores
    with pytest.raises(UserError, match="unknown erasing 'critic'"):
        method.base.SampleOptions(erase="critic")
    with pytest.raises(UserError, match="a critic masks codes again, which Autoregressive cannot: use masked"):
        base = tiny({}, AUTOREGRESSIVE).method.to_dict()
        build_method({"name": "token_critic", "base": base, "critic": {}}, 64, "float32", codes=11)


def test_vectors_are_drawn_from_the_distribution_of_the_head(tiny):
    config = tiny({}, "configs/tokens.py:continuous,test")
    mean, std = jnp.array([1.0, -2.0]), jnp.array([0.5, 0.1])

    class Exact(family_class("continuous")):
        def _features(self, params, x, known, cond):
            return jnp.where(known[..., None], 0.0, x[..., :1] * 0)

        def _velocity(self, params, z, t, features):
            t = t[..., None]  # x is N(mean, std^2): the exact velocity E[eps - x | z]
            variance = jnp.square((1 - t) * std) + jnp.square(t)
            gain = (t - (1 - t) * jnp.square(std)) / variance
            return gain * (z - (1 - t) * mean) - mean

    fields = {name: value for name, value in config.method.to_dict().items() if name != "name"}
    method = Exact(**fields, vocab_size=64, dtype=jnp.float32)
    options = method.SampleOptions(steps=3, head_steps=200)
    made = method.sample({}, jax.random.split(jax.random.key(0), 2000), {}, (1, 2, 2, 2), options)
    np.testing.assert_allclose(made.mean(axis=(0, 1, 2, 3)), mean, atol=0.03)
    np.testing.assert_allclose(made.std(axis=(0, 1, 2, 3)), std, rtol=0.03)
    with pytest.raises(UserError, match="at most the 4 vectors of an image, got 5"):
        method.sample({}, jax.random.split(jax.random.key(0), 1), {}, (1, 2, 2, 2), method.SampleOptions(steps=5))


def test_logits_with_and_without_a_cache_are_equal(tiny):
    config = tiny({"method.net.depth": 2}, AUTOREGRESSIVE)
    method = build_method(config.method.to_dict(), 64, "float32", codes=11)
    rng = jax.random.key(0)
    ids = jax.random.randint(rng, (2, 1, 3, 3, 2), 0, 11)
    cond = {"tokens": jnp.array([[5, 6, 1, 0], [7, 1, 0, 0]])}
    params = random_like(method.init(rng, {"inputs": ids, "cond": cond}))
    with jax.default_matmul_precision("highest"):
        whole = method.network.apply({"params": params["model"]}, ids, cond=cond)
        state = method.network.apply({"params": params["model"]}, (1, 3, 6), cond=cond, call="start")
        flat = ids.reshape(2, -1)
        for i in range(flat.shape[1]):
            before = flat[:, i - 1] if i else jnp.full(2, 3)
            logits, state = method.read(params, before[:, None], jnp.array(i), state)
            np.testing.assert_allclose(logits[:, 0], whole[:, i], atol=2e-5)
    assert np.abs(whole - whole[:, :1]).max() > 0.1


def test_each_code_depends_on_those_before_it_alone(tiny):
    method = build_method(tiny({}, AUTOREGRESSIVE).method.to_dict(), 64, "float32", codes=11)
    ids, cond = jnp.zeros((1, 1, 3, 3, 1), int), {"tokens": jnp.array([[5, 1]])}
    params = random_like(method.init(jax.random.key(0), {"inputs": ids, "cond": cond}))
    logits = lambda ids: method.network.apply({"params": params["model"]}, ids, cond=cond)
    changed = np.abs(logits(ids.at[0, 0, 1, 1].set(7)) - logits(ids)).max(axis=(0, 2)) > 1e-6
    assert changed.tolist() == [False] * 5 + [True] * 4


# ---- coarse codes first


@pytest.mark.parametrize("frames", [1, 3])
def test_the_filler_gets_the_coarse_codes_and_each_family_its_options(frames):
    class First:
        SampleOptions = AutoregressiveOptions

        def fill(self, params, rng, inputs, known, cond, options):
            assert params["model"] == "mine" and inputs.shape == (2, frames, 2, 2, 1) and options.temperature == 0.5
            return jnp.where(known[..., None], inputs, 7)

        def evaluations(self, options, shape):
            assert shape == (frames, 2, 2, 1)
            return 1

    class Rest:
        SampleOptions = MaskedOptions

        def fill(self, params, rng, inputs, known, cond, options):
            assert params == "its" and options.steps == 3
            return jnp.where(known[..., None], inputs, 9)

        def evaluations(self, options, shape):
            assert shape == (frames, 4, 3, 1)
            return options.steps

    method = Coarse(First(), 64, jnp.float32, Rest())
    options = method.SampleOptions(steps=3, temperature=0.5)
    assert method.evaluations(options, (frames, 4, 3, 1)) == 4
    inputs, known = jnp.full((2, frames, 4, 3, 1), 1), jnp.zeros((2, frames, 4, 3), bool).at[:, :, 0, :2].set(True)
    params = {"model": "mine", "frozen": {"filler": "its"}}
    made = method.fill(params, jax.random.split(jax.random.key(0), 2), inputs, known, {}, options)
    expected = [[1, 1, 7], [9, 9, 9], [7, 9, 7], [9, 9, 9]]
    np.testing.assert_array_equal(made[..., 0], np.broadcast_to(expected, (2, frames, 4, 3)))
    with pytest.raises(UserError, match="stride must be in"):
        Coarse(First(), 64, jnp.float32, Rest(), stride=1)


@pytest.mark.slow
def test_a_run_on_coarse_codes_makes_whole_images(tokenizer, tiny, tmp_path):
    loop.train(on_codes(tiny, tokenizer), tmp_path / "filler")
    changes = {"data.codes": str(tokenizer), "method.filler": str(tmp_path / "filler")}
    loop.train(tiny(changes, f"{AUTOREGRESSIVE},coarse"), tmp_path / "run")
    made = open_run(tmp_path / "run").sample(["a red circle", "a blue star"], steps=3)
    assert made.shape == (2, 1, 16, 16, 3) and made.dtype == np.uint8
    with pytest.raises(UserError, match="did you mean 'steps'"):
        open_run(tmp_path / "run").sample(["a red circle"], step=3)


# ---- rewards


@pytest.mark.parametrize("options", [{}, {"guidance": 1.5, "temperature": 0.8, "top_k": 7}])
def test_an_autoregressive_draw_has_the_density_that_it_was_drawn_with(options, tiny):
    method = build_method(tiny({}, AUTOREGRESSIVE).method.to_dict(), 64, "float32", codes=11)
    options = method.SampleOptions(**options)
    cond = {"tokens": jnp.full((11, 4), 5)}

    def params_for(inputs):
        return {"model": random_like(method.init(jax.random.key(0), {"inputs": inputs, "cond": cond})["model"])}

    one = jnp.arange(11).reshape(11, 1, 1, 1, 1)
    log_prob = method.trajectory_log_prob(params_for(one), one[None], cond, options)
    assert log_prob.shape == (1, 11) and np.ptp(log_prob[np.isfinite(log_prob)]) > 0.1
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1, rtol=1e-5)

    params = params_for(jnp.zeros((11, 1, 2, 3, 1), jnp.int32))
    made = method.sample_trajectory(params, jax.random.split(jax.random.key(1), 11), cond, (1, 2, 3, 1), options)
    log_prob = method.trajectory_log_prob(params, made, cond, options)
    assert made.shape == (1, 11, 1, 2, 3, 1) and np.isfinite(log_prob).all()
    if options == method.SampleOptions():
        bits = method.bits_per_dim(params, None, {"inputs": made[0], "cond": cond}, None)
        np.testing.assert_allclose(log_prob[0], -bits * 6 * np.log(2), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [MASKED, AUTOREGRESSIVE])
def test_a_reward_trains_codes_as_a_black_box(recipe, tokenizer, tiny, tmp_path):
    loop.train(on_codes(tiny, tokenizer, recipe), tmp_path / "base")
    base = "method.base.net.patch_size"
    changes = {"data.codes": str(tokenizer), "init": str(tmp_path / "base"), "method.group_size": 2}
    loop.train(tiny(changes | ({base: 1} if recipe == MASKED else {}), f"{recipe},policy"), tmp_path / "run")
    run = open_run(tmp_path / "run")
    assert any(np.abs(x).max() > 0 for x in jax.tree.leaves(run.params["adapters"]))
    assert run.sample(["a red circle"]).shape == (1, 1, 16, 16, 3)
