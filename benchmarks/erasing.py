"""Prints how well codes that are wrong are found, as Markdown.

    python -m benchmarks.erasing --workdir RUN

RUN is a masked generator, or one with a critic of its codes. A share of the codes of held-out images is replaced, and
then as many codes are named as are wrong: the share of the wrong that is named (recall) is therefore that of the named
that is wrong (precision).
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from zoo.decoding.draws import draw
from zoo.decoding.masked import lowest
from zoo.distributions import code_log_prob
from zoo.errors import UserError, exit_on_user_error
from zoo.evaluation.bootstrap import interval
from zoo.evaluation.registry import first_of
from zoo.methods.masked import Masked
from zoo.runs.dependencies import open_run
from zoo.wrappers.token_critic import TokenCritic

AT_ONCE = 64  # images
REPLACED = "by others at random", "by what is drawn at once"


def replaced(rng, ids, share, scores):
    """Replaces a share of the codes of each sample, at least one; returns codes, and which are wrong, bool (B, N).

    Args:
      rng: single key.
      ids: int32 (B, N).
      share: of the codes of a sample, in (0, 1).
      scores: places, bool (B, N) -> scores (B, N, V) of the codes that are drawn there; never what was there.
    """
    rng_place, rng_code = jax.random.split(rng)
    count = jnp.full(len(ids), max(1, round(share * ids.shape[1])))
    wrong = lowest(jax.random.uniform(rng_place, ids.shape), count)
    others = scores(wrong)
    others = jnp.where(jax.nn.one_hot(ids, others.shape[-1], dtype=bool), -jnp.inf, others)
    return jnp.where(wrong, draw(jax.random.split(rng_code, len(ids)), others), ids), wrong


def found(scores, wrong):
    """Share of the wrong codes of each sample that are among as many of the lowest scores, (B,)."""
    return (lowest(scores, wrong.sum(axis=1)) & wrong).sum(axis=1) / wrong.sum(axis=1)


def log_prob_given_others(logits, ids, mask):
    """Log-probability of each code given all others, (B, N); `logits`: codes (B, N) -> (B, N, V)."""

    def one(i):
        return code_log_prob(logits(ids.at[:, i].set(mask))[:, i], ids[:, i])

    return jax.lax.map(one, jnp.arange(ids.shape[1])).T


def shares_found(method, params, cond, codes, rng, share):
    """Returns the shares that each way finds, (B,), by what codes are replaced by, and the way.

    Args:
      method: masked generator, or one with a critic.
      params: its parameters.
      cond: encoded conditions.
      codes: of real images, int32 (B, T, h, w, c).
      rng: single key.
      share: of the codes that are replaced.
    """
    masked = method.base if isinstance(method, TokenCritic) else method
    ids = codes.reshape(len(codes), -1)

    def logits(ids):
        return masked.logits(params, ids.reshape(codes.shape), cond).reshape(*ids.shape, masked.codes)

    ways = {
        "the least likely given all others": lambda ids: log_prob_given_others(logits, ids, masked.codes),
        "the least likely where it is seen too": lambda ids: code_log_prob(logits(ids), ids),
        "at random": lambda ids: jax.random.uniform(jax.random.fold_in(rng, 2), ids.shape),
    }
    if isinstance(method, TokenCritic):
        ways["by the critic"] = lambda ids: method.score_codes(params, ids.reshape(codes.shape), cond)
    alike = jnp.zeros((*ids.shape, masked.codes))
    drawn = (lambda wrong: alike), (lambda wrong: logits(jnp.where(wrong, masked.codes, ids)))
    shares = {}
    for number, (by, scores) in enumerate(zip(REPLACED, drawn, strict=True)):
        changed, wrong = replaced(jax.random.fold_in(rng, number), ids, share, scores)
        shares[by] = {name: found(way(changed).reshape(ids.shape), wrong) for name, way in ways.items()}
    return shares


def measure(run, num, share, seed):
    """Returns what `shares_found` does, of so many test images."""
    recipe, method = run.recipe, run.method
    if not isinstance(method, Masked | TokenCritic):
        raise UserError(f"needs a masked generator, and {type(method).__name__} is none")
    measured = jax.jit(lambda params, cond, codes, rng: shares_found(method, params, cond, codes, rng, share))
    real, parts = first_of(recipe.data, "test", num), []
    for start in range(0, num, AT_ONCE):
        part = slice(start, start + AT_ONCE)
        codes = jnp.asarray(recipe.codec.encode(recipe.dependencies.frozen, real.images[part]), jnp.int32)
        cond = recipe.conditions(real.require_captions()[part], inputs=real.images[part])
        parts.append(measured(run.params, cond, codes, jax.random.fold_in(jax.random.key(seed), start)))
    return jax.tree.map(lambda *values: np.concatenate(values), *parts)


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="folder of a masked run")
    parser.add_argument("--num", type=int, default=256, help="test images")
    parser.add_argument("--share", type=float, default=0.1, help="of the codes that are replaced")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.num < 2 or not 0 < chosen.share < 1:
        raise UserError(f"--num is at least 2 and --share in (0, 1), got {chosen.num} and {chosen.share:g}")
    shares = measure(open_run(chosen.workdir), chosen.num, chosen.share, chosen.seed)
    print(f"| {chosen.share:.0%} of the codes replaced | " + " | ".join(REPLACED) + " |")
    print("|---|" + "---|" * len(REPLACED))
    for name in shares[REPLACED[0]]:
        cells = []
        for by in REPLACED:
            low, high = interval(shares[by][name])
            cells.append(f"{shares[by][name].mean():.1%} [{low:.1%}, {high:.1%}]")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
