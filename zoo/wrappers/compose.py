"""Wrappers with exactly the abilities of their base that they forward."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from zoo.method import ABILITIES, Method, members


def all_but(*abilities: type) -> tuple[type, ...]:
    """Returns all abilities but these, as a wrapper forwards them."""
    return tuple(ability for ability in ABILITIES if ability not in abilities)


class Wrapper:
    """The part that wrappers share whose base reads its own parameters as they are.

    Attributes:
      base: the wrapped method.
    """

    base: Any

    @staticmethod
    def needs(fields: Mapping[str, Any]) -> type:
        """Returns the ability that the base needs under these fields: none beside those of every family."""
        del fields
        return Method

    @property
    def players(self) -> tuple[str, ...]:
        """The base's players."""
        return self.base.players

    def base_params(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the parameters that the base gets: all, of which it reads those of its own players."""
        return params


def compose(wrapper: type, base: Method) -> type:
    """Returns the wrapper's class with those abilities of `base` that the wrapper forwards.

    Args:
      wrapper: class with a field `base`, a function `base_params(params)`, and `FORWARDS`, the protocols to forward.
      base: method that is wrapped.
    """
    forwarded = [forwarding(protocol) for protocol in wrapper.FORWARDS if isinstance(base, protocol)]
    return type(wrapper.__name__, (wrapper, *forwarded), {"__doc__": wrapper.__doc__, "__module__": wrapper.__module__})


@functools.cache
def forwarding(protocol: type) -> type:
    """Returns a class whose members are those of a protocol, each of them `self.base`'s."""
    return type(f"Forwards{protocol.__name__}", (), {name: _forwarded(protocol, name) for name in members(protocol)})


def _forwarded(protocol: type, name: str) -> Any:
    declared = getattr(protocol, name, None)
    if not inspect.isfunction(declared):
        return property(lambda self: getattr(self.base, name))
    takes_params = "params" in inspect.signature(declared).parameters

    @functools.wraps(declared)
    def call(self, *args, **keywords):
        if takes_params:
            args = (self.base_params(args[0]), *args[1:])
        return getattr(self.base, name)(*args, **keywords)

    return call
