import functools
import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks.subjects import write
from zoo import media
from zoo.commands import preview
from zoo.data import pipeline
from zoo.errors import UserError
from zoo.evaluation import model_eval
from zoo.evaluation.clip_eval import auc, hard_negative
from zoo.evaluation.model_eval import settled
from zoo.evaluation.registry import MEASURES
from zoo.evaluation.rerank import get_reward
from zoo.families import FAMILIES
from zoo.method import Generates, Upsamples, to_float
from zoo.runs.dependencies import open_run, prepare
from zoo.runs.sampler import Sampler
from zoo.scenes.dataset import open_source
from zoo.scenes.subjects import SUBJECTS
from zoo.training.checkpoint import Checkpoints

FOLDER = Path(__file__).resolve().parents[1] / "configs"
RECIPES = [f"configs/{file.name}:test" for file in sorted(FOLDER.glob("*.py"))]
RECIPES += [f"configs/{kind},test" for kind in ("vae.py:critic", "flow.py:jet,critic")]
RECIPES += ["configs/diffusion.py:few_steps,test"]
RECIPES += [f"configs/tokens.py:{words},test" for words in ("masked,critic", "autoregressive", "continuous")]
OF_RUNS = [name for name, measure in MEASURES.items() if measure.of_run]
PROMPTS = ["--prompt=a red circle", "--prompt=a blue star"]


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def settings(path):
    return json.loads(media.read_metadata(path)["zoo"])


@pytest.fixture
def sample(command, trained, tmp_path):
    """sample("--num=2") -> the path of the grid that sample.py wrote, and what it printed."""

    def sample(*words, name="out.png", workdir=trained):
        done = command("sample.py", f"--workdir={workdir}", f"--out={tmp_path / name}", "--per_device=1", *words)
        assert done.code == 0, done.err
        return tmp_path / name, done.out

    return sample


# ---- every recipe


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.slow
def test_a_recipe_trains_saves_goes_on_and_samples(recipe, command, trained, tmp_path):
    train = ["train.py", f"--config={recipe}", "--config.loop.steps=2", f"--workdir={tmp_path / 'run'}"]
    if "personalize" in recipe:  # which changes a trained run, by images
        write(tmp_path / "pot", SUBJECTS[0], "one", 16, 2)
        train += [f"--config.init={trained}", f"--config.data.subject={tmp_path / 'pot'}"]
    assert command(*train).code == 0
    assert Checkpoints(tmp_path / "run", read_only=True).steps()[-1] == 2
    again = command(*train)
    assert again.code == 0 and "is trained" in again.err
    out = tmp_path / "out.png"
    done = command("sample.py", f"--workdir={tmp_path / 'run'}", *PROMPTS, f"--out={out}", "--per_device=1")
    method = open_run(tmp_path / "run").method
    if isinstance(method, Upsamples):
        assert done.code == 2 and "give it a base run by --workdir BASE --upsample STAGE, or --input" in done.err
    elif isinstance(method, Generates):
        assert done.code == 0, done.err
        assert out.exists() or out.with_suffix(".gif").exists()
    else:
        assert done.code == 2 and "lacks the ability Generates; families with it: diffusion" in done.err


# ---- train.py


def test_a_dry_run_prints_and_writes_a_sheet_alone(command, trained, tmp_path):
    recipe, workdir = "--config=configs/diffusion.py:test", f"--workdir={tmp_path / 'run'}"
    done = command("train.py", recipe, workdir, "--dry_run", f"--out={tmp_path / 'sheet.png'}")
    assert done.code == 0, done.err
    for words in (
        "parameters",
        "model/network/layers",
        "FLOPs per step",
        "memory per device",
        "MiB",
        "64 in scenes/one",
    ):
        assert words in done.out
    lines = done.out.splitlines()
    captions = lines[lines.index(next(line for line in lines if "are cut to" in line)) + 1 : -1]
    assert len(captions) == 5 and all(len(caption.split()) >= 2 for caption in captions)
    counted = next(line.split()[1] for line in lines if line.split()[:1] == ["all"])
    assert int(counted.replace(",", "")) == sum(x.size for x in jax.tree.leaves(open_run(trained).params))
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"] and "sheet.png" in lines[-1]
    assert command("train.py", recipe, "--dry_run", "--out=sheet.jpg").code == 2
    assert "--out is for --dry_run" in command("train.py", recipe, workdir, "--out=sheet.png").err


def test_the_sheet_holds_items_and_captions_as_the_network_gets_them(tiny):
    config = tiny({"data.text_length": 6, "data.batch_size": 8, "data.flip": True})
    source, recipe = prepare(config)
    batches = list(itertools.islice(recipe.stream(source), 2))
    images = np.concatenate([batch["inputs"] for batch in batches])
    captions = recipe.tokenizer.decode(np.concatenate([batch["cond"]["tokens"] for batch in batches]))
    shown, said = preview.shown(source, recipe)
    np.testing.assert_array_equal(shown, images)
    assert said == captions
    texts = pipeline.captions(source)
    whole = recipe.tokenizer.decode(recipe.tokenizer.encode(texts))
    cut = [text != kept for text, kept in zip(texts, whole, strict=True)]
    assert recipe.tokenizer.is_cut(texts).tolist() == cut and 0 < sum(cut) < len(cut)


# ---- sample.py


