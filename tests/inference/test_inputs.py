"""What inputs mean, names of outputs, reading ahead, and files from a server on loopback."""

import socket
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from data_modules.images import ImageError
from s2kit.errors import UserError
from s2kit.inference.fetching import fetch, fetch_to
from s2kit.inference.inputs import Source, find_sources, in_background, in_order, read_picture, read_sources
from s2kit.inference.video import VideoWriter

PICTURE = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
PNG = cv2.imencode(".png", PICTURE)[1].tobytes()


class Handler(BaseHTTPRequestHandler):
    """A server of pictures, and of what goes wrong with them."""

    def do_GET(self):
        name = self.path.rpartition("/")[2].partition("?")[0]
        if name == "missing.png":
            self.send_error(404)
            return
        if name == "silent.png":
            self.server.stop.wait(5)
            return
        body = {"clip.mp4": self.server.clip, "page.png": b"<html>"}.get(name, PNG)
        self.send_response(200)
        if name != "endless.png":
            self.send_header("Content-Length", str(len(body) + 100 * (name == "short.png")))
        self.end_headers()
        self.wfile.write(body)
        while name == "endless.png" and not self.server.stop.is_set():
            try:
                self.wfile.write(bytes(1 << 16))
            except OSError:
                return

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    with VideoWriter(tmp_path / "served.mp4", 10, (32, 48)) as writer:
        for value in (0, 100, 200):
            writer.write(np.full((32, 48, 3), value, np.uint8))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.clip, server.stop = (tmp_path / "served.mp4").read_bytes(), threading.Event()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}")
    server.stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "in"
    (place / "sub").mkdir(parents=True)
    for name in ("b.png", "a.JPG", "sub/c.png", "a_panel.png"):
        (place / name).write_bytes(PNG)
    for name in ("notes.md", ".hidden.png", "clip.MP4"):
        (place / name).write_bytes(b"x")
    return place


def test_every_kind_of_input(folder):
    listed = folder / "list.txt"
    listed.write_text("# two\nsub/c.png\n\nhttps://example.org/x/d%20e.jpg?size=2\n")
    found = find_sources([str(folder), f"{folder}/**/c.*", str(listed), str(folder / "notes.md")])
    where = [source.where for source in found]
    assert where[:4] == [str(folder / name) for name in ("a.JPG", "a_panel.png", "b.png", "clip.MP4")]
    assert where[4:7] == [str(folder / "sub/c.png")] * 2 + ["https://example.org/x/d%20e.jpg?size=2"]
    assert where[7] == str(folder / "notes.md")  # what is named is read, whatever it is called
    assert [source.is_video for source in found] == [False, False, False, True, False, False, False, False]
    names = [source.name for source in found]
    assert len(set(names)) == 8
    assert names[:4] == ["a", "a_panel", "b", "clip"]
    assert names[6:] == ["d e", "notes"]


def test_no_two_outputs_have_the_same_name(folder):
    found = find_sources([str(folder)], taken=["b"], endings=["_panel", "_labels"])
    names = [source.name for source in found]
    # a_panel.png is the panel of a, or the overlay of a_panel.
    assert names[2:] == ["b_2", "clip"]
    written = [f"{name}{ending}" for name in names for ending in ("", "_panel", "_labels")]
    assert len(set(written)) == len(written)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("gone.png", r"there is no .*gone\.png: give a picture, a folder, a glob pattern or a list"),
        ("*.tiff", r"the pattern .*\*\.tiff matches no pictures or videos \(\.jpg, .*\.mp4"),
        ("empty", r"the folder .*empty holds no pictures or videos"),
        ("none.txt", r"the list .*none\.txt names no pictures"),
    ],
)
def test_inputs_that_mean_nothing(folder, given, words):
    (folder / "empty").mkdir()
    (folder / "none.txt").write_text("\n# nothing\n")
    with pytest.raises(UserError, match=words):
        find_sources([str(folder / given)])


def test_pictures_and_videos_come_from_a_server(server, tmp_path):
    np.testing.assert_array_equal(
        cv2.imdecode(np.frombuffer(fetch(f"{server.url}/a.png"), np.uint8), cv2.IMREAD_COLOR), PICTURE
    )
    sources = find_sources([f"{server.url}/x/a.png?key=1", f"{server.url}/clip.mp4", f"{server.url}/page.png"])
    pictures = list(read_sources(sources, 4))
    assert [picture.name for picture in pictures] == ["a", "clip/000000", "clip/000001", "clip/000002", "page"]
    np.testing.assert_array_equal(pictures[0].image, PICTURE[..., ::-1])
    assert [round(float(picture.image.mean()), -1) for picture in pictures[1:4]] == [0, 100, 200]
    assert [picture.frame.last for picture in pictures[1:4]] == [False, False, True]
    assert pictures[3].frame.seconds == pytest.approx(0.2)
    assert pictures[4].error.startswith("it holds text (HTML or XML), not a picture")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("missing.png", {}, r"/missing\.png: the server answers 404 \(Not Found\)"),
        ("silent.png", {"timeout": 0.3}, r"silent\.png: the server is silent for more than 0\.3 s"),
        ("a.png", {"limit": 100}, r"a\.png: it has 0 MB, more than the limit of 0"),
        ("endless.png", {"limit": 1 << 20}, r"endless\.png: it has more than the limit of 1 MB"),
        ("short.png", {}, r"short\.png: the connection broke off after \d+ of \d+ bytes"),
    ],
)
def test_what_a_server_does_wrong_is_said(server, tmp_path, name, options, words):
    with pytest.raises(ImageError, match=words):
        fetch_to(f"{server.url}/{name}", tmp_path / "out", **options)


def test_without_a_network_the_line_says_so():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ImageError, match=r"cannot be fetched, is this machine offline\? \(Connection refused\)"):
        fetch(f"http://127.0.0.1:{port}/a.png")
    picture = read_picture(Source(f"http://127.0.0.1:{port}/a.png", "a", False))
    assert picture.image is None
    assert picture.error.startswith("cannot be fetched")


def test_jobs_run_ahead_and_come_in_order():
    from concurrent.futures import ThreadPoolExecutor

    begun = []

    def job(number):
        begun.append(number)
        time.sleep(0.02 * (number % 3))
        return number

    with ThreadPoolExecutor(3) as pool:
        results = in_order((partial(job, number) for number in range(40)), pool, 5)
        assert [next(results) for _ in range(10)] == list(range(10))
        assert len(begun) <= 16
        results.close()


def test_a_background_thread_is_bounded_stops_and_hands_over_errors():
    made = []

    def numbers():
        for number in range(100):
            made.append(number)
            yield number
            if number == 50:
                raise KeyError("fifty")

    items = in_background(numbers(), 3)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    time.sleep(0.1)
    assert len(made) <= 10
    items.close()
    before = threading.active_count()
    items = in_background(numbers(), 3)
    with pytest.raises(KeyError, match="fifty"):
        list(items)
    assert threading.active_count() == before


def test_what_can_be_read_of_a_damaged_video_comes_before_its_error(tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(b"no video at all")
    (picture,) = read_sources([Source(str(path), "v", True)], 2)
    assert picture.error and picture.frame.last and picture.frame.index == -1
