"""A body in its pose, with what garments and accessories need to follow it."""

from __future__ import annotations

import functools

import numpy as np

from data_modules.synth.regions import load_regions, load_surface
from data_modules.synth.rig import BodyShape, load_rig


class PosedBody:
    """A person's skin in two poses: the reference pose, where clothes are cut, and the pose to render.

    Attributes:
        points, normals: (V, 3) posed skin and its unit normals.
        reference: (V, 3) the same person in the reference pose.
        joints, reference_joints: (B, 3).
        turns: (B, 3, 3) rotations of the bones from the reference pose to the pose.
    """

    def __init__(self, shape: BodyShape, rotations: np.ndarray) -> None:
        rig = load_rig()
        transforms, self.joints = rig.pose(shape, rotations)
        reference_transforms, self.reference_joints = rig.reference_pose(shape)
        self.points = rig.skin(shape.vertices, rig.weights, transforms)
        self.reference = rig.skin(shape.vertices, rig.weights, reference_transforms)
        self.normals = load_surface().normals(self.points)
        self.turns = transforms[:, :, :3] @ reference_transforms[:, :, :3].transpose(0, 2, 1)
        self._rig = rig

    def joint(self, name: str, reference: bool = False) -> np.ndarray:
        """(3,) the head of a bone."""
        return (self.reference_joints if reference else self.joints)[self._rig.bone[name]]

    def carry(self, points: np.ndarray, weights: dict[str, np.ndarray | float]) -> np.ndarray:
        """Move (N, 3) points of the reference pose with bones: {bone: (N,) weights that sum to 1}."""
        result = np.zeros_like(points, dtype=np.float32)
        for name, weight in weights.items():
            bone = self._rig.bone[name]
            moved = (points - self.reference_joints[bone]) @ self.turns[bone].T + self.joints[bone]
            result += np.asarray(weight, np.float32).reshape(-1, 1) * moved
        return result

    def fit(self, points: np.ndarray, anchors: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Move (N, 3) points drawn beside the template by what this person's shape changes at the anchors
        (`find_anchors`); the result is in this person's reference pose."""
        index, weight = anchors
        change = (self.reference - load_regions().points)[index]
        return (points + np.einsum("nk,nkc->nc", weight, change)).astype(np.float32)


def find_anchors(points: np.ndarray, among: np.ndarray | None = None, count: int = 8):
    """(N, K) vertices of the template nearest to each point, and their (N, K) weights by inverse distance."""
    skin = load_regions().points
    candidates = np.arange(len(skin)) if among is None else among
    distance = np.linalg.norm(points[:, None] - skin[candidates][None], axis=2)
    nearest = np.argpartition(distance, count - 1, axis=1)[:, :count]
    weight = 1 / (np.take_along_axis(distance, nearest, axis=1) + 0.005)
    return candidates[nearest], (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=1)
def head_vertices() -> np.ndarray:
    """Every second vertex of the scalp and face, enough to fit accessories by."""
    regions = load_regions()
    return np.flatnonzero(regions.is_group("head", "neck") & ~regions.eye)[::3]
