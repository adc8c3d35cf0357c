import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import Easy, as_cond
from zoo import config as configs
from zoo.conditions import END
from zoo.errors import UserError
from zoo.families import build_method
from zoo.method import Axis, to_float, to_uint8
from zoo.methods.flow import Flow
from zoo.nets.flow_layers import Affine, Head, apply_guidance, duplicate_for_guidance
from zoo.nets.jet import coupling_mask
from zoo.nets.tarflow import Block

SMALL = dict(width=16, depth=1, heads=2, patch_size=2, conditioner=dict(width=16, depth=1, heads=2))
NETS = {"tarflow": SMALL | dict(blocks=2), "jet": SMALL | dict(couplings=4)}
SHAPE = (1, 6, 4, 3)
RNG = np.random.default_rng(0)
BATCH = dict(
    inputs=RNG.integers(0, 256, (4, *SHAPE), dtype=np.uint8),
    cond=dict(tokens=np.array([[5, 6, END, 0], [7, END, 0, 0], [8, 9, 10, END], [11, END, 0, 0]], np.int32)),
)
EMPTY = np.array([END, 0, 0, 0], np.int32)
TOKENS = BATCH["cond"]["tokens"]
each_net = pytest.mark.parametrize("architecture", NETS)
slow_for_jet = pytest.mark.parametrize("architecture", ["tarflow", pytest.param("jet", marks=pytest.mark.slow)])


def method(architecture="tarflow", net=(), **changes):
    fields = dict(net=NETS[architecture] | dict(net), vocab_size=32, dtype=jnp.float32, architecture=architecture)
    return Easy(Flow(**fields | changes))


def keys(*numbers):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(0)))(jnp.array(numbers))


def start(flow, batch=BATCH, noise=0.12):
    """Random parameters of which none is zero by construction, without compiling `init`."""
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        return jnp.asarray((path[-1].key == "scale") + noise * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(flow.init, jax.random.key(0), batch))


@functools.cache
def fresh(architecture):
    """A flow and the parameters that it starts with."""
    flow = method(architecture)
    return flow, jax.jit(flow.init)(jax.random.key(0), BATCH)


@functools.cache
def trained(architecture):
    """A flow and parameters under which it is far from the identity."""
    flow = method(architecture)
    return flow, start(flow)


def run(call, *arguments, **options):
    """A call compiled as a whole, which is quicker than operation by operation."""
    return jax.jit(functools.partial(call, **options))(*arguments)


def apply(flow, call="__call__"):
    """The network of a flow as a function of parameters, x and tokens."""
    return lambda params, x, tokens: flow._apply(params, x, cond=as_cond(tokens), call=call)


def loss_of(flow, params, batch=BATCH, seed=0):
    return run(
        lambda params, batch, rng: flow.loss("model", params, batch, rng, Axis(), 0),
        params,
        batch,
        jax.random.key(seed),
    )


# The inverse


@each_net
@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_the_inverse_is_exact(architecture, guidance):
    (flow, params), x = trained(architecture), to_float(BATCH["inputs"])
    z = run(flow.invert, params, keys(0, 1, 2, 3), x, TOKENS, guidance=guidance)
    assert z.shape == x.shape and z.dtype == jnp.float32
    back = run(flow.generate, params, z, TOKENS, guidance=guidance, denoise=False)
    assert float(jnp.abs(back - x).max()) < 1e-4
    assert float(jnp.abs(z - x).max()) > 0.1


@slow_for_jet
def test_at_the_start_it_is_the_identity_both_ways(architecture):
    (flow, params), x = fresh(architecture), to_float(BATCH["inputs"])
    for name in ("__call__", "inverse"):
        z = run(apply(flow, name), params, x, TOKENS)
        np.testing.assert_allclose(z[0] if name == "__call__" else z, x, atol=1e-6)


