"""The commands of README and docs, each run in a short form, in the order of the pages."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
ORDER = ["README.md", "docs/train.md", "docs/families/personalization.md", "docs/results/*.md", "docs/sample.md"]
ORDER += ["docs/score.md", "docs/edit.md"]
NEEDED = {  # what is missing here
    "tfds:": "a data set that TFDS prepared",
    "benchmarks.accelerator": "a GPU",
    "benchmarks.torch_twin": "PyTorch",
}
# Names that a reader has or gets, beside the runs.
FILES = r"runs/[\w.]+|my_images|my_samples|my_clip|my\.zip|my_pot(?:\.safetensors)?(?!\])|captions\.txt"
FILES += r"|mask\.png|out\.png|between\.gif"
# Values of flags that only cost time.
SHORT = {
    "--num": "4",
    "--steps": "2",
    "--config.loop.steps": "2",
    "--config.loop.score_every": "2",
}
MORE = {
    "bench": ["--seconds=0.1", "--part=step"],
    "clip_eval": ["--num=8"],
    "nfe_sweep": ["--num=4"],
    "score_subject": ["--num_drift=4"],
}


def commands():
    """Yields each command of the pages once."""
    seen = set()
    for pattern in ORDER:
        for page in sorted(ROOT.glob(pattern)):
            for block in re.findall(r"^```\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
                for line in block.splitlines():
                    if line.startswith("python ") and line not in seen:
                        seen.add(line)
                        yield line


def test_every_command_is_on_a_page_that_is_read():
    listed = {page for pattern in ORDER for page in ROOT.glob(pattern)}
    for page in ROOT.glob("docs/**/*.md"):
        assert page in listed or not re.search(r"^```\n(?:[^`]*\n)?python ", page.read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the images and files that the pages speak of."""
    home = tmp_path_factory.mktemp("reader")
    rng = np.random.default_rng(0)
    for folder in ("my_images", "my_samples", "emoji", "my_pot"):
        (home / folder).mkdir()
        for i in range(4 if folder in ("my_samples", "my_pot") else 40):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(home / folder / f"{i}.png")
            (home / folder / f"{i}.txt").write_text("a [V] star" if folder == "my_pot" else f"noise {i}")
    shutil.make_archive(str(home / "my"), "zip", home / "my_images")
    (home / "captions.txt").write_text("\n".join(f"noise {i}" for i in range(4)))
    mask = np.zeros((16, 16), np.uint8)
    mask[:8] = 255
    Image.fromarray(mask).save(home / "mask.png")
    shutil.copytree(ROOT / "zoo" / "pretrained" / "clip_scenes", home / "my_clip")
    (home / "configs").symlink_to(ROOT / "configs")
    return home


def shorten(line, home):
    """Returns the file and the flags of the short form of a command."""
    line = re.sub(rf"(?<![\w/.])({FILES})", lambda found: str(home / found[0]), line)
    line = re.sub(r"(configs/\w+\.py)(:[\w,]+)?", r"\1\2", line)
    line = line.replace("fps=8", "fps=4").replace("frames=8", "frames=4")  # as the videos of tests have
    words = shlex.split(line.removeprefix("python "))
    if words[0] == "-m":
        file, words = f"zoo/commands/{words[2]}.py", words[3:] + MORE.get(words[2], [])
    else:
        file, words = words[0], words[1:]
    short = []
    for word in words:
        name, equals, value = word.partition("=")
        if re.match(r"configs/\w+\.py", word):
            path, _, given = word.partition(":")
            kept = [item for item in given.split(",") if item not in ("", "demo", "cpu")]
            word = f"{path}:{','.join([*kept, 'test'])}"
        elif equals and name in SHORT:
            word = f"{name}={SHORT[name]}"
        elif short and short[-1] in SHORT and not equals:
            word = "1,2" if "," in word else SHORT[short[-1]]
        short.append(word)
    if "score_every" in line:
        short.append("--config.loop.score_num=4")
    if "policy" in line:
        short.append("--config.method.group_size=2")  # which divides the samples of one of the tests' four devices
    return file, short


@pytest.mark.parametrize("line", commands(), ids=lambda line: line[:90])
@pytest.mark.slow
def test_a_command_of_the_docs_runs(line, home, command, monkeypatch):
    monkeypatch.chdir(home)  # where some write files of their default names
    for name, missing in NEEDED.items():
        if name in line:
            pytest.skip(f"needs {missing}")
    file, words = shorten(line, home)
    done = command(file, *words)
    assert done.code == 0, (file, words, done.err[-2000:])


def test_few_commands_are_left_out():
    assert sum(any(name in line for name in NEEDED) for line in commands()) <= 10
