"""The scenes themselves: their things, how these are drawn, and the combinations that are kept for the tests.

Lengths are in image widths unless a name gives another unit, so that a scene has no resolution; times are in
seconds, so that a video has no frame rate. A video lasts as many seconds as its frames do at its frame rate.
"""

import dataclasses
import functools
import itertools
import json

import numpy as np

from zoo import errors

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
ROUND = ("circle", "ring")  # they never spin: it would look like standing still
COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 190, 70),
    "blue": (50, 80, 240),
    "yellow": (245, 225, 50),
    "purple": (165, 60, 210),
    "cyan": (60, 215, 230),
    "orange": (250, 140, 30),
    "white": (250, 250, 250),
}
BACKGROUNDS = {"black": (0, 0, 0), "grey": (96, 96, 96), "brown": (92, 48, 16)}
SIZES = ("small", "large")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
MOTIONS = ("static", *DIRECTIONS, "spinning", "growing", "shrinking", "blinking")
SPEEDS = ("slow", "fast")
SPLITS = ("train", "test_seen", "test_unseen")
SHORTEST_VIDEO = 1.0  # seconds: less does not show each motion and speed
SLOWEST_RATE = 4.0  # frames/s, likewise

CELLS_PER_SECOND = {"slow": 0.4, "fast": 1.0}
# At 4 frames a video, one frame's turn stays below half a symmetry of every shape (36 degrees for the star).
DEGREES_PER_SECOND = {"slow": 45.0, "fast": 135.0}
SMALLEST_SCALE = {"slow": 0.75, "fast": 0.5}
# Growth ends here rather than at the end: the last of only 4 frames must show a thing's full size.
SECONDS_OF_GROWTH = 0.75
SECONDS_PER_BLINK = {"slow": 1.0, "fast": 0.5}


@dataclasses.dataclass(frozen=True)
class World:
    """Rules of the scenes of a world. `diameter` and `jitter` (per size) are in cells."""

    name: str
    grid: int
    most_things: int
    diameter: dict[str, float]
    jitter: dict[str, float]
    smallest_image: int
    motions: tuple[str, ...] = ("static",)

    @property
    def moves(self) -> bool:
        """Whether things move, so that the world has videos."""
        return len(self.motions) > 1


# Diameters and jitter leave a gap between any two things that is 1.5 pixels wide in the smallest image; in
# videos they also leave room for corners to turn.
WORLDS = {
    world.name: world
    for world in (
        World("one", 2, 1, {"small": 0.68, "large": 0.96}, {"small": 0.0, "large": 0.0}, 16),
        World("pairs", 2, 2, {"small": 0.6, "large": 0.88}, {"small": 0.0, "large": 0.0}, 32),
        World("full", 3, 3, {"small": 0.52, "large": 0.76}, {"small": 0.17, "large": 0.05}, 32),
        World("video", 3, 2, {"small": 0.46, "large": 0.66}, {"small": 0.16, "large": 0.02}, 32, MOTIONS),
        World(
            "video_one",
            2,
            1,
            {"small": 0.62, "large": 0.88},
            {"small": 0.12, "large": 0.04},
            16,
            ("static", *DIRECTIONS, "blinking"),
        ),
    )
}


# Data sets of all still scenes of a world, equally likely: nothing is held out.
UNIFORM = {"entropy": "one", "modes": "one"}


def world_named(name: str) -> World:
    """Returns the world of that name. Raises `UserError` if there is none."""
    if name not in WORLDS:
        raise errors.unknown_name_error("world", name, WORLDS)
    return WORLDS[name]


@dataclasses.dataclass(frozen=True)
class Thing:
    """One thing. `cell` (row, column) is where it starts, `offset` (down, right) its jitter in cells.

    A growing or shrinking thing has the `size` of its largest moment. `speed` is None for a static thing.
    """

    shape: str
    colour: str
    size: str
    cell: tuple[int, int]
    offset: tuple[float, float] = (0.0, 0.0)
    motion: str = "static"
    speed: str | None = None


