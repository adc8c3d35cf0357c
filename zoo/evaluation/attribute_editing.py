"""Measures of editing single attributes.

Real images of one object have an attribute changed to another value, and the oracle reads the result: whether the
attribute is as requested (changed), whether all else is as before (kept), and both. Three ways:

    direction  the noise of the image, under no caption, plus the direction of the new value and minus that of the
               old one, at several strengths (see `runs.editor`); strength 0 is the plain reconstruction
    random     the control: a random direction of the same length
    caption    no arithmetic: the noise under the image's whole caption, generated under the caption of the new
               value (only of use to families with captions)
"""

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from zoo.data.pipeline import Source
from zoo.errors import UserError, unknown_name_error
from zoo.evaluation.bootstrap import interval
from zoo.evaluation.registry import Score
from zoo.method import Noise
from zoo.runs import editor as edits
from zoo.runs.editor import Editor
from zoo.scenes import grammar, oracle
from zoo.scenes import world as worlds
from zoo.scenes.grammar import describe, position_name, words
from zoo.scenes.world import Scene

KINDS = ("colour", "shape", "size", "position", "background")
OUTCOMES = ("changed", "kept", "both")
NAMED = 20  # attributes that an error lists


# ---- attributes of any data


def labels(item: dict[str, Any]) -> set[str]:
    """The attributes of an item of a source: words that are true of it.

    For scenes the exact ones, also those that the caption omits (see `grammar.words`); for others the words of the
    caption, in lower case.
    """
    if "attributes" in item:
        return set().union(*grammar.words(Scene.from_json(item["attributes"])).values())
    return set(re.findall(r"\w+", item["text"].lower()))


def having(attribute: str, known: Sequence[set[str]]) -> np.ndarray:
    """Which of N images have an attribute, bool (N,), by their labels.

    Args:
      attribute: word.
      known: labels of each image.

    Raises:
      UserError: none has it (names the nearest and the most frequent ones), or all have.
    """
    has = np.array([attribute in words for words in known])
    if not has.any():
        counts = Counter(sorted(word for words in known for word in words))  # sorted, so that ties are always the same
        common = [word for word, _ in counts.most_common(NAMED)]
        raise unknown_name_error("attribute", attribute, {*common, *difflib.get_close_matches(attribute, counts, n=1)})
    if has.all():
        raise UserError(f"all {len(known)} images have the attribute {attribute!r}: a direction needs some without")
    return has


def spread(source: Source, count: int) -> list[dict[str, Any]]:
    """At most `count` items, evenly spread over a source."""
    chosen = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    return [source[i] for i in chosen.tolist()]


def find_direction(editor: Editor, items: Sequence[dict[str, Any]], attribute: str, instead_of: str = "") -> Noise:
    """The direction from images without an attribute to those with it, of items of a source, under no caption.

    Args:
      editor: inverts the items.
      items: images with and without.
      attribute: see `labels`.
      instead_of: an attribute that is taken away at the same time; "" for none.

    Returns:
      A tree of arrays (1, ...).
    """
    known = [labels(item) for item in items]
    has = [having(word, known) for word in (attribute, instead_of) if word]
    noise = editor.invert(np.stack([item["inputs"] for item in items]), [""] * len(items))
    towards, *away = (edits.direction(noise, which) for which in has)
    return jax.tree.map(lambda x, *y: x - sum(y), towards, *away)


