"""Edits images through their noise.

    python -m zoo edit --workdir RUN ACTION ...

An image is inverted to its noise, the noise is changed, and an image is generated from it.

    invert       --image FILE                       the image beside the one made from its noise
    interpolate  --image FILE --image FILE          images between two
    direction    --image FILE --attribute red --instead_of blue       a strip, more and more edited
    vary         --image FILE --strength 0.5        images like it
    inpaint      --image FILE --mask FILE           the white part of the mask made anew

Runs on codes have no noise: `vary` draws a share of the codes again, and `inpaint` those that the mask touches.

In place of `--image FILE`, `--item N` is one of the test split, and `--prompt TEXT` is sampled first.

By default all is done under the empty caption. Under a right caption, the noise holds only what the caption leaves
open: directions are therefore taken in the noise of the empty caption. With `--caption` the noise of an image is the
one under this caption; `--new_caption` generates the edited images under another one, which keeps what both leave
open.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from PIL import Image, UnidentifiedImageError

from zoo import media
from zoo.commands import sampling_flags
from zoo.commands.sampling_flags import Sampling
from zoo.commands.scaffold import Command, refuse
from zoo.data import folder
from zoo.errors import UserError, unknown_name_error
from zoo.evaluation.attribute_editing import find_direction, spread
from zoo.evaluation.reconstruction import psnr
from zoo.method import Fills
from zoo.runs import editor as edits
from zoo.runs.code_editor import CodeEditor
from zoo.runs.editor import ROUNDS, Editor, repeat_each
from zoo.runs.recipe import Recipe

FLAGS = flags.FLAGS

COLUMNS = 10


def define_flags() -> None:
    """Defines the flags of this command."""
    sampling_flags.define()
    flags.DEFINE_multi_string("image", [], "File of an image (of a video: GIF or MP4); interpolate takes two.")
    flags.DEFINE_multi_integer("item", [], "In place of an image: number of one of the test split.")
    flags.DEFINE_multi_string("prompt", [], "In place of an image: a caption to sample one of.")
    flags.DEFINE_string("caption", "", "Caption under which images are inverted and generated; empty for none.")
    flags.DEFINE_string("new_caption", None, "Caption under which images are generated; by default --caption.")
    flags.DEFINE_string("attribute", None, "direction: a word of the images to move towards.")
    flags.DEFINE_string("instead_of", "", "direction: a word of the images to move away from.")
    flags.DEFINE_float("strength", 1.0, "direction: of the last image; vary: from 0 (the same) to 1 (any other).")
    flags.DEFINE_integer("num", 2000, "direction: images of split train from which it is taken.", lower_bound=2)
    flags.DEFINE_integer("count", 8, "Images in the strip or grid.", lower_bound=1)
    flags.DEFINE_string("mask", None, "inpaint: image of the run's size, white where it is to be made anew.")
    flags.DEFINE_integer("rounds", ROUNDS, "inpaint: steps of the search for the noise.", lower_bound=1)
    flags.DEFINE_string("out", "edit.png", "File to write: .png, .gif or .mp4.")


@dataclasses.dataclass(frozen=True)
class Request:
    """An edit; the fields are the flags of the same names."""

    image: Sequence[str]
    item: Sequence[int]
    prompt: Sequence[str]
    caption: str
    new_caption: str | None
    attribute: str | None
    instead_of: str
    strength: float
    num: int
    count: int
    mask: str | None
    rounds: int

    def captions(self, count: int = 1) -> list[str]:
        """Returns the caption under which images are inverted, `count` times."""
        return [self.caption] * count

    def new_captions(self, count: int = 1) -> list[str]:
        """Returns the caption under which images are generated, `count` times."""
        return [self.caption if self.new_caption is None else self.new_caption] * count


Edited = tuple[np.ndarray, list[str]]  # images (N, T, H, W, 3) and N labels


def main(words: list[str]) -> None:
    """Runs the command on parsed flags."""
    if len(words) == 1 and words[0] not in ACTIONS:
        raise unknown_name_error("action", words[0], ACTIONS)
    if len(words) != 1:
        raise UserError(f"give one action of {', '.join(ACTIONS)}; got {' '.join(words)}")
    sampling = sampling_flags.read()
    make, actions = (CodeEditor, CODE_ACTIONS) if isinstance(sampling.run.method, Fills) else (Editor, ACTIONS)
    if words[0] not in actions:
        kind = type(sampling.run.method).__name__
        raise UserError(f"{words[0]} changes noise, and a {kind} run has none: its actions are {', '.join(actions)}")
    action = actions[words[0]]
    others = sorted(set().union(*(other.flags for other in ACTIONS.values())) - action.flags)
    refuse(others, f"is not for the action {words[0]} of this run: drop it")
    media.check_file(FLAGS.out)
    refuse(("frames", "fps"), "cannot be changed by edit, which keeps the frames of the image: drop it")
    if sampling.negative and not FLAGS.prompt:
        raise UserError("--negative is for images that --prompt samples: drop it")
    request = Request(**{field.name: getattr(FLAGS, field.name) for field in dataclasses.fields(Request)})
    editor = make(sampling.run, sampling.per_device, sampling.seed, **sampling.options, **sampling.guided)
    images, names = action.function(sampling, editor, request)
    settings = {name: value for name, value in editor.settings.items() if name not in sampling.guided}
    about = sampling.about() | {"action": words[0], "settings": settings, "flags": dataclasses.asdict(request)}
    media.save(FLAGS.out, laid_out(images, names, Path(FLAGS.out)), sampling.frame_rate, media.note(about))
    print(f"{', '.join(names)} -> {FLAGS.out}")


def read_images(sampling: Sampling, request: Request, count: int) -> np.ndarray:
    """Returns the images that a request names, uint8 (count, T, H, W, 3). Raises UserError for another number."""
    named = len(request.image) + len(request.item) + len(request.prompt)
    if named != count:
        raise UserError(f"needs {count} input image(s) by --image, --item or --prompt; got {named}")
    data = sampling.run.recipe.data
    found = [folder.read_file(name, data.size, data.frames, sampling.frame_rate) for name in request.image]
    if request.item:
        source = data.open("test")
        for number in request.item:
            if not 0 <= number < len(source):
                raise UserError(f"--item {number}: the test split has items 0 .. {len(source) - 1}")
            found.append(source[number]["inputs"])
    if request.prompt:
        cond = sampling.conditions(list(request.prompt))
        found += list(sampling.sampler()(sampling.run.params, cond, sampling.seed))
    return np.stack(found)


def read_mask(name: str | None, recipe: Recipe) -> np.ndarray:
    """Returns the mask in a file, bool (size, size), True where it is white."""
    size = recipe.data.size
    if name is None:
        raise UserError("inpaint needs --mask, an image that is white where it is to be made anew")
    try:
        mask = Image.open(name).convert("L")
    except (OSError, UnidentifiedImageError):
        raise UserError(f"--mask: {name} cannot be read: give an image that exists") from None
    if mask.size != (size, size):
        raise UserError(f"--mask: {name} is {mask.width} x {mask.height}, and images are {size} x {size}: resize it")
    return np.asarray(mask) >= 128


def invert(sampling: Sampling, editor: Editor, request: Request) -> Edited:
    """Finds the noise of images and makes them again."""
    images = read_images(sampling, request, 1)
    again = editor.generate(editor.invert(images, request.captions()), request.new_captions())
    error = np.abs(again.astype(float) - images).mean()
    return np.concatenate([images, again]), ["image", f"{error:.2f} of 255 off, {psnr(images, again)[0]:.1f} dB"]


def interpolate(sampling: Sampling, editor: Editor, request: Request) -> Edited:
    """Makes images of noise between that of two."""
    count = request.count
    noise = editor.invert(read_images(sampling, request, 2), request.captions(2))
    first, second = (repeat_each(jax.tree.map(lambda x, i=i: x[i : i + 1], noise), count) for i in (0, 1))
    fractions = np.linspace(0, 1, count, dtype=np.float32)
    between = edits.interpolate(first, second, fractions)
    return editor.generate(between, request.new_captions(count)), [f"{fraction:.2f}" for fraction in fractions]


def direction(sampling: Sampling, editor: Editor, request: Request) -> Edited:
    """Moves the noise along the direction of an attribute."""
    if not request.attribute:
        raise UserError("direction needs --attribute, a word that is true of some images of the data")
    images, items = read_images(sampling, request, 1), spread(sampling.run.recipe.data.open("train"), request.num)
    towards = find_direction(editor, items, request.attribute, request.instead_of)
    noise = repeat_each(editor.invert(images, request.captions()), request.count)
    strengths = np.linspace(0, request.strength, request.count, dtype=np.float32)
    made = editor.generate(edits.move(noise, towards, strengths), request.new_captions(request.count))
    return np.concatenate([images, made]), ["image", *(f"{strength:.2f}" for strength in strengths)]


def vary(sampling: Sampling, editor: Editor, request: Request) -> Edited:
    """Replaces a share of the noise by fresh noise."""
    _check_share(request.strength)
    images = read_images(sampling, request, 1)
    noise = repeat_each(editor.invert(images, request.captions()), request.count)
    made = editor.generate(editor.vary(noise, request.strength), request.new_captions(request.count))
    return np.concatenate([images, made]), ["image", *map(str, range(request.count))]


def inpaint(sampling: Sampling, editor: Editor, request: Request) -> Edited:
    """Makes the masked part of an image anew."""
    mask, images = read_mask(request.mask, sampling.run.recipe), read_images(sampling, request, 1)
    again = repeat_each(images, request.count)
    made = editor.inpaint(again, mask, request.new_captions(request.count), request.rounds)
    return np.concatenate([images, made]), ["image", *map(str, range(request.count))]


def vary_codes(sampling: Sampling, editor: CodeEditor, request: Request) -> Edited:
    """Draws a share of the codes again."""
    _check_share(request.strength)
    images = read_images(sampling, request, 1)
    made = editor.vary(repeat_each(images, request.count), request.strength, request.new_captions(request.count))
    return np.concatenate([images, made]), ["image", *map(str, range(request.count))]


def inpaint_codes(sampling: Sampling, editor: CodeEditor, request: Request) -> Edited:
    """Draws the codes of the masked part of an image again."""
    mask, images = read_mask(request.mask, sampling.run.recipe), read_images(sampling, request, 1)
    made = editor.inpaint(repeat_each(images, request.count), mask, request.new_captions(request.count))
    return np.concatenate([images, made]), ["image", *map(str, range(request.count))]


def _check_share(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise UserError(f"--strength {strength}: give a part of the noise or codes that is drawn anew, in [0, 1]")


class Action(NamedTuple):
    """An action.

    Attributes:
      function: sampling, editor and request -> the images.
      flags: names of the flags that this action reads and some others do not.
    """

    function: Callable[[Sampling, Any, Request], Edited]
    flags: frozenset[str] = frozenset()


ACTIONS = {
    "invert": Action(invert),
    "interpolate": Action(interpolate, frozenset({"count"})),
    "direction": Action(direction, frozenset({"attribute", "instead_of", "strength", "num", "count"})),
    "vary": Action(vary, frozenset({"strength", "count"})),
    "inpaint": Action(inpaint, frozenset({"mask", "rounds", "count"})),
}
CODE_ACTIONS = {
    "vary": Action(vary_codes, frozenset({"strength", "count"})),
    "inpaint": Action(inpaint_codes, frozenset({"mask", "count"})),
}
COMMAND = Command(main, define_flags, f"give one action of {', '.join(ACTIONS)}; got none")


def laid_out(images: np.ndarray, names: Sequence[str], out: Path) -> np.ndarray:
    """Returns images or videos (N, T, H, W, 3) as one: in a row, and in a video file images one after the other."""
    if images.shape[1] > 1 or out.suffix.lower() == ".png":
        return media.lay_out(out, images, names, columns=min(len(images), COLUMNS))
    return np.concatenate([media.grid(image[None]) for image in images])
