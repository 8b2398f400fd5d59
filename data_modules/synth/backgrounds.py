"""What stands behind the person: rooms, open ground under a sky, flat pictures, or the user's own images.

Nothing here may come between the camera and the person: the labels know only the person.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from data_modules.synth.camera import Camera
from data_modules.synth.textures import surface_texture

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_CLEARANCE = 0.15


@dataclass(frozen=True)
class Surface:
    """A flat-shaded, matt, two-sided mesh of the surroundings.

    Args:
        vertices: (V, 3) float32 world metres. faces: (F, 3) int32. uv: (V, 2) float32, may exceed 1 to repeat.
        albedo: (h, w, 3) float32 linear reflectance.
    """

    vertices: np.ndarray
    faces: np.ndarray
    uv: np.ndarray
    albedo: np.ndarray


def list_images(folder: str | Path) -> list[Path]:
    """Image files below `folder`, sorted by their relative path.

    Raises:
        ValueError: the folder does not exist or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"backgrounds: {folder} is not a folder")
    found = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    images = sorted(found, key=lambda p: p.relative_to(folder).as_posix())
    if not images:
        raise ValueError(f"backgrounds: no image ({', '.join(IMAGE_SUFFIXES)}) in {folder} or below it")
    return images


def folder_digest(folder: str | Path) -> str:
    """Short hash of the names and sizes of the images in a folder: what a sample's bytes may depend on."""
    digest = hashlib.sha256()
    for path in list_images(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]


