"""Edits pictures through their noise, alike for every family: python -m zoo.edit --workdir RUN ACTION ...

A picture is inverted to the noise that it is made from, the noise is changed, and a picture is generated of it. All
that a change knows of noise is that it is standard Gaussian.

    invert       --picture FILE                     the picture beside the one made of its noise
    interpolate  --picture FILE --picture FILE      what lies between two pictures
    direction    --picture FILE --attribute red --instead_of blue     a strip, more and more edited
    vary         --picture FILE --strength 0.5      pictures like it
    inpaint      --picture FILE --mask FILE         what is white in the mask made anew

In place of `--picture FILE`, `--item N` is one of the test split, and `--prompt TEXT` is sampled first.

By default all is done under the empty caption. A caption that is right explains what it says, so that the noise only
has to say the rest: what is to be found in noise must not be in the caption. Directions therefore live in the noise
of the empty caption. With `--caption` the noise of a picture is the one under this caption; `--new_caption` makes the
edited pictures under another one, which keeps what both captions leave open.
"""

import difflib
import inspect
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from PIL import Image, UnidentifiedImageError

from zoo import config as configs
from zoo import media, sampling_flags
from zoo.data import folder, grammar
from zoo.data.pipeline import Source
from zoo.data.world import Scene
from zoo.errors import BadInput, exit_on_bad_input, unknown
from zoo.method import Noise, normal_each, to_float, to_uint8
from zoo.run import Run
from zoo.scoring.reconstruction import psnr
from zoo.training import parallel

FLAGS = flags.FLAGS

PARALLEL = 1e-4  # sine of an angle below which rounding decides on the arc between two directions
NAMED = 20  # attributes that an error lists
ROUNDS, RATE = 50, 0.1  # of inpainting
DRAWS = 16
TOLERANCE = 0.05  # of known pixels in [-1, 1], until they are put back
COLUMNS = 10

# ---- changes of noise; all of them leaf by leaf, example by example


@jax.jit
def interpolate(a: Noise, b: Noise, fractions: jax.Array) -> Noise:
    """Noise between `a` (fraction 0) and `b` (1), along the arc between them (slerp, Shoemake 1985).

    Gaussian noise of many dimensions lies near a sphere, of which straight lines leave the surface. Directions turn at
    an even rate, and norms change evenly. Where the two are parallel there is no one arc, and the line is taken.

    Args:
      a, b: trees of arrays (B, ...).
      fractions: (B,) in [0, 1].
    """

    def between(x, y):
        norm_x, norm_y = norms(x), norms(y)
        unit_x, unit_y = x / jnp.maximum(norm_x, 1e-12), y / jnp.maximum(norm_y, 1e-12)
        f = fractions.reshape(norm_x.shape)
        angle = 2 * jnp.arctan2(norms(unit_x - unit_y), norms(unit_x + unit_y))  # which is exact for small ones too
        straight = (jnp.sin(angle) < PARALLEL) | (norm_x * norm_y == 0)
        angle = jnp.where(straight, 1.0, angle)
        norm = (1 - f) * norm_x + f * norm_y
        arc_x = jnp.sin((1 - f) * angle) / jnp.sin(angle) * norm / jnp.maximum(norm_x, 1e-12)
        arc_y = jnp.sin(f * angle) / jnp.sin(angle) * norm / jnp.maximum(norm_y, 1e-12)
        return jnp.where(straight, 1 - f, arc_x) * x + jnp.where(straight, f, arc_y) * y

    return jax.tree.map(between, a, b)


@jax.jit
def vary(noise: Noise, rng: jax.Array, strength: float) -> Noise:
    """sqrt(1 - s^2) noise + s eps, which has the distribution of noise at every strength s in [0, 1].

    Args:
      noise: tree of arrays (B, ...).
      rng: a key for each example, (B,).
      strength: 0 keeps the noise, 1 draws it anew.
    """
    keep = (1 - strength**2) ** 0.5
    return jax.tree.map(lambda x, eps: keep * x + strength * eps, noise, normal_like(noise, rng))


