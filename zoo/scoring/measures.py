"""All measures by name: what each needs, and its scores of a sample with intervals."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from zoo.data.grammar import parse
from zoo.data.scenes import NOISE_LEVELS, entropy_bits_per_dim
from zoo.edit import Editor
from zoo.errors import BadInput, unknown
from zoo.run import Data, Run
from zoo.scoring import ask, distances, oracle
from zoo.scoring.accuracy import classification_accuracy
from zoo.scoring.bootstrap import interval, interval_of
from zoo.scoring.clip_score import clip_score, r_precision, ref_clip_score
from zoo.scoring.features import Features, of_source
from zoo.scoring.reconstruction import psnr, ssim
from zoo.scoring.sharpness import sharpness

KID_SUBSETS, KID_SIZE = 20, 1000  # KID_SIZE or as many as there are
RESAMPLES = 20  # halves that the intervals of distances are taken from
FEW = 10_000  # below this many pictures a distance is said to be of few
LEAST_LABELLED = 50
ASKED = 64  # real pictures that a run is asked about, which takes many times as long as sampling as many


@dataclasses.dataclass(frozen=True)
class Score:
    """A value and its interval of 95%, which is None where it has none; `note` says what to mind."""

    value: float
    interval: tuple[float, float] | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Pictures to be scored, uint8 (N, T, H, W, 3).

    Attributes:
      captions: the N that they were made from, or None.
      references: other captions of each, at least one, or None.
    """

    pictures: np.ndarray
    captions: Sequence[str] | None
    references: Sequence[Sequence[str]] | None = None

    @functools.cached_property
    def _features(self) -> dict[str, np.ndarray]:
        return {}

    def features(self, network: Features) -> np.ndarray:
        """(N, D), made once."""
        if network.identity not in self._features:
            self._features[network.identity] = network.pictures(self.pictures)
        return self._features[network.identity]


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What samples are measured against.

    Attributes:
      networks: by name: "clip", and "inception" where its weights were given.
      reference: the features of real pictures by network, (M, D); empty where no reference was given.
      held_out: real pictures that were not trained on, with their captions; None where there are none.
      world: of scenes whose truth the oracle knows, or None.
      seed: of subsets and resamples.
      run: what made the sample, to be asked about real pictures; None where it is not at hand.
    """

    networks: Mapping[str, Features]
    reference: Mapping[str, np.ndarray]
    held_out: Sample | None
    world: str | None
    seed: int = 0
    run: Run | None = None

    @property
    def real_with_captions(self) -> Sample:
        """The held-out pictures, to ask the run about them."""
        if self.run is None:
            raise BadInput("needs a run to be asked about real pictures: give it by --workdir")
        if self.held_out is None or self.held_out.captions is None:
            raise BadInput("needs captioned real pictures that were not trained on: give data with a test split")
        return self.held_out

    @functools.cached_property
    def asked(self) -> Sample:
        """The first ones of them, for what takes long."""
        real = self.real_with_captions
        return Sample(real.pictures[:ASKED], real.captions[:ASKED])

    @functools.cached_property
    def reconstructed(self) -> np.ndarray:
        """`asked` as the run reconstructs it."""
        return ask.reconstruct(self.run, self.asked.pictures, self.asked.captions, self.seed)

    def network(self, name: str) -> Features:
        if name not in self.networks:
            raise BadInput(f"needs {name}: give its weights by --{name}")
        return self.networks[name]

    def real(self, name: str) -> np.ndarray:
        if name not in self.reference:
            raise BadInput("needs real pictures to compare with: give them by --reference")
        return self.reference[name]


def make_task(
    networks: Mapping[str, Features], data: Data, held_out: Sample, num_reference: int, seed: int = 0
) -> Task:
    """What pictures of some data are measured against: at most `num_reference` items of its split `train`, evenly
    spread, and `held_out` ones."""
    source = data.open("train")
    count = min(num_reference, len(source))
    indices = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    about = {"source": data.source, "split": "train", "size": data.size, "frames": data.frames}
    reference = {name: of_source(network, source, about, indices) for name, network in networks.items()}
    world = oracle.world_of(data.source)
    readable = held_out.captions is not None and all(map(oracle.understands, held_out.captions))
    return Task(networks, reference, held_out, world if readable else None, seed)


def first_of(data: Data, split: str, num: int) -> Sample:
    """The first pictures of a split, with their captions. Raises BadInput where there are fewer."""
    source = data.open(split)
    if num > len(source):
        raise BadInput(f"--num {num} is more than the {len(source)} captions of split {split!r}")
    real = [source[i] for i in range(num)]
    return Sample(np.stack([item["pixels"] for item in real]), [item["text"] for item in real])


def captions_of(sample: Sample) -> Sequence[str]:
    if sample.captions is None:
        raise BadInput("needs the captions of the pictures: give them by --prompts")
    return sample.captions


def by_oracle(sample: Sample, task: Task) -> dict[str, Score]:
    """The share of captions of which the oracle finds each attribute right, among those that speak of it."""
    captions = captions_of(sample)
    if task.world is None:
        raise BadInput("needs scenes: of other pictures the truth is not known")
    return {name: mean_score(right) for name, right in oracle.table(sample.pictures, captions, task.world).items()}


def by_clip_score(sample: Sample, task: Task) -> dict[str, Score]:
    network, captions = task.network("clip"), captions_of(sample)
    return {"clip_score": mean_score(clip_score(sample.features(network), network.texts(captions)))}


def by_r_precision(sample: Sample, task: Task) -> dict[str, Score]:
    network, captions = task.network("clip"), captions_of(sample)
    return {"r_precision": mean_score(r_precision(sample.features(network), network.texts(captions), captions))}


def by_ref_clip_score(sample: Sample, task: Task) -> dict[str, Score]:
    network, captions = task.network("clip"), captions_of(sample)
    if sample.references is None:
        raise BadInput("needs other captions of the pictures: give them by --references")
    most = max(map(len, sample.references))
    filled = [texts[i % len(texts)] for texts in sample.references for i in range(most)]  # the nearest alone counts
    references = network.texts(filled).reshape(len(captions), most, -1)
    return {"ref_clip_score": mean_score(ref_clip_score(sample.features(network), network.texts(captions), references))}


def by_sharpness(sample: Sample, task: Task) -> dict[str, Score]:
    del task
    return {"sharpness": mean_score(sharpness(sample.pictures))}


def by_likelihood(sample: Sample, task: Task) -> dict[str, Score]:
    """Bits per dimension of held-out pictures under the run, with the options that its family takes by itself."""
    del sample
    real = task.asked
    bits = ask.bits_per_dim(task.run, real.pictures, real.captions, task.seed)
    return {"bits_per_dim": mean_score(bits, of_asked(real))}


def by_reconstruction(measure: Callable, name: str, sample: Sample, task: Task) -> dict[str, Score]:
    """How near held-out pictures are to what the run makes of them."""
    del sample
    return {name: mean_score(measure(task.asked.pictures, task.reconstructed), of_asked(task.asked))}


def by_round_trip(sample: Sample, task: Task) -> dict[str, Score]:
    """The largest error of any value, in [-1, 1], when the noise of each held-out picture is made a picture again."""
    del sample
    real = task.real_with_captions
    errors = Editor(task.run, seed=task.seed).round_trip(real.pictures, real.captions)
    return {"round_trip": Score(float(errors.max()), note=of_asked(real))}


def of_asked(real: Sample) -> str:
    return f"of {len(real.pictures)} real pictures"


def known_entropy(data: Data, no_captions: bool = False) -> float | None:
    """The entropy of data in bits per dimension, which no likelihood can be below, where it is known; else None.

    A caption may tell the whole scene: given captions it is that of the noise alone.
    """
    if data.source.partition("?")[0] != "scenes/entropy":
        return None
    return float(entropy_bits_per_dim(data.size) if no_captions else np.log2(NOISE_LEVELS))


def mean_score(values, note: str = "") -> Score:
    finite = len(values) > 1 and np.isfinite(values).all()
    return Score(float(np.mean(values)), interval(values) if finite else None, note)


def by_distance(
    measure: Callable[[np.ndarray, np.ndarray], float], name: str, network: str, sample: Sample, task: Task
) -> dict[str, Score]:
    """A measure of the sample's features and the reference's."""
    return {name: with_interval(measure, sample.features(task.network(network)), task.real(network), task.seed)}


def with_interval(measure: Callable[..., float], fake: np.ndarray, real: np.ndarray, seed: int) -> Score:
    """The score of two sets of features."""
    note = f"of {len(fake)} pictures" if len(fake) < FEW else ""
    try:
        around = interval_of(measure, fake, real, resamples=RESAMPLES, seed=seed)
    except BadInput:  # half of the pictures are too few
        around, note = None, f"{note}, too few for an interval"
    return Score(measure(fake, real), around, note)


def median_cmmd(fake, real) -> float:
    """CMMD with the reference's own median distance as sigma, so that it sees more than the means."""
    return distances.cmmd(fake, real, sigma=distances.median_sigma(real, real))


