"""Samples to members and back: what is exact, what is close, what is refused."""

import io
import json
import struct

import cv2
import numpy as np
import pytest
import zstandard

from data_modules.shards import FIELDS, ShardError, decode_sample, encode_sample
from data_modules.shards import directions as directions_module
from data_modules.shards import planes as planes_module
from data_modules.shards.planes import (
    PlanesError,
    decode_planes,
    encode_depth,
    encode_float,
    encode_normals,
    encode_plain,
    encode_predicted,
)


def degrees_between(a, b):
    cross = np.linalg.norm(np.cross(a.astype(np.float64), b.astype(np.float64)), axis=-1)
    return np.degrees(np.arctan2(cross, (a.astype(np.float64) * b).sum(-1)))


def random_directions(shape, seed=0):
    normals = np.random.default_rng(seed).standard_normal((*shape, 3))
    return (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32)


def test_every_field_comes_back(make_sample):
    sample = make_sample("person_1")
    members = encode_sample(sample)
    decoded = decode_sample(members)
    assert set(decoded) == set(sample) == {"key", *FIELDS} - {"people"}
    assert list(members) == sorted(members)
    for name in ("alpha", "foreground", "albedo", "parts", "intrinsics", "box", "keypoints", "visibility"):
        np.testing.assert_array_equal(decoded[name], sample[name], err_msg=name)
    for name in set(FIELDS) - {"people", "meta"}:
        assert decoded[name].dtype == sample[name].dtype, name
        assert decoded[name].flags.c_contiguous and decoded[name].flags.writeable, name
    assert decoded["meta"] == sample["meta"] and decoded["key"] == "person_1"
    inside = sample["depth"] > 0
    assert degrees_between(sample["normals"], decoded["normals"])[inside].max() < 0.03
    np.testing.assert_allclose(np.linalg.norm(decoded["normals"][inside], axis=-1), 1, atol=1e-6)
    assert not decoded["normals"][~inside].any() and not decoded["depth"][~inside].any()
    assert np.abs(decoded["depth"] - sample["depth"]).max() <= 2.0**-16 + 1e-6
    assert np.abs(decoded["image"].astype(int) - sample["image"]).mean() < 3


def test_equal_samples_give_equal_bytes_whatever_the_order_of_fields(make_sample):
    sample = make_sample("a", seed=3)
    backwards = dict(reversed(make_sample("a", seed=3).items()))
    backwards["meta"] = dict(reversed(backwards["meta"].items()))
    assert encode_sample(sample) == encode_sample(backwards)
    assert encode_sample(sample) != encode_sample(make_sample("a", seed=4))


def test_json_is_canonical(make_sample):
    data = encode_sample(make_sample("a"))["json"]
    record = json.loads(data)
    assert json.dumps(record, sort_keys=True, separators=(",", ":")).encode() == data
    assert record["image_size"] == [64, 48] and record["normals_frame"] == "opengl"
    assert record["box"] == [3.1, 10.25, 40.9, 60.2]  # the shortest decimals, not 3.0999999046


def test_only_asked_fields_are_decoded(make_sample):
    members = encode_sample(make_sample("a"))
    members["normals.q14.zst"] = b"damaged"
    sample = decode_sample(members, ("image", "box"))
    assert set(sample) == {"key", "image", "box"}
    with pytest.raises(ShardError, match=r"sample 'a', member 'normals.q14.zst'"):
        decode_sample(members, ("normals",))
    with pytest.raises(ShardError, match=r"unknown field 'normal'; the fields are image, alpha"):
        decode_sample(members, ("normal",))


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.96), (12, 0.06), (13, 0.03), (14, 0.015), (16, 0.004)])
def test_normals_of_all_directions(bits, limit):
    normals = random_directions((61, 83))
    axes = np.concatenate([np.eye(3), -np.eye(3), [[1, 1, -1], [-1, 1, -1], [1, 0, -1], [0, -1, -1]]])
    normals[0, : len(axes)] = axes / np.linalg.norm(axes, axis=-1, keepdims=True)
    normals[20:30, 10:60] = 0
    header, decoded = decode_planes(encode_normals(normals, bits))
    assert header.bits == bits and decoded.shape == normals.shape and decoded.dtype == np.float32
    undefined = ~normals.any(-1)
    np.testing.assert_array_equal(~decoded.any(-1), undefined)
    assert not np.signbit(decoded[undefined]).any()
    assert degrees_between(normals, decoded)[~undefined].max() < limit