@dataclasses.dataclass(frozen=True)
class Scene:
    """A background and things in different cells of the world's grid."""

    world: str
    background: str
    things: tuple[Thing, ...]

    def to_json(self) -> str:
        """Returns the scene as text."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Scene":
        """Returns the scene that `to_json` wrote."""
        fields = json.loads(text)
        things = (
            Thing(**thing | {"cell": tuple(thing["cell"]), "offset": tuple(thing["offset"])})
            for thing in fields.pop("things")
        )
        return cls(things=tuple(things), **fields)

    def facts(self) -> "Scene":
        """Returns the scene without jitter, things ordered by cell: equal for scenes with the same caption."""
        things = (dataclasses.replace(thing, offset=(0.0, 0.0)) for thing in self.things)
        return dataclasses.replace(self, things=tuple(sorted(things, key=lambda thing: thing.cell)))


# ---- held-out combinations


# Every fifth (colour, shape), in colour-major order: 10 of 48. Each colour and each shape loses one or two.
HELD_OUT_PAIRS = frozenset(list(itertools.product(COLOURS, SHAPES))[::5])


def _held_out_relations() -> frozenset[tuple[str, str, str]]:
    ring = [(SHAPES[i], SHAPES[(i + 1) % 6], SHAPES[(i + 2) % 6]) for i in range(6)]
    return frozenset(
        [("left of", first, second) for first, second, _ in ring]
        + [("above", first, third) for first, _, third in ring]
    )


# 12 of the 60 relations between different shapes. Each shape is once on either side of "left of" and "above",
# and a pair of shapes never loses both of its orders.
HELD_OUT_RELATIONS = _held_out_relations()


def relations(scene: Scene) -> set[tuple[str, str, str]]:
    """Returns all ("left of" | "above", shape, shape) of the scene, whatever the colours.

    One thing is left of another if its column is smaller, above if its row is smaller. "right of" and "below"
    are the same relations with the shapes swapped.
    """
    found = set()
    for first, second in itertools.permutations(scene.things, 2):
        if first.cell[1] < second.cell[1]:
            found.add(("left of", first.shape, second.shape))
        if first.cell[0] < second.cell[0]:
            found.add(("above", first.shape, second.shape))
    return found


def is_held_out(scene: Scene) -> bool:
    """Whether the scene has a (colour, shape) or a relation that training never shows."""
    pairs = {(thing.colour, thing.shape) for thing in scene.things}
    return not (HELD_OUT_PAIRS.isdisjoint(pairs) and HELD_OUT_RELATIONS.isdisjoint(relations(scene)))


# ---- drawing at random


def draw_scene(rng: np.random.Generator, world: str, split: str) -> Scene:
    """Draws a scene of a split.

    Args:
      rng: advanced by a number of draws that varies.
      world: a name in `WORLDS`.
      split: `train` and `test_seen` hold no held-out pair or relation, `test_unseen` scenes at least one.

    Raises:
      UserError: unknown world or split.
    """
    rules = world_named(world)
    if split not in SPLITS:
        raise errors.unknown_name_error("split", split, SPLITS)
    count = 1 + int(rng.integers(rules.most_things))  # before any rejection, which would favour few things
    background = _choice(rng, tuple(BACKGROUNDS))
    while True:
        things = tuple(_draw_thing(rng, rules) for _ in range(count))
        scene = Scene(world, background, things)
        if _have_room(things, rules) and is_held_out(scene) == (split == "test_unseen"):
            return scene


def _choice(rng: np.random.Generator, options: tuple):
    return options[int(rng.integers(len(options)))]


def _draw_thing(rng: np.random.Generator, world: World) -> Thing:
    shape, colour, size = _choice(rng, SHAPES), _choice(rng, tuple(COLOURS)), _choice(rng, SIZES)
    row, column = divmod(int(rng.integers(world.grid**2)), world.grid)
    jitter = world.jitter[size]
    offset = tuple(rng.uniform(-jitter, jitter, 2).tolist()) if jitter else (0.0, 0.0)
    motion = "static"
    if world.moves:
        motion = _choice(rng, tuple(m for m in world.motions if m != "spinning" or shape not in ROUND))
    speed = None if motion == "static" else _choice(rng, SPEEDS)
    return Thing(shape, colour, size, (row, column), offset, motion, speed)


def _have_room(things: tuple[Thing, ...], world: World) -> bool:
    """Whether no two things ever enter the same cell, and each that moves has a cell to move to."""
    ways = [_cells_entered(thing, world) for thing in things]
    moving = all(len(way) > 1 for thing, way in zip(things, ways, strict=True) if thing.motion in DIRECTIONS)
    cells = [cell for way in ways for cell in way]
    return moving and len(set(cells)) == len(cells)


def can_move(thing: Thing, world: World) -> bool:
    """Whether a thing that moves has a cell to move to."""
    return len(_cells_entered(thing, world)) > 1


def _cells_entered(thing: Thing, world: World) -> list[tuple[int, int]]:
    """Returns the cells of a thing's way, which ends at the edge of the grid; its own alone where it cannot move."""
    down, right = DIRECTIONS.get(thing.motion, (0, 0))
    steps = range(world.grid if thing.motion in DIRECTIONS else 1)
    way = [(thing.cell[0] + down * step, thing.cell[1] + right * step) for step in steps]
    return [cell for cell in way if all(0 <= place < world.grid for place in cell)]