@slow_for_jet
def test_noise_comes_back_from_the_image_made_of_it(architecture):
    flow, params = trained(architecture)
    noise = flow.draw_noise(keys(0, 1, 2, 3), SHAPE)
    pixels = run(flow.generate, params, noise, TOKENS, temperature=0.8, denoise=False)
    found = run(flow.invert, params, keys(0, 1, 2, 3), pixels, TOKENS, temperature=0.8)
    np.testing.assert_allclose(found, noise, atol=1e-4)


@pytest.mark.parametrize("inverse", ["whole", "jacobi"])
def test_each_inverse_is_that_of_the_cache(inverse):
    flow, params = trained("tarflow")
    noise = flow.draw_noise(keys(0, 1, 2, 3), SHAPE)
    made = lambda how: run(flow.generate, params, noise, TOKENS, guidance=1.0, inverse=how, tolerance=0.0)
    np.testing.assert_allclose(made("cached"), made(inverse), rtol=1e-5, atol=1e-5)


def test_jacobis_iteration_ends_at_the_tolerance_in_each_sample_by_itself():
    flow, params = trained("tarflow")
    noise = flow.draw_noise(keys(0, 1, 2, 3), SHAPE)
    made = lambda noise, tokens, how, tolerance: run(
        flow.generate, params, noise, tokens, denoise=False, inverse=how, tolerance=tolerance
    )
    exact, rough = made(noise, TOKENS, "cached", 0.0), made(noise, TOKENS, "jacobi", 0.8)
    assert 1e-4 < np.abs(exact - rough).max() < 2
    np.testing.assert_allclose(made(noise[1:2], TOKENS[1:2], "jacobi", 0.8)[0], rough[1], atol=1e-5)


@each_net
def test_the_log_determinant_is_that_of_the_jacobian(architecture):
    flow = method(architecture)
    x, tokens = jnp.asarray(RNG.normal(size=(2, 1, 4, 4, 1)), jnp.float32), TOKENS[:2]
    params = start(flow, dict(inputs=x, cond=dict(tokens=tokens)))

    def flat(x, tokens):
        return apply(flow)(params, x.reshape(1, 1, 4, 4, 1), tokens[None])[0].ravel()

    jacobian = run(jax.vmap(jax.jacfwd(flat)), x.reshape(2, 16), tokens)
    sign, expected = np.linalg.slogdet(np.asarray(jacobian, np.float64))
    found = run(apply(flow), params, x, tokens)[1]
    assert found.dtype == jnp.float32 and np.abs(expected).min() > 0.1 and (sign > 0).all()
    np.testing.assert_allclose(found, expected, atol=1e-4)


# What depends on what


def jacobian_of_patches(block, guidance=0.0):
    """Which patches' affine, (N, .), depends on which patches' pixels, (., N), in one block of the flow."""
    flow, params = trained("tarflow")
    x = jnp.asarray(RNG.normal(size=(1, 6, 12)), jnp.float32)

    def affine(x):
        ids = jnp.concatenate([TOKENS[:1], EMPTY[None]]) if guidance else TOKENS[:1]
        text = flow.network.conditioner.apply({"params": params["model"]["conditioner"]}, as_cond(ids))
        own = jax.tree.map(lambda leaf: leaf[block], params["model"]["network"]["steps"])
        net = flow.network.network
        step = Block(net.width, net.depth, net.heads, net.remat, net.attention, net.dtype)
        return jnp.stack(step.apply({"params": own}, x, (1, 3, 2), text, guidance, method="predict"))[:, 0]

    jacobian = run(jax.jacfwd(affine), x)[..., 0, :, :]  # (2, N, P, N, P)
    return np.abs(jacobian).max(axis=(0, 2, 4))


@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_a_patch_is_decided_by_all_those_before_it_and_no_other(guidance):
    depends = jacobian_of_patches(0, guidance)
    before = np.tri(6, k=-1, dtype=bool)
    assert (depends[~before] == 0).all() and (depends[before] > 1e-6).all()


