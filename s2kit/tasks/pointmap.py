"""Pointmaps: the camera point of every pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from s2kit.inference import dense_drawing
from s2kit.inference.drawing import draw_heat, draw_normals
from s2kit.inference.geometry import unletterbox
from s2kit.inference.points import Pointmap, normals_of
from s2kit.inference.tiles import WholePass, Window
from s2kit.losses.pointmap import PointmapLoss
from s2kit.metrics.pointmap import ANGLES, DISTANCES, MeanPointmapBaseline, PointmapMetric, inside_of
from s2kit.models.heads import PointmapOutput, create_head
from s2kit.models.heads.pixel_shuffle import PixelShuffleHead
from s2kit.tasks.base import Task, overrides_for

if TYPE_CHECKING:
    from s2kit.inference.predictor import Result

#: Least scale that a prediction is divided by: a focal length of a hundred times the canonical one.
MIN_SCALE = 0.01
#: Least depth in metres that a direction is taken from.
MIN_DEPTH = 1e-3
#: Distance in metres from which on a pixel is drawn in the last colour of the scale.
MAX_ERROR = 0.5


def align_depth(depth: Tensor, target: Tensor) -> Tensor:
    """Return ``depth`` times the factor plus the shift that bring it closest to ``target``, both (H, W).

    Closest in relative terms: a square difference counts by the target's depth, so that a far background does not
    decide. Where no positive factor does, ``target`` itself.
    """
    weight = target.clamp(min=MIN_DEPTH).double() ** -2
    weight = weight / weight.sum()
    centre, true_centre = (weight * depth).sum(), (weight * target).sum()
    centred = depth - centre
    factor = (weight * centred * (target - true_centre)).sum() / (weight * centred.square()).sum().clamp(min=1e-12)
    return (factor * centred + true_centre).to(target) if factor > 0 else target


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
    takes_mask: ClassVar[bool] = True
    tiles_need_whole: ClassVar[bool] = True
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

    def forward_scaled(self, image: Tensor) -> PointmapOutput:
        """Return the points alone (the scale is NaN): the scale's layers fit one size of input."""
        points = PixelShuffleHead.forward(self.decode_head, self.backbone(image).patches)
        return PointmapOutput(points, points.new_full((len(points), 1), math.nan))

    def rescale(
        self, output: PointmapOutput, batch: dict[str, Any], base_output: PointmapOutput, base: dict[str, Any]
    ) -> PointmapOutput:
        """Return the points at the network's own size, with the scale of the pass at that size.

        In a picture that is s times as large the focal length is s times as long, and so canonical points, those of
        one focal length, are 1/s of what they were.
        """
        larger = (batch["crop"][:, 0, 0] / base["crop"][:, 0, 0]).to(output.pointmap)
        points = super().rescale(output.pointmap, batch, base_output.pointmap, base)
        return PointmapOutput(points * larger.view(-1, 1, 1, 1), base_output.scale)

    def whole_pass(self, output: PointmapOutput, index: int, batch: dict[str, Any]) -> WholePass:
        """Keep metric points, and as a fourth channel the focal length in the source's pixels."""
        scale = output.scale[index, 0].clamp(min=MIN_SCALE)
        focal = self.canonical_focal / (scale * float(batch["crop"][index, 0, 0]))
        points = output.pointmap[index] / scale
        kept = torch.cat([points, focal.expand(1, *points.shape[1:])])
        return WholePass(kept, batch["crop"][index], tuple(batch["source_size"][index].tolist()))

    def finish_tile(
        self, output: PointmapOutput, index: int, batch: dict[str, Any], whole: WholePass | None, window: Window
    ) -> Tensor:
        """Return metric points (3, h, w): the tile's relief at the whole picture's distance, along its rays.

        A tile shows no scale, and its middle is not where the camera looks: of its points the depth is taken, brought
        closest to that of the whole picture by a factor and a shift, and the direction is the whole picture's.
        """
        height, width = (int(side) for side in batch["source_size"][index])
        depth = unletterbox(output.pointmap[index, 2:].float(), batch["crop"][index], (height, width))[0]
        x, y, target = whole.region(window)[:3]
        depth = align_depth(depth, target)
        rays = torch.stack([x, y]) / target.clamp(min=MIN_DEPTH)
        return torch.cat([rays * depth, depth[None]])

    def join_tiles(self, values: Tensor, whole: WholePass | None) -> PointmapPrediction:
        return PointmapPrediction(values, values.new_tensor(math.nan), whole.output[3, 0, 0])

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
        return Pointmap(super().to_numpy(prediction.points), float(prediction.focal_length))

    def apply_mask(self, prediction: Pointmap, mask: np.ndarray) -> Pointmap:
        """Return the pointmap with ``mask`` as its ``valid``; the points elsewhere stay."""
        return replace(prediction, valid=mask)

    def draw(self, prediction: Pointmap, picture: np.ndarray, result: Result | None = None) -> np.ndarray:
        """Draw the depth."""
        limits = dense_drawing.depth_range(prediction.depth, prediction.valid)
        return dense_drawing.draw_depth(prediction.depth, limits, prediction.valid)

    def views(self, prediction: Pointmap, picture: np.ndarray, result: Result | None = None) -> dict[str, np.ndarray]:
        """Return the depth, and the normals of the points."""
        near, far = dense_drawing.depth_range(prediction.depth, prediction.valid)
        shown = None if prediction.valid is None else inside_of(prediction.valid)
        return {
            f"depth, {near:.2f} m (red) to {far:.2f} m (blue)": self.draw(prediction, picture, result),
            "normals of the points": draw_normals(prediction.normals, shown),
        }

    def write(self, stem: Path, prediction: Pointmap, picture: np.ndarray, result: Result | None = None) -> None:
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
