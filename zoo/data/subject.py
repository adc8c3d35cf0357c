"""A few images of a subject or a style, with captions in which "[V]" stands for its word."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zoo.cache import content_hash
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
      texts: caption of each.
      of_videos: whether a run on videos reads them: a frame has the rate 0.
    """

    def __init__(self, source: Any, numbers: Sequence[int], texts: Sequence[str], of_videos: bool = False):
        self._source, self._numbers, self._texts = source, numbers, texts
        self._rate = {"frame_rate": 0.0} if of_videos else {}

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._source[self._numbers[i]] | {"text": self._texts[i]} | self._rate

    def text(self, i: int) -> str:
        """Returns the caption of an image."""
        return self._texts[i]

    @property
    def about(self) -> dict[str, str]:
        """Hash of all, for a cache."""
        return {"items": content_hash(self)}


class About(NamedTuple):
    """A description of the images of a subject.

    Attributes:
      class_name: noun of it.
      learn: "subject" or "style".
      template: "a photo of a {}" makes a caption of the noun, for images that have none of their own.
    """

    class_name: str
    learn: str
    template: str


def open_source(path: str, split: str, size: int, about: About, holdout: int, of_videos: bool = False) -> Subject:
    """Opens the images of a subject.

    Args:
      path: folder of images, or a zip of one, see `folder.open_source`.
      split: "train", or "test" for the images that are held out; all, where none are.
      size: side in pixels.
      about: what they show.
      holdout: number of images, the last by name, that are held out; none of fewer than four.
      of_videos: see `Subject`.

    Raises:
      UserError: there are no images, a caption has neither "[V]" nor the noun, or none would be left to train on.
    """
    if split not in ("train", "test"):
        raise unknown_name_error("split", split, ("train", "test"))
    source = folder.open_source(path, "train", size, 1, template=instance_caption(about))
    each = [source[i]["inputs"].tobytes() for i in range(len(source))]  # an image may have several captions
    images = list(dict.fromkeys(each))
    kept = held_out(len(images), holdout)
    if kept >= len(images):
        raise UserError(f"subject_holdout {holdout} of the {len(images)} images in {path} leaves none: lower it")
    chosen = set(images[: len(images) - kept] if split == "train" or not kept else images[-kept:])
    numbers = [i for i, image in enumerate(each) if image in chosen]
    name = name_of(path)
    return Subject(source, numbers, [with_word(source.text(i), about, name) for i in numbers], of_videos)


def held_out(count: int, holdout: int) -> int:
    """Returns how many of so many images are held out."""
    return holdout if count >= FEWEST_TO_HOLD_OUT else 0


def name_of(path: str) -> str:
    """Returns the name of a subject, that of its folder. Raises UserError where it cannot stand in brackets."""
    name = local(path).absolute().name.removesuffix(".zip")
    if not name or set("[]") & set(name):
        raise UserError(f"the folder's name {name!r} cannot stand in [brackets] in a prompt: give it another")
    return name


def class_of(path: str) -> str:
    """Returns the noun in the folder's class.txt. Raises UserError where there is no such file, or nothing in it."""
    file = Path(local(path)) / CLASS_FILE
    noun = read_text(file).strip() if file.is_file() else ""
    if not noun:
        raise UserError(f"class_name is missing, and {path} holds no {CLASS_FILE} with one: give the noun, as teapot")
    return noun


# ---- captions


def with_word(text: str, about: About, name: str) -> str:
    """Returns a caption with "[NAME]".

    It takes the place of "[V]"; a caption without has it before its noun, or for a style at its end.

    Args:
      text: caption.
      about: what the image shows.
      name: of the word.

    Raises:
      UserError: it has neither "[V]" nor the noun.
    """
    place, words = place_of(about.class_name, text), text.split()
    if WORD not in text and about.learn == "style":
        text = f"{text} in {WORD} style"
    elif WORD not in text:
        if place is None:
            raise UserError(f"caption {text!r} has neither {WORD} nor the noun {about.class_name!r}: write one of them")
        text = " ".join([*words[:place], WORD, *words[place:]])
    return text.replace(WORD, f"[{name}]")


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


def instance_caption(about: About) -> str:
    """Returns the caption of an image that has none of its own, with "[V]"."""
    return about.template.replace("{}", phrase(about, ONLY))


def phrase(about: About, name: str) -> str:
    """Returns what stands for a subject in a prompt: "[NAME] teapot", or for a style "teapot in [NAME] style"."""
    return f"{about.class_name} in [{name}] style" if about.learn == "style" else f"[{name}] {about.class_name}"


# ---- words


def choose_word(token: str, tokenizer: Tokenizer, captions: Sequence[str]) -> list[int]:
    """Returns the ids of the word that is to stand for a subject.

    Args:
      token: "reserved" for the next free slot of those that mean nothing, "rarest" for the word that is rarest in the
        captions, or a word.
      tokenizer: tokenizer of the run that learns it.
      captions: what this run was trained on.

    Raises:
      UserError: no slot is left, no word is among the tokens, or the word is a learned one.
    """
    if token == "reserved":
        return free_slots(tokenizer, 1)
    if token == "rarest":
        return [_rarest(tokenizer, captions)]
    if not token.strip():
        raise UserError("token is empty: give reserved, rarest or a word")
    ids = tokenizer.ids(f" {token.strip()}")
    if tokenizer.learned & set(ids):
        raise UserError(f"token {token!r}: a part of it is a learned word already: give another, or reserved")
    return ids


def free_slots(tokenizer: Tokenizer, count: int) -> list[int]:
    """Returns ids that mean nothing yet. Raises UserError where there are not so many."""
    free = [tokenizer.ids(tokenizer.rare(slot))[0] for slot in range(RARE)]
    free = [i for i in free if i not in tokenizer.learned]
    if len(free) < count:
        raise UserError(
            f"token: of the {RARE} reserved slots {len(free)} are free, and {count} are needed: give a word"
        )
    return free[:count]


def _rarest(tokenizer: Tokenizer, captions: Sequence[str]) -> int:
    counts = Counter(tokenizer.encode(captions).ravel().tolist())
    texts = tokenizer.decode(np.arange(tokenizer.vocab_size)[:, None])
    is_word = lambda text: len(text) > 2 and text[0] == " " and text[1:].isalpha()
    words = [i for i, text in enumerate(texts) if is_word(text) and i not in tokenizer.learned]
    if not words:
        raise UserError("token: no token of this run is a word of its own: give reserved or a word")
    return min(words, key=lambda i: (counts[i], i))


def share_with(ids: Sequence[int], tokenizer: Tokenizer, captions: Sequence[str]) -> float:
    """Returns the share of captions that contain these ids in a row."""
    wanted = np.array(ids)
    windows = np.lib.stride_tricks.sliding_window_view(tokenizer.encode(captions), len(ids), axis=1)
    return float((windows == wanted).all(axis=-1).any(axis=1).mean())
