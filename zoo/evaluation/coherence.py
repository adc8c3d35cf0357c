"""Coherence of videos: how much of them stays the same from frame to frame, and how much moves. A value a video."""

import numpy as np

from zoo.errors import UserError
from zoo.scenes import oracle
from zoo.scenes.world import Scene


def change(videos: np.ndarray) -> np.ndarray:
    """Mean difference of a pixel from frame to frame, in levels of 255. A frozen video has none.

    Args:
      videos: uint8 (N, T, H, W, C), T at least 2.

    Returns:
      float64 (N,).

    Raises:
      UserError: fewer frames.
    """
    return np.abs(np.diff(_float(videos, 2), axis=1)).mean(axis=(1, 2, 3, 4))


def flicker(videos: np.ndarray) -> np.ndarray:
    """Mean of |x[t+1] - 2 x[t] + x[t-1]| of a pixel: change that does not go on. A frozen video has none.

    Set it beside `change`: what moves changes twice where it passes, and what flickers changes in every frame.

    Args:
      videos: uint8 (N, T, H, W, C), T at least 3.

    Returns:
      float64 (N,), in levels of 255.

    Raises:
      UserError: fewer frames.
    """
    return np.abs(np.diff(_float(videos, 3), n=2, axis=1)).mean(axis=(1, 2, 3, 4))


def identity(videos: np.ndarray, world: str) -> np.ndarray:
    """Share of the frames that show the same as the frame before: background, colours, shapes and sizes.

    Each frame is read alone, by the oracle. One that cannot be read wholly is the same as none; empty ones, as while a
    thing blinks, are left out.

    Args:
      videos: uint8 (N, T, H, W, 3), T at least 2.
      world: world of scenes.

    Returns:
      float64 (N,); 0 for a video of fewer than two frames that are not empty.
    """
    return identity_and_readable(videos, world)[0]


def readable_frames(videos: np.ndarray, world: str) -> np.ndarray:
    """Share of the frames in which the oracle reads all there is, each alone; empty ones are left out.

    Args:
      videos: uint8 (N, T, H, W, 3).
      world: world of scenes.

    Returns:
      float64 (N,); 0 for a video of empty frames.
    """
    return identity_and_readable(videos, world)[1]


def identity_and_readable(videos: np.ndarray, world: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns `identity` and `readable_frames`, (N,) each, of one reading of the frames.

    Args:
      videos: uint8 (N, T, H, W, 3), T at least 2.
      world: world of scenes.
    """
    read = [_appearances(video, world) for video in videos]
    readable = [np.mean([one is not None for one in appearances] or [0.0]) for appearances in read]
    return np.array([_share_of_equal(appearances) for appearances in read]), np.array(readable)


def displacement(videos: np.ndarray, world: str) -> np.ndarray:
    """Mean distance that the largest thing goes from a frame to the next one, in cells of the world's grid.

    It is half as long at twice the frame rate.

    Args:
      videos: uint8 (N, T, H, W, 3), T at least 2.
      world: world of scenes.

    Returns:
      float64 (N,); NaN for a video that never shows anything in two frames in a row.
    """
    steps = [np.linalg.norm(np.diff(oracle.centres(video, world), axis=0), axis=1) for video in videos]
    return np.array([np.nan if np.isnan(step).all() else np.nanmean(step) for step in steps])


def _float(videos: np.ndarray, least: int) -> np.ndarray:
    if videos.shape[1] < least:
        raise UserError(f"needs videos of at least {least} frames, got {videos.shape[1]}")
    return videos.astype(np.float64)


def _appearances(video: np.ndarray, world: str) -> list[object]:
    """Returns what each frame shows that is not empty, but for places; None where it cannot be read."""
    found = [oracle.observe(frame[None], world) for frame in video]
    shown = [one for one in found if one.scene is not None or one.clutter]
    return [None if one.clutter or one.scene is None else _appearance(one.scene) for one in shown]


def _appearance(scene: Scene) -> tuple:
    return scene.background, tuple(sorted((thing.colour, thing.shape, thing.size) for thing in scene.things))


def _share_of_equal(appearances: list[object]) -> float:
    pairs = [a == b and a is not None for a, b in zip(appearances, appearances[1:], strict=False)]
    return float(np.mean(pairs)) if pairs else 0.0
