"""Configs: files that return one, flags that change it, and the objects that are built from its sections.

A section of a config is the keyword arguments of the thing it configures, so a key that nobody reads cannot exist.
"""

import dataclasses
import inspect
import json
import os
import runpy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_collections
from absl import flags, logging
from ml_collections import config_flags

from zoo.errors import UserError, named, unknown_name_error

if TYPE_CHECKING:
    Config = Any  # the attributes of a ConfigDict have no types
else:
    Config = ml_collections.ConfigDict

flags.disclaim_key_flags()  # they belong to the command, whose --help lists them

HERE = Path(__file__).parent
RECIPES = next(folder for folder in (HERE / "configs", HERE.parent / "configs") if folder.is_dir())  # installed, or not
HELP = {"--help", "-help", "-?", "--helpshort", "--helpfull"}  # flags that print help
FORMAT_VERSION = 4  # of configs and checkpoints; another one is refused


def arguments(text: str | None, known: Sequence[str]) -> set[str]:
    """Splits the argument of a config file, `FILE:a,b`, into its words; raises UserError on an unknown one."""
    words = {word for word in (text or "").split(",") if word}
    for word in sorted(words - set(known)):
        raise unknown_name_error("word of the recipe", word, known)
    return words


def build(target: Callable, section: Mapping[str, Any], where: str, **extra) -> Any:
    """Calls `target` with the keys of a section as keyword arguments.

    Args:
      target: a class or function.
      section: the keys.
      where: the section's name, for the error.
      **extra: arguments that are not the user's to set.

    Raises:
      UserError: a key is unknown (names the nearest known one), one is missing, or `target` refuses a value.
    """
    parameters = inspect.signature(target).parameters
    known = [name for name in parameters if name not in extra]
    for key in section:
        if key not in known:
            raise unknown_name_error(f"config key in {where}", key, known)
    needed = [name for name in known if parameters[name].default is inspect.Parameter.empty]
    missing = [name for name in needed if name not in section]
    if missing:
        raise UserError(f"config section {where} lacks {', '.join(missing)}")
    return named(where, lambda: target(**section, **extra))


def to_json(config: ml_collections.ConfigDict) -> str:
    """Returns the config as text, with the version of its format; equal configs give equal text."""
    return json.dumps(config.to_dict() | {"format_version": FORMAT_VERSION}, indent=2, sort_keys=True)


def from_json(text: str, where: str = "config") -> ml_collections.ConfigDict:
    """Returns the config that `to_json` wrote.

    Args:
      text: content of a file.
      where: its name, for errors.

    Raises:
      UserError: it is no JSON, or has another format version.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is damaged ({error}): restore it, or delete it if there is a checkpoint") from None
    check_format(content.pop("format_version", 1), where)
    return ml_collections.ConfigDict(content)


def check_format(version: Any, what: str) -> None:
    """Raises UserError where a file is of another format version than this code reads."""
    if version != FORMAT_VERSION:
        raise UserError(
            f"{what} has format version {version}, and this version of zoo reads {FORMAT_VERSION}: train the run "
            "again, or use the version of zoo that wrote it"
        )


def build_options(cls: type, values: Mapping[str, Any], what: str) -> Any:
    """Builds a dataclass of options.

    Args:
      cls: frozen dataclass; its defaults also define the types.
      values: option -> value.
      what: name of the options in errors.

    Raises:
      UserError: an unknown option, one of another type than its default, or a value that the class refuses.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    for name, value in values.items():
        if name not in defaults:
            raise unknown_name_error(what, name, defaults)
        like = {float: (int, float), tuple: (tuple, list), type(None): object}
        if not isinstance(value, like.get(type(defaults[name]), type(defaults[name]))):
            raise UserError(f"{what} {name} must be like {defaults[name]!r}, got {value!r}")
    return named(what, lambda: cls(**values))


