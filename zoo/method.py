"""The contract between a family and everything else.

A family is a `Method`: what it trains (`players`), how it starts, and its loss. All other protocols but `Reward` are
abilities that a family has or lacks; `families.require` raises the error for a missing one. They share two conventions:

    rng      one key per sample, (B,), so that a sample does not depend on those beside it
    params   trees of all players; `params["frozen"]` holds the frozen networks by name, where a run has some
"""

import functools
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from zoo.conditions import Cond

Params = Any
Noise = Any  # tree of independent standard Gaussian arrays (B, ...), from which a family makes its samples
Options = Any  # frozen dataclass of the family's own
# inputs: uint8 images (B, T, H, W, C), float32 latents or integer codes; cond: see `conditions`; negatives: a second
# `cond`, of captions that do not fit the inputs, for methods that use it.
Batch = Mapping[str, Any]


@flax.struct.dataclass
class Output:
    """Results of a loss beside its value.

    Attributes:
      metrics: scalars, means over this device's examples.
      fake: differentiable sample of this step, (B, T, H, W, C) in [-1, 1], or None where there is none. Plug-ins attach
        here. If nothing uses it, the compiler drops it.
    """

    metrics: dict[str, jax.Array]
    fake: jax.Array | None = None


class Axis:
    """Collectives over the devices that train together. In this class, a single device, they are the identity."""

    index: Any = 0

    def pmean(self, tree):
        """Mean over devices."""
        return tree

    def all_gather(self, x: jax.Array) -> jax.Array:
        """(B, ...) on each device -> (devices * B, ...) on all, differentiable."""
        return x


@runtime_checkable
class Method(Protocol):
    """A family of models.

    Attributes:
      players: names of the parameter trees, trained in this order within one step.
    """

    players: tuple[str, ...]

    def init(self, rng: jax.Array, batch: Batch) -> dict[str, Params]:
        """Returns fresh parameters, a tree for each player. `rng` is a single key; only shapes of the batch matter."""
        ...

    def loss(
        self, player: str, params: Mapping[str, Params], batch: Batch, rng: jax.Array, axis: Axis, step: jax.Array
    ) -> tuple[jax.Array, Output]:
        """Returns the mean loss over this device's examples, differentiated with respect to params[player] alone.

        Args:
          player: name of the player that is trained.
          params: see the module.
          batch: see `Batch`.
          rng: single key.
          axis: devices that train together.
          step: number of the step from 0, for schedules.
        """
        ...


@runtime_checkable
class Generates(Protocol):
    """Ability to make samples from conditions.

    Attributes:
      SampleOptions: frozen dataclass of the sampling options, whose defaults are the family's.
    """

    SampleOptions: type

    def sample(
        self, params: Mapping[str, Params], rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: Options
    ) -> jax.Array:
        """Makes samples.

        Args:
          params: see the module.
          rng: one key per sample, (B,).
          cond: conditions (B, ...).
          shape: shape of one sample, (T, H, W, C).
          options: a `SampleOptions`.

        Returns:
          Samples (B, T, H, W, C), float32, or int32 codes. Those of images lie in [-1, 1]; `to_uint8` clips values
          outside.
        """
        ...

    def evaluations(self, options: Options, shape: tuple[int, ...]) -> int:
        """Returns how often the network is evaluated for a sample of this shape; a derivative counts as one more.

        Args:
          options: a `SampleOptions`.
          shape: shape of one sample, (T, H, W, C).
        """
        ...


@runtime_checkable
class HasFakeSample(Protocol):
    """Ability to yield a differentiable sample in the loss, `Output.fake`, on which a plug-in can work.

    Attributes:
      fake_kind: "reconstruction" where it is made from the batch's own inputs, as by an autoencoder; else "sample".
      caption_drop: share of the samples whose conditions the family drops in training.
    """

    fake_kind: str
    caption_drop: float


@runtime_checkable
class HasLikelihood(Protocol):
    """Ability to compute the likelihood of an image.

    Attributes:
      LikelihoodOptions: frozen dataclass of the options.
    """

    LikelihoodOptions: type

    def bits_per_dim(self, params: Mapping[str, Params], rng: jax.Array, batch: Batch, options: Options) -> jax.Array:
        """Returns -log2 p(inputs | cond) / dimensions in 256 levels, or an upper bound of it: (B,) float32."""
        ...