def test_the_second_block_goes_from_the_last_patch_to_the_first():
    """With the first block's head at zero the flow is the second block alone: the last patch moves by itself."""
    flow, params = trained("tarflow")
    alone = jax.tree.map(jnp.asarray, params)
    steps = alone["model"]["network"]["steps"]
    steps["head"] = jax.tree.map(lambda leaf: leaf.at[0].set(0), steps["head"])
    x = jnp.asarray(to_float(BATCH["inputs"]))[:1]
    z = run(apply(flow), alone, x, TOKENS[:1])[0]
    changed = run(apply(flow), alone, x.at[:, :, :2, :2].add(0.5), TOKENS[:1])[0] != z
    assert changed[:, :, :2, :2].all() and not changed[:, :, 2:].any() and not changed[:, :, :, 2:].any()
    changed = run(apply(flow), alone, x.at[:, :, 4:, 2:].add(0.5), TOKENS[:1])[0] != z
    assert changed.all()


@slow_for_jet
def test_all_words_matter_to_every_patch_and_padding_does_not(architecture):
    flow, params = trained(architecture)
    x = to_float(BATCH["inputs"])[:1]
    whole = run(apply(flow), params, x, TOKENS[:1])[0]
    other = run(apply(flow), params, x, TOKENS[:1] + np.array([[1, 0, 0, 0]]))[0]
    assert (jnp.abs(whole - other).reshape(3, 2, 2, 2, 3).max(axis=(1, 3, 4)) > 1e-5).all()
    padded = jax.tree.map(jnp.asarray, params)
    table = padded["model"]["conditioner"]["embedding"]["embedding"]
    padded["model"]["conditioner"]["embedding"]["embedding"] = table.at[0].add(1.0)
    np.testing.assert_allclose(run(apply(flow), padded, x, TOKENS[:1])[0], whole, atol=1e-6)


@slow_for_jet
def test_an_image_does_not_depend_on_those_beside_it(architecture):
    flow, params = trained(architecture)
    both = run(flow.sample, params, keys(0, 1), TOKENS[:2], shape=SHAPE, guidance=1.0)
    swapped = run(flow.sample, params, keys(2, 1), TOKENS[[3, 1]], shape=SHAPE, guidance=1.0)
    np.testing.assert_allclose(both[1], swapped[1], atol=1e-5)
    assert float(jnp.abs(both[0] - swapped[0]).max()) > 0.1


