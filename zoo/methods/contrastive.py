"""CLIP's training: images and captions in one space (2103.00020), by InfoNCE or SigLIP's loss (2303.15343).

Of a video the features of its frames are averaged, after `time_layers` layers that attend over time (2104.08860).

Scores of images against captions need the whole batch, so features are gathered over all devices; with
`loop.accumulate` above 1 each part of the batch is a batch of its own.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import einops
import jax
import jax.numpy as jnp

from zoo.conditions import END, Cond
from zoo.errors import UserError, check_ranges, unknown_name_error
from zoo.method import Axis, Batch, Output, to_float
from zoo.nets.clip import CLIP
from zoo.nets.conditioning import build_module
from zoo.nets.time import TimeTower

LARGEST_SCALE = 100.0  # of InfoNCE's logits, as in CLIP's section 2.5


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """CLIP, trained. It makes no images.

    Attributes:
      net: fields of `CLIP`.
      vocab_size: number of token ids.
      dtype: type that networks compute in.
      objective: "info_nce" or "siglip".
      time_layers: layers over the features of a video's frames, see `TimeTower`; 0: their mean, which has no order.
      time_heads: heads of these layers.
    """

    net: Mapping[str, Any]
    vocab_size: int
    dtype: Any
    objective: str = "info_nce"
    time_layers: int = 0
    time_heads: int = 2

    players: ClassVar[tuple[str, ...]] = ("model",)
    MAY_BE_NEW: ClassVar[tuple[str, ...]] = ("time",)

    def __post_init__(self):
        check_ranges(self, time_layers="[0, inf)", time_heads="[1, inf)")

    @functools.cached_property
    def network(self) -> CLIP:
        """Network, without its parameters."""
        return build_module(CLIP, self.net, "method.net", vocab_size=self.vocab_size, end_id=END, dtype=self.dtype)

    @functools.cached_property
    def tower(self) -> TimeTower:
        """Layers over the features of a video's frames, without their parameters."""
        return TimeTower(self.time_layers, self.time_heads, self.network.remat, self.dtype)

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`. Raises UserError where there are layers of time for images."""
        if self.objective not in ("info_nce", "siglip"):
            raise unknown_name_error("objective", self.objective, ("info_nce", "siglip"))
        inputs, cond = to_float(batch["inputs"]), batch["cond"]
        model = {"clip": self.network.init(rng, inputs[:, 0], cond["tokens"])["params"]}
        if self.time_layers:
            if inputs.shape[1] == 1:
                raise UserError(f"time_layers {self.time_layers} are for videos: set it to 0, or data.frames above 1")
            frames = jnp.zeros((*inputs.shape[:2], self.network.projection))
            model["time"] = self.tower.init(jax.random.fold_in(rng, 1), frames, cond["frame_rate"])["params"]
        if self.objective == "siglip":
            model["clip"] = dict(model["clip"]) | {"logit_scale": jnp.float32(math.log(10.0))}  # SigLIP's algorithm 1
            model["bias"] = jnp.float32(-10.0)
        return {"model": model}

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """See `Method.loss`: each image against all captions, right and wrong, and each caption against all images.

        Metrics: share of images whose own caption scores highest (`accuracy`), and higher than its wrong twin
        (`pair_accuracy`).
        """
        del player, rng, step
        model = params["model"]
        images = self.embed(params, to_float(batch["inputs"]), batch["cond"].get("frame_rate"))
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
        images = self.embed(params, inputs, cond.get("frame_rate"))
        return (images * self.text_features(params, cond)).sum(axis=-1)

    def embed(self, params, inputs: jax.Array, frame_rate: jax.Array | None) -> jax.Array:
        """See `Embeds`: (B, P) of length 1."""
        frames = einops.rearrange(inputs, "b t h w c -> (b t) h w c")
        y = unit(self._clip(params, frames, "encode_image"))
        y = einops.rearrange(y, "(b t) p -> b t p", b=len(inputs))
        if self.time_layers:
            if frame_rate is None:
                raise UserError("time_layers need the videos' frame rate: name it with the data, e.g. ?fps=8")
            return unit(cast(jax.Array, self.tower.apply({"params": params["model"]["time"]}, y, frame_rate)))
        return unit(y.mean(axis=1))

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