@jax.jit
def normal_like(noise: Noise, rng: jax.Array) -> Noise:
    """New noise of the same shapes: a tree of arrays (B, ...), a key each (B,)."""
    leaves, structure = jax.tree.flatten(noise)
    keys = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, len(leaves)))(rng), 1, 0)  # (leaves, B)
    return jax.tree.unflatten(structure, [normal_each(key, x.shape[1:]) for x, key in zip(leaves, keys, strict=True)])


def direction(noise: Noise, has: np.ndarray) -> Noise:
    """The mean noise of pictures with an attribute minus that of those without (White 1609.04468; Glow 1807.03039, 6).

    Args:
      noise: tree of arrays (N, ...).
      has: bool (N,), which have the attribute; some must and some must not.

    Returns:
      A tree of arrays (1, ...).
    """
    has = np.asarray(has, bool)
    return jax.tree.map(lambda x: x[has].mean(0, keepdims=True) - x[~has].mean(0, keepdims=True), noise)


@jax.jit
def move(noise: Noise, direction: Noise, strength: float | np.ndarray) -> Noise:
    """noise + strength * direction, with the norm that the noise had before.

    It is the noise's own norm and not that of Gaussian noise, since inverted pictures may have another: those of
    scenes have half of it under configs/diffusion.py:demo. Keeping or not keeping it made no difference that 48 edited
    pictures showed; kept, a picture stays as typical as it was at any strength.

    Args:
      noise: tree of arrays (B, ...).
      direction: tree of arrays (B, ...) or (1, ...).
      strength: a number, or one for each example (B,).
    """

    def moved(x, d):
        y = x + jnp.reshape(strength, (-1,) + (1,) * (x.ndim - 1)) * d
        return y * (norms(x) / jnp.maximum(norms(y), 1e-12))

    return jax.tree.map(moved, noise, direction)


def repeat(tree: Any, count: int) -> Any:
    """Each example `count` times in a row: (B, ...) -> (B * count, ...)."""
    return jax.tree.map(lambda x: np.repeat(np.asarray(x), count, axis=0), tree)


