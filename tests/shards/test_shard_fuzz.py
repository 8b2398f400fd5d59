"""Random damage: nothing but a plain error, or the very sample that was written."""

import json
import struct
import time
import zlib

import cv2
import numpy as np
import pytest

from data_modules.shards import ShardDataset, ShardWriter, index_tar, make_manifest
from data_modules.shards.format import manifest_digest
from s2kit.errors import UserError

SHARDS, PER_SHARD = 2, 2
SECONDS = 10  # one damaged set takes milliseconds


def small_sample(number):
    rng = np.random.default_rng(number)
    # Smooth, so that the JPEG is small; the sizes of all samples are equal, and so are those of many members.
    image = cv2.resize(rng.integers(0, 256, (4, 3, 3), np.uint8), (12, 16))
    sample = {"key": f"p{number}", "image": image, "parts": rng.integers(0, 29, (16, 12)).astype(np.uint8)}
    normals = rng.normal(size=(16, 12, 3)).astype(np.float32)
    sample["normals"] = np.abs(normals) / np.linalg.norm(normals, axis=-1, keepdims=True)
    sample["depth"] = rng.uniform(1, 2, (16, 12)).astype(np.float32)
    sample["people"] = [{"id": i, "box": rng.uniform(0, 12, 4).astype(np.float32)} for i in range(number % 3)]
    return sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "set"
    with ShardWriter(folder, samples_per_shard=PER_SHARD) as writer:
        for number in range(SHARDS * PER_SHARD):
            writer.write(small_sample(number))
    return folder


def flip_bits(data, other, rng):
    for _ in range(rng.integers(1, 9)):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)


def cut_off(data, other, rng):
    del data[rng.integers(len(data)) :]


def append(data, other, rng):
    data += rng.bytes(int(rng.integers(1, 2000)))


def clear_block(data, other, rng):
    start = int(rng.integers(len(data))) // 512 * 512
    data[start : start + 512] = bytes(min(512, len(data) - start))


def swap_blocks(data, other, rng):
    count = len(data) // 512
    a, b = (int(block) * 512 for block in rng.integers(0, max(count, 1), 2))
    size = 512 * int(rng.integers(1, 5))
    first, second = bytes(data[a : a + size]), bytes(data[b : b + size])
    data[a : a + len(second)] = second
    data[b : b + len(first)] = first


def replace_by_other(data, other, rng):
    data[:] = other


def splice_other(data, other, rng):
    start = int(rng.integers(len(data)))
    data[start:] = other[start:]


def random_bytes(data, other, rng):
    start = int(rng.integers(len(data)))
    noise = rng.bytes(int(rng.integers(1, 600)))
    data[start : start + len(noise)] = noise


