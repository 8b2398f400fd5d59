"""From a raw sample to an item for pointmaps: metric camera points of every pixel."""

from typing import Any, ClassVar

import cv2
import numpy as np

from data_modules.transforms.checks import SampleRejected
from data_modules.transforms.geometry import warp_intrinsics, warp_labels
from data_modules.transforms.letterboxed import LetterboxTrainTransform


def pointmap_target(
    depth: np.ndarray, intrinsics: np.ndarray, alpha: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Make the network's target: the camera point behind the centre of each pixel, and where it holds.

    Args:
        depth: (h, w) float32 metres along z; 0 or not finite where undefined.
        intrinsics: (3, 3) of these pixels, in the continuous convention; any whose last row is (0, 0, 1).
        alpha: (h, w) uint8 coverage, or None.

    Returns:
        ``pointmap`` (3, h, w) float32, metres, x right, y down, z forward, 0 where not valid; ``valid`` (1, h, w) bool:
        defined and, with ``alpha``, covered by more than one half.
    """
    valid = (depth > 0) & (depth < np.inf)  # comparisons with NaN are false
    if alpha is not None:
        valid &= alpha > 127
    height, width = depth.shape
    ray = np.linalg.inv(np.asarray(intrinsics, np.float64))  # (u, v, 1) -> (x / z, y / z, 1)
    u, v = np.arange(width) + 0.5, np.arange(height) + 0.5
    points = np.empty((3, height, width), np.float32)
    points[2] = 0
    cv2.copyTo(depth, valid.view(np.uint8), points[2])
    for axis in range(2):
        across, down = ray[axis, 0] * u, ray[axis, 1] * v + ray[axis, 2]
        slope = across.astype(np.float32) + down.astype(np.float32)[:, None]
        np.multiply(points[2], slope, out=points[axis])
    return points, valid[None]


def pointmap_labels(sample: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return ``pointmap`` (3, H, W) and ``valid`` (1, H, W) at the source's size; nothing if there is no depth.

    Raises:
        SampleRejected: If there is depth, but no intrinsics.
    """
    if "depth" not in sample:
        return {}
    if "intrinsics" not in sample:
        raise SampleRejected(sample["key"], "it has 'depth', but no 'intrinsics' to make points with")
    points, valid = pointmap_target(sample["depth"], sample["intrinsics"], sample.get("alpha"))
    return {"pointmap": points, "valid": valid}


class PointmapTrainTransform(LetterboxTrainTransform):
    """Training augmentation for pointmaps; by default the published recipe (release, data 4.1 and 4.5).

    Depth keeps its values and the intrinsics move with the picture, so a point lies behind the centre of its pixel
    whatever was done to it. A flip mirrors x; a rotation is a roll of the camera, which turns x and y. Scaling by
    768 / fx (canonical points) is the task's. See ``LetterboxTrainTransform``.

    Args:
        min_depth: Smallest canonical depth, z * w / fx for a network input w pixels wide; a sample with a nearer point
            is rejected.
        **kwargs: See ``LetterboxTrainTransform``.
    """

    published: ClassVar[dict[str, float]] = {"photometric": 1.0, "scale": 0.3, "crop": 0.3, "flip": 0.3}
    required: ClassVar[tuple[str, ...]] = ("depth", "intrinsics")

    def __init__(self, image_size: tuple[int, int] = (1024, 768), *, min_depth: float = 0.04, **kwargs: Any) -> None:
        super().__init__(image_size, **kwargs)
        self.min_depth = min_depth

    def targets(self, sample: dict[str, Any], matrix: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        depth = warp_labels(sample["depth"], matrix, size)
        alpha = warp_labels(sample["alpha"], matrix, size) if "alpha" in sample else None
        intrinsics = warp_intrinsics(sample["intrinsics"], matrix)
        points, valid = pointmap_target(depth, intrinsics, alpha)
        nearest = np.min(points[2], where=valid[0], initial=np.inf) * self.image_size[1] / float(intrinsics[0, 0])
        if nearest < self.min_depth:
            raise SampleRejected(
                sample["key"], f"a point at canonical depth {nearest:.4f}, at least {self.min_depth} needed"
            )
        return {"pointmap": points, "valid": valid}
