"""Average precision and recall of keypoints by object keypoint similarity (OKS), for any keypoint set and its parts.

The rules are those of COCO's keypoint evaluation, and on its 17 points the numbers are those of pycocotools; what
differs is the work: all images of a block, all thresholds and all ranges of area are matched at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 20
#: Square pixels of a person's area.
AREAS = {"all": (0.0, 1e10), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
_SPACING = np.spacing(1)
#: Pairs of persons whose distances are computed at a time, and cells of a matching table.
_PAIR_CHUNK = 2**22
_TABLE_CHUNK = 2**22


@dataclass
class Detections:
    """N predicted persons.

    Args:
        image: (N,) int64 id of the image; images are taken in the order of their ids where scores tie.
        keypoints: (N, K, 2) pixels of the image; scores: (N, K), a person whose keypoints of a part all score 0 is
            none of that part; confidence: (N,) by which persons are ranked.
    """

    image: np.ndarray
    keypoints: np.ndarray
    scores: np.ndarray
    confidence: np.ndarray

    @property
    def areas(self) -> np.ndarray:
        """(N,) square pixels of the box around all keypoints."""
        if not len(self.keypoints):
            return np.zeros(0)
        return np.prod(self.keypoints.max(axis=1) - self.keypoints.min(axis=1), axis=-1)

    def take(self, rows: np.ndarray) -> Detections:
        """The persons of these rows."""
        return Detections(self.image[rows], self.keypoints[rows], self.scores[rows], self.confidence[rows])


@dataclass
class Persons:
    """M labelled persons.

    Args:
        image: (M,) int64; keypoints: (M, K, 2) pixels of the image; visibility: (M, K), above 0 is labelled;
            areas: (M,) square pixels; boxes: (M, 4) x0, y0, x1, y1; crowd: (M,) bool, a crowd is neither found nor
            missed, and may be matched by many.
    """

    image: np.ndarray
    keypoints: np.ndarray
    visibility: np.ndarray
    areas: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray = field(default=None)  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.crowd is None:
            self.crowd = np.zeros(len(self.image), bool)


def similarities(
    predicted: np.ndarray,
    keypoints: np.ndarray,
    visibility: np.ndarray,
    areas: np.ndarray,
    boxes: np.ndarray,
    sigmas: np.ndarray,
) -> np.ndarray:
    """OKS of N pairs of a predicted and a labelled person (spec 6.1).

    Where no keypoint is labelled, distances are those to the box, doubled about its centre's cross, as COCO has it.

    Args:
        predicted, keypoints: (N, K, 2); visibility: (N, K); areas: (N,); boxes: (N, 4) x0, y0, x1, y1; sigmas: (K,).

    Returns:
        float64 (N,) in 0..1.
    """
    labelled = visibility > 0
    none = ~labelled.any(axis=1)
    delta = predicted.astype(np.float64) - keypoints
    if none.any():
        low, high = boxes[none, None, :2], boxes[none, None, 2:]
        size = high - low
        low, high = low - size, high + size
        delta[none] = np.maximum(0, low - predicted[none]) + np.maximum(0, predicted[none] - high)
    scaled = np.square(delta).sum(axis=-1) / (2 * sigmas) ** 2 / (areas[:, None] + _SPACING) / 2
    counted = labelled | none[:, None]
    # NaN (a prediction that is not finite) is as far away as can be.
    values = np.nan_to_num(np.exp(-scaled), nan=0.0)
    return (values * counted).sum(axis=1) / counted.sum(axis=1)


def evaluate_oks(
    detections: Detections, persons: Persons, sigmas: np.ndarray, groups: dict[str, Sequence[int]] | None = None
) -> dict[str, dict[str, float]]:
    """Average precision and recall of all keypoints together and of each group of them.

    Args:
        sigmas: (K,) OKS constants of the keypoints.
        groups: name -> ids of keypoints; a person none of whose keypoints of the group is labelled is ignored in it.

    Returns:
        "whole" and each group -> AP, AP50, AP75, AP_M, AP_L, AR, AR50, AR75, AR_M, AR_L in 0..1; NaN where there is
        nobody to be found.
    """
    ranked = _rank(detections)
    pairs = _pair(ranked.image, persons.image)
    results = {}
    for name, ids in {"whole": range(len(sigmas)), **(groups or {})}.items():
        results[name] = _evaluate_part(ranked, persons, pairs, np.asarray(ids), sigmas)
    return results


def _rank(detections: Detections) -> Detections:
    """By image, and in it by falling confidence; the best `MAX_DETECTIONS` of each."""
    order = np.lexsort((-detections.confidence, detections.image))
    image = detections.image[order]
    first = np.searchsorted(image, image)
    return detections.take(order[np.arange(len(order)) - first < MAX_DETECTIONS])


def _pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of rows that are of one image; `first` is sorted."""
    order = np.argsort(second, kind="stable")
    low, high = (np.searchsorted(second[order], first, side) for side in ("left", "right"))
    count = high - low
    left = np.repeat(np.arange(len(first)), count)
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return left, order[np.repeat(low, count) + offset]


