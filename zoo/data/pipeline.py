"""The one way from a source to batches: a stream that any step of a run can be entered at."""

import bisect
import dataclasses
import functools
import inspect
import os
import signal
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl

import grain
import numpy as np

from zoo import conditions, config
from zoo.data import folder, tfds
from zoo.data.text import Tokenizer
from zoo.errors import UserError, unknown_name_error
from zoo.scenes import dataset
from zoo.scenes.negatives import swap_word

# Scheme -> function that opens a source: (name, split, size, frames, **options).
SOURCES = {"folder": folder.open_source, "scenes": dataset.open_source, "tfds": tfds.open_source}
_GIVEN = ("name", "split", "size", "frames")
_FOREVER = 2**62
_CACHED_TEXTS = 2**18
MOST_THREADS = 8  # unless more are named
ROUNDS = 6  # of the shuffle


class Source(Protocol):
    """Random access to images or videos with captions.

    May have `text(i) -> str`, which decodes no image; `learned_text(i) -> str`, what a tokenizer learns in its place,
    with words that a run started from this one needs; and of longer videos `part(i, place)`: the item that begins at a
    place in [0, 1] of its video.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> dict[str, Any]:
        """Returns at least `{"inputs": uint8 (T, H, W, 3), "text": str}`; called from several threads."""
        ...


class Joined:
    """Several sources, one after the other."""

    def __init__(self, parts: list[Source]):
        self._parts, self._ends = parts, np.cumsum([len(part) for part in parts]).tolist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: int) -> dict[str, Any]:
        part, place = self._place(i)
        return part[place]

    def text(self, i: int) -> str:
        """Returns the caption of an item."""
        return text_of(*self._place(i))

    def learned_text(self, i: int) -> str:
        """Returns what a tokenizer learns of an item."""
        return learned_text_of(*self._place(i))

    def part(self, i: int, place: float) -> dict[str, Any]:
        """Returns an item that begins at a place in [0, 1] of its video."""
        return part_of(*self._place(i), place)

    def _place(self, i: int) -> tuple[Source, int]:
        part = bisect.bisect_right(self._ends, i)
        return self._parts[part], i - ([0, *self._ends])[part]


def open_source(spec: str, split: str, size: int, frames: int) -> Source:
    """Opens the data that a config names.

    Args:
      spec: `SCHEME:NAME` or `SCHEME/NAME`, where SCHEME is a key of `SOURCES`; then optionally
        `?OPTION=VALUE&OPTION=VALUE`, the other arguments of that function, escaped as in a URL. For example
        "scenes/one?examples=20000", "folder:~/images?holdout=0.1", "tfds:cifar10". Several, with " + " between them,
        are one source.
      split: which part, by the source's own name for it.
      size: side of the images in pixels.
      frames: frames of a video; 1 for images.

    Raises:
      UserError: if the scheme or an option is unknown, a value cannot be read, or the source has a complaint.
    """
    if " + " in spec:
        return Joined([open_source(part.strip(), split, size, frames) for part in spec.split(" + ")])
    address, _, query = spec.partition("?")
    scheme = address.replace("/", ":").split(":")[0]
    if scheme not in SOURCES:
        raise unknown_name_error("data source", scheme, SOURCES)
    opener = SOURCES[scheme]
    return opener(address[len(scheme) + 1 :], split, size, frames, **_options(opener, query))


def smaller_by(spec: str) -> str:
    """Returns the filter that makes small images of a source, see `open_source`, from its large ones: box or lanczos.

    Scenes are drawn by areas; images of all other sources are resized by `images.fit`.
    """
    return "box" if all(part.strip().startswith("scenes") for part in spec.split(" + ")) else "lanczos"


def with_option(spec: str, name: str, value: str) -> str:
    """Returns the data that a config names, see `open_source`, with one option set in all its parts."""
    if " + " in spec:
        return " + ".join(with_option(part.strip(), name, value) for part in spec.split(" + "))
    address, _, query = spec.partition("?")
    kept = [option for option in query.split("&") if option and option.partition("=")[0] != name]
    return f"{address}?{'&'.join([*kept, f'{name}={value}'])}"


def stream(
    source: Source,
    tokenizer: Tokenizer,
    batch_size: int,
    *,
    seed: int,
    names: Sequence[str] = ("tokens",),
    start: int = 0,
    flip: bool = False,
    negatives: bool = False,
    shard: tuple[int, int] = (0, 1),
    threads: int | None = None,
    workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """Batches without end, shuffled anew each epoch. Item i of the stream is a function of (seed, i) alone.

    Args:
      source: what to read; may have fewer items than a batch.
      tokenizer: makes the tokens of the captions.
      batch_size: items of a batch over all processes together.
      seed: of the order, the mirroring and the swapped words.
      names: names of the conditions in the batches, see `zoo.conditions`.
      start: the batch to begin at: what an uninterrupted stream would have had there.
      flip: mirror a random half of the items left to right.
      negatives: also give for each caption one with a word swapped, see `negatives.swap_word`; the empty caption
        where there is no word to swap.
      shard: (index, count) of this process. It gets its own contiguous part of every batch, so that the parts
        of all processes, in order, are the batch of a single one.
      threads: how many prepare batches ahead of need, each one at a time; by default one a core, at most 8.
        They end when the iterator is closed or no longer used.
      workers: processes that prepare batches, each with so many threads; 0 for none but this one. The batches are the
        same.

    Returns:
      An iterator of `{"inputs": uint8 (B, T, H, W, 3), "cond": {"tokens": int32 (B, L)}}`, B = batch_size / count,
      and `"negatives"` like `cond` with `negatives`.

    Raises:
      UserError: if the source is empty or `count` does not divide `batch_size`.
    """
    index, count = shard
    if batch_size < 1 or batch_size % count:
        raise UserError(f"batch_size {batch_size} is not a multiple of the {count} processes: change one")
    if not len(source):
        raise UserError("the data source is empty: give one that holds an image")
    threads = threads or min(os.cpu_count() or 1, MOST_THREADS)
    part = batch_size // count
    read = _Batches(source, tokenizer, tuple(names), batch_size, index * part, part, seed, flip, negatives)
    # An element of Grain's is a whole batch: its own shuffle, repeat and batch cost 10 us an item while they
    # hold the interpreter's lock, several times the work itself when images are small and in memory.
    batches = grain.MapDataset.range(start, _FOREVER).map(read)
    return _prefetched(batches, grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1), workers)


@dataclasses.dataclass(eq=False)
class _Batches:
    """Number of a batch -> the part of it that is one process's; can be sent to other processes.

    Attributes:
      source, tokenizer, names, batch_size, seed, flip, negatives: see `stream`.
      offset: place in the batch at which the part begins.
      part: items of the part.
    """

    source: Source
    tokenizer: Tokenizer
    names: tuple[str, ...]
    batch_size: int
    offset: int
    part: int
    seed: int
    flip: bool
    negatives: bool

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_tokens_of"}

    @functools.cached_property
    def _tokens_of(self) -> Callable[[str], np.ndarray]:
        return functools.lru_cache(_CACHED_TEXTS)(lambda text: self.tokenizer.encode([text])[0])  # captions come again

    def _encode(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        tokenize = lambda texts: np.stack([self._tokens_of(text) for text in texts])
        return conditions.encode(self.names, items, tokenize)

    def __call__(self, number: int) -> dict[str, Any]:
        first = number * self.batch_size + self.offset
        numbers = np.arange(first, first + self.part)
        items = _shuffled(numbers, len(self.source), self.seed).tolist()
        places = _fractions(numbers, self.seed).tolist()
        items = [part_of(self.source, i, place) for i, place in zip(items, places, strict=True)]
        pixels = np.stack([item["inputs"] for item in items])
        if self.flip:
            mirrored = _coins(numbers, self.seed)
            pixels[mirrored] = pixels[mirrored, :, :, ::-1]
        made = {"inputs": pixels, "cond": self._encode(items)}
        if self.negatives:
            rngs = (np.random.default_rng((self.seed, i, 1)) for i in range(first, first + self.part))
            pairs = zip(items, rngs, strict=True)
            made["negatives"] = self._encode([item | {"text": swap_word(item["text"], rng)} for item, rng in pairs])
        return made


def captions(source: Source, limit: int = 100_000) -> list[str]:
    """Returns at most `limit` captions, spread evenly over the source."""
    return [text_of(source, i) for i in spread(source, limit)]


def learned_captions(source: Source, limit: int) -> list[str]:
    """Returns at most `limit` captions, spread evenly over the source: what a tokenizer is trained on."""
    return [learned_text_of(source, i) for i in spread(source, limit)]


def spread(source: Source, limit: int) -> list[int]:
    """Returns at most `limit` indices, spread evenly over the source."""
    return np.linspace(0, len(source) - 1, min(limit, len(source))).round().astype(int).tolist()


def text_of(source: Source, i: int) -> str:
    """Returns the caption of item `i`, without decoding an image where the source can."""
    text = getattr(source, "text", None)
    return source[i]["text"] if text is None else text(i)


def learned_text_of(source: Source, i: int) -> str:
    """Returns what a tokenizer learns of item `i`: its caption, if the source has nothing else."""
    learned = getattr(source, "learned_text", None)
    return text_of(source, i) if learned is None else learned(i)


def part_of(source: Source, i: int, place: float) -> dict[str, Any]:
    """Returns item `i`, which begins at a place in [0, 1] of its video where the source can."""
    part = getattr(source, "part", None)
    return source[i] if part is None else part(i, place)


def _prefetched(batches: grain.MapDataset, options: grain.ReadOptions, workers: int) -> Iterator[dict[str, Any]]:
    prepared = batches.to_iter_dataset(options)
    if workers:
        config.parse_no_flags()  # Grain reads flags of its own
        prepared = prepared.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _ignore_interrupts)
    iterator = iter(prepared)
    try:
        yield from iterator
    finally:
        iterator.close()


def _ignore_interrupts(*_: int) -> None:
    """In a worker: a terminal sends Ctrl-C to workers too, which must go on until training has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _shuffled(places: np.ndarray, length: int, seed: int) -> np.ndarray:
    """Returns the items that stand at these places of the endless shuffled stream, int64 (N,), without a table.

    A Feistel network permutes the numbers below a power of 4, and is repeated until its result is below the length
    (cycle walking, Black and Rogaway 2002).
    """
    epochs, x = np.divmod(places.astype(np.uint64), np.uint64(length))
    half = max(1, ((length - 1).bit_length() + 1) // 2)
    bits, mask = np.uint64(half), np.uint64(2**half - 1)
    keys = np.random.default_rng(seed).integers(2**64, size=ROUNDS, dtype=np.uint64)
    outside = np.ones(len(x), bool)
    while outside.any():
        left, right = x[outside] >> bits, x[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right + (epochs[outside] << np.uint64(32)), key) & mask)
        x[outside] = left << bits | right
        outside = x >= length
    return x.astype(np.int64)


