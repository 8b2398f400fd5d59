"""Data for pointmaps."""

from typing import ClassVar

from data_modules.dense import DenseDataModule
from data_modules.transforms.pointmap import PointmapTrainTransform, pointmap_labels


class PointmapDataModule(DenseDataModule):
    """Pictures with the camera point of every pixel of a person: metres, x right, y down, z forward.

    Training batches hold ``image`` uint8 (B, 3, h, w), ``pointmap`` float (B, 3, h, w), ``valid`` bool (B, 1, h, w)
    and ``intrinsics`` float (B, 3, 3) of the network's pixels, through which each point falls on the centre of its
    pixel. In evaluation points and intrinsics are those of the source's pixels, and may be lists. Options of
    ``augment``: see ``PointmapTrainTransform``.
    """

    fields: ClassVar[tuple[str, ...]] = ("image", "alpha", "depth", "intrinsics", "box")
    required: ClassVar[tuple[str, ...]] = ("image", "depth", "intrinsics")
    augmentation: ClassVar = PointmapTrainTransform
    labels = staticmethod(pointmap_labels)