def test_a_grid_has_an_image_for_each_prompt_and_notes_how_it_was_made(sample, trained):
    out, printed = sample(*PROMPTS, "--seed=3")
    height, width, channels = pixels(out).shape
    assert channels == 3 and width >= 2 * 16 and height >= 16
    about = settings(out)
    assert about["prompts"] == ["a red circle", "a blue star"]
    assert (about["run"], about["checkpoint"], about["seed"]) == (str(trained), 4, 3)
    assert about["settings"]["steps"] == 2
    assert printed.startswith("2 images in") and "oracle on 2 captions" in printed


def test_prompts_that_are_no_captions_of_the_data_are_named(sample):
    _, printed = sample("--prompt=a photo of two purple dogs", "--prompt=a red circle", "--steps=1")
    assert "1 of 2 prompts are not like the captions of scenes/one" in printed
    assert ": 'a photo of two purple dogs'; a caption is e.g. 'a" in printed
    assert "are not like" not in sample("--prompt=a red circle", "--steps=1")[1]


def test_prompts_are_taken_in_turn(sample):
    out, _ = sample(*PROMPTS, "--num=5")
    assert settings(out)["prompts"] == ["a red circle", "a blue star"] * 2 + ["a red circle"]


def test_prompts_come_from_a_file_too(sample, tmp_path):
    (tmp_path / "prompts.txt").write_text("a green ring\n\n  a white cross \n")
    out, _ = sample("--prompt=a star", f"--prompts_file={tmp_path / 'prompts.txt'}")
    assert settings(out)["prompts"] == ["a star", "a green ring", "a white cross"]


def test_without_prompts_those_of_the_test_split_are_taken(sample, trained):
    out, _ = sample("--num=3")
    source = open_run(trained).recipe.data.open("test")
    assert set(settings(out)["prompts"]) <= {source[i]["text"] for i in range(len(source))}
    assert len(settings(out)["prompts"]) == 3


def each(out):
    return [pixels(file) for file in sorted(out.with_suffix("").glob("*.png"))]


def test_each_image_by_itself(sample):
    out, _ = sample(*PROMPTS, "--num=3", "--each")
    images = each(out)
    assert [image.shape for image in images] == [(16, 16, 3)] * 3
    note = media.read_metadata(out.with_suffix("") / "0001.png")
    assert note["prompt"] == "a blue star" and json.loads(note["zoo"])["number"] == 1


def test_the_same_seed_makes_the_same_images_and_another_makes_others(sample):
    paths = [sample(*PROMPTS, "--each", f"--seed={seed}", name=f"{i}.png")[0] for i, seed in enumerate((1, 1, 2))]
    first, again, other = map(each, paths)
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[0], first[1])


def test_an_image_does_not_depend_on_those_made_beside_it(sample):
    alone, _ = sample("--prompt=a red circle", "--each", name="a.png")
    beside, _ = sample(*PROMPTS, "--num=7", "--each", name="b.png")
    more, _ = sample(*PROMPTS, "--num=7", "--each", "--per_device=3", name="c.png")
    assert np.array_equal(each(alone)[0], each(beside)[0])
    assert np.abs(np.array(each(beside)) - np.array(each(more))).max() <= 1


@pytest.mark.slow
def test_the_number_of_devices_makes_no_difference(sample, finish, trained, tmp_path):
    four, _ = sample(*PROMPTS, "--num=3", "--each", name="four.png")
    words = [f"--workdir={trained}", *PROMPTS, "--num=3", "--each", "--per_device=1", f"--out={tmp_path / 'one.png'}"]
    done = finish("sample.py", *words, devices=1)
    assert done.code == 0, done.err
    assert np.array_equal(each(four), each(tmp_path / "one.png"))


def test_the_averages_and_the_checkpoints_can_be_chosen(trained, same):
    by_default, longest, short, none = (open_run(trained, ema=ema).params for ema in (None, "20", "2", "none"))
    assert same(by_default, longest)
    assert not same(longest, short) and not same(short, none)
    assert open_run(trained, step=2).step == 2
    assert not same(open_run(trained, step=2, ema="none").params, none)


def test_ema_and_checkpoint_flags_are_obeyed(sample):
    out, _ = sample("--prompt=a star", "--ema=none", "--checkpoint=2")
    assert (settings(out)["ema"], settings(out)["checkpoint"]) == ("none", 2)


def test_sampling_options_are_obeyed(sample):
    out, _ = sample("--prompt=a star", "--steps=3", "--sampler=euler", "--guidance=0", "--option=interval=(0.1, 0.5)")
    made = settings(out)["settings"]
    assert (made["steps"], made["sampler"], made["guidance"]) == (3, "euler", 0.0)
    assert list(made["interval"]) == [0.1, 0.5]


@pytest.mark.slow
def test_autoguidance_changes_the_image(sample):
    plain, _ = sample("--prompt=a star", "--each", "--guidance=0", name="plain.png")
    # Images of a barely trained network hardly differ, so the scale is large.
    guided, _ = sample("--prompt=a star", "--each", "--guidance=500", "--guide_checkpoint=2", name="guided.png")
    itself, _ = sample("--prompt=a star", "--each", "--guidance=500", "--guide_checkpoint=4", name="itself.png")
    assert not np.array_equal(each(plain)[0], each(guided)[0])
    assert np.abs(each(plain)[0] - each(itself)[0]).max() <= 1  # nothing to guide away from


