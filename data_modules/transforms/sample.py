"""Warp a raw sample with everything that is labelled in it."""

from typing import Any

import cv2
import numpy as np

from data_modules.transforms.checks import MAPS
from data_modules.transforms.compositing import premultiply, straighten
from data_modules.transforms.geometry import (
    map_points,
    mirrors,
    turn_normals,
    warp_image,
    warp_intrinsics,
    warp_labels,
)
from s2kit.schemas import ClassList, KeypointSet, load_class_list, load_keypoint_set

_UNCHANGED = ("key", "meta", "id", "person_id", "iscrowd")


def warp_sample(sample: dict[str, Any], matrix: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Warp a raw sample: picture and every label by one matrix, whose flip and rotation are read from it.

    ``image``, ``albedo`` and ``alpha`` are resampled (bilinear, by area where they shrink), ``foreground`` weighted by
    ``alpha``; ``normals``, ``depth`` and ``parts`` take the nearest pixel, so that nothing is blended across an edge.
    Normals turn with the picture. A mirroring also swaps the left and right part classes (of 29) and keypoints. Depth
    keeps its values: scaling a picture is a change of ``intrinsics``, and so is moving it. Outside the source: parts
    255 (ignored), all else 0. Keypoints that leave the picture, or had visibility 0, become (0, 0) with visibility 0.
    ``box`` becomes the bounds of its four corners, cut to the picture (all zero if nothing is left): after a rotation
    it is looser than it could be. ``area`` scales with the picture, whatever of it is cut off. The same holds for each
    of ``people``.

    Args:
        sample: A raw sample; all maps have the picture's (H, W).
        matrix: (3, 3) source pixel -> target pixel, continuous coordinates.
        size: (h, w) of the target.

    Returns:
        A new sample; ``key`` and ``meta`` are passed on as they are.

    Raises:
        KeyError: If the sample has a field that this function does not know how to warp.
        ValueError: If a map has another size than the picture.
    """
    warped: dict[str, Any] = {}
    for name, value in sample.items():
        if name in _UNCHANGED:
            warped[name] = value
        elif name in _WARPS:
            if name in MAPS and value.shape[:2] != sample["image"].shape[:2]:
                raise ValueError(
                    f"sample {sample.get('key')!r}: {name!r} has size {value.shape[:2]}, "
                    f"its image {sample['image'].shape[:2]} (height, width)"
                )
            warped[name] = _WARPS[name](value, matrix, size)
        elif name == "foreground":
            warped[name] = warp_foreground(value, sample["alpha"], matrix, size)
        elif name == "area":
            warped[name] = float(value) * abs(float(np.linalg.det(matrix[:2, :2])))
        elif name == "people":
            warped[name] = [warp_sample(person, matrix, size) for person in value]
        elif name == "keypoints":
            warped["keypoints"], warped["visibility"] = warp_keypoints(value, sample["visibility"], matrix, size)
        elif name != "visibility":
            raise KeyError(f"sample {sample.get('key')!r}: no rule for warping {name!r}")
    return warped


def warp_keypoints(
    keypoints: np.ndarray,
    visibility: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    points: KeypointSet | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Move keypoints with the picture; a mirroring swaps left and right ones.

    Args:
        keypoints: (K, 2) float32 x, y in pixels; any value, also NaN, where ``visibility`` is 0.
        visibility: (K,) uint8, 0 unlabelled, 1 occluded, 2 visible.
        matrix: (3, 3) source pixel -> target pixel.
        size: (h, w) of the target.
        points: The keypoint set; by default the packaged one of K points.

    Returns:
        The same for the target; points outside it become (0, 0) with visibility 0.

    Raises:
        SchemaError: If there is no keypoint set of K points and the picture is mirrored.
    """
    if mirrors(matrix):
        order = (points or load_keypoint_set(len(keypoints))).flip_map
        keypoints, visibility = keypoints[order], visibility[order]
    moved = map_points(keypoints.astype(np.float64), matrix)
    inside = (moved >= 0).all(axis=1) & (moved < size[::-1]).all(axis=1) & (visibility > 0)
    return np.where(inside[:, None], moved, 0).astype(np.float32), np.where(inside, visibility, 0).astype(np.uint8)


def warp_parts(
    parts: np.ndarray, matrix: np.ndarray, size: tuple[int, int], classes: ClassList | None = None
) -> np.ndarray:
    """Warp a label map (H, W) uint8 of part classes; a mirroring swaps left and right ones.

    Args:
        parts: Class ids, or ``classes.ignore_index``.
        matrix: (3, 3) source pixel -> target pixel.
        size: (h, w) of the target.
        classes: The class list; by default the 29 of Sapiens2.

    Returns:
        (h, w) uint8; outside the source ``classes.ignore_index``.
    """
    classes = classes or load_class_list(29)
    warped = warp_labels(parts, matrix, size, fill=classes.ignore_index)
    return cv2.LUT(warped, classes.flip_table) if mirrors(matrix) else warped


def warp_foreground(foreground: np.ndarray, alpha: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Warp straight foreground colours (H, W, 3) uint8, weighted by coverage: hidden colours do not bleed in."""
    warped = warp_image(premultiply(foreground, alpha), matrix, size)
    return straighten(warped, warp_image(alpha, matrix, size))


def _warp_normals(normals: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return turn_normals(warp_labels(normals, matrix, size), matrix)


def _warp_box(box: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    x0, y0, x1, y1 = np.asarray(box, np.float64)
    corners = map_points(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), matrix)
    low, high = np.clip(corners.min(axis=0), 0, size[::-1]), np.clip(corners.max(axis=0), 0, size[::-1])
    return np.array([*low, *high] if (high > low).all() else [0.0] * 4, np.float32)


def _warp_intrinsics(intrinsics: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return warp_intrinsics(intrinsics, matrix)


_WARPS = {
    "image": warp_image,
    "alpha": warp_image,
    "albedo": warp_image,
    "normals": _warp_normals,
    "depth": warp_labels,
    "parts": warp_parts,
    "box": _warp_box,
    "intrinsics": _warp_intrinsics,
}
