"""Replicas of public data sets, tiny and in exactly the layout that their archives unpack to."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_modules.importers.coco import FIELDS
from s2kit.schemas import load_keypoint_set

SIZE = (64, 48)

_HEIGHTS = {"eye": -0.8, "ear": -0.75, "nose": -0.7, "shoulder": -0.4, "elbow": -0.1, "wrist": 0.15}
_HEIGHTS |= {"hip": 0.2, "knee": 0.6, "ankle": 0.9}


def template(schema) -> np.ndarray:
    """Points (K, 2) of a person who faces the camera, in -1..1: left on the right of the picture, symmetric."""
    rng = np.random.default_rng(len(schema))
    points = np.zeros((len(schema), 2))
    for point in schema.keypoints:
        height = next((h for word, h in _HEIGHTS.items() if point.name.endswith(word)), None)
        x, y = rng.uniform(0.08, 0.4), rng.uniform(-0.9, 0.9) if height is None else height
        if point.name in ("left_eye", "left_ear", "left_shoulder"):
            x = {"left_eye": 0.06, "left_ear": 0.1, "left_shoulder": 0.3}[point.name]
        points[point.id] = (x, y) if point.flip > point.id else (0, y)
        if point.flip < point.id:
            points[point.id] = points[point.flip] * (-1, 1)
        elif point.name.startswith(("right", "r_")) or "_r_" in point.name:
            points[point.id, 0] *= -1
    return points


def picture(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Smooth colours, uint8 (H, W, 3)."""
    noise = np.random.default_rng(seed).integers(0, 255, (8, 6, 3)).astype(np.uint8)
    return cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)


def write_picture(path: Path, image: np.ndarray) -> str:
    """Write a picture (RGB or RGBA or gray) and return the sha256 of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if image.ndim == 3:
        image = image[..., [2, 1, 0, 3][: image.shape[2]]]
    assert cv2.imwrite(str(path), image)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def mask(size: tuple[int, int] = SIZE) -> np.ndarray:
    """A soft ellipse, uint8 (H, W)."""
    canvas = np.zeros(size, np.uint8)
    cv2.ellipse(canvas, (size[1] // 2, size[0] // 2), (size[1] // 4, size[0] // 3), 0, 0, 360, 255, -1)
    return cv2.GaussianBlur(canvas, (3, 3), 0)


def sphere_normals(size: tuple[int, int] = SIZE) -> np.ndarray:
    """Normals of an ellipsoid in the kit's frame, float32 (H, W, 3), of unit length everywhere inside of the mask."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    x, y = (x - size[1] / 2) / (size[1] / 4), (size[0] / 2 - y) / (size[0] / 3)
    length = np.maximum(1, np.hypot(x, y) / 0.95)
    x, y = x / length, y / length
    return np.dstack([x, y, np.sqrt(np.maximum(0, 1 - x * x - y * y))]).astype(np.float32)


@pytest.fixture
def coco(tmp_path: Path):
    """Make a COCO-style file: make(schema, images=24) -> (JSON path, image folder, its content, sha256 by file)."""

    def make(name: str, count: int = 24, edit=None, exchange=None):
        schema = load_keypoint_set(name)
        base, rng = template(schema), np.random.default_rng(1)
        if exchange is not None:
            base = base[exchange]
        root = tmp_path / "coco"
        images, annotations, sums = [], [], {}
        for number in range(count):
            file = f"{number * 7 + 139:012d}.jpg"
            sums[file] = write_picture(root / "val2017" / file, picture(number))
            entry = {"id": number * 7 + 139, "file_name": file, "height": SIZE[0], "width": SIZE[1], "license": 3}
            images.append(entry | {"coco_url": f"http://images.cocodataset.org/val2017/{file}"})
            for person in range(1 + number % 2):
                centre, scale = (24, 32), 20
                points = np.round(centre + scale * base + rng.normal(0, 0.2, base.shape), 2)
                flags = np.full(len(schema), 2)
                flags[3], flags[-1] = 1, 0
                rows = np.column_stack([points, flags])
                rows[-1] = 0
                identity = 900100581000 + 10 * number + person
                record = {"id": identity, "image_id": entry["id"], "category_id": 1, "iscrowd": 0}
                record |= {"bbox": [10.5, 8.25, 30.0, 50.5], "area": 700.25, "num_keypoints": len(schema) - 1}
                annotations.append(record | _fields(name, rows) | {"segmentation": [[1, 2, 3, 4, 5, 6]]})
        content = {
            "info": {"description": "COCO 2017 Dataset"},
            "licenses": [{"id": 3, "name": "CC", "url": "http://creativecommons.org/licenses/by-nc-nd/2.0/"}],
            "categories": [{"id": 1, "name": "person", "keypoints": list(load_keypoint_set("coco-17").names)}],
            "images": images,
            "annotations": annotations,
        }
        if edit:
            edit(content)
        path = root / "annotations" / "person_keypoints_val2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return path, root / "val2017", content, sums

    return make


