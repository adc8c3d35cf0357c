"""The wheel, unpacked away from the repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import zoo

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True)
    (wheel,) = folder.glob("zoo-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def installed(site, folder, *words):
    """Runs Python in a folder where the unpacked wheel alone is the zoo."""
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_the_wheel_holds_the_package_alone(site):
    packed = {str(file.relative_to(site / "zoo")) for file in (site / "zoo").rglob("*") if file.is_file()}
    kept = {str(file.relative_to(ROOT / "zoo")) for file in (ROOT / "zoo").rglob("*") if file.is_file()}
    recipes = {f"configs/{file.name}" for file in (ROOT / "configs").glob("*.*")}
    assert packed == {name for name in kept if "__pycache__" not in name} | recipes
    assert {"py.typed", "configs/diffusion.py", "pretrained/clip_scenes/model.safetensors"} <= packed
    assert [folder.name for folder in site.iterdir() if not folder.name.endswith(".dist-info")] == ["zoo"]


@pytest.mark.slow
def test_a_recipe_is_found_by_its_name_from_any_folder(site, tmp_path):
    done = installed(
        site, tmp_path, "-c", "import zoo.config as c; print(c.__file__, c.load('mean_flow:demo').method.name)"
    )
    assert done.stdout.split() == [str(site / "zoo" / "config.py"), "mean_flow"], done.stderr
    done = installed(site, tmp_path, "-m", "zoo", "train", "--config=diffusion:test", "--workdir=run")
    assert done.returncode == 0 and (tmp_path / "run" / "config.json").is_file(), done.stderr
    done = installed(site, tmp_path, "-m", "zoo", "sample", "--workdir=run", "--num=1", "--steps=1")
    assert done.returncode == 0 and (tmp_path / "out.png").is_file(), done.stderr


@pytest.mark.parametrize("flag", [["--config=difusion:test"], ["--config", "difusion:test"], ["-config=difusion:test"]])
def test_a_recipe_that_does_not_exist_is_answered_with_the_nearest(command, flag):
    done = command("train.py", *flag)
    assert done.code == 2 and "unknown recipe 'difusion': did you mean 'diffusion'?" in done.err


@pytest.mark.parametrize("flag", [["--config=diffusion:test"], ["--config", "diffusion:test"]])
def test_a_name_stands_for_the_file(command, flag):
    done = command("train.py", *flag, "--config.method.net.widht=3")
    assert done.code == 2 and "did you mean 'method.net.width'?" in done.err


RECIPES = {
    "none": "def get_config(words=None):\n    return None\n",
    "bare": "def get_config():\n    return None\n",
}


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--config is missing: a recipe, e.g. --config diffusion:demo"),
        (["--config=diffusion:test", "--config", "flow:test"], "--config is given 2 times: "),
        (["--config=none.py"], "must return a ConfigDict, got NoneType"),
        (["--config=bare.py"], "must take words"),
        (["--config=bare"], "do you mean bare.py?"),
    ],
)
def test_a_recipe_that_cannot_be_is_an_error_of_one_line(command, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    for name, text in RECIPES.items():
        (tmp_path / f"{name}.py").write_text(text)
    done = command("train.py", *flags)
    assert done.code == 2 and done.err.startswith("error: ") and message in done.err


def test_a_file_of_the_current_folder_does_not_hide_a_recipe(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "diffusion").write_text("raise SystemExit('the wrong file')")
    done = command("train.py", "--config=diffusion:test", "--config.method.net.widht=3")
    assert done.code == 2 and "did you mean 'method.net.width'?" in done.err


def test_the_version_is_printed(finish):
    assert finish("-m", "zoo", "--version", devices=1).out.strip() == zoo.__version__
