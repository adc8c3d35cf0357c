import io
import itertools
import json
import pickle
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from zoo import media
from zoo.data import folder, images, pipeline, videos
from zoo.data.text import Tokenizer
from zoo.errors import UserError


def colour(value, size=8):
    return Image.new("RGB", (size, size), (value, value, value))


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write(root, files):
    """Writes `{name: bytes, str, or the grey value of an image}`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            content = encoded(colour(content))
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def zipped(root, path, top=""):
    with zipfile.ZipFile(path, "w") as file:
        for found in sorted(root.rglob("*")):
            file.write(found, top + found.relative_to(root).as_posix())
    return path


def lines(**captions):
    return "".join(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in captions.items())


def opened(path, split="train", size=8, frames=1, **options):
    return folder.open_source(str(path), split, size, frames, **options)


def contents(source):
    """The grey value of every item's frames, and its caption."""
    items = [source[i] for i in range(len(source))]
    return sorted((item["inputs"][:, 0, 0, 0].tolist(), item["text"]) for item in items)


def test_captions_may_hold_other_ends_of_lines(tmp_path):
    entry = json.dumps({"file_name": "a.png", "text": "one\u2028two\u0085three"}, ensure_ascii=False)
    write(tmp_path, {"a.png": 1, "metadata.jsonl": entry + "\n"})
    assert opened(tmp_path).text(0).split() == ["one", "two", "three"]


def test_a_folder_has_a_name():
    with pytest.raises(UserError, match="names no folder"):
        opened("")


def test_captions_of_all_three_kinds(tmp_path):
    write(
        tmp_path / "set",
        {
            "a/metadata.jsonl": '{"file_name": "./x/1.png", "text": "one", "more": 1}\n\n',
            "a/x/1.png": 1,
            "a/x/2.png": 2,
            "a/x/2.txt": "two\n words ",
            "big_cat/3.png": 3,
            "4.png": 4,
        },
    )
    source = opened(tmp_path / "set")
    assert contents(source) == [([1], "one"), ([2], "two words"), ([3], "big cat"), ([4], "set")]
    assert [source.text(i) for i in range(len(source))] == [source[i]["text"] for i in range(len(source))]
    assert source[0]["inputs"].shape == (1, 8, 8, 3) and source[0]["inputs"].dtype == np.uint8
    named = opened(tmp_path / "set", template="a photo of a {}")
    assert ([3], "a photo of a big cat") in contents(named) and ([1], "one") in contents(named)


def test_several_captions_of_one_image(tmp_path):
    entries = [json.dumps({"file_name": "a.png", "text": text}) for text in ("one", "two")]
    write(tmp_path, {"a.png": 9, "metadata.jsonl": "\n".join(entries)})
    assert contents(opened(tmp_path)) == [([9], "one"), ([9], "two")]


@pytest.mark.parametrize("top", ["", "wrapped/"])
def test_a_zip_is_the_folder(tmp_path, top):
    root = write(tmp_path / "set", {f"{kind}/{i}.png": 10 * i for kind in ("cat", "dog") for i in range(9)})
    path = zipped(root, tmp_path / "set.zip", top)
    for split in ("train", "test"):
        assert contents(opened(path, split, holdout=0.3)) == contents(opened(root, split, holdout=0.3))


def test_every_kind_of_image(tmp_path):
    kinds = {"a.png": "PNG", "b.jpg": "JPEG", "c.jpeg": "JPEG", "d.webp": "WEBP", "e.bmp": "BMP"}
    kinds["F.PNG"] = "PNG"
    write(tmp_path / "set", {name: encoded(colour(200), kind) for name, kind in kinds.items()})
    source = opened(tmp_path / "set")
    assert len(source) == 6
    for i in range(6):
        assert abs(source[i]["inputs"].astype(int) - 200).max() <= 2


