"""Things that no scene has, two colours side by side, for runs that learn a subject: drawn, described and recognised.

A caption has "[V]" before the shape, "a large [V] star at the top left", and no colour.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Sequence

import numpy as np

from zoo import errors
from zoo.scenes import oracle
from zoo.scenes import world as worlds
from zoo.scenes.grammar import Claims, holds, parse, place_phrase, position_name
from zoo.scenes.world import Scene, Thing

WORD = "[V]"
DRAWS = 20  # for a scene that is not among those before


@dataclasses.dataclass(frozen=True)
class Subject:
    """A shape whose left half has one colour, and whose right half another."""

    shape: str
    left: str
    right: str

    def __post_init__(self):
        for what, name, known in (
            ("shape", self.shape, worlds.SHAPES),
            ("colour", self.left, worlds.COLOURS),
            ("colour", self.right, worlds.COLOURS),
        ):
            if name not in known:
                raise errors.unknown_name_error(what, name, known)

    def to_json(self) -> str:
        """Returns the subject as text."""
        return json.dumps(dataclasses.asdict(self))


# Each shape, and each colour twice; no two are alike.
SUBJECTS = (
    Subject("square", "red", "cyan"),
    Subject("circle", "blue", "yellow"),
    Subject("star", "white", "purple"),
    Subject("triangle", "green", "orange"),
    Subject("cross", "yellow", "red"),
    Subject("ring", "cyan", "white"),
    Subject("circle", "orange", "green"),
    Subject("square", "orange", "blue"),
)


def render(subject: Subject, scene: Scene, size: int) -> np.ndarray:
    """Draws a scene whose first thing is the subject, uint8 (1, size, size, 3)."""
    sides = [_with_colour(scene, colour) for colour in (subject.left, subject.right)]
    left, right = (worlds.render(side, size).astype(np.float32) for side in sides)
    middle = worlds.pose(scene.things[0], worlds.world_named(scene.world), 0.0).centre[1] * size
    share = np.clip(middle - np.arange(size), 0, 1)[None, None, :, None]  # of a column that is left of the middle
    return np.rint(share * left + (1 - share) * right).astype(np.uint8)


def _with_colour(scene: Scene, colour: str) -> Scene:
    first, *others = scene.things
    return dataclasses.replace(scene, things=(dataclasses.replace(first, colour=colour), *others))


def describe(scene: Scene) -> str:
    """Returns the caption of a scene whose first thing is the subject: everything but the subject's colours."""
    grid = worlds.world_named(scene.world).grid
    items = []
    for number, thing in enumerate(scene.things):
        words = [thing.size, WORD if number == 0 else thing.colour, thing.shape]
        items.append(f"a {' '.join(words)} {place_phrase(position_name(thing.cell, grid))}")
    return f"{' and '.join(items)} on a {scene.background} background"


def scenes(subject: Subject, world: str, count: int, seed: int = 0, company: bool = False) -> list[Scene]:
    """Draws scenes whose first thing is the subject, no two of the same caption.

    Args:
      subject: subject.
      world: name of a world without motion.
      count: most scenes; there may be fewer, of the subject alone see `alone`.
      seed: of the draws.
      company: whether another thing is beside it.

    Raises:
      UserError: company in a world of one thing.
    """
    rng = np.random.default_rng(seed)
    if not company:
        every = alone(subject, world)
        return [every[i] for i in rng.permutation(len(every))[:count]]
    if worlds.world_named(world).most_things < 2:
        raise errors.UserError(f"world {world!r} has one thing, which is alone: use pairs")
    found: dict[str, Scene] = {}
    for _ in range(DRAWS * count):
        if len(found) == count:
            break
        drawn = worlds.draw_scene(rng, world, "train")
        if len(drawn.things) > 1:
            first = dataclasses.replace(drawn.things[0], shape=subject.shape, offset=(0.0, 0.0))
            scene = dataclasses.replace(drawn, things=(first, drawn.things[1]))
            found.setdefault(describe(scene), scene)
    return list(found.values())


def alone(subject: Subject, world: str) -> list[Scene]:
    """Returns all scenes of the subject alone: each size in each cell on each background."""
    cells = list(np.ndindex(*(worlds.world_named(world).grid,) * 2))
    return [
        Scene(world, background, (Thing(subject.shape, subject.left, size, cell),))
        for background, size, cell in itertools.product(worlds.BACKGROUNDS, worlds.SIZES, cells)
    ]