def norms(x: jax.Array) -> jax.Array:
    """Of each example, (B, 1, ...)."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True))


# ---- from pictures to noise and back


class Editor:
    """Inverts the pictures of a run and generates pictures of noise, on all local devices.

    What becomes of example i depends on it, its caption, (seed, i) and nothing else: as in `run.Sampler`, a device
    always gets `per_device` examples at once.

    Args:
      run: the run.
      per_device: pictures that a device works on at once.
      seed: of what inversion may draw, and of `vary` and `inpaint`.
      traced: options that hold arrays, such as a guide.
      **options: those of sampling, over the config's; `invert` is given those of them that it has. The
        family's `faithful` ones stand over the config's, and only those given here over them.

    Raises:
      BadInput: the run's family lacks an ability of `method.Editable` (names those that have it), or an option.
    """

    def __init__(self, run: Run, per_device: int = 16, seed: int = 0, traced: dict[str, Any] | None = None, **options):
        self.recipe, method, codec = run.recipe, run.recipe.method, run.recipe.codec
        draw, generate, invert = (configs.ability(method, name) for name in ("draw_noise", "generate", "invert"))
        self.options = dict(self.recipe.config.sample) | dict(method.faithful) | options
        configs.check_sampling(method, self.options)
        self.seed, self.per_device = seed, per_device
        self.shared = (run.params, codec.params if codec else (), traced or {})
        shape = self.recipe.shape

        def inverted(shared, rows):
            params, decoder, traced = shared
            pixels = codec.encode(decoder, rows["pixels"]) if codec else to_float(rows["pixels"])
            return invert(params, rows["rng"], pixels, rows["tokens"], **_known(invert, self.options | traced))

        def errors(shared, rows):
            made = make(shared, inverted(shared, rows), rows["tokens"])
            return jnp.abs(made - to_float(rows["pixels"])).max(axis=(1, 2, 3, 4))

        def make(shared, noise, tokens):
            params, decoder, traced = shared
            made = generate(params, noise, tokens, **self.options, **traced)
            return codec.decode(decoder, made) if codec else made

        self._make, self._invert = make, parallel.in_parts(inverted, per_device)
        self._errors = parallel.in_parts(errors, per_device)
        self._generate = parallel.in_parts(
            lambda shared, rows: to_uint8(make(shared, rows["noise"], rows["tokens"])), per_device
        )
        self._draw = jax.jit(lambda rng: draw(rng, shape))

    def invert(self, pixels: np.ndarray, captions: Sequence[str]) -> Noise:
        """The noise of pictures, uint8 (N, T, H, W, C) with N captions: a tree of arrays (N, ...)."""
        return self._invert(self.shared, self._rows(pixels, captions))

    def generate(self, noise: Noise, captions: Sequence[str]) -> np.ndarray:
        """Pictures of noise (N, ...) and N captions: uint8 (N, T, H, W, C)."""
        return self._generate(self.shared, {"noise": noise, "tokens": self._tokens(captions)})

    def round_trip(self, pixels: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """The largest error of a value when the noise of each picture is made a picture again: (N,), of [-1, 1]."""
        return self._errors(self.shared, self._rows(pixels, captions))

    def draw_noise(self, count: int) -> Noise:
        """Noise for so many pictures: a tree of arrays (count, ...)."""
        return self._draw(self._keys("draw", count))

    def vary(self, noise: Noise, strength: float) -> Noise:
        """See `vary`."""
        return vary(noise, self._keys("vary", len(jax.tree.leaves(noise)[0])), strength)

    def inpaint(
        self, pixels: np.ndarray, mask: np.ndarray, captions: Sequence[str], rounds: int = ROUNDS
    ) -> np.ndarray:
        """Makes a part of pictures anew, in accord with the rest, which is returned as it is.

        Noise z0 is drawn, and the noise z nearest to it that makes the known pixels x is sought by gradients through
        the generator G (randomize-then-optimize, Bardsley et al. 2014, without noise on the data; cf. D-Flow
        2402.14017):

            min over z of |z - z0|^2 / 2 + |G(z) - x|^2 / (2 tolerance^2) over the known pixels

        The tolerance falls from 1 to `TOLERANCE`, and z0 is that of `DRAWS` draws which comes nearest to x. Where G
        is linear, G(z) is an exact sample of the unknown given the known as the tolerance goes to 0, whichever draw
        is taken; elsewhere it is an approximation. To invert, vary and put the known pixels back in turn
        (pseudo-Gibbs, Rezende et al. 1401.4082, appendix F) is no way for generators that can be inverted: noise then
        holds the misfit too and makes it again.

        Measured with an earlier configs/diffusion.py:demo, the right half of 16 pictures made anew with 8 steps and 40
        rounds: the oracle read one thing and nothing else in 5, in 1 with the half of another sample, and in 10 of 16
        samples.

        Args:
          pixels: uint8 (N, T, H, W, C); what they show below the mask plays no part.
          mask: bool, (H, W); True is to be made anew.
          captions: N.
          rounds: gradients, each about three times the work of generating.

        Returns:
          uint8 (N, T, H, W, C).
        """
        optimizer = optax.adam(optax.cosine_decay_schedule(RATE, rounds))

        def found(shared, rows):
            known = to_float(rows["pixels"])

            def misfit(noise, tolerance):
                wrong = jnp.where(mask[..., None], 0.0, self._make(shared, noise, rows["tokens"]) - known)
                away = jax.tree.map(lambda x, x0: jnp.sum(jnp.square(x - x0)), noise, rows["noise"])
                return jnp.sum(jnp.square(wrong)) / (2 * tolerance**2) + sum(jax.tree.leaves(away)) / 2

            def step(carry, tolerance):
                noise, state = carry
                updates, state = optimizer.update(jax.grad(misfit)(noise, tolerance), state)
                return (optax.apply_updates(noise, updates), state), None

            start = rows["noise"], optimizer.init(rows["noise"])
            return jax.lax.scan(step, start, jnp.geomspace(1.0, TOLERANCE, rounds))[0][0]

        start = self._nearest_draw(pixels, mask, captions)
        rows = {"pixels": pixels, "tokens": self._tokens(captions), "noise": start}
        noise = parallel.in_parts(found, self.per_device)(self.shared, rows)
        return np.where(mask[..., None], self.generate(noise, captions), pixels)

    def _nearest_draw(self, pixels: np.ndarray, mask: np.ndarray, captions: Sequence[str]) -> Noise:
        """Of `DRAWS` noises for each picture, the one whose picture is nearest to the known pixels."""
        drawn = self.draw_noise(DRAWS * len(pixels))
        made = self.generate(drawn, np.repeat(captions, DRAWS).tolist())
        wrong = made.astype(np.float32) - repeat(pixels, DRAWS)
        errors = np.square(np.where(mask[..., None], 0, wrong)).reshape(len(pixels), DRAWS, -1).sum(-1)
        best = errors.argmin(axis=1) + DRAWS * np.arange(len(pixels))
        return jax.tree.map(lambda x: np.asarray(x)[best], drawn)

    def _rows(self, pixels: np.ndarray, captions: Sequence[str]) -> dict[str, Any]:
        """What inversion takes of each picture."""
        rng = self._keys("invert", len(pixels))
        return {"pixels": pixels, "tokens": self._tokens(captions), "rng": rng}

    def _keys(self, name: str, count: int) -> jax.Array:
        """A key for each picture, of its own for each use."""
        key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(name.encode()))
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(count))

    def _tokens(self, captions: Sequence[str]) -> np.ndarray:
        return self.recipe.tokenizer.encode(list(captions))


def _known(function: Callable, options: dict[str, Any]) -> dict[str, Any]:
    """The options that a function has."""
    return {name: value for name, value in options.items() if name in inspect.signature(function).parameters}


# ---- attributes


def labels(item: dict[str, Any]) -> set[str]:
    """The attributes of an item of a source: words that are true of it.

    Of scenes the exact ones, whatever the caption says (see `grammar.words`); of others the words of the caption, in
    lower case.
    """
    if "attributes" in item:
        return set().union(*grammar.words(Scene.from_json(item["attributes"])).values())
    return set(re.findall(r"\w+", item["text"].lower()))


def having(attribute: str, known: Sequence[set[str]]) -> np.ndarray:
    """Which of N pictures have an attribute, bool (N,), by their labels.

    Raises:
      BadInput: none has it (names the nearest and the most frequent ones), or all have.
    """
    has = np.array([attribute in words for words in known])
    if not has.any():
        counts = Counter(sorted(word for words in known for word in words))  # sorted, so that ties are always the same
        common = [word for word, _ in counts.most_common(NAMED)]
        raise unknown("attribute", attribute, {*common, *difflib.get_close_matches(attribute, counts, n=1)})
    if has.all():
        raise BadInput(f"all {len(known)} pictures have the attribute {attribute!r}: a direction needs some without")
    return has


def spread(source: Source, count: int) -> list[dict[str, Any]]:
    """At most `count` items, evenly spread over a source."""
    chosen = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    return [source[i] for i in chosen.tolist()]


def find_direction(editor: Editor, items: Sequence[dict[str, Any]], attribute: str, instead_of: str = "") -> Noise:
    """The direction from pictures without an attribute to those with it, of items of a source, under no caption.

    Args:
      editor: inverts the items.
      items: pictures with and without.
      attribute: see `labels`.
      instead_of: an attribute that is taken away at the same time; "" for none.

    Returns:
      A tree of arrays (1, ...).
    """
    known = [labels(item) for item in items]
    has = [having(word, known) for word in (attribute, instead_of) if word]
    noise = editor.invert(np.stack([item["pixels"] for item in items]), [""] * len(items))
    towards, *away = (direction(noise, which) for which in has)
    return jax.tree.map(lambda x, *y: x - sum(y), towards, *away)


# ---- the command


def define_flags() -> None:
    """Only where this is the command: others share the names."""
    sampling_flags.define()
    flags.DEFINE_multi_string("picture", [], "File of a picture (of a clip: GIF or MP4); interpolate takes two.")
    flags.DEFINE_multi_integer("item", [], "In place of a picture: number of one of the test split.")
    flags.DEFINE_multi_string("prompt", [], "In place of a picture: a caption to sample one of.")
    flags.DEFINE_string("caption", "", "Under which pictures are inverted and generated; empty for none.")
    flags.DEFINE_string("new_caption", None, "Under which pictures are generated; by default --caption.")
    flags.DEFINE_string("attribute", None, "direction: a word of the pictures to move towards.")
    flags.DEFINE_string("instead_of", "", "direction: a word of the pictures to move away from.")
    flags.DEFINE_float("strength", 1.0, "direction: of the last picture; vary: from 0 (the same) to 1 (any other).")
    flags.DEFINE_integer("num", 2000, "direction: pictures of split train that it is taken from.", lower_bound=2)
    flags.DEFINE_integer("count", 8, "Pictures in the strip or grid.", lower_bound=1)
    flags.DEFINE_string("mask", None, "inpaint: picture of the run's size, white where it is to be made anew.")
    flags.DEFINE_integer("rounds", ROUNDS, "inpaint: steps of seeking the noise.", lower_bound=1)
    flags.DEFINE_string("out", "edit.png", "Where to write the pictures: .png, .gif or .mp4.")


def pictures_of(run: Run, count: int) -> np.ndarray:
    """The pictures that the flags name, uint8 (count, T, H, W, 3)."""
    named = len(FLAGS.picture) + len(FLAGS.item) + len(FLAGS.prompt)
    if named != count:
        raise BadInput(f"this takes {count} of --picture, --item and --prompt, and {named} are given")
    data = run.recipe.data
    found = [folder.read_file(name, data.size, data.frames) for name in FLAGS.picture]
    if FLAGS.item:
        source = data.open("test")
        for number in FLAGS.item:
            if not 0 <= number < len(source):
                raise BadInput(f"--item {number}: the test split has items 0 .. {len(source) - 1}")
            found.append(source[number]["pixels"])
    if FLAGS.prompt:
        sampler = run.recipe.sampler(FLAGS.per_device, **sampling_flags.options())
        tokens = run.recipe.tokenizer.encode(FLAGS.prompt)
        found += list(sampler(run.params, tokens, FLAGS.seed, **sampling_flags.traced_options(run)))
    return np.stack(found)


def read_mask(name: str | None, size: int) -> np.ndarray:
    """The mask in a file, bool (size, size), True where it is white."""
    if name is None:
        raise BadInput("inpaint needs --mask, a picture that is white where it is to be made anew")
    try:
        mask = Image.open(name).convert("L")
    except (OSError, UnidentifiedImageError):
        raise BadInput(f"--mask: {name} cannot be read: give a picture that exists") from None
    if mask.size != (size, size):
        raise BadInput(f"--mask: {name} is {mask.width} x {mask.height}, and pictures are {size} x {size}: resize it")
    return np.asarray(mask) >= 128


def invert_action(run: Run, editor: Editor) -> tuple[np.ndarray, list[str]]:
    pictures = pictures_of(run, 1)
    again = editor.generate(editor.invert(pictures, _captions()), _captions(new=True))
    error = np.abs(again.astype(float) - pictures).mean()
    return np.concatenate([pictures, again]), ["picture", f"{error:.2f} of 255 off, {psnr(pictures, again)[0]:.1f} dB"]


def interpolate_action(run: Run, editor: Editor) -> tuple[np.ndarray, list[str]]:
    noise = editor.invert(pictures_of(run, 2), _captions(2))
    first, second = (repeat(jax.tree.map(lambda x, i=i: x[i : i + 1], noise), FLAGS.count) for i in (0, 1))
    fractions = np.linspace(0, 1, FLAGS.count, dtype=np.float32)
    between = interpolate(first, second, fractions)
    return editor.generate(between, _captions(FLAGS.count, new=True)), [f"{fraction:.2f}" for fraction in fractions]


def direction_action(run: Run, editor: Editor) -> tuple[np.ndarray, list[str]]:
    if not FLAGS.attribute:
        raise BadInput("direction needs --attribute, a word that is true of some pictures of the data")
    pictures, items = pictures_of(run, 1), spread(run.recipe.data.open("train"), FLAGS.num)
    towards = find_direction(editor, items, FLAGS.attribute, FLAGS.instead_of)
    noise = repeat(editor.invert(pictures, _captions()), FLAGS.count)
    strengths = np.linspace(0, FLAGS.strength, FLAGS.count, dtype=np.float32)
    moved = move(noise, towards, strengths)
    made = editor.generate(moved, _captions(FLAGS.count, new=True))
    return np.concatenate([pictures, made]), ["picture", *(f"{strength:.2f}" for strength in strengths)]


def vary_action(run: Run, editor: Editor) -> tuple[np.ndarray, list[str]]:
    if not 0 <= FLAGS.strength <= 1:
        raise BadInput(f"--strength {FLAGS.strength}: give a part of the noise that is drawn anew, in [0, 1]")
    pictures = pictures_of(run, 1)
    varied = editor.vary(repeat(editor.invert(pictures, _captions()), FLAGS.count), FLAGS.strength)
    made = editor.generate(varied, _captions(FLAGS.count, new=True))
    return np.concatenate([pictures, made]), ["picture", *map(str, range(FLAGS.count))]


def inpaint_action(run: Run, editor: Editor) -> tuple[np.ndarray, list[str]]:
    mask, pictures = read_mask(FLAGS.mask, run.recipe.data.size), pictures_of(run, 1)
    made = editor.inpaint(repeat(pictures, FLAGS.count), mask, _captions(FLAGS.count, new=True), FLAGS.rounds)
    return np.concatenate([pictures, made]), ["picture", *map(str, range(FLAGS.count))]


def _captions(count: int = 1, new: bool = False) -> list[str]:
    changed = new and FLAGS.new_caption is not None
    return [FLAGS.new_caption if changed else FLAGS.caption] * count


ACTIONS = {
    "invert": invert_action,
    "interpolate": interpolate_action,
    "direction": direction_action,
    "vary": vary_action,
    "inpaint": inpaint_action,
}
INPUTS = ("picture", "item", "prompt", "caption", "new_caption", "mask")
SETTINGS = ("attribute", "instead_of", "strength", "num", "count", "rounds")


def main(argv):
    if len(argv) != 2 or argv[1] not in ACTIONS:
        raise BadInput(f"give one action of {', '.join(ACTIONS)}; got {' '.join(argv[1:]) or 'none'}")
    parallel.use_compilation_cache()
    run, options = sampling_flags.open_run(), sampling_flags.options()
    editor = Editor(run, FLAGS.per_device, FLAGS.seed, sampling_flags.traced_options(run), **options)
    pictures, names = ACTIONS[argv[1]](run, editor)
    about = {
        "run": FLAGS.workdir,
        "checkpoint": run.step,
        "seed": FLAGS.seed,
        "action": argv[1],
        "settings": editor.options,
        "flags": {name: getattr(FLAGS, name) for name in (*INPUTS, *SETTINGS)},
    }
    media.save(FLAGS.out, _laid_out(pictures, names), metadata={"zoo": json.dumps(about)})
    print(f"{', '.join(names)} -> {FLAGS.out}")


def _laid_out(pictures: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Pictures (N, T, H, W, 3) as one: in a row, or where a clip is asked for, one after the other."""
    if pictures.shape[1] > 1 or FLAGS.out.lower().endswith(".png"):
        return media.grid(pictures, columns=min(len(pictures), COLUMNS), labels=names)
    return np.concatenate([media.grid(picture[None]) for picture in pictures])


if __name__ == "__main__":
    define_flags()
    with exit_on_bad_input():
        app.run(main, flags_parser=configs.parse_flags)
