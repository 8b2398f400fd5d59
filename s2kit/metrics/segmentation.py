"""Segmentation: intersection over union, accuracies and a boundary F-score, pooled over the whole set (spec 6.2)."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

#: Distance within which boundaries match, as a share of the picture's diagonal (Csurka et al., BMVC 2013).
BOUNDARY_TOLERANCE = 0.0075


def class_edges(labels: np.ndarray, ignore_index: int) -> np.ndarray:
    """bool (H, W): pixels with one of the four neighbours of another class; ignored pixels are no neighbours."""
    edges = np.zeros(labels.shape, bool)
    used = labels != ignore_index
    for first, second in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (labels[first] != labels[second]) & used[first] & used[second]
        edges[first] |= differ
        edges[second] |= differ
    return edges


def boundary_counts(prediction: np.ndarray, target: np.ndarray, classes: int, ignore_index: int) -> np.ndarray:
    """Boundary pixels of each class, and how many of them are near the other map's boundary of the class.

    Args:
        prediction, target: uint8 (H, W); where the target is ignored, the prediction is, too.
        classes: number of classes.
        ignore_index: label of ignored pixels.

    Returns:
        int64 (4, classes): predicted ones, those of them that match, true ones, those of them that match. A pixel
        matches within 0.75 % of the diagonal, at least 1 pixel, in Euclidean distance.
    """
    prediction = np.where(target == ignore_index, np.uint8(ignore_index), prediction)
    tolerance = max(1.0, BOUNDARY_TOLERANCE * float(np.hypot(*target.shape)))
    edges = [class_edges(labels, ignore_index) for labels in (prediction, target)]
    points = [np.nonzero(edge) for edge in edges]
    counts = np.zeros((4, classes), np.int64)
    of_class = [labels[found] for labels, found in zip((prediction, target), points)]
    for c in np.intersect1d(*of_class):
        chosen = [[axis[found == c] for axis in where] for found, where in zip(of_class, points)]
        low = [min(part[axis].min() for part in chosen) for axis in range(2)]
        high = [max(part[axis].max() for part in chosen) + 1 for axis in range(2)]
        masks = [np.ones([high[axis] - low[axis] for axis in range(2)], np.uint8) for _ in chosen]
        for mask, (rows, columns) in zip(masks, chosen):
            mask[rows - low[0], columns - low[1]] = 0
        for row, (own, other) in ((1, (0, 1)), (3, (1, 0))):
            distance = cv2.distanceTransform(masks[other], cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            counts[row, c] = np.count_nonzero(distance[masks[own] == 0] <= tolerance)
    for row, found in ((0, of_class[0]), (2, of_class[1])):
        counts[row] = np.bincount(found, minlength=classes)[:classes]
    return counts


class SegmentationMetric(Metric):
    """mIoU, mAcc, aAcc and a boundary F-score in per cent, each class's own, and what a constant answer would reach.

    A class that is neither labelled nor predicted anywhere has no IoU and is left out of the means, and so is one that
    is not labelled out of the mean accuracy; with `absent_as_zero` they count as 0, as in the release.

    Args:
        names: the classes' names.
        ignore_index: label of pixels that do not count.
        absent_as_zero: whether absent classes count as 0.
        boundary: whether to compute the boundary F-score, which takes some time.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    intersection: Tensor
    predicted: Tensor
    labelled: Tensor
    boundary_pixels: Tensor

    def __init__(
        self,
        names: Sequence[str],
        ignore_index: int = 255,
        absent_as_zero: bool = False,
        boundary: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(**kwargs)
        self.names, self.ignore_index = tuple(names), ignore_index
        self.absent_as_zero, self.boundary = absent_as_zero, boundary
        shapes = {name: (len(names),) for name in ("intersection", "predicted", "labelled")}
        for name, shape in {**shapes, "boundary_pixels": (4, len(names))}.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds a batch.

        Args:
            prediction: class ids (B, H, W).
            target: class ids (B, H, W), or `ignore_index`.

        Raises:
            ValueError: the two are not of one size, or a label is no class.
        """
        if prediction.shape != target.shape or target.ndim != 3:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must be label maps (B, H, W) "
                "of one size"
            )
        classes = len(self.names)
        used = target != self.ignore_index
        label, guess = target[used].long(), prediction[used].long()
        for what, values in (("target", label), ("prediction", guess)):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < classes:
                wrong = values[(values < 0) | (values >= classes)][0]
                raise ValueError(f"the {what} holds the label {int(wrong)}; there are classes 0 to {classes - 1}")
        self.labelled += torch.bincount(label, minlength=classes)
        self.predicted += torch.bincount(guess, minlength=classes)
        self.intersection += torch.bincount(label[label == guess], minlength=classes)
        if self.boundary:
            maps = [labels.to(torch.uint8).cpu().numpy() for labels in (prediction, target)]
            for one, other in zip(*maps):
                counts = boundary_counts(one, other, classes, self.ignore_index)
                self.boundary_pixels += torch.from_numpy(counts).to(self.boundary_pixels.device)

    def compute(self) -> dict[str, Tensor]:
        """Per cent: mIoU, mAcc, aAcc, boundary_f; iou/NAME, accuracy/NAME and boundary_f/NAME of each class that has
        them; baseline_* of always answering the most frequent class. All are NaN if there was no labelled pixel.
        """
        iou, accuracy = self._scores(self.intersection, self.predicted)
        results = {
            "mIoU": self._mean(iou),
            "mAcc": self._mean(accuracy),
            "aAcc": 100 * self.intersection.sum() / self.labelled.sum(),
        }
        constant = torch.zeros_like(self.labelled)
        best = self.labelled.argmax()
        constant[best] = self.labelled[best]
        everything = torch.zeros_like(self.labelled)
        everything[best] = self.labelled.sum()
        base_iou, base_accuracy = self._scores(constant, everything)
        baseline = {
            "baseline_mIoU": self._mean(base_iou),
            "baseline_mAcc": self._mean(base_accuracy),
            "baseline_aAcc": 100 * constant.sum() / self.labelled.sum(),
        }
        tables = {"iou": iou, "accuracy": accuracy}
        if self.boundary:
            tables["boundary_f"] = self._boundary_scores()
            results["boundary_f"] = self._mean(tables["boundary_f"])
            baseline["baseline_boundary_f"] = torch.zeros_like(results["boundary_f"])
        for table, values in tables.items():
            results.update({f"{table}/{n}": value for n, value in zip(self.names, values) if not value.isnan()})
        return {name: value.float() for name, value in {**results, **baseline}.items()}

    def _scores(self, intersection: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
        """IoU and accuracy of each class in per cent, NaN where they are not defined."""
        union = predicted + self.labelled - intersection
        return 100 * intersection.double() / union, 100 * intersection.double() / self.labelled

    def _boundary_scores(self) -> Tensor:
        predicted, right, true, found = self.boundary_pixels.double()
        # F = 2 P R / (P + R) with P = right / predicted and R = found / true; 0 where either is 0.
        score = 200 * right * found / (right * true + found * predicted)
        return torch.where((right == 0) & (predicted + true > 0), 0.0, score)

    def _mean(self, scores: Tensor) -> Tensor:
        return scores.nan_to_num(0.0).mean() if self.absent_as_zero else scores.nanmean()
