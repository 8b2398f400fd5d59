"""Matting: how much of every pixel a person covers, and in what colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from s2kit.inference import dense_drawing
from s2kit.inference.drawing import draw_heat, write_image
from s2kit.inference.geometry import unletterbox
from s2kit.inference.light import straight, to_bytes
from s2kit.losses.matting import MattingLoss
from s2kit.metrics.matting import MattingMetric, box_alpha
from s2kit.models.heads import create_head
from s2kit.tasks.base import Task, overrides_for

if TYPE_CHECKING:
    from s2kit.inference.predictor import Result

#: Error of alpha from which on a pixel is drawn in the last colour of the scale.
MAX_ERROR = 0.5


class MattingTask(Task):
    """Coverage by a person, alpha in 0..1, and the foreground's colour times alpha, sRGB-encoded.

    Args:
        loss: The loss's form; there is only the release's.
        loss_weights: Weights of some of its terms in place of the form's, such as ``{foreground_l1: 0.5}``.
        **kwargs: See ``Task``.
    """

    name: ClassVar[str] = "matting"
    monitor: ClassVar[str] = "val/sad"
    metric_units: ClassVar[dict[str, str]] = {
        "sad": "thousands of pixels, per picture",
        "mse": "thousandths",
        "gradient": "thousands, per picture",
        "connectivity": "thousands, per picture",
        "alpha_mae": "of 1",
        "foreground_l1": "of 1",
    }
    picture_fit: ClassVar[str] = "stretch"
    baseline_title: ClassVar[str] = "the person's box"

    def __init__(
        self, loss: Literal["release"] = "release", loss_weights: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)

    def build_head(self, dim: int) -> nn.Module:
        return create_head(self.name, self.hparams.arch, dim, **overrides_for(self.hparams.arch, self.hparams.head))

    def configure_losses(self) -> None:
        self.loss = MattingLoss(self.hparams.loss, self.hparams.loss_weights)

    def configure_metrics(self) -> None:
        self.val_metrics = MattingMetric()
        self.test_metrics = MattingMetric()
        self.test_baseline = MattingMetric()

    def compute_losses(self, output: Tensor, batch: dict[str, Any]) -> dict[str, Tensor]:
        return self.loss(output, batch["alpha"], batch["foreground"], batch["valid"])

    def unflip(self, output: Tensor) -> Tensor:
        """Mirror ``(B, 4, h, w)`` back."""
        return output.flip(-1)

    def finish(self, output: Tensor, index: int, batch: dict[str, Any]) -> Tensor:
        """Return premultiplied R, G, B and alpha (4, H, W) in 0..1 at the source's size."""
        height, width = (int(side) for side in batch["source_size"][index])
        return unletterbox(output[index].float(), batch["crop"][index], (height, width))

    def update_metrics(self, stage: str, predictions: Sequence[Tensor], batch: dict[str, Any]) -> None:
        metrics = self.test_metrics if stage == "test" else self.val_metrics
        for prediction, alpha, foreground, valid in zip(
            predictions, batch["alpha"], batch["foreground"], batch["valid"]
        ):
            metrics.update(prediction[None], alpha[None], foreground[None], valid[None])
            if stage == "test":
                self.test_baseline.update(box_alpha(alpha[None]), alpha[None])

    def compute_metrics(self, stage: str) -> dict[str, Tensor]:
        metrics = self.test_metrics if stage == "test" else self.val_metrics
        values = metrics.compute()
        metrics.reset()
        if stage == "test":
            values |= {f"baseline_{name}": value for name, value in self.test_baseline.compute().items()}
            self.test_baseline.reset()
        return values

    def draw(self, prediction: np.ndarray, picture: np.ndarray, result: Result | None = None) -> np.ndarray:
        return dense_drawing.draw_composite(prediction)

    def views(self, prediction: np.ndarray, picture: np.ndarray, result: Result | None = None) -> dict[str, np.ndarray]:
        """Return the foreground on green, and alpha."""
        return {
            "matting, on green": self.draw(prediction, picture, result),
            "alpha": dense_drawing.draw_alpha(prediction[..., 3]),
        }

    def write(self, stem: Path, prediction: np.ndarray, picture: np.ndarray, result: Result | None = None) -> None:
        """Write ``<stem>.npy`` (H, W, 4) and ``<stem>_cutout.png``, RGBA with the foreground's own colours."""
        super().write(stem, prediction, picture)
        alpha = prediction[..., 3]
        colours = straight(prediction[..., :3], alpha)
        write_image(f"{stem}_cutout.png", to_bytes(np.dstack([colours, alpha])))

    def panel(self, prediction: Tensor, index: int, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        predicted = self.to_numpy(prediction)
        truth = batch["alpha"][index][0].float().cpu().numpy()
        error = np.abs(predicted[..., 3] - truth)
        return {
            "input": self.source_picture(index, batch),
            "true alpha": dense_drawing.draw_alpha(truth),
            "alpha": dense_drawing.draw_alpha(predicted[..., 3]),
            f"error, mean {error.mean():.3f}": draw_heat(error, MAX_ERROR),
            "on green, in linear light": dense_drawing.draw_composite(predicted),
        }
