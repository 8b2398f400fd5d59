"""Try a variant of Mitsuba: ``python -m data_modules.synth.probe VARIANT`` prints "works", if it lives to do so.

It renders a small scene with every kind of material and lamp: an unsuited LLVM adds numbers happily and aborts the
process when it meets the kernel of a real scene.
"""

from __future__ import annotations

import sys

import numpy as np

from data_modules.synth.backgrounds import Surface
from data_modules.synth.camera import Camera, view_rotation
from data_modules.synth.lights import Light, Lighting
from data_modules.synth.render import set_variant, trace
from data_modules.synth.scene import Scene
from data_modules.synth.types import NUM_KEYPOINTS, Material, Mesh, Person

_SIDE = 16


def probe_scene() -> Scene:
    """Two textured squares, one matt and one glossy, before a third, under a sun, a panel and a spot."""
    corners = np.array([[-1, 0, 0], [0, 0, 0], [0, 2, 0], [-1, 2, 0]], np.float32)
    uv = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    normals = np.tile(np.float32([0, 0, 1]), (4, 1))
    checks = np.tile(np.float32([[0.2, 0.8], [0.8, 0.2]])[..., None], (1, 1, 3))
    meshes = tuple(
        Mesh(name, corners + np.float32([x, 0, 0]), faces, normals, uv, np.full(2, 1, np.uint8), material)
        for name, x, material in (("matt", 0, Material(checks, 1.0, 0.0)), ("glossy", 1, Material(checks, 0.4, 0.5)))
    )
    person = Person(meshes, np.full((NUM_KEYPOINTS, 3), np.nan, np.float32), np.zeros(NUM_KEYPOINTS, np.float32), {})
    camera = Camera(
        np.array([[_SIDE, 0, _SIDE / 2], [0, _SIDE, _SIDE / 2], [0, 0, 1.0]]),
        view_rotation(10, 0, 0),
        np.array([0.5, 1.0, 3.0]),
        (_SIDE, _SIDE),
        {},
    )
    target = np.array([0.0, 1.0, 0.0])
    lights = tuple(
        Light(kind, np.array([x, 3.0, 2.0]), target, np.ones(3), 0.5)
        for kind, x in (("sun", -2), ("panel", 0), ("spot", 2))
    )
    lighting = Lighting("outdoor", lights, np.ones(3), 1.0)
    wall = Surface(corners * np.float32([9, 9, 1]) - np.float32([0, 5, 1]), faces, uv, checks)
    return Scene(person, camera, lighting, (wall,), np.ones((4, 8, 3), np.float32), None, {})


def main() -> None:
    """Render the scene with the variant named on the command line."""
    set_variant(sys.argv[1])
    rgb = trace(probe_scene(), samples_per_pixel=4, seed=0).rgb
    if np.isfinite(rgb).all() and rgb.mean() > 0.05:
        print("works")


if __name__ == "__main__":
    main()
