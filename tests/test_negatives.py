import numpy as np
import pytest

from zoo.scenes import world as worlds
from zoo.scenes.dataset import make_example
from zoo.scenes.grammar import parse
from zoo.scenes.negatives import GROUPS, swap_word


def swaps(text, count=200):
    return {swap_word(text, np.random.default_rng(i)) for i in range(count)}


def test_one_word_becomes_each_other_of_its_group():
    assert swaps("a bird on the left") == {"a bird on the right"}
    colours = GROUPS[0]
    assert swaps("a red bird") == {f"{'an' if c == 'orange' else 'a'} {c} bird" for c in colours if c != "red"}


def test_two_words_of_a_group_are_exchanged_half_of_the_time():
    found = [swap_word("a red bird and a blue fish", np.random.default_rng(i)) for i in range(1000)]
    assert 420 < found.count("a blue bird and a red fish") < 580


def test_the_article_does_not_betray_the_swap():
    assert "an orange" not in " ".join(swaps("an orange bird"))
    assert not any("an red" in text or "a orange" in text for text in swaps("an orange bird and a red fish"))


@pytest.mark.parametrize("text", ["", "number 7", "leftover rings", "redder"])
def test_without_such_a_word_there_is_no_swap(text):
    assert swaps(text) == {None}


@pytest.mark.parametrize("world, frames", [("one", 1), ("full", 1), ("video", 8)])
def test_swapped_captions_of_scenes_are_of_the_grammar_and_mean_something_else(world, frames):
    changed = 0
    for i in range(200):
        text = make_example(world, "train", i, 32, frames)[1]
        wrong = swap_word(text, np.random.default_rng(i))
        if wrong is not None:
            claims = parse(wrong)
            assert not worlds.HELD_OUT_PAIRS & {(thing.colour, thing.shape) for thing in claims.things}
            assert wrong != text and len(wrong.split()) == len(text.split())
            changed += 1
    assert changed > 190


def test_what_training_never_shows_is_not_a_negative():
    for colour, shape in worlds.HELD_OUT_PAIRS:
        others = [c for c in worlds.COLOURS if (c, shape) not in worlds.HELD_OUT_PAIRS]
        assert not any(f"{colour} {shape}" in (text or "") for text in swaps(f"a {others[0]} {shape}"))
    name, first, second = next(iter(worlds.HELD_OUT_RELATIONS))
    wrong = {"left of": "right of", "above": "below"}[name]
    assert not any(f"{name} a {second}" in (text or "") for text in swaps(f"a {first} {wrong} a {second}"))
