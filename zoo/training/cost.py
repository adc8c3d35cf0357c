"""Cost of a step: matmul FLOPs by reading the program, the device's own matmul peak, and memory."""

import math
import os
import resource
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp


def matmul_flops(function: Callable, *args) -> int:
    """FLOPs of all matrix products and convolutions in function(*args), loops multiplied out.

    XLA's own count takes the body of a loop once, and our layers and steps are loops. Branches of a conditional
    count as the dearest; a while loop of unknown length counts once.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr, every_product)


def attention_flops(function: Callable, *args) -> int:
    """FLOPs of the products of queries with keys, and of weights with values, alone: of those with batch axes."""
    return _jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr, has_batch_axes)


def every_product(equation) -> bool:
    """Whether to count a matrix product: always."""
    del equation
    return True


def has_batch_axes(equation) -> bool:
    """Whether both sides of a matrix product depend on the sample: products with parameters have no batch axis."""
    return equation.primitive.name == "dot_general" and bool(equation.params["dimension_numbers"][1][0])


def _jaxpr_flops(jaxpr, counts: Callable) -> int:
    return sum(_equation_flops(equation, counts) for equation in jaxpr.eqns)


def _equation_flops(equation, counts: Callable) -> int:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated") and not counts(equation):
        return 0
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        out_channels = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * kernel.size // out_channels
    inner = [
        _jaxpr_flops(getattr(p, "jaxpr", p), counts)
        for value in params.values()
        for p in (value if isinstance(value, tuple | list) else (value,))
        if hasattr(getattr(p, "jaxpr", p), "eqns")
    ]
    if name == "scan":
        return params["length"] * sum(inner)
    return max(inner, default=0) if name == "cond" else sum(inner)


def matmul_peak(dtype=jnp.float32, seconds: float = 0.5) -> float:
    """The FLOP/s that this device reaches on a large square matrix product, the best of repeated tries."""
    size = 1024 if jax.default_backend() == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    product = jax.jit(jnp.matmul)
    product(a, a).block_until_ready()
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(a, a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def device_memory() -> int:
    """Bytes of one device, or of the host where the device is the CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def peak_memory() -> int:
    """The most bytes in use so far: of the first device, or of this process where the device is the CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("peak_bytes_in_use") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compiled_memory(compiled) -> int:
    """Bytes that a compiled program needs at once on each device: arguments, results and temporaries."""
    analysis = compiled.memory_analysis()
    return (
        analysis.argument_size_in_bytes
        + analysis.output_size_in_bytes
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )
