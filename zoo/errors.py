"""`UserError`, the one exception that users should meet: one line with the fault and the remedy."""

import contextlib
import difflib
import numbers
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

MOST_NAMES = 20  # of more known names, an error lists the nearest half as many


class UserError(ValueError):
    """Input from the user that cannot be used. The message is one line: what is wrong, which value, what to do."""


def unknown_name_error(what: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error for a name that does not exist, with the nearest one that does.

    Args:
      what: kind of thing, e.g. "config key" or "sampler".
      name: name that the user gave.
      known: names that would have been accepted.
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    listed, rest = known, ""
    if len(known) > MOST_NAMES:
        listed = difflib.get_close_matches(name, known, n=MOST_NAMES // 2, cutoff=0.0)
        rest = f" and {len(known) - len(listed)} more"
    return UserError(f"unknown {what} {name!r}: {hint}known: {', '.join(listed) or 'none'}{rest}")


def check_ranges(thing: Any, **ranges: str) -> None:
    """Raises UserError where a field of an object is not a number of its interval, or several where it holds several.

    A field of a dataclass that is declared as int takes whole numbers alone, one whose default is a tuple takes tuples
    and lists of numbers alone.

    Args:
      thing: object with the fields, as a dataclass in its `__post_init__`.
      **ranges: interval of each field as in mathematics, e.g. caption_drop="[0, 1]", learning_rate="[0, inf)".
    """
    declared = getattr(thing, "__dataclass_fields__", {})
    for name, interval in ranges.items():
        value, field = getattr(thing, name), declared.get(name)
        several = field is not None and isinstance(field.default, tuple)
        if several != isinstance(value, (tuple, list)):
            raise UserError(f"{name} must be {'several numbers' if several else 'one number'}, got {value!r}")
        if field is not None and field.type is int and not isinstance(value, numbers.Integral):
            raise UserError(f"{name} must be a whole number, got {value!r}")
        each: Any = value if several else (value,)
        if not all(_is_within(number, interval) for number in each):
            raise UserError(f"{name} must be in {interval}, got {value!r}")


def _is_within(number: Any, interval: str) -> bool:
    if type(number) is bool or not issubclass(type(number), numbers.Real):
        return False
    low, high = map(float, interval[1:-1].split(","))
    above = number > low or (number == low and interval[0] == "[")
    return above and (number < high or (number == high and interval[-1] == "]"))


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns `UserError` into one line on stderr and exit code 2; other exceptions keep their traceback."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def named(key: str, call: Callable[[], Any]) -> Any:
    """Calls a function; puts the key of the config in front of its UserErrors that do not begin with it."""
    try:
        return call()
    except UserError as error:
        if str(error).startswith((f"{key}: ", f"{key}.")):
            raise
        raise UserError(f"{key}: {error}") from None
