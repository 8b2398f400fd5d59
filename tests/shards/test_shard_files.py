"""Shard sets on disk: what is written, read back from any process, continued, and refused when damaged."""

import hashlib
import json
import multiprocessing
import pickle
import struct
import tarfile
import zlib

import numpy as np
import pytest
from torch.utils.data import DataLoader

from data_modules.shards import (
    ShardDataset,
    ShardError,
    ShardWriter,
    StorageError,
    encode_sample,
    index_tar,
    make_manifest,
    read_manifest,
)
from data_modules.shards import reader as reader_module
from data_modules.shards.format import manifest_digest
from data_modules.shards.index import index_path, read_index

INFO = {"licence": "CC0-1.0", "source": "spheres", "generator": {"seed": 1}}


@pytest.fixture(scope="module")
def encoded(make_sample):
    return {f"person_{i}": encode_sample(make_sample(f"person_{i}", seed=i)) for i in range(7)}


def write_set(folder, encoded, **options):
    with ShardWriter(folder, "synth", samples_per_shard=3, info=INFO, **options) as writer:
        for key, members in encoded.items():
            writer.write_encoded(key, members)
    return folder


@pytest.fixture
def folder(tmp_path, encoded):
    return write_set(tmp_path / "set", encoded)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_manifest_says_what_is_there(folder):
    manifest = read_manifest(folder)
    tars = sorted(folder.glob("*.tar"))
    assert [path.name for path in tars] == [f"synth-{i:06d}.tar" for i in range(3)]
    assert [shard["samples"] for shard in manifest["shards"]] == [3, 3, 1]
    for shard, path in zip(manifest["shards"], tars):
        assert shard["name"] == path.name and shard["bytes"] == path.stat().st_size
        assert shard["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert shard["index_sha256"] == hashlib.sha256(index_path(path).read_bytes()).hexdigest()
    assert manifest["samples"] == 7 and manifest["bytes"] == sum(path.stat().st_size for path in tars)
    assert manifest["image_sizes"] == [{"height": 64, "width": 48, "samples": 7}]
    assert manifest["fields"]["normals"] == {"samples": 7, "members": ["normals.q14.zst"]}
    assert manifest["fields"]["keypoints"] == {"samples": 7, "members": ["json"]}
    assert manifest["normals_frame"] == "opengl" and manifest["schemas"]["keypoints"] == "sapiens2-308"
    assert {name: manifest[name] for name in INFO} == INFO
    assert manifest["digest"] == manifest_digest(manifest)
    assert sorted(path.name for path in folder.iterdir() if ".tmp" in path.name) == []


def test_equal_samples_give_equal_files(tmp_path, encoded, folder):
    backwards = {key: dict(reversed(members.items())) for key, members in encoded.items()}
    assert contents(folder) == contents(write_set(tmp_path / "again", backwards))


def test_tar_is_plain_and_without_time_or_owner(folder):
    with tarfile.open(folder / "synth-000000.tar", "r:") as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:2]] == ["person_0.albedo.u8.zst", "person_0.alpha.u8.zst"]
    for member in members:
        assert member.isreg() and (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
        assert (member.uname, member.gname, member.pax_headers) == ("", "", {})


def test_samples_come_back_in_order(folder, encoded, make_sample):
    samples = ShardDataset(folder)
    assert len(samples) == 7
    assert [samples.key(i) for i in range(7)] == list(encoded)
    assert [samples[i]["key"] for i in (5, 0, 6, 3)] == ["person_5", "person_0", "person_6", "person_3"]
    assert samples.read_encoded(4) == encoded["person_4"]
    np.testing.assert_array_equal(samples[-1]["parts"], make_sample("x", seed=6)["parts"])
    for outside in (7, -8):
        with pytest.raises(IndexError, match="which has 7"):
            samples[outside]


def test_fields_limit_what_is_read(folder, monkeypatch):
    read = []
    decode = reader_module.decode_sample
    monkeypatch.setattr(reader_module, "decode_sample", lambda m, *a, **k: (read.append(set(m)), decode(m, *a, **k))[1])
    sample = ShardDataset(folder / "manifest.json", fields=("image", "depth", "box"))[2]
    assert set(sample) == {"key", "image", "depth", "box"}
    assert read == [{"jpg", "depth.q16.zst", "json"}]


def test_required_fields(tmp_path, encoded):
    members = {key: {"jpg": value["jpg"], "json": value["json"]} for key, value in encoded.items()}
    folder = write_set(tmp_path / "set", members)
    with pytest.raises(ShardError, match=r"manifest.json: no sample has 'normals'; the set has box, image"):
        ShardDataset(folder, fields=("image", "normals"), required=("image", "normals"))
    assert set(ShardDataset(folder, fields=("image", "normals"))[0]) == {"key", "image"}
    with pytest.raises(ShardError, match="unknown field 'normal'"):
        ShardDataset(folder, fields=("normal",))


def test_pickled_data_set_opens_its_own_files(folder):
    samples = ShardDataset(folder, fields=("parts",))
    first = samples[0]["parts"]
    copy = pickle.loads(pickle.dumps(samples))
    assert samples._state.open and copy._state is None
    np.testing.assert_array_equal(copy[0]["parts"], first)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_loader_processes_read_the_same(folder, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    samples = ShardDataset(folder, fields=("parts", "normals"))
    truth = [samples[i] for i in range(7)]
    loader = DataLoader(samples, batch_size=None, num_workers=1, multiprocessing_context=method)
    for decoded, expected in zip(loader, truth, strict=True):
        assert decoded["key"] == expected["key"]
        np.testing.assert_array_equal(np.asarray(decoded["parts"]), expected["parts"])
        np.testing.assert_array_equal(np.asarray(decoded["normals"]), expected["normals"])


def test_few_files_stay_open(folder, monkeypatch):
    monkeypatch.setattr(reader_module, "MAX_OPEN_SHARDS", 2)
    samples = ShardDataset(folder, fields=("parts",))
    for i in (0, 3, 6, 1, 4):
        assert samples[i]["key"] == f"person_{i}"
        assert len(samples._state.open) <= 2
    assert set(samples._state.open) == {0, 1}


def test_a_failed_run_leaves_no_manifest_and_is_continued_to_the_same_bytes(tmp_path, encoded, folder):
    target = tmp_path / "broken"
    with pytest.raises(RuntimeError, match="power"), ShardWriter(target, "synth", 3, INFO) as writer:
        for key in list(encoded)[:5]:
            writer.write_encoded(key, encoded[key])
        raise RuntimeError("power cut")
    assert sorted(contents(target)) == ["synth-000000.tar", "synth-000000.tar.index"]
    with pytest.raises(ShardError, match="is there already"):
        ShardWriter(target, "synth", 3)
    with ShardWriter(target, "synth", 3, INFO, resume=True) as writer:
        assert writer.count == 3
        for key in list(encoded)[writer.count :]:
            writer.write_encoded(key, encoded[key])
    assert contents(target) == contents(folder)


def test_continuing_a_finished_set_writes_its_short_shard_again(folder, encoded):
    before = contents(folder)
    writer = ShardWriter(folder, "synth", 3, INFO, resume=True)
    assert writer.count == 6 and not (folder / "manifest.json").exists()
    writer.write_encoded("person_6", encoded["person_6"])
    assert writer.count == 7
    writer.close()
    assert contents(folder) == before


def test_continuing_refuses_what_does_not_fit(folder):
    with pytest.raises(ShardError, match=r"synth-000000.tar: holds 3 samples, samples_per_shard is 2"):
        ShardWriter(folder, "synth", 2, resume=True)
    (folder / "synth-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"synth-000002.tar: .* synth-000001.tar is missing"):
        ShardWriter(folder, "synth", 3, resume=True)


@pytest.mark.parametrize(
    ("key", "members", "message"),
    [
        ("person_1", {"jpg": b"x"}, "'person_1' is there already"),
        ("a b/c", {"Jpg": b"x"}, "extension 'Jpg' must be like 'jpg'"),
        ("a", {"x/../../y": b"x"}, "must be like"),
        ("a", {}, "no members"),
        ("/a", {"jpg": b"x"}, "not usable"),
        ("a\n", {"jpg": b"x"}, "not usable"),
    ],
)
def test_writer_refuses_names_that_a_tar_or_webdataset_cannot_carry(tmp_path, key, members, message):
    with ShardWriter(tmp_path, samples_per_shard=9) as writer:
        writer.write_encoded("person_1", {"jpg": b"0"})
        with pytest.raises(ShardError, match=message):
            writer.write_encoded(key, members)
    assert read_manifest(tmp_path)["samples"] == 1


def test_long_names_and_unicode(tmp_path):
    keys = ["日本/" + "long_" * 30 + str(i) for i in range(3)]
    with ShardWriter(tmp_path) as writer:
        for key in keys:
            writer.write_encoded(key, {"parts.u8.zst": key.encode()})
    samples = ShardDataset(tmp_path, required=())
    assert [samples.key(i) for i in range(3)] == keys
    assert samples.read_encoded(1) == {"parts.u8.zst": keys[1].encode()}
    before = index_path(tmp_path / "samples-000000.tar").read_bytes()
    assert index_tar(tmp_path / "samples-000000.tar").read_bytes() == before


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def test_a_flipped_byte_is_named(folder):
    path = folder / "synth-000001.tar"
    entry = next(e for e in read_index(index_path(path)).entries(2) if e.extension == "normals.q14.zst")
    flip(path, entry.offset + entry.size // 2)
    samples = ShardDataset(folder)
    with pytest.raises(
        ShardError, match=r"synth-000001.tar: sample 'person_5', member 'normals.q14.zst': crc32 is [0-9a-f]{8}"
    ):
        samples[5]
    with pytest.raises(ShardError, match="person_5"):
        samples.read_encoded(5)
    assert samples[4]["key"] == "person_4"
    assert "normals" not in ShardDataset(folder, fields=("image",))[5]


def test_a_damaged_member_with_a_right_checksum_is_named(tmp_path, encoded):
    members = encoded["person_0"] | {"jpg": encoded["person_0"]["jpg"][:300]}
    folder = write_set(tmp_path / "set", {"person_0": members})
    with pytest.raises(ShardError, match=r"synth-000000.tar: sample 'person_0', member 'jpg': does not decode"):
        ShardDataset(folder)[0]


def test_a_cut_off_tar(folder):
    path = folder / "synth-000000.tar"
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(ShardError, match=r"synth-000000.tar: \d+ bytes, its index says \d+, .* cut off"):
        ShardDataset(folder)[0]
    assert ShardDataset(folder)[3]["key"] == "person_3"


def test_a_tar_cut_off_while_it_is_open(folder):
    samples = ShardDataset(folder)
    assert samples[0]["key"] == "person_0"
    path = folder / "synth-000000.tar"
    with path.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(ShardError, match="sample 'person_2', member"):
        samples[2]


def test_a_missing_shard_or_index(folder):
    (folder / "synth-000002.tar").unlink()
    index_path(folder / "synth-000001.tar").unlink()
    with pytest.raises(StorageError, match=r"synth-000002.tar: the shard is missing, although the manifest names it"):
        ShardDataset(folder)[6]
    with pytest.raises(StorageError, match=r"synth-000001.tar.index: no such file"):
        ShardDataset(folder)[3]


def test_the_index_of_another_tar(folder):
    first, second = (index_path(folder / f"synth-00000{i}.tar") for i in (0, 1))
    second.write_bytes(first.read_bytes())
    with pytest.raises(ShardError, match=r"synth-000001.tar: .*(belong to another|belongs to another)"):
        ShardDataset(folder)[3]


def test_any_flipped_byte_of_an_index_is_noticed(folder):
    path = index_path(folder / "synth-000000.tar")
    whole = path.read_bytes()
    for offset in [*range(64), *range(64, len(whole), 11)]:
        flip(path, offset)
        with pytest.raises(ShardError, match=r"synth-000000.tar.index: "):
            ShardDataset(folder)[0]
        path.write_bytes(whole)
    for size in (0, 10, 64, len(whole) - 8):
        path.write_bytes(whole[:size])
        with pytest.raises(ShardError, match=r"synth-000000.tar.index: "):
            ShardDataset(folder)[0]


def test_an_index_of_a_newer_version(folder):
    path = index_path(folder / "synth-000000.tar")
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8, 3)
    path.write_bytes(data)
    with pytest.raises(ShardError, match="index version 3, this s2kit reads versions up to 2; update"):
        ShardDataset(folder)[0]


def test_an_index_that_points_out_of_its_tar(folder):
    path = index_path(folder / "synth-000000.tar")
    data = bytearray(path.read_bytes())
    members_at = 64 + 2 * 8 * 4
    struct.pack_into("<Q", data, members_at, 10**9)
    struct.pack_into("<I", data, 12, zlib.crc32(data[16:]))
    path.write_bytes(data)
    with pytest.raises(ShardError, match="contradicts itself"):
        ShardDataset(folder)[0]


def edit_manifest(folder, digest=True, **changes):
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    if digest:
        manifest["digest"] = manifest_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "manifest version 2, this s2kit reads versions up to 1; update s2kit"),
        ({"version": "1"}, "manifest version '1'"),
        ({"format": "other"}, "not a manifest of shards"),
        ({"normals_frame": "maya"}, "normals_frame 'maya' is not known; it must be one of opengl, opencv"),
        ({"shards": [{"name": "../x.tar", "samples": 1, "bytes": 1}]}, r"'../x.tar' leaves the folder"),
        ({"shards": [{"name": "x.tar"}]}, "not complete"),
        ({"licence": "all mine", "digest": False}, "its digest does not fit its content"),
    ],
)
def test_a_manifest_that_cannot_be_used(folder, changes, message):
    edit_manifest(folder, **changes)
    with pytest.raises(ShardError, match=r"manifest.json: .*" + message):
        ShardDataset(folder)


