"""Data for part segmentation."""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from data_modules.dense import DenseDataModule
from data_modules.label_schemas import in_schema
from data_modules.shards import ShardDataset
from data_modules.transforms.segmentation import SegmentationTrainTransform, segmentation_labels
from s2kit.schemas import load_class_list


class SegmentationDataModule(DenseDataModule):
    """Pictures with a part class for every pixel.

    Training batches hold ``image`` uint8 (B, 3, h, w) and ``labels`` int64 (B, h, w), 255 ignored; in evaluation the
    labels keep the source's size and may be lists. Options of ``augment``: see ``SegmentationTrainTransform``.

    Args:
        schema: Class list: a packaged one by name, such as ``sapiens2-29``, or the path of a file. Sets that say
            they follow another one are converted on loading, where a packaged label map leads from it to this one.
        backgrounds: Folder, glob pattern or list of pictures without people, to put behind people; without it,
            backgrounds stay as they are.
        **kwargs: See ``DenseDataModule``.
    """

    fields: ClassVar[tuple[str, ...]] = ("image", "parts", "box", "meta")
    required: ClassVar[tuple[str, ...]] = ("image", "parts")
    augmentation: ClassVar = SegmentationTrainTransform
    fit: ClassVar[str] = "stretch"

    def __init__(self, schema: str = "sapiens2-29", backgrounds: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.schema, self.backgrounds = schema, backgrounds
        self.classes = load_class_list(schema)

    def open_sets(self, split: str) -> list[ShardDataset]:
        return in_schema("parts", self.schema, super().open_sets(split))

    def labels(self, sample: dict[str, Any]) -> dict[str, np.ndarray]:
        return segmentation_labels(sample, self.classes)

    def train_transform(self) -> Callable[..., dict]:
        return self.augmentation(self.image_size, schema=self.schema, backgrounds=self.backgrounds, **self.augment)