# ---- recognising


def find(pixels: np.ndarray, subject: Subject, world: str) -> tuple[Thing | None, float]:
    """Returns where a subject is and how much of its energy is wrong there; None where it is nowhere.

    Args:
      pixels: uint8 (1, H, W, 3).
      subject: subject.
      world: name of a world without jitter.
    """
    background = oracle.background_of(pixels)
    if background is None:
        return None, np.inf
    image, best, least = pixels[0].astype(np.float32), None, np.inf
    for thing, template, window in _templates(subject, world, background, pixels.shape[1]):
        energy = np.square(template - worlds.BACKGROUNDS[background]).sum()
        misfit = float(np.square(image[window] - template).sum() / energy)
        if misfit < least:
            best, least = thing, misfit
    return (best, least) if least <= oracle.WORST_FIT else (None, least)


@functools.cache
def _templates(subject: Subject, world: str, background: str, size: int):
    """The subject in each cell at each size: the thing, its cell's pixels float32 (h, w, 3), and where they are."""
    rules, found = worlds.world_named(world), []
    for name in worlds.SIZES:
        for cell in np.ndindex(rules.grid, rules.grid):
            thing = Thing(subject.shape, subject.left, name, cell)
            image = render(subject, Scene(world, background, (thing,)), size)[0].astype(np.float32)
            window = _window(cell, rules.grid, size)
            found.append((thing, image[window], window))
    return found


def _window(cell: tuple[int, ...], grid: int, size: int) -> tuple[slice, ...]:
    """The pixels of a cell."""
    return tuple(slice(round(i * size / grid), round((i + 1) * size / grid)) for i in cell)


def nearest(pixels: np.ndarray, subjects: Sequence[Subject], world: str) -> int | None:
    """Returns the number of the subject that an image shows best; None where it shows none of them."""
    found = [find(pixels, subject, world) for subject in subjects]
    best = int(np.argmin([misfit for _, misfit in found]))
    return best if found[best][0] else None


def score(pixels: np.ndarray, text: str, subject: Subject, world: str) -> dict[str, bool]:
    """Compares an image with a caption of `describe`.

    Args:
      pixels: uint8 (1, H, W, 3).
      text: caption with "[V]" before one of its shapes.
      subject: what it stands for.
      world: name of a world without motion and jitter.

    Returns:
      `subject`: it is there; `prompt`: so is all else that the caption claims, of the subject too; `all`: both, and
      nothing in the image is unreadable.

    Raises:
      UserError: a caption without "[V]", or that is not of the grammar.
    """
    claims = check(text)
    thing, _ = find(pixels, subject, world)
    if thing is None:
        return {"subject": False, "prompt": False, "all": False}
    others, readable = _others(pixels, thing, world)
    own = _number_of_word(text)
    scene = Scene(world, str(oracle.background_of(pixels)), (thing, *others))
    right = holds(_marked(claims, own, thing), scene)
    prompt = all(value is not False for value in right.values()) and len(scene.things) == len(claims.things)
    return {"subject": True, "prompt": prompt, "all": prompt and readable}


def check(text: str) -> Claims:
    """Returns the claims of a caption with "[V]". Raises UserError as `score`."""
    if WORD not in text:
        raise errors.UserError(f"caption {text!r} has no {WORD}")
    return parse(text.replace(f"{WORD} ", ""))


def _others(pixels: np.ndarray, thing: Thing, world: str) -> tuple[tuple[Thing, ...], bool]:
    """The things beside the subject, and whether all is readable."""
    background = oracle.background_of(pixels)
    rules, size = worlds.world_named(world), pixels.shape[1]
    rest = pixels.copy()
    rest[0][_window(thing.cell, rules.grid, size)] = worlds.BACKGROUNDS[str(background)]
    observed = oracle.observe(rest, world)
    return (observed.scene.things if observed.scene else ()), not observed.clutter


def _number_of_word(text: str) -> int:
    """Number of things that a caption names before "[V]"."""
    return sum(text[: text.index(WORD)].count(f" {shape}") for shape in worlds.SHAPES)


def _marked(claims: Claims, number: int, thing: Thing) -> Claims:
    """The claims, with the subject's colour for it, which no other thing of the caption has by chance."""
    things = list(claims.things)
    things[number] = dataclasses.replace(things[number], colour=thing.colour)
    return dataclasses.replace(claims, things=tuple(things))
