"""The 308-schema keypoints of a posed Anny body (spec 4.2.5).

Ids 0-4 come from Anny's landmark weights on the skin, joints from its landmark weights and bone heads, finger tips
from the skin's outermost vertex, the dense face points 70-307 from `face_points`.
"""

from __future__ import annotations

import functools

import numpy as np

from data_modules.synth.anny_data import LANDMARKS
from data_modules.synth.face_points import face_keypoints
from data_modules.synth.posed import PosedBody, find_anchors
from data_modules.synth.regions import load_regions
from data_modules.synth.rig import load_rig
from data_modules.synth.types import NUM_KEYPOINTS
from s2kit.schemas.keypoint_set import load_keypoint_set

_IDS = load_keypoint_set(NUM_KEYPOINTS).ids
_WORDS = {"L": "left", "R": "right"}
BODY_IDS = {name: _IDS[name] for name in LANDMARKS}
HAND_START = {side: _IDS[f"{word}_thumb4"] for side, word in _WORDS.items()}
OLECRANON = {side: _IDS[f"{word}_olecranon"] for side, word in _WORDS.items()}
CUBITAL_FOSSA = {side: _IDS[f"{word}_cubital_fossa"] for side, word in _WORDS.items()}
ACROMION = {side: _IDS[f"{word}_acromion"] for side, word in _WORDS.items()}
NECK = _IDS["neck"]
FIRST_FACE_ID, FIRST_EYE_ID = _IDS["center_of_glabella"], _IDS["l_center_of_iris"]

# Metres from a point to the surface that shows it, cloth included; joints lie inside the limb.
_RADIUS = {
    "nose": 0.005,
    "eye": 0.012,
    "ear": 0.02,
    "shoulder": 0.075,
    "elbow": 0.05,
    "hip": 0.11,
    "knee": 0.065,
    "ankle": 0.045,
    "toe": 0.018,
    "heel": 0.02,
    "wrist": 0.03,
}
_CLOTH = 0.004
# Points of the face lie on the skin, but for what the finer mesh of large pictures bulges; lids are as thin as that.
_FACE_RADIUS, _EYE_RADIUS = 0.001, 0.0


@functools.lru_cache(maxsize=1)
def keypoint_radius() -> np.ndarray:
    """(308,) float32 metres: how deep each point lies under what shows it, skin or cloth."""
    radius = np.zeros(NUM_KEYPOINTS, np.float32)
    for name, index in BODY_IDS.items():
        radius[index] = _RADIUS[name.split("_")[-1]]
    for start in HAND_START.values():
        for finger in range(5):
            radius[start + 4 * finger : start + 4 * finger + 4] = [0.006, 0.01, 0.012, 0.018]
    radius[list(OLECRANON.values()) + list(CUBITAL_FOSSA.values())] = 0.012
    radius[list(ACROMION.values())] = 0.025
    radius[NECK] = 0.075
    radius[radius > 0] += _CLOTH
    radius[FIRST_FACE_ID:FIRST_EYE_ID] = _FACE_RADIUS
    radius[FIRST_EYE_ID:] = _EYE_RADIUS
    return radius


@functools.lru_cache(maxsize=1)
def _special_vertices() -> dict[str, np.ndarray]:
    """Vertex indices of finger tips and of the surface points at elbow, found on the template."""
    rig, regions = load_rig(), load_regions()
    points, joints, found = regions.points, regions.joints, {}
    for side in ("L", "R"):
        for finger in range(1, 6):
            last, before = joints[f"finger{finger}-3.{side}"], joints[f"finger{finger}-2.{side}"]
            weight = rig.weights[:, rig.bone[f"finger{finger}-3.{side}"]]
            along = np.where(weight > 0.5, (points - last) @ (last - before), -np.inf)
            found[f"tip{finger}.{side}"] = np.argsort(along)[-4:]
        shoulder, elbow, wrist = (joints[f"{n}.{side}"] for n in ("upperarm01", "lowerarm01", "wrist"))
        # The tip of the elbow looks away from both the shoulder and the wrist.
        outward = -(
            (shoulder - elbow) / np.linalg.norm(shoulder - elbow) + (wrist - elbow) / np.linalg.norm(wrist - elbow)
        )
        near = np.linalg.norm(points - elbow, axis=1) < 0.08
        found[f"olecranon.{side}"] = np.argsort(np.where(near, (points - elbow) @ outward, -np.inf))[-4:]
        ring = near & (np.abs((points - elbow) @ (wrist - shoulder)) < 0.012 * np.linalg.norm(wrist - shoulder))
        found[f"cubital_fossa.{side}"] = np.argsort(np.where(ring, -(points - elbow) @ outward, -np.inf))[-4:]
    return found


def person_keypoints(body: PosedBody, pupil: float) -> np.ndarray:
    """(308, 3) float32 points in the body's frame.

    Args:
        pupil: radius of the pupils in radii of the eyeball.
    """
    rig, posed, joints = load_rig(), body.points, body.joints
    result = np.full((NUM_KEYPOINTS, 3), np.nan, np.float32)
    landmarks = rig.data.landmarks @ posed
    for row, name in enumerate(LANDMARKS):
        result[BODY_IDS[name]] = landmarks[row]
    special = {name: posed[index].mean(axis=0) for name, index in _special_vertices().items()}
    for side, start in HAND_START.items():
        for finger in range(1, 6):
            row = start + 4 * (finger - 1)
            result[row] = special[f"tip{finger}.{side}"]
            for joint in (3, 2, 1):
                result[row + 4 - joint] = joints[rig.bone[f"finger{finger}-{joint}.{side}"]]
        result[OLECRANON[side]] = special[f"olecranon.{side}"]
        result[CUBITAL_FOSSA[side]] = special[f"cubital_fossa.{side}"]
        result[ACROMION[side]] = _acromion(body, side)
    result[NECK] = joints[rig.bone["neck01"]]
    face_ids, face = face_keypoints(posed, pupil)
    result[face_ids] = face
    return result


def _acromion(body: PosedBody, side: str) -> np.ndarray:
    """(3,) the outer end of the shoulder's roof, which goes with the shoulder blade and not with the arm."""
    joints = load_regions().joints
    blade, shoulder = joints[f"shoulder01.{side}"], joints[f"upperarm01.{side}"]
    point = (0.25 * blade + 0.75 * shoulder + [0.0, 0.045, -0.01])[None].astype(np.float32)
    return body.carry(body.fit(point, find_anchors(point, _shoulder_vertices())), {f"shoulder01.{side}": 1.0})[0]


@functools.lru_cache(maxsize=1)
def _shoulder_vertices() -> np.ndarray:
    regions = load_regions()
    return np.flatnonzero(regions.is_group("torso", "upper_arm") & (regions.points[:, 1] > 0.55))
