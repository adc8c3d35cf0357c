"""CLIP's training: images and captions in one space (2103.00020), by InfoNCE or SigLIP's loss (2303.15343).

Scores of images against captions need the whole batch, so features are gathered over all devices; with
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

from zoo.conditions import END, Cond
from zoo.config import build
from zoo.errors import unknown_name_error
from zoo.method import Axis, Batch, Output, to_float
from zoo.nets.clip import CLIP

LARGEST_SCALE = 100.0  # of InfoNCE's logits, as in CLIP's section 2.5


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """CLIP, trained. It makes no images.

    Attributes:
      net: fields of `CLIP`.
      vocab_size: number of token ids.
      dtype: type that networks compute in.
      objective: "info_nce" or "siglip".
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    objective: str = "info_nce"

    players: ClassVar[tuple[str, ...]] = ("model",)

    @functools.cached_property
    def network(self) -> CLIP:
        """Network, without its parameters."""
        return build(CLIP, self.net, "method.net", vocab_size=self.vocab_size, end_id=END, dtype=self.dtype)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`."""
        if self.objective not in ("info_nce", "siglip"):
            raise unknown_name_error("objective", self.objective, ("info_nce", "siglip"))
        params = self.network.init(rng, to_float(batch["inputs"])[:, 0], batch["cond"]["tokens"])["params"]
        if self.objective == "info_nce":
            return {"model": {"clip": params}}
        params = dict(params) | {"logit_scale": jnp.float32(math.log(10.0))}  # SigLIP's algorithm 1
        return {"model": {"clip": params, "bias": jnp.float32(-10.0)}}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """See `Method.loss`: each image against all captions, right and wrong, and each caption against all images.

        Metrics: share of images whose own caption scores highest (`accuracy`), and higher than its wrong twin
        (`pair_accuracy`).
        """
        del player, rng, step
        model = params["model"]
        images = self.image_features(params, to_float(batch["inputs"]))
        kinds = [name for name in ("cond", "negatives") if name in batch]
        tokens = jnp.concatenate([batch[name]["tokens"] for name in kinds])
        texts = self.text_features(params, {"tokens": tokens})
        texts = jnp.split(texts, len(kinds))  # right, then wrong captions, each (B, P)
        captions = jnp.concatenate([axis.all_gather(part) for part in texts])  # (kinds * devices * B, P)
        log_scale = model["clip"]["logit_scale"]
        scale = jnp.exp(bounded(log_scale, math.log(LARGEST_SCALE)) if self.objective == "info_nce" else log_scale)
        own = axis.index * len(images) + jnp.arange(len(images))

        to_captions = scale * images @ captions.T
        if self.objective == "siglip":
            loss = sigmoid_loss(to_captions + model["bias"], own)
        else:
            to_images = scale * texts[0] @ axis.all_gather(images).T
            loss = (cross_entropy(to_captions, own) + cross_entropy(to_images, own)) / 2
        metrics = {"loss": loss, "accuracy": jnp.mean(to_captions.argmax(-1) == own), "scale": scale}
        if len(texts) > 1:
            right, wrong = ((images * part).sum(-1) for part in texts)
            metrics["pair_accuracy"] = jnp.mean(right > wrong)
        return loss, Output(metrics)

    def score(self, params, inputs: jax.Array, cond: Cond) -> jax.Array:
        """See `Scorer.score`: the cosine of image and caption, in [-1, 1]."""
        return (self.image_features(params, inputs) * self.text_features(params, cond)).sum(axis=-1)

    def image_features(self, params, inputs: jax.Array) -> jax.Array:
        """Inputs (B, T, H, W, C) in [-1, 1] -> (B, P) of length 1; of a video the mean of its frames'."""
        frames = einops.rearrange(inputs, "b t h w c -> (b t) h w c")
        y = unit(self._clip(params, frames, "encode_image"))
        return unit(einops.reduce(y, "(b t) p -> b p", "mean", b=len(inputs)))

    def text_features(self, params, cond: Cond) -> jax.Array:
        """Tokens (B, L) -> (B, P) of length 1."""
        return unit(self._clip(params, cond["tokens"], "encode_text"))

    def _clip(self, params, x: jax.Array, method: str) -> Any:
        return self.network.apply({"params": params["model"]["clip"]}, x, method=method)


def bounded(x: jax.Array, most: float) -> jax.Array:
    """min(x, most) with derivative 1 everywhere, so that a parameter above the bound can come back."""
    return x - jax.lax.stop_gradient(jnp.maximum(x - most, 0.0))


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
