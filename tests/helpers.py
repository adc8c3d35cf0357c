"""Helpers of several test files."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from zoo.config import build_options


def as_cond(tokens):
    """Conditions of tokens (B, L); conditions stay as they are."""
    return tokens if isinstance(tokens, Mapping) else {"tokens": tokens}


class Guide(NamedTuple):
    """A worse model to guide away from."""

    method: Any
    params: Any


def with_guide(params, options):
    """Parameters and options of a call, whose option `guide` may be a `Guide`. Bare parameters get the name model."""
    guide = options.get("guide")
    if guide is None:
        return params, options
    own = dict(params) if isinstance(params, Mapping) else {"model": params}
    return own | {"frozen": own.get("frozen", {}) | {"guide": guide.params}}, options | {"guide": guide.method}


class Easy:
    """A method whose functions take tokens for conditions and keywords for options, with all else its own."""

    def __init__(self, method):
        self.method = method

    def __getattr__(self, name):
        return getattr(self.method, name)

    def as_guide(self, params):
        return Guide(self.method, params)

    def _options(self, values):
        return build_options(self.method.SampleOptions, values, f"option of {type(self.method).__name__}")

    def sample(self, params, rng, cond, shape, **options):
        params, options = with_guide(params, options)
        return self.method.sample(params, rng, as_cond(cond), shape, self._options(options))

    def generate(self, params, noise, cond, **options):
        params, options = with_guide(params, options)
        return self.method.generate(params, noise, as_cond(cond), self._options(options))

    def invert(self, params, rng, inputs, cond, **options):
        params, options = with_guide(params, options)
        return self.method.invert(params, rng, inputs, as_cond(cond), self._options(options))

    def sample_trajectory(self, params, rng, cond, shape, **options):
        return self.method.sample_trajectory(params, rng, as_cond(cond), shape, self._options(options))

    def trajectory_log_prob(self, params, states, cond, **options):
        return self.method.trajectory_log_prob(params, states, as_cond(cond), self._options(options))

    def evaluations(self, shape=(1, 4, 4, 3), **options):
        return self.method.evaluations(self._options(options), shape)

    def bits_per_dim(self, params, rng, batch, **options):
        return self.method.bits_per_dim(params, rng, batch, self.method.LikelihoodOptions(**options))

    def features(self, params, inputs, cond, t):
        return self.method.features(params, inputs, as_cond(cond), t)

    def score(self, params, inputs, cond):
        return self.method.score(params, inputs, as_cond(cond))


def random_like(params, seed=1):
    """Parameters without zeros, so that every layer counts."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten([x + 0.1 * jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)])
