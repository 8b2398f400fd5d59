"""Videos: upright with their times, damage said by name, and files that browsers play."""

import itertools
import os
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from s2kit.inference.video import VideoError, VideoReader, VideoWriter, is_video

RED, GREEN, BLUE, WHITE = (200, 60, 40), (30, 180, 90), (40, 70, 200), (220, 220, 220)


def corners(height: int = 48, width: int = 64, mark: int = 0) -> np.ndarray:
    """A picture of four colours, so that every turn and mirroring shows; the mark makes it one of many."""
    picture = np.zeros((height, width, 3), np.uint8)
    middle, centre = height // 2, width // 2
    picture[:middle, :centre], picture[:middle, centre:] = RED, GREEN
    picture[middle:, :centre], picture[middle:, centre:] = BLUE, WHITE
    picture[middle - 4 : middle + 4, 4 * (mark % 16) : 4 * (mark % 16) + 4] = 128
    return picture


def write_raw(
    path: Path, count: int = 60, codec: str = "libx264", options: dict | None = None, **stream: object
) -> Path:
    """A video by PyAV itself, with attributes of its stream; ``rotation`` are the arguments of its display matrix."""
    with av.open(str(path), "w", options=options or {}) as container:
        track = container.add_stream(codec, rate=30)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        rotation = stream.pop("rotation", None)
        if rotation is not None:
            track.set_display_rotation(*rotation)
        for name, value in stream.items():
            setattr(track.codec_context, name, value)
        for index in range(count):
            for packet in track.encode(av.VideoFrame.from_ndarray(corners(mark=index), "rgb24")):
                container.mux(packet)
        for packet in track.encode():
            container.mux(packet)
    return path


def read_all(path: Path) -> tuple[list, str]:
    """All that a video gives, and how it ended."""
    given = []
    try:
        with VideoReader(path) as reader:
            given.extend(reader)
    except VideoError as error:
        assert error.path == str(path) and str(error) == f"{path}: {error.reason}" and "\n" not in str(error)
        return given, error.reason
    return given, ""


def test_what_is_written_is_read_with_its_colours_and_times(tmp_path):
    path, times = tmp_path / "new" / "a.mp4", [0, 0.1, 0.15, 0.5, 0.9, 1.0]
    with VideoWriter(path, 30, (48, 64)) as writer:
        for index, seconds in enumerate(times):
            writer.write(corners(mark=index), seconds)
    given, error = read_all(path)
    assert not error
    assert [index for index, _, _ in given] == list(range(6))
    np.testing.assert_allclose([seconds for _, seconds, _ in given], times, atol=1e-4)
    for index, _, picture in given:
        assert picture.shape == (48, 64, 3) and picture.dtype == np.uint8 and picture.flags.c_contiguous
        assert np.abs(picture.astype(int) - corners(mark=index)).mean() < 3
    # Without the file's own colours (BT.709) these would be wrong by 10 and more.
    for (y, x), color in {(10, 10): RED, (10, 50): GREEN, (40, 10): BLUE, (40, 50): WHITE}.items():
        assert np.abs(given[0][2][y, x].astype(int) - color).max() <= 3


