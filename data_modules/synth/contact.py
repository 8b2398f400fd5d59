"""Keep arms out of the body: a pose drawn for the average figure may sink a hand into a wider one."""

from __future__ import annotations

import functools

import numpy as np

from data_modules.synth.regions import load_regions
from data_modules.synth.rig import BodyShape, Rig
from data_modules.synth.rotations import turn

# Room for clothes between an arm and the skin, and how far a nearest vertex still speaks for a point (metres).
MARGIN, REACH = 0.018, 0.1


@functools.lru_cache(maxsize=1)
def _samples() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Vertices of trunk, thighs and head that an arm may hit, and by side those of forearm and hand."""
    regions = load_regions()
    solid = np.flatnonzero(regions.is_group("torso", "upper_leg") & (np.abs(regions.arm) > 0.03))
    head = np.flatnonzero(regions.is_group("head", "neck") & ~regions.eye)[::7]
    arms = {}
    for sign, side in ((1, "L"), (-1, "R")):
        fore = np.flatnonzero(regions.is_group("lower_arm") & (regions.side == sign))[::4]
        hand = np.flatnonzero(regions.is_group("hand") & (regions.side == sign))[::40]
        arms[side] = np.concatenate([fore, hand])
    return np.concatenate([solid, head]), arms


def keep_arms_out(rig: Rig, shape: BodyShape, rotations: np.ndarray, tries: int = 6) -> tuple[np.ndarray, float]:
    """Swing arms about the shoulder, step by step, out of trunk, head and thighs.

    Args:
        rotations: (B, 3, 3) of `Rig.pose`.

    Returns:
        The rotations to use, and the depth in metres by which a point of an arm still sinks in.
    """
    rotations = rotations.copy()
    solid, arms = _samples()
    reference, _ = rig.reference_pose(shape)
    depth = 0.0
    for _ in range(tries):
        transforms, joints = rig.pose(shape, rotations)
        turns = transforms[:, :, :3] @ reference[:, :, :3].transpose(0, 2, 1)
        skin = rig.skin(shape.vertices[solid], rig.weights[solid], transforms)
        blended = (rig.weights[solid] @ turns.reshape(len(turns), 9)).reshape(-1, 3, 3)
        normals = np.einsum("nij,nj->ni", blended, load_regions().normals[solid])
        depth, moved = 0.0, False
        for side, index in arms.items():
            points = rig.skin(shape.vertices[index], rig.weights[index], transforms)
            distance = np.linalg.norm(points[:, None] - skin[None], axis=2)
            nearest = distance.argmin(axis=1)
            out = ((points - skin[nearest]) * normals[nearest]).sum(axis=1)
            sunk = np.where(distance.min(axis=1) < REACH, MARGIN - out, 0)
            if sunk.max() <= 0.004:
                continue
            worst = sunk > 0.5 * sunk.max()
            push = normals[nearest][worst].mean(axis=0)
            at = points[worst].mean(axis=0)
            _swing(rig, rotations, turns, joints, side, at, push, float(sunk.max()))
            depth, moved = max(depth, float(sunk.max()) - MARGIN), True
        if not moved:
            break
    return rotations, max(depth, 0.0)


def _swing(rig: Rig, rotations, turns, joints, side: str, at: np.ndarray, push: np.ndarray, way: float) -> None:
    """Turn the upper arm about the shoulder so that the point `at` moves by about `way` along `push`."""
    bone = rig.bone[f"upperarm01.{side}"]
    parent = int(rig.parents[bone])
    lever = at - joints[bone]
    axis = np.cross(lever, push)
    length = np.linalg.norm(axis)
    if length < 1e-6:
        return
    degrees = np.rad2deg(min(way * (lever @ lever) ** 0.5 / length / np.linalg.norm(lever), 0.35))
    world = turn(axis, degrees)
    rotations[bone] = turns[parent].T @ world @ turns[parent] @ rotations[bone]