@pytest.mark.slow
def test_a_negative_caption_is_what_guidance_leads_away_from(sample):
    plain, _ = sample("--prompt=a star", "--each", "--guidance=500", name="plain.png")
    empty, _ = sample("--prompt=a star", "--each", "--guidance=500", "--negative=", name="empty.png")
    other, _ = sample("--prompt=a star", "--each", "--guidance=500", "--negative=a blue ring", name="other.png")
    itself, _ = sample("--prompt=a star", "--each", "--guidance=500", "--negative=a star", name="itself.png")
    unguided, _ = sample("--prompt=a star", "--each", "--guidance=0", name="unguided.png")
    assert settings(other)["negative"] == "a blue ring"
    assert np.array_equal(each(plain)[0], each(empty)[0]) and not np.array_equal(each(plain)[0], each(other)[0])
    assert np.abs(each(itself)[0] - each(unguided)[0]).max() <= 1  # nothing to lead away from


# ---- scores and speed


CLIP = f"--clip={Path(__file__).parent / 'fixtures' / 'clip' / 'gelu'}"


@pytest.mark.slow
def test_all_that_can_be_scored_is_written_beside_the_run(command, copied):
    done = command("zoo/commands/score.py", f"--workdir={copied}", "--num=6", "--per_device=2")
    assert done.code == 0, done.err
    scores = json.loads((copied / "scores.json").read_text())
    assert set(scores) == {"model", "ceiling", "floor", "intervals", "about"}
    assert scores["ceiling"]["all"] == 1.0 and scores["floor"]["all"] < 1.0
    of_codes = {"code_usage"}
    assert scores["ceiling"].keys() == scores["floor"].keys() and scores["model"]["one_colour"] < 1
    assert scores["model"].keys() == (scores["ceiling"].keys() | set(OF_RUNS)) - of_codes
    assert "without code_usage: Diffusion lacks" in done.out
    assert set(OF_RUNS) > of_codes and "bits_per_dim: of 6 real images" in done.out
    assert {"clip_score", "cmmd", "kid", "frechet", "precision", "recall"} <= scores["model"].keys()
    assert scores["about"]["evaluations"] == (2 * 2 - 1) * 2 and scores["about"]["samples_per_second"] > 0
    assert all(row in done.out for row in ("model", "ceiling", "floor", "without fid: needs inception"))
    assert Image.open(copied / "scores.png").size[0] > 300


def test_chosen_measures_are_written_beside_the_run(command, copied):
    done = command(
        "-m", "zoo", "score", f"--workdir={copied}", "--num=4", "--per_device=1", "--measures=oracle,cmmd", CLIP
    )
    assert done.code == 0, done.err
    scores = json.loads((copied / "scores.json").read_text())
    assert set(scores) == {"model", "ceiling", "floor", "intervals", "about"} and "kid" not in scores["model"]
    assert scores["ceiling"]["all"] == 1.0 and scores["floor"]["all"] < 1.0 and scores["model"]["cmmd"] > 0
    assert all(row in done.out for row in ("model", "ceiling", "floor")) and (copied / "scores.png").exists()


def test_a_folder_of_images_is_scored(command, sample, tmp_path):
    out, _ = sample(*PROMPTS, "--each")
    folder = out.with_suffix("")
    words = [f"--images={folder}", "--measures=clip_score", CLIP]
    done = command("zoo/commands/score.py", *words)
    assert done.code == 0, done.err
    by_note = json.loads(Path(f"{folder}_scores.json").read_text())["model"]["clip_score"]
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue star\n")
    assert command("zoo/commands/score.py", *words, f"--prompts={prompts}").code == 0
    assert json.loads(Path(f"{folder}_scores.json").read_text())["model"]["clip_score"] == by_note
    reference = "--reference=scenes/one?examples=64"
    compared = (f"--images={folder}", "--measures=cmmd,oracle", CLIP, reference, "--num=4")
    done = command("zoo/commands/score.py", *compared)
    assert done.code == 0, done.err
    assert json.loads(Path(f"{folder}_scores.json").read_text())["floor"]["cmmd"] > 0


def test_runs_are_compared(command, copied, tmp_path):
    done = command("-m", "zoo", "compare", copied)
    assert done.code == 2 and "has no scores.json: run python -m zoo score --workdir" in done.err
    assert command("zoo/commands/score.py", f"--workdir={copied}", "--num=2", "--measures=oracle").code == 0
    done = command("-m", "zoo", "compare", copied, copied, f"--out={tmp_path / 'c.md'}")
    assert done.code == 0, done.err
    table = (tmp_path / "c.md").read_text()
    assert done.out.startswith(table.rstrip()) and (tmp_path / "c.png").exists()
    rows = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()}
    assert "| 32 | 32 |" in rows["images seen"] and "| 6 | 6 |" in rows["evaluations a sample"]
    assert {"parameters", "seconds of training", "samples/s", "all"} <= rows.keys()


