import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoo import loop
from zoo.errors import UserError
from zoo.runs.dependencies import open_run
from zoo.training import checkpoint
from zoo.training.checkpoint import Checkpoints, flatten, unflatten
from zoo.training.state import State

METADATA = {"config": {"b": [1, 2.5], "a": None}, "tokenizer": {"text": "\u00e9\n"}, "latents": {}}


def make_state(step, width=5):
    """A state with leaves of all types, none of them round numbers."""
    rng = np.random.default_rng(step)
    params = {
        "model": {
            "layer": {
                "kernel": rng.normal(size=(3, width)).astype(np.float32),
                "scale": np.float32(rng.normal()),
                "half": np.asarray(jnp.asarray(rng.normal(size=4), jnp.bfloat16)),
                "flags": rng.integers(2, size=3).astype(bool),
                "big": rng.integers(2**31 - 1, size=2).astype(np.int32),
            }
        },
        "critic": {"bias": np.array([np.nan, -0.0, np.inf, 1e-40], np.float32)},
    }
    floats = {"kernel": params["model"]["layer"]["kernel"]}
    tx = optax.partition(
        {"learns": optax.adamw(optax.linear_schedule(1.0, 0.0, 9)), "frozen": optax.set_to_zero()}, {"kernel": "learns"}
    )
    optimizer = jax.tree.map(np.asarray, {"model": tx.init(floats), "critic": optax.adam(0.1).init(params["critic"])})
    ema = {"model": {"2": params["model"], "0.5": params["model"]}, "critic": {}}
    return State(np.int32(step), params, optimizer, ema, np.int32(7), np.int32(2))


def fields(state):
    return {name: getattr(state, name) for name in State.__dataclass_fields__}


def save(workdir, *steps, max_to_keep=2):
    checkpoints = Checkpoints(workdir, max_to_keep=max_to_keep)
    for step in steps:
        checkpoints.save(make_state(step), METADATA)
    checkpoints.close()


def restore(workdir, step=None, target=None):
    return Checkpoints(workdir, read_only=True).restore(fields(target or make_state(0)), step)


def files_of(workdir, step, part):
    files = [file for file in (workdir / "checkpoints" / str(step) / part).rglob("*") if file.is_file()]
    assert files
    return files


def test_a_state_comes_back_bit_for_bit(tmp_path, same):
    save(tmp_path, 3)
    step, saved = restore(tmp_path)
    assert step == 3 and same(saved, fields(make_state(3)))


def test_metadata_come_back(tmp_path):
    save(tmp_path, 3)
    assert Checkpoints(tmp_path, read_only=True).metadata() == (3, METADATA)


def test_another_format_version_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    save(tmp_path, 3)
    with pytest.raises(UserError, match="has format version 99, and this version of zoo reads") as caught:
        Checkpoints(tmp_path, read_only=True).metadata()
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_the_first_format_is_refused(tmp_path):
    save(tmp_path, 3)
    (tmp_path / "checkpoints" / "3" / "config").mkdir()
    with pytest.raises(UserError, match="has format version 1"):
        Checkpoints(tmp_path, read_only=True).metadata()


def test_some_fields_can_be_read_without_the_others(tmp_path, same):
    save(tmp_path, 3)
    _, saved = Checkpoints(tmp_path, read_only=True).restore({"params": make_state(0).params})
    assert set(saved) == {"params"} and same(saved["params"], make_state(3).params)


def test_only_the_newest_are_kept(tmp_path, same):
    save(tmp_path, 1, 2, 3, 4, max_to_keep=2)
    assert Checkpoints(tmp_path, read_only=True).steps() == [3, 4]
    for step in (3, 4):
        assert same(restore(tmp_path, step)[1], fields(make_state(step)))


def test_a_step_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path):
    save(tmp_path, 1, 2)
    with pytest.raises(UserError, match=r"no checkpoint of step 7 .* there are \[1, 2\]"):
        restore(tmp_path, 7)


def test_a_folder_without_checkpoints_is_an_error_and_left_alone(tmp_path):
    with pytest.raises(UserError, match="holds no checkpoint"):
        Checkpoints(tmp_path, read_only=True)
    assert not list(tmp_path.iterdir())


def test_a_state_without_averages_or_moments_comes_back(tmp_path, same):
    state = make_state(1).replace(ema={"model": {}, "critic": {}}, optimizer={"model": (), "critic": ()})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, METADATA)
    checkpoints.close()
    assert same(restore(tmp_path, target=state), (1, fields(state)))


