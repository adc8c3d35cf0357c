"""Scores a run or a folder of pictures: python -m zoo.scoring --workdir runs/demo --num 256"""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags
from PIL import Image

from zoo import media, sampling_flags
from zoo.config import parse_flags
from zoo.data import pictures as files
from zoo.errors import BadInput, exit_on_bad_input
from zoo.run import Data, Run
from zoo.scoring import report
from zoo.scoring.features import SHIPPED, clip_features, inception_features
from zoo.scoring.measures import (
    OF_RUNS,
    Sample,
    Score,
    Task,
    chosen,
    first_of,
    floor,
    known_entropy,
    make_task,
    measure,
    needs_clip,
)
from zoo.training import parallel

FLAGS = flags.FLAGS
sampling_flags.define(workdir_required=False)
flags.DEFINE_string("pictures", None, "Instead of --workdir: a folder of pictures.")
flags.DEFINE_string("prompts", None, "A file with the caption of each picture, in the order of the pictures' names.")
flags.DEFINE_string("reference", None, "Real pictures to compare with, as data.source; by default the run's data.")
flags.DEFINE_integer("num", 256, "Captions of the test split to sample and score.", lower_bound=2)
flags.DEFINE_integer("num_reference", 2000, "Real pictures of split train to compare with, at most.", lower_bound=2)
flags.DEFINE_string("split", "test", "Split of the data that the captions and the held-out pictures come from.")
flags.DEFINE_list("measures", ["all"], "Which measures, with commas between them; all are those that can be had.")
flags.DEFINE_string("references", None, "Other captions of each picture, in order: a JSON list of texts on each line.")
flags.DEFINE_string("clip", None, "Folder of a CLIP, as Hugging Face's; by default one that knows scenes alone.")
flags.DEFINE_string("clip_prefix", "", "Stands before each caption that CLIP reads, e.g. 'A photo depicts '.")
flags.DEFINE_string("inception", None, "File of the published Inception weights, for fid.")
flags.DEFINE_string("inception_resize", "pytorch", "How Inception's pictures are resized: pytorch or clean.")
flags.DEFINE_string("out", None, "JSON file, and a chart beside it; by default WORKDIR/scores.json.")

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Subject(NamedTuple):
    """What is scored: its sample, the data it is compared with, what is said of it in the JSON file, and its run."""

    sample: Sample
    data: Data | None
    about: dict[str, Any]
    run: Run | None = None


def main(argv):
    if argv[1:]:
        raise BadInput(f"no such argument: {argv[1]!r}; flags begin with --")
    if (FLAGS.workdir is None) == (FLAGS.pictures is None):
        raise BadInput("give either --workdir, a run, or --pictures, a folder")
    chosen(FLAGS.measures)
    parallel.use_compilation_cache()
    subject = of_run() if FLAGS.workdir else of_folder()
    task = compared(subject)
    model, missing = measure(subject.sample, task, FLAGS.measures)
    scores = {"model": model}
    if task.held_out:
        names = [name for name in chosen(FLAGS.measures) if name not in (*missing, *OF_RUNS)]
        if task.held_out.references is None:
            names = [name for name in names if name != "ref_clip_score"]
        scores |= {"ceiling": measure(task.held_out, task, names)[0], "floor": floor(task.held_out, task, names)}
        if "bits_per_dim" in model and (entropy := known_entropy(subject.data)) is not None:
            scores["ceiling"]["bits_per_dim"] = Score(entropy)
    print(report.to_table(scores))
    for name, reason in missing.items():
        print(f"without {name}: {reason}")
    out = Path(FLAGS.out or default_out())
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report.to_json(scores, subject.about), indent=2) + "\n")
    report.to_chart(scores, out.with_suffix(".png"), str(FLAGS.workdir or FLAGS.pictures))
    print(f"{len(subject.sample.pictures)} pictures -> {out}, {out.with_suffix('.png')}")


def default_out() -> str:
    """Inside a run; beside a folder of pictures, since the chart would be one of them."""
    return f"{FLAGS.workdir}/scores.json" if FLAGS.workdir else f"{FLAGS.pictures.rstrip('/')}_scores.json"