def edit_index(data, other, rng):
    """Change the content of an index, and give it the right checksum."""
    for _ in range(rng.integers(1, 4)):
        kind = rng.integers(3)
        at = int(rng.integers(16, len(data) - 8))
        if kind == 0:
            data[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            struct.pack_into("<Q", data, at // 8 * 8, [0, 1, 2**31, 2**63, 2**64 - 1][rng.integers(5)])
        else:
            data[at // 8 * 8 : at // 8 * 8 + 8] = data[(at + 24) // 8 * 8 : (at + 24) // 8 * 8 + 8].ljust(8, b"\0")
    struct.pack_into("<I", data, 12, zlib.crc32(memoryview(data)[16:]))


def edit_manifest(data, other, rng):
    """Change a value of a manifest, and give it the right digest."""
    manifest = json.loads(data)
    values = [None, -1, 0, 1, 2**40, 1.5, "x", "../x", [], {}, True]
    value = values[rng.integers(len(values))]
    shard = manifest["shards"][rng.integers(SHARDS)]
    target = [manifest, shard][rng.integers(2)]
    name = sorted(target)[rng.integers(len(target))]
    if rng.random() < 0.2:
        del target[name]
    else:
        target[name] = value
    manifest["digest"] = manifest_digest(manifest)
    data[:] = json.dumps(manifest).encode()


DAMAGES = [flip_bits, cut_off, append, clear_block, swap_blocks, replace_by_other, splice_other, random_bytes]


def equal(read, written):
    if read.keys() != written.keys() or read["key"] != written["key"]:
        return False
    for name in ("image", "parts", "normals", "depth"):
        if not np.array_equal(read[name], written[name]):
            return False
    return all(
        a["id"] == b["id"] and np.array_equal(a["box"], b["box"]) for a, b in zip(read["people"], written["people"])
    )


def read_all(folder, truth=None):
    """Read every item in both ways; return how many were delivered, and refused. Any other error is a failure."""
    delivered = refused = 0
    for per_person in (False, True):
        try:
            samples = ShardDataset(folder, per_person=per_person)
        except UserError:
            refused += 1
            continue
        for number in range(min(len(samples), 20)):
            try:
                read = samples[number]
            except UserError:
                refused += 1
                continue
            delivered += 1
            if truth is not None and not per_person:
                assert equal(read, truth[number]), f"sample {number} is not what was written"
            elif truth is not None:
                written = next(sample for sample in truth if sample["key"] == read["key"])
                assert np.array_equal(read["image"], written["image"]) and np.array_equal(
                    read["depth"], written["depth"]
                )
                assert any(np.array_equal(read["box"], person["box"]) for person in written["people"])
    return delivered, refused


def run(folder, count, seed):
    """Damage the set ``count`` times, each time one file in one way; return (damage, file) -> times it was noticed."""
    files = sorted(folder.iterdir())
    whole = {path: path.read_bytes() for path in files}
    truth = [ShardDataset(folder)[number] for number in range(SHARDS * PER_SHARD)]
    complete = read_all(folder, truth)
    noticed = {}
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        path = files[rng.integers(len(files))]
        damages = [*DAMAGES, edit_index if path.suffix == ".index" else edit_manifest]
        damage = damages[rng.integers(len(damages) - (path.suffix == ".tar"))]
        alike = [other for other in files if other.suffix == path.suffix and other != path]
        data = bytearray(whole[path])
        damage(data, whole[alike[0]] if alike else rng.bytes(len(data)), rng)
        path.write_bytes(data)
        begin = time.monotonic()
        try:
            delivered, _ = read_all(folder, truth)
            assert delivered <= complete[0]
            noticed[damage.__name__, path.suffix] = noticed.get((damage.__name__, path.suffix), 0) + (
                delivered < complete[0]
            )
            if path.suffix == ".tar" and number % 3 == 0:
                index_again(folder, path)
        except Exception as error:
            raise AssertionError(
                f"seed {seed}, number {number}: {damage.__name__} of {path.name}: {error!r}"
            ) from error
        finally:
            assert time.monotonic() - begin < SECONDS, f"number {number}: {damage.__name__} of {path.name} hangs"
            for changed, content in whole.items():
                if changed == path or path.suffix == ".tar":
                    changed.write_bytes(content)
    return noticed


def index_again(folder, path):
    """A damaged tar that is indexed as it is has no checksums that tell; it must still be read or refused."""
    try:
        index_tar(path)
        make_manifest(folder)
    except UserError:
        return
    read_all(folder)


def test_damage_is_noticed_or_harmless(folder):
    noticed = run(folder, 600, seed=0)
    for damage in DAMAGES:
        # Both files are shorter than two blocks: there is nothing to swap.
        if damage is not swap_blocks:
            assert noticed[damage.__name__, ".index"] > 0 and noticed[damage.__name__, ".json"] > 0, damage
    assert noticed["edit_index", ".index"] > 0 and noticed["edit_manifest", ".json"] > 0
    assert sum(times for (_, suffix), times in noticed.items() if suffix == ".tar") > 100


@pytest.mark.slow
def test_ten_thousand_damages(folder):
    run(folder, 10_000, seed=1)