def test_quality_is_drawn_over_evaluations(command, trained, tmp_path):
    words = ("-m", "zoo", "nfe_sweep", trained)
    done = command(*words, "--steps=1,3", "--num=4", "--show=all", "--show=colour", f"--out={tmp_path / 's.png'}")
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "s.json").read_text())[str(trained)]
    assert [(row["steps"], row["evaluations"]) for row in rows] == [(1, 2), (3, 10)] and (tmp_path / "s.png").exists()
    assert all(0 <= row["scores"]["all"] <= 1 for row in rows)
    done = command(*words, "--steps=1", "--num=4", "--show=colours", f"--out={tmp_path / 's.png'}")
    assert done.code == 2 and "did you mean 'colour'" in done.err
    done = command(*words, "--steps=1,two")
    assert done.code == 2 and "--steps: 'two'" in done.err
    done = command(*words, "--measures=psnr")
    assert done.code == 2 and "psnr is not of samples" in done.err


def test_options_of_a_run_make_a_curve_of_their_own(command, trained, tmp_path):
    plain, other = str(trained), f"{trained}?guidance=0&sampler=euler"
    words = ("-m", "zoo", "nfe_sweep", plain, other, "--steps=2", "--num=2", f"--out={tmp_path / 's.png'}")
    done = command(*words)
    assert done.code == 0, done.err
    rows = json.loads((tmp_path / "s.json").read_text())
    assert rows[plain][0]["evaluations"] > rows[other][0]["evaluations"] == 2
    done = command("-m", "zoo", "nfe_sweep", f"{trained}?steps=3")
    assert done.code == 2 and "name the steps by --steps" in done.err
    done = command("-m", "zoo", "nfe_sweep", f"{trained}?guidance")
    assert done.code == 2 and "'guidance' is not NAME=VALUE" in done.err


def test_a_wrong_option_is_found_before_any_run_is_sampled(command, trained, monkeypatch):
    monkeypatch.setattr("zoo.evaluation.nfe_sweep.nfe_sweep", lambda *_: pytest.fail("sampled"))
    done = command("-m", "zoo", "nfe_sweep", trained, f"{trained}?sampler=heun&eta=1")
    assert done.code == 2 and "puts noise back" in done.err


@pytest.mark.slow
def test_captions_without_a_word_to_swap_cannot_be_trusted(command, tmp_path):
    for name in ("one", "two"):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("xyzzy")
    source = f"--source=folder:{tmp_path}"
    done = command("-m", "zoo", "clip_eval", source, "--size=16", "--num=2", "--split=test")
    assert done.code == 2 and "no caption has a word that can be swapped" in done.err


def test_metrics_of_runs_are_drawn(command, trained, tmp_path):
    words = ("-m", "zoo", "curves", trained, f"--out={tmp_path / 'c.png'}")
    done = command(*words, "--show=model/loss", "--show=model/grad_norm")
    assert done.code == 0 and (tmp_path / "c.png").exists(), done.err
    done = command(*words, "--show=model/los")
    assert done.code == 2 and "did you mean 'model/loss'" in done.err


def test_how_far_a_clip_can_be_trusted_is_printed(command, tmp_path):
    words = (CLIP, "--source=scenes/one?examples=64", "--size=16", "--num=6", f"--out={tmp_path / 'trust.json'}")
    done = command("-m", "zoo", "clip_eval", *words)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "trust.json").read_text())
    assert report == json.loads(done.out) and {"auc", "pair_accuracy"} < report.keys() and report["images"] == 6


def test_only_a_clip_is_exported(command, trained, tmp_path):
    done = command("-m", "zoo", "export_clip", f"--workdir={trained}", f"--out={tmp_path / 'clip'}")
    assert done.code == 2 and "is a run of Diffusion: name one of configs/clip.py" in done.err


@pytest.mark.slow
def test_a_clip_is_trained_exported_and_tried(command, tmp_path):
    assert command("train.py", "--config=configs/clip.py:test", f"--workdir={tmp_path / 'run'}").code == 0
    words = (f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'clip'}")
    done = command("-m", "zoo", "export_clip", *words)
    assert done.code == 0, done.err
    out = tmp_path / "trust.json"
    tried = (f"--clip={tmp_path / 'clip'}", "--source=scenes/one?examples=64", "--size=16", "--num=6", f"--out={out}")
    tried += (words[0],)
    done = command("-m", "zoo", "clip_eval", *tried)
    assert done.code == 0, done.err
    report = json.loads(out.read_text())
    assert report == json.loads(done.out)
    assert {"image_to_text_r1", "text_to_image_r1", "pair_accuracy", "auc", "correlation_with_oracle"} < report.keys()
    run, source, rng = open_run(tmp_path / "run"), open_source("one", "test", 16, examples=64), np.random.default_rng(0)
    pairs = [(source[i], text) for i in range(6) if (text := hard_negative(source[i], 1, rng))]
    shown = np.stack([item["inputs"] for item, _ in pairs])
    right, wrong = (
        model_eval.score(run, shown, [item["text"] for item, _ in pairs]),
        model_eval.score(run, shown, [w for _, w in pairs]),
    )
    assert report["run"]["pair_accuracy"] == np.mean(right > wrong) and report["run"]["auc"] == auc(right, wrong)
    again = command("-m", "zoo", "export_clip", *words)
    assert again.code == 2 and "exists" in again.err


