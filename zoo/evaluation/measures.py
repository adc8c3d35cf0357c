"""The measures, each a function that declares itself, see `registry`."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence

import einops
import jax.numpy as jnp
import numpy as np

from zoo.errors import UserError
from zoo.evaluation import coherence, distances, model_eval, registry
from zoo.evaluation.accuracy import classification_accuracy
from zoo.evaluation.bootstrap import interval, interval_of
from zoo.evaluation.clip_score import clip_score, r_precision, ref_clip_score
from zoo.evaluation.reconstruction import WINDOW, psnr, ssim
from zoo.evaluation.registry import EvalContext, Sample, Score, measure
from zoo.evaluation.sharpness import sharpness
from zoo.families import require
from zoo.method import Tokenizes
from zoo.nets.quantisation import frequencies, usage
from zoo.runs.data import Data
from zoo.runs.editor import Editor
from zoo.scenes import oracle
from zoo.scenes.dataset import NOISE_LEVELS, entropy_bits_per_dim
from zoo.scenes.grammar import parse

KID_SUBSETS, KID_SIZE = 20, 1000  # KID_SIZE or as many as there are
RESAMPLES = 20  # halves from which the intervals of distances are taken
FEW = 10_000  # below this many images a distance has a note
LEAST_LABELLED = 50
FRECHET_VIDEOS = 2048  # the fewest
ONE_COLOUR = 0.9
MOST_PSNR = 60.0  # an error of one level in every 15th value


# ---- captions


@measure("oracle", better="higher", floor="shuffled")
def by_oracle(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Share of captions of which the oracle finds each attribute right, among those that name it.

    And the share of images that are not wholly readable, of which what can be read counts.
    """
    captions = sample.require_captions()
    if context.world is None:
        raise UserError("needs scenes: the oracle reads nothing else")
    table = oracle.table(sample.images, captions, context.world, sample.frame_rate)
    scores = {name: mean_score(right) for name, right in table.items()}
    return scores | {"unreadable": dataclasses.replace(scores["unreadable"], better="lower")}