def _evaluate_part(
    detections: Detections, persons: Persons, pairs: tuple[np.ndarray, np.ndarray], ids: np.ndarray, sigmas: np.ndarray
) -> dict[str, float]:
    seen = detections.scores[:, ids].any(axis=1)
    labelled = (persons.visibility[:, ids] > 0).any(axis=1)
    chunk = max(1, _PAIR_CHUNK // len(ids))
    oks = [np.zeros(0)]
    for start in range(0, len(pairs[0]), chunk):
        d, p = (side[start : start + chunk] for side in pairs)
        oks.append(
            similarities(
                detections.keypoints[d][:, ids],
                persons.keypoints[p][:, ids],
                persons.visibility[p][:, ids],
                persons.areas[p],
                persons.boxes[p],
                sigmas[ids],
            )
        )
    matched, ignored = _match(detections, persons, seen, ~labelled | persons.crowd, pairs, np.concatenate(oks))
    limits = np.array(list(AREAS.values()))
    in_range = (persons.areas[:, None] >= limits[:, 0]) & (persons.areas[:, None] <= limits[:, 1])
    wanted = ((labelled & ~persons.crowd)[:, None] & in_range).sum(axis=0)
    order = np.argsort(-detections.confidence[seen], kind="stable")
    found, ignored = matched[seen][order], ignored[seen][order]
    precision, recall = np.full((len(AREAS), len(THRESHOLDS)), np.nan), np.full((len(AREAS), len(THRESHOLDS)), np.nan)
    for area, count in enumerate(wanted):
        if count:
            for i in range(len(THRESHOLDS)):
                precision[area, i], recall[area, i] = _average(found[:, area, i], ignored[:, area, i], int(count))
    result = {}
    for name, table in (("AP", precision), ("AR", recall)):
        result |= {
            name: table[0].mean(),
            f"{name}50": table[0, 0],
            f"{name}75": table[0, 5],
            f"{name}_M": table[1].mean(),
            f"{name}_L": table[2].mean(),
        }
    return {name: float(value) for name, value in result.items()}


def _average(found: np.ndarray, ignored: np.ndarray, count: int) -> tuple[float, float]:
    """Precision averaged over recall's 101 steps, and the final recall, of ranked detections."""
    hits = np.cumsum(found & ~ignored)
    misses = np.cumsum(~found & ~ignored)
    if not len(hits):
        return 0.0, 0.0
    recall, precision = hits / count, hits / (hits + misses + _SPACING)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    reached = at < len(envelope)
    return float(np.where(reached, envelope[np.minimum(at, len(envelope) - 1)], 0.0).mean()), float(recall[-1])


def _match(
    detections: Detections,
    persons: Persons,
    seen: np.ndarray,
    no_target: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray],
    oks: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's greedy matching of ranked detections.

    Each detection takes the free person of its image with the highest OKS of at least the threshold; persons to be
    ignored (`no_target`, or of an area out of range) only if there is no other. Crowds stay free.

    Returns:
        Two (N, areas, thresholds) bool: matched to a person; not to be counted.
    """
    limits = np.array(list(AREAS.values()))
    areas = detections.areas
    matched = np.zeros((len(areas), len(AREAS), len(THRESHOLDS)), bool)
    ignored = matched.copy()
    by_image = np.argsort(persons.image, kind="stable")
    images, starts, counts = np.unique(persons.image[by_image], return_index=True, return_counts=True)
    if not len(images) or not len(areas):
        return matched, ignored | ((areas[:, None] < limits[:, 0]) | (areas[:, None] > limits[:, 1]))[:, :, None]
    place = np.empty(len(by_image), np.int64)
    place[by_image] = np.arange(len(by_image)) - np.repeat(starts, counts)
    first = np.searchsorted(detections.image, images)
    number = np.searchsorted(detections.image, images, "right") - first
    of_pair = np.searchsorted(images, detections.image[pairs[0]])
    of_person = np.searchsorted(images, persons.image)
    out_of_range = (persons.areas[:, None] < limits[:, 0]) | (persons.areas[:, None] > limits[:, 1])
    for block in _blocks(counts * max(1, number.max()), counts):
        row = np.full(len(images), -1)
        row[block] = np.arange(len(block))
        width = counts[block].max()
        mine, people = row[of_pair] >= 0, np.flatnonzero(row[of_person] >= 0)
        table = np.full((len(block), max(1, number[block].max()), width), -1.0)
        d, p = pairs[0][mine], pairs[1][mine]
        table[row[of_pair[mine]], d - first[of_pair[mine]], place[p]] = oks[mine]
        skip = np.zeros((len(block), len(AREAS), width), bool)
        skip[row[of_person[people]], :, place[people]] = no_target[people, None] | out_of_range[people]
        crowd = np.zeros((len(block), width), bool)
        crowd[row[of_person[people]], place[people]] = persons.crowd[people]
        taken = np.zeros((len(block), len(AREAS), len(THRESHOLDS), width), bool)
        for k in range(table.shape[1]):
            there = np.flatnonzero(k < number[block])
            there = there[seen[first[block[there]] + k]]
            detection = first[block[there]] + k
            chosen, hit = _choose(table[there, k], skip[there], taken[there], crowd[there])
            i, a, t = np.nonzero(hit)
            taken[there[i], a, t, chosen[i, a, t]] = True
            matched[detection] = hit
            ignored[detection[i], a, t] = skip[there[i], a, chosen[i, a, t]]
    outside = (areas[:, None] < limits[:, 0]) | (areas[:, None] > limits[:, 1])
    return matched, ignored | (~matched & outside[:, :, None])


def _blocks(cells: np.ndarray, counts: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the images (indices) of each table: of like numbers of persons, and together not too large."""
    order = np.argsort(counts, kind="stable")
    room = np.cumsum(cells[order]) * len(AREAS) * len(THRESHOLDS) // _TABLE_CHUNK
    yield from np.split(order, np.flatnonzero(np.diff(room)) + 1)


def _choose(value: np.ndarray, skip: np.ndarray, taken: np.ndarray, crowd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The person that one detection of each of N images takes.

    Args:
        value: (N, P) OKS with the P persons; skip: (N, areas, P); taken: (N, areas, thresholds, P); crowd: (N, P).

    Returns:
        (N, areas, thresholds) indices of persons, and whether there is one.
    """
    value = value[:, None, None, :]
    free = (value >= np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]) & (~taken | crowd[:, None, None, :])
    proper = free & ~skip[:, :, None, :]
    candidates = np.where(proper.any(axis=-1, keepdims=True), proper, free)
    # Of equals the last one, as COCO has it.
    best = np.where(candidates, value, -1.0)[..., ::-1].argmax(axis=-1)
    return value.shape[-1] - 1 - best, candidates.any(axis=-1)