@runtime_checkable
class Reconstructs(Protocol):
    """Ability to encode and decode an image."""

    def reconstruct(self, params: Mapping[str, Params], rng: jax.Array, batch: Batch) -> jax.Array:
        """Returns the inputs, encoded and decoded: float32 (B, T, H, W, C) in [-1, 1]."""
        ...


@runtime_checkable
class Invertible(Protocol):
    """Ability to make a sample from noise alone, and to find the noise of an image.

    `sample` with given keys is `generate` of the noise that `draw_noise` draws with them.

    Attributes:
      SampleOptions: frozen dataclass of the options.
      inversion_options: options under which `generate(invert(x))` best reproduces x: without guidance, which leads
        samples away from x, and without noise that is drawn on the way.
    """

    SampleOptions: type
    inversion_options: Mapping[str, Any]

    def draw_noise(self, rng: jax.Array, shape: tuple[int, ...]) -> Noise:
        """Returns noise for one sample of `shape` (T, H, W, C) for each key."""
        ...

    def generate(self, params: Mapping[str, Params], noise: Noise, cond: Cond, options: Options) -> jax.Array:
        """Returns the samples of given noise, like `sample`'s. Nothing is drawn."""
        ...

    def invert(
        self, params: Mapping[str, Params], rng: jax.Array, inputs: jax.Array, cond: Cond, options: Options
    ) -> Noise:
        """Returns noise from which `generate` best reproduces inputs, float32 (B, T, H, W, C) in [-1, 1]."""
        ...


@runtime_checkable
class HasTrajectory(Protocol):
    """Ability to sample in steps, each of which is a draw with a known density.

    Attributes:
      SampleOptions: frozen dataclass of the options.
      trajectory_options: options under which the density is known.
    """

    SampleOptions: type
    trajectory_options: Mapping[str, Any]

    def sample_trajectory(
        self, params: Mapping[str, Params], rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: Options
    ) -> jax.Array:
        """Returns all states of sampling, the last of them the sample: (states, B, T, H, W, C)."""
        ...

    def trajectory_log_prob(
        self, params: Mapping[str, Params], states: jax.Array, cond: Cond, options: Options
    ) -> jax.Array:
        """Returns the log-density of each step that draws, given the state before it: (steps, B), in nats."""
        ...