def kid(fake, real) -> float:
    size = min(KID_SIZE, len(fake), len(real))
    return distances.kid(fake, real, KID_SUBSETS, size)[0]


def by_neighbours(function: Callable, index: int, name: str, sample: Sample, task: Task) -> dict[str, Score]:
    """One value of a function of (real, fake). The larger set is cut: the balls around points depend on the number."""
    fake, real = sample.features(task.network("clip")), task.real("clip")
    count = min(len(fake), len(real))
    measure = lambda fake, real: function(real, fake)[index]
    return {name: with_interval(measure, evenly(fake, count), evenly(real, count), task.seed)}


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of the rows, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def by_copying(sample: Sample, task: Task) -> dict[str, Score]:
    """How many pictures are nearer to a reference picture than 99% of held-out ones are; 1% is what chance gives."""
    network = task.network("clip")
    if task.held_out is None:
        raise BadInput("needs real pictures that were not trained on: give data with a test split")
    share = distances.copying(sample.features(network), task.real("clip"), task.held_out.features(network))
    return {"copying": Score(share)}


def by_accuracy(sample: Sample, task: Task) -> dict[str, Score]:
    """Classification accuracy score: real pictures named by a classifier that saw the sample alone."""
    network, captions = task.network("clip"), captions_of(sample)
    if task.held_out is None:
        raise BadInput("needs real pictures that were not trained on: give data with a test split")
    parts = []
    for part, texts in ((sample, captions), (task.held_out, captions_of(task.held_out))):
        labels = labels_of(texts, task.world)
        chosen = [i for i, label in enumerate(labels) if label]
        if len(chosen) < LEAST_LABELLED:
            raise BadInput(f"needs {LEAST_LABELLED} captions that name a class, got {len(chosen)}: give more pictures")
        parts += [part.features(network)[chosen], [labels[i] for i in chosen]]
    return {"accuracy": Score(classification_accuracy(*parts))}


