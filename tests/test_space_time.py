"""Attention over space and time: what each kind reads, and that a video network begins as its image network."""

import functools

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.conditions import END
from zoo.errors import UserError
from zoo.nets.conditioning import build_network
from zoo.nets.critic import Critic
from zoo.nets.hierarchy import Hierarchy
from zoo.nets.jet import Jet
from zoo.nets.synthesis import Synthesis
from zoo.nets.tarflow import TarFlow
from zoo.nets.time import NEW_FOR_VIDEOS
from zoo.nets.transformer import Transformer
from zoo.trees import completed, flatten, path_name

NET = dict(width=24, depth=2, heads=2, patch_size=2, conditioner=dict(width=16, depth=1, heads=2))
SHAPE = 2, 4, 4, 4, 3  # B, T, H, W, C
KINDS = "spatial", "temporal", "factorized", "joint", "none"


@functools.cache
def network(**changes):
    return build_network(Transformer, NET | changes, "net", 32, jnp.float32)


def cond(count, rate=4.0):
    tokens = np.tile(np.array([5, 6, END, 0], np.int32), (count, 1))
    tokens[:, 0] += np.arange(count)
    return {"tokens": tokens} | ({} if rate is None else {"frame_rate": np.full(count, rate, np.float32)})


def run(net, params, z, rate=4.0):
    return np.asarray(_jitted(net)(params, z, jnp.linspace(0.3, 0.8, len(z)), cond(len(z), rate)))


@functools.cache
def _jitted(net):
    return jax.jit(lambda params, z, t, cond: net.apply({"params": params}, z, t, cond=cond))


@functools.cache
def drawn(net, rate=4.0, frames=SHAPE[1]):
    z = jnp.zeros((2, frames, *SHAPE[2:]))
    return net.init(jax.random.key(0), z, jnp.zeros(2), cond=cond(2, rate))["params"]


def rough(tree, seed=1):
    """Parameters of which none is zero."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [leaf + 0.2 * rng.normal(size=leaf.shape).astype("f") for leaf in leaves])


Z = np.random.default_rng(0).normal(size=SHAPE).astype("f")


@pytest.mark.parametrize(
    ("text", "positions"), [pytest.param("joint", "rotary", marks=pytest.mark.slow), ("cross", "learned")]
)
def test_a_factorized_network_begins_as_its_image_network_on_every_frame(text, positions):
    image, video = (network(text=text, positions=positions, space_time=kind) for kind in ("spatial", "factorized"))
    trained = rough(drawn(image, rate=None, frames=1))
    started = started_from(trained, drawn(video))
    frames = einops.rearrange(Z, "b t h w c -> (b t) 1 h w c")
    t = jnp.repeat(jnp.linspace(0.3, 0.8, 2), 4)
    words = jax.tree.map(lambda x: np.repeat(x, 4, axis=0), cond(2, None))
    each = np.asarray(image.apply({"params": trained}, frames, t, cond=words)).reshape(SHAPE)
    np.testing.assert_allclose(run(video, started, Z), each, atol=1e-6 * np.abs(each).max())


@pytest.mark.parametrize("text", ["joint", pytest.param("cross", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_reads_the_patches_of_its_name(text, kind):
    """A patch's prediction depends on the patches in its row of attention, through two layers."""
    net = network(text=text, space_time=kind)
    params = rough(drawn(net))
    other = Z.copy()
    other[:, 2, :2, :2] += 1.0  # patch (0, 0) of frame 2
    changed = np.abs(run(net, params, other) - run(net, params, Z)).max(axis=-1) > 1e-4  # (B, T, H, W)
    patches = einops.reduce(changed, "b t (h p) (w q) -> t h w", "max", p=2, q=2)
    frames, places = np.arange(4) == 2, np.array([[True, False], [False, False]])
    expected = {
        "spatial": frames[:, None, None] & np.ones((2, 2), bool),
        "temporal": np.ones((4, 1, 1), bool) & places,
        "factorized": np.ones((4, 2, 2), bool),
        "joint": np.ones((4, 2, 2), bool),
        "none": frames[:, None, None] & places,
    }
    np.testing.assert_array_equal(patches, expected[kind])


