"""One number for each picture and its prompt, to choose the best of several by."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from zoo.config import ability
from zoo.errors import BadInput, unknown
from zoo.run import Run
from zoo.scoring import ask, oracle
from zoo.scoring.clip_score import clip_score
from zoo.scoring.features import SHIPPED, clip_features

JUDGES = ("clip", "oracle")
Judge = Callable[[np.ndarray, Sequence[str]], np.ndarray]  # pictures (N, T, H, W, 3) and N prompts -> (N,)


def get_judge(name: str, world: str | None, clip: str | None = None) -> Judge:
    """The judge of that name; higher is better.

    Args:
      name: "clip", CLIPScore; "oracle", the share of a caption's claims that are right, and 1 more if all is; or the
        workdir of a run whose family rates pictures, see `method.Rating`.
      world: that the pictures show, for the oracle.
      clip: folder of a CLIP; by default the one that knows scenes.

    Raises:
      BadInput: another name, the oracle does not know such pictures, or the run cannot rate.
    """
    if name not in JUDGES and Path(name).is_dir():
        run = Run.open(name)
        ability(run.recipe.method, "rate")  # what cannot judge says so before pictures are made
        return lambda pictures, prompts: ask.rate(run, pictures, prompts)
    if name not in JUDGES:
        raise unknown("judge", name, (*JUDGES, "or the workdir of a run that rates pictures"))
    if name == "oracle" and world is None:
        raise BadInput("the oracle knows the truth of scenes alone: judge by clip")
    if name == "clip":
        network = clip_features(clip or SHIPPED)
        return lambda pictures, prompts: clip_score(network.pictures(pictures), network.texts(prompts))
    return lambda pictures, prompts: np.array(
        [claims_right(*pair, world) for pair in zip(pictures, prompts, strict=True)]
    )


def claims_right(picture: np.ndarray, prompt: str, world: str) -> float:
    """The share of the prompt's claims that the oracle finds right, in [0, 1], and 1 more if nothing is wrong."""
    judged = oracle.score(picture, prompt, world)
    return (oracle.share_right(judged) or 0.0) + judged["all"]


def best_of(pictures: np.ndarray, prompts: Sequence[str], count: int, judge: Judge) -> np.ndarray:
    """Which picture of each prompt is the best.

    Args:
      pictures: (N * count, T, H, W, 3), `count` of a prompt in a row.
      prompts: N.

    Returns:
      indices into the pictures, (N,).
    """
    scores = judge(pictures, [prompt for prompt in prompts for _ in range(count)])
    return np.arange(len(prompts)) * count + scores.reshape(len(prompts), count).argmax(axis=1)
