"""A numbered close-up of the dense face points: ``python -m data_modules.synth.face_sheet docs/face_points.jpg``.

A person without hair, hat and glasses is rendered from the front (face, left eye, mouth and nose) and from the left
(ear), and every point that is seen there is drawn with its id in the 308 schema.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np

from data_modules.synth.body import sample_person
from data_modules.synth.camera import Camera
from data_modules.synth.labels import VISIBLE, make_labels
from data_modules.synth.lights import Light, Lighting
from data_modules.synth.render import develop, set_variant, trace
from data_modules.synth.scene import Scene
from data_modules.synth.subdivision import subdivide_person
from data_modules.synth.types import Person

#: Title, ids of the points that set the middle and the size of the picture, its side over their extent, azimuth and
#: elevation of the view.
VIEWS = (
    ("face", (77, 80, 89, 84, 92), 1.15, 0, 0),
    ("left eye", (96, 97, 116, 146), 1.35, 0, 0),
    ("nose and mouth", (178, 188, 189, 191), 1.25, 0, -28),
    ("left ear", tuple(range(220, 246)), 1.2, 80, 0),
)
_DISTANCE = 1.2


def bare_person(seed: int = 0) -> Person:
    """The first person from a seed on with a neutral face and nothing on the head."""
    while True:
        person = sample_person(np.random.default_rng(seed))
        worn = person.info["garments"]
        bare = worn["hair"] == "bald" and worn["hat"] is None and worn["glasses"] is None and not person.info["beard"]
        if bare and person.info["pose"]["expression"] == "neutral":
            return person
        seed += 1


def head_axes(person: Person) -> np.ndarray:
    """(3, 3) rows: the directions to the head's left, up and forward."""
    points = person.keypoints.astype(np.float64)
    left = points[3] - points[4]
    left /= np.linalg.norm(left)
    up = points[71] - points[77]
    up -= left * (up @ left)
    up /= np.linalg.norm(up)
    return np.stack([left, up, np.cross(left, up)])


def close_up(
    person: Person, ids: tuple[int, ...], margin: float, azimuth: float, elevation: float, side: int
) -> Camera:
    """A camera that looks at some keypoints from `azimuth` degrees to the head's left and `elevation` above it."""
    left, up, forward = head_axes(person)
    turn, lift = np.deg2rad([azimuth, elevation])
    level = np.sin(turn) * left + np.cos(turn) * forward
    toward = np.cos(lift) * level + np.sin(lift) * up
    right = np.cross(up, level)
    rotation = np.stack([right, np.cross(right, toward), -toward])
    points = person.keypoints[list(ids)].astype(np.float64) @ rotation.T
    low, high = points.min(axis=0), points.max(axis=0)
    position = ((low + high) / 2) @ rotation + _DISTANCE * toward
    focal = side * _DISTANCE / (margin * (high - low)[:2].max())
    return Camera(
        np.array([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1.0]]), rotation, position, (side,) * 2, {}
    )


def draw_view(person: Person, title: str, camera: Camera, samples_per_pixel: int) -> np.ndarray:
    """The rendered view with the visible face points numbered, uint8 (H, W, 3)."""
    axes = head_axes(person)
    middle = person.keypoints[71].astype(np.float64)
    lights = tuple(
        Light("panel", middle + np.array(place) @ axes, middle, np.full(3, strength), 0.8)
        for place, strength in (((1.2, 0.9, 1.6), 1.0), ((-1.5, 0.2, 1.2), 0.5))
    )
    lighting = Lighting("studio", lights, np.full(3, 0.15), 0.9)
    scene = Scene(person, camera, lighting, (), np.full((4, 8, 3), 0.2, np.float32), None, {})
    labels = make_labels(person, camera)
    radiance = trace(scene, samples_per_pixel, seed=0)
    picture = develop(radiance, scene, labels.reflectance, labels.mask, np.random.default_rng(0))
    points, visibility = labels.fields["keypoints"], labels.fields["visibility"]
    for index in np.flatnonzero(visibility[70:] == VISIBLE) + 70:
        x, y = (round(float(value) * 16 - 8) for value in points[index])
        cv2.circle(picture, (x, y), 28, (0, 255, 60), -1, cv2.LINE_AA, 4)
        place = (int(points[index, 0]) + 5, int(points[index, 1]) - 2)
        for color, width in (((0, 0, 0), 2), ((255, 255, 255), 1)):
            cv2.putText(picture, str(index), place, cv2.FONT_HERSHEY_SIMPLEX, 0.36, color, width, cv2.LINE_AA)
    cv2.putText(picture, title, (8, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 1, cv2.LINE_AA)
    return picture


def main(path: str, side: int = 640, samples_per_pixel: int = 8) -> None:
    """Write the sheet of four views."""
    set_variant("scalar_rgb")
    person = subdivide_person(bare_person())
    views = [
        draw_view(person, title, close_up(person, ids, margin, azimuth, elevation, side), samples_per_pixel)
        for title, ids, margin, azimuth, elevation in VIEWS
    ]
    sheet = np.vstack([np.hstack(views[:2]), np.hstack(views[2:])])
    if not cv2.imwrite(path, sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 84]):
        raise OSError(f"{path}: cannot be written")


if __name__ == "__main__":
    main(*sys.argv[1:2])
