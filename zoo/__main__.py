"""Runs a command: zoo COMMAND ..., or python -m zoo COMMAND ..."""

import importlib
import pkgutil
import sys
from types import ModuleType

from zoo import __version__, commands
from zoo.errors import exit_on_user_error, unknown_name_error

MODULES = [importlib.import_module(f"zoo.commands.{found.name}") for found in pkgutil.iter_modules(commands.__path__)]
COMMANDS = {module.__name__.rpartition(".")[2]: module for module in MODULES if hasattr(module, "COMMAND")}


def first_line(module: ModuleType) -> str:
    """Returns the first line of a module's docstring."""
    return (module.__doc__ or "").partition("\n")[0]


def main() -> None:
    """Runs the command that the first argument names."""
    with exit_on_user_error():
        if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
            lines = "\n".join(f"  {name:18} {first_line(module)}" for name, module in COMMANDS.items())
            print(f"zoo COMMAND --help prints its flags. Commands:\n\n{lines}")
            return
        if sys.argv[1] == "--version":
            print(__version__)
            return
        if sys.argv[1] not in COMMANDS:
            raise unknown_name_error("command", sys.argv[1], COMMANDS)
        module = COMMANDS[sys.argv[1]]
    sys.modules["__main__"].__doc__ = module.__doc__  # which --help prints
    module.COMMAND.run([f"zoo {sys.argv[1]}", *sys.argv[2:]])


if __name__ == "__main__":
    main()
