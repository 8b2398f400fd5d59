"""Pose: the crop is the published one, and keypoints stay on what they name."""

import numpy as np
import pytest

from data_modules.transforms import PoseEvalTransform, PoseTrainTransform, SampleRejected, photometric
from data_modules.transforms import geometry as g
from data_modules.transforms.pose import person_matrix, truncated_normal
from s2kit.schemas import SchemaError, load_keypoint_set

SIZE = (128, 96)
PLAIN = dict.fromkeys(PoseTrainTransform.published, 0.0)
CASES = {
    "crop": {},
    "flip": {"flip": 1.0},
    "rotation": {"rotate": 1.0},
    "scale": {"scale": 1.0},
    "shift": {"shift": 1.0},
    "half body": {"half_body": 1.0},
    "all": {"flip": 0.5, "rotate": 0.6, "scale": 1.0, "shift": 0.5, "half_body": 0.5},
}


def person(chart, count: int = 308, seed: int = 0) -> dict:
    """Keypoints at random places of a chart; every fifth is not labelled, and is no number."""
    rng = np.random.default_rng(seed)
    keypoints = rng.uniform([30, 20], [90, 130], (count, 2)).astype(np.float32)
    visibility = rng.integers(1, 3, count).astype(np.uint8)
    keypoints[::5], visibility[::5] = np.nan, 0
    return {
        "key": "person",
        "image": chart.image(),
        "keypoints": keypoints,
        "visibility": visibility,
        "box": np.array([30, 20, 90, 130], np.float32),
        "person_id": 7,
    }


@pytest.mark.parametrize("count", [308, 133, 17])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_keypoints_stay_on_what_they_name(chart, options, count):
    transform, sample = PoseTrainTransform(SIZE, schema=count, **{**PLAIN, **options}), person(chart, count)
    points = load_keypoint_set(count)
    for seed in range(10):
        item = transform(sample, np.random.default_rng(seed))
        mirrored = np.linalg.det(item["crop"][:2, :2]) < 0
        assert mirrored == (options.get("flip") == 1.0) or options.get("flip") == 0.5
        assert chart.error(item["image"], item["crop"], rim=2) < 4
        source = np.arange(count)
        if mirrored:  # by name: what was the left wrist is now the right one
            source = np.array([points.keypoints[i].flip for i in range(count)])
        moved = g.map_points(sample["keypoints"][source].astype(np.float64), item["crop"].astype(np.float64))
        labelled = sample["visibility"][source] > 0
        with np.errstate(invalid="ignore"):
            inside = ((moved >= 0) & (moved < [96, 128])).all(axis=1)
        seen = labelled & inside
        np.testing.assert_array_equal(item["visibility"], np.where(seen, sample["visibility"][source], 0))
        np.testing.assert_allclose(item["keypoints"][seen], moved[seen], atol=1e-3)
        assert (item["keypoints"][~seen] == 0).all()
        # The picture's colours at a keypoint are those of the place that it was at.
        for index in np.flatnonzero(seen)[:40]:
            x, y = item["keypoints"][index]
            if item["image"][2, int(y), int(x)] == 255:
                colour = chart.colours(sample["keypoints"][source[index]])
                assert np.abs(item["image"][:, int(y), int(x)] - colour).max() < 8


def test_the_crop_is_the_published_one():
    """Release, data 4.2.1: centre (300, 400), extent (600, 800), 30 degrees; there pixel centres are at integers."""
    matrix = person_matrix(np.array([300.5, 400.5]), np.array([600.0, 800.0]), (1024, 768), degrees=-30)
    published = g.translation_matrix(-0.5, -0.5) @ matrix @ g.translation_matrix(0.5, 0.5)
    expected = [[1.10706913, -0.63916665, 307.04592896], [0.63937497, 1.10742998, -123.28449249]]
    np.testing.assert_allclose(published[:2], expected, rtol=1e-7)


def test_the_box_with_its_margin_fills_the_crop(chart):
    """A box of 60 x 110 has 75 x 137.5 with its margin, and 103.125 x 137.5 in the aspect 3:4."""
    item = PoseEvalTransform(SIZE)(person(chart))
    inverse = np.linalg.inv(item["crop"].astype(np.float64))
    corners = g.map_points(np.array([[0.5, 0.5], [95.5, 127.5]]), inverse)
    np.testing.assert_allclose(corners, [[60 - 51.5625, 75 - 68.75], [60 + 51.5625, 75 + 68.75]], atol=1e-4)
    wide = person_matrix(np.array([50.0, 50.0]), np.array([90.0, 30.0]), SIZE)
    np.testing.assert_allclose(wide @ [5, 50, 1], [0.5, 64, 1], atol=1e-9)


