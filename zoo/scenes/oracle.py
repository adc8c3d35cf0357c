"""The oracle: reads an image or a video of scenes back into a `Scene`, and scores it against a caption.

Pixels are unmixed into a known background and the eight colours; what hangs together in one colour is a blob.
A blob is a thing if a template of some shape and size, at its sub-pixel centre, explains its pixels: the
squared error must be below `WORST_FIT` of the template's own energy. In videos, blobs are linked into tracks,
the motion is read from their centres and areas, and the shape must fit in every frame. Nothing is learned.

On clean images every scene of the tests is read right. How often `all` of a full caption is right for
damaged real images (blur: Gaussian, sigma in pixels; noise: Gaussian, standard deviation as a part of the
full range), 500 images each, 200 videos of 8 frames. What is too damaged is left unread rather than taken for
something else, but for blurs near 1: of the things still read there, up to one in ten has a wrong shape or size.

                  blur: 0      0.6    0.8    1.0    1.5    2.0    noise: 0.02   0.05   0.1    0.15
    full, 32 px   1.000  1.000  0.714  0.338  0.058  0.000         1.000  0.966  0.302  0.000
    one, 16 px    1.000  1.000  0.704  0.480  0.186  0.106         1.000  0.974  0.508  0.090
    videos, 32 px  1.000  0.950  0.530  0.245  0.005  0.000         1.000  0.890  0.055  0.000

From `python -m zoo oracle_eval --world full --size 32 --num 500`, and so on.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from zoo import errors
from zoo.scenes import world as worlds
from zoo.scenes.grammar import ATTRIBUTES, holds, parse, without_motion
from zoo.scenes.world import Scene, Thing, World

BACKGROUND_TOLERANCE = 32  # of each channel, out of 255
LEAST_COVERAGE = 0.3  # of a pixel that belongs to a thing; the gap between two things never has so much
LEAST_AREA = 0.4  # of a blob that could be a thing, in areas of the smallest one; lesser ones are specks
WORST_FIT = 0.12
PHASES = 4  # templates a pixel, along each axis
WHOLE = "all", "unreadable"  # of an image's score
ALL_RIGHT = 2.0  # highest value of `claims_right`
MOST_BLOBS = 6  # an image with more is not worth an explanation
FARTHEST = 0.12  # cells from the way of a motion, on which a thing must be in each frame
LONGEST_STEP = 0.5  # cells from frame to frame
UNREAD = "", None  # motion and speed of one frame


@dataclasses.dataclass(frozen=True)
class Observation:
    """Result of reading an image. `scene` is None without a readable object; `clutter`: there are unreadable ones."""

    scene: Scene | None
    clutter: bool


@dataclasses.dataclass(frozen=True)
class Blob:
    """Connected pixels of one colour: they and their rim, and their centre and area weighted by coverage."""

    colour: int
    room: np.ndarray  # bool (H, W)
    centre: np.ndarray  # (y, x) in pixels
    area: float  # in pixels


# ---- pixels to blobs


def background_of(pixels: np.ndarray) -> str | None:
    """Returns the background that most of the pixels (..., 3) are close to, if there is one."""
    middle = np.median(pixels.reshape(-1, 3), axis=0)
    distances = {name: np.abs(middle - value).max() for name, value in worlds.BACKGROUNDS.items()}
    name = min(distances, key=lambda name: distances[name])
    return name if distances[name] <= BACKGROUND_TOLERANCE else None


@functools.cache
def _directions(background: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps from a background to the colours (8, 3), and their squared lengths (8,)."""
    steps = np.array(list(worlds.COLOURS.values()), np.float32) - worlds.BACKGROUNDS[background]
    return steps, (steps**2).sum(1)


