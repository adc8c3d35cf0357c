import functools
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zoo.errors import UserError
from zoo.nets.clip import CLIP
from zoo.pretrained import clip as pretrained
from zoo.resize import shortest_side_and_crop

FIXTURES = Path(__file__).parent / "fixtures" / "clip"  # by make_clip_fixture.py
TINY = dict(
    image_size=16,
    patch_size=8,
    width=64,
    depth=2,
    heads=2,
    mlp_width=256,
    text_width=24,
    text_depth=1,
    text_heads=3,
    text_mlp_width=40,
    vocab_size=50,
    text_length=7,
    projection=10,
    end_id=1,
)
X = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
# The ends of three rows stand alike, with other things behind them; the last row differs before its end.
IDS = np.array([[5, 6, 1, 1, 1, 1, 1], [5, 6, 1, 9, 1, 49, 0], [5, 6, 1, 0, 0, 0, 0], [4, 6, 1, 1, 1, 1, 1]])


@functools.cache
def loaded(name):
    return pretrained.load(FIXTURES / name)


@functools.cache
def expected(name):
    return dict(np.load(FIXTURES / name / "expected.npz"))


@functools.partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(model, params, *args, method=None):
    return model.apply({"params": params}, *args, method=method)


@functools.cache
def tiny():
    """A network and fresh parameters."""
    model = CLIP(**TINY)
    return model, jax.jit(model.init)(jax.random.key(0), X, IDS)["params"]


@pytest.fixture
def folder(tmp_path):
    """A copy of the fixture `gelu` that a test may damage."""
    return Path(shutil.copytree(FIXTURES / "gelu", tmp_path / "folder"))


def change(file, **keys):
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def change_section(folder, section, **keys):
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", **{section: config[section] | keys})


# ---- against transformers


@pytest.mark.parametrize("name", ["legacy", "gelu"])
def test_features_and_logits_equal_those_of_transformers(name):
    clip, want = loaded(name), expected(name)
    images, texts, logit_scale = apply(clip.model, clip.params, want["x"], want["ids"])
    assert images.dtype == texts.dtype == jnp.float32
    np.testing.assert_allclose(images, want["images"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(texts, want["texts"], rtol=0, atol=1e-5)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)]
    np.testing.assert_allclose(np.exp(logit_scale) * unit[0] @ unit[1].T, want["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["legacy", "gelu"])
def test_ids_equal_those_of_transformers(name, capsys):
    want = expected(name)
    ids = loaded(name).encode(list(want["captions"]))
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, want["ids"])
    assert "2 of 6 texts are cut to 16 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["legacy", "gelu"])
def test_preprocessing_equals_that_of_transformers(name):
    clip, want = loaded(name), expected(name)
    for i, x in enumerate(want["x"]):
        ours = clip.normalise(shortest_side_and_crop(want[f"image_{i}"][None], clip.model.image_size))
        np.testing.assert_allclose(ours[0], x, rtol=0, atol=1e-5)  # one step of a pixel is above 1e-2 here


# ---- the network


def test_what_follows_the_first_end_changes_nothing():
    model, params = tiny()
    y = np.asarray(apply(model, params, IDS, method="encode_text"))
    np.testing.assert_allclose(y[1:3], y[[0, 0]], atol=1e-6)
    np.testing.assert_allclose(apply(model, params, IDS[:, :3], method="encode_text"), y, atol=1e-6)
    assert np.abs(y[3] - y[0]).max() > 1e-2


def test_every_parameter_matters():
    model, params = tiny()
    ids = IDS[:, ::-1]  # so that the ends of some rows stand last

    @jax.jit
    @jax.grad
    def gradient(params):
        images, texts, scale = model.apply({"params": params}, X, ids)
        return jnp.exp(scale) * jnp.sum(jnp.sin(images) * jnp.cos(texts))

    for path, leaf in jax.tree.leaves_with_path(gradient(params)):
        # A bias of the keys adds the same to all scores of a query, which softmax takes away.
        assert (np.abs(leaf).max() > 1e-4) != ("'key'" in str(path) and "'bias'" in str(path)), path


def test_initialisation_is_that_of_the_published_code():
    _, params = tiny()
    assert float(params["logit_scale"]) == pytest.approx(math.log(1 / 0.07))
    block = jax.tree.map(lambda leaf: leaf[1], params["image_blocks"])
    for name, std in {"query": 1 / 8, "out": 1 / 16, "up": 128**-0.5, "down": 1 / 16}.items():
        assert float(jnp.std(block[name]["kernel"])) == pytest.approx(std, rel=0.05), name
        assert not block[name]["bias"].any()
    assert float(jnp.std(params["image_patches"]["kernel"])) == pytest.approx((3 * 192) ** -0.5, rel=0.05)


def test_bfloat16_stays_near_and_gives_float32():
    clip, want = loaded("legacy"), expected("legacy")
    model = clip.model.clone(dtype=jnp.bfloat16)
    for method, given, name in (("encode_image", "x", "images"), ("encode_text", "ids", "texts")):
        ours, theirs = apply(model, clip.params, want[given], method=method), want[name]
        cosine = np.sum(ours * theirs, -1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
        assert ours.dtype == jnp.float32 and (cosine > 0.999).all() and not np.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 5}, "patch_size 5 does not divide image_size 16"),
        ({"heads": 3}, "width 64 is not divisible by heads 3"),
        ({"text_activation": "gelo"}, "unknown activation 'gelo': did you mean 'gelu'"),
    ],
)
def test_fields_that_do_not_fit(changes, message):
    with pytest.raises(UserError, match=message):
        jax.eval_shape(CLIP(**TINY | changes).init, jax.random.key(0), X, IDS)


