import dataclasses
import inspect
import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import ml_collections
import pytest

from zoo import config as configs
from zoo import families
from zoo.errors import MOST_NAMES, UserError, unknown_name_error
from zoo.loop import Loop
from zoo.method import Generates, Invertible, Reward
from zoo.methods import masked
from zoo.nets.conditioning import Conditioned
from zoo.runs.data import build_data
from zoo.runs.recipe import Recipe, check_sections
from zoo.training.optim import Optimizer

VOCAB = 400
FOLDER = Path(__file__).resolve().parents[1] / "configs"
FILES = [file for file in sorted(FOLDER.glob("*.py")) if file.name != "common.py"]
KINDS = {
    "vae": ["autoencoder", "critic"],
    "flow": ["jet", "jet,critic"],
    "diffusion": ["critic", "few_steps", "reward", "policy"],
    "gan": ["projected"],
    "patches": ["binary", "vectors", "video", "critic"],
    "tokens": [
        "masked,critic",
        "autoregressive",
        "continuous",
        "autoregressive,coarse",
        "masked,video",
        "autoregressive,video",
        "continuous,video",
        "policy",
        "autoregressive,policy",
    ],
    "personalize": ["lora", "cross", "token", "critic", "style"],
    "video": ["stills", "images", "critic", "vae", "flow", "gan"],
}
RECIPES = [
    f"{file}:{kind},{words}"
    for file in FILES
    for kind in ("", *KINDS.get(file.stem, ()))
    for words in ("", "demo", "test")
]


@dataclasses.dataclass
class Thing:
    size: int
    colour: str = "red"


@pytest.fixture(params=RECIPES, ids=lambda spec: Path(spec).name)
def recipe(request):
    return with_base(configs.load(request.param))


def with_base(config):
    """The config with those keys that a run of `config.init` gives, where it leaves any open."""
    if config.method.get("base", config.method) is not None:
        return config
    critic = "critic" in config.players
    base = configs.load(f"{FOLDER}/{'gan' if critic else 'diffusion'}.py:test")
    whole = config.to_dict() | {"dtype": base.dtype, "sample": base.sample.to_dict()}
    whole["data"] = {key: base.data.get(key, "any") if value is None else value for key, value in whole["data"].items()}
    whole["data"].update(subject="any", template="a {}")
    whole["method"].update(base=base.method.to_dict(), token_ids=[2], start_ids=[], base_step=4)
    return ml_collections.ConfigDict(whole)


def parameters(target, *given):
    """What a section may hold: the parameters of a class or function but for those that are not the user's."""
    names = inspect.signature(target).parameters
    return {name for name in names if name not in given}


def options(method):
    """Of sampling, where there is any; a guide and a draft are given by flags, `last` is for derivatives, and inversion
    is no sampling."""
    if not isinstance(method, Generates):
        return set()
    found = {field.name for field in dataclasses.fields(method.SampleOptions)}
    return found - {"guide", "draft", "last", "inversion_steps", "inversion_rate"}


def static(key, name, value, protocol):
    """Opens no dependency: what a method does with one is tested elsewhere."""
    return None if protocol is Reward else SimpleNamespace(SampleOptions=masked.SampleOptions)


def build(recipe, section=None):
    codes = VOCAB if recipe.data.codes else None
    return families.build_method(section or recipe.method, VOCAB, recipe.dtype, static, codes=codes)


# ---- every key of every recipe is read, and every key that is read is in every recipe


def test_there_are_recipes():
    assert FILES


def test_the_sections_are_those_of_a_recipe(recipe):
    assert set(recipe) == set(Recipe.SECTIONS)


def test_data_keys_are_the_fields_of_data(recipe):
    assert set(recipe.data) == parameters(type(build_data(recipe.data)))


def test_loop_keys_are_the_fields_of_loop(recipe):
    assert set(recipe.loop) == parameters(Loop)


def test_player_keys_are_the_fields_of_the_optimizer(recipe):
    method = build(recipe)
    assert set(recipe.players) == set(method.players)
    for player in recipe.players.values():
        assert set(player) == parameters(Optimizer)


def sections_of_method(recipe):
    """The section of the method, and of the one that it wraps, where there is one; each with what it builds."""
    yield recipe.method, build(recipe)
    if "base" in recipe.method:
        base = recipe.method.base
        yield base, build(recipe, base)


