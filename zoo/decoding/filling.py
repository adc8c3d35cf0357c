"""Samples of families that draw what is missing: all of a sample is."""

from typing import Any

import jax
import jax.numpy as jnp

from zoo.conditions import Cond


class SamplesByFilling:
    """The part that families with the ability `Fills` share."""

    fill: Any

    def sample(self, params: Any, rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: Any) -> jax.Array:
        """See `Generates.sample`: codes int32, or vectors float32, (B, T, h, w, c)."""
        none = jnp.zeros((len(rng), *shape))
        return self.fill(params, rng, none, jnp.zeros(none.shape[:4], bool), cond, options)
