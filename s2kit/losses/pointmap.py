"""Losses of pointmaps: the release's form and the paper's (spec losses 3.4, paper section 3).

Points are canonical: camera points (x right, y down, z forward) times scale = canonical focal length / focal length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2kit.losses.masked import (
    difference_loss,
    form_weights,
    image_means,
    masked_mean,
    mean_over_images,
    prepare,
    weighted_sum,
)

# Terms and weights of each form. The paper gives no weights, and no term for the scale.
FORMS = {
    "release": {
        "l1": 2.0,
        "multi_scale": 1.0,
        "silog": 1.0,
        "intrinsics": 1.0,
        "shift_invariant": 1.0,
        "normal": 2.0,
        "scale": 4.0,
    },
    "paper": {"l2": 1.0, "gradient": 1.0, "scale": 1.0},
}
#: Terms that the release clamps, after weighting.
CLAMPED = ("l1", "multi_scale", "shift_invariant")
MIN_DEPTH = 1e-4
SILOG_SHARE = 0.5
# Keeps the root's derivative finite at a perfect prediction; far below any value that matters.
SILOG_EPS = 1e-12
CENTROID_EPS = 1e-6
NORMAL_EPS = 1e-6
NORMAL_GAIN = 100.0


def silog_loss(depth: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Scale-invariant logarithmic error of depths (B, 1, H, W), mean over images."""
    logs = [values.clamp(min=MIN_DEPTH).log() for values in (target, depth)]
    difference = (logs[0] - logs[1]) * valid
    mean, square = image_means(difference, valid).flatten(), image_means(difference.square(), valid).flatten()
    return mean_over_images((square - SILOG_SHARE * mean.square() + SILOG_EPS).sqrt(), valid)


def intrinsics_loss(points: Tensor, intrinsics: Tensor, valid: Tensor) -> Tensor:
    """Mean distance in x and y from points (B, 3, H, W) to the rays through the centres of their pixels.

    `intrinsics` (B, 3, 3) are those of the map's pixels, in continuous coordinates: centres at + 0.5.
    """
    height, width = points.shape[2:]
    options = {"dtype": points.dtype, "device": points.device}
    inverse = torch.linalg.inv_ex(intrinsics.to(points.dtype)).inverse
    u = (torch.arange(width, **options) + 0.5).view(1, 1, 1, width)
    v = (torch.arange(height, **options) + 0.5).view(1, 1, height, 1)
    columns = inverse[:, :2, :, None, None].unbind(dim=2)
    rays = columns[0] * u + columns[1] * v + columns[2]
    return masked_mean((points[:, :2] - rays * points[:, 2:]).abs() * valid, valid)


def shift_invariant_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """L1 between points (B, 3, H, W), zero outside the mask, after each image's centroid is subtracted from both."""
    count = valid.sum(dim=(2, 3), keepdim=True) + CENTROID_EPS
    centred = [points - points.sum(dim=(2, 3), keepdim=True) / count for points in (prediction, target)]
    return masked_mean((centred[0] - centred[1]).abs() * valid, valid)


def surface_normals(points: Tensor) -> tuple[Tensor, Tensor]:
    """Unit normals (B, 3, H, W) of points by forward differences, and where (B, 1, H, W) they are defined.

    The frame is that of the points, and the normals point away from the camera. The last column and row take the
    difference to their other neighbour, mirrored at the border, as in the release. So is what is defined: a pixel whose
    two neighbours are both outside the mask, where points are 0, has no normal in exact arithmetic, but may get one of
    rounding where the processor fuses multiplication and addition; the published number is that.
    """
    padded = F.pad(points, (0, 1, 0, 1), mode="reflect")
    right = (padded[:, :, :-1, 1:] - points) * NORMAL_GAIN
    down = (padded[:, :, 1:, :-1] - points) * NORMAL_GAIN
    normals = torch.linalg.cross(right, down, dim=1)
    square = normals.square().sum(dim=1, keepdim=True)
    defined = square > NORMAL_EPS**2
    # The root of what is not used would have an infinite derivative at 0.
    length = torch.where(square <= NORMAL_EPS**2, 1.0, square).sqrt()
    return normals * (square.isnan() | defined) / length, defined


def normal_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 - cosine and the mean absolute difference of the normals of points (B, 3, H, W), where the true one exists."""
    normals, _ = surface_normals(prediction)
    true_normals, defined = surface_normals(target)
    valid = valid & defined
    cosine = (normals * true_normals).sum(dim=1, keepdim=True).clamp(-1, 1)
    difference = (normals - true_normals).abs().mean(dim=1, keepdim=True)
    return masked_mean((1 - cosine + difference) * valid, valid)


class PointmapLoss(nn.Module):
    """Weighted sum of the terms between predicted and true canonical points, and their scales.

    With d the mean true depth of an image's valid pixels, over the valid pixels of the whole batch:
        l1: absolute difference of points / d, summed over channels.
        multi_scale: the same after points and mask are enlarged twofold.
        silog: scale-invariant logarithmic error of depth, see `silog_loss`.
        intrinsics: whether points lie on their pixels' rays, see `intrinsics_loss`.
        shift_invariant: of points / d, see `shift_invariant_loss`.
        normal: of points / scale, see `normal_loss`.
        scale: absolute difference of the scales (squared in the paper's form), over images with a valid pixel.
        l2: squared difference of the points, summed over channels.
        gradient: see `difference_loss`.

    A prediction that is not finite gives a loss that is not finite, wherever in the image it is.

    Args:
        form: "release" (its weights are `FORMS`) or "paper" (l2, gradient and scale, 1 each: the paper gives no weights
            and does not say how the scale is learned).
        weights: replaces the weights of some of the form's terms.
        clamp: upper limit of the weighted l1, multi_scale and shift_invariant terms, 4 in the release. A term above it
            has no gradient; by default there is none.
    """

    def __init__(
        self, form: str = "release", weights: dict[str, float] | None = None, clamp: float | None = None
    ) -> None:
        super().__init__()
        self.form, self.clamp = form, clamp
        self.weights = form_weights(FORMS, form, weights)

    def forward(
        self, points: Tensor, scale: Tensor, target: Tensor, valid: Tensor, target_scale: Tensor, intrinsics: Tensor
    ) -> dict[str, Tensor]:
        """The weighted sum "loss" and each term without its weight.

        Args:
            points: predicted canonical points (B, 3, H, W); those of another height and width are resized bilinearly.
                Computed in float32, or in float64 if it is.
            scale: predicted scales (B, 1).
            target: true canonical points (B, 3, H, W); values outside `valid` do not matter, not even NaN.
            valid: bool (B, 1, H, W). With no valid pixel all terms are zeros that depend on the prediction.
            target_scale: true scales (B,) or (B, 1).
            intrinsics: (B, 3, 3) of the target's pixels, before any scaling to canonical points.

        Raises:
            ValueError: shapes that do not fit.
        """
        points, target, valid = prepare(points, target, valid)
        if scale.shape != (len(points), 1) or target_scale.numel() != len(points):
            raise ValueError(
                f"expected a scale (B, 1) and a true one (B,) for {len(points)} images, got {tuple(scale.shape)} and "
                f"{tuple(target_scale.shape)}"
            )
        scale, target_scale = scale.to(points.dtype), target_scale.to(points.dtype).view(-1, 1)
        scale_error = (scale - target_scale)[:, 0]
        if self.form == "paper":
            difference = (points - target) * valid
            terms = {
                "l2": masked_mean(difference.square(), valid),
                "gradient": difference_loss(difference, valid),
                "scale": mean_over_images(scale_error.square(), valid),
            }
            return weighted_sum(terms, self.weights)
        with torch.autocast(points.device.type, enabled=False):
            terms = self._release_terms(points, target, valid, target_scale.view(-1, 1, 1, 1), intrinsics)
        terms["scale"] = mean_over_images(scale_error.abs(), valid)
        if self.clamp is None:
            return weighted_sum(terms, self.weights)
        weighted = {name: self.weights[name] * term for name, term in terms.items()}
        total = sum(term.clamp(max=self.clamp) if name in CLAMPED else term for name, term in weighted.items())
        return {"loss": total, **terms}

    @staticmethod
    def _release_terms(
        points: Tensor, target: Tensor, valid: Tensor, target_scale: Tensor, intrinsics: Tensor
    ) -> dict[str, Tensor]:
        depth = image_means(target[:, 2:], valid)
        unit = torch.where(depth > 0, depth, 1.0)
        scaled, true = points / unit, target / unit
        enlarged = F.interpolate(scaled - true, scale_factor=2, mode="bilinear", align_corners=False)
        enlarged_valid = F.interpolate(valid.to(points.dtype), scale_factor=2, mode="nearest").bool()
        return {
            "l1": masked_mean((scaled - true).abs() * valid, valid),
            "multi_scale": masked_mean(enlarged.abs() * enlarged_valid, enlarged_valid),
            "silog": silog_loss(points[:, 2:], target[:, 2:], valid),
            "intrinsics": intrinsics_loss(points, intrinsics, valid),
            "shift_invariant": shift_invariant_loss(scaled * valid, true, valid),
            "normal": normal_loss(points / target_scale, target / target_scale, valid),
        }