def of_run() -> Subject:
    """Samples the run that the flags name, from the first captions of the split."""
    run = sampling_flags.open_run()
    recipe = run.recipe
    texts = first_of(recipe.data, FLAGS.split, FLAGS.num).captions
    options, traced = sampling_flags.options(), sampling_flags.traced_options(run)
    sampler, tokens = run.sampler(FLAGS.per_device, **options), recipe.tokenizer.encode(texts)
    sampler.compile(run.params, tokens, **traced)
    began = time.perf_counter()
    made = sampler(run.params, tokens, FLAGS.seed, **traced)
    about = {
        "run": FLAGS.workdir,
        "checkpoint": run.step,
        "split": FLAGS.split,
        "num": len(texts),
        "samples_per_second": len(made) / (time.perf_counter() - began),
    }
    if hasattr(recipe.method, "evaluations"):
        about["evaluations"] = recipe.method.evaluations(**dict(recipe.config.sample) | options)
    data = recipe.data if FLAGS.reference is None else Data(FLAGS.reference, recipe.data.size, recipe.data.frames)
    return Subject(Sample(made, texts, read_references(len(texts))), data, about, run)


def of_folder() -> Subject:
    """Reads the pictures that the flags name. All get the size of the first one's shorter side."""
    folder = Path(FLAGS.pictures)
    if not folder.is_dir():
        raise BadInput(f"--pictures: no such folder: {FLAGS.pictures!r}")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise BadInput(f"--pictures: {FLAGS.pictures} holds no picture ({', '.join(SUFFIXES)})")
    size = min(open_picture(paths[0]).size)
    made = np.stack([files.fit(open_picture(path), size) for path in paths])[:, None]
    captions = read_prompts(paths)
    data = Data(FLAGS.reference, size) if FLAGS.reference else None
    sample = Sample(made, captions, read_references(len(made)))
    return Subject(sample, data, {"pictures": FLAGS.pictures, "num": len(paths)})


def open_picture(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
        return picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadInput(f"{path} cannot be read ({error}); delete it, and its line of --prompts") from None


def read_prompts(paths: list[Path]) -> list[str] | None:
    """The captions of pictures: lines of --prompts, else what sample.py --each wrote into them, else None."""
    if FLAGS.prompts is None:
        inside = [media.read_metadata(path).get("prompt") for path in paths if path.suffix == ".png"]
        return inside if len(inside) == len(paths) and None not in inside else None
    if not Path(FLAGS.prompts).is_file():
        raise BadInput(f"--prompts: no such file: {FLAGS.prompts!r}")
    lines = [line.strip() for line in Path(FLAGS.prompts).read_text().splitlines() if line.strip()]
    if len(lines) != len(paths):
        raise BadInput(f"--prompts: {FLAGS.prompts} has {len(lines)} captions for {len(paths)} pictures; give one each")
    return lines


def read_references(count: int) -> list[list[str]] | None:
    """The lines of --references, one for each of `count` pictures; None without the flag."""
    if FLAGS.references is None:
        return None
    if not Path(FLAGS.references).is_file():
        raise BadInput(f"--references: no such file: {FLAGS.references!r}")
    found = []
    for number, line in enumerate(Path(FLAGS.references).read_text().splitlines(), 1):
        try:
            texts = json.loads(line)
        except ValueError:
            texts = None
        if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
            raise BadInput(f"--references: line {number} of {FLAGS.references} is no JSON list of texts: {line[:40]!r}")
        found.append(texts)
    if len(found) != count:
        raise BadInput(f"--references: {FLAGS.references} has {len(found)} lines for {count} pictures; give one each")
    return found


def compared(subject: Subject) -> Task:
    """What the sample is measured against."""
    networks = {}
    if needs_clip(FLAGS.measures):
        networks["clip"] = clip_features(FLAGS.clip or SHIPPED, FLAGS.clip_prefix)
    if FLAGS.inception:
        networks["inception"] = inception_features(FLAGS.inception, FLAGS.inception_resize)
    if subject.data is None:
        return Task(networks, {}, None, None, FLAGS.seed)
    real = first_of(subject.data, FLAGS.split, FLAGS.num)
    own = subject.run is not None and FLAGS.reference is None  # then the captions are those of the real pictures
    real = dataclasses.replace(real, references=subject.sample.references if own else None)
    return dataclasses.replace(
        make_task(networks, subject.data, real, FLAGS.num_reference, FLAGS.seed), run=subject.run
    )


if __name__ == "__main__":
    with exit_on_bad_input():
        app.run(main, flags_parser=parse_flags)
