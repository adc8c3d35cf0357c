"""How far a CLIP can be trusted: python -m zoo.scoring.trust --source scenes/full --size 32 --split test_seen

Real pictures have captions that are right. One that is wrong by a word is made with `data.negatives.swap_word`; of
scenes the truth is known, so that it is wrong for certain.

With --workdir RUN, a run that rates pictures, such as one with a critic, is asked the same of the same pictures.

    picture_to_text_r1, text_to_picture_r1   how often the nearest caption of a picture is its own, and the reverse
    told_apart                               how often a right caption scores above the wrong one of the same picture
    auc                                      and above a wrong one of any picture
    correlation_with_oracle                  Spearman's, of scores and the share of claims that are right; of scenes
"""

import json

import numpy as np
from absl import app, flags

from zoo.config import parse_flags
from zoo.data import pipeline
from zoo.data.grammar import holds, parse
from zoo.data.negatives import swap_word
from zoo.data.world import Scene
from zoo.errors import BadInput, exit_on_bad_input
from zoo.run import Run
from zoo.scoring import ask, oracle
from zoo.scoring.clip_score import clip_score
from zoo.scoring.distances import unit_vectors
from zoo.scoring.features import SHIPPED, clip_features
from zoo.training import parallel

FLAGS = flags.FLAGS

MOST_SWAPS = 3


def define_flags() -> None:
    """Only where this is the command: others share the names."""
    flags.DEFINE_string(
        "clip", str(SHIPPED), "Folder of a CLIP, as Hugging Face's; by default the one that knows scenes."
    )
    flags.DEFINE_string("clip_prefix", "", "Stands before each caption that CLIP reads.")
    flags.DEFINE_string("workdir", None, "A run that rates pictures, beside CLIP.")
    flags.DEFINE_string("source", "scenes/full", "Captioned pictures, as data.source.")
    flags.DEFINE_integer("size", 32, "Of the pictures, in pixels.", lower_bound=1)
    flags.DEFINE_string("split", "test_seen", "Of the source.")
    flags.DEFINE_integer("num", 1000, "Pictures.", lower_bound=2)
    flags.DEFINE_string("out", None, "JSON file to write the figures to.")


def main(argv):
    if argv[1:]:
        raise BadInput(f"no such argument: {argv[1]!r}; flags begin with --")
    parallel.use_compilation_cache()
    run = Run.open(FLAGS.workdir) if FLAGS.workdir else None
    source = pipeline.open_source(FLAGS.source, FLAGS.split, FLAGS.size, 1)
    if FLAGS.num > len(source):
        raise BadInput(f"--num {FLAGS.num} is more than the {len(source)} pictures of split {FLAGS.split!r}")
    items, rng = [source[i] for i in range(FLAGS.num)], np.random.default_rng(0)
    texts, pictures = [item["text"] for item in items], np.stack([item["pixels"] for item in items])
    clip = clip_features(FLAGS.clip, FLAGS.clip_prefix)
    seen, read = clip.pictures(pictures), clip.texts(texts)
    report = {"pictures": len(items)} | recall_at_1(seen, read, texts)
    wrong = [(i, text) for i, item in enumerate(items) if (text := falsified(item, 1, rng))]
    if not wrong:
        raise BadInput(f"--source {FLAGS.source}: no caption has a word that can be swapped, see data.negatives")
    rows = [i for i, _ in wrong]
    right, false = clip_score(seen, read)[rows], clip_score(seen[rows], clip.texts([text for _, text in wrong]))
    report |= told_apart(right, false) | {"wrong_captions": len(wrong)}
    if run:
        own = [texts[i] for i in rows]
        right, false = (ask.rate(run, pictures[rows], part) for part in (own, [text for _, text in wrong]))
        report["run"] = told_apart(right, false)
    world = oracle.world_of(FLAGS.source)
    if world is not None:
        report["correlation_with_oracle"] = with_oracle(clip, seen, items, world, rng)
    print(json.dumps(report, indent=2))
    if FLAGS.out:
        with open(FLAGS.out, "w") as file:
            json.dump(report, file, indent=2)


def recall_at_1(pictures: np.ndarray, texts: np.ndarray, captions: list[str]) -> dict[str, float]:
    """How often the nearest caption of a picture is its own, or reads the same, and the other way round."""
    cosines = unit_vectors("pictures", pictures.astype(np.float64)) @ unit_vectors("texts", texts.astype(np.float64)).T
    captions = np.array(captions, object)
    return {
        "picture_to_text_r1": float((captions[cosines.argmax(1)] == captions).mean()),
        "text_to_picture_r1": float((captions[cosines.argmax(0)] == captions).mean()),
    }


def falsified(item: dict, swaps: int, rng: np.random.Generator) -> str | None:
    """The item's caption with so many swaps made; None where none can be made, or the truth is known and fits."""
    text = item["text"]
    for _ in range(swaps):
        text = swap_word(text, rng) or text
    if text == item["text"]:
        return None
    if "attributes" in item and False not in holds(parse(text), Scene.from_json(item["attributes"])).values():
        return None
    return text


def told_apart(right: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """How well scores of right captions (N,) stand above those of wrong ones of the same pictures, and of any."""
    return {"told_apart": float((right > wrong).mean()), "auc": auc(right, wrong)}


def auc(right: np.ndarray, wrong: np.ndarray) -> float:
    """The chance that a right caption of one picture scores above a wrong one of another (Mann & Whitney 1947)."""
    return float((right[:, None] > wrong).mean() + 0.5 * (right[:, None] == wrong).mean())


def with_oracle(clip, pictures: np.ndarray, items: list[dict], world: str, rng: np.random.Generator) -> float:
    """Spearman's correlation of CLIPScore and the share of claims that the oracle finds right.

    Each real picture has its caption after 0 to `MOST_SWAPS` swaps, so that shares from 0 to 1 are there.
    """
    texts = [falsified(item, int(rng.integers(MOST_SWAPS + 1)), rng) or item["text"] for item in items]
    judged = [oracle.score(item["pixels"], text, world) for item, text in zip(items, texts, strict=True)]
    shares = [oracle.share_right(row) for row in judged]
    chosen = [i for i, share in enumerate(shares) if share is not None]  # a caption may claim nothing
    shares = np.array([shares[i] for i in chosen])
    scores = clip_score(pictures, clip.texts(texts))[chosen]
    return float(np.corrcoef(ranks(scores), ranks(shares))[0, 1])


def ranks(values: np.ndarray) -> np.ndarray:
    """Places in order; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


if __name__ == "__main__":
    define_flags()
    with exit_on_bad_input():
        app.run(main, flags_parser=parse_flags)
