"""Letterbox geometry, shared by the data pipeline, evaluation and prediction; numpy and torch alone.

Pixel coordinates are continuous: pixel (row i, column j) covers [j, j+1) x [i, i+1), its centre is (j+0.5, i+0.5).
Sizes are (height, width). A matrix maps homogeneous (x, y, 1) of the source to the network's input.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import interpolate


class LetterboxRect(NamedTuple):
    """Where the whole source lies inside the network's input, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


def letterbox_rect(source_size: tuple[int, int], target_size: tuple[int, int]) -> LetterboxRect:
    """Return the rectangle that a source fills when it is fitted, centred and zero-padded (release, data 4.4).

    Args:
        source_size: (H, W) of the source.
        target_size: (h, w) of the network's input.

    Raises:
        ValueError: If a side is smaller than one pixel.
    """
    (source_height, source_width), (height, width) = source_size, target_size
    if min(source_height, source_width, height, width) < 1:
        raise ValueError(
            f"letterbox: sizes must be at least 1 x 1, got source {source_height} x {source_width} "
            f"and target {height} x {width} (height x width)"
        )
    scale = min(height / source_height, width / source_width)
    inner_height = min(height, max(1, int(source_height * scale + 0.5)))
    inner_width = min(width, max(1, int(source_width * scale + 0.5)))
    return LetterboxRect((height - inner_height) // 2, (width - inner_width) // 2, inner_height, inner_width)


def letterbox_matrix(source_size: tuple[int, int], target_size: tuple[int, int]) -> np.ndarray:
    """Return the (3, 3) float64 matrix of ``letterbox_rect``: source pixel -> network pixel.

    The rectangle has whole pixels, so the two axes may differ in scale by a fraction of a pixel over the picture.
    """
    rect = letterbox_rect(source_size, target_size)
    return np.array(
        [
            [rect.width / source_size[1], 0.0, rect.left],
            [0.0, rect.height / source_size[0], rect.top],
            [0.0, 0.0, 1.0],
        ]
    )


def rect_of(
    crop: torch.Tensor | np.ndarray, source_size: tuple[int, int], target_size: tuple[int, int]
) -> LetterboxRect:
    """Return the rectangle that ``crop`` maps the whole source to.

    Args:
        crop: (3, 3) source pixel -> network pixel.
        source_size: (H, W) of the source.
        target_size: (h, w) of the network's input.

    Raises:
        ValueError: If ``crop`` is no letterbox: it turns or mirrors, or its rectangle has no whole pixels or leaves
            the network's input.
    """
    matrix = np.asarray(crop.detach().cpu() if isinstance(crop, torch.Tensor) else crop, dtype=np.float64)
    source_height, source_width = (int(side) for side in source_size)
    exact = (matrix[1, 2], matrix[0, 2], matrix[1, 1] * source_height, matrix[0, 0] * source_width)
    rect = LetterboxRect(*(round(float(value)) for value in exact))
    upright = abs(matrix[0, 1]) * source_height < 1e-2 and abs(matrix[1, 0]) * source_width < 1e-2
    whole = max(abs(value - side) for value, side in zip(exact, rect)) < 2e-2
    inside = (
        min(rect.top, rect.left) >= 0
        and min(rect.height, rect.width) >= 1
        and rect.top + rect.height <= target_size[0]
        and rect.left + rect.width <= target_size[1]
    )
    if not (upright and whole and inside):
        raise ValueError(
            f"the crop matrix {matrix.round(4).tolist()} is no letterbox of a source of {source_height} x "
            f"{source_width} into {target_size[0]} x {target_size[1]} pixels (height x width)"
        )
    return rect


def unletterbox(
    output: torch.Tensor, crop: torch.Tensor | np.ndarray, source_size: tuple[int, int] | torch.Tensor | np.ndarray
) -> torch.Tensor:
    """Map a network output back to the source: cut off the padding, then resize bilinearly (corners not aligned).

    Normals must be renormalised afterwards, since a mean of unit vectors is shorter than 1.

    Args:
        output: (C, h, w) or (B, C, h, w) float, at the network's input size; all of a batch share ``crop``.
        crop: (3, 3) source pixel -> network pixel, a letterbox as ``letterbox_matrix`` makes.
        source_size: (H, W) of the source.

    Returns:
        (C, H, W) or (B, C, H, W), a new tensor of the same type.

    Raises:
        ValueError: If ``crop`` is no letterbox of ``source_size`` into (h, w), or ``output`` has another rank.
    """
    if output.ndim not in (3, 4):
        raise ValueError(f"unletterbox: output must be (C, h, w) or (B, C, h, w), got shape {tuple(output.shape)}")
    height, width = (int(side) for side in source_size)
    top, left, inner_height, inner_width = rect_of(crop, (height, width), tuple(output.shape[-2:]))
    inner = output[..., top : top + inner_height, left : left + inner_width]
    batched = inner if inner.ndim == 4 else inner[None]
    resized = interpolate(batched, size=(height, width), mode="bilinear", align_corners=False)
    return resized if inner.ndim == 4 else resized[0]