def _unmixed(residue: np.ndarray, background: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unmixes a frame into colours.

    Args:
      residue: frame minus its background, float32 (H, W, 3).
      background: its name.

    Returns:
      The colour that explains most of each pixel, (H, W); the coverage by each colour, (H, W, 8); and that by the
      former, (H, W).
    """
    steps, energies = _directions(background)
    projections = residue @ steps.T / energies  # (H, W, 8)
    coverages = np.clip(projections, 0, 1)
    gains = (2 * projections - coverages) * coverages * energies  # squared error that a colour explains
    colours = gains.argmax(-1)
    return colours, coverages, np.take_along_axis(coverages, colours[..., None], -1)[..., 0]


def _blobs(residue: np.ndarray, background: str, least_area: float) -> tuple[list[Blob], float]:
    """Finds the blobs in a frame minus its background, float32 (H, W, 3), and the area of what is less."""
    colours, coverages, covered = _unmixed(residue, background)
    masks = _components(np.where(covered >= LEAST_COVERAGE, colours + 1, 0))
    areas = [float(covered[mask].sum()) for mask in masks]
    masks = [mask for mask, area in zip(masks, areas, strict=True) if area >= least_area]
    specks = sum(area for area in areas if area < least_area)
    taken = functools.reduce(np.logical_or, masks, np.zeros(covered.shape, bool))
    return [_blob(mask, taken, colours, coverages) for mask in masks], specks


def _blob(mask: np.ndarray, taken: np.ndarray, colours: np.ndarray, coverages: np.ndarray) -> Blob:
    room = _grown(mask) & (mask | ~taken)
    colour = int(colours[mask][0])
    weights = coverages[:, :, colour] * room
    area = float(weights.sum())
    rows, columns = np.arange(mask.shape[0]) + 0.5, np.arange(mask.shape[1]) + 0.5
    return Blob(colour, room, np.array([weights.sum(1) @ rows, weights.sum(0) @ columns]) / area, area)


def _grown(mask: np.ndarray) -> np.ndarray:
    """Returns the mask and its eight neighbours."""
    tall = mask.copy()
    tall[1:] |= mask[:-1]
    tall[:-1] |= mask[1:]
    wide = tall.copy()
    wide[:, 1:] |= tall[:, :-1]
    wide[:, :-1] |= tall[:, 1:]
    return wide


def _components(labels: np.ndarray) -> list[np.ndarray]:
    """Returns the masks of the 8-connected regions of equal labels > 0 in int (H, W)."""
    padded = np.pad(labels, ((0, 0), (1, 1)))
    rows, starts = np.nonzero((padded[:, 1:] != padded[:, :-1]) & (padded[:, 1:] > 0))
    _, stops = np.nonzero((padded[:, 1:] != padded[:, :-1]) & (padded[:, :-1] > 0))
    runs = list(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True))
    kinds = labels[rows, starts].tolist()
    parents = list(range(len(runs)))

    def root(i: int) -> int:
        while parents[i] != i:
            i = parents[i]
        return i

    for i, (row, start, stop) in enumerate(runs):
        for j in range(i - 1, -1, -1):
            above, other_start, other_stop = runs[j]
            if above < row - 1:
                break
            if above == row - 1 and kinds[i] == kinds[j] and other_start <= stop and start <= other_stop:
                parents[root(i)] = root(j)
    masks: dict[int, np.ndarray] = {}
    for i, (row, start, stop) in enumerate(runs):
        masks.setdefault(root(i), np.zeros(labels.shape, bool))[row, start:stop] = True
    return list(masks.values())


# ---- blobs to shapes


_KINDS = tuple(itertools.product(worlds.SHAPES, worlds.SIZES))
_NEARBY = tuple(itertools.product((-1, 0, 1), repeat=2))


def _pixels_per_cell(world: World, size: int) -> float:
    return size / world.grid


def _radius(world: World, kind: str, size: int) -> float:
    return world.diameter[kind] / 2 * _pixels_per_cell(world, size)


def _half_window(world: World, size: int) -> int:
    return int(np.ceil(_radius(world, "large", size) * worlds.REACH)) + 1


def _template(shape: str, radius: float, angle: float, phase: np.ndarray, half: int) -> np.ndarray:
    """Returns coverage float32 (side, side) of a shape `phase` (y, x) past the edge of the middle pixel."""
    side = 2 * half + 1
    centre = tuple((half + phase) / side)
    covered, (top, left) = worlds.coverage(shape, centre, radius / side, angle, side)
    template = np.zeros((side, side), np.float32)
    template[top : top + covered.shape[0], left : left + covered.shape[1]] = covered
    return template


@functools.cache
def _bank(world: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns templates (PHASES, PHASES, kinds, side^2) of all kinds of thing, and their energies."""
    rules = worlds.world_named(world)
    half = _half_window(rules, size)
    phases = [np.array(phase) / PHASES for phase in itertools.product(range(PHASES), repeat=2)]
    templates = np.stack(
        [
            _template(shape, _radius(rules, kind, size), 0.0, phase, half).ravel()
            for phase, (shape, kind) in itertools.product(phases, _KINDS)
        ]
    ).reshape(PHASES, PHASES, len(_KINDS), -1)
    return templates, (templates**2).sum(-1)


@dataclasses.dataclass(frozen=True)
class Patch:
    """Pixels of a blob: their projection on its colour (H + 2 half, W + 2 half), and energy."""

    strength: np.ndarray
    energy: float
    half: int

    def window(self, pixel: np.ndarray) -> np.ndarray:
        """Returns the pixels around a place."""
        side = 2 * self.half + 1
        top, left = (min(max(int(i), 0), n - side) for i, n in zip(pixel, self.strength.shape, strict=True))
        return self.strength[top : top + side, left : left + side].ravel()


def _patch(residue: np.ndarray, blob: Blob, background: str, half: int) -> Patch:
    steps, energies = _directions(background)
    own = residue * blob.room[..., None]
    strength = own @ steps[blob.colour] / energies[blob.colour]
    return Patch(np.pad(strength, half), float((own**2).sum() / energies[blob.colour]), half)


def _best_kind(patch: Patch, blob: Blob, world: World, size: int) -> tuple[str, str, float]:
    """Returns the shape and size that explain a blob best, and the part of their energy they get wrong."""
    templates, energies = _bank(world.name, size)
    best = (np.inf, 0, 1.0)
    for nudge in _NEARBY:
        pixel, phase = np.divmod(np.rint(blob.centre * PHASES).astype(int) + nudge, PHASES)
        energy = energies[tuple(phase)]
        wrong = patch.energy - 2 * templates[tuple(phase)] @ patch.window(pixel) + energy
        kind = int(wrong.argmin())
        best = min(best, (float(wrong[kind]), kind, float(energy[kind])))
    wrong, kind, energy = best
    return *_KINDS[kind], wrong / energy


@functools.cache
def _smallest_area(world: str, size: int) -> float:
    return float(_bank(world, size)[0][0, 0].sum(-1).min())


def _cell(centre: np.ndarray, shape: str, kind: str, world: World, size: int) -> tuple[int, int]:
    drop = worlds.DROP.get(shape, 0.0) * _radius(world, kind, size)
    cell = (centre - (drop, 0)) // _pixels_per_cell(world, size)
    row, column = np.clip(cell, 0, world.grid - 1)
    return int(row), int(column)


# ---- tracks to motions


@dataclasses.dataclass
class Track:
    """One blob over time; None in the frames that do not show it."""

    blobs: list[Blob | None]

    def last(self) -> Blob:
        """The newest blob."""
        return next(blob for blob in reversed(self.blobs) if blob is not None)


def _link(frames: list[list[Blob]], reach: float) -> list[Track]:
    """Links blobs of one colour from frame to frame, nearest first, at most `reach` pixels apart."""
    tracks: list[Track] = []
    for time, blobs in enumerate(frames):
        pairs = [
            (float(np.hypot(*(track.last().centre - blob.centre))), i, j)
            for i, track in enumerate(tracks)
            for j, blob in enumerate(blobs)
            if track.last().colour == blob.colour
        ]
        extended, used = set(), set()
        for distance, i, j in sorted(pairs):
            if distance <= reach and i not in extended and j not in used:
                tracks[i].blobs.append(blobs[j])
                extended.add(i)
                used.add(j)
        for i, track in enumerate(tracks):
            if i not in extended:
                track.blobs.append(None)
        tracks.extend(Track([None] * time + [blob]) for j, blob in enumerate(blobs) if j not in used)
    return tracks


def _between(low: float, high: float) -> float:
    return (low * high) ** 0.5


def _motions(track: Track, times: np.ndarray, world: World, cell: float) -> list[tuple[str, str | None]]:
    """Returns the (motion, speed) that a track's centres and areas allow; a turn needs the shapes."""
    if len(times) == 1:
        return [UNREAD]
    blobs = [blob for blob in track.blobs if blob is not None]
    seen = [blob is not None for blob in track.blobs]
    if not all(seen):
        return _blinks(seen, times)
    movement = _movement(np.stack([blob.centre for blob in blobs]) / cell, times, world)
    if movement is None or movement[0] != "static":
        return [movement] if movement else []
    growth = float(np.sqrt(blobs[-1].area / blobs[0].area))
    if min(growth, 1 / growth) < _between(worlds.SMALLEST_SCALE["slow"], 1.0):
        return _growths(growth)
    turns = itertools.product(["spinning"], worlds.SPEEDS)
    return [("static", None), *(turn for turn in turns if turn[0] in world.motions)]


def _blinks(seen: list[bool], times: np.ndarray) -> list[tuple[str, str | None]]:
    return [
        ("blinking", speed)
        for speed in worlds.SPEEDS
        if seen == [worlds.is_visible("blinking", speed, time) for time in times]
    ]


def _movement(centres: np.ndarray, times: np.ndarray, world: World) -> tuple[str, str | None] | None:
    """Returns the movement, or "static", whose way is nearest to centres (T, 2) in cells; None if none is near."""
    cell = tuple(np.clip(centres[0].astype(int), 0, world.grid - 1).tolist())
    ways: dict[tuple[str, str | None], np.ndarray] = {("static", None): np.zeros((len(times), 2))}
    for direction, speed in itertools.product(worlds.DIRECTIONS, worlds.SPEEDS):
        thing = Thing("circle", "red", "small", cell, motion=direction, speed=speed)
        if direction in world.motions and worlds.can_move(thing, world):
            places = [worlds.pose(thing, world, time).centre for time in times]
            ways[direction, speed] = (np.array(places) - places[0]) * world.grid
    distances = {movement: np.abs(_centred(centres) - _centred(way)).max() for movement, way in ways.items()}
    nearest = min(distances, key=lambda movement: distances[movement])
    return nearest if distances[nearest] <= FARTHEST else None


def _centred(places: np.ndarray) -> np.ndarray:
    return places - places.mean(axis=0)


def _growths(growth: float) -> list[tuple[str, str | None]]:
    fast = min(growth, 1 / growth) < _between(*worlds.SMALLEST_SCALE.values())
    return [("growing" if growth > 1 else "shrinking", "fast" if fast else "slow")]


def _misfit(
    track: Track, patches: list[Patch | None], times: np.ndarray, thing: Thing, world: World, size: int
) -> float:
    """Returns the part of a thing's energy that its track gets wrong, over all frames that show it."""
    wrong, energy = 0.0, 0.0
    for time, blob, patch in zip(times, track.blobs, patches, strict=True):
        if blob is None or patch is None:
            continue
        pose = worlds.pose(thing, world, time)
        pixel, phase = np.divmod(blob.centre, 1)
        template = _template(thing.shape, pose.radius * size, pose.angle, phase, patch.half).ravel()
        template_energy = float(template @ template)
        wrong += patch.energy - 2 * float(template @ patch.window(pixel)) + template_energy
        energy += template_energy
    return wrong / energy


# ---- reading


def observe(pixels: np.ndarray, world: str, frame_rate: float | None = None) -> Observation:
    """Reads an image or a video.

    Args:
      pixels: uint8 (T, H, W, 3), H == W; one frame of a world that moves is read without motion.
      world: a name in `zoo.scenes.world.WORLDS`.
      frame_rate: frames/s of a video; None for a video of one second.

    Returns:
      all things that fit their template, ordered by cell, without jitter; and whether there is more.

    Raises:
      UserError: unknown world, or pixels or a frame rate that are not of it.
    """
    rules = worlds.world_named(world)
    rate = len(pixels) if frame_rate is None else frame_rate
    _check(pixels, rules, rate)
    background = background_of(pixels)
    if background is None:
        return Observation(None, clutter=True)
    size = pixels.shape[1]
    residues = pixels.astype(np.float32) - np.array(worlds.BACKGROUNDS[background], np.float32)
    smallest = _smallest_area(world, size)
    shrunk = smallest * min(worlds.SMALLEST_SCALE.values()) ** 2 if rules.moves else smallest
    found = [_blobs(residue, background, LEAST_AREA * shrunk) for residue in residues]
    if max(len(blobs) for blobs, _ in found) > MOST_BLOBS:
        return Observation(None, clutter=True)
    tracks = _link([blobs for blobs, _ in found], LONGEST_STEP * _pixels_per_cell(rules, size))
    times = np.arange(len(pixels)) / rate
    things = [_thing(track, times, residues, background, rules, size) for track in tracks]
    readable = sorted((thing for thing in things if thing is not None), key=lambda thing: thing.cell)
    clutter = len(readable) < len(things) or max(specks for _, specks in found) > smallest
    return Observation(Scene(world, background, tuple(readable)) if readable else None, clutter)


def _check(pixels: np.ndarray, world: World, frame_rate: float) -> None:
    good = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[1:] == (pixels.shape[1],) * 2 + (3,)
    if not good:
        raise errors.UserError(f"the oracle reads uint8 (T, H, H, 3), got {pixels.dtype} {pixels.shape}")
    frames, size = pixels.shape[:2]
    if size < world.smallest_image:
        raise errors.UserError(
            f"world {world.name!r} cannot be read at {size} px: use at least {world.smallest_image} px"
        )
    if frames > 1 and not world.moves:
        raise errors.UserError(f"world {world.name!r} has 1 frame, got {frames}")
    if frames > 1:
        worlds.check_video(frames, frame_rate)


def _thing(
    track: Track, times: np.ndarray, residues: np.ndarray, background: str, world: World, size: int
) -> Thing | None:
    """Returns the thing that explains a track, None if none does well enough."""
    if track.blobs[0] is None:
        return None
    motions = _motions(track, times, world, _pixels_per_cell(world, size)) if world.moves else [("static", None)]
    if not motions:
        return None
    half = _half_window(world, size)
    patches = [
        None if blob is None else _patch(residue, blob, background, half)
        for blob, residue in zip(track.blobs, residues, strict=True)
    ]
    largest = -1 if motions[0][0] == "growing" else 0
    patch, blob = patches[largest], track.blobs[largest]
    if patch is None or blob is None:
        return None
    shape, kind, misfit = _best_kind(patch, blob, world, size)
    cell = _cell(track.blobs[0].centre, shape, kind, world, size)
    thing = Thing(shape, tuple(worlds.COLOURS)[track.blobs[0].colour], kind, cell)
    if world.moves:
        turns = [pair for pair in motions if pair[0] != "spinning" or shape not in worlds.ROUND]
        things = [dataclasses.replace(thing, motion=motion, speed=speed) for motion, speed in turns]
        misfits = [_misfit(track, patches, times, thing, world, size) for thing in things]
        misfit, thing = min(misfits), things[int(np.argmin(misfits))]
    return thing if misfit <= WORST_FIT else None


def _read_roughly(pixels: np.ndarray, world: str, known: tuple[Thing, ...], frame_rate: float | None) -> Scene:
    """Reads what can be read of an image with noise or blur: background, colours, places, and of videos motions.

    Args:
      pixels: as for `observe`.
      world: as for `observe`.
      known: things that `observe` found.
      frame_rate: as for `observe`.

    Returns:
      The background, "" if it is none of the known ones, and the largest blobs of the first frame after a median over
      3 x 3 pixels, as things without shape and size, and without motion where shapes must be known for it. Known things
      have all.
    """
    rules, size = worlds.world_named(world), pixels.shape[1]
    smooth = np.stack([_median(frame) for frame in pixels])
    background = background_of(smooth[0])
    if background is None:
        return Scene(world, "", ())
    things = {(thing.cell, thing.colour): thing for thing in known}
    residues = smooth.astype(np.float32) - np.array(worlds.BACKGROUNDS[background], np.float32)
    found = [_blobs(residue, background, LEAST_AREA * _smallest_area(world, size))[0] for residue in residues]
    times = np.arange(len(pixels)) / (len(pixels) if frame_rate is None else frame_rate)
    if max(map(len, found)) > MOST_BLOBS:
        found, times = found[:1], times[:1]
    tracks = _link(found, LONGEST_STEP * _pixels_per_cell(rules, size))
    begun = [(track, track.blobs[0]) for track in tracks if track.blobs[0] is not None]
    for track, blob in sorted(begun, key=lambda pair: -pair[1].area):
        colour, cell = tuple(worlds.COLOURS)[blob.colour], _cell(blob.centre, "", "large", rules, size)
        motion, speed = _rough_motion(track, times, rules, size)
        things.setdefault((cell, colour), Thing("", colour, "", cell, motion=motion, speed=speed))
    return Scene(world, background, tuple(things.values())[:MOST_BLOBS])


def _rough_motion(track: Track, times: np.ndarray, world: World, size: int) -> tuple[str, str | None]:
    """The motion and speed of a track that its centres and areas show; what needs a shape is left unread."""
    if len(times) == 1:
        return UNREAD
    possible = _motions(track, times, world, _pixels_per_cell(world, size))
    possible = [pair for pair in possible if pair[0] in ("static", *world.motions)]
    return possible[0] if len(possible) == 1 else UNREAD


def _median(pixels: np.ndarray) -> np.ndarray:
    """Returns (H, W, 3) with each value the median of the 3 x 3 around it; edges repeat."""
    padded = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1)), axis=(-2, -1))


