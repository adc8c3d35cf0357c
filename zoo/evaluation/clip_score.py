"""Agreement of images and captions by the features of a network that was trained on both (CLIP 2103.00020).

Every measure gives a value an example; the score is their mean, and `bootstrap.interval` gives its interval.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError
from zoo.evaluation.distances import BLOCK, features64, same_channels, unit_vectors

TIED = 1e-9  # cosines that are nearer to each other are equal


def _directions(**features) -> list[np.ndarray]:
    """Features (N, D) as unit vectors. Raises UserError unless they are of one N and one D."""
    features = {name: features64(name, value) for name, value in features.items()}
    same_channels(**features)
    counts = {name: len(value) for name, value in features.items()}
    if len(set(counts.values())) > 1:
        raise UserError(f"an example is one row of each, got {counts} rows")
    return [unit_vectors(name, value) for name, value in features.items()]


def _cosines(**features) -> np.ndarray:
    a, b = _directions(**features)
    return np.sum(a * b, axis=-1)  # (N,)


def clip_score(images, texts, w: float = 2.5) -> np.ndarray:
    """CLIPScore (Hessel 2104.08718, eq. 1): w * max(cos(image, text), 0), in [0, w]. Higher is better.

    The paper's texts begin with "A photo depicts ", which is the caller's to add. One network's scores do not compare
    with another's.

    Args:
      images: features (N, D), at least 1.
      texts: features (N, D); row i is the caption of image i.
      w: factor of the cosine.

    Returns:
      float64 (N,).

    Raises:
      UserError: no samples, NaN or infinity, features all zeros, or shapes that differ.
    """
    return w * np.maximum(_cosines(images=images, texts=texts), 0.0)


def ref_clip_score(images, texts, references, w: float = 2.5) -> np.ndarray:
    """RefCLIPScore (Hessel 2104.08718, section 3), for texts that were made from images. Higher is better.

    The harmonic mean of `clip_score` and of max(cos(text, r), 0) of the nearest of the image's reference captions; 0
    where either is 0.

    Args:
      images: features (N, D), at least 1.
      texts: features (N, D).
      references: features (N, R, D) of R >= 1 captions each.
      w: factor of the cosine.

    Returns:
      float64 (N,), from 0 to 2 w / (w + 1).

    Raises:
      UserError: as `clip_score`, or references of another shape.
    """
    references = np.asarray(references)
    if references.ndim != 3 or not references.shape[1]:
        raise UserError(f"references: features must be (samples, captions, channels), got shape {references.shape}")
    fit = clip_score(images, texts, w)
    cosines = [_cosines(texts=texts, references=references[:, i]) for i in range(references.shape[1])]
    likeness = np.maximum(np.max(cosines, axis=0), 0.0)  # (N,)
    total = fit + likeness
    return np.divide(2 * fit * likeness, total, out=np.zeros_like(total), where=total > 0)


def r_precision(images, texts, captions: Sequence[str], candidates: int = 100) -> np.ndarray:
    """R-precision with R = 1 (AttnGAN 1711.10485, section 4): how often an image's own caption is its nearest.

    The candidates are the own caption and 99 drawn without replacement from the captions that differ from it. The
    value of an image is the chance that the own caption has the largest cosine of all, over all such draws; equals
    share it. It is computed, not drawn: with m better and t equal ones of n other captions,

        mean over j = m .. m + t of C(n - j, 99) / C(n, 99).

    1 is best, 1 / `candidates` is chance. Captions of the same meaning in other words count as wrong.

    Args:
      images: features (N, D).
      texts: features (N, D); row i is the caption of image i.
      captions: the N texts, of which equal ones count once; at least `candidates` different ones.
      candidates: at least 2.

    Returns:
      float64 (N,), in [0, 1]; their mean is the R-precision.

    Raises:
      UserError: as `clip_score`, or too few different captions.
    """
    images, texts = _directions(images=images, texts=texts)
    if len(captions) != len(texts):
        raise UserError(f"r_precision: {len(captions)} captions for {len(texts)} texts; give one each")
    _, first, own = np.unique(np.array(captions, object), return_index=True, return_inverse=True)
    if not 2 <= candidates <= len(first):
        raise UserError(
            f"r_precision: {len(first)} different captions and {candidates} candidates; "
            f"give at least {max(candidates, 2)} captions, or 2 or more candidates"
        )
    others, drawn = len(first) - 1, candidates - 1
    with jax.enable_x64(True):
        better, equal = (np.asarray(count) for count in _ranks(images, texts[first], own))
    # C(n - j, drawn) / C(n, drawn) for j = 0 .. n
    j = np.arange(others)
    chances = np.concatenate([[1.0], np.cumprod(np.maximum(others - drawn - j, 0) / (others - j))])
    sums = np.concatenate([[0.0], np.cumsum(chances)])
    return (sums[better + equal + 1] - sums[better]) / (equal + 1)


@jax.jit
def _ranks(images: jax.Array, texts: jax.Array, own: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Counts the texts (M, D) that are nearer to images (N, D) than texts[own], and the others that are as near."""

    def rank(example):
        image, index = example
        cosines = texts @ image  # (M,)
        ahead = cosines - cosines[index]
        return jnp.sum(ahead > TIED), jnp.sum(jnp.abs(ahead) <= TIED) - 1

    return jax.lax.map(rank, (images, own), batch_size=BLOCK)
