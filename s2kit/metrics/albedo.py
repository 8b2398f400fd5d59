"""Albedo on the mask: MAE, RMSE, PSNR, gradient error and SSIM, pooled over all pixels (spec 6.5)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from s2kit.metrics.pooled import PooledMetric

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
MIN_SUPPORT = 0.5
LEVELS = 256


def check_maps(prediction: Tensor, target: Tensor, valid: Tensor) -> None:
    """Raises ValueError unless the maps are (B, 3, H, W) and valid (B, 1, H, W), of one size."""
    if target.ndim != 4 or prediction.shape != target.shape or valid.shape != (len(target), 1, *target.shape[2:]):
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must be (B, 3, H, W) of one size "
            f"with valid (B, 1, H, W), got {tuple(valid.shape)}: resize the prediction before"
        )


def gradient_errors(prediction: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute errors of the forward differences, and those of a constant prediction, each (n,).

    Both directions are pooled, where both neighbours are valid.
    """
    errors, constant = [], []
    for axis in (2, 3):
        length = target.shape[axis] - 1
        steps = [m.narrow(axis, 1, length) - m.narrow(axis, 0, length) for m in (prediction, target)]
        both = (valid.narrow(axis, 1, length) & valid.narrow(axis, 0, length)).expand_as(steps[0])
        errors.append((steps[0] - steps[1])[both].abs())
        constant.append(steps[1][both].abs())
    return torch.cat(errors), torch.cat(constant)


def _blur(maps: Tensor) -> Tensor:
    """Blur (B, C, H, W) by the window of SSIM; outside there are zeros."""
    x = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    kernel = (-x.square() / (2 * SIGMA**2)).exp()
    kernel = (kernel / kernel.sum()).expand(maps.shape[1], 1, WINDOW)
    half = WINDOW // 2
    # Variances are small differences of these: mixed precision must not touch them.
    with torch.autocast(maps.device.type, enabled=False):
        maps = F.conv2d(maps, kernel[..., None], padding=(half, 0), groups=maps.shape[1])
        return F.conv2d(maps, kernel[..., None, :], padding=(0, half), groups=maps.shape[1])


def masked_ssim(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """SSIM, mean over channels, of each window (n,) with more than half of its weight on valid pixels.

    Moments are those of the window's valid pixels.
    """
    prediction, target = (torch.where(valid, m, 0.0) for m in (prediction, target))
    support = _blur(valid.to(target.dtype))
    used = support > MIN_SUPPORT
    products = (prediction, target, prediction * prediction, target * target, prediction * target)
    mean_p, mean_t, square_p, square_t, product = (_blur(m) / support.clamp(min=MIN_SUPPORT) for m in products)
    variance = square_p - mean_p.square() + square_t - mean_t.square()
    covariance = product - mean_p * mean_t
    similarity = (2 * mean_p * mean_t + C1) * (2 * covariance + C2)
    similarity = similarity / ((mean_p.square() + mean_t.square() + C1) * (variance + C2))
    return similarity.mean(dim=1, keepdim=True)[used]


class AlbedoMetric(PooledMetric):
    """MAE, RMSE, PSNR (of the pooled squared error, range 1), gradient error and SSIM, and those of the mean colour.

    If any valid value is not finite, in the prediction or in the target, or if there was none, all results are NaN.
    """

    sums: ClassVar[dict[str, tuple[int, ...]]] = {
        "pixels": (),
        "absolute": (),
        "square": (),
        "steps": (),
        "step_error": (),
        "step_size": (),
        "windows": (),
        "similarity": (),
        "colour": (3,),
        "colour_square": (3,),
    }
    histogram: Tensor

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.add_state("histogram", torch.zeros(3, LEVELS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Adds the valid pixels of a batch.

        Args:
            prediction: albedo (B, 3, H, W), which is not clamped.
            target: albedo (B, 3, H, W) in 0..1.
            valid: bool (B, 1, H, W).

        Raises:
            ValueError: the three are not of one size.
        """
        check_maps(prediction, target, valid)
        prediction, target, valid = prediction.float(), target.float(), valid.bool()
        error = (prediction - target).permute(1, 0, 2, 3)[:, valid[:, 0]].double()
        colours = target.permute(1, 0, 2, 3)[:, valid[:, 0]].double()
        step_error, step_size = gradient_errors(prediction, target, valid)
        similarity = masked_ssim(prediction, target, valid)
        self.add(
            pixels=torch.ones_like(error[0]),
            absolute=error.abs().flatten(),
            square=error.square().flatten(),
            steps=torch.ones_like(step_error),
            step_error=step_error,
            step_size=step_size,
            windows=torch.ones_like(similarity),
            similarity=similarity,
            colour=colours,
            colour_square=colours.square(),
        )
        levels = (colours.nan_to_num() * (LEVELS - 1)).round().long().clamp(0, LEVELS - 1)
        self.histogram += torch.stack([torch.bincount(channel, minlength=LEVELS) for channel in levels])

    def compute(self) -> dict[str, Tensor]:
        """Scalars mae, rmse, psnr (dB), gradient and ssim; baseline_* but for ssim of the targets' mean colour."""
        pixels = self.total("pixels")
        square = self.total("square") / (3 * pixels)
        mean = self.total("colour") / pixels
        base_square = (self.total("colour_square") / pixels - mean.square()).clamp(min=0).mean()
        values = torch.arange(LEVELS, device=mean.device, dtype=torch.float64) / (LEVELS - 1)
        distance = (values - mean[:, None]).abs()
        results = {
            "mae": self.total("absolute") / (3 * pixels),
            "rmse": square.sqrt(),
            "psnr": -10 * square.log10(),
            "ssim": self.total("similarity") / self.total("windows"),
            "gradient": self.total("step_error") / self.total("steps"),
            "baseline_mae": (self.histogram * distance).sum() / (3 * pixels),
            "baseline_rmse": base_square.sqrt(),
            "baseline_psnr": -10 * base_square.log10(),
            "baseline_gradient": self.total("step_size") / self.total("steps"),
        }
        return self.results(results, pixels)

    def mean_colour(self) -> Tensor:
        """The targets' mean colour (3,) in 0..1, of this rank."""
        return (self.total("colour") / self.total("pixels")).float()
