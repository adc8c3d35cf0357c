"""How fast a recipe is: python -m zoo.bench --config configs/diffusion.py:demo

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

import jax
import numpy as np
from absl import app, flags

from zoo import config as configs
from zoo.errors import BadInput, exit_on_bad_input
from zoo.run import Recipe, prepare
from zoo.scoring.rewards import teach
from zoo.training import cost, parallel
from zoo.training.loop import Loop, step_flops, step_function

FLAGS = flags.FLAGS
configs.define_config_flag()
flags.DEFINE_float("seconds", 10.0, "How long to measure each rate.", lower_bound=0.1)
flags.DEFINE_string("out", None, "JSON file to write the report to.")
flags.DEFINE_bool("first_step", False, "Only take one call of steps and print its times; the report starts itself so.")


class Bench:
    """A recipe's objects, and one batch of its data on the devices."""

    def __init__(self, config):
        self.loop = configs.build(Loop, config.loop, "loop")
        self.source, self.recipe = prepare(config)
        teach(self.recipe)
        self.data = self.recipe.data
        parallel.per_device(self.data.batch_size, self.loop.accumulate)

    def compile_step(self):
        """Returns the compiled step, a replicated state, a sharded call's batches, and seconds of compilation."""
        state = parallel.replicate(self.recipe.create_state())
        call = list(itertools.islice(self.recipe.stream(self.source), self.loop.steps_per_call))
        batch = next(parallel.prefetch(iter([parallel.stack_and_shard(call)])))
        step = parallel.pmap(step_function(self.recipe, self.loop, parallel.Devices()))
        began = time.perf_counter()
        compiled = step.lower(state, batch).compile()
        return compiled, state, batch, time.perf_counter() - began


def first_step(config) -> dict[str, float]:
    """Seconds from the start of this process to the end of its first call of steps, and those of compiling it."""
    step, state, batch, compile_seconds = Bench(config).compile_step()
    jax.block_until_ready(step(state, batch))
    return {"compile_s": compile_seconds, "to_first_step_s": time.time() - _process_start()}


def _process_start() -> float:
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    with open("/proc/uptime") as file:
        up = float(file.read().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def start_times(argv: list[str]) -> dict[str, dict[str, float]]:
    """`first_step` in two new processes: with an empty compilation cache, and with the one that the first left."""
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
        return {name: _child(argv, environment) for name in ("cold", "cached")}


def _child(argv: list[str], environment) -> dict[str, float]:
    command = [sys.executable, "-m", "zoo.bench", *argv, "--first_step"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def repeat(seconds: float, call) -> float:
    """Calls `call` for about so long after one warm-up; returns the median seconds of a call."""
    call()
    taken, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 3:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return float(np.median(taken))


def measure(config, seconds: float) -> dict[str, float]:
    """Rates of training, of the data alone and of sampling, and the memory they took."""
    bench = Bench(config)
    recipe, batch_size, per_call = bench.recipe, bench.data.batch_size, bench.loop.steps_per_call
    step, state, batch, _ = bench.compile_step()

    def call():
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    peak = cost.matmul_peak(configs.get_dtype(config.dtype)) * jax.device_count()
    step_seconds = repeat(seconds, call) / per_call
    flops = step_flops(recipe, bench.loop)
    report = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(recipe.state_shapes().params)),
        "step_s": step_seconds,
        "pictures_per_s": batch_size / step_seconds,
        "flops_per_s": flops / step_seconds,
        "matmul_peak_flops_per_s": peak,
        "share_of_matmul_peak": flops / step_seconds / peak,
    }
    stream = recipe.stream(bench.source)
    report["input_pictures_per_s"] = batch_size / jax.process_count() / repeat(seconds, lambda: next(stream))

    if hasattr(recipe.method, "sample"):
        report["sampler_pictures_per_s"] = sampling_rate(recipe, seconds)
    report["peak_memory_mib"] = cost.peak_memory() / 2**20
    return report


def sampling_rate(recipe: Recipe, seconds: float) -> float:
    """Pictures a second that the recipe's sampler makes on all local devices."""
    sampler = recipe.sampler()
    count = sampler.per_device * len(sampler.devices)
    tokens = recipe.tokenizer.encode([""] * count)
    params = recipe.create_state().params
    return count / repeat(seconds, lambda: sampler(params, tokens, seed=0))


def main(argv):
    if argv[1:]:
        raise BadInput(f"no such argument: {argv[1]!r}; flags begin with --")
    parallel.use_compilation_cache()
    if FLAGS.first_step:
        print(json.dumps(first_step(FLAGS.config)))
        return
    device = jax.devices()[0]
    machine = f"{jax.device_count()} x {device.device_kind} ({device.platform}), {os.cpu_count()} cores"
    report = {"command": " ".join(sys.argv[1:]), "machine": machine, "jax": jax.__version__}
    report |= measure(FLAGS.config, FLAGS.seconds) | {"start": start_times(sys.argv[1:])}
    text = json.dumps(report, indent=2)
    print(text)
    if FLAGS.out:
        with open(FLAGS.out, "w") as file:
            file.write(text + "\n")


if __name__ == "__main__":
    with exit_on_bad_input():
        app.run(main, flags_parser=configs.parse_flags)
