"""Any image to a square of uint8 RGB: what the sources share."""

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import tqdm
from PIL import Image, ImageOps

# The sharpest of pillow's filters that do not alias, whether an image shrinks or grows. BOX would leave
# photographs soft and enlarge them into blocks.
_FILTER = Image.Resampling.LANCZOS
MEMORY = 2**30  # bytes: a set that takes less when decoded is decoded once and kept
_SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L")


class Notices:
    """Notes on stderr, each kind printed only the first few times. Safe to share between threads."""

    def __init__(self):
        self._counts: dict[str, int] = {}
        self._lock = threading.Lock()

    def add(self, kind: str, message: str, times: int = 1) -> None:
        """Prints `message` unless `times` messages of this `kind` were printed before."""
        with self._lock:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            if self._counts[kind] <= times:
                print(f"note: {message}", file=sys.stderr)

    def __reduce__(self):  # a lock cannot be pickled
        return Notices, ()


def size_of(image: Image.Image | np.ndarray) -> tuple[int, int]:
    """Returns width and height of an image of Pillow, or of (H, W, ...)."""
    return image.size if isinstance(image, Image.Image) else (image.shape[1], image.shape[0])


def fit(image: Image.Image | np.ndarray, size: int) -> np.ndarray:
    """Returns uint8 (size, size, 3): the centre square of an image, resized. The right size is left as is.

    Args:
      image: a Pillow image in any mode (palette, grey, 16 bit; what is transparent becomes white;
        turned upright by its EXIF data), or uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
      size: the side of the result in pixels.
    """
    if isinstance(image, np.ndarray) and image.shape == (size, size, 3):
        return image
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image.squeeze(-1) if image.shape[2:] == (1,) else image)
    if image.format == "JPEG":
        # A large JPEG that is not read yet is read several times faster at a fraction of its size. Twice
        # what is needed leaves the filter enough to work with.
        image.draft(None, (2 * size, 2 * size))
    image = _rgb(ImageOps.exif_transpose(image))
    if image.size != (size, size):
        image = image.resize((size, size), _FILTER, box=_centre_square(*image.size))
    return np.array(image)


def resized(where: object, found: tuple[int, int], size: int) -> str:
    """Returns the note that the images of a source are cropped and resized."""
    return (
        f"images of {where} are not all {size} x {size} (one is {found[0]} x {found[1]}):"
        " they are cropped at the centre and resized"
    )


def _centre_square(width: int, height: int) -> tuple[float, float, float, float]:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        # pillow's own conversion clips at 255 and leaves a white image.
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def read_all(
    read: Callable[[int], np.ndarray | None], count: int, shape: tuple[int, ...]
) -> tuple[np.ndarray, list[int]]:
    """Reads items 0 .. count - 1 in a pool of threads, with a bar on a terminal when it takes long.

    Args:
      read: gives the item of an index, uint8 of `shape`, or None if it cannot be used; called from threads.
      count: number of items.
      shape: shape of an item.

    Returns:
      The items that can be used, uint8 (N, *shape), and their indices, in order.
    """
    items = np.empty((count, *shape), np.uint8)

    def put(i: int) -> bool:
        item = read(i)
        if item is not None:
            items[i] = item
        return item is not None

    with ThreadPoolExecutor() as pool:
        bar = tqdm.tqdm(pool.map(put, range(count)), "decoding", count, delay=5, leave=False, disable=None)
        kept = [i for i, usable in enumerate(bar) if usable]
    return (items if len(kept) == count else items[kept]), kept
