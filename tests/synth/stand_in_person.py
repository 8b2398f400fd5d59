"""A figure of ellipsoids with the interface of a real person, made in milliseconds. Loaded by path, not imported."""

import numpy as np

from data_modules.synth.types import Material, Mesh, Person

JOINTS = {
    0: (0, 1.62, 0.1),
    5: (0.18, 1.42, 0),
    6: (-0.18, 1.42, 0),
    7: (0.3, 1.15, 0),
    8: (-0.3, 1.15, 0),
    62: (0.4, 0.95, 0.05),
    41: (-0.4, 0.95, 0.05),
    9: (0.1, 0.92, 0),
    10: (-0.1, 0.92, 0),
    11: (0.12, 0.5, 0),
    12: (-0.12, 0.5, 0),
    13: (0.12, 0.09, 0),
    14: (-0.12, 0.09, 0),
    69: (0, 1.48, 0),
}
LIMBS = {"upper_arm": ((5, 7, 11), (6, 8, 20)), "lower_arm": ((7, 62, 7), (8, 41, 16))}
LIMBS |= {"upper_leg": ((9, 11, 12), (10, 12, 21)), "lower_leg": ((11, 13, 8), (12, 14, 17))}


def ellipsoid(centre, radii, name: str, face_class: int, material: Material, steps: int = 24) -> Mesh:
    """An ellipsoid: uv runs once around (u, from the back over the person's left) and from bottom to top (v)."""
    polar, around = np.meshgrid(
        np.linspace(0, np.pi, steps + 1), np.linspace(0, 2 * np.pi, 2 * steps + 1), indexing="ij"
    )
    unit = np.stack([-np.sin(polar) * np.sin(around), np.cos(polar), -np.sin(polar) * np.cos(around)], -1)
    unit = unit.reshape(-1, 3)
    normals = unit / np.asarray(radii, float)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    row = 2 * steps + 1
    first = (np.arange(steps)[:, None] * row + np.arange(2 * steps)).ravel()
    faces = np.concatenate(
        [
            np.stack([first, first + row, first + row + 1], 1),
            np.stack([first, first + row + 1, first + 1], 1),
        ]
    )
    uv = np.stack([around / (2 * np.pi), 1 - polar / np.pi], -1).reshape(-1, 2)
    return Mesh(
        name,
        (unit * np.asarray(radii, float) + centre).astype(np.float32),
        faces.astype(np.int32),
        normals.astype(np.float32),
        uv.astype(np.float32),
        np.full(len(faces), face_class, np.uint8),
        material,
    )


def _material(rng: np.random.Generator, size: int = 1) -> Material:
    albedo = rng.uniform(0.1, 0.8, (size, size, 3)).astype(np.float32)
    return Material(albedo, float(rng.uniform(0.3, 1)), 0.5)


def prepare() -> None:
    """There is nothing to load."""


def sample_person(rng: np.random.Generator) -> Person:
    """The figure in random colours; faces +z, so its left is at +x."""
    meshes = [
        ellipsoid((0, 1.63, 0), (0.09, 0.12, 0.1), "head", 3, _material(rng)),
        ellipsoid((0, 1.2, 0), (0.2, 0.32, 0.12), "top", 23, _material(rng, 16)),
        ellipsoid((0, 0.9, 0), (0.18, 0.15, 0.13), "shorts", 13, _material(rng)),
    ]
    for name, sides in LIMBS.items():
        for start, end, face_class in sides:
            a, b = np.array(JOINTS[start]), np.array(JOINTS[end])
            radii = (0.06, np.linalg.norm(b - a) / 2 + 0.05, 0.06)
            meshes.append(ellipsoid((a + b) / 2, radii, f"{name}_{face_class}", face_class, _material(rng)))
    keypoints = np.full((308, 3), np.nan, np.float32)
    for index, point in JOINTS.items():
        keypoints[index] = point
    return Person(tuple(meshes), keypoints, np.full(308, 0.06, np.float32), {"figure": "stand-in"})