@pytest.mark.parametrize("grid", [(1, 4, 4), (2, 3, 3), (1, 1, 1)])
def test_couplings_keep_opposite_halves_in_turn(grid):
    channels = 12
    halves = [coupling_mask(i, grid, channels) for i in range(8)]
    for i in range(0, 8, 2):
        np.testing.assert_array_equal(halves[i], ~halves[i + 1])
    for i in (0, 4):  # half the channels of each patch, other ones each time
        assert (halves[i].sum(axis=-1) == channels // 2).all() and (halves[i] == halves[i][0]).all()
    assert (halves[0] != halves[4]).any()
    board = halves[2][:, 0].reshape(grid)
    assert (halves[2] == halves[2][:, :1]).all()
    for axis in range(3):
        assert (np.diff(board.astype(int), axis=axis) != 0).all()


def test_a_coupling_leaves_what_it_reads():
    flow = method("jet", net=dict(couplings=1))
    params, x = start(flow), to_float(BATCH["inputs"])
    z = np.asarray(run(apply(flow), params, x, TOKENS)[0]).reshape(4, 3, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    x = np.asarray(x).reshape(4, 3, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    kept = coupling_mask(0, (1, 3, 2), 12)
    np.testing.assert_array_equal((z == x).reshape(4, 6, 12), np.broadcast_to(kept, (4, 6, 12)))


# Guidance


def test_guidance_goes_on_from_the_empty_caption_to_the_caption():
    good, bad = RNG.normal(size=(2, 2, 3, 5))
    affine = apply_guidance(Affine(np.concatenate([good, bad]), np.concatenate([bad, good])), 2.0)
    np.testing.assert_allclose(affine.shift, 3 * good - 2 * bad, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(affine.log_scale, 3 * bad - 2 * good, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(duplicate_for_guidance(good, 0.0), good)


@each_net
def test_no_guidance_is_the_caption_alone_to_the_bit(architecture):
    flow, params = trained(architecture)
    noise = flow.draw_noise(keys(0, 1, 2, 3), SHAPE)
    none = run(flow.generate, params, noise, TOKENS, guidance=0.0, denoise=False)
    np.testing.assert_array_equal(none, run(apply(flow, "inverse"), params, noise, TOKENS))
    guided = run(flow.generate, params, noise, TOKENS, guidance=1e-6, denoise=False)
    np.testing.assert_allclose(none, guided, atol=1e-4)


@slow_for_jet
def test_guidance_moves_images_with_captions_and_no_others(architecture):
    flow, params = trained(architecture)
    noise, empty = flow.draw_noise(keys(0, 1, 2, 3), SHAPE), jnp.broadcast_to(EMPTY, (4, 4))
    plain, guided = (run(flow.generate, params, noise, empty, guidance=g, denoise=False) for g in (0.0, 1.0))
    np.testing.assert_allclose(plain, guided, atol=1e-4)
    plain, guided = (run(flow.generate, params, noise, TOKENS, guidance=g, denoise=False) for g in (0.0, 1.0))
    assert float(jnp.abs(plain - guided).max()) > 0.01


# Densities


@each_net
def test_the_density_integrates_to_one(architecture):
    """For an image of two grey pixels, each a patch: all the mass of a fine grid."""
    flow = method(architecture, net=dict(patch_size=1))
    edge = np.linspace(-16, 16, 161, dtype=np.float32)
    y = np.stack(np.meshgrid(edge, edge), axis=-1).reshape(-1, 1, 2, 1, 1)
    tokens = np.repeat(TOKENS[:1], len(y), axis=0)
    params = start(flow, dict(inputs=y[:1], cond=dict(tokens=tokens[:1])))
    density = np.exp(np.asarray(run(flow.log_prob, params, y, as_cond(tokens)), np.float64))
    assert abs(density.sum() * 0.2**2 - 1) < 1e-4
    normal = np.exp(-0.5 * np.square(y.astype(np.float64)).sum(axis=(1, 2, 3, 4))) / (2 * np.pi)
    assert np.abs(density - normal).sum() * 0.2**2 > 0.05  # it is no standard Gaussian


def linear(shift, scale):
    """A stand-in for `Flow._apply`: the flow whose images are N(shift, scale^2), pixel by pixel."""

    def apply(self, params, x, *rest, cond, call="__call__"):
        if call == "inverse":
            return x * scale + shift
        return (x - shift) / scale, jnp.full(len(x), -np.log(scale) * np.prod(x.shape[1:]), jnp.float32)

    return apply


def test_denoising_a_gaussian_is_its_closed_form(monkeypatch):
    """y = x + eps with x ~ N(m, s^2): E[x | y] = (s^2 y + noise_std^2 m) / (s^2 + noise_std^2)."""
    mean, std, noise = 0.3, 0.5, 0.2
    monkeypatch.setattr(Flow, "_apply", linear(mean, np.hypot(std, noise)))
    flow = method(noise_std=noise)
    z = flow.draw_noise(keys(0, 1, 2, 3), SHAPE)
    y = flow.generate(None, z, TOKENS, denoise=False)
    expected = (std**2 * y + noise**2 * mean) / (std**2 + noise**2)
    np.testing.assert_allclose(flow.generate(None, z, TOKENS), expected, atol=1e-5)
    likely = method(noise="uniform")
    np.testing.assert_array_equal(likely.generate(None, z, TOKENS), likely.generate(None, z, TOKENS, denoise=False))


def gaussian_bits(pixels, shift, scale, rng):
    """Bits per dimension of dequantised pixels under N(shift, scale^2) per dimension."""
    uniform = np.stack([np.asarray(jax.random.uniform(key, pixels.shape[1:])) for key in rng])
    y = (pixels + uniform.astype(np.float64)) / 128 - 1
    log_prob = -0.5 * ((y - shift) / scale) ** 2 - 0.5 * np.log(2 * np.pi) - np.log(scale) - np.log(128)
    return -log_prob.mean(axis=(1, 2, 3, 4)) / np.log(2)


@slow_for_jet
def test_bits_of_the_identity_are_those_of_a_standard_gaussian(architecture):
    (flow, params), rng = fresh(architecture), keys(0, 1, 2, 3)
    rng_used = jax.vmap(lambda key: jax.random.split(key, 1)[0])(rng)
    found = run(flow.bits_per_dim, params, rng, BATCH)
    np.testing.assert_allclose(found, gaussian_bits(BATCH["inputs"], 0, 1, rng_used), atol=1e-5)


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_the_loss_is_minus_log_likelihood_a_dimension(noise, monkeypatch):
    shift, scale = 0.2, 0.4
    monkeypatch.setattr(Flow, "_apply", linear(shift, scale))
    loss, output = loss_of(method(noise=noise, noise_std=0.5), None)
    rng = jax.random.split(jax.random.split(jax.random.key(0))[0], 4)
    if noise == "uniform":
        expected = gaussian_bits(BATCH["inputs"], shift, scale, rng).mean()
        np.testing.assert_array_equal(output.metrics["bits_per_dim"], loss)
    else:
        eps = np.stack([np.asarray(jax.random.normal(key, SHAPE)) for key in rng])
        y = BATCH["inputs"] / 127.5 - 1 + 0.5 * eps
        expected = (0.5 * ((y - shift) / scale) ** 2 + 0.5 * np.log(2 * np.pi) + np.log(scale)).mean()
        assert set(output.metrics) == {"loss", "log_det"}
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(output.metrics["log_det"], -np.log(scale), rtol=1e-5)
    np.testing.assert_array_equal(output.metrics["loss"], loss)


def test_samples_are_averaged_in_probability(monkeypatch):
    """A steep density makes draws differ. Each mean of 64 lies between the best draw and the mean of their bits."""
    monkeypatch.setattr(Flow, "_apply", linear(0.0, 0.01))
    pixels = np.full((2, *SHAPE), 130, np.uint8)
    rng = keys(0, 1)
    singles = np.stack(
        [
            gaussian_bits(pixels, 0, 0.01, [jax.random.split(key, 64)[i] for key in rng]) * np.log(2) * pixels[0].size
            for i in range(64)
        ]
    )
    expected = -np.log(np.exp(-singles).mean(axis=0)) / np.log(2) / pixels[0].size
    found = method().bits_per_dim(None, rng, dict(inputs=pixels, cond=dict(tokens=TOKENS[:2])), samples=64)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert (found < singles.mean(axis=0) / np.log(2) / pixels[0].size).all()


def test_a_flow_of_levels_gives_each_pixel_its_level(monkeypatch):
    """Noise at the centre of a level comes out as that level, and a level is inverted to its centre."""
    monkeypatch.setattr(Flow, "_apply", linear(0.0, 1.0))
    flow, pixels = method(noise="uniform"), np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16, 1)
    centres = (pixels + 0.5) / 128 - 1
    np.testing.assert_allclose(flow.invert(None, keys(0), to_float(pixels), TOKENS[:1]), centres, atol=1e-6)
    for place in (0.01, 0.99):
        made = flow.generate(None, jnp.float32((pixels + place) / 128 - 1), TOKENS[:1])
        np.testing.assert_array_equal(to_uint8(made), pixels)


@pytest.mark.slow
@slow_for_jet
def test_training_makes_images_likelier(architecture):
    """From nothing, 60 steps bring flat grey images at least half the way to their bound."""
    import optax

    (flow, params), optimizer = fresh(architecture), optax.adam(2e-2)
    batch = dict(inputs=np.full((4, *SHAPE), 100, np.uint8), cond=dict(tokens=TOKENS))

    @jax.jit
    def step(carry, rng):
        params, opt = carry
        loss, grad = jax.value_and_grad(lambda p: flow.loss("model", p, batch, rng, Axis(), 0)[0])(params)
        updates, opt = optimizer.update(grad, opt)
        return (optax.apply_updates(params, updates), opt), loss

    carry = params, optimizer.init(params)
    for rng in jax.random.split(jax.random.key(0), 60):
        carry, loss = step(carry, rng)
    entropy = 0.5 * np.log(2 * np.pi * np.e * 0.1**2)  # of the noise, in nats: no density has less
    first = float(loss_of(flow, params, batch)[0])
    assert entropy - 0.2 < float(loss) < entropy + 0.5 * (first - entropy)


# The family


@slow_for_jet
@pytest.mark.slow
def test_videos_of_latents_are_learned_and_made(architecture):
    flow, shape = method(architecture), (2, 4, 8, 4)
    cond = dict(tokens=TOKENS[:2], frame_rate=np.full(2, 4.0, np.float32))
    batch = dict(inputs=RNG.normal(size=(2, *shape)).astype(np.float32), cond=cond)
    params = start(flow, batch)
    loss, _ = loss_of(flow, params, batch)
    assert np.isfinite(loss)
    made = run(flow.sample, params, keys(0, 1), cond, shape=shape, guidance=1.0)
    assert made.shape == (2, *shape) and made.dtype == jnp.float32 and jnp.isfinite(made).all()
    np.testing.assert_allclose(run(flow.reconstruct, params, keys(0, 1), batch), batch["inputs"], atol=1e-4)


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_a_sample_is_generated_from_its_drawn_noise(noise, monkeypatch):
    monkeypatch.setattr(Flow, "_apply", linear(0.1, 0.5))
    flow, options = method(noise=noise), dict(guidance=1.0, temperature=0.7)
    drawn = flow.draw_noise(keys(5, 6), SHAPE)
    made = flow.sample(None, keys(5, 6), TOKENS[:2], SHAPE, **options)
    np.testing.assert_array_equal(made, flow.generate(None, drawn, TOKENS[:2], **options))
    cold = flow.generate(None, drawn * 0.7, TOKENS[:2])
    np.testing.assert_allclose(made, cold, atol=1e-6)
    assert float(jnp.abs(made - flow.generate(None, drawn, TOKENS[:2])).max()) > 0.1


@each_net
@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
def test_reconstructions_are_the_images(architecture, noise):
    flow = method(architecture, noise=noise)
    made = run(flow.reconstruct, trained(architecture)[1], keys(0, 1, 2, 3), BATCH)
    np.testing.assert_array_equal(to_uint8(made), BATCH["inputs"])


def test_captions_are_dropped_for_the_loss(monkeypatch):
    seen = {}

    def apply(self, params, x, cond):
        seen["tokens"] = cond["tokens"]
        return x, jnp.zeros(len(x))

    monkeypatch.setattr(Flow, "_apply", apply)
    for share, expected in ((0.0, TOKENS), (1.0, np.broadcast_to(EMPTY, TOKENS.shape))):
        method(caption_drop=share).loss("model", None, BATCH, jax.random.key(0), Axis(), 0)
        np.testing.assert_array_equal(seen["tokens"], expected)


@pytest.mark.parametrize(
    "architecture, noise, options, expected",
    [
        ("tarflow", "gaussian", dict(denoise=False), 1),
        ("tarflow", "gaussian", dict(denoise=False, guidance=1.0), 2),
        ("tarflow", "gaussian", dict(denoise=False, inverse="whole"), 6),
        ("tarflow", "gaussian", dict(guidance=1.0, inverse="whole"), 12 + 2),  # denoising takes a derivative
        ("tarflow", "gaussian", dict(), 1 + 2),
        ("tarflow", "uniform", dict(), 1),
        ("jet", "gaussian", dict(inverse="whole"), 1 + 2),
        ("jet", "uniform", dict(guidance=0.5), 2),
    ],
)
def test_the_evaluations_are_those_that_are_made(monkeypatch, architecture, noise, options, expected):
    """Counted at the last layer of each block, in patches of images."""
    flow, (_, params), patches = method(architecture, dict(remat="none"), noise=noise), trained(architecture), []

    def counted(self, x, channels):
        def count(_):
            patches.append(x.shape[0] * x.shape[1])
            return np.zeros((), x.dtype)

        shape = jax.ShapeDtypeStruct((), x.dtype)
        return plain(self, x + jax.pure_callback(count, shape, jax.lax.stop_gradient(x).sum()), channels)

    plain = Head.__call__
    monkeypatch.setattr(Head, "__call__", counted)
    made = jax.jit(lambda p: flow.sample(p, keys(0, 1), TOKENS[:2], shape=SHAPE, **options))(params)
    jax.block_until_ready(made)
    network = flow.network.network
    blocks = network.blocks if architecture == "tarflow" else network.couplings
    derivatives = 1 if noise == "gaussian" and options.get("denoise", True) else 0
    assert sum(patches) / (2 * 6 * blocks) + derivatives == expected == flow.evaluations(shape=SHAPE, **options)


def test_bfloat16_networks_keep_densities_in_float32():
    flow = method(dtype=jnp.bfloat16)
    params = start(flow)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    z, log_det = run(apply(flow), params, to_float(BATCH["inputs"]), TOKENS)
    assert z.dtype == log_det.dtype == jnp.float32
    exact = run(apply(method()), params, to_float(BATCH["inputs"]), TOKENS)[1]
    np.testing.assert_allclose(log_det, exact, rtol=0.1, atol=1.0)
    sample = functools.partial(flow.sample, shape=SHAPE)
    assert jax.eval_shape(sample, params, keys(0, 1), TOKENS[:2]).dtype == jnp.float32


# Bad input


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(noise="gausian"), "unknown noise of a flow 'gausian': did you mean 'gaussian'"),
        (dict(noise_std=0.0), r"noise_std must be in \(0, inf\), got 0.0"),
        (dict(net=dict(patch_size=5)), "patch_size 5 does not divide images of 6 x 4"),
        (dict(net=dict(heads=3)), "width 16 is not divisible by heads 3"),
        (dict(net=dict(couplings=3)), "config key in method.net 'couplings'"),
    ],
)
def test_bad_fields_are_errors(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        method(**changes).init(jax.random.key(0), BATCH)
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_names_the_nearest():
    flow = Flow(net=SMALL, vocab_size=32, dtype=jnp.float32, architecture="jett")
    with pytest.raises(UserError, match="unknown flow architecture 'jett': did you mean 'jet'"):
        flow.init(jax.random.key(0), BATCH)


def test_latents_have_no_bits():
    latents = BATCH | dict(inputs=to_float(BATCH["inputs"]))
    _, params = trained("tarflow")
    with pytest.raises(UserError, match="bits per dimension are of uint8 pixels, got float32"):
        method().bits_per_dim(params, keys(0, 1, 2, 3), latents)
    with pytest.raises(UserError, match="method.noise=gaussian"):
        loss_of(method(noise="uniform"), params, latents)


def test_a_missing_ability_is_an_error():
    flow, params = trained("tarflow")
    with pytest.raises(UserError, match="at temperature 0 no noise makes a given image"):
        flow.invert(params, keys(0), to_float(BATCH["inputs"])[:1], TOKENS[:1], temperature=0.0)
    with pytest.raises(UserError, match=r"samples must be in \[1, inf\), got 0"):
        flow.bits_per_dim(params, keys(0, 1, 2, 3), BATCH, samples=0)


# The recipe


@pytest.mark.parametrize(
    "words", ["", "jet", "likelihood", "cpu", "jet,cpu", "demo", "jet,likelihood,demo", "jet,test"]
)
def test_the_words_of_the_recipe_combine(words):
    config = configs.load(f"configs/flow.py:{words}")
    flow = build_method(config.method, 400, config.dtype)
    assert flow.architecture == ("jet" if "jet" in words else "tarflow")
    assert flow.noise == ("uniform" if "likelihood" in words else "gaussian")
    size, length = config.data.size, config.data.text_length
    batch = dict(
        inputs=jnp.zeros((1, 1, size, size, 3), jnp.uint8), cond=dict(tokens=jnp.zeros((1, length), jnp.int32))
    )
    jax.eval_shape(flow.init, jax.random.key(0), batch)
