"""Segmentation: labels stay on what they name, left and right swap, and the background can be replaced."""

import cv2
import numpy as np
import pytest

from data_modules.transforms import EvalTransform, SampleRejected, SegmentationTrainTransform, photometric
from data_modules.transforms import geometry as g
from data_modules.transforms.segmentation import segmentation_labels, transfer_colours
from s2kit.schemas import load_class_list

SIZE = (128, 96)
PLAIN = dict.fromkeys(SegmentationTrainTransform.published, 0.0)
CASES = {
    "stretch": {},
    "resize": {"resize": 1.0},
    "flip": {"flip": 1.0},
    "rotation": {"rotate": 1.0},
    "crop": {"resize": 1.0, "crop": 1.0},
    "person": {"person_crop": True},
    "all": {"resize": 1.0, "crop": 0.5, "rotate": 0.5, "flip": 0.5, "person_crop": True},
}


def person(chart, schema: str = "sapiens2-29") -> dict:
    """Squares of every class on a background, so that left and right stand at random places."""
    count = len(load_class_list(schema))
    parts = np.zeros(chart.size, np.uint8)
    for index, label in enumerate(np.random.default_rng(1).permutation(np.r_[1:count, 255])):
        row, column = divmod(index, 6)
        parts[20 + 18 * row : 38 + 18 * row, 10 + 17 * column : 27 + 17 * column] = label
    box = np.array([10, 20, 110, 120], np.float32)
    return {"key": "squares", "image": chart.image(), "parts": parts, "box": box}


@pytest.mark.parametrize("schema", ["sapiens2-29", "sapiens1-28", "lip-20"])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_label_then_transform_is_transform_then_label(chart, options, schema):
    transform, sample = SegmentationTrainTransform(SIZE, schema=schema, **{**PLAIN, **options}), person(chart, schema)
    classes = load_class_list(schema)
    ids = {name.lower(): index for name, index in classes.ids.items()}
    mirrors = 0
    for seed in range(12):
        item = transform(sample, np.random.default_rng(seed))
        labels = sample["parts"]
        if np.linalg.det(item["crop"][:2, :2]) < 0:
            mirrors += 1
            swapped = labels.copy()
            for name, index in ids.items():  # by name
                other = name.replace("left", "RIGHT").replace("right", "left").lower()
                swapped[labels == index] = ids[other]
            labels = swapped
        inside = chart.inside(chart.sources(item["crop"], SIZE))
        expected = chart.nearest(labels, item["crop"], SIZE, 255)
        assert (item["labels"] != expected)[inside].mean() < 0.003
        assert set(np.unique(item["labels"][~inside])) <= {0, 255}
        assert (item["image"][:, ~inside] == 0).all()
        # A resize that shrinks and a stretch that enlarges again blur: up to 1 / 0.4 of a step between pixels.
        assert chart.error(item["image"], item["crop"], rim=4) < (9 if options.get("resize") else 4)
    assert mirrors == 12 * options.get("flip", 0) or (options.get("flip") == 0.5 and 0 < mirrors < 12)


def test_a_flip_is_the_mirror_image_to_the_last_column(chart):
    sample = person(chart)
    plain, flipped = (
        SegmentationTrainTransform(SIZE, **PLAIN | {"flip": flip})(sample, np.random.default_rng(0)) for flip in (0, 1)
    )
    np.testing.assert_array_equal(flipped["image"], plain["image"][:, :, ::-1])
    swapped = load_class_list(29).flip_table[plain["labels"][:, ::-1]]
    np.testing.assert_array_equal(flipped["labels"], swapped)
    assert (swapped != plain["labels"][:, ::-1]).any()


def test_padding_of_a_crop_is_ignored_and_corners_are_background(chart):
    sample = person(chart)
    sample["parts"][sample["parts"] == 0] = 1  # now only padding can be 0
    turned = SegmentationTrainTransform(SIZE, **PLAIN | {"rotate": 1.0})
    padded = SegmentationTrainTransform(SIZE, **PLAIN | {"crop": 1.0, "resize": 1.0}, scale=(0.4, 0.6))
    for seed in range(8):
        item = turned(sample, np.random.default_rng(seed))
        outside = ~chart.inside(chart.sources(item["crop"], SIZE))
        assert outside.any() and (item["labels"][outside] == 0).all() and (item["labels"][~outside] != 0).all()
        item = padded(sample, np.random.default_rng(seed))
        outside = ~chart.inside(chart.sources(item["crop"], SIZE))
        assert outside[-10:].all() and outside[:, -10:].all() and not outside[:40, :30].any()
        assert (item["labels"][outside] == 255).all()


def view_scales(transform, sample, count: int) -> np.ndarray:
    return np.array([transform(sample, np.random.default_rng(seed))["crop"][:2, :2] for seed in range(count)])