def test_no_manifest(tmp_path):
    with pytest.raises(StorageError, match=r"manifest.json: no such file; a shard set is a folder with manifest.json"):
        ShardDataset(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match="not a readable manifest"):
        ShardDataset(tmp_path)


def test_a_set_says_the_frame_of_its_normals(folder, tmp_path, encoded):
    kit = ShardDataset(folder)[0]["normals"]
    silent = {}
    for key, members in encoded.items():
        record = json.loads(members["json"])
        del record["normals_frame"]
        silent[key] = members | {"json": json.dumps(record).encode()}
    other = write_set(tmp_path / "opencv", silent)
    (other / "manifest.json").unlink()
    make_manifest(other, {"normals_frame": "opencv"})
    np.testing.assert_array_equal(ShardDataset(other)[0]["normals"], kit * (1, -1, -1))


def test_make_manifest_repeats_what_the_writer_said(folder):
    before = contents(folder)
    (folder / "manifest.json").unlink()
    index_path(folder / "synth-000001.tar").unlink()
    make_manifest(folder, INFO)
    assert contents(folder) == before
    flip(folder / "synth-000002.tar", 600)
    with pytest.raises(ShardError, match=r"synth-000002.tar: sample 'person_6', member 'albedo.u8.zst'"):
        make_manifest(folder, INFO)
