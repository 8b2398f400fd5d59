"""From a raw sample to an item for albedo: the colour of surfaces without light."""

from typing import Any, ClassVar

import cv2
import numpy as np

from data_modules.transforms.checks import SampleRejected
from data_modules.transforms.geometry import warp_image
from data_modules.transforms.letterboxed import LetterboxTrainTransform

#: Smallest deviation of a channel for which a sample says anything (release, data 4.6).
MIN_DEVIATION = 0.02


def defined_albedo(albedo: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    """Return (h, w) bool, where an albedo uint8 (h, w, 3) holds: covered by more than one half, and not pure black.

    No surface reflects nothing in all channels; that is what renderers write where there is none.
    """
    defined = cv2.max(cv2.max(*cv2.split(albedo)[:2]), cv2.extractChannel(albedo, 2)) > 0
    return defined if alpha is None else defined & (alpha > 127)


def albedo_target(albedo: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
    """Return ``albedo`` (3, h, w) float32 in 0..1 (sRGB-encoded), 0 where not ``valid`` (h, w), and ``valid``."""
    planes = np.empty((3, *valid.shape), np.float32)
    for plane, channel in zip(planes, cv2.split(cv2.copyTo(albedo, valid.view(np.uint8)))):
        np.multiply(channel, np.float32(1 / 255), out=plane)
    return {"albedo": planes, "valid": valid[None]}


def albedo_labels(sample: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return ``albedo`` (3, H, W) and ``valid`` (1, H, W) at the source's size; nothing if there is no albedo."""
    if "albedo" not in sample:
        return {}
    return albedo_target(sample["albedo"], defined_albedo(sample["albedo"], sample.get("alpha")))


class AlbedoTrainTransform(LetterboxTrainTransform):
    """Training augmentation for albedo; by default the published recipe (release, data 4.6), which leaves colours.

    The albedo is resampled like a picture, but only from where it is defined: at the silhouette it does not darken.
    See ``LetterboxTrainTransform``.

    Args:
        min_deviation: A sample whose albedo deviates less than this in all channels is rejected.
        **kwargs: See ``LetterboxTrainTransform``.
    """

    published: ClassVar[dict[str, float]] = {"scale": 0.3, "crop": 0.3, "flip": 0.3, "noise": 0.2}
    required: ClassVar[tuple[str, ...]] = ("albedo",)
    published_max_valid: ClassVar[float] = 1.0

    def __init__(
        self, image_size: tuple[int, int] = (1024, 768), *, min_deviation: float = MIN_DEVIATION, **kwargs: Any
    ) -> None:
        super().__init__(image_size, **kwargs)
        self.min_deviation = min_deviation

    def targets(self, sample: dict[str, Any], matrix: np.ndarray, size: tuple[int, int]) -> dict[str, np.ndarray]:
        defined = defined_albedo(sample["albedo"], sample.get("alpha"))
        share = warp_image(defined.view(np.uint8) * np.uint8(255), matrix, size)
        albedo = warp_image(cv2.copyTo(sample["albedo"], defined.view(np.uint8)), matrix, size)
        rim = (share > 127) & (share < 255)
        albedo[rim] = np.minimum(np.rint(albedo[rim] * (255 / share[rim][:, None].astype(np.float32))), 255)
        targets = albedo_target(albedo, share > 127)
        self._check_deviation(sample["key"], albedo, targets["valid"][0])
        return targets

    def _check_deviation(self, key: str, albedo: np.ndarray, valid: np.ndarray) -> None:
        _, deviation = cv2.meanStdDev(albedo, mask=valid.view(np.uint8))
        if valid.any() and deviation.max() < 255 * self.min_deviation:
            raise SampleRejected(
                key,
                f"its albedo deviates by {deviation.max() / 255:.3f}, at least "
                f"{self.min_deviation} in one channel needed",
            )
