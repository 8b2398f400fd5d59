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


@dataclass(frozen=True)
class Chart:
    """A picture that says where each of its pixels comes from: red is x, green is y, blue is 255 everywhere inside."""

    size: tuple[int, int] = (150, 120)

    def colours(self, points: np.ndarray) -> np.ndarray:
        """Return (..., 3) float colours at (..., 2) points."""
        height, width = self.size
        x, y = points[..., 0] / width * 255, points[..., 1] / height * 255
        return np.stack([x, y, np.full_like(x, 255)], axis=-1)

    def image(self) -> np.ndarray:
        return np.rint(self.colours(pixel_centres(self.size))).astype(np.uint8)

    def error(self, image: np.ndarray, crop: np.ndarray, rim: float = 1.5) -> float:
        """Return the largest error (of 255) of what an item's picture (3, h, w) shows of the source, but for ``rim``
        source pixels at its edge."""
        points = self.sources(crop, image.shape[1:])
        inner = self.inside(points, rim) & self.shown(image)
        assert inner.sum() > 0.05 * inner.size
        return float(np.abs(image.transpose(1, 2, 0)[inner] - self.colours(points)[inner]).max())

    def inside(self, points: np.ndarray, rim: float = 0.0) -> np.ndarray:
        return ((points > rim) & (points < np.array(self.size[::-1]) - rim)).all(axis=-1)

    @staticmethod
    def shown(image: np.ndarray) -> np.ndarray:
        """Return (h, w) bool, where an item's picture (3, h, w) shows the chart and not its padding."""
        return image[2] > 200

    @staticmethod
    def sources(crop: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return (h, w, 2), the point of the source behind the centre of each pixel."""
        inverse = np.linalg.inv(crop.astype(np.float64))
        return pixel_centres(size) @ inverse[:2, :2].T + inverse[:2, 2]

    def nearest(self, labels: np.ndarray, crop: np.ndarray, size: tuple[int, int], fill: float) -> np.ndarray:
        """Return what a label map of the source shows under ``crop``, computed pixel by pixel."""
        points = self.sources(crop, size)
        x, y = np.floor(points[..., 0]).astype(int), np.floor(points[..., 1]).astype(int)
        inside = self.inside(points)
        height, width = self.size
        taken = labels[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
        return np.where(inside.reshape(inside.shape + (1,) * (labels.ndim - 2)), taken, fill)


@pytest.fixture
def chart() -> Chart:
    return Chart()
