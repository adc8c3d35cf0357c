import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.conditions import END
from zoo.errors import UserError
from zoo.families import build_method
from zoo.method import Axis
from zoo.nets.conditioning import Conditioned, Text, TextTransformer, build_network
from zoo.nets.layers import (
    REMAT,
    RMSNorm,
    SwiGLU,
    attend,
    patchify,
    rotary_table,
    rotate,
    sincos_table,
    smooth_attention,
    unpatchify,
)
from zoo.nets.transformer import Block, Transformer

TINY = dict(width=16, depth=2, heads=2, patch_size=4, conditioner=dict(width=16, depth=1, heads=2))


def transformer(dtype=jnp.float32, **changes):
    return build_network(Transformer, TINY | changes, "net", 32, dtype)


JOINT = transformer()
CROSS = transformer(text="cross")
LEARNED = transformer(positions="learned")
KINDS = pytest.mark.parametrize("net", [JOINT, CROSS], ids=["joint", "cross"])
PLACES = pytest.mark.parametrize("net", [JOINT, LEARNED], ids=["rotary", "learned"])

Z = np.random.default_rng(0).normal(size=(3, 1, 8, 8, 3)).astype(np.float32)
T = np.array([0.2, 0.5, 0.9], np.float32)
IDS = np.array([[5, 6, 7, END, 0, 0], [8, END, 0, 0, 0, 0], [9, 10, 11, 12, 13, END]], np.int32)


# Compiling takes nearly all of the time here, so that the programs are left slow.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shapes(net, frames=1, size=8):
    """Of the parameters of a network that is started with such videos."""
    video = jnp.zeros((1, frames, size, size, 3))
    return jax.eval_shape(functools.partial(net.init, cond={"tokens": IDS[:1]}), jax.random.key(0), video, T[:1])


