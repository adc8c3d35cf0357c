"""How well single attributes can be edited: python -m zoo.scoring.arithmetic --workdir RUN --num 200

Real pictures of one thing have an attribute changed to another value, and the oracle reads what came out: whether the
attribute is what was asked for (changed), whether all else is as before (kept), and both. Three ways:

    direction  the noise of the picture, under no caption, plus the direction of the new value and minus that of the
               old one, at several strengths (see zoo.edit); at strength 0 this is the plain reconstruction
    random     the control: a random direction of the same length
    caption    no arithmetic: the noise under the picture's whole caption, generated under the caption of the new
               value (only of use to families that read captions)
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from zoo import edit, sampling_flags
from zoo.config import parse_flags
from zoo.data import world as worlds
from zoo.data.grammar import describe, position_name, words
from zoo.data.pipeline import Source
from zoo.data.world import Scene
from zoo.errors import BadInput, exit_on_bad_input, unknown
from zoo.method import Noise
from zoo.scoring import oracle, report
from zoo.scoring.bootstrap import interval
from zoo.scoring.measures import Score
from zoo.training import parallel

FLAGS = flags.FLAGS

KINDS = ("colour", "shape", "size", "position", "background")
JUDGED = ("changed", "kept", "both")


def define_flags() -> None:
    """Only where this is the command: others share the names."""
    sampling_flags.define()
    flags.DEFINE_integer("num", 200, "Pictures of the test split to edit.", lower_bound=2)
    flags.DEFINE_integer("num_train", 2000, "Pictures of split train to take directions from, at most.", lower_bound=2)
    flags.DEFINE_list("attributes", ["colour", "size", "shape"], f"Of {', '.join(KINDS)}, with commas between them.")
    flags.DEFINE_list("strengths", ["0.5", "1", "1.5", "2"], "Of the directions, with commas between them.")
    flags.DEFINE_string("out", None, "JSON file, and a chart beside it; by default WORKDIR/arithmetic.json.")


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """Real pictures of one thing each: uint8 (N, T, H, W, 3) and the N scenes that they show."""

    pixels: np.ndarray
    scenes: list[Scene]


def of_one_thing(source: Source, count: int) -> Pictures:
    """At most `count` pictures of a source that show one thing, the first ones. Raises BadInput for fewer than 2."""
    found = []
    for i in range(len(source)):
        item = source[i]
        if len(Scene.from_json(item["attributes"]).things) == 1:
            found.append(item)
        if len(found) == count:
            break
    if len(found) < 2:
        raise BadInput(f"the data has {len(found)} pictures of one thing, and this needs more: give more examples")
    scenes = [Scene.from_json(item["attributes"]) for item in found]
    return Pictures(np.stack([item["pixels"] for item in found]), scenes)


# ---- what is asked for


def values_of(kind: str, world: str) -> dict[str, Any]:
    """The values of an attribute by their words: {"red": "red", ...}; those of positions are cells."""
    if kind == "position":
        grid = worlds.world_named(world).grid
        return {position_name(cell, grid): cell for cell in np.ndindex(grid, grid)}
    known = {"colour": worlds.COLOURS, "shape": worlds.SHAPES, "size": worlds.SIZES, "background": worlds.BACKGROUNDS}
    return {value: value for value in known[kind]}


def with_value(scene: Scene, kind: str, word: str) -> Scene:
    """A scene of one thing with an attribute changed to what `word` names."""
    value = values_of(kind, scene.world)[word]
    if kind == "background":
        return dataclasses.replace(scene, background=value)
    field = "cell" if kind == "position" else kind
    return dataclasses.replace(scene, things=(dataclasses.replace(scene.things[0], **{field: value}),))


def word_of(scene: Scene, kind: str) -> str:
    """The word for an attribute of a scene of one thing."""
    (word,) = words(scene)[kind]
    return word


def choose(scene: Scene, kind: str, rng: np.random.Generator) -> str:
    """Another value of an attribute, such that the scene is still one that training could show."""
    others = [word for word in values_of(kind, scene.world) if word != word_of(scene, kind)]
    shown = [word for word in others if not worlds.is_held_out(with_value(scene, kind, word))]
    return str(rng.choice(shown or others))


def judge(picture: np.ndarray, wanted: Scene, kind: str) -> dict[str, bool]:
    """What the oracle says of an edited picture, for each of `JUDGED`.

    A picture of no readable thing, or of several, is neither changed nor kept; one with anything unreadable beside
    the thing is not kept.
    """
    reading = oracle.look(picture, wanted.world)
    if reading.scene is None or len(reading.scene.things) != 1:
        return dict.fromkeys(JUDGED, False)
    seen, asked = words(reading.scene), words(wanted)
    changed = seen[kind] == asked[kind]
    kept = not reading.clutter and all(seen[name] == asked[name] for name in asked if name != kind)
    return {"changed": changed, "kept": kept, "both": changed and kept}


# ---- the edits


def directions(noise: Noise, scenes: Sequence[Scene], kind: str) -> dict[str, Noise]:
    """The direction of each value that some of the N scenes have and others lack, see `edit.direction`."""
    of_each = np.array([word_of(scene, kind) for scene in scenes])
    return {str(word): edit.direction(noise, of_each == word) for word in np.unique(of_each) if (of_each != word).any()}


def random_like(towards: Noise, rng: jax.Array) -> Noise:
    """Random directions, leaf by leaf as long as those of a tree of arrays (B, ...); a key each, (B,)."""
    drawn = edit.normal_like(towards, rng)
    return jax.tree.map(lambda x, d: d * edit.norms(x) / edit.norms(d), towards, drawn)


class Arithmetic:
    """Pictures, their noise and the directions, with which the ways to edit an attribute are scored.

    Args:
      editor: of the run.
      train: pictures that directions are taken from.
      test: pictures that are edited.
      seed: of the values that are asked for, and of the control.
    """

    def __init__(self, editor: edit.Editor, train: Pictures, test: Pictures, seed: int = 0):
        self.editor, self.train, self.test, self.seed = editor, train, test, seed
        self.none = [""] * len(test.scenes)
        self.train_noise = editor.invert(train.pixels, [""] * len(train.scenes))
        self.noise = editor.invert(test.pixels, self.none)
        self.again = editor.generate(self.noise, self.none)
        self.captions = [self._caption(scene) for scene in test.scenes]
        self.captioned_noise = editor.invert(test.pixels, self.captions)

    def scores(self, kind: str, strengths: Sequence[float]) -> dict[str, dict[str, Score]]:
        """Shares of the pictures, {way: {"colour changed @0.5": share}}; those of captions have no strength.

        Raises:
          BadInput: the training pictures have one value alone.
        """
        rng = np.random.default_rng(self.seed)
        known = directions(self.train_noise, self.train.scenes, kind)
        if len(known) < 2:
            raise BadInput(f"the {len(self.train.scenes)} training pictures have one {kind} alone: use more")
        new = [choose(scene, kind, rng) for scene in self.test.scenes]
        wanted = [with_value(scene, kind, word) for scene, word in zip(self.test.scenes, new, strict=True)]
        old = [word_of(scene, kind) for scene in self.test.scenes]
        towards = _stack([_minus(known, a, b) for a, b in zip(new, old, strict=True)])
        keys = jax.random.split(jax.random.key(self.seed), len(new))
        found = {"direction": {}, "random": {}, "caption": {}}
        for way, by in (("direction", towards), ("random", random_like(towards, keys))):
            for strength in (0.0, *strengths):
                made = self.again
                if strength:
                    made = self.editor.generate(edit.move(self.noise, by, strength), self.none)
                found[way] |= shares(made, wanted, kind, f" @{strength:g}")
        made = self.editor.generate(self.captioned_noise, [self._caption(scene) for scene in wanted])
        found["caption"] = shares(made, wanted, kind)
        return found

    def _caption(self, scene: Scene) -> str:
        """The whole caption, in the same words for the same random numbers."""
        return describe(scene, np.random.default_rng(self.seed), omit=0.0)


def shares(pictures: np.ndarray, wanted: Sequence[Scene], kind: str, suffix: str = "") -> dict[str, Score]:
    """The shares of edited pictures that the oracle finds changed, kept and both, with intervals of 95%."""
    judged = [judge(picture, scene, kind) for picture, scene in zip(pictures, wanted, strict=True)]
    values = {name: np.array([row[name] for row in judged], float) for name in JUDGED}
    return {f"{kind} {name}{suffix}": Score(float(x.mean()), interval(x)) for name, x in values.items()}


def _minus(known: Mapping[str, Noise], new: str, old: str) -> Noise:
    missing = [word for word in (new, old) if word not in known]
    if missing:
        raise BadInput(f"no training picture is {missing[0]!r}, or all are: use more of them (--num_train)")
    return jax.tree.map(lambda a, b: a - b, known[new], known[old])


def _stack(trees: Sequence[Noise]) -> Noise:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *trees)


# ---- the command


def to_chart(scores: report.Scores, kinds: Sequence[str], strengths: Sequence[float], path: Path, title: str) -> None:
    """Shares over strengths, a panel for each attribute, with intervals of 95%; dotted: both, by caption."""
    import matplotlib  # takes a second, which only who draws should wait

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(kinds), figsize=(4 * len(kinds), 3.2), squeeze=False, sharey=True)
    for axis, kind in zip(axes.flat, kinds, strict=True):
        for name, colour in zip(JUDGED, ("tab:blue", "tab:green", "black"), strict=True):
            for way, style in (("direction", "-"), ("random", "--")):
                points = [scores[way][f"{kind} {name} @{strength:g}"] for strength in strengths]
                error = np.abs([[p.value - p.interval[0], p.interval[1] - p.value] for p in points]).T
                label = f"{name}, {way}"
                axis.errorbar(strengths, [p.value for p in points], error, None, style, color=colour, label=label)
        axis.axhline(scores["caption"][f"{kind} both"].value, color="black", linestyle=":", label="both, caption")
        axis.set(title=kind, xlabel="strength", ylim=(-0.03, 1.03))
    axes[0, 0].set_ylabel("share of pictures")
    axes[0, -1].legend(fontsize=7)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def read_strengths(texts: Sequence[str]) -> list[float]:
    """The numbers of --strengths, each once, in order."""
    try:
        found = sorted({float(text) for text in texts})
    except ValueError:
        raise BadInput(f"--strengths {','.join(texts)}: give numbers with commas between them, as 0.5,1") from None
    if not found or not np.isfinite(found).all() or found[0] <= 0:
        raise BadInput(f"--strengths {','.join(texts)}: give positive numbers; strength 0 is always there")
    return found


def main(argv):
    if argv[1:]:
        raise BadInput(f"no such argument: {argv[1]!r}; flags begin with --")
    parallel.use_compilation_cache()
    for kind in FLAGS.attributes:
        if kind not in KINDS:
            raise unknown("attribute", kind, KINDS)
    strengths, run = read_strengths(FLAGS.strengths), sampling_flags.open_run()
    data = run.recipe.data
    if oracle.world_of(data.source) is None:
        raise BadInput(f"the oracle knows the truth of scenes alone, and this run's data is {data.source}")
    options, traced = sampling_flags.options(), sampling_flags.traced_options(run)
    editor = edit.Editor(run, FLAGS.per_device, FLAGS.seed, traced, **options)
    train, test = of_one_thing(data.open("train"), FLAGS.num_train), of_one_thing(data.open("test"), FLAGS.num)
    arithmetic, scores = Arithmetic(editor, train, test, FLAGS.seed), {"direction": {}, "random": {}, "caption": {}}
    for kind in FLAGS.attributes:
        for way, of in arithmetic.scores(kind, strengths).items():
            scores[way] |= of
    print(report.to_table(scores))
    about = {"run": FLAGS.workdir, "checkpoint": run.step, "seed": FLAGS.seed, "settings": editor.options}
    about |= {"num": len(test.scenes), "num_train": len(train.scenes)}
    out = Path(FLAGS.out or f"{FLAGS.workdir}/arithmetic.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report.to_json(scores, about), indent=2) + "\n")
    to_chart(scores, FLAGS.attributes, [0.0, *strengths], out.with_suffix(".png"), str(FLAGS.workdir))
    print(f"{len(test.scenes)} pictures -> {out}, {out.with_suffix('.png')}")


if __name__ == "__main__":
    define_flags()
    with exit_on_bad_input():
        app.run(main, flags_parser=parse_flags)
