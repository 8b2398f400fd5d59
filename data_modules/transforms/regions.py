"""Which part of a picture is shown: around the person, and random crops. Regions are whole pixels (x0, y0, x1, y1)."""

import math
from typing import Any

import numpy as np

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
        mask = sample["alpha"] > 127
    elif "normals" in sample:
        mask = (sample["normals"] != 0).any(axis=2)
    else:
        raise KeyError(f"sample {sample.get('key')!r}: a person-centred crop needs 'box', 'alpha' or 'normals'")
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
