"""Losses of part segmentation: class-weighted cross-entropy and Dice (spec losses 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2kit.losses.masked import at_least_float32, form_weights, weighted_sum

# Weights of each form's terms. The two differ in what the cross-entropy is divided by.
FORMS = {
    "release": {"cross_entropy": 1.0, "dice": 1.0},
    "paper": {"cross_entropy": 1.0, "dice": 1.0},
}
NORMALIZE = {"release": "pixels", "paper": "weights"}
DICE_SMOOTH = 1e-3

#: The release's weights in the cross-entropy.
CLASS_WEIGHTS = {
    "Background": 0.1,
    "Apparel": 10.0,
    "Eyeglass": 10.0,
    "Face_Neck": 3.0,
    "Hair": 2.0,
    "Left_Foot": 4.0,
    "Left_Hand": 4.0,
    "Left_Lower_Arm": 2.0,
    "Left_Lower_Leg": 2.0,
    "Left_Shoe": 6.0,
    "Left_Sock": 10.0,
    "Left_Upper_Arm": 3.0,
    "Left_Upper_Leg": 3.0,
    "Lower_Clothing": 1.0,
    "Right_Foot": 4.0,
    "Right_Hand": 4.0,
    "Right_Lower_Arm": 2.0,
    "Right_Lower_Leg": 2.0,
    "Right_Shoe": 6.0,
    "Right_Sock": 10.0,
    "Right_Upper_Arm": 3.0,
    "Right_Upper_Leg": 3.0,
    "Torso": 1.0,
    "Upper_Clothing": 1.0,
    "Lower_Lip": 10.0,
    "Upper_Lip": 10.0,
    "Lower_Teeth": 10.0,
    "Upper_Teeth": 10.0,
    "Tongue": 10.0,
}


def published_class_weights(names: Sequence[str]) -> list[float]:
    """The release's weight of each class; all 1 for a list with a class that the release does not have."""
    if not set(names) <= set(CLASS_WEIGHTS):
        return [1.0] * len(names)
    return [CLASS_WEIGHTS[name] for name in names]


def check_labels(labels: Tensor, classes: int, ignore_index: int) -> None:
    """Raises ValueError if a label is neither a class nor `ignore_index`."""
    wrong = (labels != ignore_index) & ((labels < 0) | (labels >= classes))
    if wrong.any():
        raise ValueError(
            f"labels hold the value {int(labels[wrong][0])}; the model has classes 0 to {classes - 1}, and "
            f"{ignore_index} is ignored: do the labels follow another schema?"
        )


def dice_loss(probabilities: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Mean over images of 1 - Dice in its squared form, over the classes that the image shows.

    The background, class 0, is left out. An image that shows no other class counts as 0.

    Args:
        probabilities: (B, C, H, W).
        labels: int64 (B, H, W).
        ignore_index: label of pixels that do not count.
    """
    used = (labels != ignore_index)[:, None]
    classes = torch.arange(1, probabilities.shape[1], device=labels.device)
    member = labels[:, None] == classes.view(1, -1, 1, 1)
    p = probabilities[:, 1:] * used
    # By multiplication, not by selection, so that a NaN is not hidden.
    intersection = (p * member).sum(dim=(2, 3))
    size = member.sum(dim=(2, 3))
    dice = (2 * intersection + DICE_SMOOTH) / (p.square().sum(dim=(2, 3)) + size + DICE_SMOOTH)
    present = size > 0
    mean = (dice * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)
    return ((1 - mean) * present.any(dim=1)).mean()


class SegmentationLoss(nn.Module):
    """Class-weighted cross-entropy and Dice.

    Terms:
        cross_entropy: see `normalize`.
        dice: see `dice_loss`.

    Args:
        class_weights: one weight a class in the cross-entropy.
        form: "release" or "paper". Both are cross-entropy 1 and Dice 1; they differ in `normalize`.
        weights: replaces the weights of some terms.
        normalize: what the cross-entropy's sum is divided by: "pixels", all of them, even the ignored ones (the
            release; its class weights are tuned to it), or "weights", those of the labelled pixels' classes (the usual
            form, taken for the paper's). By default as the form has it.
        ignore_index: label of pixels that do not count.
    """

    class_weights: Tensor

    def __init__(
        self,
        class_weights: Sequence[float],
        form: str = "release",
        weights: dict[str, float] | None = None,
        normalize: Literal["pixels", "weights"] | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        self.weights = form_weights(FORMS, form, weights)
        self.normalize = normalize or NORMALIZE[form]
        if self.normalize not in ("pixels", "weights"):
            raise ValueError(f"normalize must be 'pixels' or 'weights', got {normalize!r}")
        if len(class_weights) < 2 or min(class_weights) < 0:
            raise ValueError(f"class_weights must be two or more numbers of at least 0, got {list(class_weights)}")
        self.form, self.ignore_index = form, ignore_index
        self.register_buffer("class_weights", torch.tensor(class_weights, dtype=torch.float32), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The weighted sum "loss" and each term without its weight.

        Args:
            logits: (B, C, h, w), resized bilinearly to the labels' height and width if they differ. Computed in
                float32, or in float64 if it is.
            labels: int64 (B, H, W). With no labelled pixel all terms are zeros that depend on the logits.

        Raises:
            ValueError: shapes that do not fit, or a label that is no class.
        """
        classes = len(self.class_weights)
        if logits.ndim != 4 or labels.ndim != 3 or logits.shape[:2] != (len(labels), classes):
            raise ValueError(
                f"expected logits (B, {classes}, h, w) and labels (B, H, W), got {tuple(logits.shape)} and "
                f"{tuple(labels.shape)}"
            )
        check_labels(labels, classes, self.ignore_index)
        logits = at_least_float32(logits)
        if logits.shape[2:] != labels.shape[1:]:
            logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
        log_probabilities = logits.log_softmax(dim=1)
        terms = {
            "cross_entropy": self._cross_entropy(log_probabilities, labels),
            "dice": dice_loss(log_probabilities.exp(), labels, self.ignore_index),
        }
        return weighted_sum(terms, self.weights)

    def _cross_entropy(self, log_probabilities: Tensor, labels: Tensor) -> Tensor:
        weights = self.class_weights.to(log_probabilities.dtype)
        total = F.nll_loss(log_probabilities, labels, weights, ignore_index=self.ignore_index, reduction="sum")
        if self.normalize == "pixels":
            return total / labels.numel()
        used = torch.where(labels == self.ignore_index, 0.0, weights[labels.clamp(max=len(weights) - 1)])
        divisor = used.sum()
        return total / torch.where(divisor > 0, divisor, 1.0)
