import gc
import itertools
import signal
import threading
import time
import tracemalloc

import jax
import numpy as np
import pytest
from PIL import Image

from zoo.data import pipeline
from zoo.data.text import Tokenizer
from zoo.errors import UserError


class Numbers:
    """Item i is a 4 x 4 image that says i, brighter on its right."""

    def __init__(self, count, size=4):
        values = np.arange(count, dtype=np.uint8)
        self.pixels = np.broadcast_to(values[:, None, None, None, None], (count, 1, size, size, 3)).copy()
        self.pixels[..., -1, 2] = 255

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        return {"inputs": self.pixels[i], "text": f"number {i}"}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([f"number {i}" for i in range(100)], 400, 8)


def take(count, *args, **options):
    stream = pipeline.stream(*args, **dict(seed=1, threads=2) | options)
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


def values(batches):
    return [batch["inputs"][:, 0, 0, 0, 0].tolist() for batch in batches]


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(np.array_equal, a, b))


def joined(parts):
    """The batches of which each of several streams has a part."""
    return [jax.tree.map(lambda *leaves: np.concatenate(leaves), *step) for step in zip(*parts, strict=True)]


def test_a_batch(tokenizer):
    [batch] = take(1, Numbers(50), tokenizer, 8)
    assert batch.keys() == {"inputs", "cond"}
    assert batch["inputs"].shape == (8, 1, 4, 4, 3) and batch["inputs"].dtype == np.uint8
    tokens = batch["cond"]["tokens"]
    assert tokens.shape == (8, 8) and tokens.dtype == np.int32
    assert tokenizer.decode(tokens) == [f"number {i}" for i in values([batch])[0]]


def test_every_epoch_has_every_item_in_another_order(tokenizer):
    places = sum(values(take(30, Numbers(20), tokenizer, 4)), [])
    epochs = [places[i : i + 20] for i in range(0, 120, 20)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, range(20)]}) == 7


