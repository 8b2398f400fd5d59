"""What verify finds, and that it finds nothing in sound sets."""

import io
import json
import tarfile

import numpy as np
import pytest

from data_modules.shards import ShardDataset, ShardError, ShardWriter, encode_sample, make_manifest
from data_modules.shards.codecs import EXTENSIONS
from data_modules.shards.format import canonical_json, manifest_digest
from data_modules.shards.index import index_path, read_index
from data_modules.verification import verify

SIZE = (48, 40)
SCHEMAS = {"keypoints": "coco-17", "parts": "lip-20"}


def check(folder, **options):
    return verify(folder, workers=1, progress=False, **options)


def texts(report):
    return [f"{problem.shard}/{problem.sample}: {problem.text}" for problem in report.problems]


# ------------------------------------------------------------------------------------------------------------ verify


def test_a_sound_set(sample, make_set):
    folder = make_set([sample(i) for i in range(20)])
    report = check(folder)
    assert (report.shards, report.samples, report.people, report.problems) == (3, 20, 40, [])
    assert report.size == sum(path.stat().st_size for path in folder.glob("*.tar"))
    parallel = verify(folder, workers=2, progress=False)
    assert parallel == report


def damage(path, offset, value=None):
    data = bytearray(path.read_bytes())
    data[offset] = data[offset] ^ 0xFF if value is None else value
    path.write_bytes(data)


def test_changed_bytes_are_found_where_they_are(sample, make_set):
    folder = make_set([sample(i) for i in range(20)])
    dataset = ShardDataset(folder)
    index = read_index(index_path(folder / "x-000001.tar"))
    entry = next(entry for entry in index.entries(3) if entry.extension == "jpg")
    damage(folder / "x-000001.tar", entry.offset + 5)
    damage(folder / "x-000002.tar", 0)  # the header of a member, which no checksum of a member covers
    assert texts(check(folder)) == texts(check(folder, decode=False))
    report = check(folder, decode=False)
    assert texts(report) == [
        "x-000001.tar/None: its sha256 is not the manifest's: its bytes have changed",
        "x-000001.tar/s11: member 'jpg': its bytes have changed, the checksum differs",
        "x-000002.tar/None: its sha256 is not the manifest's: its bytes have changed",
    ]
    assert len(dataset) == 20


def test_missing_cut_and_foreign_files(sample, make_set, tmp_path):
    folder = make_set([sample(i) for i in range(32)])
    (folder / "x-000000.tar").unlink()
    (folder / "x-000001.tar").write_bytes((folder / "x-000001.tar").read_bytes()[:5000])
    index_path(folder / "x-000002.tar").unlink()
    damage(index_path(folder / "x-000003.tar"), 100)
    (folder / "other.tar").write_bytes(b"")
    found = "\n".join(texts(check(folder)))
    assert "other.tar/None: the manifest does not name it" in found
    assert "x-000000.tar/None: cannot be read: No such file" in found
    assert "x-000001.tar/None: has 5000 bytes, the manifest says" in found
    assert "x-000001.tar/s9: member" in found
    assert "x-000002.tar/None: its index cannot be read" in found
    assert "x-000003.tar/None: the sha256 of its index is not the manifest's" in found
    assert "the index is cut off or damaged" in found


