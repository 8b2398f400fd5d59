"""Pointmaps of a tilted plane: every point lies behind its pixel, and on the plane, whatever is done to the picture."""

import numpy as np
import pytest

from data_modules.transforms import EvalTransform, PointmapTrainTransform, SampleRejected
from data_modules.transforms import geometry as g
from data_modules.transforms.pointmap import pointmap_labels

SIZE = (128, 96)
PLAIN = dict.fromkeys(("photometric", "scale", "crop", "flip"), 0.0)
NORMAL, DISTANCE = np.array([0.3, -0.2, -0.93]), -2.5  # NORMAL . point = DISTANCE
CASES = {
    "letterbox": {},
    "flip": {"flip": 1.0},
    "rotation": {"rotate": 1.0, "rotate_degrees": 180.0},
    "crop": {"crop": 1.0},
    "person": {"person_crop": True},
    "all": {"crop": 0.5, "flip": 0.5, "rotate": 0.7, "person_crop": True, "scale": 0.5, "photometric": 1.0},
}


def plane(chart, fy: float = 140.0) -> dict:
    """A plane seen by a camera whose principal point is off the centre."""
    intrinsics = np.array([[140, 0, 52], [0, fy, 81], [0, 0, 1]], np.float32)
    rays = np.concatenate([chart.sources(np.eye(3), chart.size), np.ones((*chart.size, 1))], axis=-1)
    rays = rays @ np.linalg.inv(intrinsics.astype(np.float64)).T
    alpha = np.zeros(chart.size, np.uint8)
    alpha[20:140, 15:100] = 255
    return {
        "key": "plane",
        "image": chart.image(),
        "alpha": alpha,
        "depth": (DISTANCE / (rays @ NORMAL)).astype(np.float32),
        "intrinsics": intrinsics,
        "box": np.array([15, 20, 100, 140], np.float32),
    }


def camera_turn(crop: np.ndarray) -> np.ndarray:
    turn = np.eye(3)
    turn[:2, :2] = g.orthogonal_part(crop)
    return turn