def test_hidden_files_are_ignored(tmp_path):
    files = {"a.png": 1, ".b.png": 2, "__MACOSX/c.png": 3, "__MACOSX/._a.png": "x", ".git/d.png": 4}
    write(tmp_path / "set", files)
    assert contents(opened(tmp_path / "set")) == [([1], "set")]


def test_splits(tmp_path):
    write(tmp_path / "set", {f"{i}.png": i for i in range(200)})
    train, test = (contents(opened(tmp_path / "set", split, holdout=0.25)) for split in ("train", "test"))
    assert 30 < len(test) < 70
    assert sorted(train + test) == contents(opened(tmp_path / "set"))
    assert contents(opened(tmp_path / "set", "test")) == contents(opened(tmp_path / "set", "train"))
    write(tmp_path / "set", {"zzz.png": 0})
    more = contents(opened(tmp_path / "set", "test", holdout=0.25))
    assert [item for item in more if item != ([0], "set")] == [item for item in test if item != ([0], "set")]


def test_other_sizes_are_cropped_and_noted_once(tmp_path, capsys):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 255
    write(tmp_path, {"a.png": encoded(Image.fromarray(wide)), "b.png": encoded(colour(7, 32))})
    source = opened(tmp_path, size=8)
    assert (source[0]["inputs"] == 255).all() and (source[1]["inputs"] == 7).all()
    assert capsys.readouterr().err.count("cropped at the centre") == 1
    opened(write(tmp_path / "right", {"a.png": 1}))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("memory", [0, 2**30])
def test_images_that_do_not_decode(tmp_path, capsys, monkeypatch, memory):
    monkeypatch.setattr(images, "MEMORY", memory)
    broken = ["", "text", encoded(colour(1))[:50], "x", "y"]
    write(tmp_path, {f"{i}.png": content for i, content in enumerate(broken)})
    write(tmp_path, {"good.png": 5, "worse.jpg": encoded(colour(6), "JPEG")[:200]})
    source = opened(tmp_path)
    assert all((source[i]["inputs"] == 5).all() for i in range(len(source)))
    said = capsys.readouterr().err
    assert said.count("left out") == (4 if memory else 3)
    assert any(f"{i}.png" in said for i in range(5))
    if memory:
        assert len(source) == 1 and "left out 6 of the 7 items" in said


@pytest.mark.parametrize("memory", [0, 2**30])
def test_all_images_broken(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(images, "MEMORY", memory)
    write(tmp_path, {"a.png": "x", "b.png": "y"})
    with pytest.raises(UserError, match="none of the 2 items"):
        opened(tmp_path)[0]


def test_captions_without_images_and_images_without_captions(tmp_path, capsys):
    captions = lines(**{"a.png": "one", "gone.png": "two", "lost.png": "three"})
    write(tmp_path, {"metadata.jsonl": captions, "a.png": 1, "b.png": 2, "sub/c.png": 3})
    assert contents(opened(tmp_path)) == [([1], "one")]
    said = capsys.readouterr().err
    assert "left out 2 captions" in said and "'gone.png'" in said
    assert "left out 2 items" in said and "'b.png'" in said


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{file_name", "is not JSON"),
        ("[1]", "is not {"),
        ('{"file_name": "a.png"}', "is not {"),
        ("3", "is not {"),
    ],
)
def test_metadata_that_cannot_be_read(tmp_path, line, reason):
    write(tmp_path, {"a.png": 1, "metadata.jsonl": lines(**{"a.png": "one"}) + line})
    with pytest.raises(UserError, match=f"line 2 of metadata.jsonl {reason}"):
        opened(tmp_path)


def test_text_files_are_read_when_their_captions_are_needed(tmp_path, monkeypatch):
    write(tmp_path, {f"{i}.png": i for i in range(5)} | {f"{i}.txt": f"number {i}" for i in range(5)})
    monkeypatch.setattr(images, "MEMORY", 0)  # else images and captions are read at once, and kept
    read, plain = [], folder._text
    monkeypatch.setattr(folder, "_text", lambda files, name: read.append(name) or plain(files, name))
    source = opened(tmp_path)
    assert not read
    assert source.text(3) == source[3]["text"] == "number 3" and set(read) == {"3.txt"}


