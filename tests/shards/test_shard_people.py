"""Several people in an image: stored, counted in index and manifest, and read one by one."""

import json
import struct
import zlib

import numpy as np
import pytest

from data_modules.shards import ShardDataset, ShardError, ShardWriter, encode_sample, index_tar, make_manifest
from data_modules.shards.format import manifest_digest
from data_modules.shards.index import index_path, read_index

COUNTS = (2, 0, 3, 1, 0)


def person(identity, seed=0, points=17, **more):
    rng = np.random.default_rng(seed)
    return {
        "id": identity,
        "box": rng.uniform(0, 20, 4).astype(np.float32),
        "keypoints": rng.uniform(0, 20, (points, 2)).astype(np.float32),
        "visibility": rng.integers(0, 3, points).astype(np.uint8),
        **more,
    }


def picture(key, people):
    return {"key": key, "image": np.full((24, 20, 3), 90, np.uint8), "people": people}


def group(sample):
    return [person(f"{sample}-{i}", 10 * sample + i, area=12.5 + i, iscrowd=i == 1) for i in range(COUNTS[sample])]


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path / "set", samples_per_shard=2, info={"schemas": {"keypoints": "coco-17"}}) as writer:
        for sample in range(len(COUNTS)):
            writer.write(picture(f"p{sample}", group(sample)))
    return tmp_path / "set"


def assert_same_person(read, expected):
    for name in ("box", "keypoints", "visibility"):
        np.testing.assert_array_equal(read[name], expected[name])
        assert read[name].dtype == expected[name].dtype
    assert (read["area"], read["iscrowd"]) == (expected["area"], expected["iscrowd"])


def test_index_and_manifest_count_people(folder):
    samples = ShardDataset(folder)
    assert [shard["people"] for shard in samples.manifest["shards"]] == [2, 4, 0]
    assert samples.manifest["people"] == 6 and samples.manifest["schemas"]["keypoints"] == "coco-17"
    indices = [read_index(index_path(folder / shard["name"])) for shard in samples.manifest["shards"]]
    assert [index.people.tolist() for index in indices] == [[2, 0], [3, 1], [0]]
    before = index_path(folder / "samples-000001.tar").read_bytes()
    assert index_tar(folder / "samples-000001.tar").read_bytes() == before


def test_images_come_with_all_their_people(folder):
    samples = ShardDataset(folder)
    assert samples.counts.tolist() == [2, 2, 1] and samples.counts.dtype == np.int64
    for number, count in enumerate(COUNTS):
        read = samples[number]["people"]
        assert [each["id"] for each in read] == [f"{number}-{i}" for i in range(count)]
        for one, expected in zip(read, group(number), strict=True):
            assert_same_person(one, expected)


def test_per_person_gives_each_person_once(folder):
    samples = ShardDataset(folder, per_person=True)
    assert len(samples) == 6 and samples.counts.tolist() == [2, 4, 0]
    expected = [(f"p{sample}", one) for sample in range(len(COUNTS)) for one in group(sample)]
    for number, (key, one) in enumerate(expected):
        item = samples[number]
        assert samples.key(number) == item["key"] == key and item["person_id"] == one["id"]
        assert item["image"].shape == (24, 20, 3) and "people" not in item
        assert_same_person(item, one)
    assert samples[-1]["person_id"] == "3-0"
    with pytest.raises(IndexError, match="which has 6"):
        samples[6]
    assert samples.digest != ShardDataset(folder).digest
    limited = ShardDataset(folder, fields=("image", "box"), per_person=True)[3]
    assert set(limited) == {"key", "image", "box", "person_id", "area", "iscrowd"}


def test_flat_labels_are_one_person(tmp_path, make_sample):
    with ShardWriter(tmp_path) as writer:
        writer.write({"key": "nobody", "image": np.zeros((8, 8, 3), np.uint8)})
        writer.write(make_sample("somebody"))
    samples = ShardDataset(tmp_path, per_person=True)
    assert len(samples) == 1
    item = samples[0]
    assert (item["key"], item["person_id"]) == ("somebody", 0)
    np.testing.assert_array_equal(item["keypoints"], make_sample("somebody")["keypoints"])
    assert set(item) == set(make_sample("x")) | {"person_id"}


