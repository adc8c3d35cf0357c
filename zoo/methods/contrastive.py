"""CLIP's training: pictures and captions meet in one space (2103.00020), by InfoNCE or SigLIP's loss (2303.15343).

Scores of pictures against captions need the whole batch, so features are gathered over all devices; with
`loop.accumulate` above 1 each part of the batch is a batch of its own.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import einops
import jax
import jax.numpy as jnp

from zoo.config import build
from zoo.data.text import END
from zoo.errors import unknown
from zoo.method import Axis, Batch, Output, to_float
from zoo.nets.clip import CLIP

LARGEST_SCALE = 100.0  # of the logits, as in CLIP's section 2.5


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """CLIP, trained. It makes no pictures.

    Attributes:
      net: fields of `CLIP`.
      vocab_size, dtype: of the text, and of the computation.
      objective: "info_nce" or "siglip".
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    objective: str = "info_nce"

    players: ClassVar[tuple[str, ...]] = ("model",)

    @functools.cached_property
    def network(self) -> CLIP:
        return build(CLIP, self.net, "method.net", vocab_size=self.vocab_size, end_id=END, dtype=self.dtype)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        if self.objective not in ("info_nce", "siglip"):
            raise unknown("objective", self.objective, ("info_nce", "siglip"))
        params = self.network.init(rng, to_float(batch["pixels"])[:, 0], batch["tokens"])["params"]
        if self.objective == "info_nce":
            return {"model": {"clip": params}}
        params = params | {"logit_scale": jnp.float32(math.log(10.0))}  # SigLIP's algorithm 1
        return {"model": {"clip": params, "bias": jnp.float32(-10.0)}}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """Each picture against all captions of the whole batch, right and wrong ones, and each caption against all
        pictures. Metrics: how often the own caption wins (`accuracy`), and wins against its wrong twin (`told_apart`).
        """
        del player, rng, step
        model = params["model"]
        pictures = self.picture_features(params, to_float(batch["pixels"]))
        kinds = [name for name in ("tokens", "negatives") if name in batch]
        texts = self.text_features(params, jnp.concatenate([batch[name] for name in kinds]))
        texts = jnp.split(texts, len(kinds))  # right, then wrong captions, each (B, P)
        captions = jnp.concatenate([axis.all_gather(part) for part in texts])  # (kinds * devices * B, P)
        scale = jnp.exp(jnp.minimum(model["clip"]["logit_scale"], math.log(LARGEST_SCALE)))
        own = axis.index * len(pictures) + jnp.arange(len(pictures))

        to_captions = scale * pictures @ captions.T
        if self.objective == "siglip":
            loss = sigmoid_loss(to_captions + model["bias"], own)
        else:
            to_pictures = scale * texts[0] @ axis.all_gather(pictures).T
            loss = (cross_entropy(to_captions, own) + cross_entropy(to_pictures, own)) / 2
        metrics = {"loss": loss, "accuracy": jnp.mean(to_captions.argmax(-1) == own), "scale": scale}
        if len(texts) > 1:
            right, wrong = ((pictures * part).sum(-1) for part in texts)
            metrics["told_apart"] = jnp.mean(right > wrong)
        return loss, Output(metrics)

    def rate(self, params, pixels: jax.Array, tokens: jax.Array) -> jax.Array:
        """See `Rating.rate`: the cosine of picture and caption, in [-1, 1]."""
        return (self.picture_features(params, pixels) * self.text_features(params, tokens)).sum(axis=-1)

    def picture_features(self, params, pixels: jax.Array) -> jax.Array:
        """Pixels (B, T, H, W, C) in [-1, 1] -> (B, P) of length 1; a clip's is the mean of its frames'."""
        frames = einops.rearrange(pixels, "b t h w c -> (b t) h w c")
        y = unit(self.network.apply({"params": params["model"]["clip"]}, frames, method="pictures"))
        return unit(einops.reduce(y, "(b t) p -> b p", "mean", b=len(pixels)))

    def text_features(self, params, tokens: jax.Array) -> jax.Array:
        """Tokens (B, L) -> (B, P) of length 1."""
        return unit(self.network.apply({"params": params["model"]["clip"]}, tokens, method="texts"))


def unit(x: jax.Array) -> jax.Array:
    """Vectors (..., P) scaled to length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-6)


def cross_entropy(logits: jax.Array, own: jax.Array) -> jax.Array:
    """Mean of -log softmax at column `own` of each row. logits: (B, M); own: (B,)."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), own[:, None], axis=1).mean()


def sigmoid_loss(logits: jax.Array, own: jax.Array) -> jax.Array:
    """SigLIP: each pair by itself is right or wrong; sum over columns, mean over rows. Like `cross_entropy`."""
    sign = 2 * jax.nn.one_hot(own, logits.shape[1]) - 1
    return -jax.nn.log_sigmoid(sign * logits).sum(axis=-1).mean()