def test_method_keys_are_the_fields_of_the_method(recipe):
    for section, method in sections_of_method(recipe):
        assert set(section) - {"name"} == parameters(type(method), "vocab_size", "dtype", "codes")


def test_network_keys_are_the_fields_of_the_network(recipe):
    for section, method in sections_of_method(recipe):
        keys = section.get("net", section.get("critic"))
        if keys is None:  # a reward has no network of its own
            continue
        network = method.network
        if isinstance(network, Conditioned):
            network, conditioner = network.network, network.conditioner
            assert ("conditioner" in keys) == (conditioner is not None)
            if conditioner is not None:
                known = parameters(type(conditioner), "vocab_size", "dtype", "attention", "remat", "parent", "name")
                assert set(keys.conditioner) == known
        network = getattr(network, "transformer", network)  # of codes and vectors, with fields of the method's
        given = "vocab_size", "end_id", "dtype", "codes", "channels", "parent", "name"
        known = parameters(type(network), *given)
        assert set(keys) - {"conditioner"} == known


def test_sample_keys_are_the_options_of_sampling(recipe):
    assert set(recipe.sample) == options(build(recipe))


def test_a_recipe_survives_json(recipe):
    again = configs.from_json(configs.to_json(recipe))
    assert configs.to_json(again) == configs.to_json(recipe)
    assert configs.differences(recipe, again) == []


def test_the_variants_of_a_recipe_differ():
    for file in FILES:
        assert configs.differences(configs.load(f"{file}:test"), configs.load(f"{file}:demo")), file.name


# ---- unknown and missing keys


