"""Low-rank changes against the matrices they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.adapters import lora
from zoo.errors import UserError
from zoo.families import build_method

PARAMS = {
    "layers": {"mlp": {"kernel": jnp.ones((3, 4, 5)), "bias": jnp.ones((3, 5))}},
    "out": {"kernel": jnp.ones((2, 3, 6)), "bias": jnp.ones(6)},
    "embed": {"kernel": jnp.ones((4, 7))},
}
RNG = jax.random.key(0)


def test_it_begins_as_no_change_at_all(same):
    assert same(lora.merge(PARAMS, lora.init(RNG, PARAMS, "kernel$", 2), 1.0), PARAMS)


def test_kernels_alone_are_changed_and_each_layer_by_its_own():
    adapters = lora.init(RNG, PARAMS, "kernel$", 2)
    shapes = {name: (pair["a"].shape, pair["b"].shape) for name, pair in adapters.items()}
    assert shapes == {
        "embed/kernel": ((4, 2), (2, 7)),
        "layers/mlp/kernel": ((3, 4, 2), (3, 2, 5)),
        "out/kernel": ((6, 2), (2, 6)),
    }
    moved = jax.tree.map(lambda leaf: leaf + jax.random.normal(RNG, leaf.shape), adapters)
    merged = lora.merge(PARAMS, moved, 3.0)
    pair = jax.tree.map(np.asarray, moved["layers/mlp/kernel"])
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
    shapes = jax.eval_shape(lambda: lora.init(RNG, vae.init(RNG, batch)["model"], "kernel$", 2))
    blocks = {name: pair["a"].shape for name, pair in shapes.items() if "/level_" in name}
    assert len(blocks) > 4
    for name, shape in blocks.items():
        assert len(shape) == 3 and shape[0] == (3 if "/level_0/" in name else 2), name


def test_the_pattern_chooses():
    assert set(lora.init(RNG, PARAMS, "mlp", 1)) == {"layers/mlp/kernel"}


@pytest.mark.parametrize(
    "pattern, rank, words", [("nothing", 2, "matches no kernel"), ("bias", 2, "no kernel"), ("mlp", 0, "at least 1")]
)
def test_what_cannot_be_is_an_error(pattern, rank, words):
    with pytest.raises(UserError, match=words):
        lora.init(RNG, PARAMS, pattern, rank)
