import json
import socket

import jax
import numpy as np
import pytest

from zoo.training.checkpoint import Checkpoints


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def together(short, words_of, start, tmp_path_factory):
    """The workdir of two processes of two devices each, which trained what `trained` did."""
    workdir = tmp_path_factory.mktemp("processes") / "run"
    flags = [*words_of(short), f"--workdir={workdir}", f"--coordinator=localhost:{free_port()}"]
    processes = [start("train.py", *flags, "--num_processes=2", f"--process_id={i}", devices=2) for i in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    return workdir


@pytest.mark.slow
def test_two_processes_train_what_one_does(together, trained, saved_state):
    (step, two), (_, one) = saved_state(together), saved_state(trained)
    assert step == 4
    for name in ("params", "ema", "optimizer"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), two[name], one[name])


@pytest.mark.slow
def test_each_number_is_written_once(together, trained):
    two, one = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (together, trained)
    )
    assert [line["step"] for line in two] == [1, 2, 3, 4]
    for a, b in zip(two, one, strict=True):
        assert a["model/loss"] == pytest.approx(b["model/loss"], rel=1e-5)


def test_checkpoints_and_grids_are_written_once(together):
    assert Checkpoints(together, read_only=True).steps() == [2, 4]
    assert not list((together / "checkpoints").glob("*tmp*"))
    assert [file.name for file in (together / "samples").iterdir()] == ["step_0000004.png"]


def test_what_two_processes_left_is_what_one_can_go_on_from(together, saved_state):
    assert {"metadata", "params", "ema", "optimizer"} <= {
        path.name for path in (together / "checkpoints" / "4").iterdir()
    }
    assert (together / "config.json").read_text()
    assert saved_state(together, 2)[1]["step"] == 2