@pytest.mark.parametrize("kind", ["temporal", "factorized", "joint"])
def test_time_is_counted_in_seconds(kind):
    """Frames 0, 2, 4 of a static video at twice the rate stand at the same times; order and rate matter."""
    net = network(space_time=kind)
    params = rough(drawn(net))
    blank = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 if "frame_rate" in path_name(path) else leaf, params
    )
    angles = lambda rate: run(net, blank, Z, rate)
    assert np.abs(angles(4.0) - angles(8.0)).max() > 1e-3
    turned = run(net, params, Z[:, ::-1].copy())[:, ::-1]
    assert np.abs(turned - run(net, params, Z)).max() > 1e-3
    still = np.repeat(Z[:, :1], 4, axis=1)
    assert np.abs(np.diff(run(net, params, still), axis=1)).max() > 1e-3  # each frame knows its time


def test_spatial_attention_treats_all_frames_alike():
    net = network(space_time="spatial")
    params = rough(drawn(net))
    np.testing.assert_allclose(run(net, params, Z[:, ::-1].copy())[:, ::-1], run(net, params, Z), atol=1e-5)


def test_a_patch_without_attention_has_its_place():
    net = network(space_time="none")
    alike = run(net, rough(drawn(net)), np.ones_like(Z))
    patches = einops.rearrange(alike, "b t (h p) (w q) c -> b t (h w) (p q c)", p=2, q=2)
    assert np.abs(np.diff(patches, axis=2)).max(axis=-1).min() > 1e-3


@pytest.mark.parametrize("kind", ["factorized", "joint"])
def test_longer_videos_than_were_drawn_for_fit(kind):
    net = network(space_time=kind)
    longer = np.concatenate([Z, Z], axis=1)
    assert run(net, rough(drawn(net)), longer).shape == longer.shape


def test_the_frame_rate_is_read_and_zero_is_no_rate():
    net = network(space_time="spatial")
    params = rough(drawn(net))
    at = lambda rate: run(net, params, Z, rate)
    assert np.abs(at(4.0) - at(8.0)).max() > 1e-4 and np.abs(at(4.0) - at(0.0)).max() > 1e-4
    without = jax.tree.map(lambda x: x, params)
    del without["conditioner"]["frame_rate"]
    np.testing.assert_allclose(at(0.0), run(net, without, Z, None), atol=1e-6)


def test_a_video_without_a_frame_rate_has_no_times():
    with pytest.raises(UserError, match="needs the videos' frame rate"):
        drawn(network(space_time="factorized"), rate=None)


def test_unknown_kinds_are_errors():
    with pytest.raises(UserError, match="did you mean 'factorized'"):
        drawn(network(space_time="factorised"))


# ---- the other networks


HIERARCHY = dict(width=16, encoder_blocks=(1, 1), decoder_blocks=(1, 2), latent_dim=2, heads=2, mixtures=1)
SYNTHESIS = dict(widths=(16, 16), patch_size=1, heads=2)
CRITIC = dict(widths=(8, 16), patch_size=1)
FLOW = {
    TarFlow: dict(width=24, blocks=1, depth=1, heads=2, patch_size=2),
    Jet: dict(width=24, couplings=4, depth=1, heads=2, patch_size=2),
}


def other(kind, fields):
    return build_network(kind, fields | {"conditioner": NET["conditioner"]}, "net", 32, jnp.float32)


def noise_of(frames, rng):
    shapes = other(Hierarchy, HIERARCHY).network.noise_shapes((frames, *SHAPE[2:]))
    return [rng.normal(size=(2, *shape)).astype("f") for shape in shapes]


def started_from(image, video):
    """The parameters of a video network that takes all it can from an image network."""
    old, new = flatten(image), flatten(video)
    assert all(set(path.split("/")) & set(NEW_FOR_VIDEOS) for path in new if path not in old)
    return completed(image, video)


@pytest.mark.slow
def test_a_hierarchy_of_videos_begins_as_that_of_images_and_then_reads_all_frames():
    net, eps = other(Hierarchy, HIERARCHY), noise_of(4, np.random.default_rng(0))
    apply = jax.jit(lambda params, x, eps, cond: net.apply({"params": params}, x, eps, cond=cond)[0])
    first = [e[:, :, :1] for e in eps]
    image = rough(net.init(jax.random.key(0), Z[:, :1], first, cond=cond(2, None))["params"])
    video = net.init(jax.random.key(0), Z, eps, cond=cond(2))["params"]
    params = started_from(image, video)
    found = apply(params, Z, eps, cond(2))
    for frame in range(4):
        alone = apply(image, Z[:, frame : frame + 1], [e[:, :, frame : frame + 1] for e in eps], cond(2, None))
        np.testing.assert_allclose(found[:, frame : frame + 1], alone, atol=1e-5)
    changed = [e.at[:, :, 2].add(1.0) for e in map(jnp.asarray, eps)]
    before, after = (apply(rough(video), Z, e, cond(2)) for e in (eps, changed))
    assert (np.abs(after - before).max(axis=(0, 2, 3, 4)) > 1e-4).all()


