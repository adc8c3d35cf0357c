"""Captions to numbers and back: a byte-level BPE that any unicode text survives."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from zoo.conditions import END, PAD
from zoo.errors import UserError

RARE = 64  # slots, ids 2 .. 65: words that mean nothing until a run is personalised to one of them

# PAD and END are kept out of the library's vocabulary, so that no text can spell them.
_OWN = 2
_OWN_WORDS = {"<|pad|>": PAD, "<|endoftext|>": END}  # as they are spelled where a library needs them to be
ONLY = "V"  # stands for the name of the only learned word
_NAME = re.compile(r"\s*\[([^\[\]]+)\]")
_BYTES = 256
SMALLEST = _OWN + RARE + _BYTES


class Tokenizer:
    """Byte-level BPE to rows of one length; `decode` is the exact inverse of `encode` for texts that fit.

    Attributes:
      vocab_size: number of ids, hence the rows of an embedding. It is smaller than the requested one if the
        captions do not yield that many merges.
      length: ids in a row, END included.
      names: ids of learned words by their names: "a small [teapot]" in a text stands for the word `teapot`, "[V]" for
        the only one.

    Args:
      bpe: trained byte-level BPE.
      length: ids in a row, END included.
      names: see above.
    """

    def __init__(self, bpe: tokenizers.Tokenizer, length: int, names: Mapping[str, Sequence[int]] | None = None):
        self._bpe = bpe
        self._noted_too_long = False
        self.length = length
        self.vocab_size = _OWN + bpe.get_vocab_size()
        self.names = {name: [int(i) for i in ids] for name, ids in (names or {}).items()}

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, length: int) -> "Tokenizer":
        """Learns merges from `captions`; the same captions always give the same tokenizer.

        Args:
          captions: any number of texts, none is fine: then every byte is a token.
          vocab_size: the most ids there may be, at least 322 (256 bytes, 64 rare words, PAD and END).
          length: ids in a row, END included, at least 2.

        Raises:
          UserError: if `vocab_size` or `length` is too small.
        """
        if vocab_size < SMALLEST:
            raise UserError(f"vocab_size {vocab_size} is too small: give at least {SMALLEST}")
        if length < 2:
            raise UserError(f"a caption's length of {length} tokens is too small: give at least 2")
        bpe = tokenizers.Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - _OWN,
            special_tokens=[_rare(i) for i in range(RARE)],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        bpe.train_from_iterator(map(_clean, captions), trainer)
        return cls(bpe, length)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Returns int32 (B, length): each text's ids, then END, then PAD. The empty text is END and PADs.

        A text that is too long keeps its beginning and END; the first time a note is printed.
        """
        rows = np.full((len(texts), self.length), PAD, np.int32)
        for row, text, ids in zip(rows, texts, self._ids_of(texts), strict=True):
            if len(ids) >= self.length:
                self._note_too_long(text, len(ids))
                ids = ids[: self.length - 1]
            row[: len(ids)] = ids
            row[len(ids)] = END
        return rows

    def ids(self, text: str) -> list[int]:
        """Returns the ids of a text, of any number, without END."""
        return self._ids_of([text])[0]

    def is_cut(self, texts: Sequence[str]) -> np.ndarray:
        """Returns for each text whether `encode` cuts it, bool (B,)."""
        return np.array([len(ids) >= self.length for ids in self._ids_of(texts)])

    def _ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without END."""
        rows = [self._pieces(text) for text in texts]
        pieces = [_clean(piece) for row in rows for piece in row if isinstance(piece, str)]
        spelled = iter(self._bpe.encode_batch(pieces))
        ids = lambda piece: [i + _OWN for i in next(spelled).ids] if isinstance(piece, str) else piece
        return [[i for piece in row for i in ids(piece)] for row in rows]

    @property
    def learned(self) -> set[int]:
        """Ids of all learned words."""
        return {i for ids in self.names.values() for i in ids}

    def names_in(self, text: str) -> list[str]:
        """Returns the names in a text, "V" among them, that stand for learned words."""
        known = {*self.names, ONLY} if self.names else set()
        return [name for name in _NAME.findall(text) if name in known]

    def _pieces(self, text: str) -> list[str | list[int]]:
        """Splits a text into parts that are spelled, and the ids of names.

        A name takes the place of the space before it too, which elsewhere belongs to the word after it.
        """
        pieces: list[str | list[int]] = []
        end = 0
        for match in _NAME.finditer(text) if self.names else ():
            name = match[1]
            if name == ONLY and name not in self.names:
                if len(self.names) > 1:
                    known = ", ".join(f"[{name}]" for name in self.names)
                    raise UserError(f"[{ONLY}] is the only learned word, and there are several: write one of {known}")
                name = next(iter(self.names))
            if name in self.names:
                pieces += [text[end : match.start()], self.names[name]]
                end = match.end()
        return [*pieces, text[end:]]

    def decode(self, tokens: np.ndarray) -> list[str]:
        """Returns the B texts of `tokens`, int (B, length); what follows a row's first END is ignored."""
        rows = [_until_end(row) for row in np.asarray(tokens)]
        return self._bpe.decode_batch(rows, skip_special_tokens=False)

    def rare(self, i: int) -> str:
        """Returns the rare word of slot `i` in 0 .. 63, always one token, to be written into a caption.

        Args:
          i: slot.

        Raises:
          UserError: if there is no such slot.
        """
        if not 0 <= i < RARE:
            raise UserError(f"there is no rare word {i}: give a slot in 0 .. {RARE - 1}")
        return _rare(i)

    def standalone(self) -> tokenizers.Tokenizer:
        """Returns a tokenizer of the library's own kind with the same ids, END included, that neither cuts nor pads.

        There, PAD and END are words too, which a text can spell.
        """
        described = json.loads(self._bpe.to_str())
        model = described["model"]
        model["vocab"] = _OWN_WORDS | {word: i + _OWN for word, i in model["vocab"].items()}
        added = [token | {"id": token["id"] + _OWN} for token in described["added_tokens"]]
        own = [dict(added[0]) | {"id": i, "content": word} for word, i in _OWN_WORDS.items()]
        described |= {"added_tokens": [*own, *added], "truncation": None, "padding": None}
        whole = tokenizers.Tokenizer.from_str(json.dumps(described))
        end = next(word for word, i in _OWN_WORDS.items() if i == END)
        whole.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", pair=f"$A $B {end}", special_tokens=[(end, END)]
        )
        return whole

    def to_json(self) -> str:
        """Returns everything that `from_json` needs."""
        names = {"names": self.names} if self.names else {}
        return json.dumps({"length": self.length, "bpe": json.loads(self._bpe.to_str())} | names)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Returns the tokenizer that `to_json` wrote."""
        saved = json.loads(text)
        return cls(tokenizers.Tokenizer.from_str(json.dumps(saved["bpe"])), saved["length"], saved.get("names"))

    def is_like(self, other: "Tokenizer") -> bool:
        """Whether another tokenizer gives the same ids, names aside."""
        bare = [Tokenizer(tokenizer._bpe, tokenizer.length).to_json() for tokenizer in (self, other)]
        return bare[0] == bare[1]

    def with_name(self, name: str, ids: Sequence[int]) -> "Tokenizer":
        """Returns a tokenizer of the same ids with one more name, see `names`."""
        return type(self)(self._bpe, self.length, self.names | {name: ids})

    def _note_too_long(self, text: str, count: int) -> None:
        if self._noted_too_long:
            return
        self._noted_too_long = True
        print(
            f"note: caption {text[:40]!r}... is {count} tokens long and is cut to {self.length - 1}"
            " (printed once, others may be cut too)",
            file=sys.stderr,
        )


def _rare(i: int) -> str:
    return f"<rare_{i}>"


def _clean(text: str) -> str:
    # Half a surrogate pair (a broken JSON escape, a bad byte on the command line) is no character.
    return text.encode("utf-8", "replace").decode("utf-8")


def _until_end(row: np.ndarray) -> list[int]:
    ends = np.flatnonzero(row == END)
    ids = row[: ends[0]] if len(ends) else row
    return (ids[ids != PAD] - _OWN).tolist()