def centres(pixels: np.ndarray, world: str) -> np.ndarray:
    """Returns the centre over time of the thing that is the largest all in all, (T, 2), down and right in cells.

    Args:
      pixels: as for `observe`.
      world: as for `observe`.

    Returns:
      float64; NaN in frames that do not show it.
    """
    rules, size = worlds.world_named(world), pixels.shape[1]
    found = np.full((len(pixels), 2), np.nan)
    background = background_of(pixels)
    if background is None:
        return found
    residues = pixels.astype(np.float32) - np.array(worlds.BACKGROUNDS[background], np.float32)
    frames = [_blobs(residue, background, LEAST_AREA * _smallest_area(world, size))[0] for residue in residues]
    tracks = _link(frames, np.inf)  # a thing may jump from place to place: the distance is to show that
    largest = max(tracks, key=lambda track: sum(blob.area for blob in track.blobs if blob), default=Track([]))
    for i, blob in enumerate(largest.blobs):
        if blob is not None:
            found[i] = blob.centre / _pixels_per_cell(rules, size)
    return found


def colour_shares(pixels: np.ndarray, world: str) -> list[float]:
    """Returns for each thing the share of its area that has its main colour: what hangs together is one thing.

    Args:
      pixels: as for `observe`, one frame.
      world: as for `observe`.

    Returns:
      Numbers in (0, 1]; none where the image shows no thing, or no background.
    """
    background = background_of(pixels)
    if background is None:
        return []
    residue = pixels[0].astype(np.float32) - np.array(worlds.BACKGROUNDS[background], np.float32)
    (colours, _, covered), shares = _unmixed(residue, background), []
    for mask in _components((covered >= LEAST_COVERAGE).astype(int)):
        areas = np.bincount(colours[mask], weights=covered[mask])
        if areas.sum() >= LEAST_AREA * _smallest_area(world, pixels.shape[1]):
            shares.append(float(areas.max() / areas.sum()))
    return shares


