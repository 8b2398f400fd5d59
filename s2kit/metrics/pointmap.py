"""Pointmaps: errors of canonical and of metric points, of derived depth and normals, and after alignment (spec 6.4).

Points are x right, y down, z forward; canonical ones are metric ones times the picture's scale.
"""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from s2kit.metrics.alignment import align, depth_errors
from s2kit.metrics.pooled import PooledMetric

#: Canonical distances: metres for a camera whose focal length is the canonical one.
DISTANCES = (0.05, 0.1, 0.2)
ANGLES = (5.0, 11.25, 22.5, 30.0)
NORMAL_EPS = 1e-6
SOBEL_SIZE = 5
GRID = (24, 18)


def sobel_normals(points: np.ndarray) -> np.ndarray:
    """Normals (H, W, 3) of points (H, W, 3) float32 by a 5 x 5 Sobel filter, in the points' own frame.

    They point away from the camera, have unit length, and are 0 where the points do not span a surface.
    """
    points = np.ascontiguousarray(points, np.float32)
    right, down = (
        cv2.Sobel(points, cv2.CV_32F, *order, ksize=SOBEL_SIZE, borderType=cv2.BORDER_REFLECT_101)
        for order in ((1, 0), (0, 1))
    )
    with np.errstate(invalid="ignore"):  # infinite points have normals that are not a number
        normals = np.cross(right, down)
        return normals / (np.linalg.norm(normals, axis=-1, keepdims=True) + NORMAL_EPS)


def inside_of(valid: np.ndarray) -> np.ndarray:
    """bool (H, W), where all of the window of `sobel_normals` is `valid` and in the picture."""
    window = np.ones((SOBEL_SIZE, SOBEL_SIZE), np.uint8)
    return cv2.erode(valid.view(np.uint8), window, borderType=cv2.BORDER_CONSTANT, borderValue=0).view(bool)


def check_points(prediction: Tensor, scale: Tensor, target: Tensor, target_scale: Tensor, valid: Tensor) -> None:
    """Raises ValueError unless the maps are (B, 3, H, W), valid (B, 1, H, W), of one size, and the scales (B,)."""
    if target.ndim != 4 or prediction.shape != target.shape or valid.shape != (len(target), 1, *target.shape[2:]):
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must be (B, 3, H, W) of one size "
            f"with valid (B, 1, H, W), got {tuple(valid.shape)}: resize the prediction before"
        )
    if scale.shape != (len(target),) or target_scale.shape != scale.shape:
        raise ValueError(
            f"scales must be ({len(target)},), one a picture, got {tuple(scale.shape)} and {tuple(target_scale.shape)}"
        )


