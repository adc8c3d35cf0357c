"""Numbers of a config that cannot be, NaN among them, are errors in one line before training."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from zoo.commands import sampling_flags
from zoo.config import build, build_options, load
from zoo.errors import UserError, check_ranges
from zoo.families import build_method, family_class
from zoo.media import save
from zoo.nets.autoencoder import Autoencoder
from zoo.nets.clip import CLIP
from zoo.nets.conditioning import TextTransformer, build_module
from zoo.nets.critic import Critic, ProjectedCritic
from zoo.nets.hierarchy import Hierarchy
from zoo.nets.jet import Jet
from zoo.nets.patch_encoder import PatchAutoencoder
from zoo.nets.synthesis import Synthesis
from zoo.nets.tarflow import TarFlow
from zoo.nets.tokens import CausalTokens
from zoo.nets.transformer import Transformer
from zoo.pretrained import clip as clips
from zoo.runs.data import Data
from zoo.runs.dependencies import prepare
from zoo.runs.recipe import Recipe
from zoo.runs.sampler import Sampler
from zoo.training.lengths import Loop
from zoo.training.optim import Optimizer, build_all
from zoo.trees import matches


@pytest.mark.parametrize(
    ("interval", "good", "bad"),
    [
        ("[0, 1]", (0, 0.5, 1), (-1e-9, 1.1, math.nan, "a", None, (0, 1), True, math.inf, 10**400)),
        ("(0, 1)", (0.5,), (0, 1)),
        ("[0, inf)", (0, 1e300), (math.inf, -1)),
        ("(-inf, inf)", (-1e300,), (-math.inf, math.inf, math.nan)),
    ],
)
def test_ranges_are_those_of_mathematics(interval, good, bad):
    for value in good:
        check_ranges(SimpleNamespace(x=value), x=interval)
    for value in bad:
        with pytest.raises(UserError, match=r"^x must be (in [\[(].*|one number), got "):
            check_ranges(SimpleNamespace(x=value), x=interval)


OPTIMIZER = {
    "learning_rate": (-1, math.nan),
    "warmup_steps": (-1,),
    "decay_start": (1.5,),
    "betas": ((1.0, 1.0), (-1, 0.9), (0.9,), (0.9, 0.9, 0.9), 0.9),
    "weight_decay": (-1,),
    "clip_norm": (0, -1),
    "skip_norm": (-1,),
    "ema_half_lives": ((-0.5,), (0,), (math.nan,), ("a",)),
    "ema_rampup": (0, math.inf),
}
LOOP = dict.fromkeys(("steps", "log_every", "held_out_num", "score_num", "max_bad_steps"), (0, -1))
LOOP |= dict.fromkeys(("grid_every", "held_out_every", "score_every"), (-1,))
DATA = dict.fromkeys(("size", "frames", "batch_size", "text_length", "vocab_size"), (0, -8))
DATA |= dict.fromkeys(("threads", "workers"), (-1,))
METHODS = {
    "diffusion": {
        "time_min": (1.5, 1, -1),
        "time_std": (-1,),
        "time_steps": (0,),
        "time_shift": (0, math.inf),
        "time_mean": (math.nan,),
        "caption_drop": (5, -1),
    },
    "mean_flow": {
        "guidance": (-1, math.nan),
        "caption_drop": (2, -1),
        "data_proportion": (3, math.nan),
        "norm_p": (-2,),
        "guidance_mix": (1, -1),
        "time_min": (1,),
    },
    "flow": {"noise_std": (0, -1), "caption_drop": (2,)},
    "vae": {
        "kl_weight": (-1,),
        "free_bits": (-1,),
        "warmup": ((3, 1), (-1, 0), (1,), 5),
        "least_log_scale": (math.inf,),
    },
    "generator": {"latent_dim": (0,), "caption_drop": (-1,)},
    "contrastive": {"time_layers": (-1,), "time_heads": (0,)},
    "patches": {"caption_drop": (2,)},
    "masked": {"caption_drop": (-1,)},
    "autoregressive": {"caption_drop": (math.nan,)},
    "continuous": {"caption_drop": (5,), "head_width": (0,), "head_depth": (0, 1.5)},
}
CODES = {"masked": 12, "autoregressive": 12}
OPTIONS = {
    "diffusion": {
        "steps": (0, -3),
        "guidance": (-1, math.nan),
        "interval": ((0.5,), (0.1, 0.2, 0.3), ("a", "b"), (5, 9), (0.8, 0.2)),
        "eta": (1.5,),
        "shift": (0, math.inf),
        "last": (-1,),
        "guide": ("foo",),
    },
    "mean_flow": {"steps": (0,), "shift": (math.nan,)},
    "flow": {"guidance": (-1,), "temperature": (-1,), "tolerance": (-1,)},
    "vae": {"temperature": (-1,)},
    "generator": {"temperature": (-1,), "inversion_steps": (-1,), "inversion_rate": (0,)},
    "masked": dict.fromkeys(("noise", "erase_sharpness", "temperature", "top_k", "guidance"), (-1,))
    | {"steps": (0,), "erase_share": (1.5,), "top_p": (0, 1.5), "interval": ((0.5,), (0.8, 0.2)), "top_k": (0.5,)},
    "continuous": {"steps": (0,), "head_steps": (0,), "temperature": (-1,), "guidance": (math.inf,)},
    "autoregressive": dict.fromkeys(("temperature", "top_k", "guidance"), (-1,))
    | {"top_p": (0, math.nan), "draft_length": (0,)},
}


@dataclasses.dataclass
class Fields:
    pair: tuple[float, ...] = (0.5, 1.0)
    count: int = 1


def test_a_field_takes_several_numbers_or_whole_ones_as_it_is_declared():
    check_ranges(Fields((0, 1, 0.5), 3), pair="[0, 1]", count="[1, inf)")
    check_ranges(Fields([], 3), pair="[0, 1]")
    for fields in (Fields(pair=0.5), Fields(pair=(0, 2)), Fields(count=1.5), Fields(count=(1, 2))):
        with pytest.raises(UserError, match="must be"):
            check_ranges(fields, pair="[0, 1]", count="[1, inf)")


def cases(table):
    return [pytest.param(key, value, id=f"{key}={value}") for key, values in table.items() for value in values]


def cases_of(tables):
    return [
        pytest.param(name, key, value, id=f"{name}-{key}={value}")
        for name, table in tables.items()
        for key, values in table.items()
        for value in values
    ]


@pytest.mark.parametrize(("key", "value"), cases(OPTIMIZER))
def test_of_optimizers(key, value):
    with pytest.raises(UserError, match=f"^players.model: {key} (must be|are)"):
        build_all({"model": {key: value}}, ["model"])


@pytest.mark.parametrize(("key", "value"), cases(LOOP))
def test_of_the_loop(key, value):
    with pytest.raises(UserError, match=f"^loop: {key} must be in"):
        build(Loop, {"steps": 1, key: value}, "loop")


@pytest.mark.parametrize(("key", "value"), cases(DATA))
def test_of_the_data(key, value):
    with pytest.raises(UserError, match=f"^data: {key} must be in"):
        build(Data, {"source": "scenes/one", "size": 16, key: value}, "data")


@pytest.mark.parametrize(("family", "key", "value"), cases_of(METHODS))
def test_of_methods(family, key, value):
    with pytest.raises(UserError, match=f"^method: {key} must be"):
        section = {"name": family, "net": {}, key: value} | (
            {"quantiser": {"name": "levels"}} if family == "patches" else {}
        )
        build_method(section, 20, "float32", codes=CODES.get(family))


NETWORKS = Transformer, Jet, TarFlow, Hierarchy, Autoencoder, Synthesis, Critic, ProjectedCritic, CLIP, TextTransformer
NETWORKS += PatchAutoencoder, CausalTokens
NEVER: dict[Any, tuple] = {int: (-1, 1.5), float: (-1.0, math.nan), Sequence[int]: ((8, -1), 8, ())}


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        (kind, key, value)
        for kind in NETWORKS
        for key, declared in kind.__annotations__.items()
        for value in NEVER.get(declared, ())
    ],
)
def test_of_networks(kind, key, value):
    needed = {key: 8 for key, declared in kind.__annotations__.items() if not hasattr(kind, key) and declared is int}
    with pytest.raises(UserError, match=f"^method.net: {key} must be"):
        build_module(kind, needed | {key: value}, "method.net")


def test_networks_of_a_config_are_checked(tiny):
    method = lambda key, value, recipe: prepare(tiny({key: value}, f"configs/{recipe}.py:test"))[1].method
    for recipe, key in (
        ("gan", "method.critic.blocks"),
        ("clip", "method.net.depth"),
        ("diffusion", "method.net.conditioner.width"),
    ):
        section, _, name = key.rpartition(".")
        with pytest.raises(UserError, match=rf"^{section}: {name} must be in"):
            _ = method(key, 0, recipe).network
    assert method("method.base.net.attention_size", 0, "gan").base.network.network.attention_size == 0


@pytest.mark.parametrize(("family", "key", "value"), cases_of(OPTIONS))
def test_of_sampling(family, key, value):
    with pytest.raises(UserError, match=f"^an option: {key} (must be|is)|^an option {key} must be like"):
        build_options(family_class(family).SampleOptions, {key: value}, "an option")


def test_guidance_of_mean_flow_needs_captions_and_their_absence():
    for drop in (0.0, 1.0):
        with pytest.raises(UserError, match="needs caption_drop between 0 and 1"):
            build_method({"name": "mean_flow", "net": {}, "guidance": 1.0, "caption_drop": drop}, 20, "float32")


def test_of_wrappers(tiny):
    for changes in ({"method.weight": 0.0}, {"method.weight": math.nan}):
        with pytest.raises(UserError, match="method: weight must be in"):
            prepare(tiny(changes, "configs/video.py:images,test"))
    for key, value in (("critic_steps", 0), ("r1", -1.0), ("start", -1)):
        with pytest.raises(UserError, match=f"method: {key} must be in"):
            prepare(tiny({f"method.{key}": value}, "configs/gan.py:test"))


def test_of_seeds(tiny):
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match="seed must be at least 0 and below"):
            prepare(tiny({"seed": seed}))


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_of_frame_rates(rate, tmp_path):
    run = SimpleNamespace(recipe=SimpleNamespace(frame_rate=8.0))
    run.recipe.check_frame_rate = functools.partial(Recipe.check_frame_rate, run.recipe)
    with pytest.raises(UserError, match="--fps: the frame rate must be above 0"):
        sampling_flags.read_frame_rate(run, rate)
    with pytest.raises(UserError, match="is not positive"):
        save(tmp_path / "x.gif", np.zeros((2, 4, 4, 3), np.uint8), rate)


@pytest.mark.parametrize("rate", [1e-6, 0.02, 1e6])
def test_all_other_frame_rates_can_be_written(rate, tmp_path):
    save(tmp_path / "x.gif", np.zeros((16, 4, 4, 3), np.uint8), rate)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("images,stills", "give one of these"),
        ("images,critic", "a critic"),
        ("images,gan", "a critic"),
        ("critic,vae", "drop the word critic, or vae"),
        ("gan,flow", "give one of the words flow and gan"),
    ],
)
def test_words_of_a_recipe_that_exclude_each_other(words, message):
    with pytest.raises(UserError, match=message):
        load(f"configs/video.py:{words},test")


def test_a_family_without_guidance_takes_no_negative_caption():
    sampler = SimpleNamespace(options=SimpleNamespace(steps=1))
    with pytest.raises(UserError, match="which this family has none of"):
        Sampler._arguments(sampler, {}, {"tokens": np.zeros((1, 4)), "negative": {}}, 0)


def test_a_run_is_no_folder_of_a_clip(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="write it as a CLIP by python -m zoo export_clip"):
        clips.load(tmp_path)


def test_a_pattern_that_is_no_expression():
    with pytest.raises(UserError, match=r"pattern '\(' is no regular expression"):
        matches({"a": 1}, "(")
    with pytest.raises(UserError, match="no regular expression"):
        Optimizer(freeze="(").init({"a": 1.0})
