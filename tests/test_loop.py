import functools
import json
import math
import re
import shutil
import signal
import time
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from zoo import loop
from zoo.errors import UserError
from zoo.nets.layers import SwiGLU
from zoo.runs.data import Data
from zoo.runs.dependencies import open_run
from zoo.training import metrics
from zoo.training.checkpoint import Checkpoints
from zoo.training.diagnosis import Profile, stopping_at_nans
from zoo.training.shutdown import GracefulShutdown

# Long enough to be killed in the middle of.
LONG = {
    "loop.steps": 400,
    "loop.steps_per_call": 4,
    "loop.log_every": 40,
    "loop.checkpoint_every": 40,
    "loop.grid_every": 0,
}

SLOW = pytest.mark.slow


def lines_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def fresh(workdir, target):
    """A run that has begun with the same config but holds no checkpoint."""
    shutil.copytree(workdir, target)
    shutil.rmtree(target / "checkpoints")
    return target


# ---- what a run leaves behind


def test_metrics_have_the_promised_names(trained):
    lines = lines_of(trained)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    names = {"model/loss", "model/grad_norm", "model/update_norm", "model/learning_rate", "skipped_updates"}
    rates = {"images_per_second", "flops_per_second", "share_of_matmul_peak"}
    for line in lines:
        assert names <= line.keys() and all(math.isfinite(line[name]) for name in names)
    assert rates <= lines[-1].keys() and all(lines[-1][name] > 0 for name in rates)  # the first step compiles
    assert lines[-1]["skipped_updates"] == 0


def test_rates_fit_together(trained, short):
    recipe_flops = [line["flops_per_second"] / line["images_per_second"] for line in lines_of(trained)[1:]]
    assert max(recipe_flops) == pytest.approx(min(recipe_flops), rel=1e-6)
    # Every parameter that multiplies takes part at least once forwards, in an image of at least one token.
    assert recipe_flops[0] > 2 * 32 * 32


def test_a_grid_is_drawn_with_a_cell_for_each_prompt(trained, short):
    [grid] = sorted((trained / "samples").iterdir())
    assert grid.name == "step_0000004.png"
    width, height = Image.open(grid).size
    assert width >= 2 * short.data.size and height >= short.data.size


@pytest.mark.slow
def test_a_step_is_saved_before_it_is_drawn(tiny, tmp_path, monkeypatch):
    def fail(self, step, state):
        raise OSError("no image")

    monkeypatch.setattr(loop.Training, "draw_grid", fail)
    with pytest.raises(OSError, match="no image"):
        loop.train(tiny({"loop.checkpoint_every": 1, "loop.grid_every": 1}), tmp_path / "run")
    assert Checkpoints(tmp_path / "run", read_only=True).steps() == [1]


