import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the ground up; a module stands on the floor of its longest prefix and imports none above.
FLOORS = [
    ["zoo", "zoo.errors", "zoo.cache"],
    [
        "zoo.trees",
        "zoo.augment",
        "zoo.lora",
        "zoo.method",
        "zoo.distributions",
        "zoo.config",
        "zoo.media",
        "zoo.nets",
        "zoo.diffusion",
        "zoo.data",
    ],
    ["zoo.methods", "zoo.pretrained"]
    + [f"zoo.training.{name}" for name in ("optim", "state", "parallel", "metrics", "cost", "stop", "__init__")],
    ["zoo.training.checkpoint"],
    ["zoo.latents"],
    ["zoo.run"],
    ["zoo.training.loop", "zoo.training.preview", "zoo.scoring", "zoo.edit", "zoo.sampling_flags", "zoo.bench"],
    ["train", "sample"],
]
FILES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in [*sorted((ROOT / "zoo").rglob("*.py")), ROOT / "train.py", ROOT / "sample.py"]
}


def floor(name):
    places = {prefix.removesuffix(".__init__"): i for i, floor in enumerate(FLOORS) for prefix in floor}
    if name in places:
        return places[name]
    parents = [".".join(name.split(".")[:length]) for length in range(name.count("."), 1, -1)]
    found = next((parent for parent in parents if parent in places and parent != "zoo.training"), None)
    assert found, f"give {name} a place on a floor"
    return places[found]


def imported(file):
    """The names of all modules that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in FILES else node.module


IMPORTS = {name: set(imported(file)) for name, file in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_no_module_imports_from_a_floor_above(name):
    above = [other for other in IMPORTS[name] & FILES.keys() if floor(other) > floor(name)]
    assert not above, f"{name} imports {above}"


def test_no_two_modules_import_each_other():
    order = graphlib.TopologicalSorter({name: IMPORTS[name] & FILES.keys() - {name} for name in FILES})
    order.prepare()  # raises CycleError, which names the cycle


def test_the_ground_floor_imports_nothing_of_the_zoo():
    for name in FLOORS[0]:
        assert not IMPORTS[name] & FILES.keys()


@pytest.mark.parametrize("part", ["nets", "diffusion", "methods"])
def test_maths_reads_no_files_and_knows_no_flags(part):
    names = [name for name in FILES if name.startswith(f"zoo.{part}")]
    assert names
    for name in names:
        assert not IMPORTS[name] & {"os", "pathlib", "absl", "absl.flags", "orbax.checkpoint", "zoo.media", "zoo.run"}


def test_training_names_no_family():
    for name, names in IMPORTS.items():
        if name.startswith("zoo.training") or name == "train":
            assert not any(other.startswith(("zoo.methods", "zoo.nets", "zoo.diffusion")) for other in names)


def test_no_file_imports_another_framework():
    for name, names in IMPORTS.items():
        assert not {other.split(".")[0] for other in names} & {"tensorflow", "torch", "keras"}, name


def test_the_command_and_the_loop_stay_short():
    def lines(name):
        return len(FILES[name].read_text().splitlines())

    assert lines("train") < 60 and lines("zoo.training.loop") < 300


def test_no_other_framework_is_loaded_by_training_sampling_or_scoring(finish):
    for module in ("train", "sample", "zoo.scoring.__main__", "zoo.bench"):
        done = finish("-c", f"import sys, {module}; print({{'tensorflow', 'torch'}} & sys.modules.keys())", devices=1)
        assert (done.code, done.out.strip()) == (0, "set()"), done.err
