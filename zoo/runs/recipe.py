"""A config with the objects built from it: data, method, optimizers, and frozen networks."""

import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from zoo import conditions
from zoo import config as configs
from zoo.compiling import compiled_for_once
from zoo.conditions import NEGATIVE
from zoo.data import pipeline
from zoo.data.text import Tokenizer
from zoo.errors import UserError, unknown_name_error
from zoo.families import build_method
from zoo.method import Axis, Batch, Generates, Upsamples, may_be_new, to_float, trained
from zoo.runs.codec import NAME, Codec
from zoo.runs.data import Data, SubjectData, build_data
from zoo.runs.sampler import Sampler, sample_options
from zoo.training import cost, optim, parallel, state
from zoo.trees import completed, first_difference, flatten

SEEDS = 2**32  # as many as numpy has
GRID = 16  # captions of the sample grid


class Opens(Protocol):
    """Opens the dependencies of a recipe, see `dependencies.Dependencies`.

    Attributes:
      runs: the opened networks by name.
    """

    runs: dict[str, Any]

    @property
    def frozen(self) -> dict[str, Any]:
        """Parameters of the frozen networks by name."""
        ...

    @property
    def metadata(self) -> dict[str, Any]:
        """Names, hashes and metadata of the frozen networks, as JSON can write them."""
        ...

    def init_run(self, config: configs.Config) -> Any:
        """Opens the run of `config.init`; None where it names none."""
        ...

    def release_init(self) -> None:
        """Releases the run that `init_run` opened."""
        ...

    def codec(self, data: Data) -> Codec | None:
        """Opens the autoencoder of `data.latents`, or the tokenizer of `data.codes`."""
        ...

    def open_for(self, recipe: "Recipe", key: str, name: str, value: str, protocol: Any) -> Any:
        """Opens the dependency of a field of the recipe's method, and returns the static part of it."""
        ...

    def freeze_base(self, config: configs.Config) -> None:
        """Makes the run of `config.init` the frozen network `base`."""
        ...

    def write(self, workdir: Path) -> None:
        """Writes the networks that are runs to WORKDIR/frozen."""
        ...

    def exact(self) -> "Opens":
        """Returns the same dependencies with runs that compute in float32."""
        ...


