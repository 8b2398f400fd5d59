"""What can stand behind a person: pictures of a folder, or clouds of colour."""

from pathlib import Path

import cv2
import numpy as np

from data_modules.images import list_images, read_image
from data_modules.transforms.geometry import crop_matrix, flip_matrix, warp_image


class Backgrounds:
    """Random backgrounds of any size.

    Args:
        source: A folder, a glob pattern or a text list of pictures without people; None for clouds of colour.

    Raises:
        FileNotFoundError: If there is no picture at ``source``.
    """

    def __init__(self, source: str | Path | None = None) -> None:
        self.files = None if source is None else list_images(source)

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Return uint8 (h, w, 3): a random part, perhaps mirrored, of a random picture, scaled to fill ``size``.

        Raises:
            ImageError: If the picture cannot be read.
        """
        if self.files is None:
            return colour_clouds(size, rng)
        image = read_image(self.files[int(rng.integers(len(self.files)))], min_size=size)
        height, width = image.shape[:2]
        scale = max(size[0] / height, size[1] / width)
        x = rng.uniform(0, 1) * max(0.0, width - size[1] / scale)
        y = rng.uniform(0, 1) * max(0.0, height - size[0] / scale)
        matrix = crop_matrix((x, y, x + size[1] / scale, y + size[0] / scale), size)
        if rng.random() < 0.5:
            matrix = flip_matrix(size[1]) @ matrix
        return warp_image(image, matrix, size)


def colour_clouds(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return uint8 (h, w, 3): random colours, blended over distances from the picture's size down to a twelfth."""
    total = np.full((*size, 3), rng.uniform(60, 195), np.float32)
    for cells in (2, 4, 8, 12):
        grid = rng.uniform(-120 / cells**0.5, 120 / cells**0.5, (cells, cells, 3)).astype(np.float32)
        total += cv2.resize(grid, size[::-1], interpolation=cv2.INTER_LINEAR)
    return cv2.convertScaleAbs(np.clip(total, 0, 255, out=total))
