"""A pinhole camera, and cameras that frame a person from the whole body to head and shoulders.

World: metres, y up. Camera: x right, y down, z forward. Pixels: (row i, column j) covers
[j, j + 1) x [i, i + 1), so the principal point of a centred camera is (width / 2, height / 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_modules.synth.types import Person

FOCAL_RANGE_MM = (28.0, 85.0)
_FULL_FRAME_DIAGONAL_MM = 43.267
_LOWEST_CAMERA_M = 0.12

# Ids of the 308 schema that stand for the parts a framing may hold.
_PARTS = {
    "head": (0, 1, 2, 3, 4),
    "shoulders": (5, 6, 69),
    "elbows": (7, 8),
    "wrists": (41, 62),
    "hips": (9, 10),
    "knees": (11, 12),
    "feet": (13, 14, 15, 18),
}
_FRAMINGS = {
    "full_body": (0.42, tuple(_PARTS)),
    "knees_up": (0.18, ("head", "shoulders", "elbows", "wrists", "hips", "knees")),
    "waist_up": (0.2, ("head", "shoulders", "elbows", "hips")),
    "head_and_shoulders": (0.2, ("head", "shoulders")),
}
FRAMINGS = tuple(_FRAMINGS)


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Args:
        intrinsics: (3, 3) float64, pixels, no skew.
        rotation: (3, 3) float64, world direction -> camera direction.
        position: (3,) float64 world metres.
        image_size: (height, width).
        info: JSON-able description of how it was drawn.
    """

    intrinsics: np.ndarray
    rotation: np.ndarray
    position: np.ndarray
    image_size: tuple[int, int]
    info: dict[str, Any]

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """(..., 3) world points -> (..., 3) camera points."""
        return (np.asarray(points, np.float64) - self.position) @ self.rotation.T

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(..., 3) world points -> (..., 2) pixel coordinates and (...) depth; behind the camera is NaN."""
        camera = self.to_camera(points)
        depth = camera[..., 2]
        ahead = np.where(depth > 0, depth, np.nan)
        scale = np.array([self.intrinsics[0, 0], self.intrinsics[1, 1]])
        return camera[..., :2] / ahead[..., None] * scale + self.intrinsics[:2, 2], depth


def sample_camera(
    rng: np.random.Generator, person: Person, image_size: tuple[int, int], framing: str | None = None
) -> Camera:
    """Draw a camera that frames `person`; `framing` is one of FRAMINGS, or None to draw it as well."""
    names = list(_FRAMINGS)
    drawn = names[rng.choice(len(names), p=[_FRAMINGS[name][0] for name in names])]
    framing = framing or drawn
    if framing not in _FRAMINGS:
        raise ValueError(f"framing must be one of {', '.join(FRAMINGS)}, got {framing!r}")
    subject = _subject(person, framing)
    height, width = image_size
    focal_mm = float(np.exp(rng.uniform(*np.log(FOCAL_RANGE_MM))))
    focal = focal_mm / _FULL_FRAME_DIAGONAL_MM * np.hypot(height, width)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    azimuth = rng.normal(0, 45) if rng.random() < 0.6 else rng.uniform(-180, 180)
    elevation = float(np.clip(rng.normal(6, 14), -25, 60))
    roll = rng.uniform(-25, 25) if rng.random() < 0.15 else rng.normal(0, 3)
    fill = rng.uniform(0.72, 0.96) if framing == "full_body" else rng.uniform(0.85, 1.12)
    free = max(0.0, 1 - fill)
    centre = (0.5 + free * rng.uniform(-0.5, 0.5)) * width, (0.5 + free * rng.uniform(-0.5, 0.5)) * height
    while True:
        rotation = view_rotation(azimuth, elevation, roll)
        position = _place(subject, rotation, intrinsics, image_size, fill, centre)
        # A camera below the floor would look at the sole of the world; it looks from higher up instead.
        if position[1] >= _LOWEST_CAMERA_M or elevation > 80:
            break
        elevation += 6.0
    info = {
        "framing": framing,
        "focal_length_mm": round(focal_mm, 3),
        "azimuth_degrees": round(float(azimuth), 3),
        "elevation_degrees": round(float(elevation), 3),
        "roll_degrees": round(float(roll), 3),
    }
    return Camera(intrinsics, rotation, position, (height, width), info)


def view_rotation(azimuth: float, elevation: float, roll: float) -> np.ndarray:
    """World -> camera rotation of a view towards the origin, angles in degrees.

    Azimuth 0 is in front of a person that faces +z, 90 is on the person's left; a positive elevation looks
    down; a positive roll turns the camera clockwise, so the picture turns the other way.
    """
    azimuth, elevation, roll = np.radians([azimuth, elevation, roll])
    forward = -np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    right, down = (
        np.cos(roll) * right + np.sin(roll) * down,
        np.cos(roll) * down - np.sin(roll) * right,
    )
    return np.stack([right, down, forward])


def _subject(person: Person, framing: str) -> np.ndarray:
    """World points that the framing must hold: vertices nearest to one of its parts."""
    points = np.concatenate([mesh.vertices for mesh in person.meshes]).astype(np.float64)
    points = points[:: max(1, len(points) // 3000)]
    names, anchors = [], []
    for name, ids in _PARTS.items():
        found = person.keypoints[list(ids)].astype(np.float64)
        found = found[np.isfinite(found).all(axis=1)]
        names += [name] * len(found)
        anchors.append(found)
    anchors = np.concatenate(anchors)
    if framing == "full_body" or not len(anchors):
        return points
    wanted = np.isin(names, _FRAMINGS[framing][1])
    nearest = np.linalg.norm(points[:, None] - anchors[None], axis=2).argmin(axis=1)
    chosen = points[wanted[nearest]]
    return chosen if len(chosen) else points


def _place(subject, rotation, intrinsics, image_size, fill, centre) -> np.ndarray:
    """Camera position from which the subject's box fills `fill` of the image's tighter side around `centre`."""
    height, width = image_size
    points = subject @ rotation.T
    focal = intrinsics[0, 0]
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    nearest = points[:, 2].min()
    distance = max(1.0, np.ptp(points[:, 1]) * focal / (fill * height))
    eye = np.array([middle[0], middle[1], middle[2] - distance])
    for _ in range(12):
        local = points - eye
        pixels = local[:, :2] / np.maximum(local[:, 2:], 0.05) * focal + intrinsics[:2, 2]
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        size = (high - low) / (fill * np.array([width, height]))
        distance = min(max(distance * size.max(), middle[2] - nearest + 0.2), 60.0)
        eye[:2] += ((low + high) / 2 - centre) / focal * distance
        eye[2] = middle[2] - distance
    return eye @ rotation
