"""What is made to harm a reader: headers that promise more than there is, chains without end, values that are none."""

import io
import json
import resource
import struct
import tarfile

import cv2
import numpy as np
import pytest
import zstandard

from data_modules.shards import ShardDataset, ShardError, ShardWriter, decode_sample, encode_sample, index_tar
from data_modules.shards import index as index_module
from data_modules.shards.planes import FLOAT, _compress, _header


def npy(array, **changes):
    file = io.BytesIO()
    np.save(file, array)
    data = file.getvalue()
    for old, new in changes.items():
        data = data.replace(old.encode(), new.encode())
    return data


def png_of(height, width):
    """A PNG whose header declares a size that its 70 bytes do not hold."""
    data = bytearray(cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes())
    struct.pack_into(">II", data, 16, width, height)
    return bytes(data)


def floats(value):
    array = np.full((4, 3), value, "<f4")
    split = array.view(np.uint8).reshape(1, 4, 3, 4)
    return _compress(_header(FLOAT, (4, 3), (slice(0, 4), slice(0, 3))), [split[..., byte] for byte in range(4)])


def image(size=(4, 3)):
    return cv2.imencode(".png", np.zeros((*size, 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"png": png_of(100_000, 100_000)}, "100000 x 100000 = 10000000000 pixels, more than the limit"),
        ({"jpg": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03" + bytes(50) + b"\xff\xd9"}, "pixels, more than"),
        ({"png": image(), "parts.png": png_of(60_000, 60_000)}, "60000 x 60000 pixels, more than the limit"),
        ({"png": image(), "parts.u8.zst": zstandard.ZstdCompressor().compress(bytes(2**28))}, "begins with"),
        ({"png": image(), "depth.npy": npy(np.zeros(3, "f4"), **{"(3,), ": "(9999999, 99999,),"})}, "the header says"),
        ({"png": image(), "depth.npy": npy(np.zeros((4, 3), "f4"))[:-4]}, "44 bytes, the header says float32"),
        ({"png": image(), "depth.npy": npy(np.array([{}], object))}, "the header says object"),
        ({"png": image(), "depth.npy": b"\x93NUMPY\x01\x00\x10\x00(((((((((((((((\n"}, "not the header of an array"),
        ({"png": image(), "depth.npy": npy(np.full((4, 3), np.nan, "f4"))}, "a value is not finite"),
        ({"png": image(), "depth.npy": npy(np.full((4, 3), 1e300))}, "a value is not finite"),
        ({"png": image(), "depth.f32.zst": floats(np.inf)}, "a value is not finite"),
        ({"png": image(), "depth.npy": npy(np.zeros((40, 3), "f4"))}, "depth is 40 x 3, the sample 4 x 3"),
        ({"png": image(), "json": b"[" * 200_000}, "not JSON"),
        ({"png": image(), "json": b'{"box": [1' + b"0" * 5000 + b", 0, 0, 0]}"}, "not JSON"),
        ({"png": image(), "json": b'{"box": [1e300, 0, 0, 0]}'}, "box is not finite"),
        ({"png": image(), "json": b'{"box": [NaN, 0, 0, 0]}'}, "box is not finite"),
        ({"png": image(), "json": b'{"keypoints": [[Infinity, 0]]}'}, "keypoints is not finite"),
        ({"png": image(), "json": b'{"keypoints": [[1, 2], [3]]}'}, "keypoints is not an array of numbers"),
        ({"png": image(), "json": b'{"intrinsics": "x"}'}, "intrinsics is not an array of numbers"),
        ({"png": image(), "json": b'{"image_size": [4, 1e9]}'}, "image_size"),
        ({"png": image(), "json": b'{"people": [{"id": 1, "box": {}}]}'}, r"people\[0\].box is not an array"),
        ({"png": image(), "json": b'{"people": [{"id": 1, "box": [0,0,1,1], "area": 1e400}]}'}, "area is inf"),
    ],
)
def test_members_that_promise_too_much_or_hold_no_numbers(members, message):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ShardError, match=message):
        decode_sample(members, key="a")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes that it took"


def test_arrays_of_other_writers_keep_their_order():
    depth = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(4, 3))
    decoded = decode_sample({"png": image(), "depth.npy": npy(depth)}, key="a")["depth"]
    np.testing.assert_array_equal(decoded, depth)
    assert decoded.flags.c_contiguous and decoded.flags.writeable


def header(name, size=0, **attributes):
    info = tarfile.TarInfo(name)
    info.size = size
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def signed(block):
    """Give a header's block the checksum of what it holds."""
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def with_size(name, size):
    block = bytearray(header(name))
    block[124:136] = size
    return signed(block)


END = bytes(1024)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("a.jpg", 10**11) + END, "says 100000000000 bytes"),
        (with_size("a.jpg", b"\xff" * 12) + END, "x.tar: "),
        (with_size("a.jpg", b"\x80" + b"\x7f" * 11) + END, "x.tar: "),
        (header("a\x01b.jpg") + END, "control characters"),
        (signed(header("a.jpg").replace(b"a.jpg", b"\xff\xfe.j")) + END, "not in UTF-8"),
        (
            b"".join(header("././@LongLink", 6, type=b"L") + b"b.jpg\0".ljust(512, b"\0") for _ in range(3000)),
            "x.tar: ",
        ),
        (header("pax", 2**20, type=b"x") + b"9" * 2**20 + header("a.jpg") + END, "a header of"),
        (header("pax", 512, type=b"x") + b"20 size=-999999999\n".ljust(512, b"\0") + header("a.jpg") + END, "x.tar: "),
        (b"\x1f\x8b" + bytes(1000), "not a readable tar"),
        (b"", "x.tar: "),
    ],
)
def test_tars_that_lie_are_refused(tmp_path, content, message):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(ShardError, match=message):
        index_tar(path)
    assert not (tmp_path / "x.tar.index").exists()


def test_a_json_member_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "MAX_JSON", 100)
    path = tmp_path / "x.tar"
    path.write_bytes(header("a.json", 512) + b" " * 512 + END)
    with pytest.raises(ShardError, match="512 bytes of JSON, more than 100"):
        index_tar(path)


def test_a_bad_sample_is_its_own_error_and_no_other(tmp_path, make_sample):
    good = encode_sample(make_sample("good"))
    with ShardWriter(tmp_path) as writer:
        writer.write_encoded("bad", {**good, "json": json.dumps({"key": "bad"}).encode(), "jpg": png_of(10**5, 10**5)})
        writer.write_encoded("good", good)
    samples = ShardDataset(tmp_path)
    with pytest.raises(ShardError, match=r"samples-000000.tar: sample 'bad', member 'jpg': does not decode"):
        samples[0]
    assert samples[1]["key"] == "good"
