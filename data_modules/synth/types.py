"""What the body side hands to the render side: materials, meshes, and a person.

World frame of everything here: metres, y up, ground at y = 0, the person near x = z = 0 facing +z, so that
the person's own left is at +x. "Left" in a class or keypoint name is always the person's left.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

NUM_KEYPOINTS = 308
NUM_CLASSES = 29


def _check_array(owner: str, field: str, array: np.ndarray, shape: tuple[int | None, ...], dtype: type) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{owner}: {field} must be a numpy array of {np.dtype(dtype)}, got {kind}")
    if array.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, array.shape)):
        raise ValueError(f"{owner}: {field} must have shape {shape}, got {array.shape}")
    if np.issubdtype(dtype, np.floating) and field != "keypoints" and not np.isfinite(array).all():
        raise ValueError(f"{owner}: {field} holds a value that is not finite")


@dataclass(frozen=True)
class Material:
    """How a mesh reflects light.

    Args:
        albedo: (h, w, 3) float32 LINEAR reflectance in [0, 1]; row 0 is the top of the texture (v = 1).
            1 x 1 for a plain colour.
        roughness: of the specular lobe, 0 (mirror) to 1 (matt).
        specular: strength of the specular lobe in [0, 1]; 0.5 is a dielectric of index 1.5.
    """

    albedo: np.ndarray
    roughness: float
    specular: float

    def validate(self, owner: str = "material") -> None:
        """Raise ValueError, naming the field, if a value is out of range."""
        _check_array(owner, "albedo", self.albedo, (None, None, 3), np.float32)
        if self.albedo.size == 0 or self.albedo.min() < 0 or self.albedo.max() > 1:
            raise ValueError(f"{owner}: albedo must be non-empty and in [0, 1]")
        for field in ("roughness", "specular"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{owner}: {field} must be in [0, 1], got {getattr(self, field)}")


@dataclass(frozen=True)
class Mesh:
    """One triangle mesh with one material.

    Args:
        name: such as "skin", "top", "left_shoe"; unique within a person.
        vertices: (V, 3) float32, metres, world.
        faces: (F, 3) int32, counter-clockwise seen from outside.
        normals: (V, 3) float32 unit vertex normals, outward.
        uv: (V, 2) float32 in [0, 1], v up.
        face_class: (F,) uint8 ids of the 29 classes (spec 4.3.1).
        material: of all faces.
        two_sided: the inside can be seen (an open shell); the normal is then turned to the viewer.
    """

    name: str
    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    uv: np.ndarray
    face_class: np.ndarray
    material: Material
    two_sided: bool = False

    def validate(self) -> None:
        """Raise ValueError, naming the mesh and the field, if an array has the wrong shape, type or range."""
        owner = f"mesh {self.name!r}"
        count = len(self.vertices)
        _check_array(owner, "vertices", self.vertices, (None, 3), np.float32)
        _check_array(owner, "faces", self.faces, (None, 3), np.int32)
        _check_array(owner, "normals", self.normals, (count, 3), np.float32)
        _check_array(owner, "uv", self.uv, (count, 2), np.float32)
        _check_array(owner, "face_class", self.face_class, (len(self.faces),), np.uint8)
        if len(self.faces) == 0 or self.faces.min() < 0 or self.faces.max() >= count:
            raise ValueError(f"{owner}: faces must be non-empty and index 0..{count - 1}")
        if np.abs(np.linalg.norm(self.normals, axis=1) - 1).max() > 1e-3:
            raise ValueError(f"{owner}: normals must have length 1")
        if self.uv.min() < 0 or self.uv.max() > 1:
            raise ValueError(f"{owner}: uv must be in [0, 1], got {self.uv.min()}..{self.uv.max()}")
        if self.face_class.min() < 1 or self.face_class.max() >= NUM_CLASSES:
            raise ValueError(f"{owner}: face_class must be in 1..{NUM_CLASSES - 1} (0 is the background)")
        self.material.validate(owner)


@dataclass(frozen=True)
class Person:
    """A dressed, posed adult.

    Args:
        meshes: all surfaces, skin and garments.
        keypoints: (308, 3) float32 world points in the 308 schema's order, NaN where unlabelled.
        keypoint_radius: (308,) float32 metres: how deep the point lies under the surface that shows it.
        info: JSON-able description (sex, age, height, pose, garments, skin tone, ...).
    """

    meshes: tuple[Mesh, ...]
    keypoints: np.ndarray
    keypoint_radius: np.ndarray
    info: dict[str, Any]

    def validate(self) -> None:
        """Raise ValueError, naming the part that is wrong; also if `info` is not JSON-able."""
        if not self.meshes:
            raise ValueError("person: needs at least one mesh")
        names = [mesh.name for mesh in self.meshes]
        if len(set(names)) != len(names):
            raise ValueError(f"person: mesh names must be unique, got {names}")
        for mesh in self.meshes:
            mesh.validate()
        _check_array("person", "keypoints", self.keypoints, (NUM_KEYPOINTS, 3), np.float32)
        _check_array("person", "keypoint_radius", self.keypoint_radius, (NUM_KEYPOINTS,), np.float32)
        missing = np.isnan(self.keypoints).any(axis=1)
        if not np.isfinite(self.keypoints[~missing]).all() or not np.isnan(self.keypoints[missing]).all():
            raise ValueError("person: a keypoint must be three finite numbers, or three NaN")
        if self.keypoint_radius.min() < 0:
            raise ValueError("person: keypoint_radius must not be negative")
        json.dumps(self.info, allow_nan=False)
