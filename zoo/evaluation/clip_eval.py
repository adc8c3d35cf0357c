"""Reliability of scores of images and captions, of a CLIP or of a run: on right captions, and on wrong ones.

A caption that is wrong by a word is made with `scenes.negatives.swap_word`; for scenes the oracle's
grammar checks that it is wrong.
"""

import numpy as np

from zoo.evaluation.clip_score import clip_score
from zoo.evaluation.distances import unit_vectors
from zoo.evaluation.features import Features
from zoo.scenes import oracle
from zoo.scenes.grammar import holds, parse
from zoo.scenes.negatives import swap_word
from zoo.scenes.world import Scene

MOST_SWAPS = 3


def recall_at_1(images: np.ndarray, texts: np.ndarray, captions: list[str]) -> dict[str, float]:
    """Returns how often the nearest caption of an image is its own, or reads the same, and the other way round."""
    cosines = unit_vectors("images", images.astype(np.float64)) @ unit_vectors("texts", texts.astype(np.float64)).T
    lines = np.array(captions, object)
    return {
        "image_to_text_r1": float((lines[cosines.argmax(1)] == lines).mean()),
        "text_to_image_r1": float((lines[cosines.argmax(0)] == lines).mean()),
    }


def hard_negative(item: dict, swaps: int, rng: np.random.Generator) -> str | None:
    """The item's caption with so many swaps made; None where none can be made, or the truth is known and fits."""
    text = item["text"]
    for _ in range(swaps):
        text = swap_word(text, rng) or text
    if text == item["text"]:
        return None
    if "attributes" in item and False not in holds(parse(text), Scene.from_json(item["attributes"])).values():
        return None
    return text


def pair_accuracy(right: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """Returns how well scores of right captions (N,) stand above those of wrong ones of the same images, and of any."""
    return {"pair_accuracy": float((right > wrong).mean()), "auc": auc(right, wrong)}


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """The chance that a right caption of one image scores above a wrong one of another (Mann & Whitney 1947)."""
    return float((right[:, None] > wrong).mean() + 0.5 * (right[:, None] == wrong).mean())


def oracle_correlation(
    clip: Features, images: np.ndarray, items: list[dict], world: str, rng: np.random.Generator
) -> float:
    """Spearman's correlation of CLIPScore and the share of claims that the oracle finds right.

    Each real image has its caption after 0 to `MOST_SWAPS` swaps, so that shares from 0 to 1 are there.
    """
    texts = [hard_negative(item, int(rng.integers(MOST_SWAPS + 1)), rng) or item["text"] for item in items]
    results = [oracle.score(item["inputs"], text, world) for item, text in zip(items, texts, strict=True)]
    shares = [oracle.share_right(row) for row in results]
    chosen = [i for i, share in enumerate(shares) if share is not None]  # a caption may claim nothing
    shares = np.array([shares[i] for i in chosen])
    scores = clip_score(images, clip.texts(texts))[chosen]
    return float(np.corrcoef(ranks(scores), ranks(shares))[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Places in order; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
