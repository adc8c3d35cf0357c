"""A recipe put together, and a workdir opened: config + tokenizer + method + parameters, ready to sample."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from zoo import config as configs
from zoo.data import pipeline
from zoo.data.text import Tokenizer
from zoo.errors import BadInput, unknown
from zoo.latents import Codec
from zoo.method import Batch, Method, to_uint8
from zoo.training import optim, state
from zoo.training.checkpoint import Checkpoints
from zoo.trees import first_difference

CAPTIONS_FOR_TOKENIZER = 100_000


@dataclasses.dataclass(frozen=True)
class Data:
    """What a run is trained on; the fields are the keys of `config.data`.

    Attributes:
      source: see `data.pipeline.open_source`.
      size: pixels along a side; frames: of a clip, 1 for pictures.
      batch_size: over all devices of all processes.
      text_length, vocab_size: of the tokenizer.
      flip: mirror a random half of the pictures; wrong where captions say "left".
      negatives: give with each caption one that is wrong by a word, see `data.negatives`.
      latents: workdir of a trained autoencoder, whose latents then take the place of the pixels; "" for none.
    """

    source: str
    size: int
    frames: int = 1
    batch_size: int = 64
    text_length: int = 32
    vocab_size: int = 1024
    flip: bool = False
    negatives: bool = False
    latents: str = ""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one example: (T, H, W, C)."""
        return self.frames, self.size, self.size, 3

    def open(self, split: str) -> pipeline.Source:
        return pipeline.open_source(self.source, split, self.size, self.frames)

    def train_tokenizer(self, source: pipeline.Source) -> Tokenizer:
        """A tokenizer of the source's captions."""
        captions = pipeline.captions(source, limit=CAPTIONS_FOR_TOKENIZER)
        return Tokenizer.train(captions, self.vocab_size, self.text_length)