@runtime_checkable
class Denoises(Protocol):
    """Ability to guide another model of the same path and prediction (autoguidance).

    Attributes:
      path: name of the path from data to noise.
      prediction: meaning of the network's output.
    """

    path: str
    prediction: str

    def apply(self, params: Mapping[str, Params], z: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
        """Returns the raw prediction. z: (B, T, H, W, C); t: (B,) -> like z."""
        ...


@runtime_checkable
class ReadsGiven(Protocol):
    """Ability to be a stage of a cascade: its network reads images that are given beside the noise.

    Attributes:
      reads_given: True. Its conditions may have `given` (B, T, H, W, c), `level` (B,) and `origin` (B, 2), see
        `nets.transformer.Transformer`; and `expected`, like the inputs, see `diffusion.paths.Path.with_expected`.
    """

    reads_given: bool


@runtime_checkable
class Upsamples(Protocol):
    """Ability to draw an image or a video from a smaller one: that of a stage of a cascade.

    Attributes:
      scale: side of its images in units of the small ones' side.
      rate: frame rate of its videos in units of the small ones'.
      prefix: share of the training videos that continue given frames; with 0 it cannot.
      resizing: filter that makes images smaller, a key of `resize.FILTERS`.
      largest_level: largest level of noise in the small ones.
    """

    scale: int
    rate: int
    prefix: float
    resizing: str
    largest_level: float

    def small_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of the small version of one of `shape`, both (T, H, W, C)."""
        ...

    def given_by(self, x: jax.Array) -> Mapping[str, jax.Array]:
        """Returns the conditions that show the small versions of float32 (B, T, H, W, C) in [-1, 1]."""
        ...

    def given_of(
        self, small: np.ndarray, frames: int, prefix: np.ndarray | None = None, level: float = 0.0
    ) -> Mapping[str, Any]:
        """Returns the conditions that show small images or videos.

        Args:
          small: uint8 (N, t, h, w, C).
          frames: of the stage's own videos; those without a frame of `small` are not known.
          prefix: first frames of the stage's own videos, which it continues, uint8 (N, k, H, W, C).
          level: level of noise in the small ones.
        """
        ...


@runtime_checkable
class FeatureExtractor(Protocol):
    """Ability to serve as the frozen feature network of a critic."""

    def features(
        self, params: Mapping[str, Params], inputs: jax.Array, cond: Cond, t: jax.Array | None
    ) -> list[jax.Array]:
        """Returns the activations of each level, (B, T, h, w, D) each, differentiable with respect to the inputs.

        Args:
          params: see the module.
          inputs: float32 (B, T, H, W, C), with noise of level t.
          cond: conditions (B, ...).
          t: noise level (B,) on the linear path of `diffusion.paths`; None for inputs without noise.
        """
        ...


@runtime_checkable
class Scorer(Protocol):
    """Ability to score how well an image fits its caption."""

    def score(self, params: Mapping[str, Params], inputs: jax.Array, cond: Cond) -> jax.Array:
        """Inputs float32 (B, T, H, W, C) in [-1, 1] and conditions -> (B,) float32, higher is better.

        Scores of one run do not compare with those of another.
        """
        ...


@runtime_checkable
class Embeds(Protocol):
    """Ability to turn an image or a video into one vector, as distances between sets of them need."""

    def embed(self, params: Mapping[str, Params], inputs: jax.Array, frame_rate: jax.Array | None) -> jax.Array:
        """Returns a vector of each input, (B, D) float32.

        Args:
          params: see the module.
          inputs: float32 (B, T, H, W, C) in [-1, 1].
          frame_rate: frames/s of videos, (B,); None for images.
        """
        ...


@runtime_checkable
class Autoencodes(Protocol):
    """Ability to make latents on which other families can be trained."""

    def encode(self, params: Mapping[str, Params], inputs: jax.Array) -> jax.Array:
        """Inputs float32 (B, T, H, W, C) in [-1, 1] -> latents float32 (B, T, h, w, c), nothing drawn."""
        ...

    def decode(self, params: Mapping[str, Params], latents: jax.Array) -> jax.Array:
        """Latents -> images float32 in [-1, 1]."""
        ...


@runtime_checkable
class Tokenizes(Protocol):
    """Ability to make codes on which other families can be trained.

    Attributes:
      codes: number of different codes; None where its settings give it none.
      chunk: frames that a code of a video covers, but for those of the first frame, which has codes of its own.
    """

    codes: int | None
    chunk: int

    def to_codes(self, params: Mapping[str, Params], inputs: jax.Array) -> jax.Array:
        """Inputs float32 (B, T, H, W, C) in [-1, 1] -> codes int32 (B, T, h, w, c) in [0, codes)."""
        ...

    def from_codes(self, params: Mapping[str, Params], codes: jax.Array) -> jax.Array:
        """Codes -> images float32 in [-1, 1]."""
        ...


@runtime_checkable
class Fills(Protocol):
    """Ability to draw those codes or vectors of a sample that are missing.

    Attributes:
      SampleOptions: frozen dataclass of the options.
    """

    SampleOptions: type

    def fill(
        self,
        params: Mapping[str, Params],
        rng: jax.Array,
        inputs: jax.Array,
        known: jax.Array,
        cond: Cond,
        options: Options,
    ) -> jax.Array:
        """Returns the inputs with the missing ones drawn.

        Args:
          params: see the module.
          rng: one key per sample, (B,).
          inputs: codes or vectors (B, T, h, w, c).
          known: which places are known, bool (B, T, h, w).
          cond: conditions (B, ...).
          options: a `SampleOptions`.
        """
        ...


@runtime_checkable
class Drafts(Protocol):
    """Ability to guess the next codes of a sequence, which another family then checks, see `decoding.speculative`."""

    def drafter(
        self, params: Mapping[str, Params], cond: Cond, shape: tuple[int, ...], length: int, options: Options
    ) -> Any:
        """Returns a `decoding.speculative.Drafter`.

        Args:
          params: see the module; its own ones.
          cond: conditions (B, ...).
          shape: shape of one sample of codes, (T, h, w, c).
          length: codes of a draft.
          options: the other family's, of which it reads temperature, top_k, top_p and guidance.
        """
        ...


@runtime_checkable
class Speculates(Protocol):
    """Ability to draw codes one after the other, and several in a call of the network where a draft is right.

    Attributes:
      SampleOptions: frozen dataclass of the options. `draft` is None, "jacobi" or something with the ability `Drafts`,
        whose parameters are `params["frozen"]["draft"]`.
    """

    SampleOptions: type

    def sample_counted(
        self, params: Mapping[str, Params], rng: jax.Array, cond: Cond, shape: tuple[int, ...], options: Options
    ) -> tuple[jax.Array, jax.Array]:
        """Returns samples, see `Generates.sample`, and calls of the network until each was done, int32 (B,)."""
        ...


@runtime_checkable
class Reward(Protocol):
    """A reward of samples.

    Attributes:
      differentiable: whether it has a derivative with respect to the samples.
    """

    differentiable: bool

    def __call__(self, frozen: Mapping[str, Params], inputs: jax.Array, cond: Cond) -> jax.Array:
        """Frozen networks by name, samples float32 (B, T, H, W, C) and conditions -> (B,), higher is better."""
        ...


ABILITIES: tuple[type, ...] = (
    Generates,
    HasFakeSample,
    HasLikelihood,
    Reconstructs,
    Invertible,
    HasTrajectory,
    Denoises,
    ReadsGiven,
    Upsamples,
    FeatureExtractor,
    Scorer,
    Embeds,
    Autoencodes,
    Tokenizes,
    Fills,
    Drafts,
    Speculates,
)


def to_float(inputs: jax.Array) -> jax.Array:
    """uint8 images -> float32 in [-1, 1]. Float inputs, such as latents, stay as they are."""
    return inputs.astype(jnp.float32) / 127.5 - 1.0 if inputs.dtype == jnp.uint8 else inputs


def to_uint8(images: jax.Array) -> jax.Array:
    """Turns float images in [-1, 1] to uint8; values outside are clipped. The inverse of `to_float` up to rounding."""
    return jnp.clip(jnp.round((images + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


@functools.partial(jax.vmap, in_axes=(0, None))
def normal_each(rng: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """One Gaussian array of `shape` for each key: (B,) keys -> (B, *shape)."""
    return jax.random.normal(rng, shape)


def split_each(rng: jax.Array) -> jax.Array:
    """A key each (B,) -> two keys each, (2, B)."""
    return jnp.moveaxis(jax.vmap(jax.random.split)(rng), 1, 0)


def fold_each(rng: jax.Array, number: jax.Array | int) -> jax.Array:
    """Folds one number into each of B keys."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(rng, number)


def members(protocol: type) -> list[str]:
    """Returns the names of the members that a protocol requires."""
    functions = [name for name, value in vars(protocol).items() if callable(value) and not name.startswith("_")]
    return sorted({*functions, *protocol.__annotations__})


def has_members(cls: type, protocol: type) -> bool:
    """Whether a class, not an instance, declares all members of a protocol."""
    declared = {name for base in cls.__mro__ for name in getattr(base, "__annotations__", {})}
    return all(name in declared or hasattr(cls, name) for name in members(protocol))


def without_frozen(params: Mapping[str, Params]) -> dict[str, Params]:
    """Trees of the players alone."""
    return {name: tree for name, tree in params.items() if name != "frozen"}


def may_be_new(method: Any) -> tuple[str, ...]:
    """Returns the names of modules that a run may lack from which this one starts, as a method declares them.

    A method with such modules has the attribute `MAY_BE_NEW`; those of a wrapper are its base's.
    """
    inner = (may_be_new(method.base),) if hasattr(method, "base") else ()
    return sum(inner, tuple(getattr(method, "MAY_BE_NEW", ())))


def trained(method: Any, params: Mapping[str, Params]) -> dict[str, Params]:
    """Returns the trees of a run's players; for a rewarded run those of its base, with the changes added."""
    return without_frozen(method.base_params(params) if hasattr(method, "base_params") else params)


def example_frozen(method: Any, rng: jax.Array, batch: Batch) -> dict[str, Params]:
    """Fresh parameters of a method's frozen networks by name, of which only the shapes matter."""
    names = [*getattr(method, "DEPENDENCIES", {}), *(["base"] if getattr(method, "INIT_IS_BASE", False) else [])]
    networks = {name: getattr(method, name) for name in names}
    return {
        name: dict(network.init(rng, batch)) | {"frozen": example_frozen(network, rng, batch)}
        for name, network in networks.items()
        if isinstance(network, Method)
    }