def test_the_best_of_several_is_kept(sample):
    one, _ = sample("--prompt=a star", "--each", "--num=1", name="one.png")
    best, said = sample("--prompt=a star", "--each", "--best_of=3", "--reward=oracle", "--score", CLIP, name="best.png")
    assert "3 images in" in said and "CLIPScore: " in said
    every, best_one = map(float, re.search(r"mean oracle of all ([\d.]+), of the best ([\d.]+)", said).groups())
    assert 0 <= every <= best_one <= 2
    note = settings(best.with_suffix("") / "0000.png")
    assert note["best_of"] == 3 and note["reward"] == "oracle" and 0 <= note["number"] < 3
    assert (note["number"] == 0) == np.array_equal(each(one)[0], each(best)[0])


@pytest.mark.slow
def test_a_run_that_scores_is_a_reward(command, sample, trained, tmp_path):
    run = tmp_path / "scorer"
    assert command("train.py", "--config=configs/clip.py:test", f"--workdir={run}").code == 0
    scorer, texts = open_run(run), ["a red circle", "a blue star", "a thing"]
    made = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16, 3)).astype(np.uint8)
    model = scorer.method
    words = model.text_features(scorer.params, scorer.conditions(texts))
    cosines = (model.embed(scorer.params, to_float(jnp.asarray(made)), None) * words).sum(-1)
    np.testing.assert_allclose(get_reward(str(run), None)(made, texts), cosines, atol=1e-5)
    with pytest.raises(UserError, match="use one of their data.size"):
        get_reward(str(run), None)(np.repeat(made, 2, axis=2), texts)

    best, _ = sample("--prompt=a star", "--each", "--best_of=2", f"--reward={run}", name="best.png")
    assert settings(best.with_suffix("") / "0000.png")["reward"] == str(run)
    done = command("sample.py", f"--workdir={trained}", "--prompt=a star", "--best_of=2", f"--reward={trained}")
    assert one_error(done, "Diffusion lacks the ability Scorer; families with it: contrastive, adversarial")


# ---- likelihood


@pytest.fixture
def likelihood(command):
    """likelihood("--workdir=...", ...) -> what the command did."""

    def likelihood(*words):
        flags = ["zoo/commands/likelihood.py", "--per_device=1", "--num=6", *words]
        return command(*flags)

    return likelihood


def test_likelihood_is_written_beside_the_run_and_compared(likelihood, command, copied, tmp_path):
    done = likelihood(f"--workdir={copied}", "--steps=1", "--option=probes=2")
    assert done.code == 0, done.err
    said = json.loads((copied / "likelihood.json").read_text())
    assert said["options"] == {"steps": 1, "trace": "hutchinson", "probes": 2, "start": 1 / 256}
    assert (said["entropy"], said["captions"], said["num"], said["checkpoint"]) == (None, True, 6, 4)
    assert f"{said['bits_per_dim']:.4g}" in done.out
    run = open_run(copied)
    source = run.recipe.data.open("test")
    batch = {
        "inputs": np.stack([source[i]["inputs"] for i in range(6)]),
        "cond": run.conditions([source[i]["text"] for i in range(6)]),
    }
    rng = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), np.arange(6))
    options = run.method.LikelihoodOptions(steps=1, probes=2)
    bits = jax.jit(functools.partial(run.method.bits_per_dim, options=options))(run.params, rng, batch)
    assert said["bits_per_dim"] == pytest.approx(float(bits.mean()), rel=1e-3)
    done = command("-m", "zoo", "compare", copied, f"--out={tmp_path / 'c.md'}")
    assert done.code == 0, done.err
    assert f"{said['bits_per_dim']:.4g}" in next(line for line in done.out.splitlines() if "bits_per_dim" in line)


@pytest.mark.slow
def test_no_likelihood_falls_below_the_entropy(likelihood, command, tmp_path):
    run = tmp_path / "run"
    words = ["train.py", "--config=configs/diffusion.py:test", "--config.data.source=scenes/entropy?examples=64"]
    assert command(*words, "--config.loop.steps=1", f"--workdir={run}").code == 0
    out = tmp_path / "bits.json"
    done = likelihood(f"--workdir={run}", "--no_captions", "--steps=1", "--tolerance=0.5", f"--out={out}")
    assert done.code == 0, done.err
    said = json.loads(out.read_text())
    assert said["entropy"] == pytest.approx(4 + np.log2(1152) / 768) and not said["captions"]
    assert said["gap"] == pytest.approx(said["bits_per_dim"] - said["entropy"]) and said["gap"] > 0
    assert said["change_by_doubling"] <= 0.5 and said["options"]["steps"] >= 2
    scores = ("zoo/commands/score.py", f"--workdir={run}", "--num=4", "--per_device=1", "--measures=bits_per_dim")
    done = command(*scores)
    assert done.code == 0, done.err
    found = json.loads((run / "scores.json").read_text())
    assert found["ceiling"]["bits_per_dim"] == 4.0 < found["model"]["bits_per_dim"]


