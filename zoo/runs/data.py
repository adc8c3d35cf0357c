"""The data of a run: section `data` of its config, built."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from zoo import config as configs
from zoo.data import pipeline, subject
from zoo.data.subject import About
from zoo.data.text import Tokenizer
from zoo.errors import UserError, check_ranges, unknown_name_error
from zoo.runs.codec import PIXELS

CAPTIONS_FOR_TOKENIZER = 20_000


@dataclasses.dataclass(frozen=True)
class Data:
    """The training data of a run; the fields are the keys of `config.data`.

    Attributes:
      source: see `data.pipeline.open_source`.
      size: pixels along a side.
      frames: frames of a video, 1 for images.
      batch_size: items over all devices of all processes.
      text_length: tokens of a caption.
      vocab_size: most tokens of the tokenizer.
      flip: whether to mirror a random half of the images; wrong where captions contain "left".
      negatives: whether to give with each caption one that is wrong by a word, see `scenes.negatives`.
      latents: workdir of a trained autoencoder, whose latents are the inputs; "" for images.
      codes: workdir of a trained tokenizer, whose codes are the inputs, or "pixels": the numbers of images themselves;
        "" for images.
      images: images beside videos, a source like `source`, for methods that read both; "" for none.
      images_batch_size: images over all devices of all processes; 0 without `images`.
      threads: threads that prepare batches ahead of need; 0 for one a core, at most 8.
      workers: processes that prepare batches, each with so many threads; 0 for the training process alone.

    Raises:
      UserError: a number is out of its range, there are images without a batch size or the other way round, or both
        latents and codes.
    """

    source: str
    size: int
    frames: int = 1
    batch_size: int = 64
    text_length: int = 32
    vocab_size: int = 1024
    flip: bool = False
    negatives: bool = False
    latents: str = ""
    codes: str = ""
    images: str = ""
    images_batch_size: int = 0
    threads: int = 0
    workers: int = 0

    def __post_init__(self):
        at_least_one = ("size", "frames", "batch_size", "text_length", "vocab_size")
        check_ranges(self, threads="[0, inf)", workers="[0, inf)", **dict.fromkeys(at_least_one, "[1, inf)"))
        if self.latents and self.codes:
            raise UserError(f"data.latents {self.latents!r} and data.codes {self.codes!r}: give one of them")
        if bool(self.images) != (self.images_batch_size > 0):
            raise UserError(
                f"data.images {self.images!r} and data.images_batch_size {self.images_batch_size}: give both or none"
            )

    @property
    def of_tokens(self) -> bool:
        """Whether the inputs are codes of a tokenizer, and not the numbers of the images."""
        return self.codes not in ("", PIXELS)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of one image or video, (T, H, W, C)."""
        return self.frames, self.size, self.size, 3

    def open(self, split: str) -> pipeline.Source:
        """Opens a split of the source."""
        return pipeline.open_source(self.source, split, self.size, self.frames)

    def open_images(self, split: str) -> pipeline.Source:
        """Opens a split of the images beside videos."""
        return pipeline.open_source(self.images, split, self.size, 1)

    def train_tokenizer(self, source: pipeline.Source) -> Tokenizer:
        """Returns a tokenizer of the source's captions."""
        captions = pipeline.learned_captions(source, limit=CAPTIONS_FOR_TOKENIZER)
        return Tokenizer.train(captions, self.vocab_size, self.text_length)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SubjectData(Data):
    """The data of a personalized run: images of a subject and of its class, for a base of videos one frame each.

    Attributes:
      source: data of the base, whose captions have the class.
      subject: folder of the images, or a zip of one.
      class_name: noun of what they show; by default what the folder's class.txt names.
      token: word that stands for it: "reserved", "rarest" or a word, see `data.subject.choose_word`.
      learn: "subject", or "style" of the images.
      template: "a photo of a {}" makes a caption of the noun, for images that have none of their own; by default the
        words that all captions of the base share.
      subject_holdout: images that are kept for scoring; none of fewer than four.
      prior_num: images of the class that the base makes, for prior preservation.

    Raises:
      UserError: as of `Data`; no subject, something else than "subject" and "style", a template without {}, or a number
        out of its range.
    """

    subject: str
    class_name: str
    token: str = "reserved"
    learn: str = "subject"
    template: str
    subject_holdout: int = 1
    prior_num: int = 64

    def __post_init__(self):
        super().__post_init__()
        if not self.subject:
            raise UserError("subject is missing: name a folder of images by --config.data.subject=FOLDER")
        if self.learn not in subject.LEARNED:
            raise unknown_name_error("thing to learn", self.learn, subject.LEARNED)
        if self.template.count("{}") != 1:
            raise UserError(f"template {self.template!r} needs one {{}}, where the noun stands")
        if not self.class_name.strip():
            raise UserError("class_name is empty: give the noun of what the images show")
        check_ranges(self, subject_holdout="[0, inf)", prior_num="[1, inf)")

    @property
    def name(self) -> str:
        """Name of the word."""
        return subject.name_of(self.subject)

    @property
    def shown(self) -> About:
        """Description of the images."""
        return About(self.class_name, self.learn, self.template)

    def open(self, split: str) -> pipeline.Source:
        """Opens the images of the subject; "test" are those that are held out, or all where none are."""
        return subject.open_source(
            self.subject, split, self.size, self.shown, self.subject_holdout, of_videos=self.frames > 1
        )

    def class_captions(self, split: str, num: int) -> list[str]:
        """Returns so many captions of the class: those of the base with its noun, in turn, or else the template."""
        known = pipeline.captions(self.open_base(split))
        with_noun = [text for text in known if subject.place_of(self.class_name, text) is not None]
        chosen = with_noun or [self.template.replace("{}", self.class_name)]
        return [chosen[i * max(1, len(chosen) // num) % len(chosen)] for i in range(num)]

    def filled(self, text: str) -> str:
        """Returns a prompt with the word and its noun for "{}"."""
        return text.replace("{}", subject.phrase(self.shown, self.name))

    def open_base(self, split: str) -> pipeline.Source:
        """Opens a split of the base's data."""
        return super().open(split)


def build_data(section: Mapping[str, Any]) -> Data:
    """Builds section `data` of a config; it is of a personalized run where it has the key `subject`."""
    return configs.build(SubjectData if "subject" in section else Data, section, "data")