def write_raw(folder, members_of, schemas=SCHEMAS):
    """A set of what `encode_sample` would not write."""
    with ShardWriter(folder, "x", 8, {"schemas": schemas}) as writer:
        for key, members in members_of.items():
            writer.write_encoded(key, members)
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (lambda person: {"parts": np.full(SIZE, 21, np.uint8)}, "parts: 1920 pixels of class 21; parts_lip_20 has 20"),
        (lambda person: {"intrinsics": None}, "depth without intrinsics"),
        (lambda person: {"intrinsics": np.zeros((3, 3), np.float32)}, "intrinsics: not a camera matrix"),
        (lambda person: {"people": [person(3), person(3)]}, "people: two have the same id"),
        (
            lambda person: {"people": [person(3) | {"box": np.array([9, 9, 9, 20], np.float32)}]},
            "box 9, 9, 9, 20 is empty",
        ),
        (
            lambda person: {"people": [person(3) | {"box": np.array([50, 9, 60, 20], np.float32)}]},
            "lies outside of the 48 x 40 image",
        ),
        (
            lambda person: {"people": [person(3) | {"keypoints": np.zeros((5, 2)), "visibility": np.ones(5)}]},
            "5 keypoints; keypoints_17 has 17",
        ),
        (lambda person: {"people": [person(3) | {"visibility": np.ones(17)}]}, "labelled keypoints without a position"),
        (
            lambda person: {"people": [person(3) | {"keypoints": np.full((17, 2), 900.0)}]},
            "a keypoint at 900, 900, far outside",
        ),
    ],
)
def test_wrong_values_are_found(sample, person, make_set, changes, words):
    report = check(make_set([sample(0), sample(1, **changes(person))]))
    assert [problem.sample for problem in report.problems] == ["s1"] and words in report.problems[0].text


def test_what_does_not_decode_is_found(sample, tmp_path):
    good, cut = encode_sample(sample(0)), encode_sample(sample(1))
    cut["jpg"] = cut["jpg"][:300]
    long = {**encode_sample(sample(2)), "normals.npy": npy(np.full((*SIZE, 3), 0.9, np.float32))}
    del long[EXTENSIONS["normals"]]
    other = {
        **encode_sample(sample(3)),
        "alpha.u8.zst": encode_sample(
            sample(
                3,
                image=np.zeros((9, 9, 3), np.uint8),
                **dict.fromkeys(("normals", "depth", "parts", "foreground", "people")),
                alpha=np.ones((9, 9), np.uint8),
            )
        )["alpha.u8.zst"],
    }
    none = {"json": encode_sample(sample(4))["json"]}
    report = check(write_raw(tmp_path / "raw", {"s0": good, "s1": cut, "s2": long, "s3": other, "s4": none}))
    found = {problem.sample: problem.text for problem in report.problems}
    assert set(found) == {"s1", "s2", "s3", "s4"}
    assert found["s1"].startswith("member 'jpg': does not decode: ")
    assert found["s3"] == "alpha is 9 x 9, the sample 48 x 40 pixels"
    assert "normals: 1920 are not of unit length (or not finite), such as 1.56" in found["s2"]
    assert found["s4"] == "it has no image"


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_keys_that_occur_twice_in_different_shards(tmp_path):
    for name, keys in (("a", "pqr"), ("b", "stq")):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for key in keys:
                info = tarfile.TarInfo(f"{key}.json")
                info.size = 2
                tar.addfile(info, io.BytesIO(b"{}"))
    make_manifest(tmp_path)
    found = [text for text in texts(check(tmp_path)) if "image" not in text]
    assert found == ["b.tar/q: a.tar has a sample of this key, too"]


def test_exchanged_sides_and_frames_are_found(sample, person, make_set):
    people = [sample(i, people=[person(1, exchanged=True)]) for i in range(24)]
    assert "keypoints: left and right are exchanged: of 24 people" in texts(check(make_set(people)))[0]
    away = [sample(i, normals=-sample(i)["normals"]) for i in range(3)]
    assert "face away from the camera" in texts(check(make_set(away, "away")))[0]


def test_a_schema_that_is_nowhere(sample, make_set):
    folder = make_set([sample(0)], schemas={"keypoints": "mine", "parts": "lip-20"})
    assert "no schema 'mine' for keypoints; put mine.json into the folder" in texts(check(folder))[0]


def test_a_manifest_that_lies(sample, make_set):
    folder = make_set([sample(i) for i in range(4)])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["samples"] = 5
    manifest["digest"] = manifest_digest(manifest)
    (folder / "manifest.json").write_bytes(canonical_json(manifest))
    with pytest.raises(ShardError, match="samples is 5, which is not the sum of its shards'"):
        check(folder)
    (folder / "manifest.json").write_bytes(canonical_json(manifest | {"samples": 4}))
    with pytest.raises(ShardError, match="its digest does not fit its content"):
        check(folder)
