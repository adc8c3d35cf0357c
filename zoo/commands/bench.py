"""Measures how fast a recipe is.

    python -m zoo bench --config configs/diffusion.py:demo

Everything is measured in one run, since machines differ and share: set two numbers of one report against each other,
not those of two reports.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from zoo import config as configs
from zoo.commands.scaffold import Command
from zoo.families import get_dtype
from zoo.files import write_json
from zoo.method import Generates
from zoo.runs.dependencies import prepare
from zoo.runs.inherit import completed
from zoo.runs.recipe import Recipe
from zoo.training import cost, parallel
from zoo.training.lengths import Loop

FLAGS = flags.FLAGS
PARTS = "step", "input", "sampler", "start"


def define_flags() -> None:
    """Defines the flags of this command."""
    configs.define_config_flag()
    flags.DEFINE_float("seconds", 10.0, "Seconds of each measurement.", lower_bound=0.1)
    flags.DEFINE_string("out", None, "JSON file to write the report to.")
    flags.DEFINE_multi_enum(
        "part", PARTS, PARTS, "What to measure: training steps, the data alone, sampling, and two cold starts."
    )
    flags.DEFINE_bool(
        "first_step", False, "Only take one call of steps and print its times; the report starts itself so."
    )


class Bench:
    """A recipe's objects, and one batch of its data on the devices."""

    def __init__(self, config):
        self.loop = configs.build(Loop, config.loop, "loop")
        self.source, self.recipe = prepare(completed(config))
        self.data = self.recipe.data
        parallel.per_device(self.data.batch_size, self.loop.accumulate)

    def first_step(self) -> tuple[Callable[[], None], dict[str, float]]:
        """Returns a function that takes a call of steps, compiled and called once, and how long that took."""
        state = parallel.replicate(self.recipe.create_state())
        frozen = parallel.replicate(self.recipe.dependencies.frozen)
        batches = list(itertools.islice(self.recipe.stream(self.source), self.loop.steps_per_call))
        batch = next(parallel.prefetch(iter([parallel.stack_and_shard(batches)])))
        step = parallel.pmap(self.recipe.step(self.loop.steps, self.loop.accumulate, parallel.Devices()))
        began = time.perf_counter()
        compiled = step.lower(state, frozen, batch).compile()
        compile_seconds = time.perf_counter() - began

        def call():
            nonlocal state
            state, metrics = compiled(state, frozen, batch)
            jax.block_until_ready((state, metrics))

        call()
        return call, {"compile_s": compile_seconds, "to_first_step_s": time.time() - _process_start()}


def _process_start() -> float:
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime") as file:
        up = float(file.read().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def start_times(argv: list[str]) -> dict[str, dict[str, float]]:
    """First steps of two new processes: with an empty compilation cache, and with the one that the first left."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        return {name: _child(argv, environment) for name in ("cold", "cached")}


def _child(argv: list[str], environment) -> dict[str, float]:
    command = [sys.executable, "-m", "zoo", "bench", *argv, "--first_step"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def time_calls(seconds: float, call) -> float:
    """Calls `call` for about so long after one warm-up; returns the median seconds of a call."""
    call()
    taken, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 3:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def measure(config, seconds: float, parts: Sequence[str]) -> dict[str, float]:
    """Rates of training, of the data alone and of sampling, and the memory they took."""
    bench, report = Bench(config), {}
    if "step" in parts:
        report |= training_rates(bench, seconds)
    if "input" in parts:
        stream, share = bench.recipe.stream(bench.source), bench.data.batch_size / jax.process_count()
        report["input_images_per_s"] = share / time_calls(seconds, lambda: next(stream))
    if "sampler" in parts and isinstance(bench.recipe.method, Generates):
        report["sampler_images_per_s"] = sampling_rate(bench.recipe, seconds)
    return report | {"peak_memory_mib": cost.peak_memory() / 2**20}


def training_rates(bench: Bench, seconds: float) -> dict[str, float]:
    """Seconds until the first step is done and of a later one, and its share of the matmul peak."""
    call, report = bench.first_step()
    peak = cost.matmul_peak(get_dtype(bench.recipe.config.dtype)) * jax.device_count()
    step_seconds = time_calls(seconds, call) / bench.loop.steps_per_call
    flops = bench.recipe.step_flops(bench.loop.accumulate)
    return report | {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(bench.recipe.state_shapes().params)),
        "step_s": step_seconds,
        "images_per_s": bench.data.batch_size / step_seconds,
        "flops_per_s": flops / step_seconds,
        "matmul_peak_flops_per_s": peak,
        "share_of_matmul_peak": flops / step_seconds / peak,
    }


def sampling_rate(recipe: Recipe, seconds: float) -> float:
    """Images a second that the recipe's sampler makes on all local devices."""
    sampler = recipe.sampler()
    count = sampler.per_device * jax.local_device_count()
    cond = recipe.conditions([""] * count, inputs=recipe.blank_batch(count)["inputs"])
    params = parallel.place(recipe.create_state().params | {"frozen": recipe.dependencies.frozen})
    return count / time_calls(seconds, lambda: sampler(params, cond, seed=0))


def main(_: list[str]) -> None:
    """Runs the command on parsed flags."""
    if FLAGS.first_step:
        print(json.dumps(Bench(FLAGS.config).first_step()[1]))
        return
    device = jax.devices()[0]
    machine = f"{jax.device_count()} x {device.device_kind} ({device.platform}), {os.cpu_count()} cores"
    words = sys.argv[2:]  # of python -m zoo bench
    report: dict[str, Any] = {"command": " ".join(words), "machine": machine, "jax": jax.__version__}
    report |= measure(FLAGS.config, FLAGS.seconds, FLAGS.part)
    if "start" in FLAGS.part:
        report["start"] = start_times(words)
    print(json.dumps(report, indent=2))
    if FLAGS.out:
        write_json(FLAGS.out, report)


COMMAND = Command(main, define_flags, suffixes=(".json",))
