"""Random-resized crops of a batch on its device, in one resampling."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

#: Attempts at a crop that lies in the picture before the largest one of its aspect is taken.
ATTEMPTS = 10


def random_box(
    size: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw the box of a random-resized crop.

    Args:
        size: (height, width) of the picture in pixels.
        scale: Range of the crop's area as a share of the picture's, evenly.
        aspect: Range of width / height in pixels, evenly in its logarithm.
        rng: Decides it.

    Returns:
        float64 (4,): left, top, right, bottom in pixels, inside of the picture.
    """
    height, width = size
    for _ in range(ATTEMPTS):
        area = rng.uniform(*scale) * height * width
        ratio = math.exp(rng.uniform(*np.log(aspect)))
        box_width, box_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if box_width <= width and box_height <= height:
            break
    else:
        # The picture is too narrow or too flat for such crops: the largest of the middle aspect.
        ratio = math.sqrt(aspect[0] * aspect[1])
        box_width = min(width, height * ratio)
        box_height = box_width / ratio
    left, top = rng.uniform(0, width - box_width), rng.uniform(0, height - box_height)
    return np.array([left, top, left + box_width, top + box_height])


def centre_box(size: tuple[int, int], aspect: float) -> np.ndarray:
    """Return the largest box of width / height ``aspect`` in the middle of a picture, (4,) as ``random_box``."""
    height, width = size
    box_width = min(width, height * aspect)
    box_height = box_width / aspect
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return np.array([left, top, left + box_width, top + box_height])


def crop_and_resize(images: Tensor, boxes: Tensor, flips: Tensor, size: Sequence[int]) -> Tensor:
    """Cut a box out of each image and scale it to ``size``, bilinearly; colours are not touched.

    Args:
        images: (B, C, H, W), uint8 or floating point.
        boxes: (B, 4) left, top, right, bottom in pixels; pixel j covers [j, j + 1).
        flips: bool (B,), mirrored from left to right.
        size: (height, width) of the crops.

    Returns:
        (B, C, h, w) float32, in the images' range.
    """
    height, width = images.shape[-2:]
    images = images.float()
    boxes = boxes.to(images.device, torch.float32)
    left, top, right, bottom = boxes.unbind(1)
    sign = torch.where(flips.to(images.device), -1.0, 1.0)
    # Output coordinates run from -1 to 1 over the crop, input coordinates over the whole image.
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0] = sign * (right - left) / width
    theta[:, 0, 2] = (left + right) / width - 1
    theta[:, 1, 1] = (bottom - top) / height
    theta[:, 1, 2] = (top + bottom) / height - 1
    grid = F.affine_grid(theta, [len(images), images.shape[1], *size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