def test_before_the_first_save_there_is_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(fields(make_state(0))) is None and checkpoints.metadata() is None


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def overwrite(file):
    file.write_bytes(b"\x5a" * file.stat().st_size)


@pytest.mark.parametrize("damage", [truncate, overwrite, Path.unlink])
@pytest.mark.parametrize("part", ["params", "optimizer"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, same, capsys, damage, part):
    save(tmp_path, 1, 2)
    for file in files_of(tmp_path, 2, part):
        damage(file)
    step, saved = restore(tmp_path)
    assert step == 1 and same(saved, fields(make_state(1)))
    err = capsys.readouterr().err
    assert err.startswith("checkpoint of step 2 is damaged") and err.count("\n") == 1


def test_damaged_metadata_fall_back_too(tmp_path, capsys):
    save(tmp_path, 1, 2)
    for file in files_of(tmp_path, 2, "metadata"):
        overwrite(file)
    assert Checkpoints(tmp_path, read_only=True).metadata()[0] == 1
    assert "checkpoint of step 2 is damaged" in capsys.readouterr().err
    reader, target = Checkpoints(tmp_path, read_only=True), fields(make_state(0))
    assert reader.restore(target)[0] == 2 and reader.restore(target, newest=1)[0] == 1
    with pytest.raises(UserError, match="tried steps up to 0, which are gone"):
        reader.restore(target, newest=0)


def test_a_damaged_checkpoint_that_was_named_is_refused(tmp_path):
    save(tmp_path, 1, 2)
    for file in files_of(tmp_path, 2, "params"):
        overwrite(file)
    with pytest.raises(UserError, match="can be read; tried steps 2"):
        restore(tmp_path, 2)


def test_when_all_are_damaged_it_is_an_error(tmp_path):
    save(tmp_path, 1, 2)
    for step in (1, 2):
        for file in files_of(tmp_path, step, "params"):
            truncate(file)
    with pytest.raises(UserError, match="tried steps 2, 1"):
        restore(tmp_path)


def test_another_architecture_is_refused_and_the_parameters_named(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(UserError) as caught:
        restore(tmp_path, target=make_state(0, width=6))
    message = str(caught.value)
    assert "model.layer.kernel (saved: (3, 5), expected: (3, 6))" in message and "\n" not in message


def test_parameters_that_are_missing_or_too_many_are_named():
    with pytest.raises(UserError, match=r"a.b \(saved: none, expected: \(2,\)\).*c \(saved: \(1,\), expected: none\)"):
        unflatten({"a": {"b": np.zeros(2)}}, {"c": np.zeros(1)}, "params")


def test_flatten_and_unflatten_are_inverse(same):
    for tree in fields(make_state(1)).values():
        assert same(unflatten(tree, flatten(tree), "params"), tree)


def test_a_save_that_was_killed_in_the_middle_leaves_the_one_before(tmp_path, same, capsys):
    save(tmp_path, 1, 2)
    folder = tmp_path / "checkpoints"
    unfinished = folder / "2.orbax-checkpoint-tmp-123"
    (folder / "2").rename(unfinished)
    for name in ("_CHECKPOINT_METADATA", "commit_success.txt"):  # what is written last
        (unfinished / name).unlink(missing_ok=True)
    step, saved = restore(tmp_path)
    assert step == 1 and same(saved, fields(make_state(1))) and not capsys.readouterr().err
    save(tmp_path, 3)
    assert not unfinished.exists()
    assert Checkpoints(tmp_path, read_only=True).steps() == [1, 3]


def test_a_damaged_checkpoint_can_be_set_aside_and_its_step_saved_again(tmp_path, same):
    save(tmp_path, 1, 2)
    for file in files_of(tmp_path, 2, "params"):
        overwrite(file)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.set_aside(newer_than=1)
    assert checkpoints.steps() == [1] and (tmp_path / "damaged_checkpoint_2").is_dir()
    checkpoints.save(make_state(2), METADATA)
    checkpoints.close()
    assert same(restore(tmp_path), (2, fields(make_state(2))))


def test_the_same_step_can_be_damaged_and_set_aside_twice(tmp_path):
    for _ in range(2):
        save(tmp_path, 2)
        Checkpoints(tmp_path).set_aside(newer_than=1)
    assert Checkpoints(tmp_path, read_only=True).steps() == []


def test_reading_a_run_that_is_being_written_neither_fails_nor_harms(tmp_path, same):
    writer = Checkpoints(tmp_path)
    writer.save(make_state(1), METADATA)
    writer.wait()
    for step in (2, 3, 4):
        writer.save(make_state(step), METADATA)
        found, saved = restore(tmp_path)
        assert found in range(1, 5) and same(saved, fields(make_state(found)))
    writer.close()
    assert same(restore(tmp_path), (4, fields(make_state(4))))


def test_an_old_checkpoint_may_vanish_while_the_steps_are_listed(tmp_path, monkeypatch):
    save(tmp_path, 1, 2, 3, max_to_keep=3)
    writer = Checkpoints(tmp_path, max_to_keep=3)
    is_dir = Path.is_dir

    def deleted_meanwhile(path):
        if path.name == "1" and is_dir(path):
            shutil.rmtree(path)
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", deleted_meanwhile)
    assert writer.steps() == [2, 3] and Checkpoints(tmp_path, read_only=True).steps() == [2, 3]


FULL_DISK = """
import resource, sys
import numpy as np
from zoo.errors import exit_on_user_error
from zoo.training.checkpoint import Checkpoints
from zoo.training.state import State

def state(step):
    big = np.random.default_rng(step).normal(size=100_000).astype(np.float32)
    zero = np.zeros((), np.int32)
    return State(zero + step, {"model": {"w": big}}, {"model": {"n": zero}}, {"model": {"2": zero}}, zero, zero)

with exit_on_user_error():
    checkpoints = Checkpoints(sys.argv[1])
    checkpoints.save(state(1), {})
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    checkpoints.save(state(2), {})
    checkpoints.close()
"""


def test_a_full_disk_is_an_error_in_one_line_and_the_checkpoint_before_is_whole(tmp_path, finish):
    done = finish("-c", FULL_DISK, tmp_path, devices=1)
    lines = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert done.code == 2, done.err
    assert len(lines) == 1 and "could not save" in lines[0] and "step 1 is whole" in lines[0]
    assert "Traceback" not in done.err
    step, saved = Checkpoints(tmp_path, read_only=True).restore({"params": {"model": {"w": np.zeros(100_000)}}})
    expected = np.random.default_rng(1).normal(size=100_000).astype(np.float32)
    assert step == 1 and saved["params"]["model"]["w"].tobytes() == expected.tobytes()


# ---- of real runs


def test_a_run_holds_its_last_two_checkpoints_with_config_and_tokenizer(trained, short, saved_state):
    checkpoints = Checkpoints(trained, read_only=True)
    assert checkpoints.steps() == [2, 4]
    assert (
        loop.configs.differences(loop.configs.from_json(json.dumps(checkpoints.metadata()[1]["config"])), short) == []
    )
    assert saved_state(trained)[1]["step"] == 4 and saved_state(trained, 2)[1]["step"] == 2


@pytest.mark.parametrize("part", ["params", "metadata"])
@pytest.mark.slow
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(
    copied, trained, short, same, saved_state, capsys, part
):
    for file in files_of(copied, 4, part):
        truncate(file)
    final = loop.train(short, copied)
    err = capsys.readouterr().err
    assert "checkpoint of step 4 is damaged" in err and "resuming from step 2" in err
    assert (copied / "damaged_checkpoint_4").is_dir()
    assert same(saved_state(copied), saved_state(trained))
    assert final.step == 4


def test_training_does_not_start_anew_over_checkpoints_that_cannot_be_read(copied, short):
    for step in (2, 4):
        for file in files_of(copied, step, "params"):
            overwrite(file)
    with pytest.raises(UserError, match="can be read"):
        loop.train(short, copied)
    assert sorted(path.name for path in (copied / "checkpoints").iterdir() if path.name.isdigit()) == ["2", "4"]


@pytest.mark.parametrize("part", ["ema", "metadata"])
def test_a_damaged_run_can_still_be_sampled_from_its_earlier_checkpoint(copied, part):
    for file in files_of(copied, 4, part):
        overwrite(file)
    assert open_run(copied).step == 2
    shutil.rmtree(copied / "checkpoints" / "2")
    with pytest.raises(UserError, match="can be read"):
        open_run(copied)
