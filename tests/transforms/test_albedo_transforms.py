"""Albedo is resampled like a picture, within the person only."""

import numpy as np
import pytest

from data_modules.transforms import AlbedoTrainTransform, EvalTransform, SampleRejected
from data_modules.transforms.albedo import albedo_labels

SIZE = (128, 96)
PLAIN = dict.fromkeys(("scale", "crop", "flip", "noise"), 0.0)
CASES = {
    "letterbox": {},
    "flip": {"flip": 1.0},
    "rotation": {"rotate": 1.0, "rotate_degrees": 180.0},
    "crop": {"crop": 1.0},
    "all": {"crop": 0.5, "flip": 0.5, "rotate": 0.7, "person_crop": True, "scale": 0.5, "noise": 1.0},
}


def person(chart) -> dict:
    """A disc whose albedo is the chart; beside it alpha is 0 and albedo black."""
    points = chart.sources(np.eye(3), chart.size)
    covered = np.linalg.norm(points - [60, 80], axis=-1) < 50
    return {
        "key": "disc",
        "image": chart.image(),
        "alpha": np.where(covered, 255, 0).astype(np.uint8),
        "albedo": chart.image() * covered[..., None].astype(np.uint8),
        "box": np.array([10, 30, 110, 130], np.float32),
    }


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_albedo_follows_the_geometry_and_does_not_darken_at_the_rim(chart, options):
    transform, sample = AlbedoTrainTransform(SIZE, **{**PLAIN, **options}), person(chart)
    for seed in range(10):
        item = transform(sample, np.random.default_rng(seed))
        valid, points = item["valid"][0], chart.sources(item["crop"], SIZE)
        expected = chart.colours(points) / 255
        error = np.abs(item["albedo"].transpose(1, 2, 0) - expected)[valid]
        assert error.max() < 0.03  # at the rim, too: blue is 1 inside and 0 beside it
        assert (item["albedo"][:, ~valid] == 0).all()
        distance = np.linalg.norm(points - [60, 80], axis=-1)
        shown = chart.inside(points, 1) & chart.shown(item["image"])
        assert valid[(distance < 48) & shown].all() and not valid[distance > 52].any()
        if not options.get("noise"):
            assert chart.error(item["image"], item["crop"]) < 3


def test_colours_are_left_alone_by_default(chart):
    changed = 0
    for seed in range(200):
        item = AlbedoTrainTransform(chart.size, crop=0, flip=0, scale=0)(person(chart), np.random.default_rng(seed))
        changed += not np.array_equal(item["image"].transpose(1, 2, 0), chart.image())
    assert abs(changed / 200 - 0.2) < 0.13  # the noise


def test_what_is_undefined_and_what_is_rejected(chart):
    sample, rng = person(chart), np.random.default_rng(0)
    sample["albedo"][80, 60] = 0
    sample["alpha"][81, 60], sample["alpha"][82, 60] = 127, 128
    item = EvalTransform(SIZE, albedo_labels)(sample)
    assert item["albedo"].shape == (3, *chart.size)
    assert item["valid"][0, 80:83, 60].tolist() == [False, False, True]
    np.testing.assert_allclose(item["albedo"][:, 82, 60], sample["albedo"][82, 60] / 255, rtol=1e-6)
    assert (item["albedo"][:, 81, 60] == 0).all()
    # 2 % of 255 is 5.1: a deviation of 5 in every channel is too little, 6 in one is enough.
    transform, covered = AlbedoTrainTransform(SIZE, **PLAIN), sample["alpha"] > 127
    for deviation, rejected in ((5, True), (6, False)):
        flat = np.full((*chart.size, 3), 100, np.uint8)
        flat[:, ::2, 1], flat[:, 1::2, 1] = 100 - deviation, 100 + deviation
        case = sample | {"albedo": flat * covered[..., None].astype(np.uint8)}
        transform_same = AlbedoTrainTransform(chart.size, **PLAIN)
        if rejected:
            with pytest.raises(SampleRejected, match=r"deviates by 0\.020, at least 0\.02"):
                transform_same(case, rng)
        else:
            transform_same(case, rng)
    with pytest.raises(SampleRejected, match="0 valid pixels"):
        transform(sample | {"alpha": np.zeros(chart.size, np.uint8)}, rng)