@measure("one_colour", better="higher")
def by_one_colour(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Share of images that show things, of each of which at least `ONE_COLOUR` of the area has one colour."""
    if context.world is None or sample.images.shape[1] > 1:
        raise UserError("needs images of scenes: nothing else has things of one colour")
    shares = [oracle.colour_shares(image, context.world) for image in sample.images]
    values = [float(min(image, default=0.0) >= ONE_COLOUR) for image in shares]
    return {"one_colour": mean_score(values)}


@measure("sharpness", better="ceiling")
def by_sharpness(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Spread of the Laplacian."""
    del context
    return {"sharpness": mean_score(sharpness(sample.images))}


@measure("clip_score", better="higher", network="clip", floor="shuffled")
def by_clip_score(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """CLIPScore."""
    network, captions = context.network("clip"), sample.require_captions()
    return {"clip_score": mean_score(clip_score(sample.features(network), network.texts(captions)))}


@measure("ref_clip_score", better="higher", network="clip", floor="shuffled")
def by_ref_clip_score(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """CLIPScore with other captions of the same images."""
    network, captions = context.network("clip"), sample.require_captions()
    if sample.references is None:
        raise UserError("needs other captions of the images: give them by --references")
    most = max(map(len, sample.references))
    filled = [texts[i % len(texts)] for texts in sample.references for i in range(most)]  # the nearest alone counts
    references = network.texts(filled).reshape(len(captions), most, -1)
    return {"ref_clip_score": mean_score(ref_clip_score(sample.features(network), network.texts(captions), references))}


@measure("r_precision", better="higher", network="clip", floor="shuffled")
def by_r_precision(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Share of images whose own caption is the nearest of many."""
    network, captions = context.network("clip"), sample.require_captions()
    return {"r_precision": mean_score(r_precision(sample.features(network), network.texts(captions), captions))}


# ---- videos


@measure("clip_score_per_frame", better="higher", network="clip", floor="shuffled")
def by_clip_score_per_frame(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Mean CLIPScore of each frame alone."""
    network, captions = context.network("clip"), sample.require_captions()
    count = sample.require_videos().shape[1]
    frames = einops.rearrange(sample.images, "n t h w c -> (n t) 1 h w c")
    texts = np.repeat(network.texts(captions), count, axis=0)
    scores = clip_score(network.images(frames), texts).reshape(-1, count).mean(axis=1)
    return {"clip_score_per_frame": mean_score(scores)}


@measure("change", better="ceiling", floor="reordered")
def by_change(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Mean difference from frame to frame, and flicker, the change that does not go on."""
    del context
    videos = sample.require_videos()
    return {"change": mean_score(coherence.change(videos)), "flicker": mean_score(coherence.flicker(videos))}


@measure("coherence", better="higher", floor="reordered")
def by_coherence(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Share of frames that show the same as the one before, and of those that are readable alone; displacement.

    Displacement, in cells a frame, is near the ceiling where things move as fast as real ones.
    """
    if context.world is None:
        raise UserError("needs scenes: the oracle reads nothing else")
    videos = sample.require_videos()
    moved = coherence.displacement(videos, context.world)
    moved = moved[np.isfinite(moved)]
    identity, readable = coherence.identity_and_readable(videos, context.world)
    return {
        "identity": mean_score(identity),
        "readable_frames": mean_score(readable),
        **({"displacement": dataclasses.replace(mean_score(moved), better="ceiling")} if len(moved) else {}),
    }


# ---- distances and neighbours


def median_cmmd(fake, real) -> float:
    """CMMD with the reference's own median distance as sigma, which compares more than the means."""
    return distances.cmmd(fake, real, sigma=distances.median_sigma(real, real))


def kid(fake, real) -> float:
    """KID of as large subsets as there are images."""
    size = min(KID_SIZE, len(fake), len(real))
    return distances.kid(fake, real, KID_SUBSETS, size)[0]


def by_distance(function: Callable, name: str, network: str, sample: Sample, context: EvalContext) -> dict[str, Score]:
    """A distance between the features of the sample and those of the reference."""
    fake, real = sample.features(context.network(network)), context.real(network)
    return {name: with_interval(function, fake, real, context.seed)}


def by_neighbours(function: Callable, index: int, name: str, sample: Sample, context: EvalContext) -> dict[str, Score]:
    """One value of a function of (real, fake). The larger set is cut: neighbourhoods depend on the number."""
    fake, real = sample.features(context.network("clip")), context.real("clip")
    count = min(len(fake), len(real))
    compute = lambda fake, real: function(real, fake)[index]
    return {name: with_interval(compute, evenly(fake, count), evenly(real, count), context.seed)}


for _name, _function in {
    "cmmd": distances.cmmd,
    "cmmd_median": median_cmmd,
    "kid": kid,
    "frechet": distances.frechet,
}.items():
    measure(_name, better="lower", network="clip")(functools.partial(by_distance, _function, _name, "clip"))
for _name, _function, _index in (
    ("precision", distances.precision_recall, 0),
    ("recall", distances.precision_recall, 1),
    ("density", distances.density_coverage, 0),
    ("coverage", distances.density_coverage, 1),
):
    measure(_name, better="higher", network="clip")(functools.partial(by_neighbours, _function, _index, _name))


@measure("memorization", better="ceiling", network="clip")
def by_memorization(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Share of images nearer to a reference image than 99% of held-out ones are; chance gives 1%."""
    network = context.network("clip")
    held_out = context.require_held_out().features(network)
    return {"memorization": Score(distances.memorization(sample.features(network), context.real("clip"), held_out))}


@measure("accuracy", better="higher", network="clip")
def by_accuracy(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Classification accuracy score: accuracy on real images of a classifier that was trained on the sample alone."""
    network, held_out = context.network("clip"), context.require_held_out()
    parts = []
    for part in (sample, held_out):
        labels = labels_of(part.require_captions(), context.world)
        chosen = [i for i, label in enumerate(labels) if label]
        if len(chosen) < LEAST_LABELLED:
            raise UserError(f"needs {LEAST_LABELLED} captions that name a class, got {len(chosen)}: give more images")
        parts += [part.features(network)[chosen], [labels[i] for i in chosen]]
    return {"accuracy": Score(classification_accuracy(*parts))}


for _name, _function in {"fid": distances.frechet, "inception_kid": kid}.items():
    measure(_name, better="lower", network="inception")(functools.partial(by_distance, _function, _name, "inception"))


@measure("motion_distance", better="lower", network="motion", floor="reordered")
def by_motion_distance(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Distance of videos from real ones in the features of a run trained on motion.

    The Frechet distance needs many more videos than there are features; of fewer it is a maximum mean discrepancy.
    """
    network = context.network("motion")
    sample.require_videos()
    fake, real = sample.features(network), context.real("motion")
    enough = min(len(fake), len(real)) >= FRECHET_VIDEOS
    name, function = ("motion_frechet", distances.frechet) if enough else ("motion_mmd", median_cmmd)
    return {name: with_interval(function, fake, real, context.seed)}


# ---- stages of a cascade


@measure("consistency", better="higher", floor="none")
def by_consistency(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """PSNR of the small versions of images against what they were upsampled from, of the frames that were there."""
    del context
    pair = sample.require_pair()
    again = registry.smaller(pair.stage, sample.images)[:, : pair.small.shape[1]]
    return {"consistency": mean_score(capped_psnr(again, pair.small))}


@measure("pair", better="higher", floor="none")
def by_pair(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """PSNR and SSIM against the real images whose small versions were upsampled.

    The last frame, which has no known one after it, is scored apart too.
    """
    del context
    pair = sample.require_pair()
    if pair.real is None:
        raise UserError("needs small versions of real images: score the stage by itself, as --workdir")
    scores = {}
    for name, function in {"psnr": capped_psnr, "ssim": ssim}.items():
        if name == "ssim" and min(pair.real.shape[2:4]) < WINDOW:
            continue
        scores[f"pair_{name}"] = function(sample.images, pair.real)
        if pair.stage.rate > 1:
            scores[f"pair_{name}_last"] = function(sample.images[:, -1:], pair.real[:, -1:])
    return {name: mean_score(values) for name, values in scores.items()}


@measure("seams", better="ceiling", floor="none")
def by_seams(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Change from frame to frame where the windows of a long video meet, and within them; of scenes also coherence."""
    seams = sample.require_pair().seams
    sample.require_videos()
    if not seams:
        raise UserError("needs long videos, which stages draw in windows: give more --frames")
    functions: dict[str, Callable[[np.ndarray], np.ndarray]] = {"change": coherence.change}
    if world := context.world:
        functions["identity"] = lambda pairs: coherence.identity(pairs, world)
        functions["displacement"] = lambda pairs: coherence.displacement(pairs, world)
    scores = {}
    for where, frames in (("seam", seams), ("inner", sorted(set(range(1, sample.images.shape[1])) - set(seams)))):
        pairs = np.concatenate([sample.images[:, frame - 1 : frame + 1] for frame in frames])
        for name, function in functions.items():
            values = function(pairs).reshape(len(frames), -1)  # a row for each frame, a column for each video
            seen = ~np.isnan(values).all(axis=0)
            if seen.any():  # else nothing is shown in two frames in a row
                scores[f"{where}_{name}"] = mean_score(np.nanmean(values[:, seen], axis=0))
    return scores


def capped_psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """PSNR, at most `MOST_PSNR`: that of equal images is infinite, and has no mean."""
    return np.minimum(psnr(a, b), MOST_PSNR)


# ---- the run itself


@measure("bits_per_dim", better="lower", floor="")
def by_likelihood(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Bits per dimension, or per code of a tokenizer, of held-out images under the run, with its default options."""
    del sample
    real = context.few_held_out
    run, captions = context.require_run(), real.require_captions()
    bits = model_eval.bits_per_dim(run, real.images, captions, context.seed, frame_rate=real.frame_rate)
    return {model_eval.dimension(run): mean_score(bits, of_real(real))}


@measure("code_usage", better="higher", floor="")
def by_codes(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Share of a tokenizer's codes that held-out images have, and the perplexity of their frequencies."""
    del sample
    run, real = context.require_run(), context.require_held_out()
    codes = model_eval.codes(run, real.images, real.require_captions(), frame_rate=real.frame_rate)
    share, perplexity = usage(frequencies(jnp.asarray(codes), require(run.method, Tokenizes).codes))
    note = f"{codes.size} codes {of_real(real)}"
    return {"code_usage": Score(float(share), note=note), "code_perplexity": Score(float(perplexity), note=note)}


def by_reconstruction(function: Callable, name: str, sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Similarity of held-out images and their reconstructions by the run."""
    del sample
    return {
        name: mean_score(function(context.few_held_out.images, context.reconstructed), of_real(context.few_held_out))
    }


for _name, _function in {"psnr": psnr, "ssim": ssim}.items():
    measure(_name, better="higher", floor="")(functools.partial(by_reconstruction, _function, _name))


@measure("round_trip", better="lower", floor="")
def by_round_trip(sample: Sample, context: EvalContext) -> dict[str, Score]:
    """Largest error of any value, in [-1, 1], of held-out images that are inverted and generated again."""
    del sample
    run, real = context.require_run(), context.require_held_out()
    editor = Editor(run, seed=context.seed, frame_rate=real.frame_rate)
    errors = editor.round_trip(real.images, real.require_captions())
    return {"round_trip": Score(float(errors.max()), note=of_real(real))}


# ---- helpers


def of_real(real: Sample) -> str:
    """Note of a measure of the run."""
    return f"of {len(real.images)} real images"


def known_entropy(data: Data, no_captions: bool = False) -> float | None:
    """Returns the entropy of data in bits per dimension, which no likelihood can be below, if it is known.

    A caption may describe the whole scene: given captions it is that of the noise alone.
    """
    if data.source.partition("?")[0] != "scenes/entropy" or data.of_tokens:
        return None
    return float(entropy_bits_per_dim(data.size) if no_captions else np.log2(NOISE_LEVELS))


def mean_score(values, note: str = "") -> Score:
    """Returns the mean of values (N,), with its interval."""
    finite = len(values) > 1 and np.isfinite(values).all()
    return Score(float(np.mean(values)), interval(values) if finite else None, note)


def with_interval(function: Callable[..., float], fake: np.ndarray, real: np.ndarray, seed: int) -> Score:
    """Returns the score of two sets of features."""
    note = f"of {len(fake)} images" if len(fake) < FEW else ""
    try:
        around = interval_of(function, fake, real, resamples=RESAMPLES, seed=seed)
    except UserError:  # half of the images are too few
        around, note = None, f"{note}, too few for an interval"
    return Score(function(fake, real), around, note)


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """Returns `count` of the rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def labels_of(captions: Sequence[str], world: str | None) -> list[str | None]:
    """Returns the class that each caption names: the shape of a single object, else the caption, if some share it."""
    if world is not None:
        things = [parse(text).things for text in captions]
        return [thing[0].shape if len(thing) == 1 else None for thing in things]
    counts = Counter(captions)
    return [text if counts[text] >= 5 else None for text in captions]
