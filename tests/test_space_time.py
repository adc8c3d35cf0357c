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
from zoo.nets.transformer import NEW_FOR_VIDEOS, Transformer
from zoo.trees import path_name

NET = dict(width=24, depth=2, heads=2, patch_size=2, conditioner=dict(width=16, depth=1, heads=2))
SHAPE = 2, 4, 4, 4, 3  # B, T, H, W, C
KINDS = "spatial", "temporal", "factorized", "joint"
TEXTS = pytest.mark.parametrize("text", ["joint", "cross"])


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


@pytest.mark.parametrize(("text", "positions"), [("joint", "rotary"), ("cross", "learned")])
def test_a_factorized_network_begins_as_its_image_network_on_every_frame(text, positions):
    image, video = (network(text=text, positions=positions, space_time=kind) for kind in ("spatial", "factorized"))
    trained = rough(drawn(image, rate=None, frames=1))
    new = drawn(video)

    def taken(path, leaf):
        own = trained
        for key in path:
            own = own.get(key.key, {}) if isinstance(own, dict) else {}
        if hasattr(own, "shape"):
            return own
        assert set(path_name(path).split("/")) & set(NEW_FOR_VIDEOS), path_name(path)
        return leaf

    started = jax.tree_util.tree_map_with_path(taken, new)
    frames = einops.rearrange(Z, "b t h w c -> (b t) 1 h w c")
    t = jnp.repeat(jnp.linspace(0.3, 0.8, 2), 4)
    words = jax.tree.map(lambda x: np.repeat(x, 4, axis=0), cond(2, None))
    each = image.apply({"params": trained}, frames, t, cond=words)
    np.testing.assert_allclose(run(video, started, Z), np.asarray(each).reshape(SHAPE), atol=1e-6)


@TEXTS
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_reads_what_its_name_says(text, kind):
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


@pytest.mark.parametrize("kind", KINDS)
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
