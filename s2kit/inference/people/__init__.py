"""Where the people of a picture are, and who is who in a video."""

from pathlib import Path
from typing import Any

from s2kit.inference.people.box_file import BoxFile
from s2kit.inference.people.boxes import (
    MAX_OVERLAP,
    MIN_SCORE,
    BoxSource,
    People,
    WholePicture,
    in_picture,
    make_people,
    select,
)
from s2kit.inference.people.tracking import Tracker

__all__ = [
    "MAX_OVERLAP",
    "MIN_SCORE",
    "BoxFile",
    "BoxSource",
    "People",
    "Tracker",
    "WholePicture",
    "in_picture",
    "make_people",
    "open_boxes",
    "select",
]


def open_boxes(
    source: str | Path,
    *,
    weights: str | Path | None = None,
    device: Any = "cpu",
    min_score: float = MIN_SCORE,
    nms: float | None = MAX_OVERLAP,
    fallback: str | None = None,
) -> BoxSource:
    """Open a source of boxes.

    Args:
        source: ``whole``, ``detect``, or a file (see ``BoxFile``).
        weights, device, fallback: Of the detector; see ``Detector``.
        min_score, nms: Of boxes with scores; see ``BoxFile`` and ``Detector``.

    Raises:
        UserError: If it cannot be opened; the text says what to do.
    """
    if str(source) == "whole":
        return WholePicture()
    if str(source) == "detect":
        from s2kit.inference.people.detector import Detector

        return Detector(weights, device, min_score, nms, fallback)
    return BoxFile(source, min_score, nms)