def test_steps_are_doubled_until_no_image_changes():
    asked = []

    def bits(steps):
        asked.append(steps)
        return np.array([4.0, 5.0]) + np.array([0.0, 1.0]) / steps

    values, steps, change = settled(bits, 2, 0.1)
    assert asked == [2, 4, 8, 16] and steps == 16  # 1/4 - 1/8 is more than 0.1
    assert values[1] == 5 + 1 / 16 and change == pytest.approx(1 / 16)
    with pytest.raises(UserError, match="steps were not enough"):
        settled(lambda steps: np.array([float("nan")]), 512, 1.0)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--workdir=RUN", "--option=samples=4"], "unknown likelihood option of Diffusion 'samples'"),
        (["--workdir=RUN", "--option=trace=exakt"], "did you mean 'exact'"),
        (["--workdir=RUN", "--option=steps=many"], "likelihood option of Diffusion steps must be like 32"),
        (["--workdir=RUN", "--guide_checkpoint=2"], "drop --negative, the --guide_ flags and --speculate"),
        (["--workdir=RUN", "--negative=a ring"], "drop --negative, the --guide_ flags and --speculate"),
        (["--workdir=RUN", "--num=7"], "split 'test' has 6 items, fewer than"),
        (["--workdir=RUN", "more"], "no such argument"),
        (["--workdir=RUN", "--tolerance=-1"], "tolerance"),
        (["--workdir=RUN", "--tolerance=inf"], "--tolerance must be a finite number"),
        (["--workdir=RUN", "--frames=4"], "--frames is for samples"),
    ],
)
def test_a_wrong_likelihood_option_is_an_error(likelihood, trained, words, message):
    assert one_error(likelihood(*(word.replace("RUN", str(trained)) for word in words)), message)
    assert not (trained / "likelihood.json").exists()


def test_references_are_read(command, copied, tmp_path):
    file = tmp_path / "references.jsonl"
    words = ("zoo/commands/score.py", f"--workdir={copied}", "--num=2", "--per_device=1", CLIP)
    words = (*words, "--measures=ref_clip_score", f"--references={file}")
    file.write_text('["a red star"]\n["a thing", "a blue ring"]\n')
    assert command(*words).code == 0
    scores = json.loads((copied / "scores.json").read_text())
    assert all("ref_clip_score" in scores[row] for row in ("model", "ceiling", "floor"))
    for text, message in (
        ('["a"]\n', "has 1 lines for 2 images"),
        ('["a"]\n[]\n', "line 2 of"),
        ('["a"]\nb\n', "line 2 of"),
    ):
        file.write_text(text)
        assert one_error(command(*words), message)
    file.unlink()
    assert one_error(command(*words), "no such file")


@pytest.mark.slow
def test_scores_are_logged_on_the_way(command, tmp_path):
    words = ["train.py", "--config=configs/diffusion.py:test", f"--workdir={tmp_path / 'run'}"]
    scored = ["--config.loop.score_every=1", "--config.loop.score_num=4", "--config.loop.score_measures=('oracle',)"]
    done = command(*words, *scored)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "score/all" in row] == [1, 2]


def test_more_captions_than_there_are_is_an_error(command, trained):
    done = command("zoo/commands/score.py", f"--workdir={trained}", "--num=7")
    assert done.code == 2 and "split 'test' has 6 items, fewer than" in done.err


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "give either --workdir"),
        (["--workdir=W", "--images=P"], "give either --workdir"),
        (["--images=nowhere"], "no such folder: 'nowhere'"),
        (["--images=EMPTY"], "holds no image"),
        (["--images=P", "--prompts=nowhere"], "no such file: 'nowhere'"),
        (["--images=P", "--prompts=TWO"], "has 2 captions for 3 images"),
        (["--images=BROKEN"], "cannot be read"),
        (["--images=P", "--measures=cmd"], "did you mean 'cmmd'"),
        (["--images=P", "--steps=7"], "--steps is for runs"),
        (["--images=P", "--checkpoint=5"], "--checkpoint is for runs"),
        (["--images=P", "--split=nosplit"], "--split is of real images"),
        (["--workdir=W", "--measures=kid", "--clip=nowhere"], "there is no folder nowhere"),
        (["--images=P", "--measures=cmmd"], "cmmd: needs real images to compare with"),
        (["--images=P", "--measures=clip_score"], "clip_score: needs the captions"),
        (["--images=P", "--measures=kid", "--clip=nowhere"], "there is no folder nowhere"),
        (["--images=P", "--measures=fid", "--inception=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_scored_is_an_error(command, tmp_path, words, message):
    for name in ("p", "broken", "empty"):
        (tmp_path / name).mkdir()
    for i in range(3):
        Image.new("RGB", (24, 24), (40 * i,) * 3).save(tmp_path / "p" / f"{i}.png")
    (tmp_path / "broken" / "a.png").write_bytes(b"not an image")
    (tmp_path / "two.txt").write_text("a\nb\n")
    places = {
        "P": tmp_path / "p",
        "BROKEN": tmp_path / "broken",
        "EMPTY": tmp_path / "empty",
        "TWO": tmp_path / "two.txt",
    }
    split = [word.partition("=") for word in words]
    clip = [] if any("--clip" in word for word in words) else [CLIP]
    done = command("zoo/commands/score.py", *(f"{name}={places.get(value, value)}" for name, _, value in split), *clip)
    assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["--measures="], "name at least one measure of oracle, "),
        (["--measures=pair"], "pair: needs images that a stage of a cascade upsampled"),
        (["--measures=fid"], "fid: needs inception: give its network by --inception"),
        (["--measures=bits_per_dim", "--upsample=RUN"], "Diffusion lacks the ability Upsamples"),
        (["--out=W/scores.png"], "is not named .json: give it that suffix"),
        (["--out=W/file/scores.json"], "file is a file; name another file"),
        (["--references=W/nowhere"], "no such file"),
        (["--reference=folder:W/nowhere"], "--reference: "),
    ],
)
def test_what_cannot_be_scored_is_found_before_anything_is_sampled(command, place, monkeypatch, words, message):
    monkeypatch.setattr(Sampler, "draw", lambda *_: pytest.fail("sampled"))
    given = "--workdir=RUN", "--num=4", "--measures=oracle", *words
    assert one_error(command("zoo/commands/score.py", *map(place, given)), message)