class Recipe:
    """A config with its objects: `data`, `method`, `optimizers`, and where `data.latents` names a run, its `codec`.

    Attributes:
      shape: of one example as the method sees it, (T, H, W, C).

    Raises:
      BadInput: the config has a key that nobody reads, or a value that cannot be.
    """

    SECTIONS = ("seed", "dtype", "init", "data", "method", "players", "loop", "sample")

    def __init__(self, config: ml_collections.ConfigDict, tokenizer: Tokenizer, codec: Codec | None = None):
        check_sections(config)
        self.config, self.tokenizer, self.codec = config, tokenizer, codec
        self.data = configs.build(Data, config.data, "data")
        self.method = self._with_runs(configs.build_method(config, tokenizer.vocab_size))
        self.optimizers = optim.build_all(config.players, self.method.players)
        self.shape = codec.shape(self.data.shape) if codec else self.data.shape
        configs.check_sampling(self.method, config.sample)
        if codec and self.data.flip:
            raise BadInput("data.flip mirrors pixels, and data.latents takes their place: drop one of them")

    def _with_runs(self, method: Method) -> Method:
        """The method with the finished runs that it looks through, see `method.Leaning`."""
        frozen = {}
        for key, workdir in getattr(method, "needs_runs", {}).items():
            run = open_named(key, workdir)
            if run.recipe.tokenizer.to_json() != self.tokenizer.to_json():
                raise BadInput(
                    f"{key}: {workdir} reads captions by another tokenizer; train it on the same data, or "
                    f"start from it by --config.init={workdir}"
                )
            if run.recipe.data.shape != self.data.shape:
                raise BadInput(f"{key}: {workdir} sees examples of {run.recipe.data.shape}, not {self.data.shape}")
            if (run.recipe.codec and run.recipe.codec.identity) != (self.codec and self.codec.identity):
                raise BadInput(f"{key}: {workdir} was trained with another data.latents; give both the same")
            frozen[key] = run.recipe.method, run.params
        return method.given(frozen) if frozen else method

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> "Recipe":
        """The recipe of a checkpoint, see `Checkpoints.texts`."""
        config = configs.from_json(texts["config"])
        check_sections(config)
        data = configs.build(Data, config.data, "data")
        return cls(config, Tokenizer.from_json(texts["tokenizer"]), saved_codec(data, json.loads(texts["latents"])))

    def texts(self) -> dict[str, str]:
        """All but the state that a checkpoint holds; `from_texts` reads it."""
        latents = {}
        if self.codec:
            latents = {"checkpoint": self.codec.checkpoint, "identity": self.codec.identity} | self.codec.scale
        return {
            "config": configs.to_json(self.config),
            "tokenizer": self.tokenizer.to_json(),
            "latents": json.dumps(latents),
        }

    def stream(self, source: pipeline.Source, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """This process's part of each batch, from step `start` on."""
        return pipeline.stream(
            source,
            self.tokenizer,
            self.data.batch_size,
            seed=self.config.seed,
            start=start,
            flip=self.data.flip,
            negatives=self.data.negatives,
            shard=(jax.process_index(), jax.process_count()),
        )

    def blank_batch(self, count: int) -> Batch:
        """A batch of the right shapes."""
        tokens = ("tokens", "negatives") if self.data.negatives else ("tokens",)
        return {
            "pixels": jnp.zeros((count, *self.shape), jnp.float32 if self.codec else jnp.uint8),
            **{name: jnp.zeros((count, self.data.text_length), jnp.int32) for name in tokens},
        }

    def create_state(self) -> state.State:
        """The state before the first step, drawn by the seed."""
        key, _ = state.split_seed(self.config.seed)
        return jax.jit(functools.partial(state.create, self.method, self.optimizers))(key, self.blank_batch(1))

    def first_state(self) -> state.State:
        """The state before the first step: what `config.init` learned, where it names a run, in place of what is drawn.

        Raises:
          BadInput: no such run, or a player that both have has parameters of other shapes.
        """
        drawn = self.create_state()
        if not self.config.init:
            if getattr(self.method, "needs_init", False):
                raise BadInput(f"{type(self.method).__name__} changes a trained run: name it by --config.init=RUN")
            return drawn
        run = open_named("init", self.config.init)
        shared = {player: params for player, params in run.params.items() if player in drawn.params}
        for player, params in shared.items():
            difference = first_difference(params, drawn.params[player])
            if difference:
                raise BadInput(f"init: {self.config.init} has another {player}, {difference}; use its settings")
        return drawn.start_from(shared)

    def state_shapes(self) -> state.State:
        """The state with shapes in place of arrays."""
        return jax.eval_shape(self.create_state)

    def sampler(self, per_device: int = 16, **options) -> "Sampler":
        """A sampler with the config's options, changed by those given."""
        return Sampler(self.method, self.shape, per_device, self.codec, **dict(self.config.sample) | options)


def prepare(
    config: ml_collections.ConfigDict, saved: Mapping[str, str] | None = None
) -> tuple[pipeline.Source, Recipe]:
    """Opens the training data of a config and puts its recipe together.

    Args:
      config: a whole config.
      saved: what a checkpoint of it says, see `Recipe.texts`; by default a new run: its tokenizer is trained, and its
        latents are measured.
    """
    check_sections(config)
    data = configs.build(Data, config.data, "data")
    source = data.open("train")
    tokenizer = Tokenizer.from_json(saved["tokenizer"]) if saved else first_tokenizer(config, data, source)
    codec = None
    if data.latents:
        codec = saved_codec(data, json.loads(saved["latents"])) if saved else open_codec(data).measured(source)
    recipe = Recipe(config, tokenizer, codec)
    if codec:
        source = codec.source(source, {"data": data.source, "split": "train", "size": data.size, "frames": data.frames})
    return source, recipe


def open_codec(data: Data, checkpoint: int | None = None) -> Codec:
    """The autoencoder of `data.latents`; the scale of its latents is not known yet.

    Raises:
      BadInput: it is missing, is no autoencoder, or was trained on pictures of another size.
    """
    run = open_named("data.latents", data.latents, checkpoint)
    for name in ("encode", "decode"):
        configs.ability(run.recipe.method, name)
    if run.recipe.data.size != data.size:
        raise BadInput(
            f"data.latents: {data.latents} was trained on pictures of {run.recipe.data.size} px, and data.size is "
            f"{data.size}; change one of them"
        )
    return Codec(run.recipe.method, run.params, run.step)


def open_named(key: str, workdir: str, checkpoint: int | None = None) -> "Run":
    """The run that a key of the config names, which errors tell."""
    try:
        return Run.open(workdir, checkpoint)
    except BadInput as error:
        raise BadInput(f"{key}: {error}") from None


def first_tokenizer(config: ml_collections.ConfigDict, data: Data, source: pipeline.Source) -> Tokenizer:
    """That of the run that `config.init` names, whose parameters know its words by their numbers; else a new one."""
    if not config.init:
        return data.train_tokenizer(source)
    tokenizer = open_named("init", config.init).recipe.tokenizer
    if tokenizer.length != data.text_length:
        raise BadInput(
            f"init: {config.init} reads captions of {tokenizer.length} tokens, and data.text_length is "
            f"{data.text_length}; change the latter"
        )
    return tokenizer


def saved_codec(data: Data, saved: Mapping[str, Any]) -> Codec | None:
    """The autoencoder that a run was trained with; None where there was none."""
    if not saved:
        return None
    codec = open_codec(data, saved["checkpoint"])
    if codec.identity != saved["identity"]:
        raise BadInput(f"data.latents: {data.latents} is not the autoencoder that this run was trained with")
    return dataclasses.replace(codec, mean=np.array(saved["mean"]), std=np.array(saved["std"]))


def check_sections(config: Mapping[str, Any]) -> None:
    """Raises BadInput where the config's top level has an unknown key or lacks one."""
    for key in config:
        if key not in Recipe.SECTIONS:
            raise unknown("config key", key, Recipe.SECTIONS)
    missing = [key for key in Recipe.SECTIONS if key not in config]
    if missing:
        raise BadInput(f"the config lacks {', '.join(missing)}")


class Sampler:
    """A method's sampling, compiled for all local devices.

    Picture i depends on (seed, i) and its prompt alone: every device always makes `per_device` pictures at once, so
    that the compiled program is the same however many are asked for and whatever the number of devices.

    Args:
      method: the family.
      shape: of one example, (T, H, W, C).
      per_device: pictures that a device makes at once.
      codec: makes pictures of the latents that the method samples; None where it samples pictures.
      **options: see `method.sample`.
    """

    def __init__(
        self, method: Method, shape: tuple[int, ...], per_device: int = 16, codec: Codec | None = None, **options
    ):
        sample = configs.ability(method, "sample")
        configs.check_sampling(method, options)
        self.devices, self.per_device = jax.local_devices(), per_device
        self._decoder = codec.params if codec else ()
        decode = codec.decode if codec else lambda _, pixels: pixels

        def make(params, decoder, traced, key, index, tokens):
            keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
            return to_uint8(decode(decoder, sample(params, keys, tokens, shape, **options, **traced)))

        self._make = jax.pmap(make, in_axes=(None, None, None, None, 0, 0), devices=self.devices)

    def __call__(self, params, tokens: np.ndarray, seed: int, **traced) -> np.ndarray:
        """Makes one picture for each caption.

        Args:
          params: of all players.
          tokens: (N, L).
          seed: the pictures are number 0 onwards of it.
          **traced: options that hold arrays, such as a guide.

        Returns:
          uint8 (N, T, H, W, C).
        """
        count = len(self.devices) * self.per_device
        made = []
        for start in range(0, len(tokens), count):
            part = tokens[start : start + count]
            out = self._make(*self._arguments(params, part, seed, start, traced))
            made.append(np.asarray(out).reshape(count, *out.shape[2:])[: len(part)])
        return np.concatenate(made)

    def compile(self, params, tokens: np.ndarray, **traced) -> None:
        """Compiles for arguments of these shapes; calls with others fail afterwards."""
        arguments = self._arguments(params, tokens[:1], 0, 0, traced)
        self._make = self._make.lower(*arguments).compile()

    def check(self, params, tokens: np.ndarray) -> None:
        """Raises what a call would raise, without compiling."""
        jax.eval_shape(self._make, *self._arguments(params, tokens[:1], 0, 0, {}))

    def _arguments(self, params, tokens: np.ndarray, seed: int, first: int, traced: dict[str, Any]):
        """The arguments of one call of all devices; too few captions are filled up with the first one."""
        split = len(self.devices), self.per_device
        count = self.per_device * len(self.devices)
        padded = np.concatenate([tokens, np.repeat(tokens[:1], count - len(tokens), axis=0)])
        index = first + np.arange(count)
        return params, self._decoder, traced, jax.random.key(seed), index.reshape(split), padded.reshape(*split, -1)


def pick_params(fields: Mapping[str, Any], ema: str | None) -> dict[str, Any]:
    """The parameters to sample with, of each player.

    Args:
      fields: `params` and `ema` of a state.
      ema: a half-life as in the config, e.g. "500"; "none" for the parameters themselves; None for the longest.
    """

    def pick(player):
        averages = fields["ema"].get(player)
        if ema == "none" or not averages:
            return fields["params"][player]
        name = max(averages, key=float) if ema is None else ema
        if name not in averages:
            raise unknown("EMA half-life", name, [*averages, "none"])
        return averages[name]

    return {player: pick(player) for player in fields["params"]}


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, opened for sampling.

    Attributes:
      recipe: its config and objects.
      step: of the checkpoint.
      params: of each player, on the device.
    """

    recipe: Recipe
    step: int
    params: dict[str, Any]

    @classmethod
    def open(cls, workdir: str | Path, step: int | None = None, ema: str | None = None) -> "Run":
        """Opens a workdir; a run that is still training can be opened too.

        Args:
          workdir: the folder given to train.py.
          step: of the checkpoint; by default the newest that can be read.
          ema: see `pick_params`.

        Raises:
          BadInput: no such folder, no checkpoint, or one that does not fit its config.
        """
        if not Path(workdir).is_dir():
            raise BadInput(f"no such run: {str(workdir)!r} is not a folder")
        checkpoints = Checkpoints(workdir, read_only=True)
        found = checkpoints.texts(step)
        if found is None:
            raise BadInput(f"{workdir} holds no checkpoint; train it first, or wait for its first checkpoint")
        recipe = Recipe.from_texts(found[1])
        shapes = recipe.state_shapes()
        step, fields = checkpoints.restore({"params": shapes.params, "ema": shapes.ema}, step)
        return cls(recipe, step, jax.device_put(pick_params(fields, ema)))

    def sampler(self, per_device: int = 16, **options) -> Sampler:
        """See `Recipe.sampler`."""
        return self.recipe.sampler(per_device, **options)
