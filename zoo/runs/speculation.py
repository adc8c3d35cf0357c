"""Opens what guesses codes for a run that draws them one after the other, see `decoding.speculative`."""

import dataclasses
from typing import Any, cast

import jax
import numpy as np

from zoo.decoding import lookup
from zoo.decoding.speculative import JACOBI
from zoo.errors import UserError, named
from zoo.families import require
from zoo.method import Drafts, Speculates, without_frozen
from zoo.runs.codec import Codec
from zoo.runs.dependencies import check_shared, open_run
from zoo.runs.run import Run

TABLES = {"ngram": lookup.NGrams, "search": lookup.Search, "last_call": lookup.LastCall}
LAYERS = "layers:"  # and how many of the run's own layers
NAMES = (JACOBI, *TABLES)


def with_draft(run: Run, workdir: str, name: str) -> tuple[Run, dict[str, Any]]:
    """Returns the run with the parameters of its draft, and the sampling option for it.

    Args:
      run: run that draws codes one after the other.
      workdir: its folder, for errors.
      name: one of `NAMES`, "layers:K" for the run's own first K layers, or the workdir of a run.

    Raises:
      UserError: the run draws no codes one after the other; or the draft is a run that draws none, or of another
        tokenizer, size or kind of codes.
    """
    named(f"--speculate: {workdir}", lambda: require(run.method, Speculates))
    if name == JACOBI:
        return run, {"draft": JACOBI}
    if name.startswith(LAYERS):
        method, params = named(f"--speculate {name}", lambda: first_layers(run, name.removeprefix(LAYERS)))
        return run.drafted_by(params), {"draft": method}
    if name in TABLES:
        table = TABLES[name](cast(Codec, run.recipe.codec).codes)
        return run.drafted_by(table.table(lambda: training_codes(run))), {"draft": table}
    draft = named(f"--speculate (or one of {', '.join(NAMES)})", lambda: open_run(name))
    method = named(f"--speculate: {name}", lambda: require(draft.method, Drafts))
    check_shared("--speculate", name, draft, run.recipe)
    return run.drafted_by(draft.params), {"draft": method}


def first_layers(run: Run, count: str) -> tuple[Any, dict[str, Any]]:
    """Returns a run's family with its first layers alone, and their parameters: an early exit (LayerSkip 2404.16710).

    What comes after the layers, which was trained behind all of them, reads what the first ones made.

    Args:
      run: run that draws codes one after the other.
      count: number of layers, as text.

    Raises:
      UserError: this is no number of at least 1 and below that of all layers.
    """
    method: Any = run.method
    if not hasattr(method, "net"):
        raise UserError(f"the run is a {type(method).__name__}, whose layers are its base's: name a run of the base")
    depth = method.net["depth"]
    if not count.isdigit() or not 0 < int(count) < depth:
        raise UserError(f"{count!r} is no number of layers from 1 to {depth - 1}, of the {depth} of the run")
    first = dataclasses.replace(method, net=dict(method.net) | {"depth": int(count)})
    shapes = jax.eval_shape(first.init, jax.random.key(0), run.recipe.blank_batch(1))
    of_first = lambda like, own: own[: len(like)] if own.shape != like.shape else own  # layers lie along the first axis
    return first, jax.tree.map(of_first, shapes, without_frozen(run.params))


def training_codes(run: Run) -> np.ndarray:
    """Returns the codes of the run's training images, (M, T, h, w, c)."""
    recipe = run.recipe
    source = recipe.encoded(recipe.data.open("train"), "train")
    return np.stack([source[i]["inputs"] for i in range(len(source))])
