"""The layers: directories, in an order in which a module imports from those above it alone."""

import ast
import graphlib
from pathlib import Path

import pytest

from zoo.families import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
# From the ground up. A module belongs to the longest name that it begins with.
LAYERS = [
    "zoo.errors",
    "zoo.files",
    "zoo.cache",
    "zoo.trees",
    "zoo.compiling",
    "zoo.conditions",
    "zoo.media",
    "zoo.resize",
    "zoo.weights",
    "zoo.config",
    "zoo.recipes",
    "zoo.distributions",
    "zoo.method",
    "zoo.scenes",
    "zoo.data",
    "zoo.nets",
    "zoo.diffusion",
    "zoo.decoding",
    "zoo.adapters",
    "zoo.pretrained",
    "zoo.methods",
    "zoo.wrappers",
    "zoo.families",
    "zoo.training",
    "zoo.runs",
    "zoo.evaluation",
    "zoo.loop",
    "zoo",  # zoo.load
    "zoo.commands",
    "zoo.__main__",
    "train",
    "sample",
]
MAY_IMPORT_BY_NAME = {"zoo.families", "zoo.config", "zoo.__main__"}
OF_FAMILIES = "zoo.methods", "zoo.nets", "zoo.diffusion", "zoo.wrappers"
IMPORT_BY_NAME = {"importlib", "runpy", "__import__"}
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in [*sorted((ROOT / "zoo").rglob("*.py")), ROOT / "train.py", ROOT / "sample.py"]
}
TREES = {name: ast.parse(file.read_text()) for name, file in FILES.items()}


def imported(name):
    """The names of all modules that a module imports anywhere in its file."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from [inner] if inner in FILES else [inner, node.module]


IMPORTS = {name: set(imported(name)) for name in FILES}


def layer(name):
    parts = name.split(".")
    prefixes = [".".join(parts[:length]) for length in range(len(parts), 1 if len(parts) > 1 else 0, -1)]
    found = next((prefix for prefix in prefixes if prefix in LAYERS), None)
    assert found, f"give {name} a place in LAYERS"
    return LAYERS.index(found)


@pytest.mark.parametrize("name", FILES)
def test_a_module_imports_from_the_layers_below_alone(name):
    above = [other for other in IMPORTS[name] & FILES.keys() if layer(other) > layer(name)]
    assert not above, f"{name} imports {above}"


def test_no_two_modules_import_each_other():
    order = graphlib.TopologicalSorter({name: IMPORTS[name] & FILES.keys() - {name} for name in FILES})
    order.prepare()  # raises CycleError, which names the cycle


def test_the_order_lists_what_there_is():
    used = {LAYERS[layer(name)] for name in FILES}
    assert used == set(LAYERS)


def test_modules_are_imported_by_name_in_the_registry_and_for_configs_and_commands_alone():
    names = lambda tree: {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    found = {name for name in FILES if (IMPORTS[name] | names(TREES[name])) & IMPORT_BY_NAME}
    assert found == MAY_IMPORT_BY_NAME


@pytest.mark.parametrize("part", ["nets", "diffusion", "methods", "wrappers"])
def test_maths_reads_no_files_and_no_flags(part):
    names = [name for name in FILES if name.startswith(f"zoo.{part}")]
    assert names
    for name in names:
        assert not IMPORTS[name] & {"os", "pathlib", "absl", "absl.flags", "orbax.checkpoint", "zoo.media", "zoo.files"}


def test_commands_alone_read_flags():
    readers = {name for name, names in IMPORTS.items() if "absl.flags" in names}
    assert "zoo.commands.score" in readers
    assert all(name.startswith(("zoo.commands", "zoo.config")) for name in readers)


def test_the_loop_is_short_and_training_names_no_family():
    assert len(FILES["zoo.loop"].read_text().splitlines()) < 300
    for name in FILES:
        if name.startswith(("zoo.training", "zoo.loop", "zoo.runs", "train")):
            names = {node.value for node in ast.walk(TREES[name]) if isinstance(node, ast.Constant)}
            assert not names & set(FAMILIES), name
            assert not any(other.startswith(OF_FAMILIES) for other in IMPORTS[name]), name


def test_no_file_imports_another_framework():
    for name, names in IMPORTS.items():
        assert not {other.split(".")[0] for other in names} & {"tensorflow", "torch", "keras"}, name


def test_no_other_framework_is_loaded_by_training_sampling_or_scoring(finish):
    program = "import sys, train, sample, zoo.__main__; print({'tensorflow', 'torch'} & sys.modules.keys())"
    done = finish("-c", program, devices=1)
    assert (done.code, done.out.strip()) == (0, "set()"), done.err
