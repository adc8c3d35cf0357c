"""Low-rank changes against the matrices they stand for."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import config as configs
from zoo.adapters import lora
from zoo.errors import UserError
from zoo.families import build_method
from zoo.trees import path_name

PARAMS = {
    "model": {
        "layers": {"mlp": {"kernel": jnp.ones((3, 4, 5)), "bias": jnp.ones((3, 5))}},
        "out": {"kernel": jnp.ones((2, 3, 6)), "bias": jnp.ones(6)},
        "embed": {"kernel": jnp.ones((4, 7))},
    }
}
KERNELS = {"model/layers/mlp/kernel": (3, 4, 5), "model/out/kernel": (6, 6), "model/embed/kernel": (4, 7)}
RNG = jax.random.key(0)


def test_it_begins_as_no_change_at_all(same):
    assert same(lora.merge(PARAMS, lora.init(RNG, KERNELS, "kernel$", 2), 1.0), PARAMS)


def test_kernels_alone_are_changed_and_each_layer_by_its_own():
    adapters = lora.init(RNG, KERNELS, "kernel$", 2)
    shapes = {name: (pair["a"].shape, pair["b"].shape) for name, pair in adapters.items()}
    assert shapes == {
        "model/embed/kernel": ((4, 2), (2, 7)),
        "model/layers/mlp/kernel": ((3, 4, 2), (3, 2, 5)),
        "model/out/kernel": ((6, 2), (2, 6)),
    }
    moved = jax.tree.map(lambda leaf: leaf + jax.random.normal(RNG, leaf.shape), adapters)
    merged = lora.merge(PARAMS, moved, 3.0)["model"]
    pair = jax.tree.map(np.asarray, moved["model/layers/mlp/kernel"])
    kernel = merged["layers"]["mlp"]["kernel"]
    for i in range(3):
        np.testing.assert_allclose(kernel[i], 1 + 1.5 * pair["a"][i] @ pair["b"][i], rtol=1e-4)
    flat = np.asarray(merged["out"]["kernel"] - 1).reshape(6, 6)
    assert np.linalg.matrix_rank(flat, tol=1e-4) == 2
    assert (merged["out"]["bias"] == 1).all() and (merged["layers"]["mlp"]["bias"] == 1).all()


def test_the_levels_of_a_hierarchy_are_stacks_too():
    net = dict(patch_size=2, width=8, bottleneck=2, encoder_blocks=(3, 2), decoder_blocks=(3, 2), latent_dim=2, heads=2)
    section = dict(name="vae", net=net | dict(conditioner=dict(width=8, depth=1, heads=2), mixtures=1))
    batch = dict(inputs=jnp.zeros((1, 1, 8, 8, 3), jnp.uint8), cond=dict(tokens=jnp.zeros((1, 4), jnp.int32)))
    vae = build_method(section, 20, "float32")
    blocks = {name: shape for name, shape in lora.kernels(vae.init, RNG, batch).items() if "/level_" in name}
    assert len(blocks) > 4
    for name, shape in blocks.items():
        assert len(shape) == 3 and shape[0] == (3 if "/level_0/" in name else 2), name


class Block(nn.Module):
    """A layer of every kind of kernel."""

    @nn.compact
    def __call__(self, x, _):  # (B, H, W, 12)
        y = nn.DenseGeneral((3, 4), name="query")(nn.Conv(12, (3, 3), name="mix")(x))
        return nn.DenseGeneral(12, axis=(-2, -1), name="out")(y), None


def test_kernels_are_matrices_of_the_axes_that_their_modules_declare():
    once = lambda rng, x: {"model": Block().init(rng, x, None)["params"]}
    x, expected = jnp.zeros((1, 4, 4, 12)), {"mix": (108, 12), "query": (12, 12), "out": (12, 12)}
    assert lora.kernels(once, RNG, x) == {f"model/{name}/kernel": shape for name, shape in expected.items()}


def test_a_scan_of_any_name_stacks_its_kernels():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=5)
            return blocks(name="anything")(x, None)[0]

    found = lora.kernels(lambda rng, x: {"model": Net().init(rng, x)["params"]}, RNG, jnp.zeros((1, 4, 4, 12)))
    assert found["model/anything/query/kernel"] == (5, 12, 12) and found["model/anything/mix/kernel"] == (5, 108, 12)


def test_attention_of_384_channels_takes_as_many_numbers_as_lora():
    section = dict(name="diffusion", net=dict(width=384, depth=2, heads=6, patch_size=4))
    section["net"]["conditioner"] = dict(width=32, depth=1, heads=2)
    batch = dict(inputs=jnp.zeros((1, 1, 8, 8, 3), jnp.uint8), cond=dict(tokens=jnp.zeros((1, 4), jnp.int32)))
    kernels = lora.kernels(build_method(section, 20, "float32").init, RNG, batch)
    chosen = lora.init(RNG, kernels, "network/layers/.*(query|key|value|out)/kernel$", 8)
    assert chosen
    for name, pair in chosen.items():
        if "context" not in name:
            assert (pair["a"][0].size + pair["b"][0].size) == 2 * 8 * 384, (name, pair["a"].shape, pair["b"].shape)


def test_the_pattern_chooses():
    assert set(lora.init(RNG, KERNELS, "mlp", 1)) == {"model/layers/mlp/kernel"}


def test_changes_of_kernels_that_are_zero_are_no_distance():
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    assert lora.distance(zeros, lora.init(RNG, KERNELS, "kernel$", 2), 1.0) == 0


@pytest.mark.parametrize(
    "pattern, rank, words",
    [
        ("nothing", 2, "matches no kernel"),
        ("bias", 2, "no kernel"),
        ("mlp", 0, "at least 1"),
        ("kernel$", 3, "a change of rank 3 has as many numbers as each kernel"),
    ],
)
def test_what_cannot_be_is_an_error(pattern, rank, words):
    with pytest.raises(UserError, match=words):
        lora.init(RNG, KERNELS, pattern, rank)


@pytest.mark.parametrize("spec", ["diffusion", "flow", "flow:jet", "vae", "vae:autoencoder", "gan", "diffusion:critic"])
def test_every_kernel_of_a_family_is_found(spec):
    name, _, words = spec.partition(":")
    config = configs.load(f"{name}:{words},test")
    section = config.method.to_dict()
    method = build_method(section, 20, "float32")
    cond = dict(tokens=jnp.zeros((1, config.data.text_length), jnp.int32))
    batch = dict(inputs=jnp.zeros((1, 1, 16, 16, 3), jnp.uint8), cond=cond)
    shapes = jax.eval_shape(method.init, RNG, batch)
    leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    found = lora.kernels(method.init, RNG, batch)
    assert found.keys() == {name for name in leaves if name.endswith("/kernel")} and found
    for name, shape in found.items():
        assert math.prod(shape) == leaves[name].size and 2 <= len(shape) <= 4
