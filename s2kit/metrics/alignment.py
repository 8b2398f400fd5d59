"""Predictions aligned to the truth by least squares, so that models of relative depth can be compared fairly."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

#: A depth counts as right within this factor of the true one.
DELTA = 1.25
MIN_DEPTH = 1e-4


def align(prediction: Tensor, target: Tensor, shift: bool) -> Tensor:
    """The prediction (n, d) times the one factor, and plus the one shift (d,), that bring it closest to the target.

    Closest in the sum of squares. Without points, or where all points of the prediction are the same, the factor is 1.
    Computed in float64.
    """
    prediction, target = prediction.double(), target.double()
    if not len(prediction):
        return prediction
    centre, true_centre = (m.mean(dim=0) if shift else m.new_zeros(m.shape[1]) for m in (prediction, target))
    centred = prediction - centre
    square = centred.square().sum()
    factor = torch.where(square > 0, (centred * (target - true_centre)).sum() / square, 1.0)
    return factor * centred + true_centre


def depth_errors(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """|p - t| / t of depths (n,), and whether each is within a factor of 1.25 (never for one that is not positive)."""
    prediction, target = prediction.double(), target.double()
    ratio = torch.maximum(prediction / target, target / prediction)
    return (prediction - target).abs() / target, (prediction > 0) & (ratio < DELTA)


def relative_depth_errors(
    prediction: Tensor, target: Tensor, valid: Tensor, space: Literal["depth", "disparity"] = "depth"
) -> tuple[Tensor, Tensor]:
    """`depth_errors` of one picture after alignment by a factor and a shift.

    Args:
        prediction: (H, W): depth up to a factor and a shift, or disparity (inverse depth) up to both.
        target: true depth (H, W).
        valid: bool (H, W).
        space: which of the two the prediction is; it is also what is aligned.
    """
    depth = target[valid].double()
    if space == "depth":
        return depth_errors(align(prediction[valid][:, None], depth[:, None], shift=True)[:, 0], depth)
    disparity = align(prediction[valid][:, None], 1 / depth[:, None], shift=True)[:, 0]
    return depth_errors(1 / disparity.clamp(min=MIN_DEPTH), depth)
