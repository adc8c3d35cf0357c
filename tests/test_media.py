import os
import sys

import av
import numpy as np
import pytest
from PIL import Image

from zoo import media
from zoo.errors import UserError


def videos(count, frames, height, width, channels=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 200, (count, frames, height, width, channels), dtype=np.uint8)


def find(big, small):
    """Whether `small` (h, w, 3) stands somewhere in `big`."""
    corners = np.argwhere((big == small[0, 0]).all(axis=-1))
    height, width = small.shape[:2]
    return any(np.array_equal(big[y : y + height, x : x + width], small) for y, x in corners)


def test_grid_holds_every_image_scaled_by_whole_numbers():
    images = videos(5, 2, 8, 12)
    laid = media.grid(images, columns=3)
    assert laid.dtype == np.uint8 and laid.shape[0] == 2 and laid.shape[3] == 3
    for frame in range(2):
        for image in images[:, frame]:
            assert find(laid[frame], image.repeat(8, axis=0).repeat(8, axis=1))
    assert 3 * 96 <= laid.shape[2] < 3 * 96 + 60 and 2 * 64 <= laid.shape[1] < 2 * 64 + 60


def test_grid_order_is_left_to_right_then_down():
    images = np.broadcast_to(np.array([10, 60, 120], np.uint8)[:, None, None, None, None], (3, 1, 8, 8, 3))
    laid = media.grid(images, columns=2, scale=1)[0, :, :, 0]
    first, second, third = (tuple(np.argwhere(laid == value)[0]) for value in (10, 60, 120))
    assert first[0] == second[0] < third[0] and first[1] == third[1] < second[1]


@pytest.mark.parametrize(("width", "wanted"), [(8, 96), (64, 128), (96, 96), (100, 100)])
def test_small_images_are_made_visible(width, wanted):
    assert wanted <= media.grid(videos(1, 1, 8, width)).shape[2] <= wanted + 20


def test_grey_images():
    laid = media.grid(videos(2, 1, 8, 8, channels=1), scale=1)
    assert laid.shape[-1] == 3 and (laid[..., 0] == laid[..., 2]).all()


def test_labels_are_wrapped_below():
    images = videos(2, 3, 96, 96)
    plain = media.grid(images, columns=2)
    short = media.grid(images, columns=2, labels=["a", "b"])
    long = media.grid(images, columns=2, labels=["a", "a caption of many words that do not fit on a line"])
    endless = media.grid(images, columns=2, labels=["a", "x" * 60])
    assert plain.shape[1] < short.shape[1] < long.shape[1]
    assert short.shape[1] < endless.shape[1] and plain.shape[2] == long.shape[2] == endless.shape[2]
    assert (long[0, 110:] == long[1, 110:]).all() and (long[0, 110:] < 100).any()
    assert media.grid(images, labels=["", ""]).shape == short.shape


def test_wrapping_loses_nothing():
    lines = media._wrap("aa bbb  c dddddddddd e", 5, len)
    assert all(len(line) <= 5 for line in lines)
    assert "".join("".join(lines).split()) == "aabbbcdddddddddde"
    assert lines[0] == "aa"


METADATA = {"prompt": 'a "red" star; = # \\ ☃ é\nsecond line', "seed": "7"}


@pytest.mark.parametrize("suffix", [".png", ".gif", ".mp4", ".webm", ".PNG"])
def test_metadata_round_trip(tmp_path, suffix):
    path = tmp_path / "new" / f"x{suffix}"
    frames = videos(1, 1, 16, 16)[0]
    media.save(path, frames, metadata=METADATA)
    assert media.read_metadata(path) == METADATA
    media.save(path, frames)
    assert media.read_metadata(path) == {}
    assert os.listdir(path.parent) == [path.name]


def test_a_long_text_survives(tmp_path):
    for suffix in (".png", ".gif", ".mp4", ".webm"):
        media.save(tmp_path / f"x{suffix}", videos(1, 1, 16, 16)[0], metadata={"config": "long ☃ " * 700})
        assert media.read_metadata(tmp_path / f"x{suffix}") == {"config": "long ☃ " * 700}


def test_png_is_exact(tmp_path):
    frames = videos(1, 1, 9, 7)[0]
    media.save(tmp_path / "x.png", frames)
    assert (np.asarray(Image.open(tmp_path / "x.png")) == frames[0]).all()
    with pytest.raises(UserError, match="one frame, not 2"):
        media.save(tmp_path / "y.png", videos(1, 2, 8, 8)[0])


def test_gif_keeps_frames_and_speed(tmp_path):
    frames = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 100, 200)])
    media.save(tmp_path / "x.gif", frames, fps=5)
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 3 and gif.info["duration"] == 200 and gif.info["loop"] == 0
        for i in range(3):
            gif.seek(i)
            assert abs(np.asarray(gif.convert("RGB")).astype(int) - frames[i]).max() <= 2


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47)])
def test_video_files_keep_frames_and_speed(tmp_path, height, width, suffix):
    frames = np.stack([np.full((height, width, 3), value, np.uint8) for value in (20, 100, 180)])
    media.save(tmp_path / f"x{suffix}", frames, fps=5)
    with av.open(str(tmp_path / f"x{suffix}")) as video:
        assert video.streams.video[0].average_rate == 5
        read = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    assert read.shape == (3, height + height % 2, width + width % 2, 3)
    assert abs(read[:, :height, :width].astype(int) - frames).max() <= 4


