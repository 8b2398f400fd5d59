"""Losses of keypoint heatmaps: the release's form and the paper's (spec losses 3.1, paper section 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Term and weight of each form. The paper gives no weight for its own: the release's is taken.
FORMS = {"release": {"mse": 10.0}, "paper": {"hard": 10.0}}
#: Keypoints of a person that the paper's form learns from, by the release's (unused) default.
HARD_KEYPOINTS = 8


def keypoint_errors(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Mean squared error of each heatmap times its keypoint's weight: (B, K)."""
    return F.mse_loss(prediction, target, reduction="none").mean(dim=(2, 3)) * weights


class PoseLoss(nn.Module):
    """Squared error between predicted and true heatmaps, weighted by keypoint.

    Terms:
        mse: mean over all cells of all heatmaps, those of keypoints without weight included.
        hard: online hard keypoint mining: the squared error of the weighted maps, of each person's
            ``hard_keypoints`` worst keypoints, averaged over them and over the persons.

    A prediction that is not finite gives a loss that is not finite.

    Args:
        form: "release" (mse, weight 10) or "paper" (hard, weight 10).
        weights: replaces the weight of the form's term.
        hard_keypoints: worst keypoints of a person that "hard" counts; all of them where a schema has fewer.
    """

    def __init__(
        self, form: str = "release", weights: dict[str, float] | None = None, hard_keypoints: int = HARD_KEYPOINTS
    ) -> None:
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"form must be one of {sorted(FORMS)}, got {form!r}")
        unknown = sorted(set(weights or {}) - set(FORMS[form]))
        if unknown:
            raise ValueError(f"weights for unknown terms {unknown}; the {form} form has {sorted(FORMS[form])}")
        if hard_keypoints < 1:
            raise ValueError(f"hard_keypoints must be at least 1, got {hard_keypoints}")
        self.form, self.hard_keypoints = form, hard_keypoints
        self.weights = {**FORMS[form], **(weights or {})}

    def forward(self, prediction: Tensor, target: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """The weighted sum "loss" and the term without its weight.

        Args:
            prediction: heatmaps (B, K, h, w); of another size than the target they are resized bilinearly, as in the
                release. Computed in float32, or in float64 if that is what they are.
            target: heatmaps (B, K, h, w) with peaks of 1.
            weights: (B, K), 0 where a keypoint is not labelled. With none labelled the loss is a zero that depends on
                the prediction.

        Raises:
            ValueError: shapes that do not fit.
        """
        if prediction.ndim != 4 or prediction.shape[:2] != target.shape[:2] or weights.shape != target.shape[:2]:
            raise ValueError(
                "expected prediction (B, K, h, w), target (B, K, H, W) and weights (B, K), got "
                f"{tuple(prediction.shape)}, {tuple(target.shape)} and {tuple(weights.shape)}"
            )
        prediction = prediction if prediction.dtype == torch.float64 else prediction.float()
        if prediction.shape != target.shape:
            prediction = F.interpolate(prediction, target.shape[2:], mode="bilinear", align_corners=False)
        target, weights = target.to(prediction.dtype), weights.to(prediction.dtype)
        if self.form == "release":
            term = keypoint_errors(prediction, target, weights).mean()
        else:
            errors = keypoint_errors(prediction, target, weights.square())
            term = errors.topk(min(self.hard_keypoints, errors.shape[1]), dim=1).values.mean()
        (name,) = FORMS[self.form]
        return {"loss": self.weights[name] * term, name: term}
