"""Albedo: the colour of surfaces without light."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from s2kit.inference import dense_drawing
from s2kit.inference.drawing import draw_heat
from s2kit.inference.geometry import unletterbox
from s2kit.losses.albedo import AlbedoLoss
from s2kit.metrics.albedo import AlbedoMetric
from s2kit.models.heads import create_head
from s2kit.tasks.base import Task, overrides_for

if TYPE_CHECKING:
    from s2kit.inference.predictor import Result

#: Mean error over the channels from which on a pixel is drawn in the last colour of the scale.
MAX_ERROR = 0.3


class AlbedoTask(Task):
    """The diffuse albedo of every pixel of a person, RGB in 0..1, sRGB-encoded.

    Args:
        loss: The loss's form: ``release`` (its weights were trained so) or ``paper``.
        loss_weights: Weights of some of its terms in place of the form's, such as ``{low_frequency: 1.0}``.
        **kwargs: See ``Task``.
    """

    name: ClassVar[str] = "albedo"
    monitor: ClassVar[str] = "val/mae"
    metric_units: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("mae", "rmse", "gradient"), "of 1"),
        "psnr": "dB",
        "ssim": "at most 1",
    }
    takes_mask: ClassVar[bool] = True
    baseline_title: ClassVar[str] = "mean colour"

    def __init__(
        self,
        loss: Literal["release", "paper"] = "release",
        loss_weights: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def build_head(self, dim: int) -> nn.Module:
        return create_head(self.name, self.hparams.arch, dim, **overrides_for(self.hparams.arch, self.hparams.head))

    def configure_losses(self) -> None:
        self.loss = AlbedoLoss(self.hparams.loss, self.hparams.loss_weights)

    def configure_metrics(self) -> None:
        self.val_metrics = AlbedoMetric()
        self.test_metrics = AlbedoMetric()

    def compute_losses(self, output: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.loss(output, batch["albedo"], batch["valid"])

    def unflip(self, output: Tensor) -> Tensor:
        """Mirror ``(B, 3, h, w)`` back."""
        return output.flip(-1)

    def finish(self, output: Tensor, index: int, batch: dict[str, Any]) -> Tensor:
        """Return the albedo (3, H, W) in 0..1 at the source's size."""
        height, width = (int(side) for side in batch["source_size"][index])
        return unletterbox(output[index].float().clamp(0, 1), batch["crop"][index], (height, width))

    def update_metrics(self, stage: str, predictions: Sequence[Tensor], batch: dict[str, Any]) -> None:
        metrics = self.test_metrics if stage == "test" else self.val_metrics
        for prediction, albedo, valid in zip(predictions, batch["albedo"], batch["valid"]):
            metrics.update(prediction[None], albedo[None], valid[None])

    def compute_metrics(self, stage: str) -> dict[str, Tensor]:
        metrics = self.test_metrics if stage == "test" else self.val_metrics
        values = metrics.compute()
        metrics.reset()
        return {name: value for name, value in values.items() if stage == "test" or not name.startswith("baseline_")}

    def draw(self, prediction: np.ndarray, picture: np.ndarray, result: Result | None = None) -> np.ndarray:
        return dense_drawing.draw_albedo(prediction)

    def panel(self, prediction: Tensor, index: int, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return input, truth, prediction, error; and the prediction in other light, if the data have normals."""
        valid = batch["valid"][index][0].cpu().numpy()
        truth, predicted = self.to_numpy(batch["albedo"][index]), self.to_numpy(prediction)
        error = np.abs(predicted - truth).mean(axis=-1)
        mean = f"error, mean {error[valid].mean():.3f}" if valid.any() else "error"
        pictures = {
            "input": self.source_picture(index, batch),
            "truth": dense_drawing.draw_albedo(truth, valid),
            "prediction": dense_drawing.draw_albedo(predicted, valid),
            mean: draw_heat(error, MAX_ERROR, valid),
        }
        if "normals" in batch:
            pictures |= dense_drawing.draw_relit(predicted, self.to_numpy(batch["normals"][index]), valid)
        return pictures
