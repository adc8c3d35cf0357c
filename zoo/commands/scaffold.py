"""The frame of every command: its flags, its errors, its exit code."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable

from absl import app, flags

from zoo import config
from zoo.errors import UserError, exit_on_user_error, named
from zoo.files import check_output
from zoo.training import parallel
from zoo.training.diagnosis import out_of_memory

FLAGS = flags.FLAGS


def no_flags() -> None:
    """Defines nothing."""


def refuse(names: Iterable[str], reason: str) -> None:
    """Raises UserError for the first of these flags that was given; the reason follows its name."""
    for name in names:
        if FLAGS[name].present:
            raise UserError(f"--{name} {reason}")


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
      main: called with the arguments that are no flags. Only here are flags read.
      define_flags: defines the flags.
      arguments: what to give, e.g. "name at least one run: ..."; "" for a command without arguments.
      hint: advice for an argument where there should be none.
      suffixes: those that the file --out may have; none where `main` checks it.
    """

    main: Callable[[list[str]], None]
    define_flags: Callable[[], None] = no_flags
    arguments: str = ""
    hint: str = "flags begin with --"
    suffixes: tuple[str, ...] = ()

    def run(self, argv: list[str] | None = None) -> None:
        """Runs the command as a program. A `UserError` is one line on stderr and exit code 2."""
        before = set(FLAGS)
        self.define_flags()
        for name in set(FLAGS) - before:  # --help lists the flags of the main module alone
            FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])
        with exit_on_user_error():
            try:
                app.run(self, argv=argv, flags_parser=config.parse_flags)
            except SystemExit as stop:
                raise SystemExit(0 if config.HELP & set(argv or sys.argv) else stop.code) from None

    def __call__(self, argv: list[str]) -> None:
        """Runs the command on parsed flags."""
        for name in FLAGS:
            value = FLAGS[name].value
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"--{name} must be a finite number, got {value}")
            if value == "" and FLAGS[name].default is None:
                raise UserError(f"--{name} is empty: give it a value, or drop it")
        if argv[1:] and not self.arguments:
            raise UserError(f"no such argument: {argv[1]!r}; {self.hint}")
        if self.arguments and not argv[1:]:
            raise UserError(self.arguments)
        if self.suffixes and FLAGS.out:
            named("--out", lambda: check_output(FLAGS.out, self.suffixes))
        parallel.use_compilation_cache()
        with out_of_memory("make fewer items at once, by --per_device or data.batch_size"):
            self.main(argv[1:])
