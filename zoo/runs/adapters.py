"""Changes that runs have learned, in files: written from a run, and added to another one."""

import copy
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from safetensors.numpy import save_file

from zoo import weights
from zoo.adapters import files, lora
from zoo.adapters.words import is_table, set_word
from zoo.data import subject
from zoo.errors import UserError, named
from zoo.files import atomic
from zoo.method import without_frozen
from zoo.runs.run import Run
from zoo.training import parallel, processes
from zoo.trees import flatten, path_name


class Adapter(NamedTuple):
    """A file that is added to a run.

    Attributes:
      file: path of the file.
      strength: 1 for what was learned, 0 for nothing of it.
    """

    file: str
    strength: float = 1.0

    @classmethod
    def of(cls, word: str) -> "Adapter":
        """Reads FILE or FILE@STRENGTH. Raises UserError where the strength is no number."""
        file, at, strength = word.rpartition("@")
        if not at:
            return cls(word)
        try:
            number = float(strength)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{word!r}: {strength!r} is no strength; write FILE@0.5, or FILE for 1")
        return cls(file, number)


def save(run: Run, file: str | Path) -> dict[str, str]:
    """Writes what a run has changed of its base; returns the metadata of the file.

    Args:
      run: a personalized or rewarded run.
      file: path of the file, which ends with .safetensors.

    Raises:
      UserError: the run changes no other, or all parameters of it.
    """
    method: Any = run.method
    if not hasattr(method, "parts"):
        raise UserError(
            f"it is a {type(method).__name__}, which changes no other run: name a personalized or rewarded one"
        )
    config = run.recipe.config
    data: Any = run.recipe.data
    tensors = files.to_tensors(method.parts(run.params), _kernels(run, method.base), method.alpha)
    base = run.recipe.dependencies.metadata["base"]
    about = {"format": "zoo", "base": base["value"], "base_hash": base["hash"], "family": type(method.base).__name__}
    about |= {"rank": str(config.method.rank), "alpha": str(config.method.alpha)}
    if "subject" in config.data:
        words = {"token_ids": list(method.token_ids), "start_ids": list(method.start_ids)}
        about |= {"name": data.name, "class": data.class_name, "learn": data.learn, "change": method.change}
        about |= {name: json.dumps(ids) for name, ids in words.items()}
    with atomic(file) as unfinished:
        save_file(tensors, unfinished, metadata=about)
    return about


def with_adapters(run: Run, adapters: Sequence[Adapter]) -> Run:
    """Returns the run with the changes of files added, and the names of their words.

    Args:
      run: run that the changes are of, or one of the same networks.
      adapters: files and strengths; changes add up.

    Raises:
      UserError: a file that cannot be read or is of other networks, a word that is there already, or no slot for it.
    """
    if hasattr(run.method, "parts"):
        raise UserError(f"the run is a {type(run.method).__name__} itself: name its base, and both as files")
    identity, changed = run.identity, run
    for adapter in adapters:
        changed = _with_one(changed, adapter, identity)
    return changed


def _with_one(run: Run, adapter: Adapter, identity: str) -> Run:
    """The run with the changes of one file; `identity` is the run's before any was added."""
    tensors = weights.read(adapter.file)
    about = weights.metadata(adapter.file)
    tables = {path: leaf.shape for path, leaf in flatten(without_frozen(run.params)).items() if is_table(path)}
    parts = files.from_tensors(tensors, _kernels(run, run.method), tables, adapter.file)
    if about.get("base_hash") != identity:
        learned = about.get("base", "a run that it does not name")
        processes.note(f"{adapter.file} was learned on {learned}, which is not this run: it may fit badly")
    recipe, params, ids = copy.copy(run.recipe), run.params, []
    if parts.words:
        name = about.get("name") or Path(adapter.file).stem
        count = len(next(iter(parts.words.values())))
        ids = named(adapter.file, lambda: _slots(name, about, recipe.tokenizer, count))
        recipe.tokenizer = recipe.tokenizer.with_name(name, ids)
    if adapter.strength:
        params = params | add(without_frozen(params), parts, adapter.strength, ids, about)
    return dataclasses.replace(run, recipe=recipe, params=params)


def add(params: dict[str, Any], parts: files.Parts, strength: float, ids: Sequence[int], about: dict[str, str]) -> Any:
    """Returns trees of players with changes added.

    Args:
      params: trees of players.
      parts: changes.
      strength: factor of all of them.
      ids: of the word.
      about: metadata of the file.
    """
    start, own = (json.loads(about.get(name, "[]")) for name in ("start_ids", "token_ids"))

    def changed(path, leaf):
        name = path_name(path)
        if name in parts.words:
            leaf = set_word(leaf, ids, start, strength * parts.words[name], own)
        if name in parts.whole:
            leaf = leaf + strength * parts.whole[name].reshape(leaf.shape)
        return leaf

    merged = lora.merge(jax.tree_util.tree_map_with_path(changed, params), parts.low_rank, strength)
    return parallel.place(merged)


def _kernels(run: Run, method: Any) -> dict[str, tuple[int, ...]]:
    return lora.kernels(method.init, jax.random.key(0), run.recipe.blank_batch(1))


def _slots(name: str, about: dict[str, str], tokenizer: Any, count: int) -> list[int]:
    """The ids of an adapter's word in a run: its own, or free slots where another word has them."""
    if name in tokenizer.names:
        raise UserError(f"there is a word [{name}] already: give one of the two subjects another name")
    ids = json.loads(about.get("token_ids", "[]"))
    return ids if len(ids) == count and not tokenizer.learned & set(ids) else subject.free_slots(tokenizer, count)