def test_crops_have_the_published_sizes(chart):
    """A crop has the network's size, of a picture that was fitted into 0.4 to 2 times the network's size."""
    transform = SegmentationTrainTransform(SIZE, **PLAIN | {"resize": 1.0, "crop": 1.0})
    scales = view_scales(transform, person(chart), 300)
    fit = min(128 / 150, 96 / 120)
    factor = scales[:, 0, 0] / fit
    np.testing.assert_allclose(scales[:, 0, 0], scales[:, 1, 1], rtol=0.02)  # whole pixels
    assert 0.39 < factor.min() < 0.44 and 1.96 < factor.max() < 2.01 and abs(np.median(factor) - 1.2) < 0.1
    without = view_scales(SegmentationTrainTransform(SIZE, **PLAIN | {"resize": 1.0}), person(chart), 5)
    np.testing.assert_allclose(without, np.tile(np.diag([96 / 120, 128 / 150]), (5, 1, 1)), rtol=1e-6)


def test_a_resize_that_shrinks_loses_resolution_and_one_that_enlarges_does_not(chart):
    stripes = np.zeros((128, 96, 3), np.uint8)
    stripes[:, ::4] = stripes[:, 1::4] = 200  # two pixels wide
    sample = {"key": "k", "image": stripes, "parts": np.tile(np.uint8([[1, 2]]), (128, 48))}
    contrast = {}
    for scale in (0.4, 1.0, 2.0):
        transform = SegmentationTrainTransform(SIZE, **PLAIN | {"resize": 1.0}, scale=(scale, scale))
        contrast[scale] = transform(sample, np.random.default_rng(0))["image"].std()
    assert contrast[0.4] < 0.45 * contrast[1.0] and contrast[2.0] == contrast[1.0] == stripes.std()


def test_crops_that_show_too_little_are_drawn_again(chart):
    """The only person is a small square: a crop that is to show two classes must find it."""
    parts = np.zeros(chart.size, np.uint8)
    parts[100:140, 70:110] = 22
    sample = {"key": "k", "image": chart.image(), "parts": parts}
    options = PLAIN | {"resize": 1.0, "crop": 1.0}
    transform = SegmentationTrainTransform(SIZE, **options, scale=(3.0, 3.0), min_foreground=0.0)
    shares = []
    for seed in range(200):
        labels = transform(sample, np.random.default_rng(seed))["labels"]
        shares.append(max((labels == value).mean() for value in (0, 22)))
    # Without another try, a crop of a third of each side has such a mixture in one of eight cases.
    assert np.mean(np.array(shares) < 0.78) > 0.6


def test_the_background_is_replaced_behind_people_only(chart, tmp_path):
    cv2.imwrite(str(tmp_path / "green.png"), np.full((40, 60, 3), (0, 200, 0), np.uint8))
    sample = person(chart)
    transform = SegmentationTrainTransform(chart.size, **PLAIN | {"background": 1.0}, backgrounds=tmp_path)
    item = transform(sample, np.random.default_rng(0))
    image, behind = item["image"].transpose(1, 2, 0), sample["parts"] == 0
    assert (image[behind] == [0, 200, 0]).all()
    assert (image[~behind] != [0, 200, 0]).any(axis=1).mean() > 0.9  # ignored pixels are no background
    np.testing.assert_array_equal(item["labels"], sample["parts"])
    wild = transform(sample | {"meta": {"in_the_wild": True}}, np.random.default_rng(0))
    np.testing.assert_array_equal(wild["image"].transpose(1, 2, 0), sample["image"])
    without = SegmentationTrainTransform(chart.size, **PLAIN | {"background": 1.0})
    np.testing.assert_array_equal(without(sample, np.random.default_rng(0))["image"], wild["image"])


def test_a_replaced_background_fills_the_corners_but_not_a_crops_padding(chart, tmp_path):
    cv2.imwrite(str(tmp_path / "green.png"), np.full((40, 60, 3), (0, 200, 0), np.uint8))
    options = PLAIN | {"background": 1.0, "rotate": 1.0, "crop": 1.0, "resize": 1.0}
    transform = SegmentationTrainTransform(SIZE, **options, backgrounds=tmp_path, scale=(0.5, 0.7))
    for seed in range(6):
        item = transform(person(chart), np.random.default_rng(seed))
        image, inside = item["image"].transpose(1, 2, 0), chart.inside(chart.sources(item["crop"], SIZE))
        padding = ~inside & (item["labels"] == 255)
        assert padding.any() and (image[padding] == 0).all()
        assert (image[item["labels"] == 0] == [0, 200, 0]).all()


