"""Images and videos together: the sum of a family's losses on a batch of videos and on one of images.

Captioned images are many and show how things look; videos are few and show how they move (2204.03458, section 3.1).
"""

import dataclasses
from typing import Any, ClassVar

import jax

from zoo.errors import UserError, check_ranges
from zoo.method import Axis, Batch, HasFakeSample, Output, ReadsGiven, may_be_new
from zoo.trees import first_difference
from zoo.wrappers.compose import Wrapper, all_but


@dataclasses.dataclass(frozen=True)
class Joint(Wrapper):
    """A family that is trained on videos, and on the images of `data.images`.

    Attributes:
      base: family.
      vocab_size: number of token ids.
      dtype: type that networks compute in.
      weight: weight of the loss on images.

    Raises:
      UserError: a weight that is not positive, or a base with other networks for images than for videos.
    """

    base: Any
    vocab_size: int
    dtype: Any
    weight: float = 1.0

    READS_IMAGES: ClassVar[bool] = True  # batch["images"], a second batch of one frame each
    FORWARDS: ClassVar[tuple[type, ...]] = all_but(HasFakeSample, ReadsGiven)

    def __post_init__(self):
        check_ranges(self, weight="(0, inf)")

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Any]:
        """See `Method.init`. Raises UserError where the base's networks for images are not those for videos."""
        params = self.base.init(rng, batch)
        images = jax.eval_shape(self.base.init, rng, batch["images"])
        difference = first_difference(images, params, may_be_new(self.base))
        if difference:
            raise UserError(
                f"method.base: a {type(self.base).__name__} cannot train on images beside videos: for images it is a "
                f"network {difference}"
            )
        return params

    def loss(
        self, player: str, params, batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """See `Method.loss`. `fake` is a video.

        Metrics: the base's, on the videos; `image_loss`, and `loss`, the weighted sum of both.
        """
        rng_videos, rng_images = jax.random.split(rng)
        loss, output = self.base.loss(player, params, batch, rng_videos, axis, step)
        image_loss, _ = self.base.loss(player, params, batch["images"], rng_images, axis, step)
        total = loss + self.weight * image_loss
        return total, Output(
            output.metrics | {"video_loss": loss, "image_loss": image_loss, "loss": total}, output.fake
        )