@pytest.mark.parametrize("fy", [140.0, 170.0], ids=["square", "oblong"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_points_lie_behind_their_pixels_and_on_the_plane(chart, options, fy):
    transform, sample = PointmapTrainTransform(SIZE, **{**PLAIN, **options}), plane(chart, fy)
    for seed in range(10):
        item = transform(sample, np.random.default_rng(seed))
        valid, points = item["valid"][0], item["pointmap"].transpose(1, 2, 0).astype(np.float64)
        assert (points[~valid] == 0).all() and valid.sum() > 500
        # Projected by the crop's own intrinsics, each falls on the centre of its pixel.
        seen = points[valid] @ item["intrinsics"].astype(np.float64).T
        centres = g.map_points(chart.sources(item["crop"], SIZE), item["crop"].astype(np.float64))
        np.testing.assert_allclose(seen[:, :2] / seen[:, 2:], centres[valid], atol=2e-3)
        # Turned back, it is a point of the plane: depth of the nearest pixel, up to 0.8 pixels off at 2.5 m.
        original = points[valid] @ camera_turn(item["crop"])
        assert np.abs(original @ NORMAL - DISTANCE).max() < 0.02
        assert abs((original @ NORMAL - DISTANCE).mean()) < 0.002
        # And it is the point that the source shows there.
        u, v = np.moveaxis(chart.sources(item["crop"], SIZE)[valid], -1, 0)
        expected = np.stack([(u - 52) / 140, (v - 81) / fy, np.ones_like(u)], axis=-1) * original[:, 2:]
        np.testing.assert_allclose(original, expected, atol=1e-4)
        if not options.get("photometric"):
            assert chart.error(item["image"], item["crop"]) < 3


def test_label_then_transform_is_transform_then_label(chart):
    sample = plane(chart)
    before = pointmap_labels(sample)
    transform = PointmapTrainTransform(SIZE, **PLAIN | {"flip": 0.5, "crop": 0.5}, rotate=0.5, rotate_degrees=60)
    for seed in range(10):
        item = transform(sample, np.random.default_rng(seed))
        turned = before["pointmap"].transpose(1, 2, 0) @ camera_turn(item["crop"]).T
        expected = chart.nearest(turned, item["crop"], SIZE, 0)
        valid = chart.nearest(before["valid"][0], item["crop"], SIZE, False) & chart.shown(item["image"])
        assert (valid != item["valid"][0]).mean() < 0.002
        both = valid & item["valid"][0]
        # The label of the nearest pixel is up to 0.71 pixels off across the ray, at 2.5 m and 140 pixels: 13 mm.
        assert np.abs(item["pointmap"].transpose(1, 2, 0) - expected)[both].max() < 0.025
        assert np.abs((item["pointmap"].transpose(1, 2, 0) - expected)[both].mean(axis=0)).max() < 0.002


def test_evaluation_keeps_source_size(chart):
    sample = plane(chart)
    item = EvalTransform(SIZE, pointmap_labels)(sample)
    assert item["pointmap"].shape == (3, *chart.size) and item["pointmap"].dtype == np.float32
    np.testing.assert_array_equal(item["valid"][0], sample["alpha"] > 127)
    np.testing.assert_array_equal(item["intrinsics"], sample["intrinsics"])
    z = sample["depth"][50, 40]
    np.testing.assert_allclose(
        item["pointmap"][:, 50, 40], [(40.5 - 52) / 140 * z, (50.5 - 81) / 140 * z, z], rtol=1e-5
    )
    cut = EvalTransform(SIZE, pointmap_labels, person_crop=True, person_margin=1.0)(sample)
    height, width = cut["source_size"]
    offset = (sample["intrinsics"] - cut["intrinsics"])[:2, 2].astype(int)
    part = (slice(None), slice(offset[1], offset[1] + height), slice(offset[0], offset[0] + width))
    np.testing.assert_allclose(cut["pointmap"], item["pointmap"][part], atol=1e-5)


def test_undefined_depth_and_near_points(chart):
    sample, rng = plane(chart), np.random.default_rng(0)
    sample["depth"][60:64, 60] = np.nan, np.inf, 0, -2.5
    item = EvalTransform(SIZE, pointmap_labels)(sample)
    assert not item["valid"][0, 60:64, 60].any() and (item["pointmap"][:, 60:64, 60] == 0).all()
    item = PointmapTrainTransform(SIZE, **PLAIN)(sample, rng)
    assert np.isfinite(item["pointmap"]).all() and item["pointmap"][2].min() == 0
    # Canonical depth is z * 96 / fx with fx = 140 * 96 / 120: 0.85 z, here of one pixel at 4 cm.
    transform = PointmapTrainTransform(chart.size, **PLAIN)
    scale = chart.size[1] / 140
    for depth, rejected in ((0.0399 / scale, True), (0.0401 / scale, False)):
        sample["depth"][60, 60] = depth
        if rejected:
            with pytest.raises(SampleRejected, match=r"'plane' rejected: a point at canonical depth 0\.0399"):
                transform(sample, rng)
        else:
            transform(sample, rng)
    del sample["intrinsics"]
    with pytest.raises(
        SampleRejected, match="'plane' rejected: it has no 'intrinsics'; it has alpha, box, depth, image"
    ):
        transform(sample, rng)
    with pytest.raises(
        SampleRejected, match="'plane' rejected: it has 'depth', but no 'intrinsics' to make points with"
    ):
        pointmap_labels(sample)


def test_layout_and_steps(chart):
    item = PointmapTrainTransform(SIZE)(plane(chart), np.random.default_rng(3))
    layout = {name: (value.dtype, value.shape) for name, value in item.items() if name != "key"}
    assert layout == {
        "image": (np.uint8, (3, *SIZE)),
        "pointmap": (np.float32, (3, *SIZE)),
        "valid": (np.bool_, (1, *SIZE)),
        "crop": (np.float32, (3, 3)),
        "source_size": (np.int64, (2,)),
        "intrinsics": (np.float32, (3, 3)),
    }
    assert all(value.flags.c_contiguous for value in item.values() if isinstance(value, np.ndarray))
    with pytest.raises(ValueError, match=r"jitter=0\.5: there is no such step; there are photometric"):
        PointmapTrainTransform(SIZE, jitter=0.5)
