"""Pointmaps: the camera point of every pixel."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from torch import Tensor, nn

from s2kit.inference import dense_drawing
from s2kit.inference.drawing import draw_heat, draw_normals
from s2kit.inference.geometry import unletterbox
from s2kit.inference.points import Pointmap, normals_of
from s2kit.losses.pointmap import PointmapLoss
from s2kit.metrics.pointmap import ANGLES, DISTANCES, MeanPointmapBaseline, PointmapMetric, inside_of
from s2kit.models.heads import PointmapOutput, create_head
from s2kit.tasks.base import Task, overrides_for

#: Least scale that a prediction is divided by: a focal length of a hundred times the canonical one.
MIN_SCALE = 0.01
#: Distance in metres from which on a pixel is drawn in the last colour of the scale.
MAX_ERROR = 0.5


class PointmapPrediction(NamedTuple):
    """A finished prediction.

    Attributes:
        points: (3, H, W) metres, x right, y down, z forward, at the source's size.
        scale: Canonical points are metric ones times it, ().
        focal_length: In the source's pixels, ().
    """

    points: Tensor
    scale: Tensor
    focal_length: Tensor


class PointmapTask(Task):
    """Camera points of every pixel of a person, in metres: x right, y down, z forward.

    The network sees no focal length, so it learns canonical points, those times scale = canonical focal length / focal
    length, and the scale beside them; metric points are the one divided by the other.

    Args:
        canonical_focal: The canonical focal length in pixels of the network's input; by default its width (768 in the
            release).
        loss: The loss's form: ``release`` (its weights were trained so) or ``paper``.
        loss_weights: Weights of some of its terms in place of the form's, such as ``{normal: 1.0}``.
        loss_clamp: Upper limit of three of the release's terms, 4 there; by default none.
        interior_normals: Whether derived normals are scored away from silhouettes only; the release scores all.
        **kwargs: See ``Task``.

    Raises:
        ValueError: If ``canonical_focal`` is not positive, or ``image_size`` too small for the head.
    """

    name: ClassVar[str] = "pointmap"
    monitor: ClassVar[str] = "val/l2"
    published_lr: ClassVar[dict[str, float]] = {"sapiens2_5b": 1e-4}
    published_clip: ClassVar[dict[str, float]] = {"sapiens2_0.8b": 2.0}
    metric_units: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("l2", "rmse", "mae_x", "mae_y", "mae_z"), "canonical"),
        **dict.fromkeys(("metric_l2", "metric_rmse"), "m"),
        "scale_l2": "m, after scaling",
        "affine_l2": "m, after scaling and shifting",
        **dict.fromkeys(("abs_rel", "scale_abs_rel", "affine_abs_rel"), "of the depth"),
        **dict.fromkeys(("delta_1.25", "scale_delta_1.25", "affine_delta_1.25"), "% of pixels"),
        **{f"within_{distance:g}": "% of pixels" for distance in DISTANCES},
        "scale_error": "%",
        **dict.fromkeys(("normal_mean", "normal_rmse"), "degrees"),
        **{f"normal_within_{angle:g}": "% of pixels" for angle in ANGLES},
    }
    baseline_title: ClassVar[str] = "mean pointmap"

    def __init__(
        self,
        canonical_focal: float | None = None,
        loss: Literal["release", "paper"] = "release",
        loss_weights: dict[str, float] | None = None,
        loss_clamp: float | None = None,
        interior_normals: bool = True,
        **kwargs: Any,
    ) -> None:
        if canonical_focal is not None and not canonical_focal > 0:
            raise ValueError(f"canonical_focal={canonical_focal}: it must be positive")
        super().__init__(**kwargs)

    @property
    def canonical_focal(self) -> float:
        """The canonical focal length in pixels of the network's input."""
        return float(self.hparams.canonical_focal or self.image_size[1])

    def build_head(self, dim: int) -> nn.Module:
        size = {"image_size": self.image_size, "stride": self.backbone.config.stride}
        options = overrides_for(self.hparams.arch, self.hparams.head)
        return create_head(self.name, self.hparams.arch, dim, **{**size, **options})

    def configure_losses(self) -> None:
        self.loss = PointmapLoss(self.hparams.loss, self.hparams.loss_weights, self.hparams.loss_clamp)

    def configure_metrics(self) -> None:
        self.val_metrics = PointmapMetric(self.hparams.interior_normals)
        self.test_metrics = PointmapMetric(self.hparams.interior_normals)
        self.test_baseline = MeanPointmapBaseline()

    def compute_losses(self, output: PointmapOutput, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the loss's terms.

        Raises:
            ValueError: If the batch has no intrinsics.
        """
        if "intrinsics" not in batch:
            raise ValueError("pointmaps need 'intrinsics': without a focal length their scale has no meaning")
        intrinsics = batch["intrinsics"].float()
        scale = self.canonical_focal / intrinsics[:, 0, 0]
        target = batch["pointmap"] * scale.view(-1, 1, 1, 1)
        return self.loss(output.pointmap, output.scale, target, batch["valid"], scale, intrinsics)

    def unflip(self, output: PointmapOutput) -> PointmapOutput:
        """Mirror the points back and negate x, which a mirror turns round; the scale stays."""
        sign = output.pointmap.new_tensor([-1.0, 1.0, 1.0]).view(1, 3, 1, 1)
        return PointmapOutput(output.pointmap.flip(-1) * sign, output.scale)

    def average(self, outputs: Sequence[PointmapOutput]) -> PointmapOutput:
        """Return the mean points and the mean scale."""
        return PointmapOutput(*(sum(parts) / len(outputs) for parts in zip(*outputs)))

    def finish(self, output: PointmapOutput, index: int, batch: dict[str, Any]) -> PointmapPrediction:
        """Return metric points at the source's size, with the scale and the focal length that they mean."""
        height, width = (int(side) for side in batch["source_size"][index])
        crop = batch["crop"][index]
        scale = output.scale[index, 0].float().clamp(min=MIN_SCALE)
        points = unletterbox(output.pointmap[index].float() / scale, crop, (height, width))
        return PointmapPrediction(points, scale, self.canonical_focal / (scale * float(crop[0, 0])))

    def update_metrics(self, stage: str, predictions: Sequence[PointmapPrediction], batch: dict[str, Any]) -> None:
        metrics = self.test_metrics if stage == "test" else self.val_metrics
        labels = zip(batch["pointmap"], batch["valid"], batch["intrinsics"], batch["crop"])
        for prediction, (points, valid, intrinsics, crop) in zip(predictions, labels):
            # The crop's matrix turns the focal length of the source's pixels into that of the network's.
            scale = (self.canonical_focal / (intrinsics[0, 0] * crop[0, 0])).to(points)[None]
            metrics.update(prediction.points[None], prediction.scale[None], points[None], scale, valid[None])
            if stage == "test":
                self.test_baseline.update(points[None], scale, valid[None])

    def compute_metrics(self, stage: str) -> dict[str, Tensor]:
        metrics = self.test_metrics if stage == "test" else self.val_metrics
        values = metrics.compute()
        metrics.reset()
        if stage == "test":
            values |= {f"baseline_{name}": value for name, value in self.test_baseline.compute().items()}
            self.test_baseline.reset()
        return values

    def to_numpy(self, prediction: PointmapPrediction) -> Pointmap:
        """Return the points, from which depth, normals and files follow."""
        points = prediction.points.permute(1, 2, 0).float().cpu().numpy()
        return Pointmap(np.ascontiguousarray(points), float(prediction.focal_length))

    def draw(self, prediction: Pointmap, picture: np.ndarray) -> np.ndarray:
        """Draw the depth."""
        return dense_drawing.draw_depth(prediction.depth, dense_drawing.depth_range(prediction.depth))

    def write(self, stem: Path, prediction: Pointmap, picture: np.ndarray) -> None:
        """Write ``<stem>.npz`` (points, depth, normals, focal length) and ``<stem>.ply`` (coloured points)."""
        prediction.write_npz(f"{stem}.npz")
        prediction.write_ply(f"{stem}.ply", picture)

    def panel(self, prediction: PointmapPrediction, index: int, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return input, depths, error in metres, normals; the predicted depth times a factor, which shows its relief.

        In the colours of the true depths, which span a person's thickness, a distance that is somewhat wrong would be
        of one colour all over.
        """
        valid = batch["valid"][index][0].cpu().numpy()
        truth = batch["pointmap"][index].permute(1, 2, 0).float().cpu().numpy()
        predicted = self.to_numpy(prediction).points
        limits = dense_drawing.depth_range(truth[..., 2], valid)
        error = np.linalg.norm(predicted - truth, axis=-1)
        mean = f"error, mean {error[valid].mean():.3f} m" if valid.any() else "error"
        inner = inside_of(valid)
        depth, true_depth = predicted[..., 2], truth[..., 2]
        sums = float(depth[valid].sum()), float(true_depth[valid].sum())
        factor = sums[1] / sums[0] if sums[0] > 0 else 1.0
        return {
            "input": self.source_picture(index, batch),
            f"true depth, {limits[0]:.2f} to {limits[1]:.2f} m": dense_drawing.draw_depth(true_depth, limits, valid),
            f"depth, times {factor:.2f}": dense_drawing.draw_depth(factor * depth, limits, valid),
            mean: draw_heat(error, MAX_ERROR, valid),
            "normals of truth": draw_normals(normals_of(truth), inner),
            "normals of prediction": draw_normals(normals_of(predicted), inner),
        }