def test_the_written_file_is_what_browsers_play(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, Fraction(24000, 1001), (47, 63)) as writer:
        for index in range(5):
            writer.write(corners(47, 63, index))
    data = path.read_bytes()
    assert 0 < data.find(b"moov") < data.find(b"mdat")
    with av.open(str(path)) as container:
        track = container.streams.video[0]
        assert (track.codec_context.name, track.pix_fmt) == ("h264", "yuv420p")
        assert (track.height, track.width) == (48, 64)
        assert (track.codec_context.colorspace, track.codec_context.color_range) == (1, 1)
        assert track.average_rate == Fraction(24000, 1001)
    given, _ = read_all(path)
    # The last row and column are repeated, not black.
    assert np.abs(given[0][2][47, 63].astype(int) - WHITE).max() <= 3
    assert [seconds for _, seconds, _ in given] == pytest.approx([i * 1001 / 24000 for i in range(5)], abs=1e-6)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_pictures_are_upright(tmp_path, degrees, mirror):
    path = write_raw(tmp_path / "a.mp4", 2, rotation=(degrees, mirror))
    # FFmpeg turns counter-clockwise, then mirrors.
    expected = np.rot90(corners(), degrees // 90)[:, :: -1 if mirror else 1]
    with VideoReader(path) as reader:
        picture = next(iter(reader))[2]
        assert reader.size == picture.shape[:2] == expected.shape[:2]
    for y in (0.2, 0.8):
        for x in (0.2, 0.8):
            place = int(y * expected.shape[0]), int(x * expected.shape[1])
            assert np.abs(picture[place].astype(int) - expected[place]).max() <= 8


def test_pixels_that_are_not_square_are_made_so(tmp_path):
    path = write_raw(tmp_path / "a.mp4", 2, sample_aspect_ratio=Fraction(3, 2))
    with VideoReader(path) as reader:
        assert reader.size == (48, 96)
        assert next(iter(reader))[2].shape == (48, 96, 3)


@pytest.mark.parametrize(
    "name, codec", [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4"), ("a.ts", "libx264")]
)
def test_other_containers(tmp_path, name, codec):
    path = write_raw(tmp_path / name, codec=codec)
    with VideoReader(path) as reader:
        assert reader.fps == 30 and reader.frames == 60
        assert len(list(reader)) == 60
        again = list(reader)
    assert again[59][:2] == (59, pytest.approx(59 / 30, abs=2e-3))


def test_a_video_that_is_cut_off_gives_what_there_is_and_says_so(tmp_path):
    whole = write_raw(tmp_path / "whole.mp4", options={"movflags": "+faststart"}).read_bytes()
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) * 3 // 4])
    given, reason = read_all(path)
    assert 10 < len(given) < 60 and reason.startswith(("damaged after", "cut off after"))
    assert given[5][0] == 5
    whole = write_raw(tmp_path / "whole.mkv", 90).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: len(whole) // 2])
    given, reason = read_all(path)
    assert 0 < len(given) < 90 and reason.startswith(f"cut off after {len(given)} pictures") and "of 3.0 s" in reason


def test_damage_in_the_middle_loses_only_what_is_damaged(tmp_path):
    data = bytearray(write_raw(tmp_path / "a.mp4", gop_size=10).read_bytes())
    start = data.find(b"mdat") + 1500
    data[start : start + 200] = bytes(200)
    path = tmp_path / "b.mp4"
    path.write_bytes(data)
    given, reason = read_all(path)
    assert reason.startswith("damaged after ") and "pictures" in reason
    assert 30 < len(given) < 60
    assert given[-1][1] == pytest.approx(59 / 30, abs=1e-3)


def test_damage_at_the_beginning_loses_only_the_beginning(tmp_path):
    data = bytearray(write_raw(tmp_path / "a.mp4", gop_size=10).read_bytes())
    start = data.find(b"mdat") + 4
    data[start : start + 900] = bytes(900)
    path = tmp_path / "b.mp4"
    path.write_bytes(data)
    given, reason = read_all(path)
    assert reason.startswith("damaged after 0 pictures (0.00 s)")
    assert 30 < len(given) < 60 and given[0][2].shape == (48, 64, 3)


def test_files_that_are_no_videos(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "page.mp4").write_bytes(b"<html>not found</html>" * 50)
    write_raw(tmp_path / "a.mp4", 4)
    (tmp_path / "moov.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:-300])
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        track = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        for packet in track.encode(frame):
            container.mux(packet)
        for packet in track.encode():
            container.mux(packet)
    expected = {
        "empty.mp4": "the file is empty",
        "page.mp4": "it is no video that can be read, or cut off",
        "moov.mp4": "it is no video that can be read, or cut off",
        "none.mp4": "no such file",
        "sound.mp4": "it has no video track",
        ".": "is a directory",
    }
    for name, reason in expected.items():
        given, said = read_all(tmp_path / name)
        assert given == [] and said.startswith(reason), (name, said)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory in use is read from Linux' /proc")
def test_a_long_video_takes_no_more_memory_than_a_short_one(tmp_path):
    path, picture = tmp_path / "a.mp4", np.full((720, 1280, 3), 90, np.uint8)
    before = 0
    with VideoWriter(path, 30, (720, 1280)) as writer:
        for index in range(150):
            writer.write(picture)
            if index == 59:  # the encoder looks ahead by some 40 pictures
                before = resident_bytes()
        assert resident_bytes() - before < 60e6
    with VideoReader(path) as reader:
        for index, _, _ in reader:
            if index == 30:
                before = resident_bytes()
        assert index == 149
        # 119 pictures have 329 MB.
        assert resident_bytes() - before < 60e6


def test_times_that_stand_still_go_on_by_a_tick(tmp_path):
    path = tmp_path / "a.mp4"
    with VideoWriter(path, 30, (48, 64)) as writer:
        for seconds in (0, 0.5, 0.5, 0.4, 1):
            writer.write(corners(), seconds)
    times = [seconds for _, seconds, _ in read_all(path)[0]]
    assert all(b > a for a, b in itertools.pairwise(times))
    np.testing.assert_allclose(times, [0, 0.5, 0.5, 0.5, 1], atol=1e-3)


def test_a_failure_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), VideoWriter(tmp_path / "a.mp4", 30, (48, 64)) as writer:
        writer.write(corners())
        raise RuntimeError
    wrong = pytest.raises(ValueError, match=r"uint8 \(10, 10, 3\), expected uint8 \(48, 64, 3\)")
    with wrong, VideoWriter(tmp_path / "a.mp4", 30, (48, 64)) as writer:
        writer.write(np.zeros((10, 10, 3), np.uint8))
    with VideoWriter(tmp_path / "a.mp4", 30, (48, 64)):
        pass
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with (
        pytest.raises(VideoError, match="cannot be written"),
        VideoWriter(tmp_path / "file" / "a.mp4", 30, (48, 64)) as writer,
    ):
        writer.write(corners())


def test_without_an_encoder_of_h264_another_is_taken_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264", "libopenh264"})
    path = tmp_path / "a.mp4"
    with (
        VideoWriter(path, 30, (48, 64)) as writer,
        pytest.warns(UserWarning, match="no H.264 encoder here; libvpx-vp9"),
    ):
        for index in range(4):
            writer.write(corners(mark=index))
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "vp9"
    assert len(read_all(path)[0]) == 4
    monkeypatch.setattr(av, "codecs_available", set())
    with pytest.raises(VideoError, match="none of the encoders libx264"), VideoWriter(path, 30, (48, 64)) as writer:
        writer.write(corners())


def test_without_pyav_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(VideoError, match=r"^clip.mp4: videos need PyAV: pip install 's2kit\[video\]'$"):
        VideoReader("clip.mp4")


def test_videos_are_told_by_their_extension():
    assert is_video("a/b.MP4") and is_video(Path("c.mov"))
    assert not is_video("a.jpg") and not is_video("mp4")