# ---- scenes of one object


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Real images of one thing each: uint8 (N, T, H, W, 3), their N scenes, and the frame rate of videos."""

    pixels: np.ndarray
    scenes: list[Scene]
    frame_rate: float | None = None


def of_one_thing(source: Source, count: int) -> Images:
    """At most `count` images of a source that show one thing, the first ones. Raises UserError for fewer than 2."""
    found = []
    for i in range(len(source)):
        item = source[i]
        if len(Scene.from_json(item["attributes"]).things) == 1:
            found.append(item)
        if len(found) == count:
            break
    if len(found) < 2:
        raise UserError(f"the data has {len(found)} images of one thing, and this needs more: give more examples")
    scenes = [Scene.from_json(item["attributes"]) for item in found]
    return Images(np.stack([item["inputs"] for item in found]), scenes, found[0].get("frame_rate"))


# ---- the requested change


def values_of(kind: str, world: str) -> dict[str, Any]:
    """The values of an attribute by their words: {"red": "red", ...}; those of positions are cells."""
    if kind == "position":
        grid = worlds.world_named(world).grid
        return {position_name(cell, grid): cell for cell in np.ndindex(grid, grid)}
    known = {"colour": worlds.COLOURS, "shape": worlds.SHAPES, "size": worlds.SIZES, "background": worlds.BACKGROUNDS}
    return {value: value for value in known[kind]}


def with_value(scene: Scene, kind: str, word: str) -> Scene:
    """A scene of one thing with an attribute changed to what `word` names."""
    value = values_of(kind, scene.world)[word]
    if kind == "background":
        return dataclasses.replace(scene, background=value)
    field = "cell" if kind == "position" else kind
    return dataclasses.replace(scene, things=(dataclasses.replace(scene.things[0], **{field: value}),))


def word_of(scene: Scene, kind: str) -> str:
    """The word for an attribute of a scene of one thing."""
    (word,) = words(scene)[kind]
    return word


def choose(scene: Scene, kind: str, rng: np.random.Generator) -> str:
    """Another value of an attribute, such that the scene is still one that training could show."""
    others = [word for word in values_of(kind, scene.world) if word != word_of(scene, kind)]
    shown = [word for word in others if not worlds.is_held_out(with_value(scene, kind, word))]
    return str(rng.choice(shown or others))


def compare(image: np.ndarray, wanted: Scene, kind: str, frame_rate: float | None = None) -> dict[str, bool]:
    """Returns the oracle's result for an edited image, for each of `OUTCOMES`.

    An image of no readable thing, or of several, is neither changed nor kept; one with anything unreadable beside
    the thing is not kept.
    """
    observed = oracle.observe(image, wanted.world, frame_rate)
    if observed.scene is None or len(observed.scene.things) != 1:
        return dict.fromkeys(OUTCOMES, False)
    found, requested = words(observed.scene), words(wanted)
    if len(image) == 1:  # one frame shows no motion
        requested = {name: value for name, value in requested.items() if name not in ("motion", "speed")}
    changed = found[kind] == requested[kind]
    kept = not observed.clutter and all(found[name] == requested[name] for name in requested if name != kind)
    return {"changed": changed, "kept": kept, "both": changed and kept}


# ---- the edits


def directions(noise: Noise, scenes: Sequence[Scene], kind: str) -> dict[str, Noise]:
    """The direction of each value that some of the N scenes have and others lack, see `edits.direction`."""
    of_each = np.array([word_of(scene, kind) for scene in scenes])
    return {
        str(word): edits.direction(noise, of_each == word) for word in np.unique(of_each) if (of_each != word).any()
    }


def random_like(towards: Noise, rng: jax.Array) -> Noise:
    """Random directions, leaf by leaf as long as those of a tree of arrays (B, ...); a key each, (B,)."""
    drawn = edits.normal_like(towards, rng)
    return jax.tree.map(lambda x, d: d * edits.norms(x) / edits.norms(d), towards, drawn)


class Arithmetic:
    """Images, their noise and the directions, with which the ways to edit an attribute are scored.

    Args:
      editor: of the run.
      train: images that directions are taken from.
      test: images that are edited.
      seed: seed of the requested values and of the control.
    """

    def __init__(self, editor: Editor, train: Images, test: Images, seed: int = 0):
        self.editor, self.train, self.test, self.seed = editor, train, test, seed
        self.none = [""] * len(test.scenes)
        self.train_noise = editor.invert(train.pixels, [""] * len(train.scenes))
        self.noise = editor.invert(test.pixels, self.none)
        self.again = editor.generate(self.noise, self.none)
        self.captions = [self._caption(scene) for scene in test.scenes]
        self.captioned_noise = editor.invert(test.pixels, self.captions)

    def scores(self, kind: str, strengths: Sequence[float]) -> dict[str, dict[str, Score]]:
        """Shares of the images, {way: {"colour changed @0.5": share}}; those of captions have no strength.

        Args:
          kind: attribute, such as "colour".
          strengths: factors of a direction.

        Raises:
          UserError: the training images have one value alone.
        """
        rng = np.random.default_rng(self.seed)
        known = directions(self.train_noise, self.train.scenes, kind)
        if len(known) < 2:
            raise UserError(f"the {len(self.train.scenes)} training images have one {kind} alone: use more")
        new = [choose(scene, kind, rng) for scene in self.test.scenes]
        wanted = [with_value(scene, kind, word) for scene, word in zip(self.test.scenes, new, strict=True)]
        old = [word_of(scene, kind) for scene in self.test.scenes]
        towards = _stack([_minus(known, a, b) for a, b in zip(new, old, strict=True)])
        keys = jax.random.split(jax.random.key(self.seed), len(new))
        found = {"direction": {}, "random": {}, "caption": {}}
        for way, by in (("direction", towards), ("random", random_like(towards, keys))):
            for strength in (0.0, *strengths):
                made = self.again
                if strength:
                    made = self.editor.generate(edits.move(self.noise, by, strength), self.none)
                found[way] |= shares(made, wanted, kind, f" @{strength:g}", self.test.frame_rate)
        made = self.editor.generate(self.captioned_noise, [self._caption(scene) for scene in wanted])
        found["caption"] = shares(made, wanted, kind, frame_rate=self.test.frame_rate)
        return found

    def _caption(self, scene: Scene) -> str:
        """The whole caption, in the same words for the same random numbers."""
        return describe(scene, np.random.default_rng(self.seed), omit=0.0, still=self.test.frame_rate is None)


def shares(
    images: np.ndarray, wanted: Sequence[Scene], kind: str, suffix: str = "", frame_rate: float | None = None
) -> dict[str, Score]:
    """The shares of edited images that the oracle finds changed, kept and both, with intervals of 95%."""
    outcomes = [compare(image, scene, kind, frame_rate) for image, scene in zip(images, wanted, strict=True)]
    values = {name: np.array([row[name] for row in outcomes], float) for name in OUTCOMES}
    return {f"{kind} {name}{suffix}": Score(float(x.mean()), interval(x)) for name, x in values.items()}


def _minus(known: Mapping[str, Noise], new: str, old: str) -> Noise:
    missing = [word for word in (new, old) if word not in known]
    if missing:
        raise UserError(f"no training image is {missing[0]!r}, or all are: use more of them (--num_train)")
    return jax.tree.map(lambda a, b: a - b, known[new], known[old])


def _stack(trees: Sequence[Noise]) -> Noise:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)
