"""Speculative decoding by networks: several codes are read at once, and each source of drafts leaves the samples."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from benchmarks import speculation
from tests.helpers import random_like
from zoo import loop
from zoo.decoding import lookup
from zoo.families import build_method
from zoo.media import read_metadata
from zoo.method import Drafts
from zoo.runs.dependencies import open_run
from zoo.runs.speculation import NAMES, TABLES, first_layers, with_draft
from zoo.trees import flatten

CODES, SHAPE = 11, (1, 3, 3, 2)
COND = {"tokens": jnp.array([[5, 6, 1, 0], [7, 1, 0, 0], [8, 9, 1, 0]])}


@pytest.fixture
def model(tiny):
    """model("autoregressive") -> a method and random parameters, whose layers all count."""

    def model(words="autoregressive", codes=CODES, shape=SHAPE, **net):
        config = tiny({f"method.net.{name}": value for name, value in net.items()}, f"configs/tokens.py:{words},test")
        method = build_method(config.method.to_dict(), 64, "float32", codes=codes)
        batch = {"inputs": jnp.zeros((3, *shape), jnp.int32), "cond": COND}
        return method, random_like(method.init(jax.random.key(0), batch))

    return model


@pytest.fixture
def draft(model):
    """draft("ngram") -> something with the ability `Drafts`, and its parameters."""

    def draft(name, codes=CODES, shape=SHAPE):
        if name in TABLES:
            table = TABLES[name](codes)
            seen = np.random.default_rng(0).integers(0, codes, (50, *shape)).astype(np.uint16)
            return table, jax.tree.map(jnp.asarray, table.table(lambda: seen))
        if name == "masked":
            return model("masked", codes, shape, patch_size=1)
        return model("autoregressive", codes, shape, depth={"itself": 2, "smaller": 1}[name])

    return draft


def sample(method, params, cond=COND, shape=SHAPE, **options):
    rng = jax.random.split(jax.random.key(3), len(cond["tokens"]))
    made = lambda: method.sample_counted(params, rng, cond, shape, method.SampleOptions(**options))
    with jax.default_matmul_precision("highest"):
        return jax.device_get(jax.jit(made)())


def with_frozen(params, draft):
    return dict(params) | {"frozen": {"draft": draft}}


@pytest.mark.parametrize(
    "length, guidance", [(4, 1.0), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 0.0), (30, 0.0)))]
)
def test_jacobi_draws_the_codes_of_plain_decoding(model, length, guidance):
    method, params = model(depth=2)
    plain, all_calls = sample(method, params, guidance=guidance)
    made, calls = sample(method, params, guidance=guidance, draft="jacobi", draft_length=length)
    np.testing.assert_array_equal(made, plain)
    assert (all_calls == 18).all() and (calls < 18).all()


@pytest.mark.parametrize(
    "name", ["itself", *(pytest.param(name, marks=pytest.mark.slow) for name in ("smaller", "masked", *TABLES))]
)
def test_without_chance_each_draft_leaves_the_codes(model, draft, name):
    method, params = model(depth=2)
    guess, own = draft(name)
    assert isinstance(guess, Drafts)
    plain, _ = sample(method, params, temperature=0.0, guidance=0.5)
    made, calls = sample(method, with_frozen(params, own), temperature=0.0, guidance=0.5, draft=guess, draft_length=2)
    np.testing.assert_array_equal(made, plain)
    if name == "itself":
        assert (calls == 6).all()  # two guesses and one more code a call
    else:
        assert (calls <= 18).all()


@pytest.mark.slow
@pytest.mark.parametrize("name, length", [("smaller", 2), ("masked", 4), ("ngram", 1), ("search", 2), ("last_call", 2)])
def test_the_distribution_is_that_of_the_network(model, draft, name, length):
    codes, shape, count = 4, (1, 2, 2, 1), 50_000
    method, params = model("autoregressive", codes, shape, depth=2)
    guess, own = draft(name, codes, shape)
    cond = {"tokens": jnp.repeat(COND["tokens"][:1], count, axis=0)}
    made, calls = sample(method, with_frozen(params, own), cond, shape, guidance=0.5, draft=guess, draft_length=length)
    every = jnp.array(list(itertools.product(range(codes), repeat=4)), jnp.int32).reshape(-1, *shape)
    some = {"tokens": cond["tokens"][: len(every)]}
    options = method.SampleOptions(guidance=0.5)
    p = np.exp(np.asarray(method.trajectory_log_prob(params, every[None], some, options)[0], np.float64))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-4)
    found = np.bincount(np.ravel_multi_index(made.reshape(count, 4).T, (codes,) * 4), minlength=codes**4)
    expected = p / p.sum() * count
    few = expected < 5
    pool = lambda x: np.append(x[~few], x[few].sum()) if few.any() else x
    assert stats.chisquare(pool(found), pool(expected)).pvalue > 0.01 / 5
    assert calls.mean() < 4


def test_ngrams_are_the_most_frequent_codes_between_the_same_neighbours():
    seen = np.array([[[1, 2], [3, 4]], [[1, 2], [3, 5]], [[1, 2], [3, 5]]], np.uint16).reshape(3, 1, 2, 2, 1)
    table = lookup.NGrams(8)
    params = jax.tree.map(jnp.asarray, table.table(lambda: seen))
    drafter = table.drafter(params, {}, (1, 2, 2, 1), 2, None)
    rng = jax.random.split(jax.random.key(0), 3)
    codes = jnp.array([[1, 2, 3, 0], [1, 2, 0, 0], [6, 0, 0, 0]])
    draft, _ = drafter.draw(rng, jnp.pad(codes, ((0, 0), (0, 3))), jnp.array([3, 2, 1]), ())
    assert draft.codes[0, 0] == 5
    assert draft.codes[1].tolist() == [3, 5]
    assert draft.codes[2].tolist() == [6, 6]  # never seen


def test_the_largest_codes_have_contexts_of_their_own():
    seen = np.array([[65_535, 65_535], [65_535, 7]], np.uint16).reshape(1, 1, 2, 2, 1)
    table = lookup.NGrams(65_536)
    made = table.table(lambda: seen)
    assert made.contexts.tolist() == [0, 65_535 * 65_536, 2**32 - 1] and made.codes.tolist() == [65_535, 65_535, 7]


def test_search_continues_the_most_similar_sequence():
    seen = np.arange(16, dtype=np.uint16).reshape(2, 1, 2, 4, 1)
    table = lookup.Search(16)
    drafter = table.drafter(jnp.asarray(table.table(lambda: seen)), {}, (1, 2, 4, 1), 3, None)
    codes = jnp.array([[0, 9, 10, 0, 0, 0, 0, 0], [0, 1, 10, 3, 4, 5, 6, 7]])
    rng = jax.random.split(jax.random.key(0), 2)
    draft, _ = drafter.draw(rng, jnp.pad(codes, ((0, 0), (0, 4))), jnp.array([3, 6]), ())
    assert draft.codes.tolist() == [[11, 12, 13], [6, 7, 0]]


# ---- of runs


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """Workdirs: a tokenizer, and autoregressive and masked runs on its codes."""
    folder = tmp_path_factory.mktemp("runs")
    loop.train(tiny({}, "configs/patches.py:test"), folder / "patches")
    on_codes = {"data.codes": str(folder / "patches"), "loop.grid_every": 0}
    loop.train(tiny({"loop.grid_every": 0}, "configs/tokens.py:autoregressive,test"), folder / "pixels")
    for name, spec in (("model", "autoregressive"), ("smaller", "autoregressive"), ("masked", "masked")):
        patches = {"method.net.patch_size": 1} if name == "masked" else {}
        patches |= {"method.net.depth": 2} if name == "model" else {}
        loop.train(tiny(on_codes | patches, f"configs/tokens.py:{spec},test"), folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "layers:1", "smaller", "masked"])
def test_sampling_with_a_draft(runs, command, tmp_path, name):
    draft = runs / name if name in ("smaller", "masked") else name
    words = "--prompt=a red circle", f"--speculate={draft}", "--option=draft_length=3", f"--out={tmp_path / 'out.png'}"
    done = command("sample.py", f"--workdir={runs / 'model'}", *words)
    assert done.code == 0 and "calls of the network an image" in done.out, done.err


@pytest.mark.slow
def test_the_first_layers_are_those_of_the_run_and_leave_its_codes(runs, same):
    run = open_run(runs / "model")
    first, params = first_layers(run, "1")
    assert first.net["depth"] == 1 and run.method.net["depth"] == 2
    own, all_layers = flatten(params), flatten(run.params)
    cut = {path for path in own if own[path].shape != all_layers[path].shape}
    assert cut and all(same(own[path], all_layers[path][:1]) for path in cut)
    assert all(same(own[path], all_layers[path]) for path in own.keys() - cut)
    drafted, options = with_draft(run, "model", "layers:1")
    plain = run.sample(["a star"] * 4, temperature=0.0)
    np.testing.assert_array_equal(drafted.sample(["a star"] * 4, temperature=0.0, **options), plain)


@pytest.mark.slow
def test_drafts_are_timed_in_turn(runs):
    drafts = ["none", "jacobi", str(runs / "smaller")]
    run = open_run(runs / "model")
    seconds, calls = speculation.measure(run, "model", drafts, length=3, batch=2, rounds=2)
    assert all(seconds[draft].shape == (2,) and calls[draft].shape == (2, 2) for draft in drafts)
    assert (calls["none"] == np.prod(run.recipe.shape)).all() and (calls["jacobi"] < calls["none"]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "workdir, words, message",
    [
        ("model", ["--speculate=ngrams"], "ngram"),
        ("masked", ["--speculate=ngram"], "Masked lacks the ability Speculates; families with it: autoregressive"),
        ("model", ["--speculate=RUNS/patches"], "lacks the ability Drafts; families with it: masked, autoregressive"),
        ("model", ["--speculate=layers:2"], "--speculate layers:2: '2' is no number of layers from 1 to 1, of the 2"),
        ("model", ["--speculate=layers:x"], "'x' is no number of layers"),
        ("model", ["--speculate=ngram", "--option=draft_length=0"], "draft_length must be in [1, inf), got 0"),
        ("model", ["--speculate=RUNS/pixels"], "pixels was trained with another data.latents or data.codes; give both"),
    ],
)
def test_what_cannot_guess_is_one_line(runs, command, tmp_path, workdir, words, message):
    words = [word.replace("RUNS", str(runs)) for word in words]
    given = f"--workdir={runs / workdir}", "--prompt=a red circle", f"--out={tmp_path / 'out.png'}"
    done = command("sample.py", *given, *words)
    assert done.code == 2 and message in done.err and done.err.count("\n") == 1, done.err


@pytest.mark.slow
def test_a_draft_speeds_edits_too(runs, command, tmp_path):
    words = "vary", "--item=0", "--strength=0.5", f"--out={tmp_path / 'out.png'}"
    plain = command("-m", "zoo", "edit", *words, f"--workdir={runs / 'model'}")
    same = command("-m", "zoo", "edit", *words, f"--workdir={runs / 'model'}", "--speculate=jacobi")
    assert plain.code == same.code == 0, (plain.err, same.err)
    assert json.loads(read_metadata(tmp_path / "out.png")["zoo"])["speculate"] == "jacobi"