def test_captions_for_the_grid_that_are_missing_are_an_error_before_training(tiny, tmp_path, monkeypatch):
    plain = Data.open

    def no_test(self, split):
        if split == "test":
            raise UserError("there is no split test")
        return plain(self, split)

    monkeypatch.setattr(Data, "open", no_test)
    with pytest.raises(UserError, match="no split test"):
        loop.train(tiny({"loop.grid_prompts": ()}), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_run_keeps_its_config(trained, short):
    assert (trained / "config.json").read_text() == loop.configs.to_json(short)


# ---- resuming


def test_half_the_steps_and_the_other_half_equal_all_bit_for_bit(copied, trained, short, same, saved_state, capsys):
    shutil.rmtree(copied / "checkpoints" / "4")
    final = loop.train(short, copied)
    said = capsys.readouterr().err
    assert "resuming from step 2" in said and "is trained to step 4;" in said
    assert re.search(r"^step 4 of 4: model/loss \d\.\d{4}$", said, re.MULTILINE), said
    step, whole = saved_state(trained)
    assert step == final.step == 4
    for name, field in saved_state(copied)[1].items():
        assert same(field, whole[name]), name
    assert same(final.params, whole["params"])


@pytest.mark.slow
def test_the_same_config_trains_to_the_same_bits(trained, short, tmp_path, same, saved_state):
    loop.train(short, tmp_path / "again")
    assert same(saved_state(tmp_path / "again"), saved_state(trained))


def test_a_run_that_is_trained_stays_as_it_is_with_a_note(copied, trained, short, same, saved_state, capsys):
    before = (copied / "metrics.jsonl").read_text()
    final = loop.train(short, copied)
    assert "is trained to step 4;" in capsys.readouterr().err
    loop.train(short, copied, profile=2)
    assert "no step left to trace" in capsys.readouterr().err
    assert final.step == 4 and (copied / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_a_run_can_be_made_longer(copied, tiny, short, capsys):
    longer = short.copy_and_resolve_references()
    longer.loop.update(steps=6, grid_every=0)
    final = loop.train(longer, copied)
    err = capsys.readouterr().err
    assert "the run goes on with" in err and "loop.steps: 4 -> 6" in err and "resuming from step 4" in err
    assert final.step == 6 and Checkpoints(copied, read_only=True).steps() == [4, 6]


def test_fewer_steps_than_were_done_is_no_training(copied, short):
    shorter = short.copy_and_resolve_references()
    shorter.loop.steps = 3
    assert loop.train(shorter, copied).step == 4


def test_a_workdir_of_another_run_is_refused_with_the_difference(copied, short):
    other = short.copy_and_resolve_references()
    other.seed = 5
    before = (copied / "config.json").read_text()
    with pytest.raises(UserError, match="holds another run; it differs in seed: 0 -> 5; choose another --workdir"):
        loop.train(other, copied)
    assert (copied / "config.json").read_text() == before


def test_a_checkpoint_of_another_run_is_refused_even_without_its_config_json(copied, short):
    other = short.copy_and_resolve_references()
    other.method.caption_drop = 0.3
    (copied / "config.json").unlink()
    with pytest.raises(UserError, match="holds another run; it differs in method.caption_drop: 0.1 -> 0.3"):
        loop.train(other, copied)


def test_a_config_that_cannot_be_used_does_not_take_the_workdir(short, trained, tmp_path):
    wrong = short.copy_and_resolve_references()
    wrong.method.net.patch_size = 7
    with pytest.raises(UserError):
        loop.train(wrong, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def stop_at(monkeypatch, number, step):
    """Makes the loop get a signal as it logs a step."""
    log = loop.Training.log

    def and_signal(self, at, *rest):
        if at == step:
            signal.raise_signal(number)
        return log(self, at, *rest)

    monkeypatch.setattr(loop.Training, "log", and_signal)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_prints_how_to_resume(
    number, trained, short, tmp_path, same, saved_state, monkeypatch, capsys
):
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    workdir = fresh(trained, tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_at(patch, number, 3)
        assert loop.train(short, workdir).step == 3
    assert "stopped and saved at step 3 of 4; the same command resumes" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
    loop.train(short, workdir)
    assert same(saved_state(workdir), saved_state(trained))


@pytest.fixture
def usual_interrupt():
    """Ctrl-C as a command has it: what runs tests side by side ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_is_acknowledged_and_a_second_one_acts_as_usual(usual_interrupt, capfd):
    with pytest.raises(KeyboardInterrupt), GracefulShutdown() as shutdown:
        signal.raise_signal(signal.SIGINT)
        assert shutdown.requested and "the same signal again ends at once" in capfd.readouterr().err
        signal.raise_signal(signal.SIGINT)


# ---- in a process of its own


def wait_for_checkpoint(workdir, process, newer_than=0):
    """Returns the newest whole checkpoint's step, when there is one newer than this."""
    while process.poll() is None:
        steps = [int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()]
        if max(steps, default=0) > newer_than:
            return max(steps)
        time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


@pytest.mark.slow
def test_a_run_that_was_stopped_and_killed_ends_as_one_that_was_not(
    tiny, tmp_path, words_of, start, finish, same, saved_state
):
    config = tiny(LONG)
    words = ["train.py", *words_of(config), f"--workdir={tmp_path / 'run'}"]

    process = start(*words)
    first = wait_for_checkpoint(tmp_path / "run", process)
    assert open_run(tmp_path / "run").step >= first  # a run that is training can be read
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "the same command resumes" in err and "Traceback" not in err
    stopped = Checkpoints(tmp_path / "run", read_only=True).steps()[-1]
    assert stopped < 400

    process = start(*words)
    wait_for_checkpoint(tmp_path / "run", process, newer_than=stopped)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert Checkpoints(tmp_path / "run", read_only=True).steps()[-1] < 400

    done = finish(*words)
    assert done.code == 0 and "resuming from step" in done.err, done.err
    loop.train(config, tmp_path / "whole")
    assert same(saved_state(tmp_path / "run"), saved_state(tmp_path / "whole"))


# ---- what cannot be


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"loop.steps": 5, "loop.steps_per_call": 2}, "loop.steps 5 less the 0 done is no multiple"),
        ({"data.batch_size": 6}, "data.batch_size 6 cannot be divided by 4 devices"),
        ({"loop.accumulate": 3}, "use a multiple of 12"),
        # before data is looked for:
        ({"data.batch_size": 6, "data.source": "scenes/won"}, "cannot be divided by 4 devices"),
        ({"loop.steps": 5, "loop.steps_per_call": 2, "data.source": "scenes/won"}, "no multiple"),
        ({"loop.steps_per_call": 0}, "steps_per_call"),
        ({"loop.accumulate": 0}, "accumulate"),
        ({"method.net.patch_size": 7}, "patch_size"),
        ({"data.source": "scenes/won"}, "did you mean 'one'"),
        ({"data.source": "scene/one"}, "did you mean 'scenes'"),
    ],
)
def test_a_value_that_cannot_be_is_an_error_before_training(tiny, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        loop.train(tiny(changes), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_resumed_run_must_end_at_a_whole_call(copied, short):
    other = short.copy_and_resolve_references()
    other.loop.update(steps=8, steps_per_call=8)
    with pytest.raises(UserError, match="loop.steps 8 less the 4 done is no multiple of loop.steps_per_call 8"):
        loop.train(other, copied)


@pytest.mark.parametrize(
    "steps_per_call, every, ends", [(1, 2, [2, 4, 6]), (4, 6, [8, 12]), (4, 2, [4, 8, 12]), (3, 0, [])]
)
def test_what_is_due_is_done_once_in_the_call_that_passes_it(steps_per_call, every, ends):
    due = loop.Loop(steps=99, steps_per_call=steps_per_call).due
    last = ends[-1] if ends else 9
    assert [step for step in range(steps_per_call, last + 1, steps_per_call) if due(every, step)] == ends


@pytest.mark.slow
def test_a_run_that_diverges_stops_and_names_the_first_bad_metric(trained, tiny, tmp_path):
    config = tiny(
        {
            "loop.steps": 40,
            "loop.max_bad_steps": 3,
            "loop.grid_every": 0,
            "loop.checkpoint_every": 2,
            "players.model.learning_rate": 1e30,
        }
    )
    with pytest.raises(UserError, match="not finite, first of all model/loss.*another --workdir"):
        loop.train(config, tmp_path / "run")
    assert not Checkpoints(tmp_path / "run", read_only=True).steps()  # the first is due after a bad step
    steps = [line["step"] for line in lines_of(tmp_path / "run")] if (tmp_path / "run/metrics.jsonl").exists() else []
    assert max(steps, default=0) <= 3
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert "NaN" not in line and "Infinity" not in line  # which are not JSON


def test_metrics_of_a_window_leave_out_what_is_not_finite():
    class OnDevice:
        def __init__(self, *values):
            self.values = np.array([values])

        def addressable_data(self, _):
            return self.values

    window = loop.Window()
    window.add({"a": OnDevice(1.0, math.nan), "b": OnDevice(1.0, 2.0)})
    window.add({"a": OnDevice(3.0, math.inf), "b": OnDevice(3.0, math.nan)})
    means, bad = window.take()
    assert means == {"a": 2.0, "b": 2.0} and bad == "a"
    window.add({"a": OnDevice(math.nan), "b": OnDevice(5.0)})
    means, bad = window.take()
    assert math.isnan(means["a"]) and means["b"] == 5.0 and bad == "a"


def test_a_workdir_in_which_nothing_was_logged_takes_another_config(copied, tiny):
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(UserError, match="holds another run; it differs in data.batch_size: 8 -> 4"):
        loop.check_workdir(copied, tiny({"data.batch_size": 4}), None)
    (copied / "metrics.jsonl").write_text("")
    loop.check_workdir(copied, tiny({"data.batch_size": 4}), None)
    with pytest.raises(UserError, match="holds another run"):
        loop.check_workdir(copied, tiny({"data.batch_size": 4}), (copied / "config.json").read_text())


def test_what_was_due_where_a_run_was_stopped_is_made_by_the_same_command(copied, short, same, saved_state):
    grid, before = copied / "samples" / "step_0000004.png", saved_state(copied)
    drawn = grid.read_bytes()
    grid.unlink()  # as if the process had been killed between saving and drawing
    assert loop.train(short, copied).step == 4
    assert grid.read_bytes() == drawn and same(saved_state(copied), before)
    every = loop.Loop(steps=4, grid_every=4, held_out_every=2, score_every=3)
    left = lambda step: metrics.missing(copied, step, every.due_at(step))
    assert left(4) == ["held_out", "score"] and left(2) == ["held_out"] and left(1) == left(5) == left(0) == []
    with metrics.Writer(copied) as writer:
        writer.scalars(4, {"held_out/model/loss": 1.0, "score/all": 0.5})
    assert not left(4)


def test_a_resumed_run_drops_later_lines_and_half_lines(copied, capsys):
    with open(copied / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 5, "model/lo\xff')  # as a power cut leaves it
    assert [row["step"] for row in metrics.read(copied)] == [1, 2, 3, 4]
    metrics.prune(copied, 2)
    with metrics.Writer(copied) as writer:
        writer.scalars(3, {"a": 2.0})
    assert [row["step"] for row in lines_of(copied)] == [1, 2, 3] and not capsys.readouterr().err
    metrics.prune(copied, 0)  # a run that begins anew
    assert "they are in metrics_before.jsonl" in capsys.readouterr().err and not (copied / "metrics.jsonl").exists()
    with metrics.Writer(copied) as writer:
        writer.scalars(1, {"a": 3.0})
    metrics.prune(copied, 0)  # and anew again
    assert len((copied / "metrics_before.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_run_of_which_no_step_is_finite_is_an_error_however_many_are_allowed(tiny, tmp_path):
    changes = {"players.model.learning_rate": 1e30, "loop.steps": 3, "loop.max_bad_steps": 200, "loop.grid_every": 0}
    with pytest.raises(UserError, match="the last [23] steps up to 3 were not finite"):
        loop.train(tiny(changes | {"players.model.clip_norm": 1e30, "loop.steps": 3}), tmp_path / "run")


# ---- what helps to find a fault


def test_a_run_of_one_call_has_no_trace(tmp_path, capsys):
    with Profile(tmp_path, 5) as profile:
        profile.count(2, {})
    assert "a trace of 0 steps is empty: no call followed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trace_of_some_steps_is_written(tiny, tmp_path, capsys):
    loop.train(tiny({"loop.steps": 4, "loop.grid_every": 0}), tmp_path / "run", profile=2)
    assert f"a trace of 2 steps is in {tmp_path / 'run' / 'profile'}" in capsys.readouterr().err
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_run_that_ends_before_the_trace_writes_what_there_is(tiny, tmp_path):
    loop.train(tiny({"loop.steps": 2, "loop.grid_every": 0}), tmp_path / "run", profile=100)
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "spec, tolerance",  # where a gradient is 0 but for rounding, Adam makes a whole step of it
    [("configs/diffusion.py:test", 1e-5), pytest.param("configs/gan.py:test", 1e-3, marks=SLOW)],
)
def test_debugging_changes_rounding_alone_where_all_is_finite(tiny, tmp_path, spec, tolerance):
    config = tiny({"loop.steps": 2, "loop.grid_every": 0}, spec)
    plain = loop.train(config, tmp_path / "plain").params
    debugged = loop.train(config, tmp_path / "debugged", debug_nans=True).params
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=tolerance), debugged, plain)


@pytest.mark.slow
def test_debugging_names_the_first_layer_that_is_not_finite(tiny, tmp_path, monkeypatch):
    plain = SwiGLU.__call__

    def broken(self, x):
        return plain(self, x) / (0.0 if self.path[:2] == ("network", "layers") else 1.0)

    broken.__name__ = "__call__"
    monkeypatch.setattr(SwiGLU, "__call__", nn.module.wrap_method_once(broken))
    with pytest.raises(UserError, match=r"first layer is network/layers/mlp \(SwiGLU\)"):
        loop.train(tiny({"loop.steps": 2, "loop.grid_every": 0}), tmp_path / "run", debug_nans=True)


@pytest.mark.slow
def test_debugging_names_where_a_gradient_alone_is_not_finite(tiny, tmp_path, monkeypatch):
    plain = SwiGLU.__call__
    root = lambda x: jnp.sqrt(jnp.abs(x)) * 0.0  # finite, and of infinite slope where x is 0
    monkeypatch.setattr(SwiGLU, "__call__", lambda self, x: plain(self, x) + root(x - x))
    with pytest.raises(UserError, match="model/grad_norm was not finite up to step 1; all layers gave finite values"):
        loop.train(tiny({"loop.steps": 2, "loop.grid_every": 0}), tmp_path / "run", debug_nans=True)


def test_debugging_looks_at_every_step_of_a_call_and_at_losses_first():
    state = SimpleNamespace(step=jnp.array([3]))

    def stop(**metrics):
        values = {name: jnp.array([value]) for name, value in metrics.items()}
        stopping_at_nans(lambda *_: (state, values))(state, {}, {})

    stop(loss=[1.0, 2.0])
    with pytest.raises(UserError, match="model_grad_norm was not finite up to step 3; .* a gradient did not"):
        stop(model_grad_norm=[math.nan, 1.0], model_loss=[1.0, 1.0])
    with pytest.raises(UserError, match="model_loss was not finite up to step 3; .* the loss did not"):
        stop(model_grad_norm=[math.nan, 1.0], model_loss=[math.nan, 1.0])


def test_the_number_of_threads_and_workers_may_change(copied, short):
    config = short.copy_and_resolve_references()
    config.data.threads, config.data.workers = 3, 0
    assert loop.train(config, copied).step == 4


@pytest.mark.slow
def test_a_device_out_of_memory_is_one_line(tiny, tmp_path, monkeypatch):
    def fail(self, *_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.")

    monkeypatch.setattr(loop.Training, "go", fail)
    names = r"loop.accumulate \(now 1\).*remat.*data.batch_size \(now 8\)"
    with pytest.raises(UserError, match=f"a device is out of memory: raise {names}"):
        loop.train(tiny({"data.batch_size": 8}), tmp_path / "run")
    monkeypatch.setattr(loop.Training, "go", lambda *_: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("INTERNAL")))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        loop.train(tiny({"data.batch_size": 8}), tmp_path / "other")
