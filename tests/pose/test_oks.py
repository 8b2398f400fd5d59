"""Average precision by OKS against pycocotools, and on whole bodies against loops that follow COCO's rules."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from s2kit.pose.nms import oks_nms, person_confidence
from s2kit.pose.oks import Detections, Persons, evaluate_oks, similarities
from s2kit.schemas import load_keypoint_set

NAMES = ["AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L"]


def crowded_scenes(seed: int, images: int = 60, points: int = 17) -> tuple[Detections, Persons]:
    """Persons of all sizes, unlabelled ones, crowds, misses, doubles, ties, empty images, some with 25 detections."""
    rng = np.random.default_rng(seed)
    persons, found = [], []
    for image in rng.permutation(images) + 100:
        boxes = []
        for _ in range(rng.integers(0, 5)):
            size = np.exp(rng.uniform(np.log(20), np.log(250))) * np.array([0.6, 1.0])
            low = rng.uniform(0, 300, 2)
            keypoints = low + size * rng.uniform(0, 1, (points, 2))
            visibility = rng.choice([0, 1, 2], points, p=[0.3, 0.2, 0.5])
            visibility *= rng.random() > 0.15
            persons.append((image, keypoints, visibility, size.prod() * 0.6, [*low, *(low + size)], rng.random() < 0.1))
            boxes.append((keypoints, size))
        for keypoints, size in boxes + boxes[:1] * (25 if rng.random() < 0.1 else int(rng.random() < 0.4)):
            if rng.random() < 0.85:
                noise = rng.choice([0.01, 0.05, 0.2]) * size
                found.append((image, keypoints + noise * rng.normal(size=(points, 2))))
        if rng.random() < 0.3:
            found.append((image, rng.uniform(0, 400, (points, 2))))
    scores = np.round(rng.uniform(0.2, 1, len(found)), 1)  # with ties
    detections = Detections(
        np.array([image for image, _ in found]),
        np.stack([keypoints for _, keypoints in found]),
        np.ones((len(found), points)),
        scores,
    )
    return detections, Persons(*(np.array(column) for column in zip(*persons)))


def by_pycocotools(detections: Detections, persons: Persons) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = [
        {
            "id": row + 1,
            "image_id": int(persons.image[row]),
            "category_id": 1,
            "keypoints": np.c_[persons.keypoints[row], persons.visibility[row]].ravel().tolist(),
            "num_keypoints": int((persons.visibility[row] > 0).sum()),
            "area": float(persons.areas[row]),
            "bbox": [*persons.boxes[row, :2], *(persons.boxes[row, 2:] - persons.boxes[row, :2])],
            "iscrowd": int(persons.crowd[row]),
        }
        for row in range(len(persons.image))
    ]
    results = [
        {
            "image_id": int(detections.image[row]),
            "category_id": 1,
            "keypoints": np.c_[detections.keypoints[row], np.ones(17)].ravel().tolist(),
            "score": float(detections.confidence[row]),
        }
        for row in range(len(detections.image))
    ]
    images = sorted({*persons.image.tolist(), *detections.image.tolist()})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": image} for image in images],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person"}],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(NAMES, evaluation.stats))


@pytest.mark.parametrize("seed", range(8))
def test_17_points_are_scored_as_by_pycocotools(seed, monkeypatch):
    if seed % 2:  # blocks and chunks of a few
        monkeypatch.setattr("s2kit.pose.oks._TABLE_CHUNK", 4000)
        monkeypatch.setattr("s2kit.pose.oks._PAIR_CHUNK", 100)
    detections, persons = crowded_scenes(seed)
    ours = evaluate_oks(detections, persons, load_keypoint_set(17).sigmas)["whole"]
    theirs = by_pycocotools(detections, persons)
    assert list(ours) == NAMES
    assert 0.1 < theirs["AP"] < 0.8
    for name in NAMES:
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6), name


def average_precision(detections: Detections, persons: Persons, ids: list[int], sigmas: np.ndarray) -> float:
    """AP of a part over all areas, by loops, for scenes without crowds."""
    table = []
    for threshold in np.arange(0.5, 0.96, 0.05):
        rows, count = [], 0
        for image in sorted({*persons.image.tolist(), *detections.image.tolist()}):
            gt = np.flatnonzero(persons.image == image).tolist()
            dt = sorted(np.flatnonzero(detections.image == image), key=lambda d: -detections.confidence[d])[:20]
            used = set()
            count += sum(bool((persons.visibility[g, ids] > 0).any()) for g in gt)
            for d in dt:
                best, hit = threshold, None
                for g in gt:
                    seen = [k for k in ids if persons.visibility[g, k] > 0]
                    if g in used or not seen:
                        continue
                    distance = ((detections.keypoints[d, seen] - persons.keypoints[g, seen]) ** 2).sum(axis=1)
                    oks = np.exp(-distance / (2 * persons.areas[g] * (2 * sigmas[seen]) ** 2)).mean()
                    if oks >= best:
                        best, hit = oks, g
                if hit is not None:
                    used.add(hit)
                rows.append((detections.confidence[d], hit is not None))
        rows.sort(key=lambda row: -row[0])
        hits = np.cumsum([hit for _, hit in rows])
        recall, precision = hits / count, hits / np.arange(1, len(rows) + 1)
        table.append(
            [max([p for r, p in zip(recall, precision) if r >= step], default=0) for step in np.linspace(0, 1, 101)]
        )
    return float(np.mean(table))


def test_parts_of_the_308_points_against_loops():
    schema = load_keypoint_set(308)
    rng = np.random.default_rng(5)
    count = 40
    image = rng.integers(0, 15, count)
    low, size = rng.uniform(0, 200, (count, 2)), rng.uniform(60, 200, (count, 2))
    keypoints = low[:, None] + size[:, None] * rng.uniform(0, 1, (count, 308, 2))
    visibility = rng.choice([0, 1, 2], (count, 308), p=[0.2, 0.1, 0.7])
    persons = Persons(image, keypoints, visibility, size.prod(axis=1), np.c_[low, low + size])
    noise = rng.uniform(0, 0.06, (count, 1, 1)) * size[:, None] * rng.normal(size=keypoints.shape)
    detections = Detections(image, keypoints + noise, np.ones((count, 308)), rng.permutation(count) / count)
    results = evaluate_oks(detections, persons, schema.sigmas, schema.groups)
    assert set(results) == {"whole", *schema.groups}
    found = set()
    for name, ids in {"whole": range(308), **schema.groups}.items():
        expected = average_precision(detections, persons, list(ids), schema.sigmas)
        assert results[name]["AP"] == pytest.approx(expected, abs=1e-9), name
        found.add(round(expected, 3))
    assert len(found) > 4


def test_similarity_of_one_pair():
    """One keypoint at the distance at which OKS is exp(-1/2), one unlabelled; and the box where none is labelled."""
    sigma, area = 0.05, 400.0
    distance = 2 * sigma * np.sqrt(area)
    target, predicted = np.zeros((1, 2, 2)), np.zeros((1, 2, 2))
    predicted[0, 0, 0], predicted[0, 1] = distance, 99
    arguments = (np.array([area]), np.array([[0, 0, 10, 10.0]]), np.array([sigma, sigma]))
    assert similarities(predicted, target, np.array([[2, 0]]), *arguments)[0] == pytest.approx(np.exp(-0.5))
    predicted[0] = [[20, 20], [20 + distance, 5]]
    assert similarities(predicted, target, np.zeros((1, 2)), *arguments)[0] == pytest.approx((1 + np.exp(-0.5)) / 2)
    predicted[0, 0] = np.nan
    assert similarities(predicted, target, np.array([[2, 0]]), *arguments)[0] == 0


def test_nobody_to_find_and_nobody_found():
    detections, persons = crowded_scenes(0)
    sigmas = load_keypoint_set(17).sigmas
    nobody = Persons(*(getattr(persons, name)[:0] for name in ("image", "keypoints", "visibility", "areas", "boxes")))
    assert np.isnan(list(evaluate_oks(detections, nobody, sigmas)["whole"].values())).all()
    results = evaluate_oks(detections.take(np.zeros(0, int)), persons, sigmas)["whole"]
    assert (results["AP"], results["AR"]) == (0, 0)


def test_a_part_whose_keypoints_all_score_0_is_not_detected():
    detections, persons = crowded_scenes(1)
    before = evaluate_oks(detections, persons, load_keypoint_set(17).sigmas, {"arms": [7, 8, 9, 10]})
    detections.scores[:, 7:11] = 0
    after = evaluate_oks(detections, persons, load_keypoint_set(17).sigmas, {"arms": [7, 8, 9, 10]})
    assert after["whole"] == before["whole"]
    assert before["arms"]["AP"] > 0.1
    assert after["arms"]["AP"] == 0


def test_doubles_are_suppressed_and_neighbours_kept():
    rng = np.random.default_rng(0)
    person = rng.uniform(0, 100, (17, 2))
    keypoints = np.stack([person, person + 0.5, person + 60, person + 0.2])
    kept = oks_nms(keypoints, np.array([0.5, 0.9, 0.2, 0.7]), load_keypoint_set(17).sigmas)
    assert kept.tolist() == [1, 2]
    assert oks_nms(keypoints[:0], np.zeros(0), load_keypoint_set(17).sigmas).tolist() == []


def test_confidence_is_the_mean_of_the_scores_above_a_fifth():
    scores = np.array([[0.5, 0.1, 0.9], [0.1, 0.2, 0.0]])
    assert person_confidence(scores).tolist() == pytest.approx([0.7, 0])
    assert person_confidence(scores, np.array([0.5, 1])).tolist() == pytest.approx([0.35, 0])
