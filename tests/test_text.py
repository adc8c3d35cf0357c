import subprocess
import sys
import time

import numpy as np
import pytest

from zoo.data.text import END, PAD, RARE, SMALLEST, Tokenizer
from zoo.errors import UserError

CAPTIONS = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "star")] * 4


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS, 400, 64)


@pytest.mark.parametrize(
    "text",
    [
        "a red star",
        "",
        "  two  spaces\n\tand a tab ",
        "☃ café 😀 日本語 \u200d \x00",
        "a <rare_0> dog<rare_63><rare_1> .",
        "<rare_64> <pad> <end> <unk> [PAD]",
        "naïve ≠ naïve",
    ],
)
def test_decode_is_the_inverse_of_encode(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode([text])) == [text]


def test_random_unicode_survives(tokenizer):
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(1, 0xD800, 15))) for _ in range(200)]
    assert tokenizer.decode(tokenizer.encode(texts)) == texts


def test_a_row_is_ids_then_end_then_padding(tokenizer):
    rows = tokenizer.encode(["", "a red star"])
    assert rows.shape == (2, 64) and rows.dtype == np.int32
    assert rows[0].tolist() == [END] + [PAD] * 63
    count = rows[1].tolist().index(END)
    assert 0 < count < len("a red star")
    assert (rows[1, :count] > END).all() and (rows[1, count + 1 :] == PAD).all()
    assert rows.max() < tokenizer.vocab_size
    assert tokenizer.encode([]).shape == (0, 64)


def test_rare_words_are_one_token_wherever_they_stand(tokenizer):
    ids = [tokenizer.encode([f"x{tokenizer.rare(i)}y"])[0, 1] for i in range(RARE)]
    assert ids == list(range(2, 2 + RARE))
    with pytest.raises(UserError, match="rare word 64"):
        tokenizer.rare(64)


def test_too_long_is_cut_and_noted_once(capsys):
    tokenizer = Tokenizer.train(CAPTIONS, SMALLEST, 5)
    rows = tokenizer.encode(["abcdefgh", "abcd", "abc", "ijklmnop"])
    assert tokenizer.decode(rows) == ["abcd", "abcd", "abc", "ijkl"]
    assert rows[0, -1] == END
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "'abcdefgh'" in said and "8 tokens" in said and "cut to 4" in said


def test_exactly_fitting_is_not_noted(capsys):
    Tokenizer.train([], SMALLEST, 5).encode(["abcd"])
    assert capsys.readouterr().err == ""


def test_vocab_size_is_what_the_captions_yield():
    assert Tokenizer.train([], 1000, 8).vocab_size == SMALLEST
    assert Tokenizer.train(CAPTIONS, 330, 8).vocab_size == 330
    small = Tokenizer.train(CAPTIONS, 5000, 8).vocab_size
    assert SMALLEST < small < 5000


@pytest.mark.parametrize(("vocab_size", "length"), [(SMALLEST - 1, 8), (400, 1)])
def test_too_small_sizes(vocab_size, length):
    with pytest.raises(UserError, match="at least"):
        Tokenizer.train(CAPTIONS, vocab_size, length)


def test_json_round_trip(tokenizer):
    again = Tokenizer.from_json(tokenizer.to_json())
    assert again.to_json() == tokenizer.to_json()
    assert (again.length, again.vocab_size) == (tokenizer.length, tokenizer.vocab_size)
    texts = [*CAPTIONS, "☃ <rare_7>"]
    assert (again.encode(texts) == tokenizer.encode(texts)).all()


def test_training_is_the_same_in_another_process(tokenizer):
    code = (
        "from zoo.data.text import Tokenizer; import sys; "
        f"sys.stdout.write(Tokenizer.train({CAPTIONS!r}, 400, 64).to_json())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout == tokenizer.to_json()


def test_half_a_surrogate_pair_does_not_stop_a_run(tokenizer):
    assert tokenizer.decode(tokenizer.encode(["a\ud83d b"])) == ["a? b"]


def test_training_takes_seconds():
    captions = [f"an image number {i * 7919 % 100_003} of a star" for i in range(100_000)]
    start = time.monotonic()
    Tokenizer.train(captions, 2000, 32)
    assert time.monotonic() - start < 15


def test_standalone_gives_the_same_ids(tokenizer):
    texts = ["a red circle", "", "ünï 🎉 <rare_7> code", "a" * 30]
    whole = tokenizer.standalone()
    for text, row in zip(texts, tokenizer.encode(texts), strict=True):
        assert whole.encode(text).ids == row[row != PAD].tolist(), text
    assert whole.get_vocab_size() == tokenizer.vocab_size
    assert whole.token_to_id("<|endoftext|>") == END and whole.token_to_id("<|pad|>") == PAD
    assert whole.decode(tokenizer.encode(["a red circle"])[0].tolist()) == "a red circle"
