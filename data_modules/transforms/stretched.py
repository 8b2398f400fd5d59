"""Geometry of the tasks that stretch their pictures over the network's input: segmentation and matting."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_modules.transforms.geometry import (
    crop_matrix,
    flip_matrix,
    outside_of,
    rotation_matrix,
    scale_matrix,
    source_region,
    translation_matrix,
    warp_image,
)

#: A part of the source (x0, y0, x1, y1), which may reach beyond it.
Window = tuple[float, float, float, float]

ATTEMPTS = 10


@dataclass(frozen=True)
class View:
    """What a training item shows.

    Attributes:
        matrix: (3, 3) source pixel -> network pixel.
        canvas: (3, 3) pixel of the resized and cropped picture -> network pixel.
        canvas_size: (height, width) of that picture.
        size: (h, w) of the network's input.
        scale: Pixels of that picture per source pixel: below 1 it has lost resolution.
    """

    matrix: np.ndarray
    canvas: np.ndarray
    canvas_size: tuple[int, int]
    size: tuple[int, int]
    scale: float

    def off_canvas(self) -> np.ndarray | None:
        """Return (h, w) bool, the corners that a rotation leaves empty; None if there are none."""
        return outside_of(self.canvas, self.size, self.canvas_size)

    def picture(self, image: np.ndarray, fill: int) -> np.ndarray:
        """Return a picture (H, W) or (H, W, C) as the view shows it, with the resolution that it has lost."""
        region = source_region(self.matrix, self.size, image.shape[:2])
        enlarged = any(side > 1.02 * before for side, before in zip(self.size, self.canvas_size))
        if region is None or self.scale >= 1 or not enlarged:
            return warp_image(image, self.matrix, self.size, fill)
        x0, y0, x1, y1 = region
        height, width = max(1, round((y1 - y0) * self.scale)), max(1, round((x1 - x0) * self.scale))
        shrink = crop_matrix(region, (height, width))
        small = warp_image(image[y0:y1, x0:x1], shrink @ translation_matrix(x0, y0), (height, width))
        return warp_image(small, self.matrix @ np.linalg.inv(shrink), self.size, fill)


class StretchGeometry:
    """Random resize, crop, rotation and flip, then a stretch over the network's input (release, data 4.3.3).

    A window of the source is resized to fit into the network's input times U(``scale``), keeping its aspect; then
    perhaps a part of exactly the network's size is taken, padded at the right and the bottom where the picture is
    smaller; the result is perhaps turned about its centre on its own canvas, perhaps mirrored, and stretched over the
    input. All that is one matrix, and picture and labels are resampled once. What a crop or a rotation would show from
    beyond the canvas is shown where the source has it.

    Args:
        image_size: Network input (height, width).
        scale: Range of the resize.
        rotate_degrees: Largest angle of a rotation, either way.
    """

    def __init__(
        self, image_size: tuple[int, int], scale: tuple[float, float] = (0.4, 2.0), rotate_degrees: float = 60.0
    ) -> None:
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale={scale}: it is a range (low, high) of positive factors")
        self.image_size, self.scale, self.rotate_degrees = image_size, tuple(scale), rotate_degrees

    def draw(
        self,
        window: Window,
        does: dict[str, bool],
        rng: np.random.Generator,
        accepts: Callable[[Window], bool] | None = None,
    ) -> View:
        """Return a view of ``window``.

        Args:
            window: Part of the source to start from.
            does: Whether to ``resize``, ``crop``, ``rotate`` and ``flip``.
            rng: Source of all chance.
            accepts: Whether a crop (a part of the source) will do; up to 10 are tried, and the last one is taken.
        """
        height, width = self.image_size
        factor, degrees = rng.uniform(*self.scale), rng.uniform(-1, 1) * self.rotate_degrees
        wide, high = window[2] - window[0], window[3] - window[1]
        scale = min(height / high, width / wide) * (factor if does["resize"] else 1.0)
        size = (max(1, round(high * scale)), max(1, round(wide * scale)))
        matrix = crop_matrix(window, size)
        if does["crop"]:
            for _ in range(ATTEMPTS):
                left = int(rng.integers(0, max(0, size[1] - width) + 1))
                top = int(rng.integers(0, max(0, size[0] - height) + 1))
                x, y = window[0] + left / scale, window[1] + top / scale
                if accepts is None or accepts((x, y, x + width / scale, y + height / scale)):
                    break
            matrix, size = translation_matrix(-left, -top) @ matrix, (height, width)
        canvas = scale_matrix(width / size[1], height / size[0])
        if does["flip"]:
            canvas = canvas @ flip_matrix(size[1])
        if does["rotate"]:
            canvas = canvas @ rotation_matrix(degrees, (size[1] / 2, size[0] / 2))
        return View(canvas @ matrix, canvas, size, self.image_size, scale)
