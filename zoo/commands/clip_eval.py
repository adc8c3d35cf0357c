"""Measures how reliable a CLIP is.

    python -m zoo clip_eval --source scenes/full --size 32 --split test_seen

With --workdir RUN, the scores of a run, such as one with a critic, are measured on the same images.

    image_to_text_r1, text_to_image_r1   share of images whose nearest caption is their own, and the reverse
    pair_accuracy                        share of right captions that score above the wrong one of the same image
    auc                                  and above a wrong one of any image
    correlation_with_oracle              Spearman's, of scores and the share of claims that are right; of scenes
"""

import json
from typing import Any

import numpy as np
from absl import flags

from zoo.commands.scaffold import Command
from zoo.data import pipeline
from zoo.errors import UserError
from zoo.evaluation import model_eval
from zoo.evaluation.clip_eval import hard_negative, oracle_correlation, pair_accuracy, recall_at_1
from zoo.evaluation.clip_score import clip_score
from zoo.evaluation.features import clip_features
from zoo.files import write_json
from zoo.runs.dependencies import open_run
from zoo.scenes import oracle

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("clip", "zoo:clip", "Folder of a CLIP, as Hugging Face's; by default one trained on scenes.")
    flags.DEFINE_string("clip_prefix", "", "Text before each caption for CLIP.")
    flags.DEFINE_string("workdir", None, "A run that scores images, beside CLIP.")
    flags.DEFINE_string("source", "scenes/full", "Captioned images, as data.source.")
    flags.DEFINE_integer("size", 32, "Side of the images, in pixels.", lower_bound=1)
    flags.DEFINE_string("split", "test_seen", "Split of the source.")
    flags.DEFINE_integer("num", 1000, "Number of images.", lower_bound=2)
    flags.DEFINE_string("out", None, "JSON file to write the figures to.")


def main(_: list[str]) -> None:
    """Runs the command on parsed flags."""
    run = open_run(FLAGS.workdir) if FLAGS.workdir else None
    source = pipeline.open_source(FLAGS.source, FLAGS.split, FLAGS.size, 1)
    if FLAGS.num > len(source):
        raise UserError(f"--num {FLAGS.num} is more than the {len(source)} images of split {FLAGS.split!r}")
    items, rng = [source[i] for i in range(FLAGS.num)], np.random.default_rng(0)
    texts, images = [item["text"] for item in items], np.stack([item["inputs"] for item in items])
    clip = clip_features(FLAGS.clip, FLAGS.clip_prefix)
    of_images, of_texts = clip.images(images), clip.texts(texts)
    report: dict[str, Any] = {"images": len(items)} | recall_at_1(of_images, of_texts, texts)
    wrong = [(i, text) for i, item in enumerate(items) if (text := hard_negative(item, 1, rng))]
    if not wrong:
        raise UserError(f"--source {FLAGS.source}: no caption has a word that can be swapped, see scenes.negatives")
    rows, wrong_texts = [i for i, _ in wrong], [text for _, text in wrong]
    right = clip_score(of_images, of_texts)[rows]
    report |= pair_accuracy(right, clip_score(of_images[rows], clip.texts(wrong_texts))) | {
        "wrong_captions": len(wrong)
    }
    if run:
        own = [texts[i] for i in rows]
        right, false = (model_eval.score(run, images[rows], part) for part in (own, wrong_texts))
        report["run"] = pair_accuracy(right, false)
    world = oracle.world_of(FLAGS.source)
    if world is not None:
        report["correlation_with_oracle"] = oracle_correlation(clip, of_images, items, world, rng)
    print(json.dumps(report, indent=2))
    if FLAGS.out:
        write_json(FLAGS.out, report)


COMMAND = Command(main, define_flags, suffixes=(".json",))