@pytest.mark.slow
def test_a_generator_of_videos_makes_frames_of_one_noise_that_differ_by_their_times():
    net, noise = other(Synthesis, SYNTHESIS), np.random.default_rng(0).normal(size=(2, 8)).astype("f")
    start = lambda frames, rate: net.init(jax.random.key(0), noise, (frames, 4, 4, 3), cond=cond(2, rate))["params"]
    image, video = start(1, None), start(4, 4.0)
    assert set(flatten(video)) > set(flatten(image)) and started_from(image, video)
    made = lambda rate: net.apply({"params": rough(video)}, noise, (4, 4, 4, 3), cond=cond(2, rate))
    assert made(4.0).shape == (2, 4, 4, 4, 3)
    assert (np.abs(np.diff(made(4.0), axis=1)).max(axis=(2, 3, 4)) > 1e-4).all()
    assert np.abs(made(4.0) - made(8.0)).max() > 1e-4


@pytest.mark.parametrize("net", [TarFlow, Jet])
def test_a_flow_of_videos_starts_from_images_and_counts_time_in_seconds(net):
    flow = other(net, FLOW[net])
    start = lambda x, rate: flow.init(jax.random.key(0), x, cond=cond(2, rate))["params"]
    image, video = rough(start(Z[:, :1], None)), start(Z, 4.0)
    apply = jax.jit(lambda params, x, cond: flow.apply({"params": params}, x, cond=cond)[0])
    params = started_from(image, video)
    np.testing.assert_array_equal(apply(params, Z, cond(2, 4.0)), apply(params, Z, cond(2, 8.0)))  # seconds enter later
    if net is TarFlow:  # the one block reads frames in their order: the first does not know of those after it
        alone = apply(image, Z[:, :1], cond(2, None))
        last = apply(params, Z, cond(2, 4.0))[:, -1:]  # a block leaves its sequence reversed
        np.testing.assert_allclose(last, alone, atol=1e-5)
    params, longer = rough(video), np.concatenate([Z, Z], axis=1)
    assert np.abs(apply(params, Z, cond(2, 4.0)) - apply(params, Z, cond(2, 8.0))).max() > 1e-3
    assert apply(params, longer, cond(2, 4.0)).shape == longer.shape
    params = jax.tree.map(lambda x: 0.3 * x, params)
    z = apply(params, Z, cond(2, 4.0))
    for cache in (True, False):
        inverse = functools.partial(flow.apply, call="inverse", cond=cond(2, 4.0))
        np.testing.assert_allclose(
            jax.jit(inverse, static_argnums=(2, 3))({"params": params}, z, 0.0, cache), Z, atol=1e-4
        )


def test_a_critic_of_videos_begins_as_that_of_images():
    net = other(Critic, CRITIC)
    image = rough(net.init(jax.random.key(0), Z[:, :1], cond=cond(2, None))["params"])
    params = started_from(image, net.init(jax.random.key(0), Z, cond=cond(2))["params"])
    found = net.apply({"params": params}, Z, cond=cond(2)).features
    for frame in range(4):
        alone = net.apply({"params": image}, Z[:, frame : frame + 1], cond=cond(2, None)).features
        for level, features in zip(found, alone, strict=True):
            np.testing.assert_allclose(level[:, frame : frame + 1], features, atol=1e-5)


@pytest.mark.slow
def test_a_critic_reads_the_order_of_frames():
    net = other(Critic, CRITIC)
    params = rough(net.init(jax.random.key(0), Z, cond=cond(2))["params"])
    score = lambda x: net.apply({"params": params}, x, cond=cond(2)).score
    flat = {path: leaf for path, leaf in flatten(params).items() if "temporal" in path}
    assert flat and np.abs(score(Z) - score(Z[:, ::-1])).max() > 1e-3
    still = jnp.repeat(jnp.asarray(Z[:, :1]), 4, axis=1)
    gate = params | {
        "network": params["network"] | {"temporal": jax.tree.map(jnp.zeros_like, params["network"]["temporal"])}
    }
    with_time = net.apply({"params": params}, still, cond=cond(2)).score
    assert np.abs(with_time - net.apply({"params": gate}, still, cond=cond(2)).score).max() > 1e-4
