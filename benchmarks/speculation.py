"""Prints calls of the network and images/s of an autoregressive run by what guesses its codes, as Markdown.

    python -m benchmarks.speculation --workdir RUN --draft ngram --draft jacobi --draft SMALLER_RUN

All rows of a batch are timed in turn, in one run on one device; the ratio to plain decoding is of the same rounds.
"""

import argparse
import time

import jax
import numpy as np

from zoo.errors import UserError, exit_on_user_error
from zoo.evaluation.registry import first_of
from zoo.families import require
from zoo.method import Speculates
from zoo.runs.dependencies import open_run
from zoo.runs.sampler import sample_options
from zoo.runs.speculation import with_draft

PLAIN = "none"


def compiled(run, workdir, draft, length, batch):
    """Returns a function of keys and conditions that draws codes and counts calls, compiled for so many samples."""
    options = {}
    if draft != PLAIN:
        run, options = with_draft(run, workdir, draft)
    recipe, method = run.recipe, require(run.method, Speculates)
    chosen = sample_options(method, dict(recipe.config.sample) | options | {"draft_length": length})
    params = jax.device_put(run.params, jax.devices()[0])

    @jax.jit
    def draw(params, rng, cond):
        return method.sample_counted(params, rng, cond, recipe.shape, chosen)

    blank = recipe.conditions([""] * batch)
    program = draw.lower(params, jax.random.split(jax.random.key(0), batch), blank).compile()
    return lambda rng, cond: jax.block_until_ready(program(params, rng, cond))


def measure(run, workdir, drafts, length, batch, rounds):
    """Returns seconds a round and calls of each sample, (rounds,) and (rounds, batch), by draft.

    Args:
      run: autoregressive run.
      workdir: its folder.
      drafts: values of `sample.py --speculate`, or `PLAIN`.
      length: codes of a draft.
      batch: samples at once.
      rounds: how often each is timed; round i has other captions and keys than round j.
    """
    programs = {draft: compiled(run, workdir, draft, length, batch) for draft in drafts}
    captions = list(first_of(run.recipe.data, "test", rounds * batch).require_captions())
    captions = [captions[i % len(captions)] for i in range(rounds * batch)]
    seconds, calls = ({draft: [] for draft in drafts} for _ in range(2))
    for number in range(rounds):
        cond = run.recipe.conditions(captions[number * batch : (number + 1) * batch])
        rng = jax.random.split(jax.random.key(number), batch)
        for draft, program in programs.items():
            began = time.perf_counter()
            _, count = program(rng, cond)
            seconds[draft].append(time.perf_counter() - began)
            calls[draft].append(np.asarray(count))
    return jax.tree.map(np.array, (seconds, calls), is_leaf=lambda x: isinstance(x, list))


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="folder of an autoregressive run")
    parser.add_argument("--draft", action="append", required=True, help="as sample.py --speculate; repeat it")
    parser.add_argument("--length", type=int, default=4, help="codes of a draft")
    parser.add_argument("--batch", type=int, action="append", help="samples at once; by default 1, 16 and 64")
    parser.add_argument("--rounds", type=int, default=4, help="how often each is timed")
    chosen = parser.parse_args()
    if min(chosen.rounds, *(chosen.batch or [1])) < 1:
        raise UserError("--batch and --rounds are at least 1")
    run = open_run(chosen.workdir)
    print("| samples at once | draft | calls of the network | codes a call | images/s | of plain decoding's |")
    print("|---|---|---|---|---|---|")
    for batch in chosen.batch or (1, 16, 64):
        drafts = [PLAIN, *chosen.draft]
        seconds, calls = measure(run, chosen.workdir, drafts, chosen.length, batch, chosen.rounds)
        size = int(np.prod(run.recipe.shape))
        for draft in drafts:
            ratio = np.median(seconds[PLAIN] / seconds[draft])
            mean = calls[draft].mean()
            speed = batch / np.median(seconds[draft])
            print(f"| {batch} | {draft} | {mean:.1f} | {size / mean:.2f} | {speed:.2f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