class Recipe:
    """A config with its objects.

    Attributes:
      config: whole config.
      tokenizer: tokenizer of the captions.
      dependencies: opener of the frozen networks.
      data: section `data` of the config, built.
      codec: autoencoder of `data.latents` or tokenizer of `data.codes`, or None.
      method: section `method` of the config, built.
      optimizers: optimizer of each player.
      shape: shape of one input, (T, H, W, C).
      names: names of the conditions that its data has.
      frame_rate: frames/s of its data; None for images.
      new_parts: names of modules that the run of `config.init` lacks.
      prior: images that the base made, for methods that read them; None before they are made.

    Args:
      config: whole config.
      tokenizer: tokenizer of the captions.
      dependencies: opener of the frozen networks.
      names: names of the conditions that its data has.
      frame_rate: frames/s of its data; None for images.

    Raises:
      UserError: the config has a key that nobody reads, or a value that cannot be used.
    """

    SECTIONS = ("seed", "dtype", "init", "data", "method", "players", "loop", "sample")

    def __init__(
        self,
        config: configs.Config,
        tokenizer: Tokenizer,
        dependencies: Opens,
        names: tuple[str, ...] = ("tokens",),
        frame_rate: float | None = None,
    ):
        check_sections(config)
        self.frame_rate = frame_rate
        self.config, self.tokenizer, self.dependencies, self.names = config, tokenizer, dependencies, names
        self.data = build_data(config.data)
        self.codec = dependencies.codec(self.data)
        if self.codec and self.data.flip:
            raise UserError("data.flip mirrors images, and data.latents and data.codes encode them before: drop one")
        open_dependency = functools.partial(dependencies.open_for, self)
        codes = self.codec.codes if self.codec else None
        self.method = build_method(config.method, tokenizer.vocab_size, config.dtype, open_dependency, codes=codes)
        if bool(self.data.images) != getattr(self.method, "READS_IMAGES", False):
            raise UserError(
                f"data.images {self.data.images!r}: the method joint reads images beside videos, and it alone does; "
                f"method.name is {config.method.name}"
            )
        if getattr(self.method, "INIT_IS_BASE", False):
            dependencies.freeze_base(config)
        self.optimizers = optim.build_all(config.players, self.method.players)
        if isinstance(self.method, Upsamples):
            self._check_stage(self.method)
        self.shape = self.codec.shape(dependencies.frozen, self.data.shape) if self.codec else self.data.shape
        if isinstance(self.method, Generates):
            sample_options(self.method, dict(config.sample))
        elif config.sample:
            raise unknown_name_error("sampling option", next(iter(config.sample)), ())
        self.new_parts: list[str] = []
        self.prior: pipeline.Source | None = None
        self._start = self._params_of_init()
        dependencies.release_init()

    def _check_stage(self, stage: Upsamples) -> None:
        """Raises UserError where a stage of a cascade does not fit the data."""
        if self.codec:
            raise UserError("data.latents: a stage of a cascade draws pixels from pixels: set it and data.codes to ''")
        own = pipeline.smaller_by(self.data.source)
        if own != stage.resizing:
            raise UserError(
                f"method.resizing {stage.resizing!r}: small images of {self.data.source} are made by {own!r}: set it"
            )

    @property
    def encoding(self) -> str | None:
        """Identity of the codec: the hash of its parameters, or its name; None without one."""
        run = self.dependencies.runs.get(NAME)
        return run.identity if run else self.data.codes or None

    def exact(self) -> "Recipe":
        """Returns the same recipe with networks that compute in float32, its dependencies' too."""
        config = self.config.copy_and_resolve_references()
        config.dtype = "float32"
        return Recipe(config, self.tokenizer, self.dependencies.exact(), self.names, self.frame_rate)

    def metadata(self) -> dict[str, Any]:
        """Returns the part of a checkpoint beside the state, as JSON can write it."""
        return {
            "config": json.loads(configs.to_json(self.config)),
            "tokenizer": json.loads(self.tokenizer.to_json()),
            "latents": self.codec.scale if self.codec else {},
            "conditions": list(self.names),
            "frame_rate": self.frame_rate,
            "frozen": self.dependencies.metadata,
        }

    def conditions(
        self,
        captions: Sequence[str],
        negative: str = "",
        frame_rate: float | None = None,
        frames: int | None = None,
        inputs: Any = None,
    ) -> dict[str, Any]:
        """Returns the conditions of captions, (N, ...).

        Args:
          captions: N texts.
          negative: text from which guidance leads away; "" for the empty caption.
          frame_rate: frames/s; None for that of the data.
          frames: number of frames; None for that of the data. One has no rate.
          inputs: real images or videos under the captions, uint8 (N, T, H, W, C), whose small versions a stage of a
            cascade is given; other families do not look at them.
        """
        if frame_rate is not None:
            self.check_frame_rate(frame_rate, frames)
        rate = 0.0 if frames == 1 else self.frame_rate if frame_rate is None else frame_rate
        rate = rate and rate / (self.codec.chunk if self.codec else 1)  # networks draw chunks
        items = lambda lines: [{"text": line, "frame_rate": rate} for line in lines]
        encode = lambda lines: conditions.encode(self.names, items(lines), self.tokenizer.encode)
        made = encode(captions) | ({NEGATIVE: encode([negative] * len(captions))} if negative else {})
        if inputs is not None and isinstance(self.method, Upsamples):
            made |= jax.tree.map(np.asarray, dict(self.method.given_by(to_float(jnp.asarray(inputs)))))
        return made

    def check_frame_rate(self, frame_rate: float, frames: int | None = None) -> None:
        """Raises UserError for a frame rate that no video has, or one of images or of a single frame."""
        if self.frame_rate is None:
            raise UserError(f"{frame_rate:g} frames/s: this run makes images, which have no frame rate")
        if frames == 1:
            raise UserError(f"{frame_rate:g} frames/s: one frame has no frame rate")
        if not 0 < frame_rate < math.inf:
            raise UserError(f"the frame rate must be above 0, got {frame_rate:g}")

    def shown(self, source: pipeline.Source, prompts: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """Returns the captions of the sample grid, and their conditions.

        Args:
          source: opened test split.
          prompts: captions; by default those of items spread over the source. A stage of a cascade is given the items.

        Raises:
          UserError: prompts for a stage, which would not fit what it is given.
        """
        if not isinstance(self.method, Upsamples):
            captions = list(prompts) or pipeline.captions(source, limit=GRID)
            return captions, self.conditions(captions)
        if prompts:
            raise UserError("loop.grid_prompts: a stage of a cascade draws its grid from the test split: set it to ()")
        items = [source[i] for i in pipeline.spread(source, GRID)]
        captions = [item["text"] for item in items]
        return captions, self.conditions(captions, inputs=np.stack([item["inputs"] for item in items]))

    def encoded(self, source: pipeline.Source, split: str, images: bool = False) -> pipeline.Source:
        """Returns an opened split as the network gets it: encoded by the codec, if there is one.

        Args:
          source: opened split, of `data.source` or `data.images`.
          split: name of the split.
          images: whether it is of `data.images`.
        """
        if self.codec is None:
            return source
        name, frames = (self.data.images, 1) if images else (self.data.source, self.data.frames)
        about = {"data": name, "split": split, "size": self.data.size, "frames": frames} | getattr(source, "about", {})
        return self.codec.source(self.dependencies.frozen, source, about)

    @functools.cache  # noqa: B019, opening may decode a whole folder
    def images(self, split: str) -> pipeline.Source:
        """Returns a split of `data.images` as the network gets it, opened once."""
        return self.encoded(self.data.open_images(split), split, images=True)

    def stream(self, source: pipeline.Source, start: int = 0, split: str = "train") -> Iterator[Batch]:
        """Returns this process's part of each batch, with `images` or `prior` where there are any.

        Args:
          source: opened split of `data.source`.
          start: step to begin at.
          split: name of the split, for the images.
        """
        batches = self._stream(source, self.data.batch_size, start)
        beside = {}
        if self.data.images:
            beside["images"] = self._stream(self.images(split), self.data.images_batch_size, start)
        if self.prior is not None:
            beside["prior"] = self._stream(self.prior, self.data.batch_size, start)
        return ({**batch, **{name: next(more) for name, more in beside.items()}} for batch in batches)

    def _stream(self, source: pipeline.Source, batch_size: int, start: int) -> Iterator[Batch]:
        return pipeline.stream(
            source,
            self.tokenizer,
            batch_size,
            seed=self.config.seed,
            names=self.names,
            start=start,
            flip=self.data.flip,
            negatives=self.data.negatives,
            shard=(jax.process_index(), jax.process_count()),
            threads=self.data.threads or None,
            workers=self.data.workers,
        )

    def blank_batch(self, count: int, frames: int = 0) -> Batch:
        """Returns a batch of `count` blank inputs, of the data's frames or as many, and empty captions."""
        frames = frames or (1 if isinstance(self.data, SubjectData) else self.shape[0])
        batch = self._blank(count, frames)
        if self.data.images:
            batch["images"] = self._blank(max(1, count * self.data.images_batch_size // self.data.batch_size), 1)
        if getattr(self.method, "READS_PRIOR", False):
            batch["prior"] = self._blank(count, frames)
        return batch

    def _blank(self, count: int, frames: int) -> dict[str, Any]:
        keys = ("cond", "negatives") if self.data.negatives else ("cond",)
        dtype = self.codec.dtype if self.codec else jnp.uint8
        inputs = jnp.zeros((count, frames, *self.shape[1:]), dtype)
        return {"inputs": inputs} | dict.fromkeys(keys, self.conditions([""] * count))

    def create_state(self) -> state.State:
        """Returns a state with fresh parameters, drawn with the config's seed, on the host.

        To compile it for an accelerator took up to nine tenths of the time that the training step takes.
        """
        with jax.default_device(parallel.host()), compiled_for_once():
            key, _ = state.split_seed(self.config.seed)
            return jax.jit(functools.partial(state.create, self.method, self.optimizers))(key, self.blank_batch(1))

    def initial_state(self) -> state.State:
        """Returns the state before the first step, from the `config.init` run if there is one; call it once."""
        drawn, start = self.create_state(), self._start
        self._start = {}  # once is enough, and they are large
        return drawn.start_from({player: completed(own, drawn.params[player]) for player, own in start.items()})

    def _params_of_init(self) -> dict[str, Any]:
        """Parameters of players to start from; none if there is no such run, or if it is the frozen base.

        Raises:
          UserError: the run lacks the players, or one of them has parameters of other shapes.
        """
        run, name = self.dependencies.init_run(self.config), self.config.init
        if run is None:
            return {}
        if run.recipe.encoding != self.encoding:
            raise UserError(f"init: {name} was trained with another data.latents or data.codes; give both the same")
        base = getattr(self.method, "INIT_IS_BASE", False)
        method = getattr(self.method, "base") if base else self.method  # noqa: B009, not every method has one
        fresh = jax.eval_shape(method.init, jax.random.key(0), self.blank_batch(1))
        shared = {player: params for player, params in trained(run.method, run.params).items() if player in fresh}
        lacking = [player for player in fresh if player not in shared]
        if lacking and (base or not shared):
            raise UserError(f"init: {name} is a {type(run.method).__name__} without {lacking[0]}; name another run")
        allowed = set() if base else set(may_be_new(method))
        for player, params in shared.items():
            new = [set(path.split("/")) & allowed for path in flatten(fresh[player]).keys() - flatten(params).keys()]
            self.new_parts += sorted(set().union(*new))
            difference = first_difference(params, fresh[player], allowed)
            if difference:
                changes = configs.differences(run.recipe.config, self.config)
                keys = "; ".join(change for change in changes if change.startswith(("method.", "data.")))
                raise UserError(f"init: {name} has another {player}, {difference}; its config differs in {keys}")
        return {} if base else shared

    def step(self, total_steps: int, accumulate: int = 1, axis: Axis | None = None) -> state.Step:
        """Returns the training step.

        Args:
          total_steps: steps of the whole run.
          accumulate: parts in which a device takes its batch.
          axis: devices that train together; None for one alone.
        """
        return state.Step(self.method, self.optimizers, total_steps, self.config.seed, axis or Axis(), accumulate)

    def step_flops(self, accumulate: int = 1) -> int:
        """Returns the matmul FLOPs of one step on all devices."""
        count = parallel.per_device(self.data.batch_size, accumulate)
        batch = jax.eval_shape(lambda: jax.tree.map(lambda x: x[None], self.blank_batch(count)))
        arguments = self.state_shapes(), self.dependencies.frozen, batch
        return cost.matmul_flops(self.step(1, accumulate), *arguments) * jax.device_count()

    def state_shapes(self) -> state.State:
        """Returns the state with shapes in place of arrays."""
        return jax.eval_shape(self.create_state)

    def sampler(self, per_device: int = 16, frames: int | None = None, **options: Any) -> Sampler:
        """Returns a sampler with the config's options, changed by those given.

        Args:
          per_device: samples that a device makes at once.
          frames: number of frames; None for that of the data.
          **options: sampling options.

        Raises:
          UserError: an option does not exist or has a wrong value, several frames of a run on images, or networks
            that are made for another number of frames.
        """
        if frames is not None and (not isinstance(frames, int) or frames < 1):
            raise UserError(f"frames must be a whole number of at least 1, got {frames!r}")
        count: int = frames or self.data.frames
        if count > 1 and self.frame_rate is None:
            raise UserError(f"this run makes images, and {count} frames are a video: name a run of videos")
        shape = self._encoded_shape(count)
        if shape != self.shape:
            fresh = lambda frames: jax.eval_shape(self.method.init, jax.random.key(0), self.blank_batch(1, frames))
            difference = first_difference(fresh(shape[0]), fresh(self.shape[0]), may_be_new(self.method))
            if difference:
                own = self.data.frames
                raise UserError(f"this run makes {own} frames alone, not {count}: with them, {difference}")
        return Sampler(self.method, shape, dict(self.config.sample) | options, per_device, self.codec, count)

    def _encoded_shape(self, frames: int) -> tuple[int, ...]:
        """Shape of the network's part of a sample of so many frames, (T, H, W, C)."""
        if self.codec is None:
            return (frames, *self.data.shape[1:])
        shape = (self.codec.whole_frames(frames), *self.data.shape[1:])
        return self.codec.shape(self.dependencies.frozen, shape)


def check_sections(config: Mapping[str, Any]) -> None:
    """Raises UserError where the config's top level has an unknown key or lacks one."""
    for key in config:
        if key not in Recipe.SECTIONS:
            raise unknown_name_error("config key", key, Recipe.SECTIONS)
    missing = [key for key in Recipe.SECTIONS if key not in config]
    if missing:
        raise UserError(f"the config lacks {', '.join(missing)}")
    if not 0 <= config["seed"] < SEEDS:
        raise UserError(f"seed must be at least 0 and below {SEEDS}, got {config['seed']}")