def test_inputs_that_do_not_fit():
    model, params = tiny()
    with pytest.raises(UserError, match="16 x 16 x 3, not of 16 x 24 x 3"):
        apply(model, params, jnp.zeros((1, 16, 24, 3)), method="encode_image")
    with pytest.raises(UserError, match="8 ids are too long.*at most 7"):
        apply(model, params, jnp.zeros((1, 8), jnp.int32), method="encode_text")


# ---- folders


@pytest.mark.parametrize("name", ["legacy", "gelu"])
def test_what_is_saved_is_loaded(name, tmp_path, same):
    clip = loaded(name)
    pretrained.save(tmp_path / "deep" / "new", clip)
    again = pretrained.load(tmp_path / "deep" / "new")
    assert again.model == clip.model and (again.mean, again.std) == (clip.mean, clip.std)
    assert again.tokenizer.to_str() == clip.tokenizer.to_str()
    assert same(again.params, clip.params)
    theirs, ours = (load_file(path / "model.safetensors") for path in (FIXTURES / name, tmp_path / "deep" / "new"))
    assert same(theirs, ours)
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["new"]


def test_float16_is_rounded_once(tmp_path, same):
    pretrained.save(tmp_path / "a", loaded("gelu"), "float16")
    once = pretrained.load(tmp_path / "a")
    assert same(once.params, jax.tree.map(lambda x: np.float32(np.float16(x)), loaded("gelu").params))
    assert {x.dtype.name for x in load_file(tmp_path / "a" / "model.safetensors").values()} == {"float16"}


def test_save_refuses_and_leaves_nothing(tmp_path):
    clip = loaded("gelu")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists"):
        pretrained.save(tmp_path / "there", clip)
    with pytest.raises(UserError, match="'float8': did you mean 'float"):
        pretrained.save(tmp_path / "new", clip, "float8")
    replicated = pretrained.Clip(clip.model, jax.tree.map(lambda x: x[None], clip.params), clip.tokenizer)
    with pytest.raises(UserError, match="the parameters are not those of the network"):
        pretrained.save(tmp_path / "new", replicated)
    ends_in_two = pretrained.Clip(clip.model.clone(end_id=2), clip.params, tokenizer_that_ends_in_two(clip))
    with pytest.raises(UserError, match="end in id 2"):
        pretrained.save(tmp_path / "new", ends_in_two)
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def tokenizer_that_ends_in_two(clip):
    saved = json.loads(clip.tokenizer.to_str())
    saved["post_processor"]["sep"] = ["#", 2]
    return type(clip.tokenizer).from_str(json.dumps(saved))