def test_a_caption_that_is_not_utf8(tmp_path):
    write(tmp_path, {"a.png": 1, "a.txt": b"caf\xe9"})
    with pytest.raises(UserError, match=r"a.txt is not UTF-8"):
        opened(tmp_path).text(0)


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        opened(tmp_path / "missing")
    with pytest.raises(UserError, match="no image"):
        opened(write(tmp_path / "texts", {"a.txt": "x", "clip.gif": encoded(colour(1), "GIF")}))
    with pytest.raises(UserError, match="neither a folder nor a .zip"):
        opened(write(tmp_path / "files", {"a.tar": "x"}) / "a.tar")
    root = write(tmp_path / "other", {"a.png": 1, "metadata.jsonl": lines(**{"b.png": "x"})})
    with pytest.raises(UserError, match="check its file_name"):
        opened(root)
    root = write(tmp_path / "set", {"a.png": 1})
    with pytest.raises(UserError, match="did you mean 'test'"):
        opened(root, "tests")
    with pytest.raises(UserError, match="holdout 1.0"):
        opened(root, holdout=1.0)
    with pytest.raises(UserError, match="is empty with holdout"):
        opened(root, "test", holdout=1e-9)


def test_damaged_zips(tmp_path):
    root = write(tmp_path / "set", {f"{i}.png": encoded(colour(i, 64)) for i in range(5)})
    data = zipped(root, tmp_path / "set.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cut.zip cannot be read"):
        opened(tmp_path / "cut.zip")
    hole = data.find(b"IDAT") + 6
    (tmp_path / "hole.zip").write_bytes(data[:hole] + b"\0\0\0\0" + data[hole + 4 :])
    assert len(opened(tmp_path / "hole.zip", size=64)) == 4
    write(root, {"0.txt": "a caption that is long enough to be found"})
    data = zipped(root, tmp_path / "text.zip").read_bytes()
    (tmp_path / "text.zip").write_bytes(data.replace(b"caption", b"CAPTION", 1))
    with pytest.raises(UserError, match="is damaged at 0.txt"):
        opened(tmp_path / "text.zip").text(0)


def gif(values, **options):
    first, *others = [colour(value) for value in values]
    return encoded(first, "GIF", save_all=True, append_images=others, **dict(duration=100, loop=0) | options)


def greys(item):
    return item["inputs"][:, 0, 0, 0].astype(int).tolist()


def near(found, expected):
    return len(found) == len(expected) and np.abs(np.subtract(found, expected)).max() <= 4


@pytest.mark.parametrize("memory", [0, 2**30])
def test_videos_of_gif_and_numbered_frames(tmp_path, capsys, monkeypatch, memory):
    monkeypatch.setattr(images, "MEMORY", memory)
    files = {f"walks/far/frame_{i}.png": 10 * i for i in range(12)}  # 10 comes after 9, not after 1
    files |= {"walks/far.txt": "far", "walks/near.gif": gif([0, 20, 40, 60, 80])}
    files |= {"walks/short.gif": gif([1, 2]), "walks/few/0.png": 1, "walks/still.png": 3}
    source = opened(write(tmp_path, files), frames=3, own_fps=20, fps=10)
    items = {item["text"]: item for item in (source[i] for i in range(len(source)))}
    assert near(greys(items["walks"]), [0, 20, 40]) and items["walks"]["frame_rate"] == pytest.approx(10)
    assert near(greys(items["far"]), [0, 20, 40]) and items["far"]["frame_rate"] == 10
    said = capsys.readouterr().err
    assert "walks/short.gif: it has 2 frames at 10/s, and 3 at 10/s need 3" in said and "walks/few" not in said
    assert not memory or "left out 1 of the 3 items" in said
    with pytest.raises(UserError, match="no video"):
        opened(write(tmp_path / "stills", {"a.png": 1}), frames=2, own_fps=8)


