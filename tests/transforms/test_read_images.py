"""Pictures as users have them: every format, every orientation, and files that are no pictures."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image  # comes with torchvision, which timm requires

from data_modules.images import ImageError, list_images, output_stems, read_image
from s2kit.errors import UserError


def scene() -> np.ndarray:
    """A smooth picture without any symmetry."""
    y, x = np.mgrid[0:24, 0:40]
    picture = np.stack([x * 6, y * 10, (x + y) * 2], axis=-1).astype(np.uint8)
    picture[:8, :8] = (255, 0, 0)
    return picture


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


LOSSLESS = {
    "PNG": {},
    "WEBP": {"lossless": True, "exact": True},
    "BMP": {},
    "TIFF": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("form", LOSSLESS)
def test_lossless_formats_from_path_and_bytes(form, tmp_path):
    data = encoded(Image.fromarray(scene()), form, **LOSSLESS[form])
    path = tmp_path / f"PICTURE.{form}"
    path.write_bytes(data)
    for source in (path, str(path), data):
        image = read_image(source)
        assert image.dtype == np.uint8 and image.flags.c_contiguous
        np.testing.assert_array_equal(image, scene())


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_jpeg(options):
    data = encoded(Image.fromarray(scene()), "JPEG", quality=98, subsampling=0, **options)
    assert np.abs(read_image(data).astype(int) - scene())[:, 12:].max() <= 4
    np.testing.assert_array_equal(read_image(data), read_image(data + bytes(100)))  # phones append things


def oriented(picture: np.ndarray, orientation: int) -> np.ndarray:
    """Return the upright picture of a file that stores ``picture`` (EXIF 2.32, tag 274)."""
    return {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: np.rot90(p),
    }[orientation](picture)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(form, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = LOSSLESS.get(form, {"quality": 98, "subsampling": 0})
    image = read_image(encoded(Image.fromarray(scene()), form, exif=exif, **options))
    expected = oriented(scene(), orientation)
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("orientation", [1, 6])
def test_sixteen_bits_are_scaled_and_turned(orientation):
    values = np.array([[0, 128, 129, 257 * 7 + 128, 257 * 7 + 129, 65535]], np.uint16)
    expected = np.array([[0, 0, 1, 7, 8, 255]], np.uint8)  # rounded: cutting off the low byte gives 0, 0, 0, 7, 7, 255
    for extension in (".png", ".tiff"):
        colour = np.dstack([values, values // 2, np.zeros_like(values)])  # OpenCV writes blue, green, red
        image = read_image(cv2.imencode(extension, colour)[1].tobytes())
        np.testing.assert_array_equal(image[..., 2], expected)
        np.testing.assert_array_equal(image[..., 1], np.rint((values // 2) / 257))
        assert (image[..., 0] == 0).all()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    gray = read_image(encoded(Image.fromarray(values), "PNG", exif=exif))
    np.testing.assert_array_equal(gray, oriented(np.repeat(expected[..., None], 3, axis=2), orientation))


def test_float_tiff_is_taken_as_zero_to_one():
    unit = np.linspace(0, 1, 12, dtype=np.float32).reshape(2, 2, 3)
    image = read_image(cv2.imencode(".tiff", unit[..., ::-1])[1].tobytes())
    np.testing.assert_array_equal(image, np.rint(unit * 255))
    with pytest.raises(ImageError, match="float32 from 0 to 200"):
        read_image(cv2.imencode(".tiff", unit * 200)[1].tobytes())


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_grayscale_alpha_palette_and_bitmap_png(mode):
    picture = Image.fromarray(scene()).convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.fromarray(np.full((24, 40), 90, np.uint8)))
    image = read_image(encoded(picture, "PNG"))
    np.testing.assert_array_equal(image, np.asarray(picture.convert("RGB")))  # alpha is dropped, not blended


def test_transparent_palette_gif_webp_and_cmyk_jpeg():
    picture = Image.fromarray(scene())
    palette = picture.quantize(16)
    np.testing.assert_array_equal(
        read_image(encoded(palette, "PNG", transparency=3)), np.asarray(palette.convert("RGB"))
    )
    np.testing.assert_array_equal(read_image(encoded(palette, "GIF")), np.asarray(palette.convert("RGB")))
    rgba = picture.convert("RGBA")
    np.testing.assert_array_equal(read_image(encoded(rgba, "WEBP", lossless=True, exact=True)), scene())
    for lossy in (encoded(rgba, "WEBP"), encoded(picture, "WEBP", quality=95)):
        assert np.abs(read_image(lossy).astype(int) - scene()).mean() < 8
    cmyk = read_image(encoded(picture.convert("CMYK"), "JPEG", quality=98, subsampling=0))
    assert np.abs(cmyk.astype(int) - scene())[:, 12:].max() <= 5


def test_avif():
    try:
        data = encoded(Image.fromarray(scene()), "AVIF", quality=95)
    except (KeyError, OSError):
        pytest.skip("this Pillow writes no AVIF")
    assert np.abs(read_image(data).astype(int) - scene()).mean() < 4
    with pytest.raises(ImageError, match="40 x 24 = 960 pixels"):
        read_image(data, max_pixels=959)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
    ],
)
def test_truncated_files_are_refused(form, options, share, tmp_path, capfd):
    data = encoded(NOISE, form, **options)
    path = tmp_path / "cut.img"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=r"cut off|damaged|declares no size") as caught:
        read_image(path)
    assert caught.value.path == str(path) and str(caught.value).startswith(f"{path}: ")
    assert "ERROR" not in capfd.readouterr().err  # OpenCV's own log lines


def test_jpeg_padded_with_zeros_after_a_cut():
    """What a broken download with the final size leaves; decoders return it half grey and report nothing."""
    data = encoded(NOISE, "JPEG", exif=thumbnail_exif())
    assert cv2.imdecode(np.frombuffer(data[:9000] + bytes(5000), np.uint8), cv2.IMREAD_COLOR) is not None
    with pytest.raises(ImageError, match="cut off"):
        read_image(data[:9000] + bytes(5000))
    assert read_image(data).shape == (120, 160, 3)


def thumbnail_exif() -> bytes:
    """EXIF bytes with an end marker inside, as an embedded thumbnail has: it must not count as the picture's end."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "x\xff\xd9x"
    return exif.tobytes() + b"\xff\xd8\xff\xd9"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "was a web page saved"),
        (b"\n <html>", "was a web page saved"),
        (b"hello, world", "begins with b'hello, w'"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
        (b"\xff\xd8\xff", "JPEG header is cut off"),
        (b"\x89PNG\r\n\x1a\n", "PNG header is cut off"),
        (b"BM", "BMP header is cut off"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8X", "declares 1 x 1|damaged|cut off"),
        (b"II*\x00\xff\xff\xff\x7f", "TIFF header is cut off"),
        (b"GIF89a\x00\x00\x00\x00\x00\x00\x00", "declares 0 x 0"),
    ],
)
def test_files_that_are_no_pictures(data, reason, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(path)
    assert caught.value.path == str(path)
    assert isinstance(caught.value, UserError)


def test_missing_files_folders_and_named_bytes(tmp_path):
    with pytest.raises(ImageError, match="there is no such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="it is a folder"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match=r"^tar/0007.jpg: the file is empty"):
        read_image(b"", name="tar/0007.jpg")


def test_errors_survive_the_way_out_of_a_worker():
    import pickle

    error = pickle.loads(pickle.dumps(ImageError("a.jpg", "it is empty")))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "it is empty", "a.jpg: it is empty")


def giant_headers() -> dict[str, bytes]:
    """Files of a few bytes that declare 50000 x 40000 pixels."""
    body = struct.pack(">IIBBBBB", 50000, 40000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + body
    entries = struct.pack("<HHII", 256, 4, 1, 50000) + struct.pack("<HHII", 257, 4, 1, 40000)
    sides = (50000 - 1).to_bytes(3, "little") + (40000 - 1).to_bytes(3, "little")
    frame = struct.pack(">HBHHB", 11, 8, 40000, 50000, 1) + b"\x01\x11\x00"
    return {
        "png": b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)),
        "jpeg": b"\xff\xd8" + b"\xff\xe0\x00\x04ab" + b"\xff\xc0" + frame + b"\xff\xda\x00\x02\xff\xd9",
        "bmp": b"BM" + bytes(12) + struct.pack("<Iii", 40, 50000, -40000) + bytes(28),
        "tiff": b"II*\x00" + struct.pack("<I", 8) + struct.pack("<H", 2) + entries + bytes(4),
        "webp": b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00" + bytes(4) + sides,
        "gif": b"GIF89a" + struct.pack("<HH", 50000, 40000) + bytes(3),
    }


