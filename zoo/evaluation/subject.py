"""Scores of a run that learned a subject, on features (N, D) of images.

Cosines of features are as good as the network that makes them: on photographs, one that was trained on scenes is not.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from zoo.errors import UserError
from zoo.evaluation.distances import features64, same_channels, unit_vectors


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the cosine of each feature with each other one: (N, D), (M, D) -> float64 (N, M)."""
    same_channels(a=a, b=b)
    return unit_vectors("a", features64("a", a)) @ unit_vectors("b", features64("b", b)).T


def fidelity(made: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Returns for each sample its mean cosine with real images of the subject, (N,) (DreamBooth 2208.12242, CLIP-I)."""
    return cosines(made, real).mean(axis=1)


def nearest(made: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Returns for each sample its cosine with the training image that is most like it, (N,); 1 for a copy."""
    return cosines(made, training).max(axis=1)


def diversity(made: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
    """Returns for each prompt with several samples 1 - the mean cosine between two of them (DIV of 2208.12242).

    Args:
      made: features of the samples, (N, D).
      prompts: of each, N texts.

    Raises:
      UserError: no prompt has several.
    """
    rows = [np.flatnonzero([own == text for own in prompts]) for text in dict.fromkeys(prompts)]
    pairs = [cosines(made[row], made[row])[np.triu_indices(len(row), 1)] for row in rows if len(row) > 1]
    if not pairs:
        raise UserError("diversity needs several samples of a prompt: raise --num, or give fewer prompts")
    return np.array([1 - values.mean() for values in pairs])


def retrieved(made: np.ndarray, subjects: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """Returns for each sample whether the subject of this name is the one that it is most like, bool (N,).

    Args:
      made: features of the samples, (N, D).
      subjects: features of the real images of each subject, (M, D), by its name.
      name: that of the samples'.
    """
    likeness = np.stack([fidelity(made, real) for real in subjects.values()], axis=1)
    return likeness.argmax(axis=1) == list(subjects).index(name)
