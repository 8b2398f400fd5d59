"""Data for albedo."""

from typing import ClassVar

from data_modules.dense import DenseDataModule
from data_modules.transforms.albedo import AlbedoTrainTransform, albedo_labels


class AlbedoDataModule(DenseDataModule):
    """Pictures with the albedo of every pixel of a person: RGB in 0..1, sRGB-encoded.

    Training batches hold ``image`` uint8 (B, 3, h, w), ``albedo`` float (B, 3, h, w) and ``valid`` bool (B, 1, h, w);
    in evaluation the labels keep the source's size and may be lists. Options of ``augment``: see
    ``AlbedoTrainTransform``.
    """

    fields: ClassVar[tuple[str, ...]] = ("image", "alpha", "albedo", "box")
    required: ClassVar[tuple[str, ...]] = ("image", "albedo")
    augmentation: ClassVar = AlbedoTrainTransform
    labels = staticmethod(albedo_labels)
