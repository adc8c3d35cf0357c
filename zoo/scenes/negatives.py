"""Captions made wrong by one word: a bag of words does not separate them from right ones (2210.01936)."""

import re

import numpy as np

from zoo.errors import UserError
from zoo.scenes import world as worlds
from zoo.scenes.grammar import OPPOSITES, parse

# Words of one group stand where another of it could. Numbers are left out: "two" of "three things" betrays itself, and
# words that scenes never use would, too.
GROUPS = (
    tuple(worlds.COLOURS),
    tuple(worlds.BACKGROUNDS),
    worlds.SHAPES,
    worlds.SIZES,
    ("left", "right"),
    ("top", "bottom"),
    ("above", "below"),
    ("up", "down"),
    ("spinning", "growing", "shrinking", "blinking"),
    ("slowly", "quickly"),
)
TRIES = 5
_GROUP_OF = {word: group for group in GROUPS for word in group}
_WORD = re.compile(rf"\b(?:{'|'.join(_GROUP_OF)})\b")
OPPOSITE_OF = {right: left for left, right in OPPOSITES.items()}  # "right of" -> "left of"
_ARTICLE = re.compile(r"\b(an?) (\w)")


def swap_word(text: str, rng: np.random.Generator) -> str | None:
    """Returns the caption with one word replaced by another of its group, or with two of one group exchanged.

    Args:
      text: any caption, lower case.
      rng: chooses.

    Returns:
      a caption of another meaning, though an image may happen to fit both; None without such a word, or
      if no swap gives a caption that scenes show in training.
    """
    found = list(_WORD.finditer(text))
    if not found:
        return None
    drawn = (_swapped(text, found, rng) for _ in range(TRIES))
    return next((wrong for wrong in drawn if wrong != text and _is_shown(wrong)), None)


def _swapped(text: str, found: list[re.Match], rng: np.random.Generator) -> str:
    first = found[int(rng.integers(len(found)))]
    group = _GROUP_OF[first[0]]
    others = [m for m in found if m[0] != first[0] and _GROUP_OF[m[0]] is group]
    if others and rng.random() < 0.5:
        second = others[int(rng.integers(len(others)))]
        return _replace(text, {first: second[0], second: first[0]})
    choices = [word for word in group if word != first[0]]
    return _replace(text, {first: choices[int(rng.integers(len(choices)))]})


def _is_shown(text: str) -> bool:
    """Whether training images of scenes can show it: what is never right would be learnt to be always wrong."""
    try:
        claims = parse(text)
    except UserError:
        return True  # not of scenes
    pairs = {(thing.colour, thing.shape) for thing in claims.things}
    relations = set()
    for name, i, j in claims.relations:
        first, second = claims.things[i].shape, claims.things[j].shape
        relations.add((OPPOSITE_OF[name], second, first) if name in OPPOSITE_OF else (name, first, second))
    return worlds.HELD_OUT_PAIRS.isdisjoint(pairs) and worlds.HELD_OUT_RELATIONS.isdisjoint(relations)


def _replace(text: str, changes: dict[re.Match, str]) -> str:
    for match in sorted(changes, key=lambda m: m.start(), reverse=True):
        text = text[: match.start()] + changes[match] + text[match.end() :]
    # "an red" would be wrong whatever the image.
    return _ARTICLE.sub(lambda m: f"{'an' if m[2] in 'aeiou' else 'a'} {m[2]}", text)