def _coins(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Returns a fair coin for each number, bool (N,)."""
    return _mixed(numbers.astype(np.uint64), np.random.default_rng(seed).integers(2**64, dtype=np.uint64)) >> 63 == 1


def _fractions(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Returns a random fraction in [0, 1) for each number, float64 (N,)."""
    key = np.random.default_rng((seed, 1)).integers(2**64, dtype=np.uint64)
    return (_mixed(numbers.astype(np.uint64), key) >> np.uint64(11)) / 2.0**53


def _mixed(numbers: np.ndarray, key: np.uint64) -> np.ndarray:
    """Returns random bits of each number, uint64 (N,), by SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) ^ key
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _options(opener: Callable, query: str) -> dict[str, Any]:
    hints = typing.get_type_hints(opener)
    known = [name for name in inspect.signature(opener).parameters if name not in _GIVEN]
    options = {}
    # TFDS joins splits by +, which elsewhere stands for a space.
    parts = (part.replace("+", "%2B") if part.startswith(("train=", "test=")) else part for part in query.split("&"))
    for key, value in parse_qsl("&".join(parts), keep_blank_values=True):
        if key not in known:
            raise unknown_name_error("data option", key, known)
        options[key] = _convert(key, value, hints.get(key, str))
    return options


def _convert(key: str, value: str, hint: Any) -> Any:
    """Reads `value` as the first type of a hint such as `int` or `int | None`."""
    kind = (typing.get_args(hint) or (hint,))[0]
    try:
        return kind(value)
    except ValueError:
        raise UserError(f"data option {key}={value}: {value!r} is not {kind.__name__}") from None
