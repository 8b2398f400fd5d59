"""Dense results as pictures: uint8 (H, W, 3) RGB."""

import math
from collections.abc import Iterable

import cv2
import numpy as np

from s2kit.inference.light import composite, relight, to_bytes
from s2kit.schemas import ClassList

#: Share of a class's colour over the picture.
OPACITY = 0.5
#: Pixels of a legend: its height, and what a name takes.
LEGEND_HEIGHT, LEGEND_ROW, LEGEND_COLUMN = 256, 16, 128
#: Pixels of a sheet's cell, at most.
CELL_PIXELS = 480 * 480
#: Per cent of pixels beyond the ends of a depth's colours.
DEPTH_TAIL = 1.0
#: Background of previews of mattes, RGB.
GREEN = (0, 177, 64)
#: Directions to the lights of the relighting preview: x right, y up, z to the camera.
LIGHTS = {"lit from the left": (-1.0, 0.4, 0.5), "lit from the right": (1.0, 0.4, 0.5)}
AMBIENT = 0.15


def draw_labels(
    labels: np.ndarray, classes: ClassList, picture: np.ndarray | None = None, opacity: float = OPACITY
) -> np.ndarray:
    """Draw class ids ``(H, W)`` in the classes' colours, over ``picture`` if one is given; ignored pixels are black.

    Over a picture the background, class 0, stays as it is.
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(classes)] = classes.colors
    drawn = table[labels]
    if picture is None:
        return drawn
    blended = cv2.addWeighted(drawn, opacity, picture, 1 - opacity, 0)
    return np.where((labels == 0)[..., None], picture, blended)


def draw_legend(classes: ClassList, ids: Iterable[int], height: int = LEGEND_HEIGHT) -> np.ndarray:
    """Draw the names of some classes beside their colours, uint8 (height, W, 3), in as many columns as they need.

    Args:
        classes: The class list.
        ids: The classes to name, in this order; what is no class, such as the ignored label, is passed over.
        height: Of the picture; the letters keep their size.
    """
    named = [int(label) for label in ids if label < len(classes)]
    rows = max(1, height // LEGEND_ROW)
    columns = max(1, -(-len(named) // rows))
    picture = np.full((height, columns * LEGEND_COLUMN, 3), 32, np.uint8)
    for number, label in enumerate(named):
        x, y = number // rows * LEGEND_COLUMN + 4, number % rows * LEGEND_ROW
        colour = tuple(int(value) for value in classes.colors[label])
        cv2.rectangle(picture, (x, y + 2), (x + 14, y + LEGEND_ROW - 3), colour, cv2.FILLED)
        where = (x + 20, y + LEGEND_ROW - 4)
        cv2.putText(picture, classes.names[label], where, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (235,) * 3, 1, cv2.LINE_AA)
    return picture


def add_legend(drawn: np.ndarray, labels: np.ndarray, classes: ClassList) -> np.ndarray:
    """Put the names of the classes in ``labels`` (H, W), by falling area, into the corner that shows least.

    The letters are as large as a sheet's cell, to which the picture is scaled, needs them; where the names take more
    than the picture's height or half of its width, the picture stays as it is.

    Args:
        drawn: uint8 (H, W, 3), of the labels; not changed.
        labels: Class ids.
        classes: The class list.
    """
    areas = np.bincount(labels.ravel(), minlength=len(classes))[: len(classes)]
    ids = [label for label in np.argsort(-areas, kind="stable") if areas[label]]
    scale = max(1.0, math.sqrt(labels.size / CELL_PIXELS))
    rows = max(1, min(len(ids), int(labels.shape[0] / scale / LEGEND_ROW)))
    legend = draw_legend(classes, ids, rows * LEGEND_ROW)
    height, width = (round(side * scale) for side in legend.shape[:2])
    if height > labels.shape[0] or width > labels.shape[1] / 2:
        return drawn
    legend = cv2.resize(legend, (width, height), interpolation=cv2.INTER_LINEAR)
    corners = [
        (slice(top, top + height), slice(left, left + width))
        for top in (0, labels.shape[0] - height)
        for left in (0, labels.shape[1] - width)
    ]
    drawn = drawn.copy()
    drawn[min(corners, key=lambda corner: np.count_nonzero(labels[corner]))] = legend
    return drawn


def draw_label_errors(prediction: np.ndarray, target: np.ndarray, ignore_index: int) -> np.ndarray:
    """Draw which labels ``(H, W)`` are right (dark green), wrong (red) or ignored (black)."""
    picture = np.where((prediction == target)[..., None], np.uint8([20, 70, 30]), np.uint8([230, 40, 40]))
    picture[target == ignore_index] = 0
    return picture


def depth_range(depth: np.ndarray, valid: np.ndarray | None = None) -> tuple[float, float]:
    """Return the nearest and the farthest depth to draw: without 1 % of the pixels at either end."""
    usable = np.isfinite(depth) & (depth > 0) if valid is None else valid & np.isfinite(depth) & (depth > 0)
    if not usable.any():
        return 1.0, 2.0
    near, far = np.percentile(depth[usable], [DEPTH_TAIL, 100 - DEPTH_TAIL])
    return float(near), float(max(far, near * 1.001))


def draw_depth(depth: np.ndarray, limits: tuple[float, float], valid: np.ndarray | None = None) -> np.ndarray:
    """Draw depths ``(H, W)`` by their inverse, from far (blue) to near (red); black where not ``valid`` or not > 0."""
    near, far = (1 / limit for limit in limits)
    usable = np.isfinite(depth) & (depth > 0)
    if valid is not None:
        usable &= valid
    inverse = np.divide(1.0, depth, out=np.zeros(depth.shape), where=usable)
    scaled = np.clip((inverse - far) / (near - far) * 255, 0, 255).astype(np.uint8)
    picture = cv2.cvtColor(cv2.applyColorMap(scaled, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    picture[~usable] = 0
    return picture


def draw_albedo(albedo: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Draw colours ``(H, W, 3)`` in 0..1, black where ``valid`` (H, W) is false."""
    picture = to_bytes(albedo)
    if valid is not None:
        picture[~valid] = 0
    return picture


def draw_relit(albedo: np.ndarray, normals: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
    """Draw an albedo ``(H, W, 3)`` with its normals under each of ``LIGHTS``, by title; black where not ``valid``."""
    return {title: draw_albedo(relight(albedo, normals, light, AMBIENT), valid) for title, light in LIGHTS.items()}


def draw_alpha(alpha: np.ndarray) -> np.ndarray:
    """Draw coverage ``(H, W)`` in 0..1 in gray."""
    return np.repeat(to_bytes(alpha)[..., None], 3, axis=-1)


def draw_composite(matte: np.ndarray, background: tuple[int, int, int] = GREEN) -> np.ndarray:
    """Draw a matte ``(H, W, 4)``, premultiplied RGB and alpha in 0..1, over one colour, blended in linear light."""
    return to_bytes(composite(matte[..., :3], matte[..., 3], np.array(background) / 255))