def all_still_scenes(world: str) -> list[Scene]:
    """Returns every scene of one thing without jitter, in a fixed order (1152 for world `one`)."""
    rules = world_named(world)
    cells = [(row, column) for row in range(rules.grid) for column in range(rules.grid)]
    return [
        Scene(world, background, (Thing(shape, colour, size, cell),))
        for background, shape, colour, size, cell in itertools.product(BACKGROUNDS, SHAPES, COLOURS, SIZES, cells)
    ]


# ---- shapes


# All shapes lie in [-1, 1]^2 with their centre of mass at the origin, once moved down by this much.
DROP = {"triangle": 0.2875, "star": 0.1}
REACH = 1.42  # no point of a shape is further than this from its centre of mass
TRIANGLE_RADIUS = 1.15
STAR_RADIUS, STAR_NOTCH = 1.05, 0.5
# Images up to 64 pixels sample the same points, so a small image is the box average of a larger one.
FINEST_GRID = 256
FEWEST_SAMPLES = 4


def _inside(shape: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Whether points are in a shape of radius 1. y (n, 1) or (n, m), x (1, m) or (n, m) -> bool (n, m)."""
    match shape:
        case "circle":
            return y * y + x * x <= 1
        case "ring":
            square_distance = y * y + x * x
            return (square_distance <= 1) & (square_distance >= 0.55**2)
        case "square":
            return (abs(y) <= 1) & (abs(x) <= 1)
        case "cross":
            return (abs(y) <= 1) & (abs(x) <= 0.34) | (abs(y) <= 0.34) & (abs(x) <= 1)
        case "triangle":
            slope = np.float32(3**0.5)
            return (y <= TRIANGLE_RADIUS / 2) & (slope * abs(x) <= y + TRIANGLE_RADIUS)
        case "star":
            return _inside_star(y, x)
    raise errors.unknown_name_error("shape", shape, SHAPES)


def _inside_star(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    turns = np.arange(5, dtype=np.float32) * np.float32(2 * np.pi / 5)
    # Along and across the nearest of the five tips: there, a star is what lies below one line.
    along = functools.reduce(np.maximum, (np.sin(turn) * x - np.cos(turn) * y for turn in turns))
    across = np.sqrt(np.maximum(y * y + x * x - along * along, 0))
    notch_along, notch_across = (STAR_NOTCH * STAR_RADIUS * f(np.pi / 5) for f in (np.cos, np.sin))
    return across * np.float32(STAR_RADIUS - notch_along) <= np.float32(notch_across) * (STAR_RADIUS - along)


@functools.lru_cache
def _row_sums(rows: int, samples: int) -> np.ndarray:
    return np.repeat(np.eye(rows, dtype=np.float32), samples, axis=1) / samples


def coverage(shape: str, centre: tuple[float, float], radius: float, angle: float, size: int):
    """Renders how much of each pixel a shape covers.

    Args:
      shape: a name in `SHAPES`.
      centre: (y, x) of the centre of mass, in image widths.
      radius: in image widths.
      angle: degrees, clockwise.
      size: of the square image, in pixels.

    Returns:
      float32 (h, w) in [0, 1], and the (row, column) of its first pixel: the part of the image that holds
      the shape.
    """
    samples = max(FEWEST_SAMPLES, FINEST_GRID // size)
    axes, first, extent = [], [], []
    for middle in centre:
        start = max(0, int(np.floor((middle - REACH * radius) * size)))
        stop = min(size, int(np.ceil((middle + REACH * radius) * size)))
        points = start + (np.arange(max(0, stop - start) * samples) + 0.5) / samples
        axes.append(((points / size - middle) / radius).astype(np.float32))
        first.append(start)
        extent.append(max(0, stop - start))
    y, x = axes[0][:, None], axes[1][None, :]
    if angle:
        cos, sin = np.float32(np.cos(np.radians(angle))), np.float32(np.sin(np.radians(angle)))
        y, x = cos * y - sin * x, sin * y + cos * x
    inside = _inside(shape, y, x).astype(np.float32)
    return _row_sums(extent[0], samples) @ inside @ _row_sums(extent[1], samples).T, tuple(first)


# ---- rendering


@dataclasses.dataclass(frozen=True)
class Pose:
    """Pose of a thing at one time: centre of mass (y, x) and radius in image widths, angle in degrees."""

    centre: tuple[float, float]
    radius: float
    angle: float
    visible: bool


def pose(thing: Thing, world: World, seconds: float) -> Pose:
    """Returns where a thing is. It moves at constant speed as far as the edge of the grid; see the constants above."""
    radius = world.diameter[thing.size] / 2 / world.grid
    down, right = thing.offset
    if thing.motion in DIRECTIONS and thing.speed:
        travelled = min(CELLS_PER_SECOND[thing.speed] * seconds, len(_cells_entered(thing, world)) - 1)
        down += DIRECTIONS[thing.motion][0] * travelled
        right += DIRECTIONS[thing.motion][1] * travelled
    centre = (
        (thing.cell[0] + 0.5 + down) / world.grid + DROP.get(thing.shape, 0.0) * radius,
        (thing.cell[1] + 0.5 + right) / world.grid,
    )
    angle = DEGREES_PER_SECOND[thing.speed] * seconds if thing.speed and thing.motion == "spinning" else 0.0
    return Pose(
        centre,
        radius * scale(thing.motion, thing.speed, seconds),
        angle,
        is_visible(thing.motion, thing.speed, seconds),
    )


def scale(motion: str, speed: str | None, seconds: float) -> float:
    """Returns a thing's size at a time, as a fraction of its largest."""
    if speed is None or motion not in ("growing", "shrinking"):
        return 1.0
    smallest, grown = SMALLEST_SCALE[speed], min(seconds / SECONDS_OF_GROWTH, 1.0)
    return smallest + (1 - smallest) * (grown if motion == "growing" else 1 - grown)


def is_visible(motion: str, speed: str | None, seconds: float) -> bool:
    """Whether a thing shows at a time: a blinking one does in the first half of each of its periods."""
    return speed is None or motion != "blinking" or seconds % SECONDS_PER_BLINK[speed] < SECONDS_PER_BLINK[speed] / 2


def check_video(frames: int, frame_rate: float) -> None:
    """Raises `UserError` unless videos of so many frames at this rate show each motion and speed."""
    if frame_rate < SLOWEST_RATE or frames < SHORTEST_VIDEO * frame_rate:
        raise errors.UserError(
            f"{frames} frames at {frame_rate:g} frames/s do not show each motion: use at least {SLOWEST_RATE:g} "
            f"frames/s, for at least {SHORTEST_VIDEO:g} s"
        )


def render(scene: Scene, size: int, frames: int = 1, frame_rate: float | None = None) -> np.ndarray:
    """Draws a scene, anti-aliased.

    Args:
      scene: what to draw.
      size: height and width in pixels.
      frames: how many, the first at time 0.
      frame_rate: frames/s; None for a video of one second.

    Returns:
      uint8 (frames, size, size, 3). Frame 2i at twice a frame rate equals frame i, exactly.

    Raises:
      UserError: a size or number of frames below 1, or a frame rate that is not positive.
    """
    if size < 1 or frames < 1 or (frame_rate is not None and frame_rate <= 0):
        raise errors.UserError(f"cannot draw {frames} frames of {size} px at rate {frame_rate}: use at least 1 of each")
    rate = frames if frame_rate is None else frame_rate
    if all(thing.motion == "static" for thing in scene.things):
        return np.repeat(_render_frame(scene, size, 0.0)[None], frames, axis=0)
    return np.stack([_render_frame(scene, size, frame / rate) for frame in range(frames)])


def _render_frame(scene: Scene, size: int, seconds: float) -> np.ndarray:
    world = world_named(scene.world)
    image = np.empty((size, size, 3), np.float32)
    image[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        where = pose(thing, world, seconds)
        if not where.visible:
            continue
        covered, (top, left) = coverage(thing.shape, where.centre, where.radius, where.angle, size)
        part = image[top : top + covered.shape[0], left : left + covered.shape[1]]
        part += covered[:, :, None] * (np.array(COLOURS[thing.colour], np.float32) - part)
    return np.rint(image).astype(np.uint8)