def labels_of(captions: Sequence[str], world: str | None) -> list[str | None]:
    """The class that each caption names: of scenes the shape of a single thing, else the caption, if some share it."""
    if world is not None:
        things = [parse(text).things for text in captions]
        return [thing[0].shape if len(thing) == 1 else None for thing in things]
    counts = Counter(captions)
    return [text if counts[text] >= 5 else None for text in captions]


MEASURES: dict[str, Callable[[Sample, Task], dict[str, Score]]] = {
    "oracle": by_oracle,
    "sharpness": by_sharpness,
    "clip_score": by_clip_score,
    "ref_clip_score": by_ref_clip_score,
    "r_precision": by_r_precision,
    "cmmd": functools.partial(by_distance, distances.cmmd, "cmmd", "clip"),
    "cmmd_median": functools.partial(by_distance, median_cmmd, "cmmd_median", "clip"),
    "kid": functools.partial(by_distance, kid, "kid", "clip"),
    "frechet": functools.partial(by_distance, distances.frechet, "frechet", "clip"),
    "precision": functools.partial(by_neighbours, distances.precision_recall, 0, "precision"),
    "recall": functools.partial(by_neighbours, distances.precision_recall, 1, "recall"),
    "density": functools.partial(by_neighbours, distances.density_coverage, 0, "density"),
    "coverage": functools.partial(by_neighbours, distances.density_coverage, 1, "coverage"),
    "copying": by_copying,
    "accuracy": by_accuracy,
    "fid": functools.partial(by_distance, distances.frechet, "fid", "inception"),
    "inception_kid": functools.partial(by_distance, kid, "inception_kid", "inception"),
    "bits_per_dim": by_likelihood,
    "psnr": functools.partial(by_reconstruction, psnr, "psnr"),
    "ssim": functools.partial(by_reconstruction, ssim, "ssim"),
    "round_trip": by_round_trip,
}
OF_CAPTIONS = ("oracle", "clip_score", "ref_clip_score", "r_precision")
OF_RUNS = ("bits_per_dim", "psnr", "ssim", "round_trip")  # not of the pictures it made: real pictures have none


