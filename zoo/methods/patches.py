"""Patch tokenizers: an image is encoded patch by patch to codes or vectors, and decoded from them.

Other families are trained on what it makes: on codes as `data.codes`, on vectors as `data.latents`.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from zoo.errors import check_ranges
from zoo.method import Axis, Batch, Output, to_float
from zoo.nets.conditioning import Conditioned, build_network
from zoo.nets.patch_encoder import NEW_FOR_CHUNKS, PatchAutoencoder
from zoo.nets.quantisation import build_quantiser, frequencies, usage


@dataclasses.dataclass(frozen=True)
class Patches:
    """The family of patch tokenizers (ViT-VQGAN 2110.04627, with quantisers that have no codebook).

    Attributes:
      net: fields of `PatchAutoencoder`.
      quantiser: `name`, "levels", "binary" or "vectors", and the fields of its class, see `nets.quantisation`.
      vocab_size: number of token ids of captions, of which it takes none.
      dtype: type that networks compute in.
      caption_drop: share of samples whose conditions are dropped for a critic.
    """

    net: Mapping[str, Any]
    quantiser: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    caption_drop: float = 0.1

    players: ClassVar[tuple[str, ...]] = ("model",)
    MAY_BE_NEW: ClassVar[tuple[str, ...]] = NEW_FOR_CHUNKS
    fake_kind: ClassVar[str] = "reconstruction"

    def __post_init__(self):
        check_ranges(self, caption_drop="[0, 1]")
        self.quantise  # noqa: B018, which checks its fields

    @functools.cached_property
    def quantise(self) -> Any:
        """Quantiser of the vectors."""
        return build_quantiser(self.quantiser, "method.quantiser")

    @functools.cached_property
    def network(self) -> Conditioned:
        """Network, without parameters."""
        channels = self.quantise.channels
        return build_network(PatchAutoencoder, self.net, "method.net", self.vocab_size, self.dtype, channels=channels)

    @property
    def codes(self) -> int | None:
        """See `Tokenizes`."""
        return self.quantise.codes

    @property
    def chunk(self) -> int:
        """See `Tokenizes`."""
        return max(self.network.network.frame_patch, 1)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`."""
        return {"model": self.network.init(rng, to_float(batch["inputs"]), cond=batch["cond"])["params"]}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """Mean squared error of the reconstruction and the quantiser's penalty; `fake` is the reconstruction.

        Metrics: `error`, the former; of codes `code_usage`, the share of all codes that occur in the batch, which may
        have fewer patches than there are codes, and `perplexity`, of their frequencies there.
        """
        del player, step
        x = to_float(batch["inputs"])
        raw = self._apply(params, x, call="encode")
        y = self.quantise.bounded(raw)
        made = self._apply(params, self.quantise.disturbed(rng, y), call="decode")
        error = jnp.square(made - x).mean()
        loss = error + self.quantise.penalty(raw, axis)
        metrics = {"loss": loss, "error": error}
        if self.codes:
            frequency = axis.pmean(frequencies(self.quantise.index(y), self.codes))
            metrics["code_usage"], metrics["perplexity"] = usage(frequency)
        return loss, Output(metrics, fake=made)

    def reconstruct(self, params, rng: jax.Array, batch: Batch) -> jax.Array:
        """See `Reconstructs.reconstruct`. Nothing is drawn."""
        del rng
        return self.decode(params, self.encode(params, to_float(batch["inputs"])))

    def encode(self, params, inputs: jax.Array) -> jax.Array:
        """See `Autoencodes.encode`: vectors before they are rounded to those of codes."""
        return self.quantise.bounded(self._apply(params, inputs, call="encode"))

    def decode(self, params, latents: jax.Array) -> jax.Array:
        """See `Autoencodes.decode`: vectors are rounded to those of codes."""
        return jnp.clip(self._apply(params, self.quantise.quantised(latents), call="decode"), -1.0, 1.0)

    def to_codes(self, params, inputs: jax.Array) -> jax.Array:
        """See `Tokenizes.to_codes`: a code for each patch, (B, t, h, w, 1)."""
        return self.quantise.index(self.encode(params, inputs))[..., None]

    def from_codes(self, params, codes: jax.Array) -> jax.Array:
        """See `Tokenizes.from_codes`."""
        return self.decode(params, self.quantise.vector(codes[..., 0]))

    def _apply(self, params, *arguments, **keywords):
        """Returns the result of a function of the network, `call`."""
        return self.network.apply({"params": params["model"]}, *arguments, cond={}, **keywords)