def flatten(tree: Mapping[str, Any], prefix: str = "", separator: str = ".") -> dict[str, Any]:
    """Returns a nested mapping as {"a.b.c": leaf}; empty mappings are left out."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}{separator}", separator)
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


def recipe_file(name: str) -> str:
    """Returns the path of a recipe: the name of a file, or of one that the zoo brings, such as "diffusion".

    Args:
      name: path of a file, or the name of a recipe.

    Raises:
      UserError: there is no such recipe.
    """
    shipped = {file.stem: str(file) for file in RECIPES.glob("*.py")}
    if name in shipped:
        return shipped[name]
    if os.path.isfile(name):
        return name
    if os.path.isfile(f"{name}.py"):
        raise UserError(f"--config: no such file: {name!r}; do you mean {name}.py?")
    if "/" in name or name.endswith(".py"):
        names = ", ".join(sorted(shipped))
        raise UserError(f"--config: no such file: {name!r}; recipes with a name, e.g. diffusion:demo, are {names}")
    raise unknown_name_error("recipe", name, shipped)


def load(spec: str) -> Config:
    """Returns the config of "RECIPE" or "RECIPE:ARGUMENTS". Raises UserError where there is no such recipe."""
    name, _, words = spec.partition(":")
    path = recipe_file(name)
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise UserError(f"--config: {path!r} has no get_config function; is it a recipe?")
    try:
        inspect.signature(get_config).bind(words)
    except TypeError:
        raise UserError(f"--config: get_config of {path!r} must take words: get_config(words=None)") from None
    config = get_config(words)
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"--config: get_config of {path!r} must return a ConfigDict, got {type(config).__name__}")
    return config


def define_config_flag() -> None:
    """Defines `--config RECIPE[:ARGUMENTS]` and `--config.KEY=VALUE`."""
    config_flags.DEFINE_config_file(
        "config", None, "Recipe: a file, or a name such as diffusion:demo; --config.KEY=VALUE changes a key."
    )
    flags.mark_flag_as_required("config")


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; for `app.run(flags_parser=...)`. Raises UserError with what is wrong in one line."""
    argv = _with_recipe_files(argv)
    _check_config_flags(argv)
    try:
        rest = flags.FLAGS(list(argv))
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(" ".join(str(error).split())) from None
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # jax logs each accelerator that it did not find
    return rest


def _with_recipe_files(argv: Sequence[str]) -> list[str]:
    """Returns the command line with the files of recipes in place of their names."""

    def with_file(spec: str) -> str:
        name, colon, words = spec.partition(":")
        return recipe_file(name) + colon + words

    out: list[str] = []
    for word in argv:
        flag, equals, spec = word.partition("=")
        if out and out[-1] in ("-config", "--config"):
            out.append(with_file(word))
        elif flag in ("-config", "--config") and equals:
            out.append(f"{flag}={with_file(spec)}")
        else:
            out.append(word)
    return out


def _check_config_flags(argv: Sequence[str]) -> None:
    """The flag library reports a missing file late and an unknown key without a hint; this does both at once."""
    words = [word.removeprefix("-") for word in argv]
    specs = [word.removeprefix("-config=") for word in words if word.startswith("-config=")]
    specs += [after for word, after in zip(words, words[1:], strict=False) if word == "-config"]
    if not specs:
        if "config" in flags.FLAGS and not HELP & set(argv):
            raise UserError("--config is missing: a recipe, e.g. --config diffusion:demo")
        return
    if len(specs) > 1:
        raise UserError(f"--config is given {len(specs)} times: {', '.join(specs)}; name one recipe")
    known = flatten(load(specs[0]).to_dict())
    for word in words:
        key = word.split("=")[0].removeprefix("-config.")
        if word.startswith("-config.") and key not in known:
            raise unknown_name_error("config key", key, known)


def parse_no_flags() -> None:
    """Gives all flags their defaults where no command line was parsed, as from Python: libraries read some."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
