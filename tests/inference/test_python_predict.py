"""``task.predict`` from Python: the inputs that the command takes, PIL's pictures, and what is refused."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
from PIL import Image

from data_modules.images import ImageError
from s2kit.inference.video import VideoWriter
from s2kit.tasks import NormalsTask, PoseTask


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def task(oracles):
    return oracles.make(NormalsTask)


@pytest.fixture
def folder(tmp_path):
    """Pictures a, b and c of different sizes, and a list of c, a."""
    rng = np.random.default_rng(0)
    for name, size in (("a", (40, 30)), ("b", (41, 31)), ("c", (42, 32))):
        cv2.imwrite(str(tmp_path / f"{name}.png"), rng.integers(0, 255, (*size, 3), np.uint8))
    (tmp_path / "some.txt").write_text("c.png\na.png\n")
    return tmp_path


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_folders_patterns_lists_and_addresses(task, folder):
    arrays = {name: cv2.imread(str(folder / f"{name}.png"))[..., ::-1] for name in "abc"}
    a, b, c = (task.predict(arrays[name])[0] for name in "abc")
    assert a.shape == (40, 30, 3) and not np.allclose(a[:40, :30], b[:40, :30], atol=1e-3)
    assert_same(task.predict(folder), [a, b, c])
    assert_same(task.predict(str(folder / "[bc].png")), [b, c])
    assert_same(task.predict(folder / "some.txt", batch_size=1), [c, a])
    assert_same(task.predict([folder / "b.png", arrays["a"], str(folder / "[bc].png")]), [b, a, b, c])
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        assert_same(task.predict([f"{url}/c.png", str(folder / "a.png")]), [c, a])
        with pytest.raises(ImageError, match=f"{url}/none.png"):
            task.predict(f"{url}/none.png")
    finally:
        server.shutdown()
        server.server_close()


def test_frames_of_a_video_one_by_one(task, folder):
    with VideoWriter(folder / "clip.mp4", 10, (32, 48)) as writer:
        for value in (0, 100, 200):
            writer.write(np.full((32, 48, 3), value, np.uint8))
    assert [found.shape for found in task.predict(folder / "clip.mp4")] == [(32, 48, 3)] * 3
    with pytest.raises(ValueError, match="masks are given a picture; of a video give the frames"):
        task.predict(folder / "clip.mp4", masks=[None] * 3)


def test_masks_and_boxes_belong_to_the_pictures_of_a_folder(task, folder, oracles):
    mask = np.zeros((41, 31), bool)
    mask[5:9, 3:8] = True
    found = task.predict(folder, masks=[None, mask, None])
    np.testing.assert_array_equal(found[1].any(axis=-1), mask)
    assert found[2].any(axis=-1).all()
    with pytest.raises(ValueError, match="3 pictures, but 1 masks"):
        task.predict(folder, masks=mask)
    poses = oracles.make(PoseTask).predict(folder, boxes=[None, np.zeros((0, 4)), np.array([[0, 0, 9, 9]] * 2)])
    assert [len(people) for people in poses] == [1, 0, 2]


def test_pictures_of_pil(task):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    gray = Image.fromarray(pixels[..., 0])
    expected = [task.predict(pixels)[0], task.predict(np.dstack([pixels[..., 0]] * 3))[0]]
    assert_same(task.predict(Image.fromarray(pixels)), expected[:1])
    assert_same(task.predict([Image.fromarray(pixels), gray]), expected)


@pytest.mark.parametrize("picture", [np.zeros((40, 30), np.uint8), np.zeros((3, 40, 30), np.uint8), [None]])
def test_what_is_no_picture_is_refused(task, picture):
    with pytest.raises(ValueError, match=r"picture 0: it must be uint8 \(H, W, 3\) RGB, one of PIL's, or a path; got"):
        task.predict(picture)


def test_names_that_cannot_be_read(task, folder):
    (folder / "broken.png").write_bytes(b"<html>")
    with pytest.raises(ImageError, match=r"broken\.png: "):
        task.predict(folder)
    with pytest.raises(ImageError, match=r"nowhere\.png: there is no "):
        task.predict(str(folder / "nowhere.png"))


@pytest.mark.parametrize("tile", ["x", 64, (64,), (64.0, 64.0), "64x64"])
def test_tiles_that_are_none(task, tile):
    with pytest.raises(ValueError, match=r"tile=.*: give \(height, width\) in pixels, 'auto' or None"):
        task.predict(np.zeros((40, 30, 3), np.uint8), tile=tile)
