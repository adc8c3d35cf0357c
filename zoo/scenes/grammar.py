"""Captions of scenes: written, read back, and compared with a scene.

A caption, in full (brackets: may be left out; spaces and a final full stop do not matter):

    caption   = [on a BACKGROUND background:] [there is | a picture of | a video of] [COUNT things:] items
                [on a BACKGROUND background]
    items     = item {, item} [and item]
    item      = thing [RELATION thing]
    thing     = a [SIZE] [COLOUR] (SHAPE | thing | object) [POSITION] [MOTION [slowly | quickly]]
    RELATION  = [that starts] ([to the] left of | [to the] right of | above | below)

Position, size and relation are those of the video's start, except that a thing which grows or shrinks has the
size of its largest moment. A position is named on the world's own grid: "at the top" is the middle of the top
row of three, and nowhere where rows have two cells.
"""

import dataclasses
import itertools
import re
from typing import Any, cast

import numpy as np

from zoo import errors
from zoo.scenes import world as worlds
from zoo.scenes.world import Scene, Thing

ATTRIBUTES = ("count", "colour", "shape", "size", "position", "relation", "background", "motion", "speed")
COUNTS = ("one", "two", "three")
MOTION_PHRASES = {
    "static": "standing still",
    **{direction: f"moving {direction}" for direction in worlds.DIRECTIONS},
    **{motion: motion for motion in ("spinning", "growing", "shrinking", "blinking")},
}
ADVERBS = {"slow": "slowly", "fast": "quickly"}
OPPOSITES = {"left of": "right of", "above": "below"}
RELATIONS = (*OPPOSITES, *OPPOSITES.values())

# How often each attribute is left out. Worlds of one thing stand for small models: their captions name nearly all.
OMIT_IN_ONE = {"colour": 0.05, "shape": 0.05, "size": 0.25, "position": 0.25, "background": 0.3}
OMIT_IN_VIDEO_ONE = OMIT_IN_ONE | {"motion": 0.05, "speed": 0.2}
OMIT = {
    "colour": 0.15,
    "shape": 0.15,
    "size": 0.35,
    "position": 0.4,
    "background": 0.4,
    "motion": 0.1,
    "speed": 0.25,
    "thing": 0.15,
}
RELATE = 0.35  # share of captions of several things that relate two of them instead of placing them
COUNT = 0.25  # how often a caption of several things opens with their number


