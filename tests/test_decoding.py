"""Decoding of codes against tables whose joint distribution is known."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from zoo.decoding import autoregressive, masked
from zoo.decoding.draws import adjusted, draw
from zoo.errors import UserError
from zoo.methods.masked import LikelihoodOptions, Masked, SampleOptions, guidance_scales

CODES, LENGTH, DRAWS = 3, 4, 40_000
MASK = CODES
STATES = np.array(list(itertools.product(range(CODES), repeat=LENGTH)))  # (81, 4)
TABLE = np.random.default_rng(0).dirichlet(np.full(len(STATES), 0.5)).reshape((CODES,) * LENGTH)


def conditionals(ids, number=None):
    """Log p of each code given those of ids, (B, N), that are not masked: (B, N, V)."""
    del number
    states, table = jnp.asarray(STATES), jnp.asarray(TABLE.reshape(-1), jnp.float32)
    fits = ((ids[:, None] == states) | (ids[:, None] == MASK)).all(axis=-1) * table  # (B, 81)
    given = jax.nn.one_hot(states, CODES)  # (81, N, V)
    p = jnp.einsum("bs,snv->bnv", fits, given)
    return jnp.log(p / p.sum(axis=-1, keepdims=True) + 1e-20)


def p_value(codes):
    """Of the chi-square test that draws, (DRAWS, N), are from the table; cells with few are pooled."""
    number = np.ravel_multi_index(np.asarray(codes).T, (CODES,) * LENGTH)
    found, expected = np.bincount(number, minlength=len(STATES)), TABLE.reshape(-1) * DRAWS
    few = expected < 5
    pool = lambda x: np.append(x[~few], x[few].sum()) if few.any() else x
    return stats.chisquare(pool(found), pool(expected)).pvalue


def keys(seed=0):
    return jax.random.split(jax.random.key(seed), DRAWS)


def draw_missing(rng, codes, there, i):
    del i
    logits = conditionals(jnp.where(there, codes, MASK))
    drawn = draw(rng, logits)
    return drawn, jnp.take_along_axis(logits, drawn[..., None], axis=-1)[..., 0]


def decoded(left, choose, codes=None, known=None):
    codes = jnp.zeros((DRAWS, LENGTH), int) if codes is None else codes
    known = jnp.zeros(codes.shape, bool) if known is None else known
    return jax.jit(lambda rng: masked.decode(rng, codes, known, draw_missing, np.array(left), choose))(keys())


RANDOM = masked.keep(masked.at_random)


def test_one_code_a_step_in_random_order_draws_the_joint_distribution():
    assert p_value(decoded([3 / 4, 2 / 4, 1 / 4, 0], RANDOM)) > 1e-3


def test_taking_codes_back_leaves_the_joint_distribution():
    # In steps that leave as many masked as before, one code is drawn, and one of the earlier ones is taken back.
    def choose(step):
        share = 1 / step.earlier.sum(axis=1, keepdims=True)
        one = masked.remask(masked.at_random, masked.by_improbability(0.0), share)(step)
        return jnp.where(step.new.sum(axis=1, keepdims=True) == step.left, one, RANDOM(step))

    assert p_value(decoded([3 / 4, 2 / 4, 2 / 4, 1 / 4, 1 / 4, 1 / 4, 0], choose)) > 1e-3


def test_two_codes_a_step_and_a_choice_by_value_do_not():
    assert p_value(decoded([2 / 4, 0], RANDOM)) < 1e-6
    assert p_value(decoded([3 / 4, 2 / 4, 1 / 4, 0], masked.keep(masked.by_confidence(0.0)))) < 1e-6


def test_every_step_takes_as_many_back_as_it_should():
    seen = []

    def watched(rng, codes, there, i):
        jax.debug.callback(lambda there: seen.append(~np.asarray(there)), there, ordered=True)
        return draw_missing(rng, codes, there, i)

    codes, left = jnp.zeros((2, LENGTH), int), np.array([2 / 4, 2 / 4, 1 / 4, 0])
    half = masked.remask(masked.at_random, masked.by_improbability(0.0), 0.5)
    masked.decode(keys()[:2], codes, codes > 0, watched, left, half)
    jax.effects_barrier()
    assert [step.sum(axis=1).tolist() for step in seen] == [[4, 4], [2, 2], [2, 2], [1, 1]]
    back = seen[2] & ~seen[1]
    assert (back.sum(axis=1) == 1).all()  # of the two that were there


def test_all_codes_may_be_masked_by_their_score():
    score = lambda step: jnp.broadcast_to(jnp.array([0.0, 3.0, 1.0, 2.0]), step.filled.shape)
    step = masked.Step(
        rng=keys()[:1],
        done=jnp.array(0.5),
        filled=jnp.zeros((1, 4), int),
        log_prob=jnp.zeros((1, 4)),
        new=jnp.array([[False, True, True, False]]),
        earlier=jnp.array([[True, False, False, False]]),
        left=jnp.array([[2]]),
    )
    assert masked.mask_lowest(score)(step).tolist() == [[True, False, True, False]]  # the last one was given


def test_doubt_takes_back_the_least_likely():
    sure = jnp.log(jnp.array([[0.9, 0.1, 0.5, 0.99]]))
    none = jnp.zeros((1, 4), bool)
    step = masked.Step(keys()[:1], jnp.ones(()), jnp.zeros((1, 4), int), sure, none, none, jnp.zeros((1, 1)))
    assert masked.by_improbability(1000.0)(step).argmax() == 1
    drawn = [int(masked.by_improbability(0.0)(step._replace(rng=key[None])).argmax()) for key in keys()[:64]]
    assert set(drawn) == {0, 1, 2, 3}


def test_given_codes_stay():
    codes = jnp.zeros((DRAWS, LENGTH), int).at[:, 1].set(2)
    made = decoded([2 / 3, 1 / 3, 0], RANDOM, codes, codes > 0)
    assert (made[:, 1] == 2).all()
    found = np.bincount(np.asarray(made[:, 0]), minlength=CODES) / DRAWS
    p = TABLE[:, 2].sum(axis=(1, 2))
    np.testing.assert_allclose(found, p / p.sum(), atol=0.01)


@pytest.mark.parametrize("given", [None, 1])
def test_codes_one_after_the_other_have_the_joint_distribution(given):
    codes = jnp.zeros((DRAWS, LENGTH), int).at[:, 0].set(given or 0)
    known = jnp.zeros(codes.shape, bool).at[:, 0].set(given is not None)
    start = jnp.full(codes.shape, MASK)

    def next_logits(before, i, drawn):
        drawn = jnp.where((jnp.arange(LENGTH) == i - 1), before[:, None], drawn)
        return conditionals(drawn)[:, i], drawn

    made = jax.jit(lambda rng: autoregressive.decode(rng, codes, known, start, next_logits))(keys(1))
    if given is None:
        assert p_value(made) > 1e-3
    else:
        assert (made[:, 0] == given).all()
        found = np.bincount(np.asarray(made[:, 1]), minlength=CODES) / DRAWS
        p = TABLE[given].sum(axis=(1, 2))
        np.testing.assert_allclose(found, p / p.sum(), atol=0.01)


# ---- the bound of the likelihood


@dataclasses.dataclass(frozen=True)
class Exact(Masked):
    """A masked generator whose network is the table."""

    net: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    vocab_size: int = 0
    dtype: Any = None
    codes: int = CODES

    def logits(self, params, ids, cond):
        del params, cond
        return conditionals(ids.reshape(len(ids), -1)).reshape(*ids.shape, CODES)


def test_the_bound_of_exact_conditionals_is_the_likelihood():
    codes = STATES[[0, 17, 50]].reshape(3, 1, 2, 2, 1)
    rng = jax.random.split(jax.random.key(0), 3)
    batch = {"inputs": jnp.asarray(codes, jnp.uint16), "cond": {}}
    bits = jax.jit(lambda: Exact().bits_per_dim({}, rng, batch, LikelihoodOptions(samples=8000)))()
    exact = -np.log2(TABLE.reshape(-1)[[0, 17, 50]]) / LENGTH
    np.testing.assert_allclose(bits, exact, rtol=0.02)


def test_the_loss_reads_masked_codes_alone():
    ids = np.random.default_rng(0).integers(0, CODES, (4, 1, 4, 4, 1))
    seen = []

    class Kept(Exact):
        def logits(self, params, ids, cond):
            seen.append(ids)
            return params["model"]

    rng, batch = jax.random.key(3), {"inputs": jnp.asarray(ids, jnp.uint16), "cond": {"tokens": jnp.ones((4, 3), int)}}
    loss = lambda logits: Kept().loss("model", {"model": logits}, batch, rng, None, 0)[0]
    gradient = jax.grad(loss)(jax.random.normal(rng, (*ids.shape, CODES)))
    hidden = np.asarray(seen[0]) == CODES
    assert 0 < hidden.sum() < hidden.size and (np.asarray(seen[0])[~hidden] == ids[~hidden]).all()
    assert ((np.abs(gradient).sum(axis=-1) > 0) == hidden).all()


# ---- draws, orders, schedules


def test_adjusted_logits():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    p = lambda **options: np.exp(adjusted(logits, **options))
    np.testing.assert_allclose(p(), [0.5, 0.3, 0.15, 0.05], rtol=1e-5)
    np.testing.assert_allclose(p(temperature=0.0), [1, 0, 0, 0])
    np.testing.assert_allclose(p(temperature=0.5), np.square([0.5, 0.3, 0.15, 0.05]) / 0.365, rtol=1e-5)
    np.testing.assert_allclose(p(top_k=2), [0.625, 0.375, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(p(top_k=9), p(), rtol=1e-5)
    np.testing.assert_allclose(p(top_p=0.5), [1, 0, 0, 0], rtol=1e-5)  # the first alone has half
    np.testing.assert_allclose(p(top_p=0.6), [0.625, 0.375, 0, 0], rtol=1e-5)


@pytest.mark.parametrize("schedule", masked.SCHEDULES)
def test_shares_of_masked_codes_fall_to_zero(schedule):
    shares = masked.masked_shares(schedule, 8)
    assert shares[-1] == 0 and (np.diff(shares) < 0).all() and shares[0] < 1
    assert masked.masked_shares(schedule, 1).tolist() == [0.0]


def test_the_halton_order_is_one_and_spreads():
    rank = masked.halton_rank((1, 8, 8, 1))
    assert sorted(rank) == list(range(64))
    first = np.argwhere(rank.reshape(8, 8) < 16)
    quadrants = np.bincount(2 * (first[:, 0] // 4) + first[:, 1] // 4, minlength=4)
    assert quadrants.min() >= 3 and quadrants.max() <= 5
    of_video = masked.halton_rank((3, 4, 4, 2))
    assert sorted(of_video) == list(range(96))
    assert (np.diff(of_video.reshape(-1, 2)) == 1).all()  # the codes of one place follow each other


def test_each_sample_begins_the_halton_order_elsewhere():
    shape, count = (1, 2, 4, 2), 64
    rank = masked.halton_rank(shape)
    scores = np.asarray(masked.by_halton(shape, keys()[:count])(None))
    first = scores.argmax(axis=1)
    assert scores.shape == (count, 16) and set(first) == set(range(0, 16, 2))  # never between the codes of a place
    order = np.argsort(-scores, axis=1)
    assert (np.diff(rank[order], axis=1) % 16 == 1).all()
    again = np.asarray(masked.by_halton(shape, keys()[3:4])(None))
    assert (again[0] == scores[3]).all()


def test_guidance_scales_follow_the_interval_and_the_ramp():
    share = np.array([1.0, 0.6, 0.2])
    assert guidance_scales(SampleOptions(guidance=2.0, interval=(0.5, 1.0)), share).tolist() == [2, 2, 0]
    assert np.allclose(guidance_scales(SampleOptions(guidance=2.0, guidance_ramp=True), share), [0, 0.8, 1.6])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"steps": 0}, "steps"),
        ({"order": "raster"}, "unknown order of codes 'raster'.*halton"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"erase": "random"}, "erase_share=0: give both or none"),
        ({"erase_share": 0.1}, "give both or none"),
        ({"interval": (0.5, 0.1)}, "the lower and the higher share"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_options_out_of_range_are_errors(options, words):
    with pytest.raises(UserError, match=words):
        SampleOptions(**options)


def test_more_steps_than_codes_need_erasing():
    shape, rng = (1, 2, 2, 1), keys()[:1]
    with pytest.raises(UserError, match="at most the 4 codes of an image without erase, got 5"):
        Exact().sample({}, rng, {}, shape, SampleOptions(steps=5))
    made = Exact().sample({}, rng, {}, shape, SampleOptions(steps=9, erase="random", erase_share=0.3))
    assert made.shape == (1, *shape) and (made < CODES).all()


def test_guidance_of_logits_is_the_guided_distribution():
    @dataclasses.dataclass(frozen=True)
    class Two(Exact):
        def logits(self, params, ids, cond):
            del params
            p = jnp.where(cond["tokens"][:, :1] > 1, jnp.array([0.7, 0.2, 0.1]), jnp.array([0.4, 0.3, 0.3]))
            return jnp.broadcast_to(jnp.log(p)[:, None, None, None, None], (*ids.shape, CODES))

    cond = {"tokens": jnp.full((DRAWS, 2), 5)}
    made = Two().sample({}, keys(), cond, (1, 1, 1, 1), SampleOptions(steps=1, guidance=1.0))
    guided = np.square([0.7, 0.2, 0.1]) / np.array([0.4, 0.3, 0.3])
    found = np.bincount(np.asarray(made).reshape(-1), minlength=CODES) / DRAWS
    np.testing.assert_allclose(found, guided / guided.sum(), atol=0.01)


def test_evaluations_count_both_passes_of_guidance():
    assert Exact().evaluations(SampleOptions(steps=6), (1, 4, 4, 1)) == 6
    assert Exact().evaluations(SampleOptions(steps=6, guidance=1.0), (1, 4, 4, 1)) == 12


# ---- trajectories


def exact_family(**changes):
    """A masked generator whose logits are the table's conditionals, over places (1, 2, 2) of one channel."""

    class Exact(Masked):
        def logits(self, params, ids, cond):
            return conditionals(ids.reshape(len(ids), LENGTH)).reshape(*ids.shape, CODES) * params["scale"]

    return Exact({}, 8, jnp.float32, CODES, **changes)


