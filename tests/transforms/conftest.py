"""A sphere, whose normals are known at every point of every warped picture of it."""

from dataclasses import dataclass

import numpy as np
import pytest


@dataclass(frozen=True)
class Sphere:
    """An orthographic picture of a sphere; the picture shows its own normals as colours."""

    size: tuple[int, int]
    centre: tuple[float, float]
    radius: float

    def normals(self, points: np.ndarray) -> np.ndarray:
        """Return (..., 3) normals at (..., 2) points, zeros beside the sphere; y is up, pixels' y is down."""
        x, y = ((points - self.centre) / self.radius * [1, -1]).transpose(2, 0, 1)
        square = x**2 + y**2
        normals = np.stack([x, y, np.sqrt(np.clip(1 - square, 0, None))], axis=-1)
        return np.where((square < 1)[..., None], normals, 0)

    def sample(self) -> dict:
        normals = self.normals(pixel_centres(self.size))
        covered = (normals != 0).any(axis=2)
        (x, y), r = self.centre, self.radius
        return {
            "key": "sphere",
            "image": np.rint((normals + 1) / 2 * 255).astype(np.uint8),
            "alpha": np.where(covered, 255, 0).astype(np.uint8),
            "normals": normals.astype(np.float32),
            "depth": np.where(covered, 3.0, 0).astype(np.float32),
            "intrinsics": np.array([[300, 0, 61], [0, 300, 83], [0, 0, 1]], np.float32),
            "box": np.array([x - r, y - r, x + r, y + r], np.float32),
        }

    def warped(self, matrix: np.ndarray, size: tuple[int, int]) -> "Sphere":
        """Return the sphere as a picture of ``size`` shows it after a similarity ``matrix``."""
        scale = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        x, y = matrix[:2, :2] @ self.centre + matrix[:2, 2]
        return Sphere(size, (float(x), float(y)), float(self.radius * scale))


def pixel_centres(size: tuple[int, int]) -> np.ndarray:
    """Return (h, w, 2) continuous x, y of the pixels' centres."""
    return np.stack(np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5), axis=-1)


@pytest.fixture
def sphere() -> Sphere:
    return Sphere((160, 128), (58.3, 76.9), 45.0)


@pytest.fixture
def centres():
    return pixel_centres
