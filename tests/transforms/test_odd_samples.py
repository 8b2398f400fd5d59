"""Pictures of a pixel, of a row, with anything in their labels: an item with finite values, or a rejection."""

import numpy as np
import pytest

from data_modules import transforms as T

SIZES = [(1, 1), (1, 40), (40, 1), (3, 150), (150, 3), (33, 17), (64, 48)]
TRANSFORMS = {
    "normals": T.NormalsTrainTransform((64, 48), rotate=0.5, crop=0.5, person_crop=True),
    "pointmap": T.PointmapTrainTransform((64, 48), rotate=0.5, crop=0.5, min_depth=0.0),
    "albedo": T.AlbedoTrainTransform((48, 64), rotate=0.5, crop=0.5, person_crop=True),
    "segmentation": T.SegmentationTrainTransform((64, 48), person_crop=True),
    "matting": T.MattingTrainTransform((48, 64), recomposite=0.5),
    "pose": T.PoseTrainTransform((64, 48)),
    "pretraining": T.PretrainTransform((16, 16), min_side=1),
}


def odd_sample(rng: np.random.Generator, size: tuple[int, int]) -> dict:
    height, width = size
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    sample = {
        "key": "odd",
        "image": image,
        "alpha": rng.integers(0, 256, size, np.uint8) if rng.random() < 0.5 else np.full(size, 255, np.uint8),
        "depth": rng.uniform(-1, 5, size).astype(np.float32),
        "albedo": rng.integers(0, 256, (*size, 3), np.uint8),
        "normals": rng.normal(size=(*size, 3)).astype(np.float32),
        "parts": rng.choice(np.r_[0:29, 255], size).astype(np.uint8),
        "intrinsics": np.array([[100, 0, width / 2], [0, 100, height / 2], [0, 0, 1]], np.float32),
        "keypoints": rng.uniform(-5, max(size) + 5, (308, 2)).astype(np.float32),
        "visibility": rng.integers(0, 3, 308, np.uint8),
    }
    if rng.random() < 0.5:
        x, y = np.sort(rng.uniform(0, width, 2)), np.sort(rng.uniform(0, height, 2))
        sample["box"] = np.array([x[0], y[0], x[1], y[1]], np.float32)
    if rng.random() < 0.5:
        sample["foreground"] = image
    return sample


@pytest.mark.parametrize("name", TRANSFORMS)
def test_odd_samples_give_finite_items_or_are_rejected(name):
    rng, transform, items = np.random.default_rng(0), TRANSFORMS[name], 0
    for number in range(10 * len(SIZES)):
        sample = odd_sample(rng, SIZES[number % len(SIZES)])
        try:
            item = transform(sample, np.random.default_rng(number))
        except T.SampleRejected:
            continue
        items += 1
        assert all(np.isfinite(value).all() for value in item.values() if isinstance(value, np.ndarray))
    assert items >= 15
