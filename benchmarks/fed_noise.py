"""A generator that draws all codes in one pass and is merely fed random numbers, as a baseline.

    RECIPE=configs/tokens.py:masked,demo
    python -m benchmarks.fed_noise train --config $RECIPE --config.method.name=fed_noise --workdir RUN
    python -m benchmarks.fed_noise score --workdir RUN --measures oracle,one_colour

Could random numbers at its input make the codes of one pass agree? In training by likelihood they have nothing to do
with the image beside them, so the best network ignores them. Other than `masked` this family reads one of `KINDS`
random masks at each place; the rest is the same. Commands and flags are those of `python -m zoo`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from zoo import conditions
from zoo.__main__ import main
from zoo.decoding.draws import draw
from zoo.distributions import code_log_prob
from zoo.families import FAMILIES, Family
from zoo.method import Output, split_each
from zoo.methods.masked import Masked
from zoo.nets.conditioning import Conditioned, build_network
from zoo.nets.tokens import MaskedTokens
from zoo.nets.transformer import Transformer

KINDS = 64  # of masks


@dataclasses.dataclass(frozen=True)
class FedNoise(Masked):
    """One pass from random masks; fields of `Masked`."""

    @functools.cached_property
    def network(self):
        """See `Masked.network`."""
        built = build_network(Transformer, self.net, "method.net", self.vocab_size, self.dtype)
        return Conditioned(MaskedTokens(built.network, self.codes + KINDS, outputs=self.codes), built.conditioner)

    def loss(self, player, params, batch, rng, axis, step):
        """Cross-entropy of all codes, in nats a code."""
        del player, axis, step
        rng_noise, rng_drop = jax.random.split(rng)
        ids = batch["inputs"].astype(jnp.int32)
        cond = conditions.drop(rng_drop, batch["cond"], self.caption_drop)
        noise = self.codes + jax.random.randint(rng_noise, ids.shape, 0, KINDS)
        loss = -code_log_prob(self.logits(params, noise, cond), ids).mean()
        return loss, Output({"loss": loss})

    def sample(self, params, rng, cond, shape, options):
        """See `Generates.sample`; of the options it reads none."""
        del options
        rng_noise, rng_draw = split_each(rng)
        noise = self.codes + jax.vmap(lambda key: jax.random.randint(key, shape, 0, KINDS))(rng_noise)
        return draw(rng_draw, self.logits(params, noise, cond))


if __name__ == "__main__":
    FAMILIES["fed_noise"] = Family("benchmarks.fed_noise:FedNoise", "", "benchmarks/fed_noise.py")
    main()