@pytest.mark.parametrize("form", giant_headers())
def test_giant_pictures_are_refused_before_decoding(form, monkeypatch):
    def decode(*args):
        raise AssertionError("decoded")

    monkeypatch.setattr(cv2, "imdecode", decode)
    with pytest.raises(ImageError, match="50000 x 40000 = 2000000000 pixels, more than the limit of 200000000"):
        read_image(giant_headers()[form])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_the_limit_counts_the_pixels_of_real_files(form):
    data = encoded(Image.fromarray(scene()), form)
    assert read_image(data, max_pixels=960).shape == (24, 40, 3)
    with pytest.raises(ImageError, match="40 x 24 = 960 pixels, more than the limit of 959"):
        read_image(data, max_pixels=959)


def test_listing_a_folder_a_file_a_pattern_and_a_list(tmp_path):
    for name in ("b.JPG", "a.png", "c.TiFf", ".hidden.jpg", "notes.md", "d.webp"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "e.jpeg").write_bytes(b"x")
    (tmp_path / "folder.jpg").mkdir()
    names = [file.name for file in list_images(tmp_path)]
    assert names == ["a.png", "b.JPG", "c.TiFf", "d.webp"]
    assert list_images(str(tmp_path / "b.JPG")) == [tmp_path / "b.JPG"]
    assert list_images(tmp_path / "notes.md") == [tmp_path / "notes.md"]  # named: reading says what is wrong
    assert [file.name for file in list_images(tmp_path / "[ab].*")] == ["a.png", "b.JPG"]
    assert [file.name for file in list_images(tmp_path / "**" / "*")] == [*names, "e.jpeg"]
    listing = tmp_path / "list.txt"
    listing.write_text(f"# my pictures\nsub/e.jpeg\n\n{tmp_path / 'a.png'}\nmissing.jpg\n")
    assert list_images(listing) == [tmp_path / "sub" / "e.jpeg", tmp_path / "a.png", tmp_path / "missing.jpg"]


