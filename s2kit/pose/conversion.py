"""From one keypoint set to another: what the target has and the source can give."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np

from s2kit.schemas import KeypointSet, SchemaError, load_keypoint_set


@dataclass(frozen=True)
class Conversion:
    """The sources of each target point.

    Attributes:
        source, target: the keypoint sets.
        weights: (K target, K source) float64; a row holds the shares of the source's points, zeros where it has none.
    """

    source: KeypointSet
    target: KeypointSet
    weights: np.ndarray

    @property
    def covered(self) -> np.ndarray:
        """(K target,) bool, which points the source can give."""
        return self.weights.any(axis=1)


@lru_cache(maxsize=16)
def load_conversion(source: int | str | Path, target: int | str | Path) -> Conversion:
    """The conversion between two keypoint sets, by their names ("sapiens2-308", "openpose-25") or numbers of points.

    A target point is the mean of the source points that ``s2kit/schemas/conversions.json`` names for it, else the
    source's point of the same name, else none.

    Raises:
        SchemaError: no such set, or the file names a point that is not there.
    """
    first, second = load_keypoint_set(source), load_keypoint_set(target)
    weights = np.zeros((len(second), len(first)))
    for point in second.keypoints:
        if point.name in first.ids:
            weights[point.id, first.ids[point.name]] = 1
    for rule in _rules():
        if rule["target"] != second.name or rule["source"] not in (first.name, "any"):
            continue
        for name, parts in rule["points"].items():
            missing = [part for part in parts if part not in first.ids]
            if name not in second.ids or (missing and rule["source"] != "any"):
                raise SchemaError(f"conversions.json: {first.name} to {second.name}: no point {missing or name}")
            if not missing:
                weights[second.ids[name]] = 0
                weights[second.ids[name], [first.ids[part] for part in parts]] = 1 / len(parts)
    if not weights.any():
        raise SchemaError(f"{second.name} has no point in common with {first.name}")
    return Conversion(first, second, weights)


@lru_cache(maxsize=1)
def _rules() -> list[dict]:
    return json.loads((resources.files("s2kit.schemas") / "conversions.json").read_text(encoding="utf-8"))["rules"]


def convert_keypoints(
    keypoints: np.ndarray, scores: np.ndarray, source: int | str | Path, target: int | str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """Convert keypoints of one set to another.

    Args:
        keypoints: (..., K, 2); scores: (..., K) scores or visibilities.
        source, target: see `load_conversion`.

    Returns:
        Keypoints (..., L, 2) and scores (..., L) of the target, of the same types: the lowest of a mean's parts; points
        that the source cannot give are (0, 0) with score 0, and so are means with a part of score 0.

    Raises:
        ValueError: shapes that are not the source's.
        SchemaError: see `load_conversion`.
    """
    conversion = load_conversion(source, target)
    count = len(conversion.source)
    if keypoints.shape[-2:] != (count, 2) or scores.shape != keypoints.shape[:-1]:
        raise ValueError(
            f"expected keypoints (..., {count}, 2) and scores (..., {count}) of {conversion.source.name}, got "
            f"{keypoints.shape} and {scores.shape}"
        )
    points = np.zeros((*keypoints.shape[:-2], len(conversion.target), 2), keypoints.dtype)
    values = np.zeros(points.shape[:-1], scores.dtype)
    for row, shares in enumerate(conversion.weights):
        parts = np.flatnonzero(shares)
        if len(parts):
            value = scores[..., parts].min(axis=-1)
            mean = (keypoints[..., parts, :] * shares[parts, None]).sum(axis=-2)
            values[..., row], points[..., row, :] = value, np.where(value[..., None] > 0, mean, 0)
    return points, values
