"""Data for albedo."""

from typing import Any, ClassVar

import numpy as np

from data_modules.dense import DenseDataModule
from data_modules.transforms.albedo import AlbedoTrainTransform, albedo_labels
from data_modules.transforms.normals import normals_labels


class AlbedoDataModule(DenseDataModule):
    """Pictures with the albedo of every pixel of a person: RGB in 0..1, sRGB-encoded.

    Training batches hold ``image`` uint8 (B, 3, h, w), ``albedo`` float (B, 3, h, w) and ``valid`` bool (B, 1, h, w);
    in evaluation the labels keep the source's size and may be lists, and ``normals`` float (3, H, W) are there, to
    show the albedo in other light, where the data have them. Options of ``augment``: see ``AlbedoTrainTransform``.
    """

    fields: ClassVar[tuple[str, ...]] = ("image", "alpha", "albedo", "box")
    required: ClassVar[tuple[str, ...]] = ("image", "albedo")
    augmentation: ClassVar = AlbedoTrainTransform

    def fields_of(self, split: str) -> tuple[str, ...]:
        return self.fields if split == "train" else (*self.fields, "normals")

    def labels(self, sample: dict[str, Any]) -> dict[str, np.ndarray]:
        # What is valid is the albedo's to say.
        return normals_labels(sample) | albedo_labels(sample)