def _fields(name: str, rows: np.ndarray) -> dict:
    if name != "coco-wholebody-133":
        field = FIELDS[name][0]
        extra = {} if field == "keypoints" else {"keypoints": rows[:17].ravel().tolist()}
        return {field: rows.ravel().tolist()} | extra
    ends = dict(zip(FIELDS[name], ((0, 17), (17, 23), (23, 91), (91, 112), (112, 133))))
    parts = {field: rows[a:b].ravel().tolist() for field, (a, b) in ends.items()}
    return parts | {"face_valid": True, "foot_valid": True, "lefthand_valid": False, "righthand_valid": True}


@pytest.fixture
def sphere() -> dict[str, np.ndarray]:
    """What the renders show: `mask` and, in the kit's frame, `normals`."""
    return {"mask": mask(), "normals": sphere_normals()}


@pytest.fixture
def renders(tmp_path: Path):
    """Make renders of spec 4.4 to 4.6 in a folder for each scan; make(frame signs) -> (root, sha256 by rgb file)."""

    def make(signs=(1, 1, 1), scans: int = 2, views: int = 3):
        root, sums = tmp_path / "THuman2.1", {}
        for scan in range(scans):
            folder = root / f"{scan:04d}"
            for view in range(views):
                stem = f"view.{view:02d}"
                file = folder / "rgb" / f"{stem}.png"
                sums[f"{scan:04d}/{file.name}"] = write_picture(file, picture(10 * scan + view))
                write_picture(folder / "mask" / f"{stem}.png", np.dstack([mask()] * 3))
                normals = sphere_normals() * np.array(signs, np.float32) * 1.001
                normals[30, 24] = np.nan
                (folder / "normal").mkdir(exist_ok=True)
                if view:
                    np.save(folder / "normal" / f"{stem}.npy", normals)
                else:
                    np.savez(folder / "normal" / f"{stem}.npz", normal=normals.astype(np.float16))
                depth = np.full(SIZE, 2500.0) + np.arange(SIZE[1])
                depth[31, 24] = np.nan
                for name, array in (("depth", depth), ("seg", np.full((32, 24), 22, np.uint8))):
                    (folder / name).mkdir(exist_ok=True)
                    suffix = "_seg" if name == "seg" else ""
                    np.save(folder / name / f"{stem}{suffix}.npy", array)
                write_picture(folder / "albedo" / f"{stem}.png", picture(100 + view))
                for name, matrix in (("camera_intrinsics", [[60, 0, 23.5], [0, 61, 31.5], [0, 0, 1]]),):
                    (folder / name).mkdir(exist_ok=True)
                    np.savetxt(folder / name / f"{stem}.txt", np.array(matrix))
                (folder / "camera_extrinsics").mkdir(exist_ok=True)
                np.savetxt(folder / "camera_extrinsics" / f"{stem}.txt", np.eye(4))
        return root, sums

    return make
