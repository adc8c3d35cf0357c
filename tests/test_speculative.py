"""Speculative decoding against a table whose joint distribution is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from zoo.conditions import guide
from zoo.decoding import autoregressive, speculative
from zoo.decoding.draws import adjusted

CODES, LENGTH, DRAWS = 8, 4, 100_000
SHAPE = (CODES,) * LENGTH


def table(seed):
    return np.random.default_rng(seed).dirichlet(np.full(CODES**LENGTH, 0.3)).reshape(SHAPE)


def conditionals(joint):
    """log p of code i given those before it, for each i: (8^i, 8)."""
    sums = [joint.sum(axis=tuple(range(i + 1, LENGTH))).reshape(-1, CODES) for i in range(LENGTH)]
    return [np.log(x / x.sum(axis=1, keepdims=True)) for x in sums]


def next_log_p(tables, codes, number):
    """Of the code after the first `number`, (B,), of codes (B, ...): (B, 8)."""
    prefix = jnp.zeros(len(codes), jnp.int32)
    found = jnp.zeros((len(codes), CODES))
    for i, log_p in enumerate(tables):
        found = jnp.where((number == i)[:, None], jnp.asarray(log_p, found.dtype)[prefix], found)
        prefix = prefix * CODES + codes[:, i]
    return found


def model(tables, length):
    """`verify` of a table."""

    def verify(codes, number, state):
        each = [next_log_p(tables, codes, number + i) for i in range(length + 1)]
        return jnp.stack(each, axis=1), state

    return verify


TARGET, OTHER = table(0), table(1)
TABLES, OTHERS = conditionals(TARGET), conditionals(OTHER)


def guided(tables, negative, scale):
    """The tables of guided codes, and their joint distribution."""
    steps = [np.asarray(adjusted(guide(a, b, scale), 0.9, 6), float) for a, b in zip(tables, negative, strict=True)]
    joint = np.exp(steps[0]).reshape(-1)
    for log_p in steps[1:]:
        joint = (joint[:, None] * np.exp(log_p)).reshape(-1)
    return steps, (joint / joint.sum()).reshape(SHAPE)


def cheap(codes, number, state):
    return next_log_p(OTHERS, codes, number), state


def drafter(name, length, batch):
    if name == "model":
        return speculative.by_model((), cheap, length)
    if name == "at_once":  # as if code `number` alone mattered
        log_q = lambda codes, number: jnp.repeat(cheap(codes, number, ())[0][:, None], length, axis=1)
        return speculative.at_once(log_q)
    if name == "guess":
        return speculative.by_guess(lambda codes, number: (number + codes[:, 0]) % CODES, CODES, length)
    return speculative.by_last_round(batch, CODES, length)


def draws(name, length, guidance=0.0):
    tables = guided(TABLES, OTHERS, guidance)[0] if guidance else TABLES

    codes = jnp.zeros((DRAWS, LENGTH), jnp.int32)
    decode = functools.partial(speculative.decode, verify=model(tables, length), length=length)
    made, calls = jax.jit(lambda rng: decode(rng, codes, codes > 0, (), drafter=drafter(name, length, DRAWS)))(
        jax.random.split(jax.random.key(0), DRAWS)
    )
    return np.asarray(made), np.asarray(calls)


def p_value(codes, joint):
    """Of the chi-square test that draws are from the joint distribution; cells with few are pooled."""
    found = np.bincount(np.ravel_multi_index(codes.T, SHAPE), minlength=CODES**LENGTH)
    expected = joint.reshape(-1) * len(codes)
    few = expected < 5
    pool = lambda x: np.append(x[~few], x[few].sum())
    return stats.chisquare(pool(found), pool(expected)).pvalue


NAMES = "model", "at_once", "guess", "last_round"
CASES = [(name, length, guidance) for name in NAMES for length in (1, 2, 4) for guidance in (0.0, 0.5)]


@pytest.mark.slow
@pytest.mark.parametrize("name, length, guidance", CASES)
def test_the_distribution_is_that_of_the_model(name, length, guidance):
    codes, calls = draws(name, length, guidance)
    joint = guided(TABLES, OTHERS, guidance)[1] if guidance else TARGET
    assert p_value(codes, joint) > 0.01 / len(CASES)
    assert calls.min() >= 1 and calls.max() <= LENGTH and calls.mean() < LENGTH


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["always stays", "drawn from p"])
def test_wrong_rules_are_seen(wrong, monkeypatch):
    right = speculative.couple

    def couple(rng, draft, log_p):
        if wrong == "always stays":
            return right(rng, draft._replace(log_q=jnp.full_like(draft.log_q, -1e9)), log_p)
        codes, count = right(rng, draft, log_p)
        anew = jax.vmap(jax.random.categorical)(rng, log_p)
        return jnp.where(jnp.arange(codes.shape[1]) < count[:, None], codes, anew), count

    monkeypatch.setattr(speculative, "couple", couple)
    codes, _ = draws("model", 2)
    assert p_value(codes, TARGET) < 1e-6


def few(count=64, seed=0):
    codes = jnp.zeros((count, LENGTH), jnp.int32)
    return jax.random.split(jax.random.key(seed), count), codes, codes > 0


def test_a_draft_that_is_always_wrong_costs_the_calls_of_plain_decoding():
    shifted = [np.where(np.arange(CODES) == 0, 0.0, -np.inf)[None].repeat(CODES**i, 0) for i in range(LENGTH)]
    wrong = speculative.by_guess(lambda codes, number: jnp.ones_like(number), CODES, 2)
    made, calls = speculative.decode(*few(), (), model(shifted, 2), wrong, 2)
    assert (made == 0).all() and (calls == LENGTH).all()
    right = speculative.by_guess(lambda codes, number: jnp.zeros_like(number), CODES, 2)
    made, calls = speculative.decode(*few(), (), model(shifted, 2), right, 2)
    assert (made == 0).all() and (calls == 2).all()  # three codes, then one


@pytest.mark.parametrize("right", [0, 1, 2])
def test_one_call_yields_one_two_or_three_codes_of_two_guesses(right):
    certain = lambda codes: jnp.where(jax.nn.one_hot(jnp.array([codes]), CODES, dtype=bool), 0.0, -jnp.inf)
    guesses = [3 if i < right else 5 for i in range(2)]
    draft = speculative.Draft(jnp.array([guesses]), certain(guesses))
    made, count = speculative.couple(jax.random.split(jax.random.key(0), 1), draft, certain([3, 3, 3]))
    assert count.tolist() == [right] and made[0, : right + 1].tolist() == [3] * (right + 1)


@pytest.mark.parametrize("name", NAMES)
def test_each_sample_is_drawn_by_itself_and_known_codes_stay(name):
    rng, codes, known = few()
    decode = lambda rows: speculative.decode(
        rng[rows], codes[rows] + 3, known[rows].at[:, 1].set(True), (), model(TABLES, 2), drafter(name, 2, len(rows)), 2
    )[0]
    together, alone = decode(np.arange(64)), decode(np.array([17]))
    assert (together[17] == alone[0]).all() and (together[:, 1] == 3).all()
    assert len(np.unique(together[:, [0, 2, 3]])) == CODES


@pytest.mark.parametrize("length", [1, 2, 4])
def test_jacobi_draws_the_codes_of_plain_decoding(length, x64):
    def next_logits(before, i, prefix):
        prefix = jnp.where(i > 0, prefix * CODES + before, 0)
        each = [jnp.asarray(log_p)[jnp.minimum(prefix, len(log_p) - 1)] for log_p in TABLES]
        return jnp.stack(each)[i], prefix

    rng, codes, known = few(2000)
    known = known.at[::3, 2].set(True)
    plain = autoregressive.decode(rng, codes, known, jnp.zeros(len(codes), jnp.int32), next_logits)
    made, calls = speculative.jacobi(rng, codes, known, (), model(TABLES, length), length)
    assert (made == plain).all() and calls.mean() < LENGTH


def test_without_chance_the_likeliest_codes_are_drawn():
    greedy = [np.asarray(adjusted(log_p, temperature=0.0)) for log_p in TABLES]
    for name in NAMES:
        made, _ = speculative.decode(*few(8), (), model(greedy, 2), drafter(name, 2, 8), 2)
        assert (made == made[0]).all()
        prefix = 0
        for code, log_p in zip(made[0].tolist(), TABLES, strict=True):
            assert code == log_p[prefix].argmax()
            prefix = prefix * CODES + code
