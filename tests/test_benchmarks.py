import importlib.util
import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import accelerator, attention, equal_bits, erasing
from benchmarks.fed_noise import KINDS, FedNoise
from zoo import config as configs
from zoo import loop
from zoo.families import FAMILIES, build_method
from zoo.nets.transformer import SPACE_TIME


def test_a_row_that_fails_or_hangs_costs_itself_alone(tmp_path):
    chosen = SimpleNamespace(out=tmp_path / "out", rehearse=True, minutes=1, recipe=None, row_seconds=75.0)
    report = accelerator.Report(chosen)
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
    words = ["accelerator", "--out", str(tmp_path), "--rehearse", "--part=training", "--recipe=VAE", "--recipe=Jet"]
    asked.clear()
    monkeypatch.setattr(sys, "argv", words)
    accelerator.main()
    assert [" ".join(command[:4]) for command in asked] == [
        "-m zoo bench --config",
        "-m zoo bench --config",
    ] and [command[4] for command in asked] == ["configs/vae.py:test", "configs/flow.py:jet,test"]


def test_every_family_has_a_row():
    methods = [configs.load(spec).method for spec, *_ in accelerator.RECIPES.values()]
    named = {method.name for method in methods} | {method.base.name for method in methods if "base" in method}
    assert named == set(FAMILIES) - {"rewarded", "personalized", "coarse"}, (
        "give the new family a row"
    )  # these need trained runs


@pytest.mark.parametrize("name", accelerator.RECIPES)
def test_the_flags_of_a_row_are_keys_of_its_recipe(name):
    spec, *changes = accelerator.RECIPES[name]
    for kind in (spec, accelerator.tiny(spec)):
        config = configs.load(kind)
        keys = [change.removeprefix("--config.").partition("=")[0] for change in changes]
        assert set(keys) <= configs.flatten(config.to_dict()).keys()


@pytest.mark.slow
def test_the_plan_can_be_rehearsed(tmp_path, start):
    patient = "--minutes=60", "--row_seconds=1200"  # whatever else these cores do
    few = "diffusion", "masked with a critic"  # a row costs half a minute; the recipes are trained in other tests
    words = "--rehearse", f"--out={tmp_path}", *patient, *(f"--recipe={name}" for name in few)
    program = start("-m", "benchmarks.accelerator", *words, devices=1)
    printed, errors = program.communicate(timeout=3600)
    assert program.returncode == 0, errors
    rows = json.loads((tmp_path / "report.json").read_text())
    for name in few:
        assert rows[name]["exit_code"] == 0 and rows[name]["step_s"] > 0 and f"| {name} |" in printed, rows[name]
    for what in ("train", "samples", "score, test_seen", "score, test_unseen"):
        assert rows[what]["exit_code"] == 0, rows[what]
    assert 0 <= rows["score, test_seen"]["model"]["all"] <= 1 and (tmp_path / "samples.png").is_file()
    compared = [rows[f"against PyTorch, {what}"]["exit_code"] for what in ("training", "sampling")]
    assert compared == [0, 0] or not importlib.util.find_spec("diffusers")


@pytest.mark.parametrize("kind", SPACE_TIME)
def test_the_pairs_of_attention_are_counted(kind):
    for frames, side in ((1, 4), (4, 2), (3, 4)):
        assert attention.counted(kind, frames, side) == attention.expected(kind, frames, side**2)
    assert attention.counted("joint", 4, 4) / attention.counted("factorized", 4, 4) == pytest.approx(3.2)


def test_noise_that_is_fed_reaches_the_scores_and_samples_are_codes(tiny):
    fields = {name: value for name, value in tiny({}, "configs/tokens.py:masked,test").method.items() if name != "name"}
    method = FedNoise(**fields, vocab_size=64, dtype=jnp.float32, codes=11)
    ids, cond = jnp.zeros((8, 1, 4, 4, 1), jnp.int32), {"tokens": jnp.full((8, 3), 5)}
    batch, keys = {"inputs": ids, "cond": cond}, jax.random.split(jax.random.key(1), 8)
    params = method.init(jax.random.key(0), batch)
    loss, _ = method.loss("model", params, batch, jax.random.key(0), None, 0)
    np.testing.assert_allclose(loss, np.log(11), rtol=1e-5)  # all scores start at 0
    rough = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), params)
    one, other = (method.logits(rough, ids + 11 + kind, cond) for kind in (0, KINDS - 1))
    assert np.abs(one - other).max() > 1e-3
    made = method.sample(rough, keys, cond, ids.shape[1:], method.SampleOptions())
    assert made.shape == ids.shape and made.min() >= 0 and made.max() < 11 and len(np.unique(made)) > 3