def test_normals_to_the_camera_take_the_finer_code():
    """Stereographic codes reach down to z = -0.597 and are at most 0.02 degrees off, but for (0, 0, 1) itself."""
    normals = random_directions((90, 80))
    normals[..., 2] = np.abs(normals[..., 2])
    normals[0, :4] = [[0, 0, 1], [0.802, 0, -0.5973], [0, -0.802, -0.5973], [-0.802, 0, -0.5973]]
    normals[20:30, 10:60] = 0
    header, decoded = decode_planes(encode_normals(normals))
    assert (header.coding, header.bits) == (planes_module.STEREOGRAPHIC, 14)
    undefined = ~normals.any(-1)
    assert not decoded[undefined].any() and not np.signbit(decoded[undefined]).any()
    assert degrees_between(normals, decoded)[0, 0] < 0.03
    assert degrees_between(normals, decoded)[~undefined][1:].max() < 0.02
    np.testing.assert_allclose(np.linalg.norm(decoded[~undefined], axis=-1), 1, atol=1e-6)
    for lowest in ([0.79, 0, -0.613], [0, 0, -1]):
        normals[0, 0] = lowest
        header, decoded = decode_planes(encode_normals(normals))
        assert (header.coding, header.bits) == (planes_module.OCTAHEDRAL, 13)
        assert degrees_between(normals, decoded)[~undefined].max() < 0.03


def test_labels_survive_the_strips_of_the_decoder(monkeypatch):
    normals = random_directions((40, 30))
    depth = np.random.default_rng(1).uniform(0.5, 2, (40, 30)).astype(np.float32)
    members = [encode_normals(normals), encode_normals(np.abs(normals)), encode_depth(depth)]
    whole = [decode_planes(data)[1] for data in members]
    monkeypatch.setattr(directions_module, "_STRIP", 95)
    monkeypatch.setattr(planes_module, "_STRIP", 95)
    for data, expected in zip(members, whole, strict=True):
        np.testing.assert_array_equal(decode_planes(data)[1], expected)


def test_results_do_not_share_memory():
    first = decode_planes(encode_normals(random_directions((9, 8), seed=1)))[1]
    copy = first.copy()
    decode_planes(encode_normals(random_directions((9, 8), seed=2)))
    np.testing.assert_array_equal(first, copy)


def test_normals_need_not_have_unit_length():
    normals = random_directions((9, 9))
    decoded = decode_planes(encode_normals(normals * np.float32(7.5)))[1]
    assert degrees_between(normals, decoded).max() < 0.03


def test_wildest_jumps_do_not_overflow():
    """Codes at both ends next to each other: residuals of four times half the range."""
    corners = np.array([[1, 1e-3, 0], [-1, -1e-3, 0], [0, 0, -1], [0, 1, 0], [0, -1, 0]], np.float32)
    normals = corners[np.random.default_rng(0).integers(0, 5, (200, 150))]
    for bits in (13, 14, 16):
        decoded = decode_planes(encode_normals(normals, bits))[1]
        assert degrees_between(normals, decoded).max() < 0.1
    edge = np.array([[0.802, 0, -0.5973], [-0.802, 0, -0.5973], [0, 0, 0], [0, 0.802, -0.5973]], np.float32)
    normals = edge[np.random.default_rng(0).integers(0, 4, (200, 150))]
    header, decoded = decode_planes(encode_normals(normals))
    assert header.coding == planes_module.STEREOGRAPHIC and degrees_between(normals, decoded).max() < 0.02
    depth = np.random.default_rng(0).choice(np.array([0, 0.5, 2.49], np.float32), (200, 150))
    np.testing.assert_allclose(decode_planes(encode_depth(depth))[1], depth, atol=2e-5)
    # Net wraps pile up to sums that float32 cannot hold.
    steps = np.where(np.add.outer(np.arange(700), np.arange(500)) % 3, 0.5, 2.49).astype(np.float32)
    steps[::2] *= steps[::2] > 1
    np.testing.assert_allclose(decode_planes(encode_depth(steps))[1], steps, atol=2e-5)


