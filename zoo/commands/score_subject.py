"""Scores a run that learned a subject.

    python -m zoo score_subject --workdir runs/pot --num 64

Samples are compared with images of the subject that were held out of training:

    fidelity     mean cosine with them; the ceiling is that of real images, the floor that of --others
    nearest      cosine with the nearest training image; the ceiling column has that of the images held out
    diversity    1 - the mean cosine of two samples of one prompt; the ceiling column has that of real images
    retrieval    share of samples that are more like the subject than like any of --others
    subject, prompt, all   of scenes by the oracle: the subject is there, all else is as the prompt has it, both
    clip_score   of prompts without their word, where a CLIP is named that has these words
    drift        CMMD of images of the class before and after; the floor column has that of two seeds of the base
    own          the oracle's share of right captions of the base's own data, before (ceiling) and after

Features are those of --clip. The one that ships was trained on scenes alone and is no guide on photographs.
"""

import json
from pathlib import Path
from typing import cast

import numpy as np
from absl import flags

from zoo.commands import sampling_flags
from zoo.commands.sample import read_prompts
from zoo.commands.scaffold import Command
from zoo.config import RECIPES
from zoo.data import folder, pipeline
from zoo.data.subject import WORD, name_of
from zoo.errors import UserError, named
from zoo.evaluation import report
from zoo.evaluation import subject as scores
from zoo.evaluation.clip_score import clip_score
from zoo.evaluation.distances import cmmd
from zoo.evaluation.features import Features, clip_features
from zoo.evaluation.measures import mean_score
from zoo.evaluation.registry import Score
from zoo.files import local, read_text, write_json
from zoo.runs.data import SubjectData
from zoo.runs.run import Run
from zoo.scenes import oracle, subjects
from zoo.training import processes

FLAGS = flags.FLAGS
PROMPTS = RECIPES / "subject_prompts.txt"
OF_SCENES = "subject.json"  # in a folder of `benchmarks.subjects`


def define_flags() -> None:
    """Defines the flags of this command."""
    sampling_flags.define()
    flags.DEFINE_integer("num", 64, "Number of samples, the prompts in turn.", lower_bound=2)
    about = "Images of the class, and of the base's own captions; 0 for none."
    flags.DEFINE_integer("num_drift", 256, about, lower_bound=0)
    flags.DEFINE_multi_string("prompt", [], "A prompt with [V]; may be given several times.")
    flags.DEFINE_string("prompts_file", None, "A file with a prompt on each line; {} is [V] and the noun.")
    flags.DEFINE_bool("company", False, "Of scenes of several things: another one is beside the subject.")
    flags.DEFINE_multi_string("others", [], "Folder of another subject, for the floor and retrieval.")
    flags.DEFINE_string("clip", "zoo:clip", "Folder of a CLIP for features; by default one trained on scenes.")
    flags.DEFINE_bool("clip_score", False, "Whether the CLIP has the words of the prompts, so that it compares them.")
    flags.DEFINE_string("out", None, "JSON file; by default WORKDIR/score_subject.json.")


def main(_: list[str]) -> None:
    """Runs the command on parsed flags."""
    sampling = sampling_flags.read()
    run, data = sampling.run, cast(SubjectData, sampling.run.recipe.data)
    if not isinstance(data, SubjectData):
        raise UserError(f"--workdir: {FLAGS.workdir} learned no subject: name a run of configs/personalize.py")
    if FLAGS.num_drift == 1:
        raise UserError("--num_drift 1: a distance needs two images: give more, or 0 for none")
    known = shown_in(data)
    prompts = prompts_for(data, known)
    bare = [text.replace(f"[{data.name}]", WORD) for text in prompts]
    if known:
        for text in bare:
            subjects.check(text)
    real = {part: images_of(data.open(part)) for part in ("train", "test")}
    if np.array_equal(real["train"], real["test"]):
        processes.note(f"no image of {data.subject} is held out: samples are compared with those of training")
    others = {name_of(path): images_of(folder.open_source(path, "train", data.size, 1)) for path in FLAGS.others}
    if len(others) < len(FLAGS.others):
        raise UserError("--others: two folders have the same name: give one of them another")
    if data.name in others:
        raise UserError(f"--others: {data.name} is the run's own subject: name other folders")
    clip = named("--clip", lambda: clip_features(FLAGS.clip))
    made = sampling.sampler()(run.params, sampling.conditions(prompts), sampling.seed)
    own, features = clip.images(made), {part: clip.images(images) for part, images in real.items()}
    of_others = {name: clip.images(images) for name, images in others.items()}
    found = of_features(own, prompts, features, of_others)
    if known:
        found |= of_scenes(made, bare, known, data)
    if FLAGS.clip_score:
        texts = [text.replace(f"{WORD} ", "") for text in bare]
        found |= {"clip_score": mean_score(clip_score(own, clip.texts(texts)))}
    rows: dict[str, dict[str, Score]] = {"model": found, "ceiling": {}, "floor": {}}
    rows["ceiling"], rows["floor"] = bounds(features, of_others)
    if FLAGS.num_drift:
        drift(rows, clip, sampling, data)
    print(report.to_table({name: row for name, row in rows.items() if row}))
    out = Path(FLAGS.out or f"{FLAGS.workdir}/score_subject.json")
    about = sampling.about() | {"num": FLAGS.num, "prompts": list(dict.fromkeys(prompts)), "others": list(FLAGS.others)}
    write_json(out, report.to_json(rows, about))
    print(f"{len(made)} samples -> {out}")