def read(pixels: np.ndarray, world: str, frame_rate: float | None = None) -> Scene | None:
    """Reads an image or a video, see `observe`. None if no thing in it is readable."""
    return observe(pixels, world, frame_rate).scene


# ---- scoring


def score(pixels: np.ndarray, text: str, world: str, frame_rate: float | None = None) -> dict[str, bool | None]:
    """Compares an image with its caption.

    Args:
      pixels: uint8 (T, H, W, 3), as for `observe`.
      text: a caption of the grammar.
      world: as for `observe`.
      frame_rate: as for `observe`.

    Returns:
      for each of `zoo.scenes.grammar.ATTRIBUTES` whether all claims about it are true, None without
      a claim; claims about motion are not compared with one frame. An image or a video that is not wholly readable is
      compared by what can be read of it, see `_read_roughly`.
      `all`: nothing is false, nothing in the image is unreadable, and in a world of one thing there is one.
      `unreadable`: something in it is, or all.

    Raises:
      UserError: as `observe` and `zoo.scenes.grammar.parse`.
    """
    observed, claims = observe(pixels, world, frame_rate), parse(text)
    if len(pixels) == 1 and worlds.world_named(world).moves:
        claims = without_motion(claims)
    scene = observed.scene
    if scene is None or observed.clutter:
        right = holds(claims, _read_roughly(pixels, world, scene.things if scene else (), frame_rate))
        if right["count"] is not None:
            right["count"] = False
        return right | {"all": False, "unreadable": True}
    right = holds(claims, scene)
    alone = worlds.world_named(world).most_things > 1 or len(scene.things) == 1
    return right | {"all": alone and all(value is not False for value in right.values()), "unreadable": False}


