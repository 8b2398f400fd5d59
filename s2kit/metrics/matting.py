"""Matting: the field's four errors of alpha, over whole pictures, and the release's (spec 12)."""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import cv2
import numpy as np
import torch
from torch import Tensor

from s2kit.metrics.pooled import PooledMetric

GRADIENT_SIGMA = 1.4
GRADIENT_EPS = 1e-2
CONNECTIVITY_STEPS = 10
CONNECTIVITY_TOLERANCE = 0.15


def _gradient_kernels() -> tuple[np.ndarray, np.ndarray]:
    """A Gaussian and its derivative; their outer product has unit length."""
    sigma = GRADIENT_SIGMA
    # Where the Gaussian has fallen to GRADIENT_EPS.
    half = math.ceil(sigma * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * sigma * GRADIENT_EPS)))
    x = np.arange(-half, half + 1)
    smooth = np.exp(-(x**2) / (2 * sigma**2)) / (sigma * math.sqrt(2 * math.pi))
    derivative = -x * smooth / sigma**2
    return smooth / np.linalg.norm(smooth), derivative / np.linalg.norm(derivative)


def gradient_length(alpha: np.ndarray) -> np.ndarray:
    """Length (H, W) of the Gaussian gradient of alpha, sigma 1.4, with the border repeated."""
    smooth, derivative = _gradient_kernels()
    across, down = (
        cv2.sepFilter2D(alpha, cv2.CV_64F, row, column, borderType=cv2.BORDER_REPLICATE)
        for row, column in ((derivative, smooth), (smooth, derivative))
    )
    return np.hypot(across, down)


def connection_levels(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The level (H, W) up to which each pixel is connected to the source region.

    The source region at a level is the largest 4-connected region where both alphas reach it; a pixel's level is the
    last one before it is first left out, in steps of 0.1; 1 for one that never is.
    """
    levels = np.arange(CONNECTIVITY_STEPS + 1) / CONNECTIVITY_STEPS
    last = np.full(target.shape, -1.0)
    both = np.minimum(prediction, target)
    for before, level in itertools.pairwise(levels):
        count, regions, statistics, _ = cv2.connectedComponentsWithStats((both >= level).view(np.uint8), connectivity=4)
        largest = 1 + int(statistics[1:, cv2.CC_STAT_AREA].argmax()) if count > 1 else -1
        last[(last < 0) & (regions != largest)] = before
    last[last < 0] = 1.0
    return last


def connectivity_error(prediction: np.ndarray, target: np.ndarray) -> float:
    """Sum over pixels of the difference of the two alphas' connectivity (Rhemann et al., CVPR 2009).

    A pixel's connectivity is 1 - d, where d is how far alpha lies above its level, if that is 0.15 or more.
    """
    levels = connection_levels(prediction, target)
    above = [alpha - levels for alpha in (prediction, target)]
    connectivity = [1 - d * (d >= CONNECTIVITY_TOLERANCE) for d in above]
    return float(np.abs(connectivity[0] - connectivity[1]).sum())


def box_alpha(alpha: Tensor) -> Tensor:
    """The trivial answer: alpha (B, 1, H, W) that is 1 in the box around the true one, and 0 elsewhere."""
    covered = alpha > 0
    sides = []
    for axis in (2, 3):
        line = covered.any(dim=axis, keepdim=True)
        along = 5 - axis
        reached, remaining = line.cumsum(along) > 0, line.flip(along).cumsum(along).flip(along) > 0
        sides.append(reached & remaining)
    return (sides[0] & sides[1]).to(alpha.dtype)


class MattingMetric(PooledMetric):
    """SAD, MSE, gradient and connectivity errors of alpha, mean over pictures, and errors pooled over pixels.

    Over all pixels of each picture: there is no trimap. If anything is not finite, or if there was nothing, all
    results are NaN.
    """

    higher_is_better = False
    sums: ClassVar[dict[str, tuple[int, ...]]] = {
        "images": (),
        "sad": (),
        "mse": (),
        "gradient": (),
        "connectivity": (),
        "pixels": (),
        "known": (),
        "foreground_error": (),
    }

    def update(
        self,
        prediction: Tensor,
        alpha: Tensor,
        foreground: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            prediction: premultiplied foreground R, G, B and alpha (B, 4, H, W), or alpha alone (B, 1, H, W).
            alpha: (B, 1, H, W) in 0..1.
            foreground: premultiplied (B, 3, H, W); None leaves the foreground's error out.
            valid: bool (B, 1, H, W), where the foreground is known; None is everywhere.

        Raises:
            ValueError: shapes that do not fit.
        """
        size = (len(alpha), 1, *alpha.shape[2:])
        if alpha.ndim != 4 or alpha.shape != size or prediction.shape not in (size, (size[0], 4, *size[2:])):
            raise ValueError(
                f"prediction {tuple(prediction.shape)} must be (B, 4, H, W) or (B, 1, H, W), and alpha "
                f"{tuple(alpha.shape)} (B, 1, H, W) of one size"
            )
        guess = prediction[:, -1].double().cpu().numpy()
        truth = alpha[:, 0].double().cpu().numpy()
        for one, other in zip(guess, truth):
            self._add_image(one, other)
        if foreground is not None and prediction.shape[1] == 4:
            known = torch.ones_like(alpha, dtype=torch.bool) if valid is None else valid.bool()
            error = (prediction[:, :3].double() - foreground).abs().permute(1, 0, 2, 3)[:, known[:, 0]]
            self.add(known=torch.ones_like(error[0]), foreground_error=error.flatten())

    def _add_image(self, prediction: np.ndarray, alpha: np.ndarray) -> None:
        error = prediction - alpha
        errors = {
            "images": 1.0,
            "pixels": error.size,
            "sad": np.abs(error).sum(),
            "mse": np.square(error).mean(),
            "gradient": np.square(gradient_length(prediction) - gradient_length(alpha)).sum(),
            "connectivity": connectivity_error(prediction, alpha),
        }
        device = self.nonfinite.device
        self.add(**{n: torch.tensor([e], dtype=torch.float64, device=device) for n, e in errors.items()})

    def compute(self) -> dict[str, Tensor]:
        """Scalars, as the field prints them: sad, gradient and connectivity in thousands, mse times 1000; means over
        pictures. alpha_mae is the absolute error pooled over all pixels, foreground_l1 that of the premultiplied
        foreground where it is known (left out if it never was).
        """
        images = self.total("images")
        results = {
            "sad": self.total("sad") / images / 1000,
            "mse": self.total("mse") / images * 1000,
            "gradient": self.total("gradient") / images / 1000,
            "connectivity": self.total("connectivity") / images / 1000,
            "alpha_mae": self.total("sad") / self.total("pixels"),
        }
        known = self.total("known")
        if known > 0:
            results["foreground_l1"] = self.total("foreground_error") / (3 * known)
        return self.results(results, images)
