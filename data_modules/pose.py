"""Data for pose."""

from collections.abc import Callable
from typing import Any, ClassVar

from data_modules.base import TaskDataModule
from data_modules.label_schemas import in_schema
from data_modules.shards import ShardDataset
from data_modules.shards.format import MANIFEST_NAME
from data_modules.transforms import PoseEvalTransform, PoseTrainTransform
from data_modules.transforms.pose import PADDING
from s2kit.errors import UserError


class PoseDataModule(TaskDataModule):
    """People with keypoints; an item is one person, and an image with several people gives several items.

    Training batches hold ``image`` uint8 (B, 3, h, w), ``keypoints`` float (B, K, 2) in the network's pixels and
    ``visibility`` uint8 (B, K), 0 where there is nothing to learn; ``crop`` (B, 3, 3), ``box`` (B, 4), ``key`` and
    ``person_id``. In evaluation keypoints are in the source's pixels, ``area`` (B, 1) is the person's, and
    ``iscrowd`` says of each whether it stands for a crowd.

    Args:
        schema: Keypoint set: a packaged one by name, such as ``sapiens2-308``, ``coco-wholebody-133`` or ``coco-17``,
            or the path of a file. Sets that say they follow another one with more points are converted on loading.
        augment: Options of ``PoseTrainTransform``; by default the published recipe.
        padding: Side of the crop over side of the person's box.
        **kwargs: See ``TaskDataModule``.
    """

    fields: ClassVar[tuple[str, ...]] = ("image", "box", "keypoints", "visibility")
    #: Items are people, not images.
    per_person: ClassVar[bool] = True

    def __init__(
        self,
        schema: str = "sapiens2-308",
        augment: dict[str, Any] | None = None,
        padding: float = PADDING,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.schema, self.augment, self.padding = schema, augment or {}, padding

    def open_sets(self, split: str) -> list[ShardDataset]:
        sets = in_schema("keypoints", self.schema, super().open_sets(split))
        for part in sets:
            if not {"keypoints", "people"} & set(part.manifest["fields"]):
                raise UserError(f"{part.folder.where(MANIFEST_NAME)}: no sample has people or keypoints")
        return sets

    def train_transform(self) -> Callable[..., dict]:
        return PoseTrainTransform(self.image_size, schema=self.schema, padding=self.padding, **self.augment)

    def eval_transform(self) -> Callable[[dict], dict]:
        return PoseEvalTransform(self.image_size, schema=self.schema, padding=self.padding)

    def picture_transform(self) -> Callable[[dict], dict]:
        return self.eval_transform()
