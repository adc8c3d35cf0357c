"""Counting of modes, on images whose scenes are known."""

import json

import numpy as np
import pytest

from zoo import loop
from zoo.evaluation import mode_coverage
from zoo.scenes import world
from zoo.scenes.dataset import make_example


def images_of(*numbers):
    scenes = world.all_still_scenes("one")
    return np.stack([world.render(scenes[i], 16) for i in numbers])


def test_every_mode_is_reached_and_differs_from_the_others():
    every = images_of(*range(0, 1152, 3))
    found = mode_coverage.coverage(every, "one")
    assert (found["readable"].value, found["reached"].value) == (1.0, 384)
    assert found["kl"].value == pytest.approx(np.log(3))  # a third of the modes, equally often
    assert found["nearest_reached"].value == 384 and found["nearest_kl"].value == pytest.approx(np.log(3))


def test_repeated_and_unreadable_images():
    grey = np.full((2, 1, 16, 16, 3), 96, np.uint8)
    found = mode_coverage.coverage(np.concatenate([images_of(5, 5, 5, 7), grey]), "one")
    assert found["readable"].value == pytest.approx(4 / 6) and found["reached"].value == 2
    shares = np.array([0.75, 0.25])
    assert found["kl"].value == pytest.approx((shares * np.log(shares * 1152)).sum())
    assert "kl" not in mode_coverage.coverage(grey, "one")


def test_noise_hides_scenes_from_the_oracle_alone():
    noise = np.random.default_rng(0).normal(0, 40, (64, 1, 16, 16, 3))
    found = mode_coverage.coverage((images_of(*range(64)) + noise).clip(0, 255).astype(np.uint8), "one")
    assert found["readable"].value < 0.2 and found["nearest_reached"].value == 64


def test_two_things_are_no_mode():
    one = world.all_still_scenes("one")
    both = np.where(world.render(one[0], 16) > 0, world.render(one[0], 16), world.render(one[3], 16))
    assert mode_coverage.scene_of(both, "one") is None


@pytest.mark.slow
def test_images_of_the_data_set_are_equally_often_of_each_mode():
    drawn = [make_example("modes", "train", i, 16, 1) for i in range(3000)]
    found = mode_coverage.coverage(np.stack([pixels for pixels, _, _ in drawn]), "one")
    assert found["readable"].value == 1.0
    assert found["reached"].value == len({scene.facts() for _, _, scene in drawn}) > 1000
    assert 0.15 < found["kl"].value < 0.25  # about (1152 - 1) / (2 * 3000)


def test_the_command_counts_a_run(command, tiny, tmp_path):
    run = tmp_path / "run"
    loop.train(tiny({"data.source": "scenes/modes?examples=64", "loop.steps": 1, "loop.grid_every": 0}), run)
    done = command("-m", "zoo", "mode_coverage", f"--workdir={run}", "--num=8", "--per_device=2", "--steps=1")
    assert done.code == 0, done.err
    said = json.loads((run / "mode_coverage.json").read_text())
    assert said["ceiling"]["readable"] == 1.0 and said["ceiling"]["reached"] > 1
    assert said["about"]["num"] == 8 and "reached" in done.out


@pytest.mark.slow
def test_a_run_that_always_had_captions_is_refused(command, tiny, tmp_path):
    changes = {"data.source": "scenes/modes?examples=64", "method.caption_drop": 0.0}
    loop.train(tiny(changes | {"loop.steps": 1, "loop.grid_every": 0}), tmp_path / "run")
    done = command("-m", "zoo", "mode_coverage", f"--workdir={tmp_path / 'run'}", "--num=8")
    assert done.code == 2 and "never trained on the empty caption" in done.err


def test_a_run_on_other_data_is_refused(command, trained):
    done = command("-m", "zoo", "mode_coverage", f"--workdir={trained}", "--num=8")
    assert done.code == 2 and "scenes/modes" in done.err and "not on one" in done.err
