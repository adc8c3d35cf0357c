"""Configs: files that return one, flags that change it, and the objects that are built from its sections.

A section of a config is the keyword arguments of the thing it configures, so a key that nobody reads cannot exist.
"""

import dataclasses
import importlib
import inspect
import json
import os
import pkgutil
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from zoo.errors import BadInput, unknown
from zoo.method import Method

flags.disclaim_key_flags()  # they are the command's, whose --help tells them

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def arguments(text: str | None, known: Sequence[str]) -> set[str]:
    """Splits the argument of a config file, `FILE:a,b`, into its words; raises BadInput on one it does not know."""
    words = {word for word in (text or "").split(",") if word}
    for word in sorted(words - set(known)):
        raise unknown("config argument", word, known)
    return words


def build(target: Callable, section: Mapping[str, Any], where: str, **extra) -> Any:
    """Calls `target` with the keys of a section as keyword arguments.

    Args:
      target: a class or function.
      section: the keys.
      where: the section's name, for the error.
      **extra: arguments that are not the user's to set.

    Raises:
      BadInput: a key is unknown (names the nearest known one) or one is missing.
    """
    parameters = inspect.signature(target).parameters
    known = [name for name in parameters if name not in extra]
    for key in section:
        if key not in known:
            raise unknown(f"config key in {where}", key, known)
    needed = [name for name in known if parameters[name].default is inspect.Parameter.empty]
    missing = [name for name in needed if name not in section]
    if missing:
        raise BadInput(f"config section {where} lacks {', '.join(missing)}")
    return target(**section, **extra)


def build_method(config: Mapping[str, Any], vocab_size: int) -> Method:
    """Builds the family that `config.method` describes, see `build_family`."""
    return build_family(config["method"], "method", vocab_size, get_dtype(config["dtype"]))


def build_family(section: Mapping[str, Any], where: str, vocab_size: int, dtype: Any) -> Method:
    """Builds a family.

    Args:
      section: `name`, a module below `zoo.methods` whose class has the same name in CamelCase; the other keys are the
        fields of that class.
      where: the section's name, for errors.
      vocab_size, dtype: of the text, and of the computation.
    """
    fields = dict(section)
    name = fields.pop("name", None)
    if name not in families():
        raise unknown(where, str(name), families())
    return build(_family(name), fields, where, vocab_size=vocab_size, dtype=dtype)


def families() -> list[str]:
    """The modules below `zoo.methods`."""
    return [module.name for module in pkgutil.iter_modules([str(Path(__file__).with_name("methods"))])]


def _family(name: str) -> type:
    module = importlib.import_module(f"zoo.methods.{name}")
    return getattr(module, "".join(part.capitalize() for part in name.split("_")))


def ability(method: Method, name: str) -> Callable:
    """Returns the function `name` of a method, for those abilities that not every family has.

    Raises:
      BadInput: this family lacks it; names those that have it.
    """
    if not hasattr(method, name):
        able = ", ".join(families_with(name)) or "none"
        raise BadInput(f"{type(method).__name__} cannot {name}; a run of these can: {able}")
    return getattr(method, name)


def families_with(name: str) -> list[str]:
    """The families that have this ability."""
    return [family for family in families() if hasattr(_family(family), name)]


def get_dtype(name: str):
    """Returns the jax dtype that networks compute in."""
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)
    return DTYPES[name]


def to_json(config: ml_collections.ConfigDict) -> str:
    """The config as text; equal configs give equal text."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True)


def from_json(text: str) -> ml_collections.ConfigDict:
    """The inverse of `to_json`."""
    return ml_collections.ConfigDict(json.loads(text))


def check_options(function: Callable | None, options: Mapping[str, Any], what: str) -> None:
    """Raises BadInput where a function has no such keyword-only argument, or one of another type than its default.

    Args:
      function: None has no arguments.
      options: name -> value.
      what: the options are called in the error.
    """
    parameters = inspect.signature(function).parameters.values() if function else ()
    known = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for name, value in options.items():
        if name not in known:
            raise unknown(what, name, known)
        like = {float: (int, float), tuple: (tuple, list), type(None): object}
        if not isinstance(value, like.get(type(known[name]), type(known[name]))):
            raise BadInput(f"{what} {name} must be like {known[name]!r}, got {value!r}")


def check_sampling(method: Method, options: Mapping[str, Any]) -> None:
    """`check_options` of `method.sample`."""
    check_options(getattr(method, "sample", None), options, f"sampling option of {type(method).__name__}")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {"a.b.c": leaf}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: ml_collections.ConfigDict, new: ml_collections.ConfigDict) -> list[str]:
    """Returns a line "key: old -> new" for each leaf in which two configs differ."""
    a, b = (flatten(json.loads(to_json(config))) for config in (old, new))
    return [
        f"{key}: {a.get(key, '(absent)')} -> {b.get(key, '(absent)')}"
        for key in sorted(a | b)
        if a.get(key, dataclasses.MISSING) != b.get(key, dataclasses.MISSING)
    ]


def load(spec: str) -> ml_collections.ConfigDict:
    """Returns the config of "FILE" or "FILE:ARGUMENTS". Raises BadInput where there is no such file."""
    path, _, words = spec.partition(":")
    if not os.path.isfile(path):
        raise BadInput(f"--config: no such file: {path!r}; the recipes are in configs/, e.g. configs/diffusion.py:demo")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise BadInput(f"--config: {path!r} has no get_config function; is it a recipe?")
    return get_config(words)


def define_config_flag() -> None:
    """Defines `--config FILE[:ARGUMENTS]` and `--config.KEY=VALUE`."""
    config_flags.DEFINE_config_file("config", None, "Recipe, FILE[:ARGUMENTS]; --config.KEY=VALUE changes a key.")
    flags.mark_flag_as_required("config")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; for `app.run(flags_parser=...)`. Raises BadInput with what is wrong in one line."""
    _check_config_flags(argv)
    try:
        rest = flags.FLAGS(list(argv))
    except (flags.Error, ValueError, TypeError) as error:
        raise BadInput(" ".join(str(error).split())) from None
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # jax tells of each accelerator that it did not find
    return rest


def _check_config_flags(argv: Sequence[str]) -> None:
    """The flag library reports a missing file late and an unknown key without a hint; this does both at once."""
    words = [word.removeprefix("-") for word in argv]
    specs = [word.removeprefix("-config=") for word in words if word.startswith("-config=")]
    specs += [after for word, after in zip(words, words[1:], strict=False) if word == "-config"]
    if not specs:
        return
    known = flatten(load(specs[-1]).to_dict())
    for word in words:
        key = word.split("=")[0].removeprefix("-config.")
        if word.startswith("-config.") and key not in known:
            raise unknown("config key", key, known)
