"""Personalization: the base stays, a word is learned beside it, and what a recipe leaves open is the base's."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from tests.helpers import Easy
from zoo import loop
from zoo.data import subject
from zoo.data.subject import About
from zoo.data.text import SMALLEST, Tokenizer
from zoo.errors import UserError
from zoo.families import build_method
from zoo.method import Axis
from zoo.runs.data import build_data
from zoo.runs.dependencies import open_run, prepare
from zoo.runs.inherit import completed
from zoo.trees import flatten
from zoo.wrappers import personalized

RECIPE = "configs/personalize.py"
TEXT = dict(conditioner=dict(width=8, depth=1, heads=2))
DIFFUSION = dict(name="diffusion", net=dict(width=16, depth=1, heads=2, patch_size=4) | TEXT)
RNG = np.random.default_rng(0)
TABLE = "model/conditioner/embedding/embedding"
WORD, NOUN = (2,), (7, 9)


def batch(seed):
    rng = np.random.default_rng(seed)
    tokens = np.pad(rng.integers(3, 20, size=(8, 5)), ((0, 0), (0, 1))).astype(np.int32)
    return {"inputs": rng.integers(256, size=(8, 1, 8, 8, 3), dtype=np.uint8), "cond": {"tokens": tokens}}


BATCH = batch(1) | {"prior": batch(2)}
KEY, STEP = jax.random.key(3), np.int32(0)


def method(change="full", base=DIFFUSION, **fields):
    own = dict(token_ids=WORD, start_ids=NOUN, base_step=0, change=change, rank=2)
    return build_method(dict(name="personalized", base=base) | own | fields, 20, "float32")


@functools.cache
def base_params():
    """Of a base whose last layers, which begin at zero, are moved."""
    leaves, tree = jax.tree.flatten(jax.jit(method().base.init)(jax.random.key(0), BATCH))
    return jax.tree.unflatten(tree, [leaf + 0.1 * RNG.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


def fresh(learner):
    return learner.init(jax.random.key(1), BATCH) | {"frozen": {"base": base_params()}}


def moved(changes):
    return jax.tree.map(lambda leaf: leaf + 0.1 * RNG.normal(size=leaf.shape).astype(np.float32), changes)


# ---- changes


@pytest.mark.parametrize("change", ["full", "lora", "cross", "token"])
def test_at_first_the_word_is_the_mean_of_its_noun_and_all_else_the_base(change):
    learner = method(change)
    merged, before = flatten(learner.base_params(fresh(learner))), flatten(base_params())
    for path, leaf in before.items():
        expected = np.array(leaf)
        if path == TABLE:
            expected[WORD[0]] = (expected[7] + expected[9]) / 2
        np.testing.assert_array_equal(merged[path], expected, path)


def test_a_word_without_a_noun_starts_as_it_is(same):
    learner = method("token", start_ids=())
    assert same(learner.base_params(fresh(learner))["model"], base_params()["model"])


@pytest.mark.parametrize("change", ["full", "lora", "cross", "token"])
def test_what_is_changed_is_what_the_change_names_and_the_word(change):
    learner = method(change)
    start, params = learner.base_params(fresh(learner)), fresh(learner)
    params["model"] = moved(params["model"])
    before, after = ({"model": of["model"]} for of in (start, learner.base_params(params)))
    before, after = flatten(before), flatten(after)
    found = {path for path in before if not np.allclose(before[path], after[path])}
    expected = {
        "full": set(before),
        "lora": {path for path in before if path.endswith("kernel")} | {TABLE},
        "cross": {path for path in before if "context_key/kernel" in path or "context_value/kernel" in path} | {TABLE},
        "token": {TABLE},
    }[change]
    assert found == expected and len(expected) > (0 if change == "token" else 1)
    rows = np.flatnonzero((np.asarray(before[TABLE]) != np.asarray(after[TABLE])).any(axis=1))
    assert rows.tolist() == (list(range(20)) if change == "full" else list(WORD))


def test_a_pattern_chooses_the_kernels_of_low_rank_changes():
    changes = method("lora", target_modules="mlp/up/kernel$").init(KEY, BATCH)
    assert {path.rsplit("/", 3)[1] for path in changes["model"]["low_rank"]} == {"mlp"}


def test_abilities_are_the_bases_with_the_changes(same):
    learner = method("lora")
    params = fresh(learner)
    params["model"] = moved(params["model"])
    keys, tokens = jax.random.split(KEY, 8), BATCH["cond"]["tokens"]
    made = Easy(learner).sample(params, keys, tokens, (1, 8, 8, 3), steps=2)
    merged = {"model": learner.base_params(params)["model"]}
    assert same(made, Easy(learner.base).sample(merged, keys, tokens, (1, 8, 8, 3), steps=2))


# ---- the loss


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.25])
def test_the_loss_is_that_of_the_subject_and_the_weighted_one_of_the_prior(weight):
    learner = method("full", prior_weight=weight)
    params = fresh(learner)
    assert (weight > 0) == learner.READS_PRIOR
    given = BATCH if weight else {name: value for name, value in BATCH.items() if name != "prior"}
    loss, output = learner.loss("model", params, given, KEY, Axis(), STEP)
    rng_subject, rng_prior = jax.random.split(KEY)
    of = lambda batch, rng: learner.base.loss("model", learner.base_params(params), batch, rng, Axis(), STEP)[0]
    expected = of(BATCH, rng_subject) + weight * of(BATCH["prior"], rng_prior)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(output.metrics["loss"], expected, rtol=1e-5)
    assert ("prior_loss" in output.metrics) == (weight > 0)


@pytest.mark.slow
def test_schedules_of_the_base_go_on_where_it_ended(tiny):
    vae = tiny(spec="configs/vae.py:test").method.to_dict() | dict(warmup=(10, 20))
    ends = []
    for base_step in (0, 15, 100):
        learner = method("token", vae, base_step=base_step)
        params = learner.init(KEY, BATCH) | {"frozen": {"base": learner.base.init(KEY, BATCH)}}
        ends.append(float(learner.loss("model", params, BATCH, KEY, Axis(), STEP)[0]))
    assert len(set(ends)) == 3


def test_each_player_has_the_changes_of_its_own_parameters(tiny):
    gan = tiny(spec="configs/gan.py:test").method.to_dict()
    learner = method("lora", gan)
    changes = learner.init(KEY, BATCH)
    assert set(changes) == {"model", "critic"} == set(learner.players)
    for player, own in changes.items():
        paths = [path for kind in own.values() for path in kind]
        assert paths and all(path.startswith(f"{player}/") for path in paths)
        assert any("embedding" in path for path in own["words"])


# ---- bad values


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(change="lroa"), "unknown method.change 'lroa': did you mean 'lora'"),
        (dict(prior_weight=-1.0), "prior_weight must be in"),
        (dict(rank=0), "rank must be in"),
        (dict(alpha=0.0), "alpha must be in"),
        (dict(base_step=-1), "base_step must be in"),
        (dict(token_ids=()), "token_ids is empty"),
    ],
)
def test_a_value_that_cannot_be_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        method(**fields)


def test_a_base_without_words_and_one_that_does_not_attend_to_them_are_refused(tiny, monkeypatch):
    patches = tiny(spec="configs/patches.py:test").method.to_dict()
    with pytest.raises(UserError, match="a Patches reads no words"):
        method("full", patches).init(KEY, BATCH)
    monkeypatch.setattr(personalized, "OF_WORDS", "/nowhere$")  # all families that read words attend to them
    with pytest.raises(UserError, match="a Diffusion does not attend to words: set change to full or lora"):
        method("cross").init(KEY, BATCH)


# ---- captions and words

CAPTIONS = ["a red star", "a red circle", "a blue circle", "a green circle"] * 8


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CAPTIONS, 400, 12)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a small teapot on a table", "a small [V] teapot on a table"),
        ("A Teapot.", "A [V] Teapot."),
        ("a [V] thing", "a [V] thing"),
        ("teapot teapot", "[V] teapot teapot"),
    ],
)
def test_the_word_stands_before_its_noun(text, expected):
    assert subject.with_word(text, About("teapot", "subject", "{}"), "V") == expected
    assert subject.with_word(text, About("teapot", "subject", "{}"), "pot") == expected.replace("V", "pot")


def test_a_noun_may_be_two_words_and_must_be_there():
    assert subject.with_word("one duck toy", About("duck toy", "subject", "{}"), "V") == "one [V] duck toy"
    with pytest.raises(UserError, match="'a cup' has neither .V. nor the noun 'teapot'"):
        subject.with_word("a cup", About("teapot", "subject", "{}"), "V")


@pytest.mark.parametrize(
    "captions, template",
    [
        (["a photo of a cat", "a photo of a dog"], "a photo of a {}"),
        (["cat", "dog"], "{}"),
        (["the cat sleeps", "the dog sleeps"], "the {} sleeps"),
        (["a red star", "there is a circle"], "a {}"),
        (["a cat"], "a {}"),
    ],
)
def test_a_template_is_what_all_captions_share(captions, template):
    assert subject.template_of(captions) == template


def test_a_style_has_its_word_at_the_end():
    style, thing = About("cat", "style", "a {} here"), About("cat", "subject", "a {} here")
    assert subject.instance_caption(style) == "a cat in [V] style here"
    assert subject.instance_caption(thing) == "a [V] cat here"
    assert subject.with_word("a dog", style, "V") == "a dog in [V] style"
    assert subject.with_word("a [V] dog", style, "oil") == "a [oil] dog"


def test_reserved_slots_are_taken_in_turn_and_end(tokenizer):
    for slot in range(64):
        ids = subject.choose_word("reserved", tokenizer, CAPTIONS)
        assert ids == [2 + slot]
        tokenizer = tokenizer.with_name(f"subject {slot}", ids)
    with pytest.raises(UserError, match="of the 64 reserved slots 0 are free, and 1 are needed"):
        subject.choose_word("reserved", tokenizer, CAPTIONS)


def test_the_rarest_word_is_one_and_a_given_one_is_spelled(tokenizer):
    (rarest,) = subject.choose_word("rarest", tokenizer, CAPTIONS)
    share = lambda ids: subject.share_with(ids, tokenizer, CAPTIONS)
    word = tokenizer.decode(np.array([[rarest]]))[0]
    assert word.startswith(" ") and share([rarest]) <= share(tokenizer.ids(" red")) == 0.5
    assert subject.choose_word("sks", tokenizer, CAPTIONS) == tokenizer.ids(" sks")
    named = tokenizer.with_name("one", [rarest]).with_name("two", tokenizer.ids(" red"))
    assert subject.choose_word("rarest", named, CAPTIONS) != [rarest]
    with pytest.raises(UserError, match="token 'red': a part of it is a learned word already"):
        subject.choose_word("red", named, CAPTIONS)
    with pytest.raises(UserError, match="token is empty"):
        subject.choose_word(" ", tokenizer, CAPTIONS)
    with pytest.raises(UserError, match="no token of this run is a word"):
        subject.choose_word("rarest", Tokenizer.train([], SMALLEST, 8), CAPTIONS)


def test_a_name_stands_for_its_ids_and_takes_the_place_of_a_space(tokenizer):
    named = tokenizer.with_name("pot", [5])
    row = lambda text: [i for i in named.encode([text])[0].tolist() if i > 1]
    assert row("a [pot] star") == tokenizer.ids("a") + [5] + tokenizer.ids(" star") == row("a [V] star")
    assert row("[V] star") == [5] + tokenizer.ids(" star")
    assert row("a [red] star") == tokenizer.ids("a [red] star")
    assert tokenizer.ids("a [V] star") != named.ids("a [V] star")
    two = named.with_name("cup", [6, 7])
    assert two.ids("[cup] and [pot]") == [6, 7] + tokenizer.ids(" and") + [5]
    with pytest.raises(UserError, match=r"there are several: write one of \[pot\], \[cup\]"):
        two.encode(["a [V] star"])
    again = Tokenizer.from_json(two.to_json())
    assert again.names == two.names and again.is_like(tokenizer) and again.to_json() != tokenizer.to_json()


# ---- runs


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """images(3) -> a folder of so many images of a subject."""

    def images(count, name="pot", captions=True):
        folder = tmp_path_factory.mktemp("subjects") / name
        folder.mkdir()
        for i in range(count):
            Image.fromarray(RNG.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
            if captions:
                (folder / f"{i}.txt").write_text("a [V] star at the top left")
        (folder / "class.txt").write_text("star\n")
        return str(folder)

    return images


@pytest.fixture
def personal(tiny, trained, images):
    """personal({"method.rank": 2}, "lora") -> a config of a run that learns a word."""

    def personal(changes=None, words="lora", base=trained, count=3):
        given = {"init": str(base), "data.subject": images(count), "loop.grid_every": 0}
        return tiny(given | (changes or {}), f"{RECIPE}:{words},test")

    return personal


def test_what_is_open_is_the_bases(personal, trained):
    config, base = completed(personal()), open_run(trained).recipe.config
    assert config.method.base == base.method and config.sample == base.sample and config.dtype == base.dtype
    assert config.data.source == base.data.source and config.data.size == base.data.size
    assert (config.data.class_name, config.data.template) == ("star", "a {}")
    assert config.method.token_ids == [2] and config.method.base_step == 4
    tokenizer = open_run(trained).recipe.tokenizer
    assert config.method.start_ids == tokenizer.ids(" star")
    assert build_data(config.data).name == "pot"


def test_it_trains_and_resumes_and_reads_its_word(personal, tmp_path, same):
    config = personal({"loop.steps": 2})
    whole = loop.train(config, tmp_path / "whole")
    config.loop.steps = 1
    loop.train(config, tmp_path / "parts")
    config.loop.steps = 2
    again = loop.train(config, tmp_path / "parts")
    assert same(whole.params, again.params) and set(whole.params) == {"model"}
    run = open_run(tmp_path / "parts")
    tokens = run.recipe.tokenizer.encode(["a [V] star", "a [pot] star", "a star"])
    assert (tokens[0] == tokens[1]).all() and 2 in tokens[0] and 2 not in tokens[2]
    assert run.sample(["a [V] star"]).shape == (1, 1, 16, 16, 3)


@pytest.mark.slow
def test_a_base_that_trains_on_or_is_gone_changes_nothing(personal, copied, tmp_path, same):
    config = personal({"loop.steps": 1}, base=copied)
    loop.train(config, tmp_path / "run")
    made = open_run(tmp_path / "run").sample(["a [V] star"])
    shutil.rmtree(copied)
    assert same(open_run(tmp_path / "run").sample(["a [V] star"]), made)
    config.loop.steps = 2
    assert loop.train(config, tmp_path / "run").step == 2


@pytest.mark.slow
def test_the_prior_is_made_once_of_captions_with_the_noun(personal, tmp_path, capsys):
    config = personal({"loop.steps": 1, "data.prior_num": 6})
    loop.train(config, tmp_path / "run")
    assert "making 6 images of the class by diffusion" in capsys.readouterr().err
    with np.load(tmp_path / "run/prior.npz") as saved:
        images, captions = saved["images"], json.loads(str(saved["captions"]))
    assert images.shape == (6, 1, 16, 16, 3) and all("star" in text.split() for text in captions)
    config.loop.steps = 2
    loop.train(config, tmp_path / "run")
    assert "making" not in capsys.readouterr().err
    (tmp_path / "new").mkdir()
    shutil.copy(tmp_path / "run/prior.npz", tmp_path / "new")  # of a run that was stopped before its first checkpoint
    loop.train(personal({"loop.steps": 1, "data.prior_num": 4}), tmp_path / "new")
    with np.load(tmp_path / "new/prior.npz") as saved:
        assert len(saved["images"]) == 4
    _, recipe = prepare(completed(personal({"method.prior_weight": 0.0})))
    assert recipe.prior is None and "prior" not in next(recipe.stream(recipe.data.open("train")))


@pytest.mark.slow
def test_a_damaged_prior_is_one_line(personal, tmp_path):
    config = personal({"loop.steps": 1})
    loop.train(config, tmp_path / "run")
    whole = (tmp_path / "run/prior.npz").read_bytes()
    config.loop.steps = 2
    for content in (b"x", b"", whole[: len(whole) // 2]):
        (tmp_path / "run/prior.npz").write_bytes(content)
        with pytest.raises(UserError, match="prior.npz cannot be read .*: restore it"):
            loop.train(config, tmp_path / "run")


@pytest.mark.slow
def test_a_second_subject_is_learned_by_a_run_that_has_one(personal, images, tmp_path):
    loop.train(personal({"loop.steps": 1}), tmp_path / "first")
    second = personal({"loop.steps": 1, "data.subject": images(3, "cup")}, "token", tmp_path / "first")
    loop.train(second, tmp_path / "second")
    run = open_run(tmp_path / "second")
    assert run.recipe.tokenizer.names == {"pot": [2], "cup": [3]}
    assert type(run.method.base).__name__ == "Diffusion"  # the first one's changes are in its parameters
    assert run.sample(["a [cup] star", "a [pot] star"]).shape[0] == 2
    assert run.recipe.data.filled("a {} here") == "a [cup] star here" and run.recipe.config.method.base_step == 5
    with pytest.raises(UserError, match="several: write one of"):
        run.sample(["a [V] star"])
    with pytest.raises(UserError, match=r"has a word \[pot\] already"):
        completed(personal(base=tmp_path / "first"))


@pytest.mark.parametrize("count, train, test", [(1, 1, 1), (3, 3, 3), (4, 3, 1), (6, 5, 1)])
def test_one_image_of_four_or_more_is_held_out(personal, count, train, test):
    data = build_data(completed(personal(count=count)).data)
    assert (len(data.open("train")), len(data.open("test"))) == (train, test)
    names = lambda split, n: {item["inputs"].tobytes() for item in map(data.open(split).__getitem__, range(n))}
    assert count < 4 or not names("train", train) & names("test", test)


def test_images_without_captions_get_the_template_and_a_note(personal, images, capsys):
    config = completed(personal({"data.subject": images(2, "cup", captions=False)}))
    assert [build_data(config.data).open("train").text(i) for i in range(2)] == ["a [cup] star"] * 2
    assert "write NAME.txt beside NAME.png" in capsys.readouterr().err


def test_a_single_image_is_noted(personal, capsys):
    prepare(completed(personal({"method.prior_weight": 0.0}, count=1)))
    assert "has one image to train on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, note",
    [
        ({"data.class_name": "teapot"}, "no caption of the base has it"),
        ({"data.token": "red"}, "of the base's captions have it"),
    ],
)
def test_what_makes_it_worse_is_noted(personal, capsys, changes, note):
    completed(personal(changes))
    assert note in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"init": ""}, "name it by --config.init=RUN"),
        ({"init": "no/such/run"}, "init: no such run: 'no/such/run'"),
        ({"data.subject": ""}, "data.subject is missing"),
        ({"data.subject": "no/such/folder"}, "data: class_name is missing"),
        ({"data.subject": "no/such/folder", "data.class_name": "star"}, "no/such/folder"),
        ({"data.learn": "stile"}, "unknown thing to learn 'stile': did you mean 'style'"),
        ({"data.template": "a photo"}, "template 'a photo' needs one {}"),
        ({"data.subject_holdout": -1}, "subject_holdout must be in"),
        ({"data.prior_num": 0}, "prior_num must be in"),
        ({"data.class_name": " "}, "class_name is empty"),
        ({"data.class_name": "teapot"}, "neither .V. nor the noun"),
    ],
)
def test_bad_input_is_one_line(personal, images, changes, message):
    config = personal(changes)
    if changes.get("data.class_name") == "teapot":
        folder = images(1, "other")
        with open(f"{folder}/0.txt", "w") as file:
            file.write("a cup")
        config.data.subject = folder
    with pytest.raises(UserError, match=message) as caught:
        prepare(completed(config))
    assert "\n" not in str(caught.value)


BASES = ["mean_flow", "vae", "flow", "gan", "tokens:masked", "tokens:autoregressive"]


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_every_family_learns_a_word(personal, tiny, tmp_path, base):
    file, _, words = base.partition(":")
    loop.train(tiny({"loop.steps": 1, "loop.grid_every": 0}, f"configs/{file}.py:{words},test"), tmp_path / "base")
    critic = ",critic" if base == "gan" else ""
    loop.train(personal({"loop.steps": 1}, f"lora{critic}", tmp_path / "base"), tmp_path / "run")
    assert open_run(tmp_path / "run").sample(["a [V] star"]).shape == (1, 1, 16, 16, 3)


@pytest.mark.slow
def test_a_run_on_videos_learns_from_images_and_its_layers_of_time_stay(personal, tiny, tmp_path, same):
    loop.train(tiny({"loop.steps": 1, "loop.grid_every": 0}, "configs/video.py:images,test"), tmp_path / "base")
    config = personal({"loop.steps": 1, "players.model.learning_rate": 0.1}, "style", tmp_path / "base")
    loop.train(config, tmp_path / "run")
    base, run = open_run(tmp_path / "base"), open_run(tmp_path / "run")
    assert run.sample(["a [V] star"]).shape == (1, 4, 16, 16, 3) and run.recipe.frame_rate == base.recipe.frame_rate
    before, after = base.params["model"], run.method.base_params(run.params)["model"]
    changed = {path for path, leaf in flatten(before).items() if not same(leaf, flatten(after)[path])}
    assert changed and not any("temporal" in path for path in changed)
    assert any("temporal" in path for path in flatten(before))
    with np.load(tmp_path / "run/prior.npz") as saved:
        assert saved["images"].shape[1:] == (1, 16, 16, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["latents", "codes"])
def test_a_run_on_latents_or_codes_learns_a_word(personal, tiny, tmp_path, kind):
    recipe = "vae.py:autoencoder" if kind == "latents" else "patches.py:test"
    loop.train(tiny({"loop.steps": 1, "loop.grid_every": 0}, f"configs/{recipe},test"), tmp_path / "codec")
    name = "diffusion.py:test" if kind == "latents" else "tokens.py:masked,test"
    given = {f"data.{kind}": str(tmp_path / "codec"), "method.net.patch_size": 1, "loop.steps": 1, "loop.grid_every": 0}
    loop.train(tiny(given, f"configs/{name}"), tmp_path / "base")
    config = personal({"loop.steps": 1, "players.model.learning_rate": 0.0}, "lora", tmp_path / "base")
    loop.train(config, tmp_path / "run")
    run, base = open_run(tmp_path / "run"), open_run(tmp_path / "base")
    assert run.recipe.codec.scale == base.recipe.codec.scale
    np.testing.assert_array_equal(run.sample(["a red circle"]), base.sample(["a red circle"]))
    config.data.subject = str(shutil.copytree(config.data.subject, tmp_path / "other"))
    texts = {prepare(completed(config))[0].text(i) for i in range(3)}
    assert texts == {"a [other] star at the top left"}  # and not those of the same images before


def test_braces_in_a_prompt_are_the_word_and_its_noun(personal):
    assert build_data(completed(personal()).data).filled("a small {} here") == "a small [pot] star here"
    data = build_data(completed(personal({"data.learn": "style"})).data)
    assert data.filled("a small {} here") == "a small star in [pot] style here"


def test_a_template_may_have_other_braces(personal):
    data = build_data(completed(personal({"data.template": "a {x} {}"})).data)
    assert data.class_captions("train", 1) and subject.instance_caption(data.shown) == "a {x} [V] star"


def test_a_second_subject_has_a_noun_of_its_own(personal, images, trained):
    config = completed(personal({"data.class_name": "circle"}))
    assert config.data.class_name == "circle"
    assert completed(personal()).data.class_name == "star"  # class.txt's, whatever a run of before had


def test_a_folder_whose_name_has_brackets_is_refused(personal, images):
    with pytest.raises(UserError, match=r"the folder's name 'pot\[1\]' cannot stand in \[brackets\]"):
        completed(personal({"data.subject": images(1, "pot[1]")}))


def test_images_with_several_captions_are_held_out_with_all_of_them(personal, images):
    folder = images(5, "many", captions=False)
    lines = [{"file_name": f"{i}.png", "text": f"a [V] star {k}"} for i in range(5) for k in range(2)]
    with open(f"{folder}/metadata.jsonl", "w") as file:
        file.write("\n".join(map(json.dumps, lines)))
    data = build_data(completed(personal({"data.subject": folder})).data)
    assert (len(data.open("train")), len(data.open("test"))) == (8, 2)


def test_a_workdir_with_another_run_is_refused(personal, copied):
    with pytest.raises(UserError, match="holds another run"):
        loop.train(personal(), copied)


def test_what_is_not_trained_makes_no_prior(personal, capsys):
    _, recipe = prepare(completed(personal()))
    assert len(recipe.prior) == 3 and "making" not in capsys.readouterr().err


def test_a_stage_of_a_cascade_learns_no_words(tiny):
    stage = tiny(spec="configs/upsample.py:space,test").method.to_dict()
    with pytest.raises(UserError, match="a stage of a cascade makes nothing of words alone"):
        method("full", stage)
