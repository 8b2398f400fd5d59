"""From a raw sample to an item for surface normals."""

from typing import Any, ClassVar

import cv2
import numpy as np

from data_modules.transforms.geometry import turn_normals, warp_labels
from data_modules.transforms.letterboxed import LetterboxTrainTransform


def normals_target(normals: np.ndarray, alpha: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Make the network's target: unit normals and where they hold.

    Args:
        normals: (h, w, 3) float32, zeros or not finite where undefined.
        alpha: (h, w) uint8 coverage, or None.

    Returns:
        ``normals`` (3, h, w) float32, of unit length or zero, and ``valid`` (1, h, w) bool: defined, finite and, with
        ``alpha``, covered by more than one half.
    """
    channels = cv2.split(normals)
    # Plane by plane and without masked writes: this is the costliest step of an item at 1024 x 768.
    square = sum(channel * channel for channel in channels)
    # Comparisons with NaN are false. A vector shorter than 0.1 is no normal but a blend with the undefined.
    valid = (square > 1e-2) & (square < np.inf)
    if alpha is not None:
        valid &= alpha > 127
    inverse = cv2.copyTo(1 / np.sqrt(np.maximum(square, 1e-2)), valid.view(np.uint8))
    planes = np.empty((3, *square.shape), np.float32)
    with np.errstate(invalid="ignore"):
        for plane, channel in zip(planes, channels):
            np.multiply(channel, inverse, out=plane)
    if not np.isfinite(square).all():
        np.copyto(planes, 0, where=~valid)  # NaN times 0 is NaN
    return planes, valid[None]


def normals_labels(sample: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return ``normals`` (3, H, W) and ``valid`` (1, H, W) at the source's size; nothing if there are no normals."""
    if "normals" not in sample:
        return {}
    normals, valid = normals_target(sample["normals"], sample.get("alpha"))
    return {"normals": normals, "valid": valid}


class NormalsTrainTransform(LetterboxTrainTransform):
    """Training augmentation for normals; by default the published recipe (release, data 4.1 and 4.4).

    The flip negates the normals' x, and a rotation turns their x and y. See ``LetterboxTrainTransform``.
    """

    published: ClassVar[dict[str, float]] = {
        "photometric": 1.0,
        "downsample": 0.2,
        "scale": 0.3,
        "crop": 0.3,
        "flip": 0.3,
        "blur": 0.3,
        "noise": 0.3,
        "solarise": 0.3,
    }
    required: ClassVar[tuple[str, ...]] = ("normals",)

    def targets(self, sample: dict[str, Any], matrix: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        labels = turn_normals(warp_labels(sample["normals"], matrix, size), matrix)
        # The nearest pixel's alpha, as for the normals: a label holds where the pixel that it comes from is covered.
        alpha = warp_labels(sample["alpha"], matrix, size) if "alpha" in sample else None
        normals, valid = normals_target(labels, alpha)
        return {"normals": normals, "valid": valid}