def test_the_order_of_very_many_items_takes_no_memory(tokenizer):
    class Many(Numbers):
        def __len__(self):
            return 10**9

        def __getitem__(self, i):
            asked.append(i)
            return super().__getitem__(i % 50)

    asked, many = [], Many(50)
    tracemalloc.start()
    take(3, many, tokenizer, 8, start=10**8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    assert len(set(asked)) == len(asked) and max(asked) > 10**8  # from everywhere, each once


def test_batches_are_prepared_by_so_many_threads(tokenizer):
    class Slow(Numbers):
        def __getitem__(self, i):
            names.add(threading.current_thread().name)
            time.sleep(0.002)
            return super().__getitem__(i)

    for count in (1, 3):
        names = set()
        take(12, Slow(50), tokenizer, 4, threads=count)
        assert len(names) == count


def test_seeds(tokenizer):
    one, again, other = (take(3, Numbers(50), tokenizer, 8, seed=seed) for seed in (1, 1, 2))
    assert same(one, again) and values(one) != values(other)


def test_start_enters_the_same_stream(tokenizer):
    whole = take(20, Numbers(15), tokenizer, 4, flip=True)
    for start in (0, 3, 4, 17):
        assert same(take(20 - start, Numbers(15), tokenizer, 4, flip=True, start=start), whole[start:])
    far = take(1, Numbers(15), tokenizer, 4, start=10**9)
    assert len(values(far)[0]) == 4


def test_parts_of_the_processes_make_the_batch_of_one(tokenizer):
    whole = take(6, Numbers(15), tokenizer, 12, flip=True, start=2)
    for count in (2, 3):
        options = [{"flip": True, "start": 2, "shard": (i, count)} for i in range(count)]
        parts = [take(6, Numbers(15), tokenizer, 12, **chosen) for chosen in options]
        assert same(joined(parts), whole)


def test_the_stream_of_items_does_not_depend_on_the_batch(tokenizer):
    small, large = (take(24 // size, Numbers(10), tokenizer, size, flip=True) for size in (4, 12))
    assert sum(values(small), []) == sum(values(large), [])
    one, other = (np.concatenate([batch["inputs"] for batch in batches]) for batches in (small, large))
    assert (one == other).all()


def test_flip_mirrors_half_of_the_items(tokenizer):
    source = Numbers(100)
    before = source.pixels.copy()
    [batch] = take(1, source, tokenizer, 1000, flip=True)
    mirrored = batch["inputs"][:, 0, 0, 0, 2] == 255
    assert 430 < mirrored.sum() < 570
    upright = np.where(mirrored[:, None, None, None, None], batch["inputs"][..., ::-1, :], batch["inputs"])
    assert (upright == before[upright[:, 0, 0, 0, 0]]).all()
    assert (source.pixels == before).all()
    [plain] = take(1, source, tokenizer, 1000)
    assert (plain["inputs"][:, 0, 0, -1, 2] == 255).all()
    places = [np.flatnonzero(mirrored).tolist(), *(flips(seed, tokenizer) for seed in (2, 3))]
    assert len(set(map(tuple, places))) == 3


def test_negatives_are_the_captions_with_a_word_swapped(tokenizer):
    source = Numbers(10)
    source.__class__ = type("Coloured", (Numbers,), {"__getitem__": coloured})
    [batch] = take(1, source, tokenizer, 10, negatives=True)
    right, wrong = (tokenizer.decode(batch[name]["tokens"]) for name in ("cond", "negatives"))
    assert all(w == "" if "7" in r else w.startswith("a ") and w != r for r, w in zip(right, wrong, strict=True))
    assert sum("7" in r for r in right) == 1


def coloured(self, i):
    return {"inputs": self.pixels[i], "text": "7" if i == 7 else "a red"}


def test_negatives_do_not_depend_on_where_a_stream_starts_or_how_it_is_shared(tokenizer):
    source = Numbers(10)
    source.__class__ = type("Coloured", (Numbers,), {"__getitem__": coloured})
    whole = take(6, source, tokenizer, 4, negatives=True)
    assert same(take(3, source, tokenizer, 4, negatives=True, start=3), whole[3:])
    parts = [take(6, source, tokenizer, 4, negatives=True, shard=(i, 2)) for i in range(2)]
    assert same(joined(parts), whole)
    assert not same(take(6, source, tokenizer, 4, negatives=True, seed=2), whole)


def test_sources_are_joined(tmp_path):
    for folder, shades in (("dark", (1, 2, 3)), ("light", (201, 202))):
        (tmp_path / folder).mkdir()
        for shade in shades:
            Image.new("RGB", (4, 4), (shade,) * 3).save(tmp_path / folder / f"{shade}.png")
            (tmp_path / folder / f"{shade}.txt").write_text(f"shade {shade}")
    both = pipeline.open_source(f"folder:{tmp_path}/dark + folder:{tmp_path}/light", "train", 4, 1)
    assert [both[i]["inputs"][0, 0, 0, 0] for i in range(len(both))] == [1, 2, 3, 201, 202]
    assert pipeline.captions(both) == [f"shade {i}" for i in (1, 2, 3, 201, 202)]
    with pytest.raises(IndexError):
        both[5]


def flips(seed, tokenizer):
    [batch] = take(1, Numbers(100), tokenizer, 1000, flip=True, seed=seed)
    return np.flatnonzero(batch["inputs"][:, 0, 0, 0, 2] == 255).tolist()


def test_mirroring_differs_between_epochs(tokenizer):
    batches = take(40, Numbers(1), tokenizer, 1, flip=True)
    assert 5 < sum(batch["inputs"][0, 0, 0, 0, 2] == 255 for batch in batches) < 35


@pytest.mark.parametrize("count", [1, 3])
def test_a_source_smaller_than_a_batch(tokenizer, count):
    batches = take(3, Numbers(count), tokenizer, 8)
    assert all(batch["inputs"].shape[0] == 8 for batch in batches)
    assert sorted(sum(values(batches), []))[:: 24 // count] == list(range(count))


def test_bad_sizes(tokenizer):
    with pytest.raises(UserError, match="batch_size 9 is not a multiple of the 2"):
        pipeline.stream(Numbers(3), tokenizer, 9, seed=0, shard=(0, 2))
    with pytest.raises(UserError, match="batch_size 0"):
        pipeline.stream(Numbers(3), tokenizer, 0, seed=0)
    with pytest.raises(UserError, match="empty"):
        pipeline.stream(Numbers(0), tokenizer, 8, seed=0)


def workers():
    return [thread for thread in threading.enumerate() if "grain" in thread.name]


class Handlers(Numbers):
    """Items that tell whether their process ignores Ctrl-C."""

    def __getitem__(self, i):
        ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        return super().__getitem__(i) | {"inputs": np.full((1, 8, 8, 3), ignored, np.uint8)}


@pytest.fixture
def ctrl_c_handler():
    """A process that a shell started in the background ignores Ctrl-C, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_worker_processes_go_on_after_ctrl_c(tokenizer, ctrl_c_handler):
    for count, ignored in ((0, 0), (1, 1)):
        (batch,) = take(1, Handlers(50), tokenizer, 4, workers=count)
        assert (batch["inputs"] == ignored).all()


@pytest.mark.slow
def test_worker_processes_prepare_the_same_batches(tmp_path):
    for i in range(30):
        Image.fromarray(np.full((8, 8, 3), 8 * i, np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"a grey of {i}")
    source = pipeline.open_source(f"folder:{tmp_path}", "train", 8, 1)
    tokenizer = Tokenizer.train([source.text(i) for i in range(30)], 400, 8)
    options = dict(flip=True, negatives=True, start=3)
    alone, shared = (take(7, source, tokenizer, 4, workers=count, **options) for count in (0, 2))
    assert all(same(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize("end", ["close", "forget"])
def test_threads_end_with_the_consumer(tokenizer, end):
    stream = pipeline.stream(Numbers(50), tokenizer, 8, seed=0, threads=3)
    next(stream)
    assert workers()
    if end == "close":
        stream.close()
    del stream
    gc.collect()
    deadline = time.monotonic() + 5
    while workers() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not workers()


def test_batches_are_prepared_ahead(tokenizer):
    seen = []

    class Watched(Numbers):
        def __getitem__(self, i):
            seen.append(threading.current_thread())
            return super().__getitem__(i)

    stream = pipeline.stream(Watched(50), tokenizer, 4, seed=0, threads=2)
    next(stream)
    deadline = time.monotonic() + 5
    while len(seen) < 12 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(seen) >= 12 and threading.current_thread() not in seen
    stream.close()


def test_an_error_of_the_source_reaches_the_consumer(tokenizer):
    class Broken(Numbers):
        def __getitem__(self, i):
            raise UserError("the disk is gone")

    with pytest.raises(UserError, match="the disk is gone"):
        take(1, Broken(50), tokenizer, 8)


def test_captions():
    source = Numbers(10)
    assert pipeline.captions(source) == [f"number {i}" for i in range(10)]
    assert pipeline.captions(source, limit=3) == ["number 0", "number 4", "number 9"]

    class Listed(Numbers):
        def text(self, i):
            return f"listed {i}"

        def __getitem__(self, i):
            raise AssertionError("an image was decoded")

    assert pipeline.captions(Listed(10), limit=2) == ["listed 0", "listed 9"]


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "red ball"
    root.mkdir()
    for i in range(30):
        Image.new("RGB", (8, 8), (i, i, i)).save(root / f"{i}.png")
    return root


@pytest.mark.parametrize("separator", [":", "/"])
def test_a_spec_names_scheme_place_and_options(images, separator):
    source = pipeline.open_source(f"folder{separator}{images}", "train", 8, 1)
    assert len(source) == 30 and source[0]["text"] == "red ball"
    spec = f"folder{separator}{images}?holdout=0.4&template=a photo of a {{}}"
    parts = [pipeline.open_source(spec, split, 8, 1) for split in ("train", "test")]
    assert sum(map(len, parts)) == 30 and len(parts[1]) > 0
    assert parts[0][0]["text"] == "a photo of a red ball"


def test_options_are_read_by_their_type():
    def opener(name, split, size, frames, count: int | None = None, rate: float = 1.0, word=None):
        pass

    assert pipeline._options(opener, "count=3&rate=3&word=3") == {"count": 3, "rate": 3.0, "word": "3"}
    with pytest.raises(UserError, match="count=3.5: '3.5' is not int"):
        pipeline._options(opener, "count=3.5")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("foldr:x", "unknown data source 'foldr': did you mean 'folder'.*tfds"),
        ("pipeline:x", "unknown data source 'pipeline'"),
        ("text:x", "unknown data source 'text'"),
        ("", "unknown data source ''"),
        ("folder:x?holdot=1", "unknown data option 'holdot': did you mean 'holdout'"),
        ("folder:x?size=1", "unknown data option 'size'"),
        ("folder:x?holdout=half", "'half' is not float"),
        ("folder:/no/such/place", "no folder /no/such/place"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UserError, match=message):
        pipeline.open_source(spec, "train", 8, 1)
