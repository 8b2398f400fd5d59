"""Metrics of top-down pose: OKS average precision and recall by part, PCK, and what the mean pose would reach."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from s2kit.pose.nms import oks_nms, person_confidence
from s2kit.pose.oks import Detections, Persons, evaluate_oks, similarities
from s2kit.schemas import KeypointSet

#: Distance, as a share of the crop's sides, below which a keypoint counts as right (spec 6.1).
PCK_SHARE = 0.05


def image_number(image: int | str) -> int:
    """An int64 that stands for an image on every rank: the number itself, or a hash of a name."""
    if isinstance(image, int):
        return image
    return int.from_bytes(hashlib.blake2b(image.encode(), digest_size=8).digest(), "big", signed=True)


def mean_pose(persons: Persons) -> np.ndarray:
    """(K, 2) mean place of each labelled keypoint in its person's box, in shares of its sides; 0.5 where never seen."""
    low, size = persons.boxes[:, None, :2], persons.boxes[:, None, 2:] - persons.boxes[:, None, :2]
    labelled = (persons.visibility > 0)[..., None] & (size > 0)
    shares = np.where(labelled, (persons.keypoints - low) / np.where(size > 0, size, 1), 0)
    return np.where(labelled.any(axis=0), shares.sum(axis=0) / np.maximum(labelled.sum(axis=0), 1), 0.5)


class PoseMetric(Metric):
    """Average precision and recall by OKS in per cent, mean OKS and PCK, of one prediction for each labelled person.

    The rules of AP and AR are COCO's (see `s2kit.pose.oks`), after the release's suppression of persons found twice
    in an image. PCK is the share of labelled keypoints whose distance, x and y each divided by the side of the crop, is
    at most 0.05, averaged over keypoints. OKS is averaged over persons. For a part, "AP/face" and so on.

    Args:
        schema: the keypoint set; its groups are the parts.
        nms: OKS above which the less confident of two predictions in an image is dropped; None keeps all.
        baseline: whether to add "baseline_*" of the mean pose of all persons, fitted into each person's box.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(self, schema: KeypointSet, nms: float | None = 0.9, baseline: bool = True, **kwargs) -> None:
        super().__init__(**kwargs)
        self.schema, self.nms, self.baseline = schema, nms, baseline
        for name in ("predicted", "keypoints", "visibility", "boxes", "areas", "sides", "images"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        predicted: Tensor,
        keypoints: Tensor,
        visibility: Tensor,
        boxes: Tensor,
        areas: Tensor,
        sides: Tensor,
        images: Sequence[int | str],
    ) -> None:
        """Add N persons.

        Args:
            predicted: (N, K, 3) x, y in pixels of the image, and score.
            keypoints: (N, K, 2) pixels of the image; visibility: (N, K), above 0 is labelled.
            boxes: (N, 4) x0, y0, x1, y1; areas: (N,) square pixels.
            sides: (N, 2) width and height of each person's crop in pixels of the image.
            images: N names or numbers of the images.

        Raises:
            ValueError: shapes that do not fit the schema, or an area that is not positive.
        """
        count, points = len(images), len(self.schema)
        shapes = [(predicted, (points, 3)), (keypoints, (points, 2)), (visibility, (points,)), (boxes, (4,))]
        for value, shape in [*shapes, (areas, ()), (sides, (2,))]:
            if value.shape != (count, *shape):
                raise ValueError(
                    f"expected {count} persons with {points} keypoints ({self.schema.name}), got predicted "
                    f"{tuple(predicted.shape)}, keypoints {tuple(keypoints.shape)}, visibility "
                    f"{tuple(visibility.shape)}, boxes {tuple(boxes.shape)}, areas {tuple(areas.shape)} and sides "
                    f"{tuple(sides.shape)}"
                )
        if not bool((areas > 0).all()):
            raise ValueError(f"image {images[int((areas <= 0).nonzero()[0])]!r}: a person's area must be positive")
        for name, value in {
            "predicted": predicted,
            "keypoints": keypoints,
            "visibility": visibility.to(torch.uint8),
            "boxes": boxes,
            "areas": areas,
            "sides": sides,
            "images": torch.tensor([image_number(image) for image in images], device=predicted.device),
        }.items():
            getattr(self, name).append(value)

    def _gathered(self, name: str) -> np.ndarray:
        state = getattr(self, name)
        return (torch.cat(state) if isinstance(state, list) else state).cpu().numpy()

    def compute(self) -> dict[str, Tensor]:
        """AP, AP50, AP75, AP_M, AP_L, the same of AR, AP/<part>, AR/<part>, PCK, OKS in per cent.

        NaN where there is nobody to be found; a prediction that is not finite is one that is not right.
        """
        device = self.device
        results = self._compute() if len(self.images) else {}
        return {name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in results.items()}

    def _compute(self) -> dict[str, float]:
        images = self._gathered("images")
        # The order of ranks must not matter where confidences tie.
        order = np.lexsort((self._gathered("boxes")[:, 0], images))
        visibility, areas, boxes, sides = (
            self._gathered(name)[order] for name in ("visibility", "areas", "boxes", "sides")
        )
        persons = Persons(images[order], self._gathered("keypoints")[order], visibility, areas, boxes)
        predicted = self._gathered("predicted")[order]
        results = self._score(predicted, persons, sides)
        if self.baseline:
            low, size = boxes[:, None, :2], boxes[:, None, 2:] - boxes[:, None, :2]
            mean = np.concatenate([low + size * mean_pose(persons), np.ones((*visibility.shape, 1))], axis=-1)
            results |= {f"baseline_{name}": value for name, value in self._score(mean, persons, sides).items()}
        return results

    def _score(self, predicted: np.ndarray, persons: Persons, sides: np.ndarray) -> dict[str, float]:
        points, scores = predicted[..., :2], predicted[..., 2]
        sigmas, labelled = self.schema.sigmas, persons.visibility > 0
        parts = evaluate_oks(self._detections(points, scores, persons.image), persons, sigmas, self._groups())
        results = dict(parts.pop("whole"))
        results |= {f"{name}/{part}": values[name] for part, values in parts.items() for name in ("AP", "AR")}
        someone = labelled.any(axis=1)
        oks = similarities(points, persons.keypoints, persons.visibility, persons.areas, persons.boxes, sigmas)
        near = np.linalg.norm((points - persons.keypoints) / sides[:, None], axis=-1) <= PCK_SHARE
        seen = labelled.any(axis=0)
        right = (near & labelled).sum(axis=0)[seen] / labelled.sum(axis=0)[seen]
        results["PCK"] = right.mean() if seen.any() else math.nan
        results["OKS"] = oks[someone].mean() if someone.any() else math.nan
        return {name: 100 * float(value) for name, value in results.items()}

    def _groups(self) -> dict[str, Sequence[int]]:
        return self.schema.groups if len(self.schema.groups) > 1 else {}

    def _detections(self, points: np.ndarray, scores: np.ndarray, image: np.ndarray) -> Detections:
        points, scores = np.nan_to_num(points, nan=-1e6), np.nan_to_num(scores)
        confidence = person_confidence(scores)
        rows = np.arange(len(image))
        if self.nms is not None:
            groups = np.split(rows, np.flatnonzero(np.diff(image)) + 1)
            kept = [
                group[oks_nms(points[group], confidence[group], self.schema.sigmas, self.nms)]
                if len(group) > 1
                else group
                for group in groups
            ]
            rows = np.concatenate(kept) if kept else rows
        return Detections(image[rows], points[rows], scores[rows], confidence[rows])
