"""How many kinds of pictures a run makes: python -m zoo.scoring.modes --workdir RUN --num 5000

The run was trained on scenes/modes, 1,152 scenes that are all equally likely, without captions: by
`--config.method.caption_drop=1.0`, under a critic by `--config.method.base.caption_drop=1.0` and
`--config.method.mismatch=0.0`. It is sampled under the empty caption, which needs no guidance, and the oracle reads
which scene each picture shows:

    readable   the share of pictures in which it finds one scene and nothing else
    reached    how many of the scenes are there
    kl         of the scenes' shares from equal ones, sum of p log(p / q), in nats: 0 is best, one scene alone has 7.05
    nearest_reached, nearest_kl
               the same where every picture counts, as the scene that is nearest in squared error: of pictures too noisy
               for the oracle this says more, and of pictures of nothing too much

Real pictures, as many, say what is possible: of few pictures even equal shares are uneven.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import app, flags

from zoo import sampling_flags
from zoo.config import parse_flags
from zoo.data.world import UNIFORM, Scene, all_still_scenes, render
from zoo.errors import BadInput, exit_on_bad_input
from zoo.scoring import oracle, report
from zoo.scoring.measures import Score, first_of
from zoo.training import parallel

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Only where this is the command: others share the names."""
    sampling_flags.define()
    flags.DEFINE_integer("num", 5000, "Pictures.", lower_bound=1)
    flags.DEFINE_string("out", None, "JSON file; by default WORKDIR/modes.json.")


def main(argv):
    if argv[1:]:
        raise BadInput(f"no such argument: {argv[1]!r}; flags begin with --")
    parallel.use_compilation_cache()
    run = sampling_flags.open_run()
    name = run.recipe.data.source.partition("?")[0].removeprefix("scenes/")
    if name not in UNIFORM:
        raise BadInput(f"modes are counted of runs on scenes/{' and scenes/'.join(UNIFORM)}, not on {name}")
    method = run.recipe.config.method
    if not method.get("base", method).caption_drop:
        raise BadInput(f"{FLAGS.workdir} never saw the empty caption: train it with caption_drop=1")
    real = first_of(run.recipe.data, "train", FLAGS.num).pictures
    sampler = run.sampler(FLAGS.per_device, **sampling_flags.options())
    tokens = run.recipe.tokenizer.encode([""] * FLAGS.num)
    made = sampler(run.params, tokens, FLAGS.seed, **sampling_flags.traced_options(run))
    scores = {"model": coverage(made, UNIFORM[name]), "ceiling": coverage(real, UNIFORM[name])}
    print(report.to_table(scores))
    out = Path(FLAGS.out or f"{FLAGS.workdir}/modes.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"run": FLAGS.workdir, "checkpoint": run.step, "num": FLAGS.num, "seed": FLAGS.seed}
    out.write_text(json.dumps(report.to_json(scores, about), indent=2) + "\n")
    print(f"{FLAGS.num} pictures -> {out}")


def coverage(pictures: np.ndarray, world: str) -> dict[str, Score]:
    """What pictures, uint8 (N, T, H, W, 3), show of a world's still scenes, see above; `kl` is left out where no scene
    is readable."""
    scenes = all_still_scenes(world)
    shown = [scene for scene in (scene_of(picture, world) for picture in pictures) if scene is not None]
    counts = Counter(shown)
    scores = {"readable": Score(len(shown) / len(pictures)), "reached": Score(len(counts))}
    if shown:
        scores["kl"] = Score(kl_from_equal(list(counts.values()), len(scenes)))
    drawn = np.stack([render(scene, pictures.shape[2], pictures.shape[1]) for scene in scenes])
    counts = Counter(nearest(pictures, drawn).tolist())
    scores["nearest_reached"] = Score(len(counts))
    scores["nearest_kl"] = Score(kl_from_equal(list(counts.values()), len(scenes)))
    return scores


def scene_of(picture: np.ndarray, world: str) -> Scene | None:
    """The scene that a picture shows; None unless it is one thing and nothing else."""
    reading = oracle.look(picture, world)
    if reading.scene is None or reading.clutter or len(reading.scene.things) != 1:
        return None
    return reading.scene.facts()


def nearest(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The number of the one among `others` that is nearest to each picture: (N, ...), (M, ...) -> (N,)."""
    a, b = (x.reshape(len(x), -1).astype(np.float32) / 255 for x in (pictures, others))
    return (np.square(b).sum(axis=1) - 2 * a @ b.T).argmin(axis=1)


def kl_from_equal(counts: Sequence[int], of: int) -> float:
    """KL divergence, in nats, of the shares of these counts from `of` equal shares."""
    p = np.array(counts, np.float64) / np.sum(counts)
    return float(np.sum(p * np.log(p * of)))


if __name__ == "__main__":
    define_flags()
    with exit_on_bad_input():
        app.run(main, flags_parser=parse_flags)
