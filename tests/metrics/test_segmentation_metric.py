"""Metrics of segmentation: the release's numbers (spec 10.4), against plain NumPy, and the boundary's F-score."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from s2kit.metrics import SegmentationMetric
from s2kit.metrics.segmentation import boundary_counts, class_edges
from s2kit.schemas import load_class_list

NAMES = ("background", "skin", "hair", "hat")


@pytest.fixture
def maps() -> tuple[np.ndarray, np.ndarray]:
    """Prediction and target of three pictures; class 3 is predicted only, and some pixels are ignored."""
    rng = np.random.default_rng(0)
    target = np.kron(rng.integers(0, 3, (3, 4, 5)), np.ones((6, 6), int)).astype(np.uint8)
    prediction = np.where(rng.random(target.shape) < 0.2, rng.integers(0, 4, target.shape), target).astype(np.uint8)
    target[:, 3:5, 7:20] = 255
    return prediction, target


def score(prediction, target, names=NAMES, **options) -> dict[str, float]:
    metric = SegmentationMetric(names, **options)
    metric.update(torch.as_tensor(prediction), torch.as_tensor(target))
    return {name: value.item() for name, value in metric.compute().items()}


def test_published_numbers(wave):
    labels = (7 * torch.arange(2 * 30 * 20)) % 27
    labels[:3] = 255
    logits = F.interpolate(2 * wave(0.29, 2, 29, 24, 18), (30, 20), mode="bilinear", align_corners=False)
    names = load_class_list(29).names
    results = score(logits.argmax(dim=1), labels.reshape(2, 30, 20), names, absent_as_zero=True, boundary=False)
    rounded = {name: round(results[name], 2) for name in ("aAcc", "mIoU", "mAcc")}
    assert rounded == {"aAcc": 3.76, "mIoU": 1.87, "mAcc": 3.51}
    assert "boundary_f" not in results


def test_against_sets_of_pixels(maps):
    prediction, target = maps
    used = target != 255
    iou, accuracy = {}, {}
    for c, name in enumerate(NAMES):
        p, t = (prediction == c) & used, target == c
        iou[name] = 100 * (p & t).sum() / (p | t).sum()
        if t.any():
            accuracy[name] = 100 * (p & t).sum() / t.sum()
    results = score(*maps)
    assert {n: results[f"iou/{n}"] for n in NAMES} == pytest.approx(iou)
    assert {n: results[f"accuracy/{n}"] for n in accuracy} == pytest.approx(accuracy)
    assert results["mIoU"] == pytest.approx(np.mean(list(iou.values())))
    assert results["mAcc"] == pytest.approx(np.mean(list(accuracy.values())))
    assert results["aAcc"] == pytest.approx(100 * (prediction == target)[used].mean())
    # A class that is predicted but never there has an IoU, which is 0, but no accuracy.
    assert results["iou/hat"] == 0
    assert "accuracy/hat" not in results


def test_absent_classes_are_left_out_or_zero(maps):
    prediction, target = np.minimum(maps[0], 2), maps[1]
    left_out, zero = score(prediction, target), score(prediction, target, absent_as_zero=True)
    assert "iou/hat" not in left_out
    assert zero["mIoU"] == pytest.approx(left_out["mIoU"] * 3 / 4)
    assert zero["mAcc"] == pytest.approx(left_out["mAcc"] * 3 / 4)


def test_the_baseline_always_answers_the_most_frequent_class(maps):
    _, target = maps
    counts = np.bincount(target[target != 255])
    results = score(*maps)
    constant = score(np.full_like(target, counts.argmax()), target)
    for name in ("mIoU", "mAcc", "aAcc", "boundary_f"):
        assert results[f"baseline_{name}"] == pytest.approx(constant[name])
    assert results["baseline_aAcc"] == pytest.approx(100 * counts.max() / counts.sum())
    assert results["baseline_mIoU"] == pytest.approx(results["baseline_aAcc"] / 3)


def test_a_perfect_prediction():
    target = np.zeros((1, 20, 20), np.uint8)
    target[:, 5:12, 5:12] = 1
    results = score(target, target)
    for name in ("mIoU", "mAcc", "aAcc", "boundary_f"):
        assert results[name] == 100


def brute_force_boundaries(prediction, target, classes, ignore):
    """Boundary pixels and matches by looking at every neighbour and every distance."""
    prediction = np.where(target == ignore, ignore, prediction)
    height, width = target.shape
    limit = max(1.0, 0.0075 * np.hypot(height, width))
    found = [[[] for _ in range(classes)] for _ in range(2)]
    for which, labels in enumerate((prediction, target)):
        for y in range(height):
            for x in range(width):
                if labels[y, x] == ignore:
                    continue
                for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    inside = 0 <= ny < height and 0 <= nx < width
                    if inside and labels[ny, nx] not in (labels[y, x], ignore):
                        found[which][labels[y, x]].append((y, x))
                        break
    counts = np.zeros((4, classes), int)
    for c in range(classes):
        for row, (own, other) in ((0, (0, 1)), (2, (1, 0))):
            counts[row, c] = len(found[own][c])
            for y, x in found[own][c]:
                near = any(np.hypot(y - j, x - i) <= limit for j, i in found[other][c])
                counts[row + 1, c] += near
    return counts


def test_boundaries_against_brute_force(maps):
    for prediction, target in zip(*maps):
        expected = brute_force_boundaries(prediction, target, 4, 255)
        np.testing.assert_array_equal(boundary_counts(prediction, target, 4, 255), expected)
    # A picture so large that the tolerance is 3 pixels.
    rng = np.random.default_rng(1)
    large = np.zeros((2, 260, 330), np.uint8)
    for labels in large:
        y, x = rng.integers(20, 60, 2)
        labels[y : y + 25, x : x + 20] = 1
        labels[y + 3 : y + 9, x + 22 : x + 30] = 2
    large[1, :40, 40:50] = 255
    np.testing.assert_array_equal(boundary_counts(*large, 3, 255), brute_force_boundaries(*large, 3, 255))


def test_boundary_score_of_a_moved_square():
    """Three pixels off is beyond a tolerance of one: only where the sides coincide do they match."""
    target = np.zeros((1, 60, 60), np.uint8)
    target[:, 20:40, 20:40] = 1
    near, far = np.roll(target, 1, axis=2), np.roll(target, 3, axis=2)
    assert score(near, target)["boundary_f"] == 100
    counts = boundary_counts(far[0], target[0], 4, 255)
    # Of the 76 boundary pixels, 17 of two sides coincide; at each end of these one more is next to one in line, and
    # at one end another is next to one at right angles.
    assert counts[:, 1].tolist() == [76, 38, 76, 38]
    assert score(far, target)["boundary_f/skin"] == pytest.approx(100 * 38 / 76)


def test_edges_of_the_picture_and_of_ignored_pixels_are_no_boundaries():
    labels = np.zeros((6, 6), np.uint8)
    labels[:, 3:] = 255
    assert not class_edges(labels, 255).any()
    labels[:, 4:] = 1
    assert not class_edges(labels, 255).any()
    labels[:, 3] = 1
    assert class_edges(labels, 255).sum() == 12


def test_nothing_labelled_is_nan_and_errors_name_the_value(maps):
    prediction, target = maps
    results = score(prediction, np.full_like(target, 255))
    assert all(np.isnan(results[name]) for name in ("mIoU", "mAcc", "aAcc", "boundary_f", "baseline_mIoU"))
    with pytest.raises(ValueError, match="the target holds the label 4; there are classes 0 to 3"):
        score(prediction, np.where(target == 1, 4, target))
    with pytest.raises(ValueError, match="the prediction holds the label 7"):
        score(np.where(target == 1, 7, prediction), target)
    with pytest.raises(ValueError, match=r"prediction \(3, 24, 29\) and target \(3, 24, 30\)"):
        score(prediction[..., 1:], target)
