"""Opens runs, and the frozen networks that one run takes from another.

A dependency is the workdir of a run, the folder of a published CLIP, or `zoo:clip`, which ships. A new run opens each
once, by its name, and copies those that are runs to WORKDIR/frozen. Later starts read the copies and do not need the
other runs.
"""

import copy
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from safetensors.numpy import save_file

from zoo import conditions, weights
from zoo import config as configs
from zoo.data import pipeline
from zoo.data.text import Tokenizer
from zoo.errors import UserError, named, unknown_name_error
from zoo.families import require
from zoo.files import atomic, local
from zoo.method import Autoencodes, Reward, Tokenizes, trained
from zoo.pretrained import clip as clips
from zoo.runs import codec as codecs
from zoo.runs import prior
from zoo.runs.codec import Codec, Pixels
from zoo.runs.data import Data, SubjectData, build_data
from zoo.runs.recipe import Recipe, check_sections
from zoo.runs.rewards import build_reward
from zoo.runs.run import ClipRun, Run, chosen_fields, pick_params
from zoo.training import parallel, processes
from zoo.training.checkpoint import Checkpoints

FOLDER = "frozen"
SEPARATOR = "|"  # between the keys of a tree in the names of a file; keys themselves may contain "/"


def open_run(workdir: str | Path, step: int | None = None, ema: str | None = None) -> Run:
    """Opens a workdir for sampling; a run that is still training can be opened too.

    Args:
      workdir: folder given to train.py.
      step: step of the checkpoint; by default the newest that can be read.
      ema: see `pick_params`.

    Raises:
      UserError: no such folder, no checkpoint, or one that does not fit its config.
    """
    if not str(workdir):
        raise UserError("no such run: '' is no name of a folder")
    workdir = local(workdir)
    if not processes.from_first(workdir.is_dir):
        raise UserError(f"no such run: {str(workdir)!r} is not a folder")
    checkpoints = Checkpoints(workdir, read_only=True)
    found = checkpoints.metadata(step)
    if found is None:
        raise UserError(f"{workdir} holds no checkpoint; train it first, or wait for its first checkpoint")
    recipe = recipe_of(found[1], functools.partial(read_frozen, workdir), for_training=False)
    shapes = recipe.state_shapes()
    wanted = chosen_fields({"params": shapes.params, "ema": shapes.ema}, ema)
    restored = checkpoints.restore(wanted, step, newest=found[0], partial=True)
    if restored is None:
        raise UserError(f"the checkpoints of {workdir} were deleted meanwhile: run the command again")
    step, fields = restored
    params = pick_params(fields, ema) | {"frozen": recipe.dependencies.frozen}
    return Run(recipe, step, parallel.place(params))


def open_any(name: str, *others: str) -> Run | ClipRun:
    """Opens a run or a CLIP by its name, see the module.

    Args:
      name: name of the dependency.
      *others: other names that the caller accepts, for errors.

    Raises:
      UserError: there is no such thing, or it cannot be read.
    """
    path = local(name)
    name = str(path) if name.startswith("~") else name
    is_folder, is_clip = processes.from_first(
        lambda: [Path(name).is_dir(), clips.is_folder(name) and not (Path(name) / "checkpoints").is_dir()]
    )
    if "/" not in name and ":" not in name and not is_folder:
        known = [*others, *(f"zoo:{shipped}" for shipped in clips.SHIPPED)]
        raise unknown_name_error("network (no folder has this name)", name, known)
    if name.startswith("zoo:") or is_clip:
        clip = clips.load(name)
        return ClipRun(dataclasses.replace(clip, params=parallel.place(clip.params)))
    return open_run(name)


def recipe_of(metadata: Mapping[str, Any], read: Callable[[str], Any], for_training: bool) -> Recipe:
    """Returns the recipe of a checkpoint.

    Args:
      metadata: see `Recipe.metadata`.
      read: name of a frozen network -> its parameters.
      for_training: see `Dependencies`.
    """
    config = configs.from_json(json.dumps(metadata["config"]))
    tokenizer = Tokenizer.from_json(json.dumps(metadata["tokenizer"]))
    return Recipe(config, tokenizer, Dependencies(metadata, read, for_training), *_of_data(metadata))


