"""Files of changes: what is written is what a plain merge needs, and adding one gives the run that learned it."""

import io
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from zoo import loop
from zoo.adapters import lora
from zoo.adapters.files import Parts, from_tensors, to_tensors
from zoo.adapters.words import set_word
from zoo.errors import UserError
from zoo.runs.adapters import Adapter, save, with_adapters
from zoo.runs.dependencies import open_run
from zoo.trees import flatten

RNG = np.random.default_rng(0)
KERNELS = {
    "model/layers/mlp/kernel": (3, 4, 5),
    "model/out/kernel": (6, 6),
    "model/levels/level_0/key/kernel": (2, 4, 6),
}
TABLES = {"model/conditioner/embedding/embedding": (9, 4)}
TABLE = next(iter(TABLES))
PARAMS = {
    "model": {
        "layers": {"mlp": {"kernel": np.ones((3, 4, 5), np.float32)}},
        "out": {"kernel": np.ones((2, 3, 6), np.float32)},
        "levels": {"level_0": {"key": {"kernel": np.ones((2, 4, 2, 3), np.float32)}}},
    }
}


def parts(rank=2, whole=False):
    random = lambda *shape: RNG.normal(size=shape).astype(np.float32)
    low_rank = {
        path: {"a": random(*stack, rows, rank), "b": random(*stack, rank, columns)}
        for path, (*stack, rows, columns) in KERNELS.items()
    }
    full = {path: random(*shape) for path, shape in KERNELS.items()}
    return Parts({} if whole else low_rank, full if whole else {}, {TABLE: random(1, 4)})


