import json
import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest

from zoo import loop
from zoo.errors import UserError
from zoo.training import processes
from zoo.training.checkpoint import Checkpoints

FAILING_ALONE = """
import sys
from zoo.commands import train
from zoo.errors import UserError
from zoo.training import processes
from zoo.loop import Training
batches = Training.batches

def broken(self, start):
    for i, batch in enumerate(batches(self, start)):
        if i == 2 and not processes.first():
            raise UserError("an image of this process is damaged")
        yield batch

Training.batches = broken
train.COMMAND.run(["train.py", *sys.argv[1:]])
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="session")
def pair(start):
    """pair(first's words, second's words) -> two processes of two devices each, begun together."""

    def pair(*words):
        join = f"--coordinator=localhost:{free_port()}", "--num_processes=2"
        return [start(*own, *join, f"--process_id={i}", devices=2) for i, own in enumerate(words)]

    return pair


def ends(started, seconds=300):
    """The exit codes of processes, and what they wrote to stderr."""
    outputs = [process.communicate(timeout=seconds) for process in started]
    return [process.returncode for process in started], [err for _, err in outputs]


@pytest.fixture(scope="module")
def together(short, words_of, pair, tmp_path_factory):
    """The workdir of two processes of two devices each, which trained what `trained` did."""
    workdir = tmp_path_factory.mktemp("processes") / "run"
    words = "train.py", *words_of(short), f"--workdir={workdir}"
    codes, errors = ends(pair(words, words))
    assert codes == [0, 0], errors
    return workdir


@pytest.mark.slow
def test_two_processes_train_what_one_does(together, trained, saved_state):
    (step, two), (_, one) = saved_state(together), saved_state(trained)
    assert step == 4
    for name in ("params", "ema", "optimizer"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), two[name], one[name])


@pytest.mark.slow
@pytest.mark.parametrize("spec", ["configs/video.py:images,test", "configs/upsample.py:time,test"])
def test_two_processes_train_on_videos_what_one_does(tiny, pair, saved_state, tmp_path, spec):
    loop.train(tiny({"loop.grid_every": 0}, spec), tmp_path / "one")
    words = "train.py", f"--config={spec}", "--config.loop.grid_every=0", f"--workdir={tmp_path / 'two'}"
    codes, errors = ends(pair(words, words))
    assert codes == [0, 0], errors
    (step, two), (_, one) = (saved_state(tmp_path / name) for name in ("two", "one"))
    assert step == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), two["params"], one["params"])


@pytest.mark.slow
def test_each_number_is_written_once(together, trained):
    two, one = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (together, trained)
    )
    assert [line["step"] for line in two] == [1, 2, 3, 4]
    for a, b in zip(two, one, strict=True):
        assert a["model/loss"] == pytest.approx(b["model/loss"], rel=1e-5)


@pytest.mark.slow
def test_checkpoints_and_grids_are_written_once(together):
    assert Checkpoints(together, read_only=True).steps() == [2, 4]
    assert not list((together / "checkpoints").glob("*tmp*"))
    assert [file.name for file in (together / "samples").iterdir()] == ["step_0000004.png"]


@pytest.mark.slow
def test_what_two_processes_left_is_what_one_can_go_on_from(together, saved_state):
    assert {"metadata", "params", "ema", "optimizer"} <= {
        path.name for path in (together / "checkpoints" / "4").iterdir()
    }
    assert (together / "config.json").read_text()
    assert saved_state(together, 2)[1]["step"] == 2


@pytest.mark.slow
def test_both_go_on_from_the_checkpoint_that_the_first_can_read(together, words_of, short, pair, saved_state, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(together, workdir)
    for file in (workdir / "checkpoints" / "4" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    words = "train.py", *words_of(short)
    elsewhere = tmp_path / "disk_of_the_second"  # which has no checkpoint at all
    codes, errors = ends(pair((*words, f"--workdir={workdir}"), (*words, f"--workdir={elsewhere}")))
    assert codes == [0, 0], errors
    assert "step 4 is damaged" in errors[0] and "resuming from step 2" in errors[0]
    (_, recovered), (_, before) = saved_state(workdir), saved_state(together)
    jax.tree.map(np.testing.assert_array_equal, recovered["params"], before["params"])
    assert (workdir / "damaged_checkpoint_4").is_dir()


@pytest.mark.slow
def test_a_grid_that_cannot_be_written_ends_both(words_of, short, pair, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "samples").write_text("a file where the folder should be")
    words = "train.py", *words_of(short), f"--workdir={workdir}"
    codes, errors = ends(pair(words, words), seconds=120)
    assert codes == [2, 2], errors
    assert all("samples" in error.splitlines()[-1] for error in errors)
    assert 4 in Checkpoints(workdir, read_only=True).steps()


@pytest.mark.slow
def test_sigterm_to_one_stops_both_at_the_same_step(tiny, words_of, pair, tmp_path):
    workdir = tmp_path / "run"
    every = {"loop.log_every": 300, "loop.checkpoint_every": 300, "loop.grid_every": 0}
    words = "train.py", *words_of(tiny({"loop.steps": 100_000} | every)), f"--workdir={workdir}"
    started = pair(words, words)
    while not (workdir / "checkpoints" / "300").exists() and started[0].poll() is None:
        time.sleep(0.1)
    started[1].send_signal(signal.SIGTERM)
    codes, errors = ends(started, seconds=120)
    assert codes == [0, 0], errors
    assert "stopped and saved at step" in errors[0]
    assert 300 < Checkpoints(workdir, read_only=True).steps()[-1] < 600  # not at the next log


@pytest.mark.slow
def test_an_error_of_one_process_alone_does_not_leave_the_other_waiting(tiny, words_of, pair, tmp_path):
    config = tiny({"loop.steps": 100_000, "loop.checkpoint_every": 100_000, "loop.grid_every": 0})
    words = "-c", FAILING_ALONE, *words_of(config), f"--workdir={tmp_path / 'run'}"
    began = time.monotonic()
    codes, errors = ends(pair(words, words), seconds=120)
    assert "error: an image of this process is damaged" in errors[1]
    assert 0 not in codes and time.monotonic() - began < 120


@pytest.mark.slow
@pytest.mark.parametrize("change", ["--config.seed=5", "--config.data.source=scenes/one?examples=90"])
def test_processes_of_different_configs_are_refused(words_of, short, pair, tmp_path, change):
    words = "train.py", *words_of(short), f"--workdir={tmp_path / 'run'}"
    codes, errors = ends(pair(words, (*words, change)), seconds=120)
    assert codes == [2, 2], errors
    assert all("process 1 has another config than process 0" in error for error in errors)


def test_joining_needs_all_three_flags():
    for given in (("localhost", 2, 0), ("localhost:80", None, 0), ("localhost:80", 2, 2), ("localhost:80", 2, None)):
        with pytest.raises(UserError, match="coordinator"):
            processes.join(*given)


def test_alone_the_first_decides_by_itself():
    assert processes.from_first(lambda: {"step": 3}) == {"step": 3}
    tree = {"a": np.arange(3)}
    assert processes.arrays_from_first(tree) is tree
    processes.check_same("number of training items", 5)