def test_a_trajectory_ends_in_the_sample():
    method, options = exact_family(), SampleOptions(steps=3, order="random")
    params, rng, shape = {"scale": 1.0}, keys()[:50], (1, 2, 2, 1)
    states = method.sample_trajectory(params, rng, {}, shape, options)
    assert states.shape == (4, 50, *shape) and (states[0] == MASK).all()
    np.testing.assert_array_equal(states[-1], method.sample(params, rng, {}, shape, options))
    masked_after = (states == MASK).sum(axis=(2, 3, 4, 5))
    assert (np.diff(masked_after, axis=0) < 0).all() and (masked_after[-1] == 0).all()
    kept = states[1:-1] != MASK
    np.testing.assert_array_equal(states[2:][kept], states[1:-1][kept])


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.7}, {"top_k": 2}])
def test_the_densities_of_all_trajectories_sum_to_one(changes):
    """With one order for all the codes at the end say what happened at each step."""
    method, options = exact_family(), SampleOptions(steps=2, order="halton", **changes)
    final = jnp.asarray(STATES).reshape(-1, 1, 2, 2, 1)
    one = keys()[jnp.zeros(len(final), int)]
    example = method.sample_trajectory({"scale": 1.0}, one, {}, (1, 2, 2, 1), options)
    states = jnp.stack([jnp.where(state == MASK, MASK, final) for state in example])
    log_prob = method.trajectory_log_prob({"scale": 1.0}, states, {}, options)
    assert log_prob.shape == (2, len(final))
    np.testing.assert_allclose(jnp.exp(log_prob.sum(axis=0)).sum(), 1, rtol=1e-5)


def test_a_trajectory_of_one_code_a_step_has_the_density_of_the_table():
    method, options = exact_family(), SampleOptions(steps=LENGTH, order="random")
    states = method.sample_trajectory({"scale": 1.0}, keys()[:50], {}, (1, 2, 2, 1), options)
    found = method.trajectory_log_prob({"scale": 1.0}, states, {}, options).sum(axis=0)
    expected = TABLE[tuple(np.asarray(states[-1]).reshape(50, LENGTH).T)]
    np.testing.assert_allclose(jnp.exp(found), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "changes", [{"order": "confidence"}, {"order": "random", "erase": "random", "erase_share": 0.1}]
)
def test_a_trajectory_whose_density_is_unknown_is_an_error(changes):
    method, options = exact_family(), SampleOptions(steps=2, **changes)
    with pytest.raises(UserError, match="the density of a trajectory is known without erasing"):
        method.sample_trajectory({"scale": 1.0}, keys()[:2], {}, (1, 2, 2, 1), options)