@pytest.mark.parametrize(
    "file, words",
    [
        ("likelihood", ["--workdir=RUN", "--out=W/a.txt"]),
        ("nfe_sweep", ["RUN", "--out=W/a.json"]),
        ("curves", ["RUN", "--out=W/a"]),
        ("compare", ["RUN", "--out=W/a.png"]),
    ],
)
def test_files_are_named_by_what_is_in_them(command, place, tmp_path, file, words):
    done = command(f"zoo/commands/{file}.py", *map(place, words))
    assert one_error(done, "give it that suffix") and not list(tmp_path.glob("a*"))


def test_bench_reports_the_step_alone(command, trained):
    del trained  # its data are built, else the report on stdout begins with a note
    done = command("zoo/commands/bench.py", "--config=configs/diffusion.py:test", "--seconds=0.1", "--part=step")
    report = json.loads(done.out)
    assert report["images_per_s"] == pytest.approx(8 / report["step_s"]) and "sampler_images_per_s" not in report


@pytest.mark.slow
def test_bench_reports_what_it_measured(finish, trained, tmp_path):
    del trained
    words = ["--config=configs/diffusion.py:test", "--seconds=0.1", "--out", tmp_path / "bench.json"]
    done = finish("-m", "zoo", "bench", *words, devices=1)
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report == json.loads((tmp_path / "bench.json").read_text())
    rates = ("step_s", "images_per_s", "flops_per_s", "matmul_peak_flops_per_s", "share_of_matmul_peak")
    more = ("parameters", "input_images_per_s", "sampler_images_per_s", "peak_memory_mib")
    for name in (*rates, *more):
        assert report[name] > 0
    for start in ("cold", "cached"):
        assert report["start"][start]["to_first_step_s"] > report["start"][start]["compile_s"] > 0
    assert report["images_per_s"] == pytest.approx(8 / report["step_s"])


def test_help_lists_the_flags_of_a_command(finish):
    done = finish("-m", "zoo", "score", "--help", devices=1)
    assert done.code == 0
    assert "--measures" in done.out and "Scores a run" in done.out
    done = finish("-m", "zoo", "--help", devices=1)
    assert done.code == 0 and "nfe_sweep" in done.out and "Lists the families" in done.out


def test_families_are_listed_with_their_abilities(command):
    done = command("zoo/commands/families.py")
    assert done.code == 0
    rows = {line.split("`")[1]: line for line in done.out.splitlines()[2:]}
    assert set(rows) == set(FAMILIES)
    assert (
        rows["mean_flow"].endswith("| `configs/mean_flow.py` | Generates, ReadsGiven |")
        and "base's Generates" in rows["rewarded"]
    )


# ---- bad input

