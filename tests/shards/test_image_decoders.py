"""The quick JPEG decoder gives OpenCV's pixels or stays out of it; scaled decoding keeps what was asked for."""

import io

import cv2
import numpy as np
import pytest

from data_modules import images as images_module
from data_modules.image_headers import is_cut_off, is_plain_jpeg
from data_modules.images import read_image

Image = pytest.importorskip("PIL.Image", reason="part of the extra 'test'")
simplejpeg = pytest.importorskip("simplejpeg", reason="part of the extra 'test'")


@pytest.fixture(scope="module")
def picture():
    noise = np.random.default_rng(0).normal(0, 900, (301, 203, 3))
    return np.clip(128 + cv2.GaussianBlur(noise, (0, 0), 6), 0, 255).astype(np.uint8)


def jpeg(picture, mode="RGB", turn=None, **options):
    file, exif = io.BytesIO(), Image.Exif()
    if turn:
        exif[0x112] = turn
        options["exif"] = exif
    Image.fromarray(picture).convert(mode).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


KINDS = {
    "plain": ({}, True),
    "progressive": ({"progressive": True}, True),
    "4:4:4": ({"subsampling": 0}, True),
    "4:2:2": ({"subsampling": 1}, True),
    "restart markers": ({"restart_marker_blocks": 4}, True),
    "grey": ({"mode": "L"}, True),
    "CMYK": ({"mode": "CMYK"}, False),
    "turned": ({"turn": 6}, False),
    "upside down": ({"turn": 3}, False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("min_size", [None, (40, 20), (150, 101)])
def test_every_decoder_gives_the_same_pixels(picture, kind, min_size, monkeypatch):
    options, plain = KINDS[kind]
    data = jpeg(picture, **options)
    assert is_plain_jpeg(data) is plain
    quick = read_image(data, min_size=min_size)
    monkeypatch.setattr(images_module, "simplejpeg", None)
    np.testing.assert_array_equal(quick, read_image(data, min_size=min_size))
    if min_size is None:
        truth = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(quick, truth[..., ::-1])
    assert quick.flags.c_contiguous and quick.flags.writeable and quick.dtype == np.uint8


@pytest.mark.parametrize(
    ("min_size", "size"),
    [
        ((301, 203), (301, 203)),
        ((152, 102), (301, 203)),
        ((151, 102), (151, 102)),
        ((76, 51), (76, 51)),
        ((77, 10), (151, 102)),
        ((1, 1), (38, 26)),
        ((600, 10), (301, 203)),
    ],
)
def test_scaled_decoding_keeps_the_least_size(picture, min_size, size):
    scaled = read_image(jpeg(picture), min_size=min_size)
    assert scaled.shape[:2] == size
    factor = round(301 / size[0])
    below, right = (-side % factor for side in (301, 203))
    whole = cv2.copyMakeBorder(read_image(jpeg(picture)), 0, below, 0, right, cv2.BORDER_REPLICATE)
    averaged = cv2.resize(whole, size[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(scaled.astype(int) - averaged).mean() < 2


def test_a_turned_picture_keeps_the_least_size_both_ways(picture):
    assert read_image(jpeg(picture, turn=6), min_size=(102, 102)).shape == (102, 151, 3)
    assert read_image(jpeg(picture, turn=6), min_size=(102, 110)).shape == (203, 301, 3)


def test_other_formats_come_whole(picture):
    data = cv2.imencode(".png", picture)[1].tobytes()
    np.testing.assert_array_equal(read_image(data, min_size=(10, 10)), picture[..., ::-1])


def test_a_damaged_file_gives_what_opencv_makes_of_it(picture, monkeypatch):
    data = bytearray(jpeg(picture))
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff" * 40
    quick = read_image(bytes(data))
    monkeypatch.setattr(images_module, "simplejpeg", None)
    np.testing.assert_array_equal(quick, read_image(bytes(data)))


def test_a_cut_off_file_is_noticed(picture):
    data = jpeg(picture)
    assert not is_cut_off(data, "jpeg") and not is_cut_off(data + bytes(3), "jpeg")
    for size in (len(data) - 1, len(data) // 2, 700):
        assert is_cut_off(data[:size], "jpeg")
        with pytest.raises(images_module.ImageError, match="cut off"):
            read_image(data[:size])