def test_nothing_to_list_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        list_images(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"\*.jpg matches no pictures"):
        list_images(tmp_path / "*.jpg")
    with pytest.raises(FileNotFoundError, match="there is no"):
        list_images(tmp_path / "none")
    (tmp_path / "list.txt").write_text("\n# nothing\n")
    with pytest.raises(FileNotFoundError, match="names no pictures"):
        list_images(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileNotFoundError, match="not UTF-8"):
        list_images(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("files", "stems"),
    [
        (["a.jpg", "b.jpg"], ["a", "b"]),
        (["a.b.c.jpg", "a.b.jpg", "a.jpg"], ["a.b.c", "a.b", "a"]),
        (["a.jpg", "a.png", "b.png"], ["a_jpg", "a_png", "b"]),
        (["A.jpg", "a.JPG"], ["A_jpg", "a_JPG_2"]),
        (["x/a.jpg", "y/a.jpg"], ["x_a_jpg", "y_a_jpg"]),
        (["x/a.jpg", "x/a.png", "a.jpg"], ["x_a_jpg", "a_png", "a_jpg"]),
        (["a.jpg", "a.jpg"], ["a_jpg", "a_jpg_2"]),
        (["a.jpg", "a.png", "a_jpg.png"], ["a_jpg", "a_png", "a_jpg_png"]),
        ([], []),
    ],
)
def test_output_names_never_collide(files, stems):
    names = output_stems(files)
    assert len({name.casefold() for name in names}) == len(files)
    assert names == stems
