"""Which part of a picture is shown: around the person, and random crops. Regions are whole pixels (x0, y0, x1, y1)."""

import math
from typing import Any

import numpy as np

from data_modules.transforms.checks import SampleRejected

Region = tuple[int, int, int, int]


def person_box(sample: dict[str, Any]) -> np.ndarray | None:
    """Return the person's box (x0, y0, x1, y1) float64: ``box``, else that of ``alpha`` > 127 or defined ``normals``.

    None if the sample shows nobody (an empty box or mask).

    Raises:
        KeyError: If the sample has none of the three.
    """
    if "box" in sample:
        box = np.asarray(sample["box"], np.float64)
        return box if np.isfinite(box).all() and box[2] > box[0] and box[3] > box[1] else None
    if "alpha" in sample:
        return alpha_box(sample["alpha"])
    if "normals" in sample:
        return _mask_box((sample["normals"] != 0).any(axis=2))
    raise KeyError(f"sample {sample.get('key')!r}: a person-centred crop needs 'box', 'alpha' or 'normals'")


def alpha_box(alpha: np.ndarray, threshold: int = 127) -> np.ndarray | None:
    """Return the box (4,) float64 of what ``alpha`` uint8 (H, W) covers by more than ``threshold``; None if nothing."""
    return _mask_box(alpha > threshold)


def _mask_box(mask: np.ndarray) -> np.ndarray | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)


def region_around(
    box: np.ndarray,
    source_size: tuple[int, int],
    image_size: tuple[int, int],
    margin: float = 1.25,
    shift: tuple[float, float] = (0.0, 0.0),
    degrees: float = 0.0,
) -> Region | None:
    """Return the region around a person, in the network's aspect where the picture is large enough.

    Args:
        box: (4,) x0, y0, x1, y1 of the person.
        source_size: (H, W) of the picture, which the region never leaves.
        image_size: (h, w) of the network's input.
        margin: Side of the region over side of the box.
        shift: Displacement (x, y) of the region's centre in sides of the box.
        degrees: Angle that the picture is turned by about the box's centre first; the box is taken as an ellipse.

    Returns:
        The region, at least one pixel wide and high; None if the box lies outside the picture.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2 + shift[0] * width, (box[1] + box[3]) / 2 + shift[1] * height
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    width, height = math.hypot(width * cosine, height * sine), math.hypot(width * sine, height * cosine)
    width, height = width * margin, height * margin
    aspect = image_size[1] / image_size[0]
    width, height = max(width, height * aspect), max(height, width / aspect)
    x0, y0 = max(0, round(x - width / 2)), max(0, round(y - height / 2))
    x1, y1 = min(source_size[1], round(x + width / 2)), min(source_size[0], round(y + height / 2))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def random_region(region: Region, rng: np.random.Generator, attempts: int = 8) -> Region:
    """Return a random part of ``region``: aspect (width/height) U(0.5, 2), area U(0.4, 1) of it (release, data 4.4).

    A part that does not fit is drawn again, up to ``attempts`` times; then ``region`` itself is returned.
    """
    x0, y0, x1, y1 = region
    for _ in range(attempts):
        area, aspect = rng.uniform(0.4, 1.0) * (x1 - x0) * (y1 - y0), rng.uniform(0.5, 2.0)
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 1 <= width <= x1 - x0 and 1 <= height <= y1 - y0:
            left = x0 + int(rng.integers(0, x1 - x0 - width + 1))
            top = y0 + int(rng.integers(0, y1 - y0 - height + 1))
            return left, top, left + width, top + height
    return region


class RegionChoice:
    """The part of a picture that training starts from: all of it, or the region around the person.

    Args:
        image_size: Network input (height, width), whose aspect the region around a person has.
        person_crop: Whether to show the region around the person rather than the whole picture.
        margin: Range of its side over the side of the person's box.
        jitter: Largest displacement of its centre, in sides of the box.

    Raises:
        ValueError: If the margin is no range of positive factors.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        person_crop: bool = False,
        margin: tuple[float, float] = (1.0, 1.5),
        jitter: float = 0.1,
    ) -> None:
        if not 0 < margin[0] <= margin[1]:
            raise ValueError(f"person_margin={margin}: it is a range (low, high) of positive factors")
        self.image_size, self.person_crop, self.margin, self.jitter = image_size, person_crop, tuple(margin), jitter

    def draw(
        self, sample: dict[str, Any], rng: np.random.Generator, degrees: float = 0.0
    ) -> tuple[Region, tuple[float, float]]:
        """Return the region, and the point (x, y) that the picture is turned about by ``degrees`` first.

        Raises:
            SampleRejected: If a region around the person is asked for and there is no person in the picture.
        """
        height, width = sample["image"].shape[:2]
        margin, shift = rng.uniform(*self.margin), rng.uniform(-self.jitter, self.jitter, 2)
        if not self.person_crop:
            return (0, 0, width, height), (width / 2, height / 2)
        box = person_box(sample)
        if box is None:
            raise SampleRejected(sample["key"], "its picture shows no person to crop to")
        region = region_around(box, (height, width), self.image_size, margin, tuple(shift), degrees)
        if region is None:
            raise SampleRejected(sample["key"], f"its box {box.tolist()} lies outside the picture")
        return region, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
