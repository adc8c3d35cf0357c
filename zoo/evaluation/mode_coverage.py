"""Kinds of images that a run makes: the equally likely scenes that its images show.

readable   share of images in which the oracle finds one scene and nothing else
reached    number of the scenes that occur
kl         of the scenes' shares from equal ones, sum of p log(p / q), in nats: 0 is best, one scene alone has 7.05
nearest_reached, nearest_kl
           the same with every image counted as the scene that is nearest in squared error: it also counts images
           that are too noisy for the oracle, and images of nothing
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from zoo.evaluation.registry import Score
from zoo.scenes import oracle
from zoo.scenes.world import Scene, all_still_scenes, render


def coverage(images: np.ndarray, world: str) -> dict[str, Score]:
    """Returns how many of a world's still scenes images show, see the module; without `kl` if no scene is readable.

    Args:
      images: uint8 (N, T, H, W, 3).
      world: name of the world.
    """
    scenes = all_still_scenes(world)
    shown = [scene for scene in (scene_of(image, world) for image in images) if scene is not None]
    counts = Counter(shown)
    scores = {"readable": Score(len(shown) / len(images)), "reached": Score(len(counts))}
    if shown:
        scores["kl"] = Score(kl_from_equal(list(counts.values()), len(scenes)))
    drawn = np.stack([render(scene, images.shape[2], images.shape[1]) for scene in scenes])
    counts = Counter(nearest(images, drawn).tolist())
    scores["nearest_reached"] = Score(len(counts))
    scores["nearest_kl"] = Score(kl_from_equal(list(counts.values()), len(scenes)))
    return scores


def scene_of(image: np.ndarray, world: str) -> Scene | None:
    """The scene that an image shows; None unless it is one thing and nothing else."""
    observed = oracle.observe(image, world)
    if observed.scene is None or observed.clutter or len(observed.scene.things) != 1:
        return None
    return observed.scene.facts()


def nearest(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The number of the one among `others` that is nearest to each image: (N, ...), (M, ...) -> (N,)."""
    a, b = (x.reshape(len(x), -1).astype(np.float32) / 255 for x in (images, others))
    return (np.square(b).sum(axis=1) - 2 * a @ b.T).argmin(axis=1)


def kl_from_equal(counts: Sequence[int], of: int) -> float:
    """KL divergence, in nats, of the shares of these counts from `of` equal shares."""
    p = np.array(counts, np.float64) / np.sum(counts)
    return float(np.sum(p * np.log(p * of)))
