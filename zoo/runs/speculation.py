"""Opens what guesses codes for a run that draws them one after the other, see `decoding.speculative`."""

from typing import Any, cast

import numpy as np

from zoo.decoding import lookup
from zoo.decoding.speculative import JACOBI
from zoo.errors import named
from zoo.families import require
from zoo.method import Drafts, Speculates
from zoo.runs.codec import Codec
from zoo.runs.dependencies import check_shared, open_run
from zoo.runs.run import Run

TABLES = {"ngram": lookup.NGrams, "search": lookup.Search, "last_call": lookup.LastCall}
NAMES = (JACOBI, *TABLES)


def with_draft(run: Run, workdir: str, name: str) -> tuple[Run, dict[str, Any]]:
    """Returns the run with the parameters of its draft, and the sampling option for it.

    Args:
      run: run that draws codes one after the other.
      workdir: its folder, for errors.
      name: one of `NAMES`, or the workdir of a run.

    Raises:
      UserError: the run draws no codes one after the other; or the draft is a run that draws none, or of another
        tokenizer, size or kind of codes.
    """
    named(f"--speculate: {workdir}", lambda: require(run.method, Speculates))
    if name == JACOBI:
        return run, {"draft": JACOBI}
    if name in TABLES:
        table = TABLES[name](cast(Codec, run.recipe.codec).codes)
        return run.drafted_by(table.table(lambda: training_codes(run))), {"draft": table}
    draft = named(f"--speculate (or one of {', '.join(NAMES)})", lambda: open_run(name))
    method = named(f"--speculate: {name}", lambda: require(draft.method, Drafts))
    check_shared("--speculate", name, draft, run.recipe)
    return run.drafted_by(draft.params), {"draft": method}


def training_codes(run: Run) -> np.ndarray:
    """Returns the codes of the run's training images, (M, T, h, w, c)."""
    recipe = run.recipe
    source = recipe.encoded(recipe.data.open("train"), "train")
    return np.stack([source[i]["inputs"] for i in range(len(source))])
