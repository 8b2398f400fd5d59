"""Affine geometry of pictures and of what is labelled in them.

Pixel coordinates are continuous: pixel (row i, column j) covers [j, j+1) x [i, i+1), its centre is (j+0.5, i+0.5).
OpenCV puts centres at integers; the conversion is in ``_opencv_matrix`` alone. Sizes are (height, width). A matrix is
(3, 3) float64 and maps homogeneous (x, y, 1) of the source to the target.

What a picture's geometry does to the camera: picture geometry A with linear part L, whose orthogonal part is Q (a
rotation or mirroring in the plane; the rest is scale), is a camera turned by S = [[Q, 0], [0, 1]] with intrinsics
A K S^-1. For square pixels (fx = fy, no skew) that is again an upper-triangular K: a rotation about *any* point of
the picture is exactly a camera roll, and the principal point moves along. Normals and points turn by S; scale, crop
and translation leave them as they are.
"""

import math

import cv2
import numpy as np

_WHOLE = 1e-4  # how far from a whole pixel an edge may lie to count as on it


def translation_matrix(x: float, y: float) -> np.ndarray:
    """Return the matrix that moves by (x, y) pixels."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def scale_matrix(x: float, y: float) -> np.ndarray:
    """Return the matrix that scales about the picture's corner (0, 0)."""
    return np.diag([x, y, 1.0])


def flip_matrix(width: float) -> np.ndarray:
    """Return the matrix of a horizontal flip: x -> width - x."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def rotation_matrix(degrees: float, centre: tuple[float, float]) -> np.ndarray:
    """Return the matrix that turns the picture about ``centre`` (x, y), counter-clockwise as seen."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    x, y = centre
    return translation_matrix(x, y) @ turn @ translation_matrix(-x, -y)


