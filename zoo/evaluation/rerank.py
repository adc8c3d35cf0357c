"""One number for each image and its prompt, by which the best of several is chosen."""

from collections.abc import Callable, Sequence

import numpy as np

from zoo.errors import UserError
from zoo.evaluation import model_eval
from zoo.evaluation.clip_score import clip_score
from zoo.evaluation.features import clip_features
from zoo.runs.dependencies import open_any
from zoo.runs.run import ClipRun
from zoo.scenes import oracle

HostReward = Callable[[np.ndarray, Sequence[str]], np.ndarray]  # images (N, T, H, W, 3) and N prompts -> (N,)


def get_reward(name: str, world: str | None, frame_rate: float | None = None) -> HostReward:
    """Returns the reward of that name; higher is better.

    Args:
      name: "oracle", see `oracle.claims_right`; "zoo:clip" or the folder of a CLIP, CLIPScore; or the workdir of a run
        with the ability `method.Scorer`.
      world: world of the images, for the oracle.
      frame_rate: frames/s of videos, for the oracle and runs.

    Raises:
      UserError: another name, images that the oracle cannot read, or a run that lacks the ability.
    """
    if name == "oracle":
        if world is None:
            raise UserError("the oracle reads scenes alone: use the reward zoo:clip")
        return lambda images, prompts: np.array(
            [oracle.claims_right(*pair, world, frame_rate) for pair in zip(images, prompts, strict=True)]
        )
    run = open_any(name, "oracle")
    run.scorer()  # a run that lacks the ability is an error before images are made
    if isinstance(run, ClipRun):
        return clip_reward(name)
    return lambda images, prompts: model_eval.score(run, images, prompts, frame_rate=frame_rate)


def clip_reward(name: str) -> HostReward:
    """Returns the CLIPScore by "zoo:clip" or the CLIP in a folder."""
    network = clip_features(name)
    return lambda images, prompts: clip_score(network.images(images), network.texts(prompts))


def best_of(
    images: np.ndarray, prompts: Sequence[str], count: int, reward: HostReward, keep: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of each prompt's best images, (N * keep,), best first, and the rewards of all, (N * count,).

    Args:
      images: (N * count, T, H, W, 3), `count` of a prompt in a row.
      prompts: N.
      count: images per prompt.
      reward: see `get_reward`.
      keep: images per prompt that are chosen.
    """
    scores = reward(images, [prompt for prompt in prompts for _ in range(count)])
    best = np.argsort(-scores.reshape(len(prompts), count), axis=1, kind="stable")[:, :keep]
    return (np.arange(len(prompts))[:, None] * count + best).reshape(-1), scores
