"""Tiny labelled sets for the tools."""

import io
import tarfile

import numpy as np
import pytest

from data_modules.shards import ShardWriter, encode_sample
from s2kit.schemas import load_keypoint_set

SIZE = (48, 40)
BODY = load_keypoint_set("coco-17")


def make_person(number: int, exchanged: bool = False) -> dict:
    """Someone who faces the camera; `exchanged` puts the left side on the picture's left."""
    sides = np.array([1 if n.startswith("left") else -1 if n.startswith("right") else 0 for n in BODY.names])
    points = np.column_stack([20 + 6 * sides * (-1 if exchanged else 1), np.linspace(6, 40, 17)]).astype(np.float32)
    points[1:5, 0] = 20 + (points[1:5, 0] - 20) / 3
    visibility = np.full(17, 2, np.uint8)
    visibility[16], visibility[15] = 0, 1
    points[16] = np.nan
    return {
        "id": number,
        "box": np.array([5, 4, 35, 44], np.float32),
        "keypoints": points,
        "visibility": visibility,
        "area": 99.5,
    }


def make_sample(number: int, **changes) -> dict:
    inside = np.zeros(SIZE, bool)
    inside[8:40, 8:32] = True
    normals = np.zeros((*SIZE, 3), np.float32)
    normals[inside] = (0, 0, 1)
    values = {
        "key": f"s{number}",
        "image": np.full((*SIZE, 3), 10 + number, np.uint8),
        "alpha": np.uint8(255) * inside,
        "normals": normals,
        "depth": np.where(inside, np.float32(2 + number / 8), np.float32(0)),
        "parts": np.where(inside, np.uint8(13), np.uint8(0)),
        "foreground": np.full((*SIZE, 3), 77, np.uint8),
        "intrinsics": np.array([[40, 0, 20], [0, 40, 24], [0, 0, 1]], np.float32),
        "people": [make_person(10 * number), make_person(10 * number + 1)],
        "meta": {},
    }
    return {name: value for name, value in (values | changes).items() if value is not None}


SCHEMAS = {"keypoints": "coco-17", "parts": "lip-20"}


@pytest.fixture
def make_set(tmp_path):
    def make(samples, name="set", per_shard=8, schemas=SCHEMAS):
        with ShardWriter(tmp_path / name, "x", per_shard, {"licence": "CC0-1.0", "schemas": schemas}) as writer:
            for entry in samples:
                writer.write(entry)
        return tmp_path / name

    return make


@pytest.fixture
def sample():
    """make(number, **changes) -> raw sample of two people with every label; None leaves a field out."""
    return make_sample


@pytest.fixture
def person():
    """make(number, exchanged=False) -> one of `people`."""
    return make_person


@pytest.fixture
def tars(tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(3):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for key in range(4):
                members = encode_sample(make_sample(10 * number + key, image=np.full((*SIZE, 3), 99, np.uint8)))
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"s{10 * number + key}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder
