import cv2
import numpy as np
import pytest


def _sphere(key, size=(64, 48), seed=0):
    """A raw sample with every field: a sphere with relief, its normals in all directions but mostly to the camera."""
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width] + 0.5
    radius = 0.4 * min(size)
    dx, dy = (x - 0.45 * width) / radius, (y - 0.55 * height) / radius
    inside = dx * dx + dy * dy < 0.98
    dz = np.sqrt(np.where(inside, 1 - dx * dx - dy * dy, 0))
    normals = np.dstack([dx, -dy, dz]) + cv2.GaussianBlur(rng.normal(0, 0.3, (*size, 3)), (0, 0), 2)
    normals = np.where(inside[..., None], normals / np.linalg.norm(normals, axis=-1, keepdims=True), 0)
    image = np.clip(128 + 100 * normals + rng.normal(0, 2, (*size, 3)), 0, 255).astype(np.uint8)
    return {
        "key": key,
        "image": cv2.GaussianBlur(image, (5, 5), 0),
        "alpha": cv2.GaussianBlur(inside.astype(np.uint8) * 255, (3, 3), 0),
        "foreground": 255 - np.where(inside[..., None], image // 16 * 16, 255).astype(np.uint8),
        "normals": normals.astype(np.float32),
        "depth": np.where(inside, 2.7 - 0.3 * dz, 0).astype(np.float32),
        "albedo": (np.where(inside[..., None], image // 32 * 32, 0)).astype(np.uint8),
        "parts": np.where(inside, rng.integers(1, 29, size), 0).astype(np.uint8),
        "intrinsics": np.array([[71.3, 0, 24], [0, 71.3, 32], [0, 0, 1]], np.float32),
        "box": np.array([3.1, 10.25, 40.9, 60.2], np.float32),
        "keypoints": np.where(rng.random((308, 1)) < 0.3, np.nan, rng.uniform(0, 48, (308, 2))).astype(np.float32),
        "visibility": rng.integers(0, 3, 308).astype(np.uint8),
        "meta": {"pose": "standing", "height": 1.75, "garments": ["shirt", "trousers"]},
    }


@pytest.fixture(scope="session")
def make_sample():
    return _sphere
