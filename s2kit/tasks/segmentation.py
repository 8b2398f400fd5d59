"""Part segmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from s2kit.inference import dense_drawing as drawing
from s2kit.inference.geometry import unletterbox
from s2kit.inference.tiles import WholePass, Window
from s2kit.losses.segmentation import SegmentationLoss, published_class_weights
from s2kit.metrics.segmentation import SegmentationMetric
from s2kit.models.heads import HEADS, create_head
from s2kit.schemas import SchemaError, load_class_list
from s2kit.tasks.base import Task, overrides_for

if TYPE_CHECKING:
    from s2kit.inference.predictor import Result

#: Classes that are resized at a time: 29 maps of a large picture would not fit.
CLASSES_AT_A_TIME = 8


class SegmentationTask(Task):
    """The part of the body or the garment that every pixel shows.

    Args:
        schema: The class list: a packaged one by name, such as ``sapiens2-29`` or ``sapiens1-28``, or the path of a
            file. By default the packaged one with as many classes as ``head`` says, and else the 29 classes.
        loss: The loss's form: ``release`` (its weights were trained so) or ``paper``.
        loss_weights: Weights of some of its terms in place of the form's, such as ``{dice: 2.0}``.
        class_weights: Weights of the classes in the cross-entropy: ``published``, ``equal``, or those of some classes
            by name in place of the published ones.
        normalize: What the cross-entropy is divided by, ``pixels`` or ``weights``; by default as the form has it.
        absent_as_zero: Whether classes that a set does not have count as 0 in the means, as in the release's figures.
        **kwargs: See ``Task``.

    Raises:
        SchemaError: If there is no such class list, or the head has another number of classes.
        ValueError: If ``class_weights`` names no class.
    """

    name: ClassVar[str] = "segmentation"
    monitor: ClassVar[str] = "val/mIoU"
    monitor_mode: ClassVar[str] = "max"
    metric_units: ClassVar[dict[str, str]] = {
        "mIoU": "%",
        "mAcc": "%",
        "aAcc": "% of pixels",
        "boundary_f": "%",
    }
    picture_fit: ClassVar[str] = "stretch"
    #: A tile alone may not tell left from right, or a sleeve from a trouser leg.
    tiles_need_whole: ClassVar[bool] = True
    baseline_title: ClassVar[str] = "most frequent class"
    load_schema = staticmethod(load_class_list)

    def __init__(
        self,
        schema: str | int | None = None,
        loss: Literal["release", "paper"] = "release",
        loss_weights: dict[str, float] | None = None,
        class_weights: Literal["published", "equal"] | dict[str, float] = "published",
        normalize: Literal["pixels", "weights"] | None = None,
        absent_as_zero: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.register_buffer(
            "flip_table", torch.from_numpy(self.classes.flip_table[: len(self.classes)]).long(), persistent=False
        )

    def build_head(self, dim: int) -> nn.Module:
        options = overrides_for(self.hparams.arch, self.hparams.head)
        count = options.pop("out_channels", None)
        if self.hparams.schema is None:
            self.hparams.schema = count or HEADS[self.name].default_out_channels
        self.classes = load_class_list(self.hparams.schema)
        if count not in (None, len(self.classes)):
            raise SchemaError(
                f"the head has {count} classes, but model.schema={self.hparams.schema} has {len(self.classes)}"
            )
        return create_head(self.name, self.hparams.arch, dim, out_channels=len(self.classes), **options)

    def configure_losses(self) -> None:
        self.loss = SegmentationLoss(
            self._class_weights(),
            self.hparams.loss,
            self.hparams.loss_weights,
            self.hparams.normalize,
            self.classes.ignore_index,
        )

    def _class_weights(self) -> list[float]:
        chosen = self.hparams.class_weights
        if chosen == "equal":
            return [1.0] * len(self.classes)
        published = published_class_weights(self.classes.names)
        if chosen == "published":
            return published
        unknown = sorted(set(chosen) - set(self.classes.names))
        if unknown:
            raise ValueError(
                f"model.class_weights names {unknown[0]!r}; {self.classes.name} has {', '.join(self.classes.names)}"
            )
        return [chosen.get(name, weight) for name, weight in zip(self.classes.names, published)]

    def configure_metrics(self) -> None:
        options = (self.classes.names, self.classes.ignore_index, self.hparams.absent_as_zero)
        self.val_metrics = SegmentationMetric(*options)
        self.test_metrics = SegmentationMetric(*options)

    def compute_losses(self, output: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the loss's terms and ``accuracy``, the share of labelled pixels that are right, in per cent."""
        labels = batch["labels"]
        terms = self.loss(output, labels)
        if output.shape[2:] == labels.shape[1:]:
            used = labels != self.classes.ignore_index
            right = ((output.detach().argmax(dim=1) == labels) & used).sum()
            terms["accuracy"] = 100 * right / used.sum().clamp(min=1)
        return terms

    def unflip(self, output: Tensor) -> Tensor:
        """Mirror ``(B, C, h, w)`` back and swap the left and right classes."""
        return output.flip(-1)[:, self.flip_table]

    def average(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the logarithms of the mean probabilities."""
        return torch.stack([output.log_softmax(dim=1) for output in outputs]).logsumexp(dim=0) - math.log(len(outputs))

    def finish(self, output: Tensor, index: int, batch: dict[str, Any]) -> Tensor:
        """Return class ids (H, W), uint8, at the source's size."""
        height, width = (int(side) for side in batch["source_size"][index])
        best = labels = None
        for start in range(0, output.shape[1], CLASSES_AT_A_TIME):
            part = output[index, start : start + CLASSES_AT_A_TIME].float()
            value, found = unletterbox(part, batch["crop"][index], (height, width)).max(dim=0)
            found = (found + start).to(torch.uint8)
            if best is None:
                best, labels = value, found
            else:
                labels = torch.where(value > best, found, labels)
                best = torch.maximum(value, best)
        return labels

    def whole_pass(self, output: Tensor, index: int, batch: dict[str, Any]) -> WholePass:
        return super().whole_pass(output.softmax(dim=1), index, batch)

    def finish_tile(
        self, output: Tensor, index: int, batch: dict[str, Any], whole: WholePass | None, window: Window
    ) -> Tensor:
        """Return (C, h, w), the mean of the probabilities in the tile and in the whole picture."""
        height, width = (int(side) for side in batch["source_size"][index])
        tile = unletterbox(output[index].softmax(dim=0), batch["crop"][index], (height, width))
        return (tile + whole.region(window)) / 2

    def close_tiles(self, values: Tensor) -> Tensor:
        """Return class ids (rows, W), uint8, of probabilities (C, rows, W)."""
        return values.argmax(dim=0).to(torch.uint8)

    def update_metrics(self, stage: str, predictions: Sequence[Tensor], batch: dict[str, Any]) -> None:
        metrics = self.test_metrics if stage == "test" else self.val_metrics
        for prediction, labels in zip(predictions, batch["labels"]):
            metrics.update(prediction[None], labels[None])

    def compute_metrics(self, stage: str) -> dict[str, Tensor]:
        metrics = self.test_metrics if stage == "test" else self.val_metrics
        values = metrics.compute()
        metrics.reset()
        if stage == "test":
            return values
        return {name: value for name, value in values.items() if not name.startswith("baseline_") and "/" not in name}

    def to_numpy(self, prediction: Tensor) -> np.ndarray:
        """Return class ids as uint8 (H, W)."""
        return prediction.cpu().numpy()

    def draw(self, prediction: np.ndarray, picture: np.ndarray, result: Result | None = None) -> np.ndarray:
        return drawing.draw_labels(prediction, self.classes, picture)

    def views(self, prediction: np.ndarray, picture: np.ndarray, result: Result | None = None) -> dict[str, np.ndarray]:
        """Return the classes over the picture, and alone with their names."""
        return {
            "segmentation": self.draw(prediction, picture, result),
            "classes": drawing.add_legend(drawing.draw_labels(prediction, self.classes), prediction, self.classes),
        }

    def write(self, stem: Path, prediction: np.ndarray, picture: np.ndarray, result: Result | None = None) -> None:
        """Write ``<stem>_labels.png``: the class ids, with the classes' colours as its palette."""
        image = Image.fromarray(prediction)
        image.putpalette(self.classes.colors.tobytes())
        image.save(f"{stem}_labels.png")

    def panel(self, prediction: Tensor, index: int, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return input, truth, prediction, errors, and the names of the classes that are in truth or prediction."""
        picture = self.source_picture(index, batch)
        truth = batch["labels"][index].to(torch.uint8).cpu().numpy()
        predicted = self.to_numpy(prediction)
        used = truth != self.classes.ignore_index
        right = f"errors, {100 * (predicted == truth)[used].mean():.1f} % right" if used.any() else "errors"
        return {
            "input": picture,
            "truth": drawing.draw_labels(truth, self.classes),
            "prediction": drawing.draw_labels(predicted, self.classes),
            "prediction over input": drawing.draw_labels(predicted, self.classes, picture),
            right: drawing.draw_label_errors(predicted, truth, self.classes.ignore_index),
            "classes": drawing.draw_legend(self.classes, np.union1d(truth, predicted)),
        }