@functools.cache
def rough(net):
    """Parameters none of which is zero, as after training."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda p: 0.3 * rng.normal(size=p.shape).astype(np.float32), shapes(net))


@functools.cache
def compiled(net):
    return jit(lambda params, z, t, ids: net.apply(params, z, t, cond={"tokens": ids}))


def run(net, z=Z, t=T, ids=IDS, params=None):
    return np.asarray(compiled(net)(rough(net) if params is None else params, z, t, ids))


def change(params, path, value):
    """A copy of a parameter tree in which the leaf at a path like "text/positions" is another."""
    head, _, rest = path.partition("/")
    return params | {head: change(params[head], rest, value) if rest else value(params[head])}


# The start


def test_output_is_zero_at_the_start_and_layers_differ():
    variables = jit(functools.partial(JOINT.init, cond={"tokens": IDS}))(jax.random.key(0), Z, T)
    out = run(JOINT, params=variables)
    assert out.shape == Z.shape
    assert not out.any()
    kernel = variables["params"]["network"]["layers"]["attention"]["query"]["kernel"]
    assert len(kernel) == TINY["depth"]
    assert np.abs(kernel[0] - kernel[1]).max() > 0.01


@pytest.mark.parametrize("text", ["joint", "cross"])
def test_every_block_is_the_identity_at_the_start(text):
    rng = np.random.default_rng(0)
    x, condition, words = (rng.normal(size=s).astype(np.float32) for s in ((2, 4, 16), (2, 16), (2, 6, 16)))
    block = Block(heads=2, text=text, dtype=jnp.float32, attention="auto")
    start = jit(lambda *inputs: block.init_with_output(jax.random.key(0), *inputs, rotary_table(2, 2, 8), None))
    (out, _), _ = start(x, condition, words, np.array([2, 6]))
    np.testing.assert_array_equal(out, x)


# What the output depends on


@KINDS
def test_output_depends_on_image_time_and_caption(net):
    out = run(net)
    ids = IDS.copy()
    ids[:, 0] = 20
    for other in (run(net, z=Z + 0.1), run(net, t=T - 0.1), run(net, ids=ids)):
        assert (np.abs(other - out).max(axis=(1, 2, 3, 4)) > 1e-3).all()


@pytest.mark.parametrize("net", [JOINT, CROSS], ids=["joint", "cross"])
def test_words_are_read_by_attention_and_not_only_through_their_mean(net):
    params = change(rough(net), "params/network/caption/kernel", np.zeros_like)
    ids = IDS.copy()
    ids[:, 0] = 20
    assert np.abs(run(net, ids=ids, params=params) - run(net, params=params)).max() > 1e-3


@KINDS
def test_order_of_words_matters(net):
    assert np.abs(run(net, ids=IDS[:, [1, 0, 2, 3, 4, 5]])[0] - run(net)[0]).max() > 1e-3


@KINDS
def test_each_example_depends_on_itself_alone(net):
    z, t, ids = Z + 1, T / 2, IDS[[2, 1, 0]]
    z[1], t[1] = Z[1], T[1]
    np.testing.assert_allclose(run(net, z, t, ids)[1], run(net)[1], atol=1e-5)


@KINDS
def test_padding_is_not_read(net):
    """What stands in the places of padding, id 0, has no say."""

    def scramble(rows):
        rows = np.array(rows)
        rows[0] += 3.0
        return rows

    params = change(rough(net), "params/conditioner/embedding/embedding", scramble)
    np.testing.assert_allclose(run(net, params=params), run(net), atol=1e-4)


@KINDS
def test_more_padding_changes_nothing(net):
    def lengthen(table):
        return np.concatenate([table, np.full((2, 16), 7.0, np.float32)])

    params = change(rough(net), "params/conditioner/positions", lengthen)
    padded = np.pad(IDS, ((0, 0), (0, 2)))
    np.testing.assert_allclose(run(net, ids=padded, params=params), run(net), atol=1e-4)


def test_text_is_read_in_both_directions_and_pooled_without_padding():
    encoder = TextTransformer(vocab_size=32, width=16, depth=1, heads=2)
    params = jit(encoder.init)(jax.random.key(0), {"tokens": IDS})
    encode = jit(lambda ids: encoder.apply(params, {"tokens": ids}))
    read = lambda ids: jax.tree.map(np.asarray, encode(ids))
    before, other = read(IDS), IDS.copy()
    other[:, 0], last = 20, np.array([3, 1, 5])
    after = read(other)
    np.testing.assert_array_equal(before.lengths, last + 1)
    assert (
        np.abs(after.embeddings[range(3), last] - before.embeddings[range(3), last]).max() > 1e-3
    )  # END sees the first word
    other = IDS.copy()
    other[0, 2] = 20
    assert np.abs(read(other).embeddings[0, 0] - before.embeddings[0, 0]).max() > 1e-3  # the first sees the third
    for row, length in enumerate(last + 1):
        mean = np.mean(before.embeddings[row, :length], axis=0)
        np.testing.assert_allclose(before.pooled[row], mean, atol=1e-5)


@KINDS
def test_frames_of_a_video_do_not_see_each_other(net):
    video = np.concatenate([Z, Z[::-1]], axis=1)  # (3, 2, 8, 8, 3)
    out = run(net, z=video)
    for frame in (0, 1):
        np.testing.assert_allclose(out[:, [frame]], run(net, z=video[:, [frame]]), atol=1e-4)


@PLACES
@pytest.mark.parametrize("order", [[1, 0, 3, 2], [2, 3, 0, 1], [0, 2, 1, 3]], ids=["columns", "rows", "diagonal"])
def test_places_of_patches_matter(net, order):
    def reorder(z):
        return unpatchify(patchify(z, 4).reshape(3, 1, 4, 48)[:, :, order].reshape(3, 1, 2, 2, 48), 4)

    assert np.abs(run(net, z=reorder(Z)) - reorder(run(net))).max() > 1e-2


@KINDS
def test_no_parameter_is_idle(net):
    plain = run(net)
    leaves, tree = jax.tree.flatten(rough(net))
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(rough(net))):
        changed = [*leaves[:i], np.roll(leaf, 1), *leaves[i + 1 :]]
        difference = np.abs(run(net, params=jax.tree.unflatten(tree, changed)) - plain).max()
        assert difference > 1e-5, jax.tree_util.keystr(path)


# Variants of one network


CONDITIONER = dict(width=16, depth=1, heads=2)
NETWORKS = {
    "diffusion": dict(name="diffusion", net=TINY | dict(conditioner=CONDITIONER)),
    "tarflow": dict(name="flow", net=dict(blocks=2, depth=2, width=16, heads=2, conditioner=CONDITIONER)),
    "jet": dict(
        name="flow", architecture="jet", net=dict(couplings=3, depth=2, width=16, heads=2, conditioner=CONDITIONER)
    ),
    "hierarchy": dict(
        name="vae",
        net=dict(width=16, encoder_blocks=(2, 1), decoder_blocks=(2, 1), latent_dim=2, conditioner=CONDITIONER),
    ),
    "autoencoder": dict(name="vae", architecture="autoencoder", net=dict(widths=(8, 8), latent_dim=2)),
}


def total_loss(method, batch, params):
    return method.loss("model", params, batch, jax.random.key(1), Axis(), jnp.int32(0))[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_remat_changes_neither_loss_nor_gradient_but_what_is_kept(name):
    batch = {"inputs": np.uint8(100 + 20 * Z), "cond": {"tokens": IDS}}
    found, kept = {}, {}
    for remat in REMAT:
        section = NETWORKS[name] | {"net": NETWORKS[name]["net"] | {"remat": remat}}
        method = build_method(section, 32, "float32")
        loss = functools.partial(total_loss, method, batch)
        params = jax.tree.map(lambda leaf: leaf + 0.02, jit(method.init)(jax.random.key(0), batch))
        found[remat] = jit(jax.value_and_grad(loss))(params)
        pull = jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params)[1], params)
        kept[remat] = sum(leaf.size for leaf in jax.tree.leaves(pull))
    for remat in ("cheap", "all"):
        close = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=2e-3)
        jax.tree.map(close, found[remat], found["none"])
    assert kept["all"] < kept["cheap"] < kept["none"]


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters():
    half = transformer(jnp.bfloat16)
    assert {a.dtype for a in jax.tree.leaves(shapes(half))} == {np.dtype(np.float32)}
    out, exact = run(half, params=rough(JOINT)), run(JOINT)
    assert out.dtype == np.float32
    difference = np.sqrt(np.square(out - exact).mean() / np.square(exact).mean())
    assert 1e-4 < difference < 0.05  # it does compute in 16 bits, and well


def test_parameters_do_not_depend_on_the_image_with_rotary_positions():
    assert shapes(JOINT) == shapes(JOINT, frames=2, size=16)
    assert shapes(LEARNED) != shapes(LEARNED, size=16)


# Layers


def test_attention_is_a_softmax_over_the_keys_that_count():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, n, 2, 4)).astype(np.float32) for n in (3, 5, 5))
    lengths = np.array([5, 2])
    found = attend(q, k, v, "xla", lengths)
    for b in range(2):
        for head in range(2):
            scores = np.exp(q[b, :, head] @ k[b, : lengths[b], head].T / np.sqrt(4))
            expected = scores / scores.sum(axis=1, keepdims=True) @ v[b, : lengths[b], head]
            np.testing.assert_allclose(found[b, :, head], expected, atol=1e-5)


@pytest.mark.parametrize(
    "queries, keys, channels, dtype, platform, capability, fused",
    [
        (64, 104, 64, jnp.bfloat16, "cuda 13000", "9.0", True),
        (64, 104, 128, jnp.float16, "cuda 13000", "8.0", True),
        (64, 104, 64, jnp.float32, "cuda 13000", "9.0", False),
        (1, 41, 64, jnp.bfloat16, "cuda 13000", "9.0", False),
        (64, 41, 64, jnp.bfloat16, "cuda 13000", "9.0", False),
        (3, 8, 64, jnp.bfloat16, "cuda 13000", "9.0", False),
        (64, 104, 136, jnp.bfloat16, "cuda 13000", "9.0", False),
        (64, 104, 60, jnp.bfloat16, "cuda 13000", "9.0", False),
        (64, 104, 64, jnp.bfloat16, "cuda 12000", "7.5", False),
        (64, 104, 64, jnp.bfloat16, "rocm 60000", "gfx942", False),
        (64, 104, 64, jnp.bfloat16, "", "", False),
    ],
)
def test_attention_is_fused_where_it_and_its_derivative_exist(
    monkeypatch, queries, keys, channels, dtype, platform, capability, fused
):
    device = SimpleNamespace(client=SimpleNamespace(platform_version=platform), compute_capability=capability)
    asked = []
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu" if platform else "cpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *_, implementation, **__: asked.append(implementation))
    q, k = (np.zeros((1, count, 1, channels), dtype) for count in (queries, keys))
    attend(q, k, k, "auto")
    with smooth_attention():
        attend(q, k, k, "auto")
        attend(q, k, k, "cudnn")
    attend(q, k, k, "cudnn")
    assert asked == ["cudnn" if fused else "xla", "xla", "xla", "cudnn"]


def test_rotary_product_depends_on_the_offset_alone():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 8)).astype(np.float32)
    rows, columns = 5, 6
    angles = rotary_table(rows, columns, 8)
    everywhere = lambda x: np.asarray(rotate(np.tile(x, (1, rows * columns, 1, 1)), angles))[0, :, 0]
    table = (everywhere(q) @ everywhere(k).T).reshape(rows, columns, rows, columns)
    np.testing.assert_allclose(table[1:, 1:, 1:, 1:], table[:-1, :-1, :-1, :-1], atol=1e-5)
    assert np.isclose(table[2, 3, 2, 3], q @ k, atol=1e-5)
    offsets = table[2, 2].ravel()
    assert np.abs(offsets[:, None] - offsets)[~np.eye(30, dtype=bool)].min() > 1e-5  # every offset differs


def test_rotation_keeps_lengths():
    x = np.random.default_rng(0).normal(size=(2, 6, 3, 8)).astype(np.float32)
    turned = rotate(x, rotary_table(2, 3, 8))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])


def test_fixed_positions_differ_everywhere():
    table = sincos_table(4, 8, 16)
    assert table.shape == (32, 16)
    distance = np.linalg.norm(table[:, None] - table, axis=-1)
    assert distance[~np.eye(32, dtype=bool)].min() > 0.1


def test_patches_are_the_squares_of_the_image_and_go_back():
    z = np.arange(2 * 3 * 4 * 8 * 3).reshape(2, 3, 4, 8, 3)
    patches = patchify(z, 2)
    assert patches.shape == (2, 3, 2, 4, 12)
    np.testing.assert_array_equal(patches[1, 2, 1, 3], z[1, 2, 2:4, 6:8].ravel())
    np.testing.assert_array_equal(unpatchify(patches, 2), z)


def test_root_mean_square_norm_is_float32_inside():
    x = 1e4 * np.random.default_rng(0).normal(size=(3, 16)).astype(np.float16)  # whose squares overflow 16 bits
    norm = RMSNorm(jnp.float16)
    y = np.asarray(norm.apply(norm.init(jax.random.key(0), x), x), np.float32)
    np.testing.assert_allclose(np.square(y).mean(axis=-1), 1, rtol=1e-2)


def test_gated_feed_forward_has_the_parameters_of_a_plain_one():
    tree = jax.eval_shape(SwiGLU(ratio=4.0).init, jax.random.key(0), jnp.zeros((1, 384)))
    count = sum(a.size for a in jax.tree.leaves(tree))
    assert abs(count / (2 * 4 * 384**2) - 1) < 0.02


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(patch_size=3), "patch_size 3 does not divide images of 8 x 8"),
        (dict(text="joined"), "did you mean 'joint'"),
        (dict(positions="rotarry"), "did you mean 'rotary'"),
        (dict(attention="cuddn"), "did you mean 'cudnn'"),
        (dict(remat="cheep"), "did you mean 'cheap'"),
        (dict(heads=3), "not divisible by"),
        (dict(heads=8), "divisible by 4, got 2"),
    ],
)
def test_bad_options_are_refused_with_what_is_wrong(changes, message):
    with pytest.raises(UserError, match=message):
        shapes(transformer(**changes))


def test_networks_take_encoded_text_from_any_conditioner():
    """One that is no transformer: the network's result depends on its output alone."""

    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, cond):
            return Text(cond["text"], jnp.full(3, 2, jnp.int32), cond["text"].mean(axis=1))

    net = Conditioned(JOINT.network, Fixed())
    text = np.random.default_rng(2).normal(size=(3, 2, 16)).astype(np.float32)
    params = {"params": {"network": rough(JOINT)["params"]["network"]}}
    out = net.apply(params, Z, T, cond={"text": text})
    assert out.shape == Z.shape and np.abs(out - net.apply(params, Z, T, cond={"text": text + 1})).max() > 1e-3
