"""Keypoints on pictures: uint8 (H, W, 3) RGB."""

from __future__ import annotations

import cv2
import numpy as np

from s2kit.schemas import KeypointSet

#: Scores from this on are drawn (spec 7).
THRESHOLD = 0.3
#: Fractional bits of OpenCV's coordinates.
_SHIFT = 4


def is_drawn(points: np.ndarray, threshold: float = THRESHOLD) -> np.ndarray:
    """Return which keypoints (..., 3) of x, y and score are drawn: finite ones of a score from ``threshold`` on."""
    return np.isfinite(points).all(axis=-1) & (points[..., 2] >= threshold)


def draw_pose(
    picture: np.ndarray,
    points: np.ndarray,
    schema: KeypointSet,
    threshold: float = THRESHOLD,
    radius: float | None = None,
) -> np.ndarray:
    """Draw persons' keypoints and the links between them, in the schema's colours.

    Args:
        picture: uint8 (H, W, 3), not changed.
        points: (K, 3) or (N, K, 3) x, y in continuous pixels and score.
        threshold: keypoints of a lower score, and those that are not finite, are left out.
        radius: of a point in pixels; by default it follows from the size of the person.
    """
    picture = np.ascontiguousarray(picture).copy()
    for person in points.reshape(-1, *points.shape[-2:]):
        shown = is_drawn(person, threshold)
        if not shown.any():
            continue
        # A single point far outside would make the whole person thick.
        extent = min(np.ptp(person[shown, :2], axis=0).max(), max(picture.shape[:2]))
        size = max(1.0, extent / 150) if radius is None else radius
        for link in schema.links:
            if shown[link.start] and shown[link.end]:
                ends = [_fixed(person[i, :2]) for i in (link.start, link.end)]
                cv2.line(picture, *ends, link.color, max(1, round(size * 0.7)), cv2.LINE_AA, _SHIFT)
        # The dense points of face and hands get smaller marks.
        dense = set(schema.groups.get("face", ())) | {
            i for name, ids in schema.groups.items() if "hand" in name for i in ids
        }
        for i in np.flatnonzero(shown):
            mark = size * (0.5 if i in dense else 1.0)
            centre, scale = _fixed(person[i, :2]), 1 << _SHIFT
            cv2.circle(picture, centre, max(1, round(mark * scale)), schema.keypoints[i].color, -1, cv2.LINE_AA, _SHIFT)
    return picture


def draw_people(
    picture: np.ndarray,
    points: np.ndarray,
    schema: KeypointSet,
    boxes: np.ndarray | None = None,
    ids: np.ndarray | None = None,
    threshold: float = THRESHOLD,
) -> np.ndarray:
    """Draw the keypoints of N people (N, K, 3), and their boxes.

    Args:
        picture, points, schema, threshold: see ``draw_pose``.
        boxes: (N, 4) x0, y0, x1, y1 in continuous pixels; None draws none.
        ids: (N,) written at the boxes, each in a colour of its own.
    """
    picture = draw_pose(picture, points, schema, threshold) if len(points) else np.ascontiguousarray(picture).copy()
    for i, box in enumerate(() if boxes is None else boxes):
        color = (235, 235, 235) if ids is None else id_color(int(ids[i]))
        thick = max(1, round(min(picture.shape[:2]) / 400))
        cv2.rectangle(picture, _fixed(box[:2]), _fixed(box[2:]), color, thick, cv2.LINE_AA, _SHIFT)
        if ids is not None:
            _write_label(picture, str(int(ids[i])), box, color, max(0.4, min(picture.shape[:2]) / 900))
    return picture


def id_color(number: int) -> tuple[int, int, int]:
    """RGB of a person through a video; those of neighbouring numbers differ much."""
    hue = int(number * 0.618034 * 180) % 180
    return tuple(int(v) for v in cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0])


def _write_label(picture: np.ndarray, text: str, box: np.ndarray, color: tuple[int, int, int], scale: float) -> None:
    """Write a number in the box's upper left corner, on a ground of its colour, inside of the picture."""
    thick = max(1, round(scale * 1.5))
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, thick)
    x = int(np.clip(box[0], 0, max(0, picture.shape[1] - width - 4)))
    y = int(np.clip(box[1], 0, max(0, picture.shape[0] - height - below - 2)))
    cv2.rectangle(picture, (x, y), (x + width + 4, y + height + below + 1), color, -1)
    place = (x + 2, y + height + 1)
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (16, 16, 16), thick, cv2.LINE_AA)


def draw_offsets(picture: np.ndarray, first: np.ndarray, second: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Draw a line from each true place (K, 2) in green to the predicted one (K, 2) in red where ``shown`` (K,)."""
    picture = np.ascontiguousarray(picture).copy()
    for i in np.flatnonzero(shown & np.isfinite(second).all(axis=1)):
        start, end = _fixed(first[i]), _fixed(second[i])
        cv2.line(picture, start, end, (255, 220, 0), 1, cv2.LINE_AA, _SHIFT)
        cv2.circle(picture, start, 2 << _SHIFT, (0, 220, 60), -1, cv2.LINE_AA, _SHIFT)
        cv2.circle(picture, end, 2 << _SHIFT, (255, 40, 40), -1, cv2.LINE_AA, _SHIFT)
    return picture


def _fixed(point: np.ndarray) -> tuple[int, int]:
    """A continuous pixel as OpenCV's fixed-point one, whose pixel centres are at integers."""
    limit = 2**15
    x, y = np.clip((np.asarray(point, np.float64) - 0.5), -limit, limit) * (1 << _SHIFT)
    return round(x), round(y)