def test_depth_of_any_range():
    rng = np.random.default_rng(0)
    for far, limit in ((1.5, 2.0**-16), (3.0, 2.5e-5), (100.0, 8e-4)):
        depth = rng.uniform(0.3, far, (33, 40)).astype(np.float32)
        depth[5:9] = 0
        decoded = decode_planes(encode_depth(depth))[1]
        assert np.abs(decoded - depth).max() <= limit + 1e-6
        assert (decoded == 0).sum() == (depth == 0).sum() == 4 * 40


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (200, 3), (37, 41, 3), (16, 9, 4)])
def test_bytes_and_floats_are_lossless(shape):
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for encode in (encode_plain, encode_predicted):
        np.testing.assert_array_equal(decode_planes(encode(values))[1], values)
    floats = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(decode_planes(encode_float(floats))[1], floats)


def test_predicted_bytes_in_strips(monkeypatch):
    """A strip is as high as its sums fit in 31 bits; here a few rows stand for the 8 million pixels it takes."""
    values = np.random.default_rng(0).integers(0, 256, (50, 20)).astype(np.uint8)
    data = encode_predicted(values)
    monkeypatch.setattr(planes_module, "_MAX_SUM", 255 * 20 * 7)
    np.testing.assert_array_equal(decode_planes(data)[1], values)


def test_only_the_region_that_is_not_zero_is_stored():
    labels = np.zeros((400, 300), np.uint8)
    labels[100:120, 50:80] = np.random.default_rng(0).integers(1, 29, (20, 30))
    header, decoded = decode_planes(encode_plain(labels))
    assert (header.top, header.left, header.rows, header.columns) == (100, 50, 20, 30)
    np.testing.assert_array_equal(decoded, labels)


def test_empty_labels(make_sample):
    sample = {"key": "empty", "image": np.zeros((8, 6, 3), np.uint8)}
    for name in ("alpha", "normals", "depth", "albedo", "parts"):
        sample[name] = np.zeros_like(make_sample("a")[name][:8, :6])
    decoded = decode_sample(encode_sample(sample))
    for name in ("alpha", "normals", "depth", "albedo", "parts"):
        np.testing.assert_array_equal(decoded[name], sample[name])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("normals", np.full((64, 48, 3), np.nan, np.float32), "normals must be finite"),
        ("depth", np.full((64, 48), -1, np.float32), "not negative"),
        ("depth", np.ones((64, 48), np.float64), r"depth is float64 \(64, 48\), it must be float32"),
        ("parts", np.ones((48, 64), np.uint8), r"parts is uint8 \(48, 64\), it must be uint8 \(64, 48\)"),
        ("image", [[0]], "image is list, it must be uint8"),
        ("keypoints", np.zeros((308, 3), np.float32), r"keypoints has shape \(308, 3\)"),
        ("meta", {"x": float("nan")}, "not writable as JSON"),
        ("normal", np.zeros((64, 48, 3), np.float32), "unknown field 'normal'"),
        ("key", "a.b", "sample key 'a.b' is not usable"),
        ("key", "../a", "not usable"),
        ("key", "", "not usable"),
    ],
)
def test_what_cannot_be_stored_is_refused(make_sample, field, value, message):
    sample = make_sample("a") | {field: value}
    with pytest.raises(ShardError, match=message):
        encode_sample(sample)