def test_parts_begin_anywhere_and_keep_their_frame_rate(tmp_path):
    files = {f"walk/{i}.png": 10 * i for i in range(12)}
    source = opened(write(tmp_path, files), frames=3, own_fps=24, fps=12)  # every second frame
    assert greys(source[0]) == [0, 20, 40] and source[0]["frame_rate"] == 12
    begins = {greys(source.part(0, place))[0] for place in np.linspace(0, 1, 50)}
    assert begins == {10 * i for i in range(8)} and greys(source.part(0, 1.0)) == [70, 90, 110]
    uneven = opened(tmp_path, frames=4, own_fps=24, fps=9)
    assert greys(uneven[0]) == [0, 30, 50, 80]  # frames are left out, and none is made


@pytest.mark.parametrize(
    ("own", "fps", "expected"),
    [(29.97, 15, [0, 2, 4, 6]), (29.97, 10, [0, 3, 6, 9]), (23.976, 24, [0, 1, 2, 3]), (25, 10, [0, 3, 5, 8])],
)
def test_frames_are_those_nearest_to_the_times(own, fps, expected):
    video = videos.Video.of(np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1), own)
    if own < fps * (1 - videos.SAME_RATE) or own < fps and fps / own - 1 > videos.SAME_RATE:
        with pytest.raises(ValueError, match="fewer than the fps"):
            video.part(4, fps, 0.0)
    else:
        assert video.part(4, fps, 0.0)[0].ravel().tolist() == expected


def test_own_rates_that_differ_are_an_error(tmp_path):
    files = {"a.gif": gif([0, 20, 40, 60], duration=100), "b.gif": gif([0, 20, 40, 60], duration=50)}
    with pytest.raises(UserError, match=r"have 10 and 20 frames/s: name one that all have, as \?fps=10"):
        opened(write(tmp_path, files), frames=2)
    assert len(opened(tmp_path, frames=2, fps=10)) == 2


def test_training_gets_random_parts_that_depend_on_seed_and_place_alone(tmp_path):
    source = opened(write(tmp_path, {f"walk/{i}.png": 10 * i for i in range(12)}), frames=3, own_fps=24)
    tokenizer = Tokenizer.train(["walk"], 400, 8)
    stream = lambda seed, start=0: pipeline.stream(source, tokenizer, 8, seed=seed, start=start)
    batches = [batch["inputs"][:, :, 0, 0, 0] for batch in itertools.islice(stream(0), 4)]
    begins = np.concatenate(batches)[:, 0]
    assert len(set(begins.tolist())) > 5
    np.testing.assert_array_equal(next(stream(0, start=2))["inputs"][:, :, 0, 0, 0], batches[2])
    assert not np.array_equal(next(stream(1))["inputs"][:, :, 0, 0, 0], batches[0])


def test_frames_of_a_gif_may_last_differently(tmp_path):
    source = opened(write(tmp_path, {"a.gif": gif([0, 100, 200], duration=[100, 300, 100])}), frames=5)
    assert near(greys(source[0]), [0, 100, 100, 100, 200]) and source[0]["frame_rate"] == pytest.approx(10)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"a/0.png": 1, "a/1.png": 2}, dict(frames=2), "numbered images, as those in a, have no frame rate"),
        ({"a.gif": b""}, dict(frames=2, fps=0.0), "fps must be above 0, got 0"),
        ({"a.png": 1}, dict(fps=8.0), "one frame has no frame rate, got fps=8"),
        ({"a.png": 1}, dict(own_fps=8.0), "one frame has no frame rate, got own_fps=8"),
        ({"a.gif": "none"}, dict(frames=2, fps=20.0), r"a.gif of .* cannot be used \(it has 10 frames/s, fewer"),
        ({"a.gif": b""}, dict(frames=2, own_fps=8.0), "own_fps=8 is of folders of numbered images, and .* has none"),
        ({"a/1.png": 1, "a/2.png": 2, "a/4.png": 4}, dict(frames=2, own_fps=8.0), "a/2.png is followed by a/4.png"),
    ],
)
def test_frame_rates_that_cannot_be(tmp_path, capsys, files, options, message):
    if files == {"a.gif": "none"}:
        files = {"a.gif": gif([0, 20, 40, 60])}
    with pytest.raises(UserError, match=message):
        opened(write(tmp_path, files), **options)
    if "cannot be used" in message:
        assert "it has 10 frames/s, fewer than the fps=20 of data.source" in capsys.readouterr().err