def test_the_older_sections_hide_the_newer(folder):
    config = json.loads((folder / "config.json").read_text())
    wrong = config["text_config"] | {"hidden_size": 12, "hidden_act": "relu"}
    change(folder / "config.json", text_config=wrong, text_config_dict=config["text_config"], vision_config_dict=None)
    assert pretrained.load(folder).model == loaded("gelu").model


def test_what_a_config_leaves_out_is_the_smallest_published_clip(folder):
    (folder / "config.json").write_text('{"model_type": "clip"}')
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"of 398 tensors, 320 missing.*expected \(.*(512|768)"):
        pretrained.load(folder)


def test_files_as_older_versions_wrote_them(folder, same):
    """No preprocessing, and buffers among the tensors."""
    (folder / "preprocessor_config.json").unlink()
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"text_model.embeddings.position_ids": np.arange(16)}, folder / "model.safetensors")
    clip = pretrained.load(folder)
    assert same(clip.params, loaded("gelu").params)
    assert (clip.mean, clip.std) == (pretrained.MEAN, pretrained.STD) != (loaded("gelu").mean, loaded("gelu").std)


def test_sizes_as_plain_numbers(folder):
    change(folder / "preprocessor_config.json", size=24, crop_size=24)
    assert pretrained.load(folder).mean == (0.5, 0.4, 0.3)


def test_encode_survives_anything(capsys):
    clip = loaded("legacy")
    assert clip.encode([]).shape == (0, 16)
    assert clip.encode(["a\ud83d star", "\x00"]).shape == (2, 16)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"folder/{name}"):
        pretrained.load(folder)


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*nowhere"):
        pretrained.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "keys", "message"),
    [
        ("config.json", {"model_type": "siglip"}, "model_type 'siglip', not 'clip'"),
        ("config.json", {"projection_dim": "20"}, "projection_dim is '20', but must be like 512"),
        ("config.json", {"text_config": []}, r"hidden_size is \[\]"),
        ("preprocessor_config.json", {"resample": 2}, "resample is 2; zoo preprocesses images with 3 only"),
        ("preprocessor_config.json", {"size": {"height": 24, "width": 24}}, "size is .*height"),
        ("preprocessor_config.json", {"crop_size": 20}, "crop_size is 20"),
        ("preprocessor_config.json", {"image_std": [1, 1]}, r"3 numbers each, not \[1, 1\]"),
        ("tokenizer.json", {"model": {"type": "magic"}}, "tokenizer.json is no tokenizer"),
        ("tokenizer.json", {"post_processor": None}, "at its id 533, which the tokenizer puts into none"),
    ],
)
def test_a_file_of_something_else(folder, file, keys, message):
    change(folder / file, **keys)
    with pytest.raises(UserError, match=message) as error:
        pretrained.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        ("text_config", {"hidden_act": "relu"}, "unknown activation 'relu'"),
        ("vision_config", {"num_attention_heads": 0}, "num_attention_heads is 0"),
        ("text_config", {"layer_norm_eps": 1e-6}, "different layer_norm_eps"),
        ("text_config", {"eos_token_id": 530}, "at its id 530"),
        ("text_config", {"vocab_size": 530}, r"token_embedding.weight \(expected \(530, 16\), found \(535, 16\)\)"),
        ("vision_config", {"num_hidden_layers": 3}, "16 missing: vision_model.encoder.layers.2"),
        ("vision_config", {"patch_size": 12}, r"\(expected \(24, 3, 12, 12\), found \(24, 3, 8, 8\)\)"),
    ],
)
def test_a_config_of_other_weights(folder, section, keys, message):
    change_section(folder, section, **keys)
    with pytest.raises(UserError, match=message):
        pretrained.load(folder)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1]", b"[" * 100_000])
def test_a_damaged_file_is_one_line(folder, file, content):
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=f"folder/{file}") as error:
        pretrained.load(folder)
    assert "\n" not in str(error.value)


def test_a_tokenizer_of_more_ids_than_the_network_embeds():
    clip = loaded("gelu")
    with pytest.raises(UserError, match="ids up to 534, the CLIP has 534 embeddings"):
        pretrained.Clip(clip.model.clone(vocab_size=534), clip.params, clip.tokenizer)