def test_frames_are_turned_into_the_kits(make_sample):
    members = encode_sample(make_sample("a"))
    kit = decode_sample(members)["normals"]
    record = json.loads(members["json"])
    for frame, signs in {"opengl": (1, 1, 1), "opencv": (1, -1, -1), "directx": (1, -1, 1)}.items():
        members["json"] = json.dumps(record | {"normals_frame": frame}).encode()
        np.testing.assert_array_equal(decode_sample(members)["normals"], kit * signs)
    # The sample's own word counts more than the set's, which counts where the sample says nothing.
    np.testing.assert_array_equal(decode_sample(members, normals_frame="opencv")["normals"], kit * (1, -1, 1))
    del record["normals_frame"]
    members["json"] = json.dumps(record).encode()
    turned = decode_sample(members, normals_frame="opencv")["normals"]
    np.testing.assert_array_equal(turned, kit * (1, -1, -1))
    assert not np.signbit(turned[~turned.any(-1)]).any()
    with pytest.raises(ShardError, match=r"normals_frame 'blender' is not known; it must be one of opengl"):
        decode_sample(members, normals_frame="blender")


def test_plain_members_of_other_writers(make_sample):
    sample = make_sample("a")

    def npy(array):
        file = io.BytesIO()
        np.save(file, array)
        return file.getvalue()

    members = {
        "png": cv2.imencode(".png", sample["image"][..., ::-1])[1].tobytes(),
        "parts.png": cv2.imencode(".png", sample["parts"])[1].tobytes(),
        "alpha.png": cv2.imencode(".png", sample["alpha"])[1].tobytes(),
        "normals.npy": npy(sample["normals"]),
        "depth.npy": npy(sample["depth"].astype(np.float64)),
        "cls": b"7",
    }
    decoded = decode_sample(members, key="a")
    assert set(decoded) == {"key", "image", "parts", "alpha", "normals", "depth"}
    for name in set(decoded) - {"key"}:
        np.testing.assert_array_equal(decoded[name], sample[name])
        assert decoded[name].dtype == sample[name].dtype


def test_sizes_must_agree(make_sample):
    members = encode_sample(make_sample("a"))
    members["depth.q16.zst"] = encode_sample(make_sample("a", size=(48, 64)))["depth.q16.zst"]
    with pytest.raises(ShardError, match=r"sample 'a': depth is 48 x 64, the sample 64 x 48"):
        decode_sample(members)
    assert "image" in decode_sample(members, ("image", "normals"))


def corrupt_header(position, form, value):
    content = bytearray(zstandard.ZstdDecompressor().decompress(encode_plain(np.ones((5, 4), np.uint8))))
    struct.pack_into(form, content, position, value)
    return zstandard.ZstdCompressor().compress(bytes(content))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "zstd"),
        (b"not zstd at all", "zstd"),
        (zstandard.ZstdCompressor().compress(b"short"), "shorter than its header"),
        (encode_plain(np.ones((50, 40), np.uint8))[:-5], "zstd"),
        (corrupt_header(0, "<4s", b"XXXX"), "begins with b'XXXX'"),
        (corrupt_header(4, "<B", 9), "coding version 9"),
        (corrupt_header(5, "<B", 77), "unknown coding 77"),
        (corrupt_header(6, "<B", 200), "with 200 channels"),
        (corrupt_header(8, "<I", 2**31), "pixels; 1 to"),
        (corrupt_header(16, "<I", 3), "leaves the 5 x 4"),
        (corrupt_header(24, "<I", 4), "bytes where its header needs"),
    ],
)
def test_damaged_members_are_refused(data, message):
    with pytest.raises(PlanesError, match=message):
        decode_planes(data)


def test_a_promise_of_gigabytes_is_refused_before_allocating(monkeypatch):
    bomb = zstandard.ZstdCompressor().compress(bytes(80_000_000))
    assert len(bomb) < 20_000
    monkeypatch.setattr(planes_module, "_local", None)  # the decompressor of whole frames must not be reached
    with pytest.raises(PlanesError, match="begins with"):
        decode_planes(bomb)
