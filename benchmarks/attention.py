"""Prints the cost of attention over space and time, counted and timed, as Markdown.

    python -m benchmarks.attention

FLOPs are those of one layer's scores and weighted values, without projections and feed-forward, for a video of T frames
of n = side x side patches; they are counted in the program of the network itself.
"""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np

from zoo.nets.conditioning import Text
from zoo.nets.transformer import SPACE_TIME, Transformer
from zoo.training import cost

WIDTH, HEADS = 64, 2
FRAMES, SIDES, CUBES = (4, 16, 64), (8, 16, 32), (4, 8, 16)
MOST_TIMED = 4096  # tokens
SECONDS = 3.0  # of each timing


def network(kind: str) -> Transformer:
    """Returns a network of one layer."""
    return Transformer(width=WIDTH, depth=1, heads=HEADS, patch_size=1, space_time=kind, remat="none")


def inputs(frames: int, side: int) -> tuple:
    """Returns a video, its time, and a text without words."""
    text = Text(jnp.zeros((1, 0, WIDTH)), jnp.zeros(1, jnp.int32), jnp.zeros((1, WIDTH)), jnp.full(1, 8.0))
    return jnp.zeros((1, frames, side, side, 3)), jnp.zeros(1), text


def call(kind: str):
    """Returns the function (params, z, t, text) -> prediction of a kind of attention."""
    return lambda params, z, t, text: network(kind).apply({"params": params}, z, t, text=text)


def counted(kind: str, frames: int, side: int) -> float:
    """Returns attention's FLOPs divided by 4 x width, which is the number of pairs of a query and a key."""
    z, t, text = jax.eval_shape(lambda: inputs(frames, side))
    params = jax.eval_shape(lambda: network(kind).init(jax.random.key(0), *inputs(1, 1)[:2], text=inputs(1, 1)[2]))
    return cost.attention_flops(call(kind), params["params"], z, t, text) / (4 * WIDTH)


def expected(kind: str, frames: int, places: int) -> int:
    """Returns the number of pairs of a query and a key."""
    space, over_time = places**2 * frames, places * frames**2
    return {
        "spatial": space,
        "temporal": over_time,
        "factorized": space + over_time,
        "joint": (places * frames) ** 2,
        "none": places * frames,
    }[kind]


def timed(kinds: list[str], frames: int, side: int) -> dict[str, float]:
    """Returns the median seconds of a network with each kind of attention, measured in turns."""
    arguments = inputs(frames, side)
    calls = {}
    for kind in kinds:
        params = network(kind).init(jax.random.key(0), *arguments[:2], text=arguments[2])["params"]
        calls[kind] = jax.jit(call(kind)).lower(params, *arguments).compile(), params
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(taken[kinds[0]]) < 4:
        for kind, (compiled, params) in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(compiled(params, *arguments))
            taken[kind].append(time.perf_counter() - began)
    return {kind: float(np.median(seconds[1:])) for kind, seconds in taken.items()}


def main() -> None:
    """Prints the tables."""
    kinds = list(SPACE_TIME)
    heads = [f"{kind}, pairs" for kind in kinds] + [f"{kind}, ms" for kind in kinds]
    print(f"| T | side | {' | '.join(heads)} |\n|{'---|' * (2 + len(heads))}")
    for frames, side in itertools.product(FRAMES, SIDES):
        pairs = {kind: counted(kind, frames, side) for kind in kinds}
        for kind in kinds:
            if pairs[kind] != expected(kind, frames, side**2):
                raise SystemExit(f"{kind}: counted {pairs[kind]}, expected {expected(kind, frames, side**2)}")
        seconds = timed(kinds, frames, side) if frames * side**2 <= MOST_TIMED else {}
        cells = [f"{pairs[kind]:.3g}" for kind in kinds] + [
            f"{1000 * seconds[kind]:.1f}" if seconds else "" for kind in kinds
        ]
        print(f"| {frames} | {side} | " + " | ".join(cells) + " |", flush=True)
    print("\n| s frames of s x s patches | joint, pairs per query | factorized | ratio |\n|---|---|---|---|")
    for s in CUBES:
        joint, factorized = (counted(kind, s, s) / s**3 for kind in ("joint", "factorized"))
        print(f"| {s} | {joint:.0f} | {factorized:.0f} | {joint / factorized:.1f} |")


if __name__ == "__main__":
    main()