def same_parts(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# ---- the file


def test_keys_are_one_a_layer_and_matrices_are_those_of_other_tools():
    made = to_tensors(parts(), KERNELS, 8.0)
    ends = ("lora_A.weight", "lora_B.weight", "alpha")
    layers = [f"model.layers.{i}.mlp" for i in range(3)] + ["model.out"]
    layers += [f"model.levels.level_0.{i}.key" for i in range(2)]
    assert set(made) == {f"{layer}.{end}" for layer in layers for end in ends} | {"model.conditioner.embedding.word"}
    assert made["model.layers.0.mlp.lora_A.weight"].shape == (2, 4)
    assert made["model.layers.0.mlp.lora_B.weight"].shape == (5, 2)
    assert made["model.levels.level_0.1.key.lora_B.weight"].shape == (6, 2)  # heads are flattened
    assert made["model.out.alpha"] == 8.0


@pytest.mark.parametrize("alpha", [8.0, 3.0])
def test_a_plain_merge_of_the_file_gives_the_same_kernels(tmp_path, alpha):
    learned = parts()
    save_file(to_tensors(learned, KERNELS, alpha), tmp_path / "a.safetensors")
    made, merged = load_file(tmp_path / "a.safetensors"), lora.merge(PARAMS, learned.low_rank, alpha)["model"]
    for i in range(3):
        a, b = (made[f"model.layers.{i}.mlp.lora_{name}.weight"] for name in "AB")
        np.testing.assert_allclose(merged["layers"]["mlp"]["kernel"][i], 1 + alpha / 2 * (b @ a).T, rtol=1e-5)
    a, b = (made[f"model.out.lora_{name}.weight"] for name in "AB")
    np.testing.assert_allclose(np.asarray(merged["out"]["kernel"]).reshape(6, 6), 1 + alpha / 2 * (b @ a).T, rtol=1e-5)


@pytest.mark.parametrize("whole", [False, True])
def test_reading_is_the_inverse_of_writing(whole):
    learned = parts(whole=whole)
    again = from_tensors(to_tensors(learned, KERNELS, 3.0), KERNELS, TABLES, "file")
    for pair in learned.low_rank.values():
        pair["b"] = pair["b"] * np.float32(3.0)
    assert same_parts(again, learned) and set(again.whole) == set(learned.whole)


RENAMED = {
    "PEFT": lambda key: f"base_model.model.{key}",
    "a name of the adapter": lambda key: key.replace("lora_A.", "lora_A.default_0.").replace(
        "lora_B.", "lora_B.default_0."
    ),
    "kohya": lambda key: (
        "lora_unet_"
        + re.sub(
            r"\.(?!(lora_down|lora_up|alpha|weight)\b)",
            "_",
            key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
        )
    ),
}


@pytest.mark.parametrize("tool", RENAMED)
def test_names_of_other_tools_are_read(tool):
    made = to_tensors(parts()._replace(words={}), KERNELS, 3.0)
    renamed = {RENAMED[tool](key): tensor for key, tensor in made.items()}
    assert not renamed.keys() & made.keys() - {key for key in made if key.endswith("alpha")}
    if tool == "kohya":
        assert "lora_unet_model_layers_0_mlp.lora_down.weight" in renamed
    assert same_parts(from_tensors(renamed, KERNELS, TABLES, "x"), from_tensors(made, KERNELS, TABLES, "x"))


def test_a_file_without_alpha_counts_once_and_one_of_some_layers_changes_these():
    made = {key: t for key, t in to_tensors(parts(), KERNELS, 3.0).items() if "layers.1.mlp.lora" in key}
    again = from_tensors(made, KERNELS, TABLES, "x").low_rank["model/layers/mlp/kernel"]
    np.testing.assert_array_equal(again["b"][1], 2 * made["model.layers.1.mlp.lora_B.weight"].T)  # alpha is the rank
    assert not again["a"][0].any() and not again["b"][2].any()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t | {"model.out.dora_scale": np.ones(3)}, "is a DoRA adapter (model.out.dora_scale)"),
        (lambda t: t | {"model.out.hada_w1_a": np.ones(3)}, "is a LoHa adapter"),
        (lambda t: t | {"model.out.weight": np.ones((6, 6))}, "1 of its 20 tensors have no place, as model.out.weight"),
        (lambda t: {f"unet.{key}": x for key, x in t.items() if "mlp" not in key} | {"b.lora_A.weight": 0}, "no place"),
        (lambda t: {}, "0 of its 0 tensors have no place, as none"),
        (lambda t: t | {"model.out.lora_A.weight": np.ones((2, 7))}, "the shape (2, 7), and this run needs (2, 6)"),
        (lambda t: {k: x for k, x in t.items() if k != "model.out.lora_B.weight"}, "lacks a part of the change"),
        (lambda t: t | {"model.layers.1.mlp.lora_A.weight": np.ones((3, 4))}, "have the ranks [2, 3]"),
        (lambda t: t | {"model.out.alpha": np.ones(3)}, "the change of model/out/kernel has the shape (3,)"),
        (lambda t: {"model.conditioner.embedding.lora_A.weight": np.ones((2, 4))}, "lacks a part of the change"),
        (lambda t: t | {"model.conditioner.embedding.word": np.ones((1, 5))}, "needs (any, 4)"),
    ],
)
def test_what_is_no_adapter_of_this_run_is_one_line(change, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        from_tensors(change(to_tensors(parts(), KERNELS, 3.0)), KERNELS, TABLES, "file")
    assert "\n" not in str(caught.value)


def test_a_word_moves_with_the_embedding_it_starts_from():
    table, change = RNG.normal(size=(9, 4)).astype(np.float32), np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(set_word(table, [2, 3], [], change), set_word(table, [2, 3], [], change, [2, 3]))
    moved = np.asarray(set_word(table, [6, 7], [], change, [2, 3]))
    np.testing.assert_array_equal(moved[6:8], table[2:4] + 1)
    np.testing.assert_array_equal(moved[:6], table[:6])


@pytest.mark.parametrize("strength", ["nan", "inf", ""])
def test_a_strength_is_a_finite_number(strength):
    with pytest.raises(UserError, match="is no strength"):
        Adapter.of(f"a.safetensors@{strength}")


@pytest.mark.parametrize(
    "word, expected",
    [("a.safetensors", ("a.safetensors", 1.0)), ("a@b/c@0.5", ("a@b/c", 0.5)), ("x@-1", ("x", -1.0))],
)
def test_a_strength_stands_after_the_file(word, expected):
    assert Adapter.of(word) == expected
    with pytest.raises(UserError, match="'half' is no strength"):
        Adapter.of("a.safetensors@half")


# ---- runs


@pytest.fixture(scope="module")
def learned(tiny, trained, tmp_path_factory):
    """learned("lora", "pot") -> the workdir of a run that learned this word, and the file of it."""
    made = {}

    def learned(words, name="pot", base=trained):
        if (words, name) not in made:
            folder = tmp_path_factory.mktemp("learned")
            images = folder / name
            images.mkdir()
            for i in range(2):
                _image(images / f"{i}.png")
                (images / f"{i}.txt").write_text("a [V] star at the top left")
            given = {"init": str(base), "data.subject": str(images), "data.class_name": "star", "loop.grid_every": 0}
            rate = {"players.model.learning_rate": 0.05, "method.prior_weight": 0.0}
            loop.train(tiny(given | rate, f"configs/personalize.py:{words},test"), folder / "run")
            made[words, name] = folder / "run", folder / f"{name}.safetensors"
            save(open_run(folder / "run"), made[words, name][1])
        return made[words, name]

    return learned


def _image(file):
    Image.fromarray(RNG.integers(0, 256, (16, 16, 3), np.uint8)).save(file)


PROMPTS = ["a [V] star at the top left", "a red star"]


@pytest.mark.slow
@pytest.mark.parametrize("words", ["lora", "cross", "token"])
def test_the_base_with_the_file_is_the_run_that_learned_it(learned, trained, words):
    workdir, file = learned(words)
    added = with_adapters(open_run(trained), [Adapter(str(file))])
    made, base = open_run(workdir).sample(PROMPTS), open_run(trained).sample(["a red star"] * 2)
    np.testing.assert_array_equal(added.sample(PROMPTS), made)
    assert (made[0] != base[0]).any() and file.stat().st_size < 500_000
    with safe_open(file, framework="numpy") as opened:
        about = opened.metadata()
    assert about["name"] == "pot" and about["class"] == "star" and json.loads(about["token_ids"]) == [2]
    assert about["base"] == str(trained) and about["base_hash"] == open_run(trained).identity


@pytest.mark.slow
def test_strength_0_is_the_base_bit_for_bit(learned, trained, same):
    _, file = learned("lora")
    run = open_run(trained)
    added = with_adapters(run, [Adapter(str(file), 0.0)])
    assert same(added.params, run.params) and added.recipe.tokenizer.names == {"pot": [2]}
    half, one = (with_adapters(run, [Adapter(str(file), s)]).params["model"] for s in (0.5, 1.0))
    for start, middle, end in zip(*map(jax.tree.leaves, (run.params["model"], half, one)), strict=True):
        if (
            start.shape != run.params["model"]["conditioner"]["embedding"]["embedding"].shape
        ):  # a word has a start of its own
            np.testing.assert_allclose(middle, (start + end) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_files_add_up_and_a_taken_slot_is_changed(learned, trained):
    run, (_, pot), (_, cup) = open_run(trained), learned("lora"), learned("token", "cup")
    both = with_adapters(run, [Adapter(str(pot)), Adapter(str(cup))])
    assert both.recipe.tokenizer.names == {"pot": [2], "cup": [3]}
    rows = lambda run: np.asarray(flatten(run.params)["model/conditioner/embedding/embedding"])
    alone = [with_adapters(run, [Adapter(str(file))]) for file in (pot, cup)]
    np.testing.assert_array_equal(rows(both)[2], rows(alone[0])[2])
    np.testing.assert_array_equal(rows(both)[3], rows(alone[1])[2])
    with pytest.raises(UserError, match=r"there is a word \[pot\] already"):
        with_adapters(both, [Adapter(str(pot))])


@pytest.mark.slow
def test_a_file_of_another_base_is_noted_and_of_other_networks_refused(learned, copied, tiny, tmp_path, capsys):
    _, file = learned("lora")
    loop.train(tiny({"seed": 3, "loop.steps": 1, "loop.grid_every": 0}), tmp_path / "other")
    with_adapters(open_run(tmp_path / "other"), [Adapter(str(file))])
    assert "which is not this run: it may fit badly" in capsys.readouterr().err
    loop.train(tiny({"method.net.width": 48, "loop.steps": 1, "loop.grid_every": 0}), tmp_path / "wide")
    with pytest.raises(UserError, match="the shape .* and this run needs"):
        with_adapters(open_run(tmp_path / "wide"), [Adapter(str(file))])
    (tmp_path / "none.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        with_adapters(open_run(copied), [Adapter(str(tmp_path / "none.safetensors"))])


@pytest.mark.slow
def test_what_changes_all_parameters_or_no_other_run_has_no_file(learned, trained, tmp_path):
    with pytest.raises(UserError, match="all parameters of this run changed"):
        learned("style")
    with pytest.raises(UserError, match="is a Diffusion, which changes no other run"):
        save(open_run(trained), tmp_path / "a.safetensors")
    workdir, file = learned("lora")
    with pytest.raises(UserError, match="the run is a Personalized itself"):
        with_adapters(open_run(workdir), [Adapter(str(file))])


@pytest.mark.slow
def test_the_commands_write_show_and_add_files(learned, trained, command, tmp_path):
    workdir, _ = learned("lora")
    file = tmp_path / "pot.safetensors"
    assert "bytes" in command("-m", "zoo", "adapters", "export", f"--workdir={workdir}", f"--out={file}").out
    shown = command("-m", "zoo", "adapters", "info", file).out
    assert "tensors" in shown and re.search(r"class +star", shown) and re.search(r"change +lora", shown)
    words = [f"--workdir={trained}", "--prompt=a [V] star", f"--out={tmp_path / 'a.png'}"]
    assert command("sample.py", *words, f"--adapter={file}@0").code == 0
    still = (tmp_path / "a.png").read_bytes()
    assert command("sample.py", *words, f"--adapter={file}@0.5").code == 0
    assert np.any(np.asarray(Image.open(tmp_path / "a.png")) != np.asarray(Image.open(io.BytesIO(still))))
    assert "which a run fills" in command("sample.py", *words, "--prompt=a {}", f"--adapter={file}").err
    failed = command("sample.py", *words, f"--adapter={file}@half")
    assert failed.code == 2 and "--adapter: " in failed.err and failed.err.count("\n") == 1
    assert command("-m", "zoo", "adapters", "export").code == 2
    assert "write export" in command("-m", "zoo", "adapters", "show", file).err
    assert "--out: " in command("-m", "zoo", "adapters", "export", f"--workdir={workdir}", "--out=a.bin").err