def _of_data(metadata: Mapping[str, Any]) -> tuple[tuple[str, ...], float | None]:
    """Returns the names of the conditions and the frame rate of the data."""
    return tuple(metadata["conditions"]), metadata["frame_rate"]


def prepare(
    config: configs.Config, saved: Mapping[str, Any] | None = None, workdir: str | Path = ""
) -> tuple[pipeline.Source, Recipe]:
    """Opens the training data of a config and puts its recipe together.

    Args:
      config: whole config.
      saved: metadata of a checkpoint of it; None for a new run.
      workdir: folder of the run; "" where it is not trained. Then images of a subject stand for those that its base
        would make.

    Returns:
      The source, of latents or codes if the config names what makes them, and the recipe.

    Raises:
      UserError: something in the config cannot be used, or the latents would lack a condition of the data.
    """
    check_sections(config)
    data = build_data(config.data)
    source = data.open("train")
    processes.check_same("number of training items", len(source))
    init = None
    if saved:
        dependencies = Dependencies(saved, functools.partial(read_frozen, Path(workdir)))
        tokenizer = Tokenizer.from_json(json.dumps(saved["tokenizer"]))
    else:
        dependencies = Dependencies(source=source)
        init = dependencies.init_run(config)
        made = processes.from_first(lambda: first_tokenizer(config.init, init, data, source).to_json())
        tokenizer = Tokenizer.from_json(made)
        if isinstance(data, SubjectData):
            tokenizer = tokenizer.with_name(data.name, config.method.token_ids)
            if len(source) == 1:
                processes.note(f"data.subject: {data.subject} has one image to train on: its place is learned with it")
    if isinstance(data, SubjectData) and init is not None:
        names, frame_rate = init.recipe.names, init.recipe.frame_rate
    else:
        names, frame_rate = _of_data(saved or processes.from_first(lambda: about_data(data, source[0])))
    recipe = Recipe(config, tokenizer, dependencies, names, frame_rate)
    if data.images:
        processes.check_same("number of training images beside videos", len(recipe.images("train")))
    if isinstance(data, SubjectData) and getattr(recipe.method, "READS_PRIOR", False):
        recipe.prior = (
            _prior(recipe, data, Path(workdir), again=not saved) if workdir else recipe.encoded(source, "train")
        )
    if recipe.codec:
        source = recipe.encoded(source, "train")
        lost = set(names) - set(conditions.of_item(source[0]))
        if lost:
            raise UserError(
                f"data.source: latents and codes keep captions alone, and the data has {', '.join(sorted(lost))}"
            )
    return source, recipe


def _prior(recipe: Recipe, data: SubjectData, workdir: Path, again: bool) -> pipeline.Source:
    """Returns images of the class that the base made, as the network gets them; made again for a new run."""
    base = cast(Run, recipe.dependencies.runs["base"])
    made = prior.made_by(base, lambda: data.class_captions("train", data.prior_num), workdir / prior.FILE, again)
    return recipe.encoded(made, "train")


