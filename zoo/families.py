"""The registry of families, and the one place where a method is built from its section of a config."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from zoo.config import build
from zoo.errors import UserError, named, unknown_name_error
from zoo.method import Method, has_members
from zoo.wrappers.compose import compose

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Config key, name of the dependency, its value in the config, the ability that it needs -> its static part.
OpenDependency = Callable[[str, str, str, Any], Any]


class Family(NamedTuple):
    """An entry of the registry.

    Attributes:
      address: "module:Class".
      paper: arXiv number.
      recipe: config file, and its words.
      wraps: whether it wraps another family, whose section is `base`.
    """

    address: str
    paper: str
    recipe: str
    wraps: bool = False


FAMILIES = {
    "diffusion": Family("zoo.methods.diffusion:Diffusion", "2209.03003", "configs/diffusion.py"),
    "mean_flow": Family("zoo.methods.mean_flow:MeanFlow", "2505.13447", "configs/mean_flow.py"),
    "flow": Family("zoo.methods.flow:Flow", "2412.06329", "configs/flow.py"),
    "vae": Family("zoo.methods.vae:Vae", "2011.10650", "configs/vae.py"),
    "generator": Family("zoo.methods.generator:Generator", "2501.05441", "configs/gan.py"),
    "patches": Family("zoo.methods.patches:Patches", "2309.15505", "configs/patches.py"),
    "masked": Family("zoo.methods.masked:Masked", "2202.04200", "configs/tokens.py:masked"),
    "autoregressive": Family(
        "zoo.methods.autoregressive:Autoregressive", "2206.10789", "configs/tokens.py:autoregressive"
    ),
    "continuous": Family("zoo.methods.continuous:Continuous", "2406.11838", "configs/tokens.py:continuous"),
    "contrastive": Family("zoo.methods.contrastive:Contrastive", "2103.00020", "configs/clip.py"),
    "adversarial": Family("zoo.wrappers.adversarial:Adversarial", "2501.05441", "configs/gan.py", wraps=True),
    "token_critic": Family(
        "zoo.wrappers.token_critic:TokenCritic", "2209.04439", "configs/tokens.py:masked,critic", wraps=True
    ),
    "coarse": Family("zoo.wrappers.coarse:Coarse", "2206.10789", "configs/tokens.py:autoregressive,coarse", wraps=True),
    "joint": Family("zoo.wrappers.joint:Joint", "2204.03458", "configs/video.py:images", wraps=True),
    "upsampling": Family("zoo.wrappers.upsampling:Upsampling", "2106.15282", "configs/upsample.py:space", wraps=True),
    "personalized": Family(
        "zoo.wrappers.personalized:Personalized", "2208.12242", "configs/personalize.py", wraps=True
    ),
    "rewarded": Family("zoo.wrappers.rewarded:Rewarded", "2309.17400", "configs/diffusion.py:reward", wraps=True),
}


def family_class(name: str) -> type:
    """Returns the class of a family."""
    module, _, attribute = FAMILIES[name].address.partition(":")
    return getattr(importlib.import_module(module), attribute)


def reads_codes(cls: type) -> bool:
    """Whether the inputs of a family are codes, whose number is its field `codes`."""
    return any(field.name == "codes" for field in dataclasses.fields(cls))


def families_with(protocol: type) -> list[str]:
    """Returns the names of the families that have an ability by themselves."""
    return [name for name in FAMILIES if has_members(family_class(name), protocol)]


def require(method: Any, protocol: type) -> Any:
    """Returns the method if it has an ability, see `zoo.method`.

    Args:
      method: built method.
      protocol: one of `method.ABILITIES`.

    Raises:
      UserError: the ability is missing (names the families that have it).
    """
    if isinstance(method, protocol):
        return method
    able = ", ".join(families_with(protocol)) or "none"
    raise UserError(f"{type(method).__name__} lacks the ability {protocol.__name__}; families with it: {able}")


def no_dependency(key: str, name: str, value: str, protocol: Any) -> Any:
    """Raises UserError: a method with dependencies is built through a recipe."""
    raise UserError(f"{key}: {value!r} cannot be opened here; build the method through a recipe")


def build_method(
    section: Mapping[str, Any],
    vocab_size: int,
    dtype: str,
    open_dependency: OpenDependency = no_dependency,
    where: str = "method",
    codes: int | None = None,
) -> Method:
    """Builds a family.

    Args:
      section: `name`, a key of `FAMILIES`; the other keys are the fields of its class. A wrapper's `base` is the
        section of the wrapped family; a field of the class's `DEPENDENCIES` names another run or network.
      vocab_size: number of token ids.
      dtype: name of the type in which networks compute.
      open_dependency: opens the run or network that such a field names; returns its method, or a reward.
      where: name of the section, for errors.
      codes: number of codes of the tokenizer that makes the inputs; None for images and latents.

    Raises:
      UserError: an unknown name, key or dtype, a value that the family refuses, or a family of codes without any, or
        the other way round.
    """
    fields = dict(section)
    name = fields.pop("name", None)
    if name not in FAMILIES:
        raise unknown_name_error(where, str(name), FAMILIES)
    cls, extra = family_class(name), {}
    if FAMILIES[name].wraps:
        if "base" not in fields:
            raise UserError(f"config section {where} lacks base")
        base = build_method(fields.pop("base"), vocab_size, dtype, open_dependency, f"{where}.base", codes)
        extra["base"] = named(f"{where}.base", lambda: require(base, cls.needs(fields)))
        cls = compose(cls, base)
    elif reads_codes(cls) != (codes is not None):
        of_codes = ", ".join(name for name in FAMILIES if reads_codes(family_class(name)))
        raise UserError(
            f"{where}: the families of codes are {of_codes}, and {name} is {'one' if codes is None else 'none'}: "
            f"{'name a tokenizer by' if codes is None else 'drop'} data.codes"
        )
    elif codes is not None:
        extra["codes"] = codes
    for field, protocol in getattr(cls, "DEPENDENCIES", {}).items():
        value = fields.pop(field, "")
        if not value and not hasattr(cls, field):  # a field without a default
            raise UserError(f"config section {where} lacks {field}")
        extra[field] = open_dependency(f"{where}.{field}", field, value, protocol) if value else None
    return build(cls, fields, where, vocab_size=vocab_size, dtype=get_dtype(dtype), **extra)


def get_dtype(name: str) -> Any:
    """Returns the jax type that networks compute in."""
    if name not in DTYPES:
        raise unknown_name_error("dtype", name, DTYPES)
    return DTYPES[name]