def test_a_video_of_frames_at_the_top_and_one_named_by_metadata(tmp_path):
    frames = {f"{i}.png": i for i in range(4)}
    options = dict(frames=2, own_fps=8)
    assert contents(opened(write(tmp_path / "walk", frames), **options)) == [([0, 1], "walk")]
    root = write(tmp_path / "set", {f"v.1/{name}": value for name, value in frames.items()})
    write(root, {"metadata.jsonl": lines(**{"v.1/": "a walk"})})
    assert contents(opened(root, **options)) == [([0, 1], "a walk")]
    (root / "metadata.jsonl").unlink()
    write(root, {"v.1.txt": "a way"})
    assert contents(opened(root, **options)) == [([0, 1], "a way")]
    opened(tmp_path / "walk", "train" if folder._fraction(".") >= 0.5 else "test", holdout=0.5, **options)


def test_each_sequence_of_numbered_images_is_a_video_and_a_single_image_is_none(tmp_path):
    files = {f"left_{i}.png": i for i in range(3)} | {f"right_{i}.png": 10 + i for i in range(3)} | {"thumb1.png": 99}
    files |= {f"slow/{i:04d}.png": 20 + i for i in range(0, 30, 10)}  # every tenth frame was written
    found = [frames for frames, _ in contents(opened(write(tmp_path, files), frames=3, own_fps=8))]
    assert found == [[0, 1, 2], [10, 11, 12], [20, 30, 40]]
    gifs = write(tmp_path / "gifs", {"a.gif": gif([0, 20, 40]), "thumb1.png": 1})
    assert len(opened(gifs, frames=2)) == 1


def fit(image):
    return image if isinstance(image, np.ndarray) else np.asarray(image.convert("RGB"))


def test_gifs_are_read_as_they_were_written(tmp_path):
    still, moving = np.zeros((8, 8, 8, 3), np.uint8), np.arange(0, 200, 25, dtype=np.uint8)[:, None, None, None]
    for rate in (8, 15, 30):  # none is a whole number of hundredths of a second
        for name, frames in (("still", still), ("moving", still + moving)):
            media.save(tmp_path / str(rate) / f"{name}.gif", frames, fps=rate)
        source = opened(tmp_path / str(rate), frames=8, fps=rate)
        assert len(source) == 2 and all(source[i]["frame_rate"] == rate for i in range(2))
        assert sorted(len(set(greys(source[i]))) for i in range(2)) == [1, 8]


@pytest.mark.parametrize(
    ("durations", "rate", "expected"),
    [([100, 150, 100, 150], 10, [0, 1, 1, 2, 3]), ([0] * 4, 10, [0, 1, 2, 3]), ([20, 30, 20, 30], 50, [0, 1, 1, 2, 3])],
)
def test_frames_of_a_gif_are_shown_at_their_times(durations, rate, expected):
    video = videos.read(".gif", gif([0, 50, 100, 150], duration=durations), fit)
    assert video.rate == pytest.approx(rate) and video.order.tolist()[: len(expected)] == expected
    assert abs(len(video.order) / video.rate - sum(durations or [1]) / 1000) <= 0.5 / rate or not any(durations)


def test_a_frame_that_stands_for_long_is_kept_once(tmp_path):
    video = videos.read(".gif", gif([0, 50], duration=[20, 600_000]), fit)
    assert len(video.frames) == 2 and len(video.order) == 30_001


