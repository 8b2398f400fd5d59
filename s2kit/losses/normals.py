"""Losses of surface normals: the release's form and the paper's (spec losses 3.3, paper section 3)."""

from __future__ import annotations

from torch import Tensor, nn

from s2kit.losses.masked import difference_loss, form_weights, masked_mean, prepare, weighted_sum

NORMALIZE_EPS = 1e-6

# Terms and weights of each form. The paper gives no weights for its own.
FORMS = {
    "release": {"cosine": 10.0, "l1": 1.0, "gradient": 10.0},
    "paper": {"cosine": 1.0, "l2": 1.0, "gradient": 1.0},
}


def cosine_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean over valid pixels of 1 - cos(prediction, target); lengths of both (B, 3, H, W) do not matter."""
    # Not norm(dim=1): on a CPU it takes several times as long over this axis.
    lengths = [
        vectors.square().sum(dim=1, keepdim=True).clamp(min=NORMALIZE_EPS**2).sqrt() for vectors in (prediction, target)
    ]
    cosine = (prediction * target).sum(dim=1, keepdim=True) / (lengths[0] * lengths[1])
    return masked_mean((1 - cosine) * valid, valid)


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
        self.form = form
        self.weights = form_weights(FORMS, form, weights)

    def forward(self, prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """The weighted sum "loss" and each term without its weight.

        Args:
            prediction: raw normals (B, 3, H, W); a prediction of another height and width than the target is
                resized bilinearly, as in the release. Computed in float32, or in float64 if it is.
            target: unit normals (B, 3, H, W); values outside `valid` do not matter, not even NaN.
            valid: bool (B, 1, H, W). With no valid pixel all terms are zeros that depend on the prediction.

        Raises:
            ValueError: shapes that do not fit.
        """
        prediction, target, valid = prepare(prediction, target, valid)
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
        return weighted_sum(terms, self.weights)
