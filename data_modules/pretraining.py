"""Data for pretraining: pictures, no labels."""

from collections.abc import Callable
from typing import Any, ClassVar

from data_modules.base import TaskDataModule
from data_modules.shards import ShardDataset
from data_modules.transforms import PretrainTransform


class PretrainingDataModule(TaskDataModule):
    """Pictures alone, each in the corner of a canvas; views are cropped and coloured on the device.

    Batches, in training and evaluation, hold ``image`` uint8 (B, 3, h, w) of the canvas, ``size`` int64 (B, 2): height
    and width of the picture in it, ``seed`` (a list: what decides the crops and masks of each), ``crop`` (B, 3, 3),
    ``source_size`` (B, 2) and ``key``. A large JPEG is decoded at a half, a quarter or an eighth of its size where that
    still fills the canvas, and then ``source_size`` says that size.

    Args:
        canvas: (height, width) that pictures are shrunk to fit into, in pixels; by default the network's input. A
            larger one keeps crops of a part of the picture sharp, for more memory and transfer.
        min_side: Pictures with a shorter side are rejected.
        **kwargs: See ``TaskDataModule``.
    """

    fields: ClassVar[tuple[str, ...]] = ("image",)

    def __init__(self, canvas: tuple[int, int] | None = None, min_side: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.canvas = self.image_size if canvas is None else (int(canvas[0]), int(canvas[1]))
        self.min_side = min_side

    def open_sets(self, split: str) -> list[ShardDataset]:
        sets = super().open_sets(split)
        for part in sets:
            part.min_size = self.canvas
        return sets

    def train_transform(self) -> Callable[..., dict]:
        return PretrainTransform(self.canvas, min_side=self.min_side)

    def eval_transform(self) -> Callable[[dict], dict]:
        return self.train_transform()

    def picture_transform(self) -> Callable[[dict], dict]:
        return self.train_transform()