def as_version_1(path):
    """Rewrite an index as version 1 wrote it."""
    index = read_index(path)
    data = bytearray(index.to_bytes()[: -((4 * len(index) + 7) // 8 * 8)])
    struct.pack_into("<I", data, 8, 1)
    struct.pack_into("<I", data, 12, zlib.crc32(memoryview(data)[16:]))
    path.write_bytes(data)
    return data


def test_sets_of_version_1_are_read_but_not_by_person(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["people"]
    for shard in manifest["shards"]:
        del shard["people"], shard["index_sha256"]
        as_version_1(index_path(folder / shard["name"]))
    manifest["digest"] = manifest_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert read_index(index_path(folder / "samples-000000.tar")).people is None
    assert len(ShardDataset(folder)[2]["people"]) == 3
    with pytest.raises(ShardError, match=r"manifest.json: does not count people; write manifest and index again"):
        ShardDataset(folder, per_person=True)
    make_manifest(folder)
    assert ShardDataset(folder, per_person=True)[4]["person_id"] == "2-2"


@pytest.mark.parametrize(
    ("people", "message"),
    [
        ("two", "people is str, it must be a list"),
        ([person(1.5)], r"people\[0\] has the id 1.5"),
        ([person(True)], r"people\[0\] has the id True"),
        ([{"id": 1}], r"people\[0\] has no box"),
        ([{"id": 1, "box": [0, 0, 1]}], r"people\[0\].box has shape \(3,\)"),
        (
            [{"id": 1, "box": [0, 0, 1, 1], "keypoints": [[1, 1]]}],
            r"people\[0\] has only one of keypoints and visibility",
        ),
        ([person(1) | {"visibility": np.full(17, 3)}], r"people\[0\].visibility holds 3, it must be 0, 1 or 2"),
        ([person(1), person(2, points=16)], "people have 16 and 17 keypoints; all must have as many"),
        ([person(1, score=0.5)], r"people\[0\] has the unknown key 'score'"),
    ],
)
def test_people_that_cannot_be_stored(people, message):
    with pytest.raises(ShardError, match=f"sample 'p': {message}"):
        encode_sample(picture("p", people))
    with pytest.raises(ShardError, match="people and box are both given"):
        encode_sample(picture("p", [person(1)]) | {"box": np.zeros(4, np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visibility": [7] * 17}, r"people\[0\].visibility holds 7, it must be 0, 1 or 2"),
        ({"box": [0, 0, 1, None]}, r"people\[0\].box is not finite"),
        ({"keypoints": [[1]]}, r"people\[0\].keypoints has shape \(1, 1\)"),
        ({"area": "big"}, r"people\[0\].area is 'big', not a number"),
    ],
)
def test_people_of_other_writers_are_checked(tmp_path, change, message):
    members = encode_sample(picture("p", [person(1)]))
    record = json.loads(members["json"])
    record["people"][0] |= change
    members["json"] = json.dumps(record).encode()
    with ShardWriter(tmp_path) as writer:
        writer.write_encoded("p", members)
    for per_person in (False, True):
        with pytest.raises(ShardError, match=rf"samples-000000.tar: sample 'p', member 'json': {message}"):
            ShardDataset(tmp_path, per_person=per_person)[0]


@pytest.mark.parametrize(
    ("schemas", "message"),
    [
        ({"keypoint": "coco-17"}, "schemas names 'keypoint'; it may name keypoints, parts, sample"),
        ({"keypoints": 17}, "schemas.keypoints is 17, it must be a name such as 'sapiens2-308'"),
        ({"parts": "Lower Case"}, "schemas.parts is 'Lower Case'"),
        ({"sample": 2}, "schemas.sample is 2, this s2kit knows version 1"),
        ("coco-17", "schemas names 'coco-17'"),
    ],
)
def test_schemas_are_checked(tmp_path, folder, schemas, message):
    with pytest.raises(ShardError, match=message):
        ShardWriter(tmp_path / "new", info={"schemas": schemas})
    with pytest.raises(ShardError, match=message):
        make_manifest(folder, {"schemas": schemas})