def test_colours_take_mean_and_deviation_of_the_target():
    rng = np.random.default_rng(0)
    image = np.clip(rng.normal([90, 140, 120], [20, 15, 25], (60, 60, 3)), 0, 255).astype(np.uint8)
    target = np.clip(rng.normal([150, 120, 100], [10, 12, 8], (60, 60, 3)), 0, 255).astype(np.uint8)
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:50] = True
    changed = transfer_colours(image, mask, target)
    np.testing.assert_array_equal(changed[~mask], image[~mask])
    lab, wanted = (cv2.cvtColor(picture, cv2.COLOR_RGB2Lab).astype(float) for picture in (changed, target))
    np.testing.assert_allclose(lab[mask].mean(axis=0), wanted.mean(axis=(0, 1)), atol=1.5)
    np.testing.assert_allclose(lab[mask].std(axis=0), wanted.std(axis=(0, 1)), atol=1.5)


def test_steps_happen_as_often_as_published(chart, monkeypatch):
    calls = {}
    for name in ("distort_colours", "blur", "add_noise"):

        def spy(image, rng, name=name):
            calls[name] = calls.get(name, 0) + 1
            return image

        monkeypatch.setattr(photometric, name, spy)
    transform, sample, count = SegmentationTrainTransform((32, 24), min_foreground=0.0), person(chart), 1500
    crops = np.array([transform(sample, np.random.default_rng(seed))["crop"] for seed in range(count)])
    plain = SegmentationTrainTransform((32, 24), **PLAIN)(sample, np.random.default_rng(0))["crop"]
    upright = crops[np.abs(crops[:, 0, 1]) < 1e-6]
    observed = {
        "flip": (np.linalg.det(crops[:, :2, :2]) < 0).mean(),
        "rotate": (np.abs(crops[:, 0, 1]) > 1e-6).mean(),
        "crop": (np.abs(np.abs(upright[:, 1, 1]) - plain[1, 1]) > 1e-6).mean(),
        "photometric": calls["distort_colours"] / count,
        "blur": calls["blur"] / count,
        "noise": calls["add_noise"] / count,
    }
    for name, probability in (
        ("flip", 0.5), ("rotate", 0.5), ("crop", 0.3), ("photometric", 1.0), ("blur", 0.3), ("noise", 0.3)
    ):  # fmt: skip
        bound = 4.5 * (probability * (1 - probability) / (count / 2)) ** 0.5
        assert abs(observed[name] - probability) <= bound, name
    assert SegmentationTrainTransform.published["background"] == 0.8


def test_layout_and_rejections(chart):
    sample, rng = person(chart), np.random.default_rng(3)
    item = SegmentationTrainTransform(SIZE, rotate=0, crop=0)(sample, rng)
    layout = {name: (value.dtype, value.shape) for name, value in item.items() if name != "key"}
    assert layout == {
        "image": (np.uint8, (3, *SIZE)),
        "labels": (np.int64, SIZE),
        "crop": (np.float32, (3, 3)),
        "source_size": (np.int64, (2,)),
    }
    plain = SegmentationTrainTransform(chart.size, **PLAIN)
    for count, rejected in ((179, True), (180, False)):  # 1 % of 150 x 120
        parts = np.full(chart.size, 255, np.uint8)
        parts.ravel()[:count] = 5
        parts.ravel()[-500:] = 0
        if rejected:
            with pytest.raises(SampleRejected, match=r"0\.99% of the crop is foreground, at least 1\.00% needed"):
                plain(sample | {"parts": parts}, rng)
        else:
            plain(sample | {"parts": parts}, rng)
    parts[0, 0] = 29
    for transform in (lambda case: plain(case, rng), EvalTransform(SIZE, evaluation_labels, "stretch")):
        with pytest.raises(SampleRejected, match=r"it has the label 29; .* has 0 to 28, and 255"):
            transform(sample | {"parts": parts})


def evaluation_labels(sample):
    return segmentation_labels(sample, load_class_list(29))


def test_evaluation_stretches_the_picture_and_keeps_the_labels(chart):
    sample = person(chart)
    item = EvalTransform(SIZE, evaluation_labels, "stretch")(sample)
    np.testing.assert_array_equal(item["labels"], sample["parts"])
    assert item["labels"].dtype == np.int64 and item["source_size"].tolist() == [150, 120]
    np.testing.assert_allclose(item["crop"], np.diag([96 / 120, 128 / 150, 1]), rtol=1e-6)
    assert chart.error(item["image"], item["crop"]) < 3 and chart.shown(item["image"]).all()
    assert set(EvalTransform(SIZE, evaluation_labels, "stretch")({"key": "p", "image": sample["image"]})) == {
        "key", "image", "crop", "source_size"
    }  # fmt: skip
    assert g.mirrors(item["crop"]) is False
