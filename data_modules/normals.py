"""Data for surface normals."""

from typing import ClassVar

from data_modules.dense import DenseDataModule
from data_modules.transforms.normals import NormalsTrainTransform, normals_labels


class NormalsDataModule(DenseDataModule):
    """Pictures with camera-frame normals: x right, y up, z to the camera.

    Training batches hold ``image`` uint8 (B, 3, h, w), ``normals`` float (B, 3, h, w) and ``valid`` bool (B, 1, h, w);
    in evaluation the labels keep the source's size and may be lists (see ``data_modules.collate``). Options of
    ``augment``: see ``NormalsTrainTransform``.
    """

    fields: ClassVar[tuple[str, ...]] = ("image", "alpha", "normals", "intrinsics", "box")
    required: ClassVar[tuple[str, ...]] = ("image", "normals")
    augmentation: ClassVar = NormalsTrainTransform
    labels = staticmethod(normals_labels)