def test_flip_swaps_left_and_right_by_name(chart):
    sample, points = person(chart), load_keypoint_set(308)
    left, right, nose = (points.ids[name] for name in ("left_wrist", "right_wrist", "nose"))
    sample["keypoints"][[left, right, nose]] = [[40, 60], [80, 60], [60, 30]]
    sample["visibility"][[left, right, nose]] = 2, 0, 1
    item = PoseTrainTransform(SIZE, **PLAIN | {"flip": 1.0})(sample, np.random.default_rng(0))
    plain = PoseTrainTransform(SIZE, **PLAIN)(sample, np.random.default_rng(0))
    np.testing.assert_allclose(item["keypoints"][right], [96, 0] + plain["keypoints"][left] * [-1, 1], atol=1e-4)
    assert item["visibility"][[left, right, nose]].tolist() == [0, 2, 1]
    np.testing.assert_array_equal(item["image"], plain["image"][:, :, ::-1])


def frame(transform, sample, seeds=range(400)):
    """Return centre (n, 2), extent (n, 2) and angle (n,) of crops, in source pixels and degrees."""
    found = []
    for seed in seeds:
        inverse = np.linalg.inv(transform(sample, np.random.default_rng(seed))["crop"].astype(np.float64))
        centre = g.map_points(np.array([48.0, 64.0]), inverse)
        found.append([*centre, 95 * np.hypot(*inverse[:2, 0]), np.rad2deg(np.arctan2(inverse[1, 0], inverse[0, 0]))])
    found = np.array(found)
    return found[:, :2], found[:, 2], found[:, 3]


def test_shift_scale_and_rotation_have_the_published_ranges(chart):
    sample = person(chart)
    centre, extent, angle = frame(PoseTrainTransform(SIZE, **PLAIN | {"shift": 1, "scale": 1, "rotate": 1}), sample)
    offset = (centre - [60, 75]) / [0.16 * 75, 0.16 * 137.5]
    growth = extent / 103.125
    assert np.abs(offset).max() <= 1.001 and offset.std() == pytest.approx(0.5396, abs=0.03)
    assert 0.5 <= growth.min() < 0.55 and 1.45 < growth.max() <= 1.5
    assert growth.std() == pytest.approx(0.5 * 0.5396, abs=0.03)
    assert 75 < np.abs(angle).max() <= 80 and angle.std() == pytest.approx(80 * 0.5396, abs=5)
    _, extent, angle = frame(PoseTrainTransform(SIZE, **PLAIN), sample, range(3))
    np.testing.assert_allclose(extent, 103.125, rtol=1e-4)
    np.testing.assert_allclose(angle, 0, atol=1e-4)


def test_truncated_normal_is_that_of_one_deviation():
    values = truncated_normal(np.random.default_rng(0), 20000)
    assert np.abs(values).max() <= 1
    assert values.std() == pytest.approx(0.53956, abs=0.01) and values.mean() == pytest.approx(0, abs=0.015)


def test_half_body_shows_one_half(chart):
    sample, points = person(chart), load_keypoint_set(308)
    upper, lower = (list(points.half(name)) for name in ("upper", "lower"))
    sample["visibility"][:] = 0
    sample["visibility"][upper[:10]] = sample["visibility"][lower[:9]] = 2
    sample["keypoints"][upper[:10]] = np.linspace([40, 30], [80, 60], 10)
    sample["keypoints"][lower[:9]] = np.linspace([50, 90], [70, 120], 9)
    transform = PoseTrainTransform(SIZE, **PLAIN | {"half_body": 1.0})
    centre, extent, _ = frame(transform, sample, range(300))
    above = centre[:, 1] < 75
    assert above.mean() == pytest.approx(0.7, abs=0.08)
    # Centre and 1.5 times the extent of the chosen points: 40 x 30, and 20 x 30 in the aspect 3:4.
    np.testing.assert_allclose(centre[above], np.tile([60, 45], (above.sum(), 1)), atol=1e-3)
    np.testing.assert_allclose(extent[above], 60, rtol=1e-4)
    np.testing.assert_allclose(centre[~above], np.tile([60, 105], ((~above).sum(), 1)), atol=1e-3)
    np.testing.assert_allclose(extent[~above], 45 * 0.75, rtol=1e-4)

    def shows(labelled: list[int]) -> list[float]:
        case = sample | {"visibility": np.isin(np.arange(308), labelled).astype(np.uint8)}
        return frame(transform, case, range(20))[0][:, 1].round(1).tolist()

    assert shows(upper[:4] + lower[:4]) == [75.0] * 20  # eight points are too few for a half
    assert set(shows(upper[:10] + lower[:2])) == {45.0}  # two of the lower half are too few for it
    assert set(shows(upper[:1] + lower[:9])) == {105.0}
    face = [i for i in range(308) if points.keypoints[i].half_body is None][:20]
    sample["keypoints"][face] = [60, 40]
    assert shows(face) == [75.0] * 20  # points of neither half