@pytest.mark.parametrize(
    "key, message",
    [
        ("sead", "unknown config key 'sead': did you mean 'seed'"),
        ("data.sise", "config key in data 'sise': did you mean 'size'"),
        ("loop.step", "config key in loop 'step': did you mean 'steps'"),
        ("players.modle", "unknown player 'modle': did you mean 'model'"),
        ("players.model.learning_rat", "config key in players.model 'learning_rat': did you mean 'learning_rate'"),
        ("method.predicton", "config key in method 'predicton': did you mean 'prediction'"),
        ("method.net.widht", "config key in method.net 'widht': did you mean 'width'"),
        ("sample.guidence", "sampling option of Diffusion 'guidence': did you mean 'guidance'"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_named(tiny, tmp_path, key, message):
    from zoo import loop

    config = tiny({"seed": 0})
    section, _, name = key.rpartition(".")
    target = config
    for part in section.split(".") if section else []:
        target = target[part]
    with target.unlocked():
        target[name] = {} if key == "players.modle" else 1
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        loop.train(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run").glob("samples/*"))


def test_a_missing_section_is_named(tiny):
    config = tiny()
    with config.unlocked():
        del config.sample
    with pytest.raises(UserError, match="lacks sample"):
        check_sections(config)


def test_build_names_what_is_missing():
    with pytest.raises(UserError, match="config section data lacks size"):
        configs.build(Thing, {"colour": "blue"}, "data")


def test_build_passes_keys_and_extras():
    assert configs.build(Thing, {"colour": "blue"}, "data", size=3) == Thing(3, "blue")


def test_a_key_that_is_not_the_users_to_set_is_refused():
    with pytest.raises(UserError, match="'size'"):
        configs.build(Thing, {"size": 1}, "data", size=3)


def test_an_unknown_method_names_the_nearest(tiny):
    with pytest.raises(UserError, match="unknown method 'difusion': did you mean 'diffusion'"):
        build(tiny({"method.name": "difusion"}))


@pytest.mark.parametrize("name", ["../run", "diffusion.nothing", "", None])
def test_a_method_that_is_no_name_of_a_module_is_refused(tiny, name):
    with pytest.raises(UserError, match="method"):
        build(tiny({"method.name": name}))


def test_an_unknown_dtype_names_the_nearest(tiny):
    with pytest.raises(UserError, match="unknown dtype 'bfloat': did you mean 'bfloat16'"):
        build(tiny({"dtype": "bfloat"}))


# ---- small functions


def test_arguments_are_split_at_commas():
    assert configs.arguments("test,demo", ["demo", "test"]) == {"demo", "test"}
    assert configs.arguments(None, ["demo"]) == configs.arguments("", ["demo"]) == set()


def test_an_unknown_argument_names_the_nearest():
    with pytest.raises(UserError, match="unknown word of the recipe 'dmo': did you mean 'demo'"):
        configs.arguments("dmo", ["demo", "test"])


def test_differences_name_the_leaves_and_both_values():
    old = ml_collections.ConfigDict({"a": {"b": 1, "c": (1, 2)}, "old": 0})
    new = ml_collections.ConfigDict({"a": {"b": 2, "c": [1, 2]}, "new": None})
    assert configs.differences(old, new) == ["a.b: 1 -> 2", "new: (absent) -> None", "old: 0 -> (absent)"]
    assert configs.differences(old, old) == []


def test_equal_configs_give_equal_text():
    texts = [configs.to_json(ml_collections.ConfigDict(x)) for x in ({"a": 1, "b": (2,)}, {"b": (2,), "a": 1})]
    assert texts[0] == texts[1]


def test_flatten_joins_names():
    assert configs.flatten({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_a_file_that_is_not_there_or_no_recipe_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no such file: 'nowhere.py'"):
        configs.load("nowhere.py:demo")
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="no get_config"):
        configs.load(str(tmp_path / "empty.py"))


def test_of_many_names_the_nearest_are_listed():
    few = [f"name_{i}" for i in range(MOST_NAMES)]
    assert all(name in str(unknown_name_error("key", "game_3", few)) for name in few)
    many = [f"quite.another.{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"] + ["red", "green"]
    text = str(unknown_name_error("key", "gren", many))
    assert "did you mean 'green'? known: green, red, " in text and text.count("quite") == MOST_NAMES // 2 - 2
    assert text.endswith(f"and {len(many) - MOST_NAMES // 2} more")


def test_all_errors_are_one_line():
    for call in (lambda: configs.load("nowhere.py"), lambda: configs.arguments("x", ["a" * 99])):
        with pytest.raises(UserError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_invertible_families_have_inversion_options_of_sampling():
    invertible = [families.family_class(name) for name in families.families_with(Invertible)]
    assert len(invertible) >= 4
    for family in invertible:
        known = {field.name for field in dataclasses.fields(family.SampleOptions)}
        assert family.inversion_options.keys() <= known, family


# ---- words and versions


@pytest.mark.parametrize(
    "file, words",
    [
        ("diffusion", ("critic", "cpu", "demo")),
        ("diffusion", ("few_steps", "demo", "test")),
        ("diffusion", ("policy", "reward", "demo")),
        ("flow", ("jet", "likelihood", "critic", "demo")),
        ("flow", ("jet", "cpu", "test")),
        ("vae", ("autoencoder", "critic", "demo")),
        ("vae", ("autoencoder", "cpu", "test")),
        ("gan", ("projected", "demo", "test")),
        ("mean_flow", ("cpu", "demo")),
        ("video", ("images", "demo", "test")),
        ("video", ("stills", "critic", "demo", "test")),
        ("video", ("flow", "images", "demo")),
        ("video", ("vae", "stills", "demo")),
        ("clip", ("video", "demo", "test")),
    ],
)
def test_the_words_of_a_recipe_combine_in_any_order(file, words):
    first, *others = (
        configs.to_json(configs.load(f"{FOLDER / file}.py:{','.join(order)}"))
        for order in itertools.permutations(words)
    )
    assert all(other == first for other in others)


@pytest.mark.parametrize("kind", ["", "stills,", "images,", "critic,", "vae,", "flow,", "gan,", "flow,stills,"])
def test_a_test_of_a_video_demo_takes_two_steps_of_eight_videos(kind):
    config = configs.load(f"{FOLDER / 'video'}.py:{kind}demo,test")
    assert config.loop.steps == 2 and config.data.batch_size == (16 if "stills" in kind else 8)


def test_a_config_of_another_format_version_is_refused_in_one_line(recipe):
    text = configs.to_json(recipe)
    own = f'"format_version": {configs.FORMAT_VERSION}'
    for other in (text.replace(own, '"format_version": 7'), text.replace(f"{own},", "")):
        with pytest.raises(UserError, match=f"config has format version [17], and .* reads {configs.FORMAT_VERSION}"):
            configs.from_json(other)


def test_a_damaged_config_is_an_error_that_names_the_file():
    with pytest.raises(UserError, match="runs/a/config.json is damaged .*restore it, or delete it"):
        configs.from_json('{"a', "runs/a/config.json")
