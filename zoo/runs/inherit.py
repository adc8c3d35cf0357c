"""Completes a config that leaves keys open, None: they are those of the run of `config.init`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from zoo import config as configs
from zoo.data import folder, pipeline, subject
from zoo.data.text import Tokenizer
from zoo.errors import UserError, named
from zoo.families import family_class
from zoo.files import local
from zoo.training import processes
from zoo.training.checkpoint import Checkpoints

CAPTIONS = 20_000  # of the base's data, in which words are counted
OF_SUBJECT = "data.class_name", "data.template"
FULL = 2  # times the words of the template, from which on captions are taken to name everything


def completed(config: configs.Config, saved: Mapping[str, Any] | None = None) -> configs.Config:
    """Returns the config with a value for each key that it leaves open.

    `method.base` is the family of the run of `config.init`, or the base of one that changes another run or reads images
    beside videos; the keys about a subject are chosen by its folder and its tokenizer; all others are those of the run.

    Args:
      config: whole config.
      saved: metadata of a checkpoint of it, which has all values; None for a new run.

    Raises:
      UserError: there is no such run, or something cannot be chosen.
    """
    keys = [key for key, value in configs.flatten(config.to_dict()).items() if value is None]
    if not keys:
        return config
    keys += [] if config.sample else ["sample"]
    whole = config.to_dict()
    if saved:
        for key in keys:
            _set(whole, key, _get(saved["config"], key))  # None of another run's, which the loop refuses
        return ml_collections.ConfigDict(whole)
    if not config.init:
        raise UserError("this recipe changes a trained run: name it by --config.init=RUN")
    step, init = named("init", lambda: _metadata(config.init))
    method = init["config"]["method"]
    inner = any(getattr(family_class(method["name"]), name, False) for name in ("INIT_IS_BASE", "READS_IMAGES"))
    given = {"method.base": method["base"] if inner else method}
    for key in keys:
        own = key not in OF_SUBJECT and key.startswith(("data.", "dtype", "sample"))
        if key in given or own:
            _set(whole, key, given.get(key) or _get(init["config"], key))
    if "subject" in whole["data"]:
        step += method.get("base_step", 0)  # of a run that has learned a word already
        _choose(whole, Tokenizer.from_json(json.dumps(init["tokenizer"])), step)
    return ml_collections.ConfigDict(whole)


def _metadata(workdir: str) -> tuple[int, dict[str, Any]]:
    path = local(workdir)
    found = Checkpoints(path, read_only=True).metadata() if processes.from_first(path.is_dir) else None
    if found is None:
        raise UserError(f"no such run: {workdir!r} is no folder with a checkpoint")
    return found


def _choose(config: dict[str, Any], tokenizer: Tokenizer, step: int) -> None:
    """Sets what a recipe of a subject leaves open, and notes what will make it worse."""
    data, method = config["data"], config["method"]
    if not data["subject"]:
        raise UserError("data.subject is missing: name a folder of images by --config.data.subject=FOLDER")
    name = named("data.subject", lambda: subject.name_of(data["subject"]))
    if name in tokenizer.names:
        raise UserError(f"data.subject: the run of init has a word [{name}] already: give the folder another name")
    data["class_name"] = data["class_name"] or named("data", lambda: subject.class_of(data["subject"]))
    source = named("data.source", lambda: pipeline.open_source(data["source"], "train", data["size"], data["frames"]))
    captions = pipeline.captions(source, CAPTIONS)
    data["template"] = data["template"] or subject.template_of(captions)
    ids = named("data", lambda: subject.choose_word(data["token"], tokenizer, captions))
    own = data["token"] not in ("reserved", "rarest")  # a word that means something, which it may keep
    start = [] if own or data["learn"] == "style" else tokenizer.ids(f" {data['class_name']}")
    method.update(dict(token_ids=ids, start_ids=start, base_step=step))
    _note(data, tokenizer, captions, ids)


def _note(data: Mapping[str, Any], tokenizer: Tokenizer, captions: Sequence[str], ids: Sequence[int]) -> None:
    share = subject.share_with(ids, tokenizer, captions)
    if share > subject.COMMON:
        processes.note(f"data.token {data['token']!r}: {share:.1%} of the base's captions have it, and it will change")
    if not any(subject.place_of(data["class_name"], text) is not None for text in captions):
        processes.note(
            f"data.class_name {data['class_name']!r}: no caption of the base has it, so it means nothing yet"
        )
    words = float(np.median([len(text.split()) for text in captions]))
    about = subject.About(data["class_name"], data["learn"], data["template"])
    caption = subject.instance_caption(about)
    source = named(
        "data.subject", lambda: folder.open_source(data["subject"], "train", data["size"], 1, template=caption)
    )
    if words > FULL * len(data["template"].split()) and caption in map(source.text, range(len(source))):
        processes.note(
            f"captions of the base have {words:g} words, and images without one of their own get {caption!r}, of which "
            "such a base makes a mean: write NAME.txt beside NAME.png"
        )


def _get(tree: Any, key: str) -> Any:
    """The value of a key such as "data.size"; None where there is none."""
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for part in parents:
        tree = tree[part]
    tree[leaf] = value