class PointmapMetric(PooledMetric):
    """Errors of points, pooled over the valid pixels.

    If any is not finite, in the prediction or in the target, or if there was none, all results are NaN.

    Args:
        interior_normals: whether normals count only where all of the filter's window is valid and in the picture.
            Otherwise, as in the release, those at a silhouette are taken across it, from what is behind it in either
            map, and those at the picture's border, which are 0, count as 90 degrees off.
    """

    higher_is_better = False
    sums: ClassVar[dict[str, tuple[int, ...]]] = {
        "pixels": (),
        "distance": (),
        "square": (),
        "axes": (3,),
        "within": (len(DISTANCES),),
        "normal_pixels": (),
        "angle": (),
        "angle_square": (),
        "angle_within": (len(ANGLES),),
        "images": (),
        "scale_error": (),
        "metric": (2,),
        "aligned": (2,),
        "relative": (3,),
        "delta": (3,),
    }

    def __init__(self, interior_normals: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.interior_normals = interior_normals

    def update(self, prediction: Tensor, scale: Tensor, target: Tensor, target_scale: Tensor, valid: Tensor) -> None:
        """Adds a batch.

        Args:
            prediction: metric points (B, 3, H, W).
            scale: predicted scales (B,): canonical points are metric ones times scale.
            target: metric points (B, 3, H, W); values outside `valid` do not matter but for normals of the release's
                form.
            target_scale: true scales (B,).
            valid: bool (B, 1, H, W).

        Raises:
            ValueError: shapes that do not fit.
        """
        check_points(prediction, scale, target, target_scale, valid)
        self.add_scales(scale, target_scale)
        for points, truth, inside, s, true_s in zip(prediction, target, valid[:, 0].bool(), scale, target_scale):
            p, t = (m.permute(1, 2, 0)[inside].double() for m in (points, truth))
            self.add_canonical(p * s.double() - t * true_s.double())
            self.add_metric(p, t)
            self.add_normals(points * s, truth * true_s, inside)

    def add_scales(self, scale: Tensor, target: Tensor) -> None:
        """Adds scales (n,)."""
        relative = scale.double() / target.double() - 1
        self.add(images=torch.ones_like(relative), scale_error=relative.abs())

    def add_canonical(self, error: Tensor) -> None:
        """Adds differences (n, 3) of canonical points."""
        distance = error.norm(dim=-1)
        self.add(
            pixels=torch.ones_like(distance),
            distance=distance,
            square=distance.square(),
            axes=error.abs().T,
            within=torch.stack([distance < limit for limit in DISTANCES]),
        )

    def add_metric(self, points: Tensor, target: Tensor) -> None:
        """Adds metric points (n, 3) of one picture: as they are, and after alignment; and their depth likewise."""
        distance = (points - target).norm(dim=-1)
        aligned = [align(points, target, shift) for shift in (False, True)]
        depths = [m[:, 2] for m in (points, aligned[0])]
        depths.append(align(points[:, 2:], target[:, 2:], shift=True)[:, 0])
        errors = [depth_errors(depth, target[:, 2]) for depth in depths]
        self.add(
            metric=torch.stack([distance, distance.square()]),
            aligned=torch.stack([(m - target).norm(dim=-1) for m in aligned]),
            relative=torch.stack([relative for relative, _ in errors]),
            delta=torch.stack([right for _, right in errors]),
        )

    def add_normals(self, points: Tensor, target: Tensor, inside: Tensor) -> None:
        """Adds the normals that follow from two maps (3, H, W), where `inside` (H, W)."""
        mask = inside.cpu().numpy()
        if self.interior_normals:
            points, target = torch.where(inside, points, 0.0), torch.where(inside, target, 0.0)
            mask = inside_of(mask)
        normals = [sobel_normals(m.permute(1, 2, 0).float().cpu().numpy())[mask] for m in (points, target)]
        cosine = (normals[0].astype(np.float64) * normals[1]).sum(axis=-1)
        angle = torch.from_numpy(np.degrees(np.arccos(cosine.clip(-1, 1)))).to(self.nonfinite.device)
        self.add(
            normal_pixels=torch.ones_like(angle),
            angle=angle,
            angle_square=angle.square(),
            angle_within=torch.stack([angle < limit for limit in ANGLES]),
        )

    def compute(self) -> dict[str, Tensor]:
        """Scalars.

        Canonical: l2 and rmse (mean and root mean square distance), mae_x, mae_y, mae_z, within_0.05, within_0.1,
        within_0.2 (per cent of pixels). Metric, in metres: metric_l2, metric_rmse; scale_l2 after alignment of all of a
        picture's points by one factor, affine_l2 by a factor and a shift. Depth: abs_rel and delta_1.25 (per cent),
        as it is, scale_* and affine_*. scale_error: per cent. Of derived normals: normal_mean, normal_rmse (degrees),
        normal_within_5, ... (per cent; NaN where no pixel had one).
        """
        pixels = self.total("pixels")
        results = {"l2": self.total("distance") / pixels, "rmse": (self.total("square") / pixels).sqrt()}
        results.update(zip(("mae_x", "mae_y", "mae_z"), self.total("axes") / pixels))
        results.update(zip((f"within_{d:g}" for d in DISTANCES), 100 * self.total("within") / pixels))
        metric, aligned = self.total("metric") / pixels, self.total("aligned") / pixels
        results |= {"metric_l2": metric[0], "metric_rmse": metric[1].sqrt()}
        results |= {"scale_l2": aligned[0], "affine_l2": aligned[1]}
        relative, delta = self.total("relative") / pixels, 100 * self.total("delta") / pixels
        for i, prefix in enumerate(("", "scale_", "affine_")):
            results |= {f"{prefix}abs_rel": relative[i], f"{prefix}delta_1.25": delta[i]}
        results["scale_error"] = 100 * self.total("scale_error") / self.total("images")
        count = self.total("normal_pixels")
        results["normal_mean"] = self.total("angle") / count
        results["normal_rmse"] = (self.total("angle_square") / count).sqrt()
        results.update(zip((f"normal_within_{a:g}" for a in ANGLES), 100 * self.total("angle_within") / count))
        return self.results(results, pixels)


class _SampleScores(PointmapMetric):
    """The same sums over points that are selected already, of one picture at a time, on every rank by itself."""

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)

    def update(self, canonical_error: Tensor, points: Tensor, target: Tensor) -> None:
        self.add_canonical(canonical_error)
        self.add_metric(points, target)


class MeanPointmapBaseline(Metric):
    """The mean of all targets' pointmaps: what a model that ignores the picture can reach.

    Each target is sampled at the centres of 24 x 18 cells of its picture. Their mean per cell, over the pictures where
    the cell is valid, is scored on the same samples; once of canonical points, once of metric ones. Its scale is the
    mean of the scales.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    samples: list[Tensor]

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        # Flat, as what a rank without any sample joins in with is flat, too.
        self.add_state("samples", [], dist_reduce_fx="cat")

    def update(self, target: Tensor, target_scale: Tensor, valid: Tensor) -> None:
        """Adds metric points (B, 3, H, W) with their scales (B,); valid is bool (B, 1, H, W)."""
        check_points(target, target_scale, target, target_scale, valid)
        points = torch.where(valid, target, 0.0).float()
        packed = torch.cat([points, valid.float()], dim=1)
        # This kind of resize takes the pixel at the centre of each cell.
        packed = F.interpolate(packed, GRID, mode="nearest-exact").flatten(1)
        self.samples.append(torch.cat([packed, target_scale[:, None].float()], dim=1).flatten())

    def compute(self) -> dict[str, Tensor]:
        """As `PointmapMetric`, without normals; all NaN if there was no valid sample."""
        cells = GRID[0] * GRID[1]
        # After a reduction over ranks it is one tensor.
        parts = [self.samples] if isinstance(self.samples, Tensor) else self.samples
        samples = torch.cat(parts) if parts else torch.zeros(0, device=self.device)
        samples = samples.view(-1, 4 * cells + 1).double()
        scales, valid = samples[:, -1], samples[:, 3 * cells : -1].bool()
        metric = samples[:, : 3 * cells].view(-1, 3, cells).transpose(1, 2)
        canonical = metric * scales.view(-1, 1, 1)
        count = valid.sum(dim=0)[:, None].clamp(min=1)
        scored = _SampleScores().to(samples.device)
        for truth, canonical_truth, inside in zip(metric, canonical, valid):
            error = canonical.sum(dim=0) / count - canonical_truth
            scored.update(error[inside], (metric.sum(dim=0) / count)[inside], truth[inside])
        scored.add_scales(scales.mean().expand_as(scales), scales)
        return {name: value for name, value in scored.compute().items() if not name.startswith("normal_")}
