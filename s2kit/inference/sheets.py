"""Results beside the picture: panels of one task, sheets of several."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from s2kit.inference.dense_drawing import CELL_PIXELS
from s2kit.inference.drawing import TITLE_HEIGHT, grid

#: Height of a panel's pictures, at most.
PANEL_HEIGHT = 768
#: Width over height that a sheet comes close to.
ASPECT = 16 / 10


def over_picture(drawn: np.ndarray, picture: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return ``drawn`` where ``mask`` is true, and the picture elsewhere."""
    return drawn if mask is None else np.where(mask[..., None], drawn, picture)


def panel(picture: np.ndarray, results: dict[str, np.ndarray]) -> np.ndarray:
    """Draw a picture and its results, by title, side by side."""
    return grid([{"input": picture, **results}], min(PANEL_HEIGHT, picture.shape[0]))


def sheet(picture: np.ndarray, results: Sequence[dict[str, np.ndarray]]) -> np.ndarray:
    """Draw a picture and the results of several tasks on one sheet of equal cells.

    The first picture of each task is shown; where cells are left, further ones of the first tasks stand beside it.

    Args:
        picture: uint8 (H, W, 3).
        results: Of each task its pictures by title, the most telling first, all of the picture's size.
    """
    cells = [("input", picture), *(next(iter(result.items())) for result in results)]
    height, width = picture.shape[:2]
    cell = min(height, math.sqrt(CELL_PIXELS * height / width))
    aspect = (cell * width / height) / (cell + TITLE_HEIGHT)
    columns = min(range(1, len(cells) + 1), key=lambda count: _misfit(count, len(cells), aspect))
    free = columns * math.ceil(len(cells) / columns) - len(cells)
    cells = cells[:1]
    for result in results:
        shown = list(result.items())[: 1 + free]
        free -= len(shown) - 1
        cells += shown
    rows = [dict(cells[start : start + columns]) for start in range(0, len(cells), columns)]
    return grid(rows, max(1, round(cell)))


def _misfit(columns: int, count: int, aspect: float) -> float:
    """Return how far a sheet is from what is wanted: in shape, and by cells that stay empty."""
    rows = math.ceil(count / columns)
    return abs(math.log(aspect * columns / rows / ASPECT)) + 0.15 * (rows * columns - count)