@dataclasses.dataclass(frozen=True)
class ThingClaim:
    """Attributes of one thing in a caption; None for those that the caption omits."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    position: str | None = None
    motion: str | None = None
    speed: str | None = None


@dataclasses.dataclass(frozen=True)
class Claims:
    """Content of a caption. `relations` are (name, i, j): thing i of `things` is e.g. left of thing j."""

    things: tuple[ThingClaim, ...]
    relations: tuple[tuple[str, int, int], ...] = ()
    background: str | None = None
    count: int | None = None


def position_name(cell: tuple[int, int], grid: int) -> str:
    """Returns the words for a cell of a grid of 2 or 3 rows: "top left", "left", "centre"."""
    rows, columns = ("top", "bottom"), ("left", "right")
    if grid == 3:
        rows, columns = ("top", "", "bottom"), ("left", "", "right")
    words = [rows[cell[0]], columns[cell[1]]]
    return " ".join(word for word in words if word) or "centre"


POSITIONS = tuple(
    dict.fromkeys(
        position_name((row, column), grid)
        for grid in (2, 3)
        for row, column in itertools.product(range(grid), repeat=2)
    )
)


# ---- writing


def describe(scene: Scene, rng: np.random.Generator, omit: float | None = None, still: bool = False) -> str:
    """Returns a caption that is true of the scene: lower case, one of at least three phrasings.

    Args:
      scene: what to describe.
      rng: chooses the words, and what to leave out.
      omit: how often each attribute is left out; None for the world's own rates. 0 names everything.
      still: whether to describe the first frame alone: as it would be described in the video, without motion.
    """
    world = worlds.world_named(scene.world)
    one = world.most_things == 1
    rates = (OMIT_IN_VIDEO_ONE if world.moves else OMIT_IN_ONE) if one else OMIT
    if omit is not None:
        rates = dict.fromkeys(OMIT, omit)
    with_background = rng.random() >= rates["background"]
    related = not one and len(scene.things) > 1 and omit != 0 and rng.random() < RELATE
    counted = not one and rng.random() < COUNT
    things: list[Thing] = [scene.things[int(i)] for i in rng.permutation(len(scene.things))]
    if not counted:
        things = _keep_some(things, rng, rates.get("thing", 0.0), at_least=2 if related else 1)
    placed = [not (related and i < 2) for i in range(len(things))]
    items = [_phrase(things[i], scene, rng, rates, placed[i], still) for i in range(len(things))]
    if related:
        items[:2] = [f"{items[0]} {_relation(things[0], things[1], scene, rng, still)} {items[1]}"]
    text = _join(items, ", and " if related else " and ")
    if counted:
        noun = "thing" if rng.random() < 0.5 else "object"
        text = f"{COUNTS[len(things) - 1]} {noun}{'s' if len(things) > 1 else ''}: {text}"
    return _sentence(text, scene, rng, with_background, "video" if world.moves and not still else "picture")


def _keep_some(things: list[Thing], rng: np.random.Generator, rate: float, at_least: int) -> list[Thing]:
    spare = things[at_least:]
    return things[:at_least] + [thing for thing in spare if rng.random() >= rate]


def _phrase(thing: Thing, scene: Scene, rng: np.random.Generator, rates: dict, placed: bool, still: bool) -> str:
    world = worlds.world_named(scene.world)
    named = {name for name in rates if rng.random() >= rates[name]}
    noun = thing.shape if "shape" in named else ("thing", "object")[int(rng.integers(2))]
    words = [thing.size if "size" in named else "", thing.colour if "colour" in named else "", noun]
    if placed and "position" in named:
        words.append(place_phrase(position_name(thing.cell, world.grid)))
    if world.moves and "motion" in named:
        motion = _moving(thing, rng, "speed" in named)
        words.append("" if still else motion)
    text = " ".join(word for word in words if word)
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def place_phrase(position: str) -> str:
    """Returns the words of a caption for a position: "at the top left", "in the centre"."""
    return "in the centre" if position == "centre" else f"at the {position}"


def _moving(thing: Thing, rng: np.random.Generator, with_speed: bool) -> str:
    motion = MOTION_PHRASES[thing.motion]
    if thing.speed is None or not with_speed:
        return motion
    adverb = ADVERBS[thing.speed]
    return f"{adverb} {motion}" if rng.random() < 0.5 else f"{motion} {adverb}"


def _relation(first: Thing, second: Thing, scene: Scene, rng: np.random.Generator, still: bool) -> str:
    true = [name for name in RELATIONS if _lies(name, first, second)]
    name = true[int(rng.integers(len(true)))]
    if name in ("left of", "right of") and rng.random() < 0.5:
        name = f"to the {name}"
    return f"that starts {name}" if worlds.world_named(scene.world).moves and not still else name


def _lies(relation: str, first: Thing, second: Thing) -> bool:
    (row, column), (other_row, other_column) = first.cell, second.cell
    return {
        "left of": column < other_column,
        "right of": column > other_column,
        "above": row < other_row,
        "below": row > other_row,
    }[relation]


def _join(items: list[str], last: str) -> str:
    return last.join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else items[0]


def _sentence(text: str, scene: Scene, rng: np.random.Generator, with_background: bool, kind: str) -> str:
    behind = f"on a {scene.background} background"
    counted = ":" in text
    family = int(rng.integers(3))
    if family == 1 and not counted:
        text = f"there is {text}"
    if family == 2:
        if with_background and not counted:
            return f"{behind}: {text}"
        text = f"a {kind} of {text}"
    return f"{text} {behind}" if with_background else text


# ---- reading


def _one_of(words) -> str:
    return f"({'|'.join(sorted(words, key=len, reverse=True))})"


_BACKGROUND = rf"on an? {_one_of(worlds.BACKGROUNDS)} background"
_OPENING = re.compile(
    rf"(?:{_BACKGROUND}: )?(?:there is |there are |a picture of |a video of )?"
    rf"(?:{_one_of(COUNTS)} (?:things?|objects?): )?"
)
_ENDING = re.compile(rf" {_BACKGROUND}$")
_RELATION = re.compile(rf" (?:that starts )?(?:to the )?{_one_of(RELATIONS)} ")
_ADVERB = _one_of(ADVERBS.values())
_THING = re.compile(
    rf"an? (?:{_one_of(worlds.SIZES)} )?(?:{_one_of(worlds.COLOURS)} )?"
    rf"{_one_of((*worlds.SHAPES, 'thing', 'object'))}(?: (?:at|in) the {_one_of(POSITIONS)})?"
    rf"(?: (?:{_ADVERB} )?{_one_of(MOTION_PHRASES.values())}(?: {_ADVERB})?)?"
)
_MOTIONS = {phrase: motion for motion, phrase in MOTION_PHRASES.items()}
_SPEEDS = {adverb: speed for speed, adverb in ADVERBS.items()}


def parse(text: str) -> Claims:
    """Returns the claims of a caption.

    Args:
      text: caption, in any case.

    Raises:
      UserError: the text is not of the grammar (see the module), or names more than three things.
    """
    words = " ".join(text.lower().split()).removesuffix(".")
    opening, ending = cast(re.Match, _OPENING.match(words)), _ENDING.search(words)  # the opening may be empty
    rest = words[opening.end() : ending.start() if ending else None]
    things, relations = [], []
    for item in re.split(r", and |, | and ", rest):
        phrases = _RELATION.split(item)  # thing, relation, thing, ...
        for relation in phrases[1::2]:
            relations.append((relation, len(things), len(things) + 1))
            things.append(_parse_thing(phrases.pop(0), text))
            phrases.pop(0)
        things.append(_parse_thing(phrases[-1], text))
    if len(things) > len(COUNTS):
        raise errors.UserError(f"caption {text!r} names {len(things)} things: name at most {len(COUNTS)}")
    backgrounds = {match.group(1) for match in (opening, ending) if match and match.group(1)}
    if len(backgrounds) > 1:
        raise errors.UserError(f"caption {text!r} names two backgrounds")
    count = COUNTS.index(opening.group(2)) + 1 if opening.group(2) else None
    return Claims(tuple(things), tuple(relations), backgrounds.pop() if backgrounds else None, count)


def _parse_thing(phrase: str, text: str) -> ThingClaim:
    match = _THING.fullmatch(phrase)
    if not match or (match[5] and match[7]):
        raise errors.UserError(
            f"cannot read {phrase!r} in caption {text!r}: write e.g. 'a small red circle at the top left'"
        )
    size, colour, noun, position, early, motion, late = match.groups()
    shape = noun if noun in worlds.SHAPES else None
    return ThingClaim(colour, shape, size, position, _MOTIONS.get(motion), _SPEEDS.get(early or late))


# ---- comparing


def without_motion(claims: Claims) -> Claims:
    """Returns the claims that one frame can show."""
    things = tuple(dataclasses.replace(thing, motion=None, speed=None) for thing in claims.things)
    return dataclasses.replace(claims, things=things)


def holds(claims: Claims, scene: Scene) -> dict[str, bool | None]:
    """Compares the claims of a caption with a scene.

    The described things are matched with the scene's so that as many single claims as possible are true; no
    thing is matched twice. If everything can be true, everything is.

    Args:
      claims: of a caption, see `parse`.
      scene: scene to compare with.

    Returns:
      one entry for each of `ATTRIBUTES`: whether all claims about it are true, None without
      a claim.
    """
    missing = [None] * max(0, len(claims.things) - len(scene.things))
    matches = itertools.permutations([*scene.things, *missing], len(claims.things))
    compared = max(
        (_compare(claims, scene, match) for match in matches), key=lambda claimed: sum(right for _, right in claimed)
    )
    compared.extend(_compare_whole(claims, scene))
    return {
        attribute: all(rights) if (rights := [right for name, right in compared if name == attribute]) else None
        for attribute in ATTRIBUTES
    }


def words(scene: Scene) -> dict[str, set[Any]]:
    """Returns the words that are true of a scene, for each of `ATTRIBUTES` but relations: {"colour": {"red"}, ...}.

    They are the captions' own: "top left", "moving left", "slowly".
    """
    grid = worlds.world_named(scene.world).grid
    true = {name: {_value(thing, name, grid) for thing in scene.things} for name in ("colour", "shape", "size")}
    true |= {"position": {position_name(thing.cell, grid) for thing in scene.things}}
    true |= {"count": {COUNTS[len(scene.things) - 1]}, "background": {scene.background}}
    if worlds.world_named(scene.world).moves:
        true["motion"] = {MOTION_PHRASES[thing.motion] for thing in scene.things if thing.motion}
        true["speed"] = {ADVERBS[thing.speed] for thing in scene.things if thing.speed}
    return true


def _compare(claims: Claims, scene: Scene, match: tuple[Thing | None, ...]) -> list[tuple[str, bool]]:
    grid = worlds.world_named(scene.world).grid
    compared = []
    for claim, thing in zip(claims.things, match, strict=True):
        for name in ("colour", "shape", "size", "position", "motion", "speed"):
            claimed = getattr(claim, name)
            if claimed is not None:
                compared.append((name, thing is not None and claimed == _value(thing, name, grid)))
    for name, i, j in claims.relations:
        first, second = match[i], match[j]
        compared.append(("relation", first is not None and second is not None and _lies(name, first, second)))
    return compared


def _value(thing: Thing, attribute: str, grid: int) -> str | None:
    return position_name(thing.cell, grid) if attribute == "position" else getattr(thing, attribute)


def _compare_whole(claims: Claims, scene: Scene) -> list[tuple[str, bool]]:
    compared = []
    if claims.background is not None:
        compared.append(("background", claims.background == scene.background))
    if claims.count is not None:
        compared.append(("count", claims.count == len(scene.things)))
    return compared
