"""Losses of surface normals: the release's form and the paper's (spec losses 3.3, paper section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMALIZE_EPS = 1e-6

# Terms and weights of each form. The paper gives no weights for its own.
FORMS = {
    "release": {"cosine": 10.0, "l1": 1.0, "gradient": 10.0},
    "paper": {"cosine": 1.0, "l2": 1.0, "gradient": 1.0},
}


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Sum of `values`, already zero outside `valid`, by the number of valid pixels (at least 1)."""
    return values.sum() / valid.sum().clamp(min=1)


def cosine_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid pixels of 1 - cos(prediction, target); lengths of both (B, 3, H, W) do not matter."""
    # Not norm(dim=1): on a CPU it takes several times as long over this axis.
    lengths = [
        vectors.square().sum(dim=1, keepdim=True).clamp(min=NORMALIZE_EPS**2).sqrt() for vectors in (prediction, target)
    ]
    cosine = (prediction * target).sum(dim=1, keepdim=True) / (lengths[0] * lengths[1])
    return masked_mean((1 - cosine) * valid, valid)


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


class NormalsLoss(nn.Module):
    """Weighted sum of the terms between a predicted and a true normal map.

    Terms, over the valid pixels of the whole batch:
        cosine: mean of 1 - cos, after both are normalised.
        l1: absolute difference of the raw prediction, summed over channels.
        l2: squared difference, likewise.
        gradient: see `difference_loss`.

    A prediction that is not finite gives a loss that is not finite, wherever in the image it is.

    Args:
        form: "release" (cosine 10, l1 1, gradient 10) or "paper" (cosine, l2 and gradient, 1 each: the paper gives
            no weights).
        weights: replaces the weights of some of the form's terms.
    """

    def __init__(self, form: str = "release", weights: dict[str, float] | None = None) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form must be one of {sorted(FORMS)}, got {form!r}")
        unknown = sorted(set(weights or {}) - set(FORMS[form]))
        if unknown:
            raise ValueError(f"weights for unknown terms {unknown}; the {form} form has {sorted(FORMS[form])}")
        self.form = form
        self.weights = {**FORMS[form], **(weights or {})}

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """The weighted sum "loss" and each term without its weight.

        Args:
            prediction: raw normals (B, 3, H, W); a prediction of another height and width than the target is
                resized bilinearly, as in the release. Computed in float32.
            target: unit normals (B, 3, H, W); values outside `valid` do not matter, not even NaN.
            valid: bool (B, 1, H, W). With no valid pixel all terms are zeros that depend on the prediction.

        Raises:
            ValueError: shapes that do not fit.
        """
        if prediction.shape[:2] != target.shape[:2] or valid.shape != (len(target), 1, *target.shape[2:]):
            raise ValueError(
                "expected prediction (B, 3, h, w), target (B, 3, H, W) and valid (B, 1, H, W), got "
                f"{tuple(prediction.shape)}, {tuple(target.shape)} and {tuple(valid.shape)}"
            )
        valid = valid.bool()
        prediction = prediction.float()
        if prediction.shape != target.shape:
            prediction = F.interpolate(prediction, target.shape[2:], mode="bilinear", align_corners=False)
        target = torch.where(valid, target.float(), 0.0)
        # Multiplying by the mask, unlike selecting by it, lets a NaN outside the mask through.
        difference = (prediction - target) * valid
        terms = {}
        for name in self.weights:
            if name == "cosine":
                terms[name] = cosine_loss(prediction, target, valid)
            elif name == "gradient":
                terms[name] = difference_loss(difference, valid)
            else:
                terms[name] = masked_mean(difference.abs() if name == "l1" else difference.square(), valid)
        return {"loss": sum(self.weights[name] * term for name, term in terms.items()), **terms}
