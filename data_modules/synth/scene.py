"""A scene: a person, a camera that frames it, what stands behind, and the light. No renderer is needed here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_modules.synth.backgrounds import Surface, image_backdrop, open_ground, sample_room
from data_modules.synth.camera import Camera, sample_camera
from data_modules.synth.lights import LIGHTINGS, Light, Lighting, sample_lighting
from data_modules.synth.textures import ambient_sky, flat_picture, sky
from data_modules.synth.types import Person

BACKGROUNDS = ("room", "outdoor", "picture")
_BACKGROUND_SHARES = (0.4, 0.25, 0.35)


@dataclass(frozen=True)
class Scene:
    """All that a picture is made of.

    Args:
        person: the figure that the labels describe.
        camera: the view.
        lighting: lamps and ambient light.
        surfaces: of the surroundings; none of them lies before the person.
        environment: (h, w, 3) float32 linear radiance all around, top row straight up; it is seen by the camera
            only where there is no backdrop.
        backdrop: (H, W, 3) float32 linear picture, as displayed, that fills what the person leaves free; or None.
        info: JSON-able description.
    """

    person: Person
    camera: Camera
    lighting: Lighting
    surfaces: tuple[Surface, ...]
    environment: np.ndarray
    backdrop: np.ndarray | None
    info: dict[str, Any]


def sample_scene(
    rng: np.random.Generator,
    person: Person,
    image_size: tuple[int, int],
    images: list[Path] | None = None,
) -> Scene:
    """Draw camera, background and light for `person`.

    Args:
        image_size: (height, width).
        images: the user's background images; if given, they are the only backgrounds.

    Raises:
        ValueError: a background image cannot be read.
    """
    camera = sample_camera(rng, person, image_size)
    background = "image" if images else BACKGROUNDS[rng.choice(3, p=_BACKGROUND_SHARES)]
    if background == "outdoor":
        shares = (0.8, 0.0, 0.08, 0.12)
    elif background == "room":
        shares = (0.0, 0.6, 0.2, 0.2)
    else:
        shares = (0.35, 0.3, 0.2, 0.15)
    name = LIGHTINGS[rng.choice(4, p=shares)]
    points = np.concatenate([mesh.vertices for mesh in person.meshes]).astype(np.float64)
    target = (points.min(axis=0) + points.max(axis=0)) / 2
    ceiling = max(points[:, 1].max(), camera.position[1]) + rng.uniform(0.3, 1.2)
    lighting = sample_lighting(rng, name, target, _horizontal(camera), ceiling if background == "room" else 8.0)
    surfaces: list[Surface] = []
    backdrop = None
    environment = ambient_sky(rng, lighting.ambient)
    if background == "room":
        lamps = np.array([light.position for light in lighting.lights])
        surfaces = sample_room(rng, points, camera, lamps, ceiling)
    elif background == "outdoor":
        surfaces = open_ground(rng, target)
        environment = sky(rng, lighting.ambient)
    elif background == "picture":
        backdrop = flat_picture(rng, image_size)
    else:
        backdrop = image_backdrop(rng, images[rng.integers(len(images))], image_size)
    lights = tuple(
        replace(light, kind="spot") if _may_hide(light, points, camera) else light for light in lighting.lights
    )
    lighting = replace(lighting, lights=lights)
    info = {"background": background, "lighting": name, "lights": [light.kind for light in lights]}
    return Scene(person, camera, lighting, tuple(surfaces), environment, backdrop, info | lighting.info)


def _horizontal(camera: Camera) -> np.ndarray:
    """Unit direction along the ground from the subject to the camera."""
    back = -camera.rotation[2] * [1, 0, 1]
    return back / max(np.linalg.norm(back), 1e-6)


def _may_hide(light: Light, points: np.ndarray, camera: Camera) -> bool:
    """Whether a panel could stand between the camera and the person (suns and spots have no body)."""
    if light.kind != "panel":
        return False
    x, y, z = camera.to_camera(light.position)
    reach = light.size * 0.75
    if z < -reach or z - reach > camera.to_camera(points)[:, 2].max():
        return False
    height, width = camera.image_size
    slopes = np.array([width / 2, height / 2]) / camera.intrinsics[0, 0]
    # Distance of the panel's centre to the four side planes of the view, outwards.
    outside = (np.abs([x, y]) - slopes * z) / np.hypot(1, slopes)
    return bool(outside.max() < reach)