def crop_matrix(region: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Return the matrix that maps ``region`` (x0, y0, x1, y1) onto the whole of a picture of ``size`` (h, w)."""
    x0, y0, x1, y1 = region
    return scale_matrix(size[1] / (x1 - x0), size[0] / (y1 - y0)) @ translation_matrix(-x0, -y0)


def map_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Map (..., 2) points by ``matrix``; the result is float64."""
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def orthogonal_part(matrix: np.ndarray) -> np.ndarray:
    """Return Q (2, 2), the rotation or mirroring nearest to the linear part of ``matrix`` (polar decomposition).

    It is exact for any mix of flips and rotations with a scale along the axes either before or after them.
    """
    (a, b), (c, d) = matrix[:2, :2].tolist()
    # Closed form in two dimensions: the sum of the matrix and of its cofactors, with their sign, is Q but for a factor.
    sign = 1.0 if a * d >= b * c else -1.0
    x, y = a + sign * d, b - sign * c
    length = math.hypot(x, y)
    x, y = x / length, y / length
    return np.array([[x, y], [-sign * y, sign * x]])


def mirrors(matrix: np.ndarray) -> bool:
    """Return whether ``matrix`` swaps left and right of what is seen."""
    return bool(matrix[0, 0] * matrix[1, 1] < matrix[0, 1] * matrix[1, 0])


def turn_normals(normals: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn normals with a picture that is warped by ``matrix``; their place in the picture is not changed.

    Args:
        normals: (..., H, W, 3) float32, x right, y UP, z to the camera.
        matrix: (3, 3) picture geometry, y DOWN: hence the sign change of the off-diagonal terms.

    Returns:
        float32 of the same shape; ``normals`` itself where nothing turns.
    """
    (a, b), (c, d) = orthogonal_part(matrix).tolist()
    if max(abs(b), abs(c)) < 1e-9 and d > 0:
        return normals if a > 0 else normals * np.array([-1.0, 1.0, 1.0], np.float32)
    return cv2.transform(normals, np.array([[a, -b, 0], [-c, d, 0], [0, 0, 1.0]]))


def warp_intrinsics(intrinsics: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return the intrinsics of the warped picture, in the frame of the camera that turns (or mirrors) with it.

    A flip gives cx -> W - cx, a rotation moves the principal point with the picture, scale and crop act as usual.

    Args:
        intrinsics: (3, 3), pixels in the continuous convention.
        matrix: (3, 3) picture geometry.

    Returns:
        (3, 3) float32. Upper-triangular whenever fx = fy or nothing turns; else its lower left entry is not zero, and
        only the full matrix is right.
    """
    turn = np.eye(3)
    turn[:2, :2] = orthogonal_part(matrix)
    result = matrix @ np.asarray(intrinsics, np.float64) @ turn.T
    for row, column in ((0, 1), (1, 0)):
        if abs(result[row, column]) < 1e-6 * abs(result[row, row]):
            result[row, column] = 0.0
    return result.astype(np.float32)


def warp_image(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: float = 0) -> np.ndarray:
    """Warp a picture: bilinear where it grows, averaged over the covered area where it shrinks.

    A target pixel is outside where its centre is; pixels at the rim are not darkened by the outside.

    Args:
        image: (H, W) or (H, W, C) uint8 or float32.
        matrix: (3, 3) source pixel -> target pixel.
        size: (h, w) of the target.
        fill: Value outside the source.

    Returns:
        (h, w) or (h, w, C) of the same type, contiguous, never the input's memory.
    """
    rect = _whole_rect(matrix, size, image.shape[:2])
    if rect is not None:
        (x0, y0, x1, y1), flips = rect
        return _flipped(_resize_image(image[y0:y1, x0:x1], size), flips, image)
    region = source_region(matrix, size, image.shape[:2])
    if region is None:
        return np.full((*size, *image.shape[2:]), fill, image.dtype)
    x0, y0, x1, y1 = region
    view, inner = image[y0:y1, x0:x1], matrix @ translation_matrix(x0, y0)
    shrink = np.linalg.norm(inner[:2, :2], axis=0)
    if shrink.min() < 1:
        height = max(1, round(view.shape[0] * min(1.0, shrink[1])))
        width = max(1, round(view.shape[1] * min(1.0, shrink[0])))
        inner = inner @ scale_matrix(view.shape[1] / width, view.shape[0] / height)
        view = _resize_image(view, (height, width))
    warped = cv2.warpAffine(
        view, _opencv_matrix(inner), size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    warped = warped.reshape(*size, *image.shape[2:])
    outside = outside_of(matrix, size, image.shape[:2])
    if outside is not None:
        # OpenCV copies under a mask thirty times as fast as numpy assigns under one.
        cv2.copyTo(np.full_like(warped, fill), outside.view(np.uint8), warped)
    return warped


def outside_of(matrix: np.ndarray, size: tuple[int, int], source_size: tuple[int, int]) -> np.ndarray | None:
    """Return (h, w) bool, which target pixels have their centre outside the source; None if there are none."""
    if _covers(matrix, size, source_size):
        return None
    return warp_labels(np.ones(source_size, np.uint8), matrix, size) == 0


def warp_labels(labels: np.ndarray, matrix: np.ndarray, size: tuple[int, int], fill: float = 0) -> np.ndarray:
    """Warp a label map: each target pixel takes the source pixel that its centre falls into, nothing is blended.

    Args:
        labels: (H, W) or (H, W, C), C up to 4, bool, uint8, uint16, int16 or float32.
        matrix: (3, 3) source pixel -> target pixel.
        size: (h, w) of the target.
        fill: Value outside the source.

    Returns:
        (h, w) or (h, w, C) of the same type, contiguous, never the input's memory.
    """
    if labels.dtype == np.bool_:
        return warp_labels(labels.view(np.uint8), matrix, size, fill).view(np.bool_)
    rect = _whole_rect(matrix, size, labels.shape[:2])
    if rect is not None:
        (x0, y0, x1, y1), flips = rect
        view = labels[y0:y1, x0:x1]
        if view.shape[:2] != tuple(size):
            view = cv2.resize(view, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            view = view.reshape(*size, *labels.shape[2:])
        return _flipped(view, flips, labels)
    region = source_region(matrix, size, labels.shape[:2])
    if region is None:
        return np.full((*size, *labels.shape[2:]), fill, labels.dtype)
    x0, y0, x1, y1 = region
    warped = cv2.warpAffine(
        labels[y0:y1, x0:x1],
        _opencv_matrix(matrix @ translation_matrix(x0, y0)),
        size[::-1],
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(fill,) * 4,
    )
    return warped.reshape(*size, *labels.shape[2:])


def source_region(
    matrix: np.ndarray, size: tuple[int, int], source_size: tuple[int, int], rim: int = 1
) -> tuple[int, int, int, int] | None:
    """Return the whole-pixel region (x0, y0, x1, y1) of the source that the target shows; None if it shows nothing.

    ``rim`` pixels are added on each side: bilinear interpolation at the edge reads one more.
    """
    corners = _source_corners(matrix, size)
    x0, y0 = np.maximum(np.floor(corners.min(axis=0) + _WHOLE).astype(int) - rim, 0)
    x1, y1 = np.minimum(np.ceil(corners.max(axis=0) - _WHOLE).astype(int) + rim, source_size[::-1])
    return (int(x0), int(y0), int(x1), int(y1)) if x0 < x1 and y0 < y1 else None


def _source_corners(matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    corners = np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]])
    return map_points(corners, np.linalg.inv(matrix))


def _covers(matrix: np.ndarray, size: tuple[int, int], source_size: tuple[int, int]) -> bool:
    corners = _source_corners(matrix, size)
    return bool(corners.min() >= -_WHOLE and (corners <= np.array(source_size[::-1]) + _WHOLE).all())


def _whole_rect(
    matrix: np.ndarray, size: tuple[int, int], source_size: tuple[int, int]
) -> tuple[tuple[int, int, int, int], tuple[bool, bool]] | None:
    """Return the source rectangle and the flips in (x, y) if the target is exactly a whole-pixel rectangle of it.

    That is the common case (letterbox, crop, flip), in which resizing is both faster and exact at the rim.
    """
    (a, b, x), (c, d, y), _ = matrix.tolist()
    if abs(b) * source_size[0] > _WHOLE or abs(c) * source_size[1] > _WHOLE:
        return None
    x0, x1 = sorted((-x / a, (size[1] - x) / a))
    y0, y1 = sorted((-y / d, (size[0] - y) / d))
    edges = (x0, y0, x1, y1)
    x0, y0, x1, y1 = whole = tuple(round(edge) for edge in edges)
    inside = 0 <= x0 < x1 <= source_size[1] and 0 <= y0 < y1 <= source_size[0]
    if not inside or max(abs(edge - side) for edge, side in zip(edges, whole)) > _WHOLE:
        return None
    return (x0, y0, x1, y1), (a < 0, d < 0)


def _flipped(view: np.ndarray, flips: tuple[bool, bool], source: np.ndarray) -> np.ndarray:
    if any(flips):
        shape = view.shape
        view = cv2.flip(view, -1 if all(flips) else int(flips[0]))
        return view.reshape(shape)
    return view.copy() if np.may_share_memory(view, source) else view


def _resize_image(view: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize to ``size``, by area along an axis that shrinks and bilinearly along one that grows."""
    shape = (*size, *view.shape[2:])
    smaller = (min(size[0], view.shape[0]), min(size[1], view.shape[1]))
    if smaller != view.shape[:2]:
        view = cv2.resize(view, smaller[::-1], interpolation=cv2.INTER_AREA)
    if smaller != tuple(size):
        view = cv2.resize(view, size[::-1], interpolation=cv2.INTER_LINEAR)
    return view.reshape(shape)


def _opencv_matrix(matrix: np.ndarray) -> np.ndarray:
    """Return the (2, 3) matrix for OpenCV, whose pixel centres are at integers."""
    return (translation_matrix(-0.5, -0.5) @ matrix @ translation_matrix(0.5, 0.5))[:2]