TRAIN = ["train.py", "--config=configs/diffusion.py:test"]
BAD_TRAINING = {
    "no config": (["train.py"], "config"),
    "no such file": (["train.py", "--config=nowhere.py"], "no such file: 'nowhere.py'"),
    "argument": (["train.py", "--config=configs/diffusion.py:tets"], "'tets': did you mean 'test'"),
    "key": ([*TRAIN, "--config.data.sise=3"], "'data.sise': did you mean 'data.size'"),
    "top key": ([*TRAIN, "--config.sead=3"], "'sead': did you mean 'seed'"),
    "type": ([*TRAIN, "--config.loop.steps=many"], "many"),
    "flag": ([*TRAIN, "--wrokdir=x"], "wrokdir"),
    "word": ([*TRAIN, "runs/demo"], "no such argument: 'runs/demo'"),
    "no workdir": (TRAIN, "--workdir is missing"),
    "patch": ([*TRAIN, "--config.method.net.patch_size=5", "--workdir=W"], "patch_size"),
    "heads": ([*TRAIN, "--config.method.net.heads=3", "--workdir=W"], "heads"),
    "method": ([*TRAIN, "--config.method.name=difusion", "--workdir=W"], "did you mean 'diffusion'"),
    "path": ([*TRAIN, "--config.method.path=liner", "--workdir=W"], "did you mean 'linear'"),
    "sampler": ([*TRAIN, "--config.sample.sampler=hein", "--workdir=W"], "did you mean 'heun'"),
    "freeze": ([*TRAIN, "--config.players.model.freeze=nothing", "--workdir=W"], "matches no parameter"),
    "decay": ([*TRAIN, "--config.players.model.decay=liner", "--workdir=W"], "did you mean 'linear'"),
    "folder": ([*TRAIN, "--config.data.source=folder:W/empty", "--workdir=W/run"], "W/empty"),
    "no folder": ([*TRAIN, "--config.data.source=folder:W/nowhere", "--workdir=W/run"], "W/nowhere"),
    "workdir is a file": ([*TRAIN, "--workdir=W/file"], "W/file"),
    "workdir below a file": ([*TRAIN, "--workdir=W/file/run"], "cannot be made"),
    "process without a coordinator": (
        [*TRAIN, "--workdir=W/run", "--process_id=1"],
        "--process_id needs --coordinator",
    ),
    "number without a coordinator": ([*TRAIN, "--workdir=W/run", "--num_processes=2"], "--num_processes needs"),
    "profile of a dry run": ([*TRAIN, "--dry_run", "--profile=2"], "--profile is for training"),
    "nans of a dry run": ([*TRAIN, "--dry_run", "--debug_nans"], "--debug_nans is for training"),
}
BAD_SAMPLING = {
    "no workdir": ([], "workdir"),
    "no run": (["--workdir=W/nowhere"], "no such run"),
    "no checkpoint": (["--workdir=W/empty"], "holds no checkpoint"),
    "checkpoint": (["--workdir=RUN", "--checkpoint=3"], "there are [2, 4]"),
    "too few": (["--workdir=RUN", "--num=1", *PROMPTS], "--num 1 is fewer than the 2 prompts"),
    "none": (["--workdir=RUN", "--num=0"], "num"),
    "sampler": (["--workdir=RUN", "--sampler=hein"], "did you mean 'heun'"),
    "option": (["--workdir=RUN", "--option=etta=1"], "did you mean 'eta'"),
    "no value": (["--workdir=RUN", "--option=eta"], "is not NAME=VALUE"),
    "option's type": (["--workdir=RUN", "--option=eta=much"], "eta"),
    "ema": (["--workdir=RUN", "--ema=21"], "unknown EMA half-life '21'"),
    "guide": (["--workdir=RUN", "--guide_ema=3"], "unknown EMA half-life '3'"),
    "file": (["--workdir=RUN", "--prompts_file=W/nowhere"], "no such file"),
    "no text": (["--workdir=RUN", "--prompts_file=RUN/samples/step_0000004.png"], "is not UTF-8"),
    "suffix": (["--workdir=RUN", "--prompt=a star", "--out=W/out.bmp"], "bmp"),
    "bucket": (["--workdir=RUN", "--prompt=a star", "--out=gs://b/out.png"], "is no path of this machine"),
    "suffix alone": (["--workdir=RUN", "--prompt=a star", "--out=W/.gif"], "is a suffix alone: put a name before it"),
    "no place": (["--workdir=RUN", "--prompt=a star", "--out=/proc/out.png"], "cannot be written"),
    "long name": (["--workdir=RUN", "--prompt=a star", f"--out=W/{'x' * 240}.png"], "give a shorter one"),
    "long path": (["--workdir=RUN", "--prompt=a star", f"--prompts_file=W/{'x' * 300}"], "give a shorter one"),
    "no home": (["--workdir=~nobodyhere/run"], "begins with a user who has no home folder"),
    "empty flag": (["--workdir=RUN", "--input="], "--input is empty: give it a value, or drop it"),
    "no stage": (["--workdir=RUN", "--upsample="], "no such run: '' is no name of a folder"),
    "frames": (["--workdir=RUN", "--frames=10000000"], "not an integer in the range [1, 100000]"),
    "no clip": (["--workdir=RUN", "--prompt=a star", "--score", "--clip=W/nowhere"], "nowhere"),
    "nan": (["--workdir=RUN", "--prompt=a star", "--guidance=nan"], "--guidance must be a finite number, got nan"),
    "word": (["--workdir=RUN", "a star"], "--prompt"),
    "reward": (["--workdir=RUN", "--prompt=a star", "--best_of=2", "--reward=orcale"], "did you mean 'oracle'"),
    "negative": (["--workdir=RUN", "--prompt=a star", "--negative=a ring", "--guidance=0"], "needs guidance above 0"),
    "negative and guide": (
        ["--workdir=RUN", "--prompt=a star", "--negative=a ring", "--guide_checkpoint=2"],
        "without a guide",
    ),
}


def one_error(done, message):
    """Whether a command said what was wrong in one line and nothing else."""
    lines = [line for line in done.err.splitlines() if line]
    assert done.code == 2, done.err
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], done.err
    return True


@pytest.fixture
def place(tmp_path, trained):
    """place("W/file") -> the path with W and RUN put in."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("here\n")
    return lambda word: word.replace("W/", f"{tmp_path}/").replace("=W", f"={tmp_path}/W").replace("RUN", str(trained))


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_what_cannot_be_trained_is_an_error_of_one_line(command, place, tmp_path, case):
    words, message = BAD_TRAINING[case]
    assert one_error(command(*map(place, words)), place(message))
    assert (tmp_path / "file").read_text() == "here\n"


@pytest.mark.parametrize("case", BAD_SAMPLING)
def test_what_cannot_be_sampled_is_an_error_of_one_line(command, place, tmp_path, case):
    words, message = BAD_SAMPLING[case]
    out = [] if any(word.startswith("--out") for word in words) else [f"--out={tmp_path / 'out.png'}"]
    assert one_error(command("sample.py", *map(place, words), *out, "--per_device=1"), message)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "words, message",
    [
        (["train.py", "--config=nowhere.py"], "no such file"),
        (["sample.py", "--workdir=/nowhere"], "no such run"),
        (["-m", "zoo", "score", "--workdri=x"], "workdri"),
    ],
)
def test_a_process_exits_with_two_and_no_traceback(finish, words, message):
    assert one_error(finish(*words, devices=1), message)
