"""Data for matting."""

from collections.abc import Callable
from typing import Any, ClassVar

from data_modules.dense import DenseDataModule
from data_modules.transforms.matting import MattingEvalTransform, MattingTrainTransform


class MattingDataModule(DenseDataModule):
    """Pictures with coverage, and the premultiplied colour of what covers.

    Training batches hold ``image`` uint8 (B, 3, h, w), ``alpha`` float (B, 1, h, w) and ``foreground`` float (B, 3, h,
    w) in 0..1, and ``valid`` bool (B, 1, h, w), where the foreground is known (alpha is known everywhere); in
    evaluation the labels keep the source's size and may be lists. Options of ``augment``: see
    ``MattingTrainTransform``.

    Args:
        backgrounds: Folder, glob pattern or list of pictures without people, to lay cut-outs over (pictures that were
            imported with transparency); without it, clouds of colour.
        **kwargs: See ``DenseDataModule``.
    """

    fields: ClassVar[tuple[str, ...]] = ("image", "alpha", "foreground", "box")
    required: ClassVar[tuple[str, ...]] = ("image", "alpha")
    augmentation: ClassVar = MattingTrainTransform
    fit: ClassVar[str] = "stretch"

    def __init__(self, backgrounds: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.backgrounds = backgrounds

    def train_transform(self) -> Callable[..., dict]:
        return self.augmentation(self.image_size, backgrounds=self.backgrounds, **self.augment)

    def eval_transform(self) -> Callable[[dict], dict]:
        return MattingEvalTransform(self.image_size, self.backgrounds, **self.evaluation_options())
