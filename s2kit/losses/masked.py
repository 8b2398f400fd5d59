"""What the losses of dense maps share: the forms of a loss, means over a mask, differences between neighbours."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


def form_weights(
    forms: Mapping[str, Mapping[str, float]], form: str, weights: Mapping[str, float] | None
) -> dict[str, float]:
    """The weights of a form's terms, some of them replaced by `weights`.

    Raises:
        ValueError: there is no such form, or it has no such term.
    """
    if form not in forms:
        raise ValueError(f"form must be one of {sorted(forms)}, got {form!r}")
    unknown = sorted(set(weights or {}) - set(forms[form]))
    if unknown:
        raise ValueError(f"weights for unknown terms {unknown}; the {form} form has {sorted(forms[form])}")
    return {**forms[form], **(weights or {})}


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """The terms, and before them their weighted sum as "loss"."""
    return {"loss": sum(weights[name] * term for name, term in terms.items()), **terms}


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def prepare(prediction: Tensor, target: Tensor, valid: Tensor, channels: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, target and mask in the form that the losses compute with.

    Args:
        prediction: (B, C, h, w); resized bilinearly to the target's height and width, as in the release.
        target: (B, C, H, W); values outside `valid` do not matter, not even NaN.
        valid: bool (B, 1, H, W).
        channels: C.

    Returns:
        The prediction in float32 (float64 if it was), the target in the same type and zero outside the mask, the mask.

    Raises:
        ValueError: shapes that do not fit.
    """
    shape = (len(target), channels, *target.shape[2:])
    if (
        target.ndim != 4
        or prediction.ndim != 4
        or target.shape != shape
        or prediction.shape[:2] != shape[:2]
        or valid.shape != (shape[0], 1, *shape[2:])
    ):
        raise ValueError(
            f"expected prediction (B, {channels}, h, w), target (B, {channels}, H, W) and valid (B, 1, H, W), got "
            f"{tuple(prediction.shape)}, {tuple(target.shape)} and {tuple(valid.shape)}"
        )
    valid = valid.bool()
    prediction = at_least_float32(prediction)
    if prediction.shape != target.shape:
        prediction = F.interpolate(prediction, target.shape[2:], mode="bilinear", align_corners=False)
    return prediction, torch.where(valid, target.to(prediction.dtype), 0.0), valid


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Sum of `values`, already zero outside `valid`, by the number of valid pixels (at least 1)."""
    return values.sum() / valid.sum().clamp(min=1)


def image_means(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of each image's valid pixels: (B, C, H, W), already zero outside `valid`, to (B, C, 1, 1)."""
    return values.sum(dim=(2, 3), keepdim=True) / valid.sum(dim=(2, 3), keepdim=True).clamp(min=1)


def mean_over_images(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of one value (B,) over the images that have a valid pixel; a zero that depends on them if none has."""
    has = valid.flatten(1).any(dim=1)
    return (values * has).sum() / has.sum().clamp(min=1)


def difference_loss(difference: Tensor, valid: Tensor) -> Tensor:
    """Squared forward differences along x and along y of prediction - target, where both neighbours are valid.

    Each direction is summed over the channels and divided by its own number of pairs. The release calls this a
    gradient L1.
    """
    total = difference.new_zeros(())
    for axis in (2, 3):
        length = difference.shape[axis] - 1
        step = difference.narrow(axis, 1, length) - difference.narrow(axis, 0, length)
        both = valid.narrow(axis, 1, length) & valid.narrow(axis, 0, length)
        total = total + masked_mean(step.square() * both, both)
    return total
