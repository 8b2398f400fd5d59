"""Labels of one view of a person: all but the picture itself, sampled at the pixel centre, never blended.

Frames: camera points x right, y down, z forward; normals x right, y up, z to the camera; pixels continuous, the
centre of pixel (row i, column j) is (j + 0.5, i + 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_modules.synth.camera import Camera
from data_modules.synth.rasterizer import Hits, coverage, first_depth, pixel_rays, rasterize
from data_modules.synth.render import encode_srgb
from data_modules.synth.types import Person

UNLABELLED, OCCLUDED, VISIBLE = 0, 1, 2
# A keypoint lies this much deeper than its radius and still counts as seen, for rounding.
_DEPTH_SLACK_M = 0.001


@dataclass(frozen=True)
class Labels:
    """The labels, and what the exposure of the picture needs.

    Args:
        fields: entries of a raw sample: alpha, normals, depth, albedo, parts, intrinsics, box, keypoints,
            visibility.
        reflectance: (H, W, 3) float32 linear albedo, zero where there is no person.
        mask: (H, W) bool, where the pixel centre sees the person.
    """

    fields: dict[str, Any]
    reflectance: np.ndarray
    mask: np.ndarray


def make_labels(person: Person, camera: Camera) -> Labels:
    """Rasterize a person as `camera` sees it; the formats are those of a raw sample."""
    height, width = camera.image_size
    corners = [camera.to_camera(mesh.vertices)[mesh.faces] for mesh in person.meshes]
    first = np.cumsum([0] + [len(c) for c in corners])
    triangles = np.concatenate(corners)
    hits = rasterize(triangles, camera.intrinsics, camera.image_size)
    owner = np.searchsorted(first, hits.triangle, side="right") - 1
    normals = np.zeros((height * width, 3), np.float32)
    reflectance = np.zeros((height * width, 3), np.float32)
    parts = np.zeros(height * width, np.uint8)
    for i, mesh in enumerate(person.meshes):
        mine = np.flatnonzero(owner == i)
        pixels, face, weights = hits.pixels[mine], hits.triangle[mine] - first[i], hits.barycentric[mine]
        faces = mesh.faces[face]
        smooth = np.einsum("nk,nkc->nc", weights, mesh.normals[faces].astype(np.float64))
        normals[pixels] = smooth @ camera.rotation.T
        uv = np.einsum("nk,nkc->nc", weights, mesh.uv[faces].astype(np.float64))
        reflectance[pixels] = sample_texture(mesh.material.albedo, uv)
        parts[pixels] = mesh.face_class[face]
    normals[hits.pixels] = _towards_camera(normals[hits.pixels], triangles, hits, camera)
    depth = np.zeros(height * width, np.float32)
    depth[hits.pixels] = hits.depth
    alpha = coverage(triangles, camera.intrinsics, camera.image_size)
    keypoints, visibility = project_keypoints(person, camera, triangles)
    mask = parts > 0
    fields = {
        "alpha": np.round(alpha * 255).astype(np.uint8),
        "normals": normals.reshape(height, width, 3),
        "depth": depth.reshape(height, width),
        "albedo": encode_srgb(reflectance).reshape(height, width, 3),
        "parts": parts.reshape(height, width),
        "intrinsics": camera.intrinsics.astype(np.float32),
        "box": tight_box(alpha > 0.5),
        "keypoints": keypoints,
        "visibility": visibility,
    }
    return Labels(fields, reflectance.reshape(height, width, 3), mask.reshape(height, width))


def project_keypoints(person: Person, camera: Camera, triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (308, 2) float32 pixels and (308,) uint8: 0 unlabelled or outside, 1 occluded, 2 visible.

    A point is visible if the first surface along its ray lies no deeper before it than its own
    `keypoint_radius`: the skin or the cloth over a joint shows it, an arm before it hides it.

    Args:
        triangles: (F, 3, 3) camera points of the person.
    """
    height, width = camera.image_size
    points, depth = camera.project(person.keypoints)
    with np.errstate(invalid="ignore"):
        inside = (points > 0).all(axis=1) & (points < [width, height]).all(axis=1) & (depth > 0)
    rows = np.flatnonzero(inside)
    surface = first_depth(triangles, camera.intrinsics, points[rows])
    stretch = np.linalg.norm(pixel_rays(points[rows], camera.intrinsics), axis=1)
    below = (depth[rows] - surface) * stretch
    keypoints = np.zeros((len(points), 2), np.float32)
    visibility = np.full(len(points), UNLABELLED, np.uint8)
    keypoints[rows] = points[rows]
    visible = below <= person.keypoint_radius[rows] + _DEPTH_SLACK_M
    visibility[rows] = np.where(visible, VISIBLE, OCCLUDED)
    return keypoints, visibility


def sample_texture(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Bilinear look-up of a repeating (h, w, 3) texture, row 0 at v = 1, at (N, 2) uv (v up) -> (N, 3)."""
    height, width = texture.shape[:2]
    if (height, width) == (1, 1):
        return np.broadcast_to(texture[0, 0], (len(uv), 3))
    x, y = uv[:, 0] * width - 0.5, (1 - uv[:, 1]) * height - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - left)[:, None], (y - top)[:, None]
    left, right, top, bottom = left % width, (left + 1) % width, top % height, (top + 1) % height
    upper = texture[top, left] * (1 - fx) + texture[top, right] * fx
    lower = texture[bottom, left] * (1 - fx) + texture[bottom, right] * fx
    return upper * (1 - fy) + lower * fy


def tight_box(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (4,) float32 x0, y0, x1, y1 that just holds the pixels; zeros if there is none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros(4, np.float32)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _towards_camera(normals: np.ndarray, triangles: np.ndarray, hits: Hits, camera: Camera) -> np.ndarray:
    """Camera-frame normals (x right, y down, z forward) -> unit normals of the kit's frame that face the viewer.

    A triangle seen from its back has its normal turned over. An interpolated normal that still leans away, at
    the rim of a coarse mesh, is laid along the rim: nothing that is seen faces away.
    """
    width = camera.image_size[1]
    points = np.stack([hits.pixels % width + 0.5, hits.pixels // width + 0.5], axis=1)
    rays = pixel_rays(points, camera.intrinsics)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    a, b, c = np.moveaxis(triangles[hits.triangle], 1, 0)
    back = np.einsum("nc,nc->n", np.cross(b - a, c - a), rays) > 0
    normals = np.where(back[:, None], -normals, normals).astype(np.float64)
    away = np.maximum(np.einsum("nc,nc->n", normals, rays), 0)
    normals -= away[:, None] * rays
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = np.where(length > 1e-6, normals / np.maximum(length, 1e-6), -rays)
    return normals * [1, -1, -1]