def share_right(scores: dict[str, bool | None]) -> float | None:
    """The share of a caption's claims that `score` found right, in [0, 1]; None where it claims nothing."""
    claims = [right for name, right in scores.items() if name in ATTRIBUTES and right is not None]
    return float(np.mean(claims)) if claims else None


def claims_right(pixels: np.ndarray, text: str, world: str, frame_rate: float | None = None) -> float:
    """The share of a caption's claims that are right, in [0, 1], plus 1 if nothing is wrong, see `score`."""
    scores = score(pixels, text, world, frame_rate)
    return (share_right(scores) or 0.0) + bool(scores["all"])


def world_of(source: str) -> str | None:
    """Returns the world that a data source shows ("scenes/one?examples=100" -> "one"), None if it shows none."""
    name = source.partition("?")[0].removeprefix("scenes").lstrip("/:")
    name = worlds.UNIFORM.get(name, name)
    return name if source.startswith("scenes") and name in worlds.WORLDS else None


def unreadable(world: str, frames: int, frame_rate: float | None) -> str:
    """Returns why videos of a world cannot be read, whatever they show; "" where they can."""
    rules = worlds.world_named(world)
    try:
        if frames > 1 and rules.moves:
            worlds.check_video(frames, frames if frame_rate is None else frame_rate)
    except errors.UserError as error:
        return str(error)
    return ""


def understands(text: str) -> bool:
    """Whether a caption is of the grammar, so that the oracle can compare an image with it."""
    try:
        parse(text)
    except errors.UserError:
        return False
    return True


def table(
    images: Sequence[np.ndarray] | np.ndarray, texts: Sequence[str], world: str, frame_rate: float | None = None
) -> dict[str, np.ndarray]:
    """Returns, for images (N, T, H, W, 3) and N captions, the `score`, 0 or 1, of each attribute and of the whole.

    An attribute has a value for each caption that names it; one that no caption names is left out.

    Args:
      images: uint8 (N, T, H, W, 3).
      texts: N captions of the grammar.
      world: as for `observe`.
      frame_rate: as for `observe`, of all videos.

    Raises:
      UserError: as `score`, or another number of captions than images.
    """
    if len(images) != len(texts) or not texts:
        raise errors.UserError(f"{len(images)} images but {len(texts)} captions: give as many, at least 1")
    rows = [score(image, text, world, frame_rate) for image, text in zip(images, texts, strict=True)]
    columns = {name: [row[name] for row in rows if row[name] is not None] for name in (*ATTRIBUTES, *WHOLE)}
    return {name: np.array(column, float) for name, column in columns.items() if column}