def about_data(data: Data, item: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the names of the conditions and the frame rate of data, as JSON can write them.

    Args:
      data: section `data` of the config, built.
      item: one of its items.

    Raises:
      UserError: videos without a frame rate.
    """
    frame_rate = item.get("frame_rate")
    if data.frames > 1 and not frame_rate:
        raise UserError(f"data.source: the videos of {data.source} have no frame rate: add it, e.g. ?fps=8")
    return {"conditions": conditions.of_item(item), "frame_rate": frame_rate}


def first_tokenizer(name: str, init: Run | None, data: Data, source: pipeline.Source) -> Tokenizer:
    """Returns the tokenizer of the `config.init` run, so that token ids keep their meaning; else a new one."""
    if init is None:
        return data.train_tokenizer(source)
    tokenizer = init.recipe.tokenizer
    if tokenizer.length != data.text_length:
        raise UserError(
            f"init: {name} was trained with captions of {tokenizer.length} tokens, and data.text_length is "
            f"{data.text_length}; change the latter"
        )
    return tokenizer


class Dependencies:
    """The frozen networks of one recipe, each opened once.

    Attributes:
      runs: the opened networks by name: "latents", "base", and the fields in a method's `DEPENDENCIES`.

    Args:
      saved: metadata of a checkpoint, see `Recipe.metadata`; None for a new run, whose config names the networks.
      read: name of a network -> its parameters, of a saved run.
      for_training: whether to open the reward, which only training needs.
      source: training data of a new run.
    """

    def __init__(
        self,
        saved: Mapping[str, Any] | None = None,
        read: Callable[[str], Any] | None = None,
        for_training: bool = True,
        source: pipeline.Source | None = None,
    ):
        self.runs: dict[str, Run | ClipRun] = {}
        self._values: dict[str, str] = {}
        self._saved, self._for_training, self._source = saved, for_training, source
        self._read: Any = read  # a saved run has one
        self._init: Run | None = None

    @property
    def frozen(self) -> dict[str, Any]:
        """Parameters of the networks by name."""
        params = {name: run.params for name, run in self.runs.items()}
        base = self.runs.get("base")
        return params | ({"base": trained(base.method, base.params)} if base else {})

    @property
    def metadata(self) -> dict[str, Any]:
        """Name in the config, hash and metadata of each network, as JSON can write them."""
        if self._saved:
            return dict(self._saved["frozen"])
        return {
            name: {"value": self._values[name], "hash": run.identity, "metadata": run.metadata()}
            for name, run in self.runs.items()
        }

    def write(self, workdir: Path) -> None:
        """Writes the networks that are runs to WORKDIR/frozen."""
        for name, run in self.runs.items():
            if isinstance(run, Run):
                file = workdir / FOLDER / f"{name}.safetensors"
                arrays = configs.flatten(run.params, separator=SEPARATOR)
                try:
                    with atomic(file) as unfinished:
                        save_file({path: np.asarray(x, order="C") for path, x in arrays.items()}, unfinished)
                except OSError as error:
                    raise UserError(f"{file} cannot be written ({error}): make room, and start again") from None

    def exact(self) -> "Dependencies":
        """Returns the same dependencies with runs that compute in float32."""
        other = copy.copy(self)
        other.runs = {name: run.exact if isinstance(run, Run) else run for name, run in self.runs.items()}
        return other

    def init_run(self, config: configs.Config) -> Run | None:
        """Opens the run of `config.init`; None if it names none, or if this run already has a checkpoint."""
        if config.init and not self._saved and self._init is None:
            self._init = named("init", lambda: open_run(config.init))
        return self._init

    def release_init(self) -> None:
        """Releases the run of `config.init`, so that its parameters leave memory."""
        self._init = None

    def freeze_base(self, config: configs.Config) -> None:
        """Makes the run of `config.init` the frozen network `base`."""
        if self._saved:
            self.open("init", "base", config.init)
            return
        run = self.init_run(config)
        if run is None:
            raise UserError("this method changes a trained run: name it by --config.init=RUN")
        self.runs["base"], self._values["base"] = on_host(run), config.init

    def codec(self, data: Data) -> Codec | None:
        """Opens the autoencoder of `data.latents`, or the tokenizer of `data.codes`.

        Args:
          data: section `data` of the config, built.

        Raises:
          UserError: it is missing, is no autoencoder or tokenizer, or was trained on images of another size.
        """
        if data.codes == codecs.PIXELS:
            return Codec(Pixels(), Pixels.codes)
        key, value, ability = ("codes", data.codes, Tokenizes) if data.codes else ("latents", data.latents, Autoencodes)
        if not value:
            return None
        run = cast(Run, self.open(f"data.{key}", codecs.NAME, value))  # `require` refuses a CLIP
        method = named(f"data.{key}", lambda: require(run.method, ability))
        if data.codes and method.codes is None:
            raise UserError(f"data.codes: {value} makes vectors without codes: name it by data.latents")
        if run.shape[1] != data.size:
            raise UserError(
                f"data.{key}: {value} was trained on images of {run.shape[1]} px, and data.size is {data.size}; "
                "change one of them"
            )
        codec = Codec(method, method.codes if data.codes else None)
        if data.frames > 1 == run.shape[0] and codec.chunk > 1:
            raise UserError(f"data.{key}: {value} makes chunks of videos and was trained on images: train it on videos")
        if self._saved:
            return codec.scaled(self._saved["latents"])
        init = self._init
        if init and init.recipe.codec and init.recipe.encoding == run.identity:  # whose latents have this scale
            return codec.scaled(init.recipe.codec.scale)
        source = cast(pipeline.Source, self._source)
        return codec.scaled(processes.from_first(lambda: codec.measured(self.frozen, source).scale))

    def open_for(self, recipe: Recipe, key: str, name: str, value: str, protocol: Any) -> Any:
        """Opens the dependency of a field of a recipe's method.

        Args:
          recipe: recipe, whose data, tokenizer and codec are known.
          key: key of the config, for errors.
          name: name of the network.
          value: value of the key.
          protocol: ability that is needed.

        Returns:
          The network's method, or a reward; None for a reward that is not opened.
        """
        if protocol is Reward:
            if not self._for_training:
                return None
            run = None if value == "oracle" else self.open(key, name, value, "oracle")
            build = functools.partial(build_reward, run, recipe.data.source, recipe.data.shape, recipe.frame_rate)
            return named(key, lambda: build(recipe.tokenizer, recipe.codec))
        run = self.open(key, name, value)
        check_shared(key, value, run, recipe)
        return named(key, lambda: require(run.method, protocol))

    def open(self, key: str, name: str, value: str, *others: str) -> Run | ClipRun:
        """Opens one network, from the saved run's files or by its name. Raises UserError with the config's key."""
        if name not in self.runs:
            self._values[name] = value
            run = named(key, lambda: self._open(name, value, *others))
            self.runs[name] = on_host(run) if self._for_training else run
        return self.runs[name]

    def _open(self, name: str, value: str, *others: str) -> Run | ClipRun:
        saved = self._saved and self._saved["frozen"].get(name)
        if not saved:
            return open_any(value, *others)
        if saved["metadata"] is None:
            run: Run | ClipRun = open_any(value)
        else:
            params = {"frozen": {}} | dict(self._read(name))  # no file holds an empty dict
            recipe = recipe_of(saved["metadata"], lambda inner: params["frozen"][inner], for_training=False)
            run = Run(recipe, 0, parallel.place(params))
        if run.identity != saved["hash"]:
            place = f"its copy frozen/{name}.safetensors in the workdir" if saved["metadata"] else value
            raise UserError(
                f"the frozen network {name} ({value}) is not the one that this run was trained with: restore {place}"
            )
        return run


def on_host(run: Any) -> Any:
    """Returns a run whose parameters are on the host: training has copies of its own on each device."""
    return dataclasses.replace(run, params=jax.device_get(run.params)) if isinstance(run, Run) else run


def check_shared(key: str, value: str, run: Any, recipe: Recipe) -> None:
    """Raises UserError unless a network has the tokenizer, conditions, image shape and latents of a recipe."""
    if not isinstance(run, Run):
        raise UserError(f"{key}: {value} has a tokenizer of its own; name a run")
    if not run.recipe.tokenizer.is_like(recipe.tokenizer):
        raise UserError(
            f"{key}: {value} has another tokenizer; train it on the same data, or start from it by "
            f"--config.init={value}"
        )
    if run.recipe.names != recipe.names:
        raise UserError(f"{key}: {value} was trained with the conditions {run.recipe.names}, not {recipe.names}")
    if run.shape != recipe.data.shape:
        raise UserError(f"{key}: {value} was trained on images of {run.shape}, not {recipe.data.shape}")
    if run.recipe.encoding != recipe.encoding:
        raise UserError(f"{key}: {value} was trained with another data.latents or data.codes; give both the same")


def read_frozen(workdir: Path, name: str) -> dict[str, Any]:
    """Reads the parameters of a frozen network from WORKDIR/frozen."""
    file = workdir / FOLDER / f"{name}.safetensors"
    tree: dict[str, Any] = {}
    try:
        arrays = weights.read(file)
    except UserError as error:
        raise UserError(f"this run's copy of a network, {file}, cannot be read: restore it ({error})") from None
    for path, array in arrays.items():
        *parents, leaf = path.split(SEPARATOR)
        inner = tree
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = array
    return tree
