"""Tars of other programs are indexed and read, the webdataset package reads ours, unsafe tars are refused."""

import io
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from data_modules.shards import ShardDataset, ShardError, ShardWriter, encode_sample, index_tar, make_manifest
from data_modules.shards.index import index_path, read_index

webdataset = pytest.importorskip("webdataset", reason="part of the extra 'test'")


def add(tar, name, data=b"", **attributes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    tar.addfile(info, io.BytesIO(data))


def pack(path, members, form=tarfile.GNU_FORMAT, **attributes):
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            add(tar, name, data, **attributes)
    return path


def test_webdataset_reads_our_shards(tmp_path, make_sample):
    members = {f"train/person_{i}": encode_sample(make_sample(f"train/person_{i}", seed=i)) for i in range(3)}
    with ShardWriter(tmp_path) as writer:
        for key, sample in members.items():
            writer.write_encoded(key, sample)
    url = str(tmp_path / "samples-000000.tar")
    read = list(webdataset.WebDataset(url, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in read] == list(members)
    for sample, encoded in zip(read, members.values()):
        assert {name: data for name, data in sample.items() if not name.startswith("__")} == encoded
    image = next(iter(webdataset.WebDataset(url, shardshuffle=False).decode("rgb8")))["jpg"]
    np.testing.assert_array_equal(image.shape, (64, 48, 3))


def test_we_read_webdatasets_shards(tmp_path, make_sample):
    sample = make_sample("a")
    with webdataset.TarWriter(str(tmp_path / "one.tar")) as writer:
        for key in ("a", "b"):
            writer.write({"__key__": key, "png": sample["image"], "parts.npy": sample["parts"]})
    make_manifest(tmp_path, {"licence": "CC0-1.0"})
    samples = ShardDataset(tmp_path)
    assert [samples.key(i) for i in range(len(samples))] == ["a", "b"]
    assert samples.manifest["fields"]["parts"] == {"samples": 2, "members": ["parts.npy"]}
    np.testing.assert_array_equal(samples[1]["image"], sample["image"])
    np.testing.assert_array_equal(samples[1]["parts"], sample["parts"])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_tarfile_is_indexed_in_one_pass(tmp_path, form):
    long = "deep.folder/" + "x" * 85
    members = [
        (f"./{long}/a.jpg", b"1" * 700),
        (f"./{long}/a.JSON", b"{}"),
        ("b.c.d", b""),
        ("README", b"no extension"),
    ]
    path = tmp_path / "plain.tar"
    with tarfile.open(path, "w", format=form) as tar:
        add(tar, "folder", type=tarfile.DIRTYPE)
        for name, data in members:
            add(tar, name, data, mtime=1.5 if form == tarfile.PAX_FORMAT else 1)
    assert index_tar(path) == index_path(path)
    index = read_index(index_path(path))
    assert [index.key(i) for i in range(len(index))] == [f"{long}/a", "b"]
    assert [entry.extension for entry in index.entries(0)] == ["jpg", "json"]
    content = path.read_bytes()
    entry = index.entries(0)[0]
    assert content[entry.offset : entry.offset + entry.size] == b"1" * 700
    assert (index.entries(1)[0].extension, index.entries(1)[0].size) == ("c.d", 0)
    assert index.tar_bytes == len(content)


@pytest.mark.parametrize(
    ("name", "attributes", "message"),
    [
        ("/etc/passwd.txt", {}, "leads out of the folder"),
        ("a/../../b.jpg", {}, "leads out of the folder"),
        ("a.jpg", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "not a plain file"),
        ("a.jpg", {"type": tarfile.LNKTYPE, "linkname": "b"}, "not a plain file"),
        ("a.jpg", {"type": tarfile.CHRTYPE}, "not a plain file"),
        ("a.jpg", {"type": tarfile.FIFOTYPE}, "not a plain file"),
    ],
)
def test_unsafe_tars_are_refused(tmp_path, name, attributes, message):
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "first.jpg", b"x")
        add(tar, name, **attributes)
    with pytest.raises(ShardError, match=rf"bad.tar: member '{name}' .*{message}"):
        index_tar(path)
    assert not index_path(path).exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jpg", "b.jpg", "a.json"], "members of sample 'a' do not follow one another"),
        (["a.jpg", "a.jpg"], "sample 'a' has two members 'jpg'"),
    ],
)
def test_members_must_stand_together_and_once(tmp_path, names, message):
    path = pack(tmp_path / "x.tar", [(name, b"") for name in names])
    with pytest.raises(ShardError, match=message):
        index_tar(path)


@pytest.mark.skipif(sys.platform == "darwin", reason="its tar does not sort")
def test_an_unsorted_tar_comes_with_the_line_that_sorts_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["b.jpg", "a.jpg", "a-b.jpg", "b.json", "sub/a.jpg", "a.json", "ab.jpg"]
    path = pack(tmp_path / "my tar.tar", [(name, b"{}") for name in names])
    with pytest.raises(ShardError) as caught:
        index_tar(path)
    subprocess.run(str(caught.value).partition("sort the tar: ")[2], shell=True, check=True)
    index = read_index(index_tar(path))
    assert [index.key(i) for i in range(len(index))] == ["a-b", "a", "ab", "b", "sub/a"]
    assert [entry.extension for entry in index.entries(3)] == ["jpg", "json"]


def test_cut_off_and_damaged_tars_are_not_indexed(tmp_path):
    path = pack(tmp_path / "x.tar", [(f"{i}.jpg", bytes([i]) * 1300) for i in range(4)])
    whole = path.read_bytes()
    one = 512 + 1536
    for size in (0, 100, 512, one - 100, one, 2 * one + 300, 3 * one, 4 * one):
        path.write_bytes(whole[:size])
        with pytest.raises(ShardError, match=r"x.tar: "):
            index_tar(path)
    damaged = bytearray(whole)
    damaged[2 * one + 5] ^= 1  # in the header of the third member
    path.write_bytes(damaged)
    with pytest.raises(ShardError, match="no end mark"):
        index_tar(path)


def test_what_is_no_tar(tmp_path):
    with pytest.raises(ShardError, match=r"missing.tar: no such file"):
        index_tar(tmp_path / "missing.tar")
    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w:gz") as tar:
        add(tar, "a.jpg", b"x")
    with pytest.raises(ShardError, match=r"packed.tar: not a readable tar"):
        index_tar(packed)
    with pytest.raises(ShardError, match=r"no \*.tar in it"):
        make_manifest(tmp_path / "nowhere")
