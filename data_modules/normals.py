"""Data for surface normals."""

from collections.abc import Callable
from typing import Any, ClassVar

from data_modules.base import TaskDataModule
from data_modules.transforms import EvalTransform, NormalsTrainTransform


class NormalsDataModule(TaskDataModule):
    """Pictures with camera-frame normals: x right, y up, z to the camera.

    Training batches hold ``image`` uint8 (B, 3, h, w), ``normals`` float (B, 3, h, w) and ``valid`` bool (B, 1, h, w);
    in evaluation the labels keep the source's size and may be lists (see ``data_modules.collate``).

    Args:
        augment: Options of ``NormalsTrainTransform``; by default the published recipe.
        person_margin: Cut evaluation to the person's box, enlarged by this factor, as ``augment.person_crop`` does in
            training; by default the whole picture is scored.
        **kwargs: See ``TaskDataModule``.
    """

    fields: ClassVar[tuple[str, ...]] = ("image", "alpha", "normals", "intrinsics", "box")

    def __init__(
        self, augment: dict[str, Any] | None = None, person_margin: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.augment = augment or {}
        self.person_margin = person_margin

    def train_transform(self) -> Callable[..., dict]:
        return NormalsTrainTransform(self.image_size, **self.augment)

    def eval_transform(self) -> Callable[[dict], dict]:
        if self.person_margin is None:
            return EvalTransform(self.image_size)
        return EvalTransform(self.image_size, person_crop=True, person_margin=self.person_margin)
