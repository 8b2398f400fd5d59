"""Evaluation and prediction: the picture fitted into the network's input, labels at the size of the source."""

from collections.abc import Callable, Collection
from typing import Any, Literal

import numpy as np

from data_modules.transforms.checks import MAPS, check_sample, to_planes
from data_modules.transforms.geometry import scale_matrix, translation_matrix, warp_image, warp_intrinsics
from data_modules.transforms.normals import normals_labels
from data_modules.transforms.regions import Region, person_box, region_around
from s2kit.inference.geometry import LetterboxRect, letterbox_rect


class EvalTransform:
    """The picture in the network's input; labels keep the source's size, so that results are compared at full
    resolution.

    With ``person_crop`` picture and labels are first cut to the region around the person, and that region takes the
    place of the source: ``source_size`` is its size, ``crop`` maps *its* pixels to the network's, and labels and
    ``intrinsics`` are those of its pixels.

    Args:
        image_size: Network input (height, width).
        labels: ``labels(sample) -> maps``: the task's labels of a raw sample; an empty dict if it has none. By default
            those of normals.
        fit: ``letterbox`` keeps the aspect and pads with black; ``stretch`` fills the input.
        required: Fields that a sample must have; by default none but the picture.
        person_crop: Whether to cut to the person.
        person_margin: Side of the region over side of the person's box.
    """

    def __init__(
        self,
        image_size: tuple[int, int] = (1024, 768),
        labels: Callable[[dict[str, Any]], dict[str, np.ndarray]] = normals_labels,
        fit: Literal["letterbox", "stretch"] = "letterbox",
        *,
        required: Collection[str] = (),
        person_crop: bool = False,
        person_margin: float = 1.25,
    ) -> None:
        if person_margin <= 0:
            raise ValueError(f"person_margin={person_margin}: it must be positive")
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.labels, self.fit, self.required = labels, fit, tuple(required)
        self.person_crop, self.person_margin = person_crop, person_margin

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        """Make an item of a raw sample: ``image`` alone (prediction), or with labels.

        Returns:
            ``image`` uint8 (3, h, w), ``crop`` float32 (3, 3) source pixel -> network pixel, ``source_size`` int64
            (H, W), ``key``; the task's labels at (H, W); ``intrinsics`` float32 (3, 3) of the source's pixels if the
            sample has them.

        Raises:
            SampleRejected: If the sample lacks a required field.
            KeyError: If a person-centred crop finds no field that says where the person is.
            ValueError: If a field has a wrong type or shape, or a person-centred crop finds nobody.
        """
        size = check_sample(sample, self.required)
        if self.person_crop:
            sample = _cut(sample, self._region(sample))
            size = sample["image"].shape[:2]
        whole = LetterboxRect(0, 0, *self.image_size)
        rect = whole if self.fit == "stretch" else letterbox_rect(size, self.image_size)
        inner = scale_matrix(rect.width / size[1], rect.height / size[0])
        canvas = np.zeros((*self.image_size, 3), np.uint8)
        canvas[rect.top : rect.top + rect.height, rect.left : rect.left + rect.width] = warp_image(
            sample["image"], inner, (rect.height, rect.width)
        )
        item = {
            "key": sample["key"],
            "image": to_planes(canvas),
            "crop": (translation_matrix(rect.left, rect.top) @ inner).astype(np.float32),
            "source_size": np.array(size, np.int64),
            **self.labels(sample),
        }
        if "intrinsics" in sample:
            item["intrinsics"] = np.asarray(sample["intrinsics"], np.float32)
        return item

    def _region(self, sample: dict[str, Any]) -> Region:
        box = person_box(sample)
        size = sample["image"].shape[:2]
        region = box if box is None else region_around(box, size, self.image_size, self.person_margin)
        if region is None:
            raise ValueError(f"sample {sample['key']!r}: person_crop is set, but the picture shows no person")
        return region


def _cut(sample: dict[str, Any], region: Region) -> dict[str, Any]:
    """Return the maps (views) and the intrinsics of a region of whole pixels; boxes and keypoints are left out."""
    x0, y0, x1, y1 = region
    cut = {name: sample[name][y0:y1, x0:x1] for name in MAPS if name in sample}
    cut["key"] = sample["key"]
    if "intrinsics" in sample:
        cut["intrinsics"] = warp_intrinsics(sample["intrinsics"], translation_matrix(-x0, -y0))
    return cut
