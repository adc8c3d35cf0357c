"""A transformer that encodes images and videos patch by patch, and one that decodes them (ViT-VQGAN 2110.04627)."""

from typing import Any, ClassVar

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.errors import UserError
from zoo.nets.conditioning import Layer
from zoo.nets.layers import RMSNorm, head_channels, patchify, rotary_table, stack, unpatchify
from zoo.nets.time import TimeAttention

NEW_FOR_CHUNKS = "embed_chunk", "out_chunk", "temporal"  # what a tokenizer of images lacks


class PatchLayer(nn.Module):
    """Attention within each frame of patches; of a video, to the same place in earlier ones; then feed-forward.

    Attributes:
      heads, dtype, attention: see `PatchAutoencoder`.
      frames: frames of patches of a video; 0 where each is an image.
    """

    heads: int
    frames: int
    dtype: Any
    attention: str

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, None]:
        """(B t, h, w, D) -> like x, None."""
        rows, columns, width = x.shape[1:]
        if self.frames:
            over_time = TimeAttention(self.heads, self.frames, self.dtype, causal=True, name="temporal")
            x = over_time(x, jnp.ones(len(x)))
        angles = rotary_table(rows, columns, head_channels(width, self.heads))
        x = einops.rearrange(x, "b h w d -> b (h w) d")
        x, _ = Layer(self.heads, self.dtype, self.attention, name="layer")(x, None, None, angles)
        return einops.rearrange(x, "b (h w) d -> b h w d", h=rows), None


class Tower(nn.Module):
    """Layers over the patches of images, or of videos with `over_time`; the other fields as in `PatchAutoencoder`."""

    depth: int
    heads: int
    over_time: bool
    remat: str
    attention: str
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, t, h, w, D) -> like x."""
        count, frames = x.shape[:2]
        layers = stack(PatchLayer, self.depth, self.remat)
        x = einops.rearrange(x, "b t h w d -> (b t) h w d")
        x, _ = layers(self.heads, frames if self.over_time else 0, self.dtype, self.attention, name="layers")(x)
        x = RMSNorm(self.dtype, name="norm")(x)
        return einops.rearrange(x, "(b t) h w d -> b t h w d", b=count)


class PatchAutoencoder(nn.Module):
    """Images to a vector for each patch, and back. It has no conditions.

    Attributes:
      channels: channels of a vector.
      width, depth, heads: of the encoder's and of the decoder's transformer.
      patch_size: pixels along a patch's side; must divide the image's.
      frame_patch: frames of a chunk of a video. The first frame is a chunk by itself, so that a video has
        1 + k frame_patch frames and an image is a video of one; a chunk is encoded and decoded without those after
        it. With 0, each frame is an image.
      remat: see `layers.stack`.
      attention: see `layers.attend`.
    """

    channels: int
    width: int = 384
    depth: int = 6
    heads: int = 6
    patch_size: int = 4
    frame_patch: int = 0
    remat: str = "cheap"
    attention: str = "auto"
    dtype: Any = jnp.float32

    unconditional: ClassVar[bool] = True
    MAY_BE_0: ClassVar[tuple[str, ...]] = ("frame_patch",)

    def setup(self):
        """Builds the layers."""
        tower = (self.depth, self.heads, self.frame_patch > 0, self.remat, self.attention, self.dtype)
        self.encoder, self.decoder = Tower(*tower), Tower(*tower)
        self.embed, self.embed_chunk = (nn.Dense(self.width, dtype=self.dtype) for _ in range(2))
        self.vector = nn.Dense(self.channels, dtype=jnp.float32)
        self.from_vector = nn.Dense(self.width, dtype=self.dtype)
        pixels = 3 * self.patch_size**2
        self.out, self.out_chunk = (nn.Dense(pixels * n, dtype=jnp.float32) for n in (1, max(self.frame_patch, 1)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """See `encode` and `decode`: images -> images."""
        return self.decode(self.encode(x))

    def encode(self, x: jax.Array) -> jax.Array:
        """Images to vectors, float32 (B, t, h, w, channels).

        Args:
          x: float32 (B, T, H, W, 3) in [-1, 1].

        Raises:
          UserError: the patches do not divide the images, or the chunks the frames after the first.
        """
        patches = patchify(x, self.patch_size)  # (B, T, h, w, p p 3)
        if self.frame_patch:
            first, rest = patches[:, :1], patches[:, 1:]
            if rest.shape[1] % self.frame_patch:
                raise UserError(
                    f"frame_patch {self.frame_patch} needs videos of 1 + k {self.frame_patch} frames, got "
                    f"{x.shape[1]}: change data.frames or method.net.frame_patch"
                )
            y = self.embed(first)
            if rest.shape[1]:
                chunks = einops.rearrange(rest, "b (t q) h w p -> b t h w (q p)", q=self.frame_patch)
                y = jnp.concatenate([y, self.embed_chunk(chunks)], axis=1)
        else:
            y = self.embed(patches)
        return self.vector(self.encoder(y))

    def decode(self, vectors: jax.Array) -> jax.Array:
        """(B, t, h, w, channels) -> float32 (B, T, H, W, 3), which is not clipped to [-1, 1]."""
        y = self.decoder(self.from_vector(vectors))
        if not self.frame_patch:
            return unpatchify(self.out(y), self.patch_size)
        made = self.out(y[:, :1])
        if y.shape[1] > 1:
            rest = einops.rearrange(self.out_chunk(y[:, 1:]), "b t h w (q p) -> b (t q) h w p", q=self.frame_patch)
            made = jnp.concatenate([made, rest], axis=1)
        return unpatchify(made, self.patch_size)
