"""A few images of a subject or a style, with captions in which "[V]" stands for its word."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import folder
from zoo.data.text import ONLY, RARE, Tokenizer
from zoo.errors import UserError, unknown_name_error
from zoo.files import local, read_text

WORD = f"[{ONLY}]"
CLASS_FILE = "class.txt"
LEARNED = ("subject", "style")
FEWEST_TO_HOLD_OUT = 4  # images; of fewer, all are needed for training
COMMON = 1e-3  # share of captions with a word above which it means something already


class Subject:
    """A source of the images of a subject.

    Args:
      source: images with captions.
      numbers: of the images.
      class_name: noun of the captions before which "[V]" is put where they lack it.
      name: of the word, which takes the place of "[V]".
    """

    def __init__(self, source: Any, numbers: Sequence[int], class_name: str, name: str):
        self._source, self._numbers = source, numbers
        texts = [with_word(source.text(i), class_name) for i in numbers]
        self._texts = [text.replace(WORD, f"[{name}]") for text in texts]

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._source[self._numbers[i]] | {"text": self._texts[i]}

    def text(self, i: int) -> str:
        """Returns the caption of an image."""
        return self._texts[i]


class AsFrames(Subject):
    """Images for a run on videos: a frame has the rate 0.

    Args:
      images: source of them.
    """

    def __init__(self, images: Subject):
        self.__dict__.update(vars(images))

    def __getitem__(self, i: int) -> dict[str, Any]:
        return super().__getitem__(i) | {"frame_rate": 0.0}


def open_source(path: str, split: str, size: int, class_name: str, caption: str, holdout: int) -> Subject:
    """Opens the images of a subject.

    Args:
      path: folder of images, or a zip of one, see `folder.open_source`.
      split: "train", or "test" for the images that are held out; all, where none are.
      size: side in pixels.
      class_name: noun of what the images show.
      caption: of images without a caption of their own.
      holdout: number of images, the last by name, that are held out; none of fewer than four.

    Raises:
      UserError: there are no images, a caption has neither "[V]" nor the noun, or none would be left to train on.
    """
    if split not in ("train", "test"):
        raise unknown_name_error("split", split, ("train", "test"))
    source = folder.open_source(path, "train", size, 1, template=caption)
    kept = held_out(len(source), holdout)
    if kept >= len(source):
        raise UserError(f"subject_holdout {holdout} of the {len(source)} images in {path} leaves none: lower it")
    numbers = list(range(len(source)))
    chosen = numbers[: len(numbers) - kept] if split == "train" or not kept else numbers[-kept:]
    return Subject(source, chosen, class_name, name_of(path))


def held_out(count: int, holdout: int) -> int:
    """Returns how many of so many images are held out."""
    return holdout if count >= FEWEST_TO_HOLD_OUT else 0


def name_of(path: str) -> str:
    """Returns the name of a subject: that of its folder."""
    return local(path).absolute().name.removesuffix(".zip")


def class_of(path: str) -> str:
    """Returns the noun in the folder's class.txt. Raises UserError where there is no such file."""
    file = Path(local(path)) / CLASS_FILE
    if not file.is_file():
        raise UserError(f"class_name is missing, and {path} holds no {CLASS_FILE}: give the noun, as teapot")
    return read_text(file).strip()


# ---- captions


def with_word(text: str, class_name: str) -> str:
    """Returns a caption with "[V]": as it is where it has one, else with one before its noun.

    Args:
      text: caption.
      class_name: the noun.

    Raises:
      UserError: it has neither.
    """
    if WORD in text:
        return text
    place, words = place_of(class_name, text), text.split()
    if place is None:
        raise UserError(f"caption {text!r} has neither {WORD} nor the noun {class_name!r}: write one of them")
    return " ".join([*words[:place], WORD, *words[place:]])


def place_of(noun: str, text: str) -> int | None:
    """Returns the number of the word in a text at which a noun, of one or more words, begins; None without it."""
    bare = lambda text: [word.strip(".,:;").lower() for word in text.split()]
    words, wanted = bare(text), bare(noun)
    places = range(len(words) - len(wanted) + 1)
    return next((place for place in places if words[place : place + len(wanted)] == wanted), None)


def template_of(captions: Sequence[str]) -> str:
    """Returns the words that all captions share at both ends, with "{}" between them; else "a {}".

    "a photo of a cat" and "a photo of a dog" give "a photo of a {}"; captions of single words give "{}".
    """
    rows = [text.split() for text in dict.fromkeys(captions)]
    shortest = min(map(len, rows))
    first = _alike(rows, shortest - 1)
    last = _alike([row[::-1] for row in rows], shortest - 1 - len(first))[::-1]
    bare = not first and not last and max(map(len, rows)) > 1
    return "a {}" if bare else " ".join([*first, "{}", *last])


def _alike(rows: list[list[str]], most: int) -> list[str]:
    """The first words that all rows share, at most so many."""
    columns = list(zip(*rows, strict=False))[: max(most, 0)]
    count = next((i for i, column in enumerate(columns) if len(set(column)) > 1), len(columns))
    return rows[0][:count]


def instance_caption(template: str, class_name: str, learn: str) -> str:
    """Returns the caption of an image that has none of its own, with "[V]"."""
    if learn == "style":
        return f"{template.format(class_name)} in {WORD} style"
    return template.format(f"{WORD} {class_name}")


# ---- words


def choose_word(token: str, tokenizer: Tokenizer, captions: Sequence[str]) -> list[int]:
    """Returns the ids of the word that is to stand for a subject.

    Args:
      token: "reserved" for the next free slot of those that mean nothing, "rarest" for the word that is rarest in the
        captions, or a word.
      tokenizer: tokenizer of the run that learns it.
      captions: what this run was trained on.

    Raises:
      UserError: no slot is left, or no word among the tokens.
    """
    if token == "reserved":
        taken = {i for ids in tokenizer.names.values() for i in ids}
        free = [ids for ids in (tokenizer.ids(tokenizer.rare(slot)) for slot in range(RARE)) if ids[0] not in taken]
        if not free:
            raise UserError(f"token: all {RARE} reserved slots are taken: give a word")
        return free[0]
    if token == "rarest":
        return [_rarest(tokenizer, captions)]
    if not token.strip():
        raise UserError("token is empty: give reserved, rarest or a word")
    return tokenizer.ids(f" {token.strip()}")


def _rarest(tokenizer: Tokenizer, captions: Sequence[str]) -> int:
    counts = Counter(tokenizer.encode(captions).ravel().tolist())
    texts = tokenizer.decode(np.arange(tokenizer.vocab_size)[:, None])
    words = [i for i, text in enumerate(texts) if len(text) > 2 and text[0] == " " and text[1:].isalpha()]
    if not words:
        raise UserError("token: no token of this run is a word of its own: give reserved or a word")
    return min(words, key=lambda i: (counts[i], i))


def share_with(ids: Sequence[int], tokenizer: Tokenizer, captions: Sequence[str]) -> float:
    """Returns the share of captions that contain these ids in a row."""
    wanted = np.array(ids)
    windows = np.lib.stride_tricks.sliding_window_view(tokenizer.encode(captions), len(ids), axis=1)
    return float((windows == wanted).all(axis=-1).any(axis=1).mean())