def image_backdrop(rng: np.random.Generator, path: Path, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) float32 linear: a random crop of an image file, perhaps mirrored or out of focus.

    Raises:
        ValueError: the file cannot be read as an image.
    """
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        raise ValueError(f"backgrounds: {path} cannot be read as an image")
    image = image[..., ::-1].astype(np.float32) / 255
    height, width = size
    cover = max(height / image.shape[0], width / image.shape[1])
    scale = cover * rng.uniform(1.0, 1.5)
    window = int(np.ceil(height / scale)), int(np.ceil(width / scale))
    top = rng.integers(0, max(0, image.shape[0] - window[0]) + 1)
    left = rng.integers(0, max(0, image.shape[1] - window[1]) + 1)
    crop = image[top : top + window[0], left : left + window[1]]
    mirrored = rng.random() < 0.5
    crop = np.ascontiguousarray(crop[:, ::-1] if mirrored else crop)
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    crop = np.clip(cv2.resize(crop, (width, height), interpolation=way), 0, 1)
    linear = np.where(crop <= 0.04045, crop / 12.92, ((crop + 0.055) / 1.055) ** 2.4)
    if rng.random() < 0.4:
        linear = cv2.GaussianBlur(linear, (0, 0), rng.uniform(0.002, 0.02) * max(size))
    return np.ascontiguousarray(linear, np.float32)


def open_ground(rng: np.random.Generator, centre: np.ndarray) -> list[Surface]:
    """A wide floor under an open sky."""
    reach = 60.0
    corners = np.array([[-reach, 0, -reach], [reach, 0, -reach], [reach, 0, reach], [-reach, 0, reach]])
    repeats = reach * 2 / rng.uniform(1.0, 5.0)
    return [_quad(corners + np.array([centre[0], -0.003, centre[2]]), repeats, repeats, surface_texture(rng))]


def sample_room(
    rng: np.random.Generator, points: np.ndarray, camera: Camera, lamps: np.ndarray, height: float
) -> list[Surface]:
    """A room around the person, the camera and the lamps, with boxes behind the person.

    Walls that the camera cannot see are left out: they would only take time.

    Args:
        points: (N, 3) world points of the person.
        camera: stands inside the room.
        lamps: (L, 3) world points that lie inside, too.
        height: of the ceiling, metres.
    """
    turn = rng.uniform(0, 2 * np.pi)
    across = np.array([np.cos(turn), 0, np.sin(turn)])
    along = np.array([-np.sin(turn), 0, np.cos(turn)])
    inside = np.concatenate([points, camera.position[None], lamps.reshape(-1, 3)])
    low = np.array([(inside @ across).min(), (inside @ along).min()]) - _CLEARANCE
    high = np.array([(inside @ across).max(), (inside @ along).max()]) + _CLEARANCE
    low -= rng.uniform(0.1, 3.0, 2)
    high += rng.uniform(0.1, 3.0, 2)

    def corner(x: float, z: float, y: float) -> np.ndarray:
        return x * across + z * along + np.array([0, y, 0])

    floor, wall = -0.003, surface_texture(rng)
    wide, deep = high - low
    ring = [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]
    surfaces = [_quad([corner(x, z, floor) for x, z in ring], wide / 2, deep / 2, surface_texture(rng))]
    for i in range(4):
        (x0, z0), (x1, z1) = ring[i], ring[(i + 1) % 4]
        quad = [corner(x0, z0, floor), corner(x1, z1, floor), corner(x1, z1, height), corner(x0, z0, height)]
        length = np.hypot(x1 - x0, z1 - z0)
        surfaces.append(_quad(quad, length / 2, height / 2, wall))
    white = np.full((1, 1, 3), rng.uniform(0.5, 0.9), np.float32)
    surfaces.append(_quad([corner(x, z, height) for x, z in ring], 1, 1, white))
    surfaces = [surface for surface in surfaces if _is_visible(surface, camera)]
    surfaces += _clutter(rng, points, camera, height)
    return [_facing(surface, camera.position) for surface in surfaces]


def _clutter(rng, points, camera, height) -> list[Surface]:
    """Boxes on the floor that lie wholly behind the person as the camera sees it."""
    farthest = camera.to_camera(points)[:, 2].max()
    boxes = []
    for _ in range(rng.integers(0, 5)):
        size = rng.uniform([0.2, 0.2, 0.2], [1.2, min(2.0, height), 0.8])
        turn = rng.uniform(0, np.pi)
        axes = np.array([[np.cos(turn), 0, np.sin(turn)], [0, 1, 0], [-np.sin(turn), 0, np.cos(turn)]])
        ahead = camera.rotation[2] * [1, 0, 1]
        ahead /= max(np.linalg.norm(ahead), 1e-6)
        side = np.array([-ahead[2], 0, ahead[0]])
        foot = camera.position * [1, 0, 1] + ahead * (farthest + rng.uniform(0.3, 2.5))
        foot = foot + side * rng.normal(0, 1.2)
        signs = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (0, 1) for z in (-0.5, 0.5)])
        corners = foot + (signs * size) @ axes
        texture = surface_texture(rng, 64)
        if camera.to_camera(corners)[:, 2].min() > farthest + 0.05:
            for ids in ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (1, 5, 7, 3)):
                boxes.append(_quad(corners[list(ids)], 1, 1, texture))
    return boxes


def _quad(corners, repeat_u: float, repeat_v: float, albedo: np.ndarray) -> Surface:
    uv = np.array([[0, 0], [repeat_u, 0], [repeat_u, repeat_v], [0, repeat_v]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    return Surface(np.asarray(corners, np.float32), faces, uv, albedo)


def _facing(surface: Surface, point: np.ndarray) -> Surface:
    """Wind the faces counter-clockwise as seen from `point`: the side that glows in ambient light."""
    a, b, c = surface.vertices[surface.faces[0]].astype(np.float64)
    towards = np.cross(b - a, c - a) @ (point - a) > 0
    return surface if towards else replace(surface, faces=np.ascontiguousarray(surface.faces[:, ::-1]))


def _is_visible(surface: Surface, camera: Camera) -> bool:
    steps = np.linspace(0, 1, 33)
    u, v = (grid.reshape(-1, 1) for grid in np.meshgrid(steps, steps))
    a, b, c, d = surface.vertices.astype(np.float64)
    points = (1 - u) * (1 - v) * a + u * (1 - v) * b + u * v * c + (1 - u) * v * d
    pixels, _ = camera.project(points)
    height, width = camera.image_size
    margin = 0.15 * max(height, width)
    with np.errstate(invalid="ignore"):
        inside = (pixels > -margin).all(axis=1) & (pixels < np.array([width, height]) + margin).all(axis=1)
    return bool(inside.any())