def shown_in(data: SubjectData) -> subjects.Subject | None:
    """Returns the subject of scenes that the folder names; None where it names none."""
    file = local(data.subject) / OF_SCENES
    if not file.is_file() or oracle.world_of(data.source) is None:
        return None
    return subjects.Subject(**json.loads(read_text(file)))


def prompts_for(data: SubjectData, known: subjects.Subject | None) -> list[str]:
    """Returns --num prompts: those given, else new scenes of a subject of scenes, else `PROMPTS`."""
    given = [*FLAGS.prompt]
    if FLAGS.company and (given or FLAGS.prompts_file or not known):
        raise UserError("--company is of a subject of scenes, without prompts: drop it")
    if known and not given and not FLAGS.prompts_file:
        world = cast(str, oracle.world_of(data.source))
        trained = set(pipeline.captions(data.open("train")))
        make = lambda: subjects.scenes(known, world, FLAGS.num + len(trained), seed=1, company=FLAGS.company)
        scenes = named("--company", make) if FLAGS.company else make()
        named_scenes = [subjects.describe(scene).replace(WORD, f"[{data.name}]") for scene in scenes]
        given = [text for text in named_scenes if text not in trained][: FLAGS.num]
    file = FLAGS.prompts_file or (None if given else str(PROMPTS))
    texts = [data.filled(text) for text in read_prompts(given, file, None, lambda: data.open("test"))]
    texts = [text.replace(WORD, f"[{data.name}]") for text in texts]
    lacking = [text for text in texts if f"[{data.name}]" not in text]
    if lacking:
        raise UserError(f"prompt {lacking[0]!r} has neither {WORD} nor {{}}: it would not show the subject")
    return [texts[i % len(texts)] for i in range(FLAGS.num)]


def images_of(source: pipeline.Source) -> np.ndarray:
    """Returns all images of a source, uint8 (N, 1, H, W, 3)."""
    return np.stack([source[i]["inputs"] for i in range(len(source))])


def of_features(own, prompts, real, others) -> dict[str, Score]:
    """Scores by features of samples, of real images, and of those of other subjects."""
    held_out, training = real["test"], real["train"]
    found = {
        "fidelity": mean_score(scores.fidelity(own, held_out)),
        "nearest": mean_score(scores.nearest(own, training)),
    }
    if len(set(prompts)) < len(prompts):
        found["diversity"] = mean_score(scores.diversity(own, prompts))
    if others:
        found["retrieval"] = mean_score(scores.retrieved(own, {"": held_out} | others, ""))
    return found


def of_scenes(made: np.ndarray, texts: list[str], known: subjects.Subject, data: SubjectData) -> dict[str, Score]:
    """Scores by the oracle."""
    world = cast(str, oracle.world_of(data.source))
    found = [subjects.score(image[:1], text, known, world) for image, text in zip(made, texts, strict=True)]
    return {name: mean_score([row[name] for row in found]) for name in found[0]}


def bounds(real, others) -> tuple[dict[str, Score], dict[str, Score]]:
    """Scores of real images of the subject, and of those of other subjects, by their features."""
    training, held_out = real["train"], real["test"]
    apart = not np.array_equal(real["train"], real["test"])
    ceiling = {"fidelity": mean_score(scores.fidelity(training, held_out))} if apart else {}
    ceiling |= {"nearest": mean_score(scores.nearest(held_out, training))} if apart else {}
    if len(training) > 1:
        ceiling["diversity"] = mean_score(scores.diversity(training, [""] * len(training)))
    if not others:
        return ceiling, {}
    return ceiling, {
        "fidelity": mean_score(np.concatenate([scores.fidelity(x, held_out) for x in others.values()])),
        "retrieval": Score(1 / (1 + len(others)), note="the floor is chance"),
    }


def drift(rows: dict[str, dict[str, Score]], clip: Features, sampling: sampling_flags.Sampling, data: SubjectData):
    """Adds what the run has lost of its base."""
    base, num = cast(Run, sampling.run.recipe.dependencies.runs["base"]), FLAGS.num_drift
    captions = data.class_captions("test", num)
    given = sampling.negative, sampling.per_device, sampling.frames
    sample = lambda run, texts, seed: run.sample(texts, seed, *given, **sampling.options)
    features = lambda run, seed: clip.images(sample(run, captions, seed))
    before, again, after = features(base, 0), features(base, 1), features(sampling.run, 1)
    rows["model"]["drift"] = Score(float(cmmd(after, before)), better="lower")
    rows["floor"]["drift"] = Score(float(cmmd(again, before)))
    world = oracle.world_of(data.source)
    if world is not None:
        own = pipeline.captions(data.open_base("test"), num)
        for row, run in (("model", sampling.run), ("ceiling", base)):
            right = oracle.table(sample(run, own, 0), own, world, run.recipe.frame_rate)["all"]
            rows[row]["own"] = mean_score(right)


COMMAND = Command(main, define_flags, suffixes=(".json",))