def filmed(path, frames, times, turned=0):
    """Writes an MP4 of frames (32, 32, 3) that begin at times, in 24ths of a second, of a camera turned by degrees."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=24, options={"crf": "10"})
        stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
        stream.set_display_rotation(turned)
        for image, time in zip(frames, times, strict=True):
            frame = av.VideoFrame.from_ndarray(image)
            frame.pts, frame.time_base = time, Fraction(1, 24)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


RAMP = [np.full((32, 32, 3), 10 + 8 * i, np.uint8) for i in range(24)]


def steps_of(path):
    video = videos.read(path.suffix, path.read_bytes(), fit)
    return [round((float(video.frames[i].mean()) - 10) / 8) for i in video.order], video.rate


def test_frames_of_a_file_without_a_constant_rate_are_shown_at_their_times(tmp_path):
    times = [*range(8), *range(8, 56, 3)]  # 24 frames/s, after a third of a second 8
    shown, rate = steps_of(filmed(tmp_path / "uneven.mp4", RAMP, times))
    assert len(shown) / rate == pytest.approx(56 / 24, abs=2.5 / rate)
    for number, step in enumerate(shown[:-1]):
        seconds = number / rate
        due = seconds * 24 if seconds < 1 / 3 else 8 + (seconds - 1 / 3) * 8
        assert abs(step - due) <= 24 / rate + 1, (number, step, due)


def test_a_video_that_starts_late_has_no_copies_of_its_first_frame(tmp_path):
    late = filmed(tmp_path / "late.mp4", RAMP, range(48, 72))
    with av.open(str(late)) as file:
        assert next(file.decode(video=0)).time == 2
    assert steps_of(late) == (list(range(24)), 24)


def test_a_video_of_a_turned_camera_is_turned_back(tmp_path):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16] = 255
    path = filmed(tmp_path / "turned.mp4", [image] * 2, range(2), turned=-90)  # clockwise: its top comes to the right
    frame = videos.read(".mp4", path.read_bytes(), fit).frames[0].mean(-1)
    assert frame[:, -1].min() > 200 and frame[:, 0].max() < 50


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_mp4_and_webm_from_folder_and_zip(tmp_path, capsys, suffix):
    frames = np.stack([np.full((32, 32, 3), value, np.uint8) for value in range(0, 200, 20)])
    media.save(tmp_path / "set" / f"a{suffix}", frames, fps=8)
    write(tmp_path / "set", {f"bad{suffix}": "x"})
    for path in (tmp_path / "set", zipped(tmp_path / "set", tmp_path / "set.zip")):
        source = opened(path, size=32, frames=4, fps=4)
        assert len(source) == 1 and source[0]["text"] == "set" and source[0]["frame_rate"] == 4
        assert near(greys(source[0]), [0, 40, 80, 120])
    assert capsys.readouterr().err.count(f"left out bad{suffix}") == 2


def test_a_video_that_was_cut_off_is_damaged(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    media.save(tmp_path / "whole.webm", noise, 8)
    data = (tmp_path / "whole.webm").read_bytes()
    assert len(videos.read(".webm", data, fit).frames) == 20
    with pytest.raises(ValueError, match="it is cut off: it ends after .* of 2.50 s"):
        videos.read(".webm", data[: len(data) * 6 // 10], fit)


def test_the_last_frame_lasts_as_long_as_in_its_file(tmp_path):
    shown, rate = steps_of(filmed(tmp_path / "uneven.mp4", RAMP[:4], [0, 1, 2, 10]))
    assert shown[0] == 0 and shown[-1] == 3 and shown.count(2) > 2 * shown.count(1)
    assert videos.SAME_RATE > 1 - 1000 / 1001
    assert videos.Video.of(np.stack(RAMP), 30_000 / 1001).part(4, 30.0, 0.0)[1] == 30


def test_a_sound_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(ValueError, match="it holds no video"):
        videos.read(".mp4", (tmp_path / "sound.mp4").read_bytes(), fit)
    with pytest.raises(ValueError, match="Invalid data"):
        videos.read(".mp4", b"x", fit)


def test_mp4_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install zoo\[video\]"):
        opened(write(tmp_path, {"a.mp4": "x"}), frames=2)


@pytest.mark.parametrize("memory", [0, 2**30])
def test_threads_and_pickle(tmp_path, monkeypatch, memory):
    monkeypatch.setattr(images, "MEMORY", memory)
    root = write(tmp_path / "set", {f"{i:03}.png": i for i in range(100)})
    source = opened(zipped(root, tmp_path / "set.zip"))
    again = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        items = list(pool.map(again.__getitem__, [i % 100 for i in range(1000)]))
    assert [item["inputs"][0, 0, 0, 0] for item in items] == [i % 100 for i in range(1000)]


def test_small_sets_are_kept(tmp_path, monkeypatch):
    root = write(tmp_path / "set", {"a.png": 5})
    source = opened(root)
    (root / "a.png").unlink()
    assert (source[0]["inputs"] == 5).all()


# Images in every mode.


def test_transparency_becomes_white():
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (images.fit(clear, 4) == 255).all()
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert abs(images.fit(half, 4).astype(int) - 127).max() <= 1
    palette = Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    assert (images.fit(palette, 4) == 255).all()
    assert (images.fit(Image.new("LA", (4, 4), (9, 255)), 4) == 9).all()
    assert (images.fit(np.zeros((4, 4, 4), np.uint8), 4) == 255).all()


def test_other_modes():
    sixteen = Image.open(io.BytesIO(encoded(Image.fromarray(np.full((4, 4), 128 * 257, np.uint16)))))
    assert sixteen.mode.startswith("I") and (images.fit(sixteen, 4) == 128).all()
    assert (images.fit(Image.new("L", (4, 4), 7), 4) == 7).all()
    assert (images.fit(Image.new("1", (4, 4), 1), 4) == 255).all()
    colours = Image.new("P", (4, 4), 1)
    colours.putpalette([0, 0, 0, 10, 20, 30])
    assert images.fit(colours, 4)[0, 0].tolist() == [10, 20, 30]
    assert images.fit(Image.new("CMYK", (4, 4)), 4).tolist() == np.full((4, 4, 3), 255).tolist()
    for shape in [(4, 4), (4, 4, 1), (4, 4, 3)]:
        assert (images.fit(np.full(shape, 7, np.uint8), 4) == 7).all()


def test_orientation_is_applied():
    turned = np.zeros((8, 8, 3), np.uint8)
    turned[:, 4:] = 255  # the right half is bright; orientation 6 asks for a quarter turn clockwise
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(Image.fromarray(turned), "PNG", exif=exif)))
    upright = images.fit(image, 8)
    assert (upright[:4] == 0).all() and (upright[4:] == 255).all()


def test_the_right_size_is_left_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert (images.fit(image, 8) == image).all()
    assert (images.fit(Image.fromarray(image), 8) == image).all()
    taller = np.concatenate([np.zeros((4, 8, 3), np.uint8), image, np.zeros((4, 8, 3), np.uint8)])
    assert (images.fit(taller, 8) == image).all()


def test_shrinking_does_not_alias():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert abs(images.fit(stripes, 8).astype(int) - 127).max() < 12


def test_a_large_jpeg_is_what_its_png_is():
    rows, columns = np.mgrid[:512, :700]
    waves = 127 + 100 * np.sin(rows / 3) * np.sin(columns / 3)
    image = Image.fromarray(np.stack([waves, waves, rows / 3], -1).astype(np.uint8))
    versions = [Image.open(io.BytesIO(encoded(image, kind))) for kind in ("PNG", "JPEG")]
    exact, fast = (images.fit(version, 128).astype(int) for version in versions)
    assert abs(exact - fast).mean() < 4