def test_videos_are_a_sheet_in_a_png_and_a_grid_elsewhere():
    clips, stills, labels = videos(2, 3, 8, 8), videos(2, 1, 8, 8), ["a", "b"]
    np.testing.assert_array_equal(media.lay_out("x.PNG", clips, labels), media.sheet(clips, labels))
    np.testing.assert_array_equal(media.lay_out("x.gif", clips, labels), media.grid(clips, labels=labels))
    np.testing.assert_array_equal(media.lay_out("x.png", stills, labels), media.grid(stills, labels=labels))


def test_a_sheet_shows_each_video_in_a_row():
    frames = videos(2, 3, 96, 96)
    sheet = media.sheet(frames, labels=["a", "b"])
    assert sheet.shape[0] == 1 and sheet.shape[2] >= 3 * 96
    for video in frames:
        for frame in video:
            windows = np.lib.stride_tricks.sliding_window_view(sheet[0], (96, 96, 3))[:, :, 0]
            assert (windows[..., 0, 0, :] == frame[0, 0]).all(-1).any() and any(
                (window == frame).all() for window in windows[(windows[..., 0, 0, :] == frame[0, 0]).all(-1)]
            )


def test_bad_files(tmp_path):
    frames = videos(1, 1, 8, 8)[0]
    with pytest.raises(UserError, match="'.gf': did you mean '.gif'"):
        media.save(tmp_path / "x.gf", frames)
    with pytest.raises(UserError, match="unknown kind of file 'x'"):
        media.save(tmp_path / "x", frames)
    with pytest.raises(UserError, match="fps 0"):
        media.save(tmp_path / "x.gif", frames, fps=0)
    with pytest.raises(UserError, match="no file"):
        media.read_metadata(tmp_path / "x.png")
    for suffix in (".png", ".gif", ".mp4", ".webm"):
        (tmp_path / f"bad{suffix}").write_bytes(b"nothing")
        with pytest.raises(UserError, match="damaged"):
            media.read_metadata(tmp_path / f"bad{suffix}")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    media.save(tmp_path / "x.png", videos(1, 1, 8, 8)[0], metadata=METADATA)
    with pytest.raises(UserError):
        media.save(tmp_path / "x.png", videos(1, 2, 8, 8)[0])
    with pytest.raises(TypeError):
        media.save(tmp_path / "x.png", np.zeros((1, 8, 8, 3)))
    assert media.read_metadata(tmp_path / "x.png") == METADATA
    assert os.listdir(tmp_path) == ["x.png"]


def test_mp4_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install zoo\[video\]"):
        media.save(tmp_path / "x.mp4", videos(1, 2, 8, 8)[0])
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_written_is_refused_before_there_is_an_image(tmp_path, monkeypatch):
    media.check_file("a/b.PNG")
    media.check_file("b.gif", frames=5)
    for path, frames, message in (
        ("b.bmp", 1, "unknown kind of file '.bmp'"),
        ("b", 1, "'b'"),
        ("b.png", 5, "one frame"),
    ):
        with pytest.raises(UserError, match=message):
            media.check_file(path, frames)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for name, kind in (("folder.png", "folder"), ("file/a.png", "file"), ("file/a/b.png", "file")):
        with pytest.raises(UserError, match=f"cannot be written: .* is a {kind}"):
            media.check_file(tmp_path / name)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"zoo\[video\]"):
        media.check_file("b.mp4")


@pytest.mark.parametrize(("fps", "hundredths"), [(8, 100), (15, 53), (30, 27), (35, 23)])
def test_a_gif_lasts_as_long_as_its_frame_rate_demands(tmp_path, fps, hundredths):
    media.save(tmp_path / "x.gif", np.arange(8, dtype=np.uint8).repeat(48).reshape(8, 4, 4, 3) * 30, fps)
    with Image.open(tmp_path / "x.gif") as gif:
        durations = []
        for i in range(gif.n_frames):
            gif.seek(i)
            durations.append(gif.info["duration"])
    assert sum(durations) == pytest.approx(10 * hundredths, abs=5) and max(durations) - min(durations) <= 10


@pytest.mark.parametrize("fps", [0.5, 1000])
def test_rates_that_video_files_do_not_hold(tmp_path, fps):
    with pytest.raises(UserError, match="MP4 and WebM hold 1 to 240 frames/s"):
        media.check_file(tmp_path / "x.mp4", 8, fps)
    with pytest.raises(UserError, match="MP4 and WebM hold 1 to 240 frames/s"):
        media.save(tmp_path / "x.webm", np.zeros((4, 8, 8, 3), np.uint8), fps)
    assert not list(tmp_path.iterdir())
