"""Four CPU devices and a cache of compiled programs for every test, and the tiny runs that tests share."""

import atexit
import contextlib
import importlib.metadata
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

if "ZOO_TESTS_HOME" not in os.environ:  # else this is a worker of pytest-xdist: all share data and compiled programs
    os.environ["ZOO_TESTS_HOME"] = tempfile.mkdtemp(prefix="zoo_tests_")
    atexit.register(shutil.rmtree, os.environ["ZOO_TESTS_HOME"], ignore_errors=True)
HOME = os.environ["ZOO_TESTS_HOME"]
DEVICES = "--xla_force_host_platform_device_count="
QUICK = "--xla_backend_optimization_level=0"  # nearly all of the time of tiny runs is compiling
if importlib.metadata.version("jaxlib") < "0.11":  # later ones end at a flag that they do not have
    QUICK += " --xla_cpu_use_fusion_emitters=false"  # which compile each fusion by itself
os.environ |= {  # before jax is imported; programs that tests start inherit it
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{DEVICES}4 {QUICK}",
    "ZOO_CACHE": HOME,
    "JAX_COMPILATION_CACHE_DIR": f"{HOME}/xla",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

import zoo.__main__  # noqa: E402, F401, so that flags of libraries are defined before those of commands
from zoo import config as configs  # noqa: E402
from zoo import loop  # noqa: E402
from zoo.errors import exit_on_user_error  # noqa: E402
from zoo.runs.dependencies import read_frozen, recipe_of  # noqa: E402
from zoo.training.checkpoint import Checkpoints  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "configs/diffusion.py:test"
# Two checkpoints, two averages, and few enough steps that rounding does not grow.
SHORT = {
    "loop.steps": 4,
    "loop.checkpoint_every": 2,
    "loop.grid_every": 4,
    "loop.grid_prompts": ("a red circle", "a blue star"),
    "players.model.ema_half_lives": (2.0, 20.0),
    "players.model.ema_rampup": 10.0,
}


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    """Commands are run from the folder that holds train.py."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Lets go of a file's compiled programs: each holds dozens of memory maps, and a process may have only 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def tiny():
    """tiny({"a.b": value}) -> the test recipe with these keys changed, ready to train in a second."""

    def tiny(changes=None, spec=RECIPE):
        path, _, words = spec.partition(":")
        config = configs.load(f"{ROOT / path}:{words}")
        with config.ignore_type():
            config.update_from_flattened_dict(changes or {})
        return config

    return tiny


@pytest.fixture(scope="session")
def short(tiny):
    """The config of `trained`."""
    return tiny(SHORT)


@pytest.fixture(scope="session")
def trained(short, tmp_path_factory):
    """Workdir of a run of four steps with checkpoints at 2 and 4, on four devices. Copy it to change it."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    loop.train(short, workdir)
    return workdir


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of `trained` that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "copied"))


@pytest.fixture(scope="session")
def words_of():
    """words_of(config) -> the flags that make train.py train it."""

    def words_of(config):
        default = configs.flatten(configs.load(str(ROOT / RECIPE)).to_dict())
        new = configs.flatten(config.to_dict())
        changed = {key: value for key, value in new.items() if value != default[key]}
        return [f"--config={RECIPE}", *(f"--config.{key}={value}" for key, value in changed.items())]

    return words_of


@pytest.fixture
def command(monkeypatch):
    """command("sample.py", "--num=2") -> code, out and err of a command that is run within this process.

    command("-m", "zoo", "score", "--num=2") too: a process of its own takes seconds to import jax.
    """

    def command(file, *words):
        if file == "-m":
            file, words = f"zoo/commands/{words[1]}.py", words[2:]
        before, argv = set(flags.FLAGS), [file, *map(str, words)]
        monkeypatch.setattr(sys, "argv", argv)
        spec = importlib.util.spec_from_file_location("command_under_test", ROOT / file)
        module, out, err, code = importlib.util.module_from_spec(spec), io.StringIO(), io.StringIO(), 0
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), exit_on_user_error():
                spec.loader.exec_module(module)
                module.COMMAND.define_flags()
                module.COMMAND(configs.parse_flags(argv))
        except SystemExit as stop:
            code = stop.code
        finally:
            for name in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
        return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())

    return command


@pytest.fixture
def x64():
    """Doubles, within a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def start():
    """start("train.py", "--dry_run", devices=1) -> a program begun in a process of its own."""

    def start(*words, devices=4):
        environment = os.environ | {"XLA_FLAGS": f"{DEVICES}{devices} {QUICK}"}
        return subprocess.Popen(
            [sys.executable, *map(str, words)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def finish(start):
    """Like `start`, but waits; returns code, out and err."""

    def finish(*words, devices=4):
        process = start(*words, devices=devices)
        out, err = process.communicate(timeout=300)
        return SimpleNamespace(code=process.returncode, out=out, err=err)

    return finish


@pytest.fixture(scope="session")
def saved_state():
    """saved_state(workdir, step) -> (step, fields of the state, numpy) as the checkpoint holds them."""

    def saved_state(workdir, step=None):
        checkpoints = Checkpoints(workdir, read_only=True)
        metadata = checkpoints.metadata(step)[1]
        recipe = recipe_of(metadata, lambda name: read_frozen(Path(workdir), name), for_training=False)
        shapes = recipe.state_shapes()
        return checkpoints.restore({name: getattr(shapes, name) for name in loop.State.__dataclass_fields__}, step)

    return saved_state


@pytest.fixture(scope="session")
def same():
    """same(a, b) -> whether two trees are equal in structure, types and every bit."""

    def same(a, b):
        if jax.tree.structure(a) != jax.tree.structure(b):
            return False
        pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
        pairs = [(np.asarray(x), np.asarray(y)) for x, y in pairs]
        return all((x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes()) for x, y in pairs)

    return same
