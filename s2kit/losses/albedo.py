"""Losses of albedo: the release's form and the paper's (spec losses 3.5, paper section 3)."""

from __future__ import annotations

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

# Terms and weights of each form. The paper gives no weights for its own; the release has the low-frequency term, but
# does not use it.
FORMS = {
    "release": {"l1": 2.0, "gradient": 2.0, "chromaticity": 1.0, "low_frequency": 0.0},
    "paper": {"l2": 1.0, "gradient": 1.0, "mean_colour": 1.0},
}
EPS = 1e-6


def chromaticity_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid pixels of the absolute difference, summed over channels, of RGB / (R + G + B).

    The prediction is clamped to 0..1: beyond it this term has no gradient.
    """
    shares = [
        colours / (colours.sum(dim=1, keepdim=True) + EPS) for colours in (prediction.clamp(0, 1), target.clamp(0, 1))
    ]
    return masked_mean((shares[0] - shares[1]).abs() * valid, valid)


def low_frequency_loss(difference: Tensor, valid: Tensor, factor: int) -> Tensor:
    """L1 of prediction - target (zero outside the mask) blurred by a downsampling by `factor`, over valid pixels."""
    size = difference.shape[2:]
    small = [max(1, side // factor) for side in size]

    def blur(values: Tensor) -> Tensor:
        averaged = F.interpolate(values, small, mode="area")
        return F.interpolate(averaged, size, mode="bilinear", align_corners=False)

    blurred = blur(difference) / (blur(valid.to(difference.dtype)) + EPS)
    return masked_mean(blurred.abs() * valid, valid)


class AlbedoLoss(nn.Module):
    """Weighted sum of the terms between a predicted and a true albedo, RGB in 0..1.

    Terms, over the valid pixels of the whole batch:
        l1: absolute difference, summed over channels.
        l2: squared difference, likewise.
        gradient: see `difference_loss`; the release halves the sum of both directions.
        chromaticity: see `chromaticity_loss`.
        low_frequency: see `low_frequency_loss`; computed where its weight is not 0.
        mean_colour: squared difference of the colours' means over an image's valid pixels, summed over channels.

    A prediction that is not finite gives a loss that is not finite, wherever in the image it is.

    Args:
        form: "release" (l1 2, gradient 2, chromaticity 1, low_frequency 0) or "paper" (l2, gradient and mean_colour,
            1 each: the paper gives no weights).
        weights: replaces the weights of some of the form's terms.
        low_frequency_factor: factor of the low-frequency term's downsampling.
    """

    def __init__(
        self, form: str = "release", weights: dict[str, float] | None = None, low_frequency_factor: int = 32
    ) -> None:
        super().__init__()
        self.form = form
        self.weights = form_weights(FORMS, form, weights)
        self.low_frequency_factor = low_frequency_factor

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """The weighted sum "loss" and each term without its weight.

        Args:
            prediction: raw albedo (B, 3, H, W), not clamped; one of another height and width is resized bilinearly.
                Computed in float32, or in float64 if it is.
            target: albedo (B, 3, H, W) in 0..1; values outside `valid` do not matter, not even NaN.
            valid: bool (B, 1, H, W). With no valid pixel all terms are zeros that depend on the prediction.

        Raises:
            ValueError: shapes that do not fit.
        """
        prediction, target, valid = prepare(prediction, target, valid)
        # Multiplying by the mask, unlike selecting by it, lets a NaN outside the mask through.
        difference = (prediction - target) * valid
        terms = {}
        for name, weight in self.weights.items():
            if name == "l1":
                terms[name] = masked_mean(difference.abs(), valid)
            elif name == "l2":
                terms[name] = masked_mean(difference.square(), valid)
            elif name == "gradient":
                terms[name] = difference_loss(difference, valid) * (0.5 if self.form == "release" else 1.0)
            elif name == "chromaticity":
                terms[name] = chromaticity_loss(prediction, target, valid)
            elif name == "mean_colour":
                terms[name] = mean_over_images(image_means(difference, valid).square().sum(dim=(1, 2, 3)), valid)
            elif weight:
                terms[name] = low_frequency_loss(difference, valid, self.low_frequency_factor)
        return weighted_sum(terms, self.weights)
