import io
import pickle
import sys

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from zoo.data import images, tfds
from zoo.data.pipeline import open_source
from zoo.errors import UserError

features = tensorflow_datasets.features


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(file, "PNG")
    file.seek(0)
    return file


class TinyToy(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Six images and videos of grey i, two classes."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        return tensorflow_datasets.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "image": features.Image(shape=(None, None, 3)),
                    "label": features.ClassLabel(names=["big_cat", "dog"]),
                    "caption": features.Text(),
                    "video": features.Tensor(shape=(4, 8, 8, 3), dtype=np.uint8),
                    "frames": features.Sequence(features.Image(shape=(8, 8, 3))),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            video = np.full((4, 8, 8, 3), i, np.uint8)
            video[3] = 100 + i
            yield (
                i,
                {
                    "image": png(i),
                    "label": i % 2,
                    "caption": f"numéro {i}",
                    "video": video,
                    "frames": [png(i), png(50 + i)],
                },
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("prepared")
    tensorflow_datasets.disable_progress_bar()
    TinyToy(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def opened(data_dir, options="", name="tiny_toy", split="train", size=8, frames=1):
    return open_source(f"tfds:{name}?data_dir={data_dir}{options}", split, size, frames)


def contents(source):
    items = [source[i] for i in range(len(source))]
    return sorted((item["inputs"][:, 0, 0, 0].tolist(), item["text"]) for item in items)


CLASSES = ["big cat", "dog"]


@pytest.mark.parametrize("memory", [0, 2**30])
def test_classes_become_captions(data_dir, monkeypatch, memory):
    monkeypatch.setattr(images, "MEMORY", memory)
    source = opened(data_dir)
    assert contents(source) == [([i], f"a photo of a {CLASSES[i % 2]}") for i in range(6)]
    assert [source.text(i) for i in range(6)] == [source[i]["text"] for i in range(6)]
    assert source[0]["inputs"].shape == (1, 8, 8, 3) and source[0]["inputs"].dtype == np.uint8
    again = pickle.loads(pickle.dumps(source))
    assert contents(again) == contents(source)


def test_template_text_and_splits(data_dir):
    assert contents(opened(data_dir, "&template=one {}", split="test"))[0] == ([0], "one big cat")
    assert contents(opened(data_dir, "&text_feature=caption"))[3] == ([3], "numéro 3")
    assert len(opened(data_dir, split="train[:50%]")) == 3


def test_videos(data_dir):
    source = opened(data_dir, "&image_feature=video&own_fps=24&fps=8", frames=2)
    assert contents(source)[5][0] == [5, 105] and source[5]["frame_rate"] == 8
    source = opened(data_dir, "&image_feature=video&own_fps=24", frames=2)
    of_last = [i for i in range(6) if source[i]["inputs"][0, 0, 0, 0] == 5]
    seen = {source.part(*of_last, place)["inputs"][1, 0, 0, 0] for place in (0.0, 0.4, 0.9)}
    assert seen == {5, 105}
    assert contents(opened(data_dir, "&image_feature=video"))[5][0] == [5]
    assert contents(opened(data_dir, "&image_feature=frames&own_fps=8", frames=2))[5][0] == [5, 55]
    with pytest.raises(UserError, match="has 1 frames at 8/s, and 2 at 8/s need 2.*image_feature"):
        opened(data_dir, "&own_fps=8", frames=2)[0]
    with pytest.raises(UserError, match="it has 8 frames/s, fewer than the fps=16"):
        opened(data_dir, "&image_feature=video&own_fps=8&fps=16", frames=2)[0]
    with pytest.raises(UserError, match="have no frame rate: add own_fps="):
        opened(data_dir, "&image_feature=video", frames=2)


def test_other_sizes_are_noted_once(data_dir, capsys):
    assert opened(data_dir, size=4)[0]["inputs"].shape == (1, 4, 4, 3)
    assert capsys.readouterr().err.count("cropped at the centre") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tests"}, "did you mean 'test'"),
        ({"split": "train[:x"}, "cannot be read"),
        ({"split": "train[:0]"}, "cannot be read"),
        ({"options": "&image_feature=imag"}, "did you mean 'image'"),
        ({"options": "&text_feature=captions"}, "did you mean 'caption'"),
        ({"options": "&text_feature=label"}, "does not hold one text"),
        ({"name": "cifar10"}, "run `tfds build cifar10 --file_format=array_record --data_dir="),
        ({"name": "cifarr10"}, "did you mean cifar10"),
        ({"name": "Not a name!"}, "no dataset"),
    ],
)
def test_what_cannot_be_opened(data_dir, arguments, message):
    with pytest.raises(UserError, match=message):
        opened(data_dir, **arguments)[0]


class TinyNet(tensorflow_datasets.core.GeneratorBasedBuilder):
    """Like ImageNet: classes are WordNet ids, and what `test` holds has no label."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")

    def _info(self):
        label = features.ClassLabel(names=["n01440764", "n02012849", "n99999999"])
        content = features.FeaturesDict({"image": features.Image(shape=(None, None, 3)), "label": label})
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=content)

    def _split_generators(self, dl_manager):
        return {"train": self._generate([0, 1, 2]), "validation": self._generate([1]), "test": self._generate([-1, -1])}

    def _generate(self, labels):
        yield from ((i, {"image": png(i), "label": label}) for i, label in enumerate(labels))

    _generate_examples = _generate


class TinyFood(TinyNet):
    """Without a split of the name `test`."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate([0, 1, 2]), "validation": self._generate([1])}


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    path = tmp_path_factory.mktemp("nets")
    for builder in (TinyNet, TinyFood):
        builder(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def test_wordnet_ids_get_their_names(nets, tmp_path):
    texts = lambda options: sorted(text for _, text in contents(opened(nets, options, "tiny_net")))
    assert texts("&template={}") == ["crane bird", "n99999999", "tench"]
    (tmp_path / "names.txt").write_text("fish\nbig_bird\n\nghost\n")
    assert texts(f"&template={{}}&names={tmp_path}/names.txt") == ["big bird", "fish", "ghost"]
    (tmp_path / "names.txt").write_text("fish\n")
    with pytest.raises(UserError, match="has 1 names, and the dataset 3 classes"):
        opened(nets, f"&names={tmp_path}/names.txt", "tiny_net")
    with pytest.raises(UserError, match="no such file"):
        opened(nets, f"&names={tmp_path}/none.txt", "tiny_net")


def test_imagenet_has_a_thousand_names_of_its_own():
    names = tfds._imagenet_names()
    assert len(names) == len(set(names.values())) == 1000
    assert names["n02123045"] == "tabby" and not any("_" in name or name != name.strip() for name in names.values())


def test_an_item_without_a_label_is_refused(nets):
    unlabelled = opened(nets, "", "tiny_net", "test")
    for read in (unlabelled.text, unlabelled.__getitem__):
        with pytest.raises(UserError, match=r"tiny_net has no label \(-1\): .*\?test=validation"):
            read(0)


def test_a_split_can_be_named_that_stands_for_test(nets):
    with pytest.raises(UserError, match=r"no split 'test', but train, validation: .*\?test=validation"):
        opened(nets, "", "tiny_food", "test")
    assert len(opened(nets, "&test=validation", "tiny_food", "test")) == 1
    part = "&train=train[:34%]&test=train[34%:]"
    assert [len(opened(nets, part, "tiny_food", split)) for split in ("train", "test")] == [1, 2]
    with pytest.raises(UserError, match="test=train\\[34%:\\] would be trained on too, by train=train"):
        opened(nets, "&test=train[34%:]", "tiny_food", "test")
    for train, test in (
        ("train[:67%]", "train[34%:]"),
        ("train+validation", "validation"),
        ("train", "validation+train"),
    ):
        with pytest.raises(UserError, match="would be trained on too"):
            opened(nets, f"&train={train}&test={test}", "tiny_food", "train")
    assert len(opened(nets, "&train=train[:1]+validation&test=train[1:]", "tiny_food", "train")) == 2
    assert opened(nets, "&test=validation", "tiny_net", "test").text(0) == "a photo of a crane bird"


def test_captions_are_read_without_the_images(data_dir, monkeypatch):
    read = []
    plain = tfds.TfdsSource._pixels
    monkeypatch.setattr(tfds.TfdsSource, "_pixels", lambda self, record: read.append(1) or plain(self, record))
    source = opened(data_dir)
    assert {source.text(i) for i in range(6)} == {"a photo of a big cat", "a photo of a dog"} and not read
    source[0]
    assert len(read) == 6  # then all are kept


def test_tensorflow_stays_out(data_dir):
    opened(data_dir)
    assert "tensorflow" not in sys.modules