def chosen(names: Sequence[str]) -> list[str]:
    """The measures that `--measures` names; "all" is all. Raises BadInput on one that does not exist."""
    for name in names:
        if name not in (*MEASURES, "all"):
            raise unknown("measure", name, (*MEASURES, "all"))
    return list(MEASURES) if "all" in names else list(names)


def needs_clip(names: Sequence[str]) -> bool:
    """Whether any of the measures looks through a CLIP."""
    return bool(set(chosen(names)) - {"oracle", "sharpness", *OF_RUNS})


def measure(sample: Sample, task: Task, names: Sequence[str]) -> tuple[dict[str, Score], dict[str, str]]:
    """Scores a sample.

    Args:
      sample: the pictures.
      task: what to measure against.
      names: of `MEASURES`, or "all": then what cannot be measured is left out.

    Returns:
      Scores by name, and the reasons of the measures that were left out.

    Raises:
      BadInput: a measure that was asked for by its name lacks what it needs.
    """
    scores, missing = {}, {}
    for name in chosen(names):
        try:
            scores |= MEASURES[name](sample, task)
        except BadInput as error:
            if "all" not in names:
                raise BadInput(f"{name}: {error}") from None
            missing[name] = str(error)
    return scores, missing


def floor(real: Sample, task: Task, names: Sequence[str]) -> dict[str, Score]:
    """What is worth nothing: measures of captions take real pictures with shuffled captions, all others take
    scrambled pictures."""
    parts = {True: shuffled(real, task.seed), False: scrambled(real, task.seed)}
    scores = {}
    for name in names:
        scores |= measure(parts[name in OF_CAPTIONS], task, [name])[0]
    return scores


def shuffled(sample: Sample, seed: int) -> Sample:
    """The same pictures, each with another one's caption: along one random cycle, so that none keeps its own."""
    count = len(sample.pictures)
    if count < 2:
        raise BadInput("the floor shuffles captions: give at least 2 real pictures")
    cycle = np.random.default_rng(seed).permutation(count)
    captions = np.empty(count, object)
    captions[cycle] = np.array(sample.captions, object)[np.roll(cycle, 1)]
    return Sample(sample.pictures, captions.tolist(), sample.references)


def scrambled(sample: Sample, seed: int) -> Sample:
    """The same captions; the pixels of each picture in another order: the right colours, and nothing else right."""
    rng = np.random.default_rng(seed)
    flat = sample.pictures.reshape(len(sample.pictures), -1, sample.pictures.shape[-1])
    mixed = np.stack([pixels[rng.permutation(flat.shape[1])] for pixels in flat])
    return dataclasses.replace(sample, pictures=mixed.reshape(sample.pictures.shape))