def test_so_many_codes_are_replaced_and_found():
    ids = jax.random.randint(jax.random.key(0), (64, 20), 0, 5)
    alike = lambda wrong: jnp.zeros((*wrong.shape, 5))
    changed, wrong = erasing.replaced(jax.random.key(1), ids, 0.1, alike)
    assert ((changed != ids) == wrong).all() and (wrong.sum(axis=1) == 2).all()
    assert len(np.unique((changed - ids)[wrong] % 5)) == 4  # all others
    assert (erasing.found(jnp.where(wrong, 0.0, 1.0), wrong) == 1).all()
    assert (erasing.found(jnp.where(wrong, 1.0, 0.0), wrong) == 0).all()
    guessed = erasing.found(jax.random.uniform(jax.random.key(2), ids.shape), wrong)
    assert 0 < guessed.mean() < 0.25


def test_each_code_is_scored_by_all_others():
    def logits(ids):  # a code is the sum of all others, of which a mask is none
        total = jnp.where(ids == 5, 0, ids).sum(axis=1, keepdims=True)
        return jnp.log(jax.nn.one_hot((total - jnp.where(ids == 5, 0, ids)) % 5, 5))

    ids = jnp.array([[1, 1, 2, 4], [1, 1, 2, 3]])
    found = erasing.log_prob_given_others(logits, ids, 5)
    assert np.exp(found).tolist() == [[(2 * code) % 5 == sum(row) % 5 for code in row] for row in ids.tolist()]


@pytest.mark.parametrize("words", ["masked", "masked,critic"])
def test_every_way_to_find_wrong_codes_is_measured(words, tiny):
    method = build_method(tiny({}, f"configs/tokens.py:{words},test").method.to_dict(), 64, "float32", codes=11)
    codes, cond = jax.random.randint(jax.random.key(0), (8, 1, 4, 4, 1), 0, 11), {"tokens": jnp.full((8, 3), 5)}
    params = method.init(jax.random.key(0), {"inputs": codes, "cond": cond})
    shares = erasing.shares_found(method, params, cond, codes, jax.random.key(1), 0.25)
    assert set(shares) == set(erasing.REPLACED)
    for of in shares.values():
        assert ("by the critic" in of) == ("critic" in words)
        assert len(of) == 3 + ("critic" in words) and all(share.shape == (8,) for share in of.values())


# ---- small images of as many bits as a tokenizer's codes


def test_rivals_take_no_more_bits_than_there_are():
    found = list(equal_bits.rivals(8, 16, 640.0))
    assert {t for t, _, _ in found} == {1, 2, 4, 8}
    for t, s, levels in found:
        assert 2 <= levels <= 256 and 3 * t * s * s * np.log2(levels) <= 640 + 1e-6
        assert levels == 256 or 3 * t * s * s * np.log2(levels + 1) > 640
    assert (1, 5, 256) in found and (1, 6, 60) in found  # 640 / 108 bits a number


def test_a_sample_that_stays_large_with_all_levels_is_itself_and_a_small_one_is_its_mean():
    samples = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(equal_bits.through(samples, 4, 8, 256), samples)
    one = equal_bits.through(samples, 1, 1, 256)
    np.testing.assert_allclose(one, np.broadcast_to(samples.mean((1, 2, 3), keepdims=True), samples.shape), atol=1.01)
    assert set(np.unique(equal_bits.through(samples, 4, 8, 2))) == {0, 255}
    assert (one[:, 0] == one[:, 3]).all()


@pytest.mark.slow
def test_a_tokenizer_and_its_rival_are_printed(tiny, tmp_path, capsys, monkeypatch):
    loop.train(tiny({"loop.steps": 1}, "configs/patches.py:test"), tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["equal_bits", f"--workdir={tmp_path / 'run'}", "--num=4"])
    equal_bits.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"| {16 * np.log2(12):.0f} bits | PSNR | SSIM | oracle, all |") and len(lines) == 4
    assert "area and bicubic: 1 x " in lines[3] and all(line.count("|") == 5 for line in lines)
