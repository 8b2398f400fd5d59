"""Surface normals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from s2kit.inference import drawing
from s2kit.inference.geometry import unletterbox
from s2kit.losses.normals import NormalsLoss
from s2kit.metrics.normals import ConstantNormalBaseline, NormalsMetric
from s2kit.models.heads import create_head
from s2kit.tasks.base import Task, overrides_for

if TYPE_CHECKING:
    from s2kit.inference.predictor import Result


def unit_length(normals: Tensor) -> Tensor:
    """Return vectors (3, H, W) of length 1, and 0 where they have none."""
    # Ten times as fast on a CPU as torch's normalize, whose norm over the first axis is slow.
    return normals / normals.square().sum(dim=0).sqrt_().clamp_(min=1e-6)


class NormalsTask(Task):
    """Camera-frame unit normals (x right, y up, z to the camera) of every pixel of a person.

    Args:
        loss: The loss's form: ``release`` (its weights were trained so) or ``paper``.
        loss_weights: Weights of some of its terms in place of the form's, such as ``{gradient: 1.0}``.
        flip_axes: Axes to negate in every prediction, such as ``yz``: for weights in another frame. The frame of the
            published files is not documented, and their output is passed on unchanged by default.
        **kwargs: See ``Task``.

    Raises:
        ValueError: If ``flip_axes`` has other letters than x, y and z.
    """

    name: ClassVar[str] = "normals"
    monitor: ClassVar[str] = "val/mean"
    published_lr: ClassVar[dict[str, float]] = {"sapiens2_5b": 1e-4}
    metric_units: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("mean", "median", "rmse"), "degrees"),
        **dict.fromkeys(("within_5", "within_11.25", "within_22.5", "within_30"), "% of pixels"),
    }
    takes_mask: ClassVar[bool] = True
    baseline_title: ClassVar[str] = "best constant normal"
    #: The frame of the vectors, written to model.json.
    frame: ClassVar[str] = "x right, y up, z to the camera"

    def __init__(
        self,
        loss: Literal["release", "paper"] = "release",
        loss_weights: dict[str, float] | None = None,
        flip_axes: str = "",
        **kwargs: Any,
    ) -> None:
        if set(flip_axes) - set("xyz"):
            raise ValueError(f"flip_axes={flip_axes!r}: give some of the letters x, y and z")
        super().__init__(**kwargs)

    def build_head(self, dim: int) -> nn.Module:
        return create_head("normals", self.hparams.arch, dim, **overrides_for(self.hparams.arch, self.hparams.head))

    def configure_losses(self) -> None:
        self.loss = NormalsLoss(self.hparams.loss, self.hparams.loss_weights)

    def configure_metrics(self) -> None:
        self.val_metrics = NormalsMetric()
        self.test_metrics = NormalsMetric()
        self.test_baseline = ConstantNormalBaseline()

    def compute_losses(self, output: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.loss(output, batch["normals"], batch["valid"])

    def unflip(self, output: Tensor) -> Tensor:
        """Mirror ``(B, 3, h, w)`` back and negate x, which a mirror turns round."""
        return output.flip(-1) * output.new_tensor([-1.0, 1.0, 1.0]).view(1, 3, 1, 1)

    def finish(self, output: Tensor, index: int, batch: dict[str, Any]) -> Tensor:
        """Return unit normals (3, H, W) at the source's size."""
        height, width = (int(side) for side in batch["source_size"][index])
        normals = unletterbox(output[index].float(), batch["crop"][index], (height, width))
        for axis in self.hparams.flip_axes:
            normals["xyz".index(axis)].neg_()
        return unit_length(normals)

    def close_tiles(self, values: Tensor) -> Tensor:
        """Return blended normals (3, rows, W) of unit length again."""
        return unit_length(values)

    def update_metrics(self, stage: str, predictions: Sequence[Tensor], batch: dict[str, Any]) -> None:
        for prediction, normals, valid in zip(predictions, batch["normals"], batch["valid"]):
            if stage == "test":
                self.test_metrics.update(prediction[None], normals[None], valid[None])
                self.test_baseline.update(normals[None], valid[None])
            else:
                self.val_metrics.update(prediction[None], normals[None], valid[None])

    def compute_metrics(self, stage: str) -> dict[str, Tensor]:
        metrics = self.test_metrics if stage == "test" else self.val_metrics
        values = metrics.compute()
        metrics.reset()
        if stage == "test":
            values["baseline_mean"] = self.test_baseline.compute()["mean"]
            self.test_baseline.reset()
        return values

    def draw(self, prediction: np.ndarray, picture: np.ndarray, result: Result | None = None) -> np.ndarray:
        return drawing.draw_normals(prediction, prediction.any(axis=-1))

    def panel(self, prediction: Tensor, index: int, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        valid = batch["valid"][index][0].cpu().numpy()
        truth = self.to_numpy(batch["normals"][index])
        predicted = self.to_numpy(prediction)
        error = drawing.angular_error(predicted, truth)
        mean = f"error, mean {error[valid].mean():.1f} deg" if valid.any() else "error"
        return {
            "input": self.source_picture(index, batch),
            "truth": drawing.draw_normals(truth, valid),
            "prediction": drawing.draw_normals(predicted, valid),
            mean: drawing.draw_heat(error, drawing.MAX_ERROR_DEGREES, valid),
        }