def test_steps_happen_as_often_as_published(chart, monkeypatch):
    calls = {}
    for name in ("distort_colours", "box_blur", "median_blur", "cut_hole"):

        def spy(image, rng, name=name):
            calls[name] = calls.get(name, 0) + 1
            return image

        monkeypatch.setattr(photometric, name, spy)
    transform, sample, count = PoseTrainTransform((16, 12)), person(chart), 1500
    crops = np.array([transform(sample, np.random.default_rng(seed))["crop"] for seed in range(count)])
    observed = {
        "flip": (np.linalg.det(crops[:, :2, :2]) < 0).mean(),
        "rotate": (np.abs(crops[:, 0, 1]) > 1e-6).mean(),
        "photometric": calls["distort_colours"] / count,
        "blur": calls["box_blur"] / count,
        "median": calls["median_blur"] / count,
        "hole": calls["cut_hole"] / count,
    }
    for name, probability in (
        ("flip", 0.5), ("rotate", 0.6), ("photometric", 0.8), ("blur", 0.1), ("median", 0.1), ("hole", 1.0)
    ):  # fmt: skip
        bound = 4.5 * (probability * (1 - probability) / count) ** 0.5
        assert abs(observed[name] - probability) <= bound, name
    assert PoseTrainTransform.published["half_body"] == PoseTrainTransform.published["shift"] == 0.3


def test_layout(chart):
    item = PoseTrainTransform(SIZE)(person(chart), np.random.default_rng(3))
    layout = {name: (value.dtype, value.shape) for name, value in item.items() if isinstance(value, np.ndarray)}
    assert layout == {
        "image": (np.uint8, (3, *SIZE)),
        "keypoints": (np.float32, (308, 2)),
        "visibility": (np.uint8, (308,)),
        "crop": (np.float32, (3, 3)),
        "box": (np.float32, (4,)),
        "source_size": (np.int64, (2,)),
    }
    assert item["key"] == "person" and item["person_id"] == 7 and item["source_size"].tolist() == [150, 120]
    assert all(item[name].flags.c_contiguous for name in layout)


def test_evaluation_keeps_the_source_keypoints(chart):
    sample = person(chart)
    item = PoseEvalTransform(SIZE)(sample)
    labelled = sample["visibility"] > 0
    np.testing.assert_array_equal(item["keypoints"][labelled], sample["keypoints"][labelled])
    assert (item["keypoints"][~labelled] == 0).all()
    np.testing.assert_array_equal(item["visibility"], sample["visibility"])
    np.testing.assert_array_equal(item["box"], sample["box"])
    np.testing.assert_allclose(item["area"], [0.53 * 60 * 110], rtol=1e-6)
    assert PoseEvalTransform(SIZE)(sample | {"area": 1234.5})["area"] == np.float32(1234.5)
    assert chart.error(item["image"], item["crop"], rim=2) < 3
    bare = PoseEvalTransform(SIZE)({name: sample[name] for name in ("key", "image", "box")} | {"iscrowd": True})
    assert bare["keypoints"].shape == (308, 2) and not bare["keypoints"].any() and not bare["visibility"].any()
    assert bare["iscrowd"] is True and item["iscrowd"] is False
    picture = PoseEvalTransform(SIZE)({"key": "p", "image": sample["image"]})
    assert "keypoints" not in picture and picture["box"].tolist() == [0, 0, 120, 150]


def test_a_missing_box_is_that_of_the_keypoints(chart):
    sample = person(chart)
    del sample["box"]
    labelled = sample["keypoints"][sample["visibility"] > 0]
    box = PoseEvalTransform(SIZE)(sample)["box"]
    np.testing.assert_allclose(box, [*labelled.min(axis=0), *labelled.max(axis=0)], rtol=1e-6)


def test_what_is_rejected(chart):
    sample, rng = person(chart), np.random.default_rng(0)
    transform = PoseTrainTransform(SIZE)
    with pytest.raises(SampleRejected, match=r"it has 17 keypoints, .* has 308: see data\.schema"):
        transform(person(chart, 17), rng)
    wrong = sample | {"visibility": np.full(308, 2, np.uint8)}
    with pytest.raises(SampleRejected, match="a labelled keypoint is no number"):
        transform(wrong, rng)
    with pytest.raises(SampleRejected, match="no box"):
        transform(sample | {"box": np.array([5, 5, 5, 9], np.float32)}, rng)
    with pytest.raises(SampleRejected, match="0 labelled keypoints in the crop, at least 1"):
        transform(sample | {"visibility": np.zeros(308, np.uint8)}, rng)
    with pytest.raises(SampleRejected, match="no box"):
        transform({name: sample[name] for name in ("key", "image", "keypoints")} | {"visibility": np.zeros(308)}, rng)
    with pytest.raises(ValueError, match="'person': the person has no box"):
        PoseEvalTransform(SIZE)(sample | {"box": np.zeros(4, np.float32)})
    with pytest.raises(SampleRejected, match="the person has no keypoints"):
        transform({name: sample[name] for name in ("key", "image", "box")}, rng)
    with pytest.raises(SampleRejected, match="its person 7 is a crowd"):
        transform(sample | {"iscrowd": True}, rng)
    with pytest.raises(SchemaError, match="no schema 21"):
        PoseTrainTransform(SIZE, schema=21)
