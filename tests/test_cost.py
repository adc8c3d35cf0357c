"""What a step is said to cost is what it costs."""

import jax
import jax.numpy as jnp
import pytest

from zoo.training import cost

A, B = jnp.ones((4, 8)), jnp.ones((8, 16))
PRODUCT = 2 * 4 * 8 * 16


def test_a_product_and_its_gradients():
    assert cost.matmul_flops(jnp.matmul, A, B) == PRODUCT
    both = jax.grad(lambda a, b: (a @ b).sum(), argnums=(0, 1))
    assert cost.matmul_flops(both, A, B) == 3 * PRODUCT


def test_a_batched_product():
    assert cost.matmul_flops(jax.vmap(jnp.matmul), jnp.ones((3, 4, 8)), jnp.ones((3, 8, 16))) == 3 * PRODUCT


def test_a_loop_counts_as_often_as_it_runs():
    square = jnp.ones((8, 8))
    loop = lambda x: jax.lax.scan(lambda c, _: (c @ square, None), x, length=5)[0]
    assert cost.matmul_flops(loop, A) == 5 * 2 * 4 * 8 * 8
    assert cost.matmul_flops(jax.jit(loop), A) == 5 * 2 * 4 * 8 * 8


def test_of_two_branches_the_dearer():
    branches = lambda p, a: jax.lax.cond(p, lambda a: (a @ B).sum(), lambda a: a.sum(), a)
    assert cost.matmul_flops(branches, True, A) == PRODUCT


def test_recomputation_counts():
    function = lambda a: jnp.tanh(jnp.tanh(a @ B) @ B.T).sum()
    plain = cost.matmul_flops(jax.grad(function), A)
    again = cost.matmul_flops(jax.grad(jax.checkpoint(function)), A)
    assert again > plain


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution(groups):
    image, kernel = jnp.ones((1, 6, 6, 4)), jnp.ones((3, 3, 4 // groups, 8))
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )
    assert cost.matmul_flops(convolve, image, kernel) == 2 * 36 * 8 * 9 * 4 // groups


def test_the_peak_is_a_rate_that_a_product_reaches():
    assert 1e8 < cost.matmul_peak(seconds=0.05) < 1e16


def test_memory_of_a_compiled_program_holds_its_arguments():
    compiled = jax.jit(jnp.matmul).lower(A, B).compile()
    assert cost.compiled_memory(compiled) >= A.nbytes + B.nbytes
    assert cost.peak_memory() > 2**20
    assert cost.device_memory() > 2**28
