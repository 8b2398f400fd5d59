"""Boxes of people: what they are, from the whole picture, and what is done to those of any source."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

#: Scores from this on count, and the overlap (IoU) above which the less certain of two boxes goes (spec 7).
MIN_SCORE = 0.3
MAX_OVERLAP = 0.3


class People(NamedTuple):
    """The people of one picture.

    Attributes:
        boxes: float32 (N, 4) x0, y0, x1, y1 in continuous pixels of the picture.
        scores: float32 (N,) how certain each box is, 0 to 1.
        ids: int64 (N,) who it is through a video, from 1; None in pictures that do not belong together.
    """

    boxes: np.ndarray
    scores: np.ndarray
    ids: np.ndarray | None = None

    @property
    def number(self) -> int:
        return len(self.boxes)

    def take(self, rows: np.ndarray) -> People:
        """The people of these rows: indices, or bool (N,)."""
        return People(self.boxes[rows], self.scores[rows], None if self.ids is None else self.ids[rows])


class BoxSource(Protocol):
    """Says where the people of pictures are.

    Attributes:
        detects: Whether it is a detector's guess, which may have found somebody twice.
    """

    detects: bool

    def __call__(self, names: Sequence[str], pictures: Sequence[np.ndarray]) -> list[People]:
        """Return the people of each picture; all boxes have an area and show some of the picture.

        Args:
            names: path of each picture; of a video's, ``VIDEO/000012`` with the number of the picture.
            pictures: uint8 (H, W, 3) RGB.
        """

    def report(self) -> str:
        """Return what a user should know after the last picture, in one line; empty if nothing."""


def make_people(boxes: Sequence | np.ndarray, scores: Sequence | np.ndarray | None = None) -> People:
    """People of N boxes (N, 4), also of none; scores (N,) are 1 by default."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    return People(boxes, np.ones(len(boxes), np.float32) if scores is None else np.asarray(scores, np.float32))


def in_picture(people: People, size: tuple[int, int]) -> People:
    """The people whose box has an area and shows some of a picture of ``size`` (H, W); others cannot be looked at.

    A box that reaches beyond the picture stays as it is, unless it has no end.
    """
    low = np.maximum(people.boxes[:, :2], 0)
    high = np.minimum(people.boxes[:, 2:], (size[1], size[0]))
    return people.take((high > low).all(axis=1) & np.isfinite(people.boxes).all(axis=1))


def overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU (N, M) of boxes (N, 4) and (M, 4); 0 where both have no area."""
    first, second = first[:, None].astype(np.float64), second[None].astype(np.float64)
    low, high = np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])
    both = np.maximum(high - low, 0).prod(axis=-1)
    one = (first[..., 2:] - first[..., :2]).prod(axis=-1)
    other = (second[..., 2:] - second[..., :2]).prod(axis=-1)
    return both / np.maximum(one + other - both, np.finfo(np.float64).tiny)


def select(people: People, min_score: float = MIN_SCORE, nms: float | None = MAX_OVERLAP) -> People:
    """The people from ``min_score`` on, by falling score, without those that overlap a better one by more than ``nms``.

    Args:
        nms: IoU; None keeps all.
    """
    people = people.take(people.scores >= min_score)
    people = people.take(np.argsort(-people.scores, kind="stable"))
    if nms is None or people.number < 2:
        return people
    iou = overlaps(people.boxes, people.boxes)
    kept: list[int] = []
    for row in range(people.number):
        if not (iou[row, kept] > nms).any():
            kept.append(row)
    return people.take(np.array(kept))


class WholePicture:
    """Takes the whole picture for one person."""

    detects = False

    def __call__(self, names: Sequence[str], pictures: Sequence[np.ndarray]) -> list[People]:
        return [make_people([[0, 0, picture.shape[1], picture.shape[0]]]) for picture in pictures]

    def report(self) -> str:
        return ""
