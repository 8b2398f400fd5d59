"""Suppression of persons that were found twice (spec 6.1)."""

from __future__ import annotations

import numpy as np

from s2kit.pose.oks import similarities

#: Keypoints from this score on count in a person's confidence.
CONFIDENT = 0.2


def person_confidence(scores: np.ndarray, box_scores: np.ndarray | None = None) -> np.ndarray:
    """Confidence (N,) of persons: the mean of their keypoint scores (N, K) above 0.2, times that of their boxes."""
    counted = scores > CONFIDENT
    mean = np.where(counted, scores, 0).sum(axis=1) / np.maximum(counted.sum(axis=1), 1)
    return mean if box_scores is None else mean * box_scores


def oks_nms(keypoints: np.ndarray, confidence: np.ndarray, sigmas: np.ndarray, threshold: float = 0.9) -> np.ndarray:
    """Rows (M,) to keep of the persons of one picture, by falling confidence.

    A person goes if its similarity to a better one is above the threshold. Their area is the mean of the boxes around
    all keypoints of each.

    Args:
        keypoints: (N, K, 2) pixels; confidence: (N,); sigmas: (K,) OKS constants.
    """
    if not len(keypoints):
        return np.zeros(0, np.int64)
    areas = np.prod(keypoints.max(axis=1) - keypoints.min(axis=1), axis=-1)
    left = np.argsort(-confidence, kind="stable")
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        size = (len(left), *keypoints.shape[1:])
        oks = similarities(
            keypoints[left],
            np.broadcast_to(keypoints[best], size),
            np.ones(size[:2]),
            (areas[left] + areas[best]) / 2,
            np.zeros((len(left), 4)),
            sigmas,
        )
        left = left[~(oks > threshold)]
    return np.array(kept)
