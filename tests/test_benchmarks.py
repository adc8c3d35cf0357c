import json
import sys

from benchmarks import accelerator
from zoo import config as configs
from zoo.families import FAMILIES


def test_a_row_that_fails_or_hangs_costs_itself_alone(tmp_path):
    report = accelerator.Report(tmp_path / "out", rehearse=True, minutes=1)
    report.run("good", ["-c", "print('words'); print('{\"seconds\": 2}')"])
    report.run("broken", ["-c", "raise SystemExit('no such thing')"])
    report.run("endless", ["-c", "import time; print('begun', flush=True); time.sleep(60)"], seconds=0.5)
    (tmp_path / "lines").write_text('{"loss": 1}\n{"loss": 0}\n')
    report.run("file", ["-c", ""], result=tmp_path / "lines")
    rows = json.loads((tmp_path / "out" / "report.json").read_text())
    assert rows["good"]["seconds"] == 2 and rows["good"]["exit_code"] == 0
    assert rows["broken"]["exit_code"] == 1 and rows["endless"]["exit_code"] == -15
    assert rows["file"]["loss"] == 0
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "no such thing" in log and "begun" in log


def test_tables_hold_what_was_measured(tmp_path):
    measured = dict.fromkeys((key for key, _, _ in accelerator.COLUMNS.values()), 0.5)
    rows = {"diffusion": measured | {"machine": "1 x card", "jax": "9", "command": "c"}}
    rows |= {"GAN": {"exit_code": 1, "command": "python -m zoo bench"}}
    text = accelerator.markdown(rows)
    assert "1 x card, jax 9" in text and "| 500.00 |" in text and "| 50.0% |" in text
    assert "GAN: `python -m zoo bench`" in text and '"exit_code": 1' in text


def test_every_part_of_the_plan_runs_its_own_rows(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else main sets it for the tests that follow
    monkeypatch.setattr(accelerator, "run_program", lambda command, seconds: asked.append(command[1:]) or ("", 0))
    for part, program in (("comparison", "benchmarks.torch_twin"), ("training", "bench"), ("result", "train.py")):
        asked.clear()
        monkeypatch.setattr(sys, "argv", ["accelerator", "--out", str(tmp_path), "--rehearse", "--part", part])
        accelerator.main()
        assert program in asked[0]


def test_every_family_has_a_row():
    methods = [configs.load(spec).method for spec, *_ in accelerator.RECIPES.values()]
    named = {method.name for method in methods} | {method.base.name for method in methods if "base" in method}
    assert named == set(FAMILIES) - {"rewarded"}, "give the new family a row"  # a reward needs a trained run
