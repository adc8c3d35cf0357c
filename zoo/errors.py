"""The one exception that users are meant to see: a line that says what is wrong and what to do."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator

MANY = 20  # names, beyond which an error tells the nearest alone


class BadInput(ValueError):
    """Something the user gave cannot be used. The message is one line: what, which value, what to do."""


def unknown(what: str, name: str, known: Iterable[str]) -> BadInput:
    """Returns the error for a name that does not exist, with the nearest one that does.

    Args:
      what: the kind of thing, e.g. "config key" or "sampler".
      name: what was asked for.
      known: every name that would have been accepted; of many only the nearest are listed.
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    listed, rest = known, ""
    if len(known) > MANY:
        listed = difflib.get_close_matches(name, known, n=MANY // 2, cutoff=0.0)
        rest = f" and {len(known) - len(listed)} more"
    return BadInput(f"unknown {what} {name!r}: {hint}known: {', '.join(listed) or 'none'}{rest}")


@contextlib.contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Turns `BadInput` into one line on stderr and exit code 2; other exceptions keep their traceback."""
    try:
        yield
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
