"""Matting: coverage and colour move together, and what an item says adds up to its picture."""

import cv2
import numpy as np
import pytest

from data_modules.transforms import MattingEvalTransform, MattingTrainTransform
from data_modules.transforms.compositing import composite, estimate_foreground, premultiply, straighten
from data_modules.transforms.matting import is_cutout

SIZE = (128, 96)
PLAIN = dict.fromkeys(MattingTrainTransform.published, 0.0)
CASES = {
    "stretch": {},
    "resize": {"resize": 1.0},
    "person": {"person": 1.0},
    "flip": {"flip": 1.0},
    "rotation": {"rotate": 1.0},
    "crop": {"resize": 1.0, "crop": 1.0},
    "person crop": {"person_crop": True},
    "all": {"resize": 1.0, "crop": 0.5, "rotate": 0.5, "flip": 0.5, "person": 0.5},
}
CENTRE, RADIUS, SOFT = np.array([58.0, 80.0]), 40.0, 10.0


def coverage(points: np.ndarray, soft: float = SOFT) -> np.ndarray:
    """A disc whose edge is soft over some pixels."""
    return np.clip((RADIUS - np.linalg.norm(points - CENTRE, axis=-1)) / soft + 0.5, 0, 1)


def person(chart, foreground: bool = True, soft: float = SOFT) -> dict:
    """The chart, cut out as a disc, with rubbish where it hides; without a foreground, a picture of it before grey."""
    alpha = np.rint(coverage(chart.sources(np.eye(3), chart.size), soft) * 255).astype(np.uint8)
    colours = chart.image()
    sample = {"key": "disc", "image": composite(colours, alpha, np.full_like(colours, 90)), "alpha": alpha}
    if foreground:
        hidden = np.random.default_rng(0).integers(0, 256, colours.shape, np.uint8)
        sample["image"] = np.where(alpha[..., None] > 0, colours, hidden)
        sample["foreground"] = np.where(alpha[..., None] > 0, colours, 0)
    return sample


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_alpha_and_foreground_follow_the_geometry(chart, options):
    transform, sample = MattingTrainTransform(SIZE, **{**PLAIN, "composite": 1.0, **options}), person(chart)
    for seed in range(10):
        item = transform(sample, np.random.default_rng(seed))
        points = chart.sources(item["crop"], SIZE)
        inside = chart.inside(points, 3)
        alpha, expected = item["alpha"][0], coverage(points) * chart.inside(points)
        # A resize to 0.4 and back is up to 1.3 source pixels off; the edge is soft over ten.
        assert np.abs(alpha - expected)[inside].max() < (0.13 if options.get("resize") else 0.06)
        assert (alpha[~chart.inside(points, -1)] == 0).all()
        assert item["valid"].all()
        straight = item["foreground"] / np.maximum(alpha, 1e-3)
        colour = (chart.colours(points) / 255).transpose(2, 0, 1)
        solid = inside & (alpha > 0.1)
        assert np.abs(straight - colour)[:, solid].max() < 0.06  # no hidden colour bleeds in
        assert (item["foreground"][:, alpha == 0] == 0).all()


def test_a_composited_item_adds_up_to_its_picture(chart, tmp_path):
    """With photometric changes, too: foreground and background change together, and then they are blended."""
    cv2.imwrite(str(tmp_path / "blue.png"), np.full((40, 60, 3), (220, 40, 10), np.uint8))
    for seed in range(12):
        transform = MattingTrainTransform(SIZE, backgrounds=tmp_path, jpeg=0.0, photometric=float(seed % 2))
        item = transform(person(chart), np.random.default_rng(seed))
        image, alpha = item["image"].transpose(1, 2, 0).astype(float), item["alpha"][0]
        assert (alpha == 0).any() and item["valid"].all()
        behind = image[alpha == 0]
        assert (behind == behind[0]).all()
        if seed % 2 == 0:
            assert behind[0].tolist() == [10, 40, 220]
        light = 1 - alpha[..., None]
        straight = item["foreground"].transpose(1, 2, 0) / np.maximum(alpha[..., None], 1e-6)

        def to_light(value):
            return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)

        blended = to_light(straight) * (1 - light) + to_light(behind[0] / 255) * light
        seen = np.where(blended <= 0.0031308, 12.92 * blended, 1.055 * blended ** (1 / 2.4) - 0.055)
        assert np.abs(image / 255 - seen).max() < 0.004


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_without_a_foreground_the_rim_is_not_supervised(chart, options):
    transform, sample = MattingTrainTransform(SIZE, **{**PLAIN, "composite": 1.0, **options}), person(chart, False)
    for seed in range(6):
        item = transform(sample, np.random.default_rng(seed))
        alpha, valid = np.rint(item["alpha"][0] * 255), item["valid"][0]
        np.testing.assert_array_equal(valid, (alpha >= 254) | (alpha == 0))
        opaque = alpha >= 254
        np.testing.assert_allclose(item["foreground"][:, opaque] * 255, item["image"][:, opaque], atol=1e-3)
        assert (item["foreground"][:, ~opaque] == 0).all()
        outside = ~chart.inside(chart.sources(item["crop"], SIZE), -1)
        assert (item["image"][:, outside] == 255).all()  # white
        points = chart.sources(item["crop"], SIZE)
        covered = chart.inside(points, 3) & (coverage(points) > 0.999)
        if covered.any() and not options.get("resize"):
            error = item["image"].transpose(1, 2, 0)[covered] - chart.colours(points)[covered]
            assert np.abs(error).max() < 5


def test_a_photograph_with_known_colours_keeps_its_background(chart):
    photograph = person(chart, False) | {"foreground": person(chart)["foreground"]}
    assert is_cutout(person(chart)) and not is_cutout(photograph) and not is_cutout(person(chart, False))
    item = MattingTrainTransform(chart.size, **PLAIN | {"composite": 1.0})(photograph, np.random.default_rng(0))
    np.testing.assert_array_equal(item["image"].transpose(1, 2, 0), photograph["image"])
    expected = chart.image() * (photograph["alpha"][..., None] / 255**2)
    assert np.abs(item["foreground"].transpose(1, 2, 0) - expected).max() < 0.005 and item["valid"].all()


def test_recomposited_pictures_are_wholly_supervised(chart, tmp_path):
    cv2.imwrite(str(tmp_path / "blue.png"), np.full((40, 60, 3), (220, 40, 10), np.uint8))
    options = PLAIN | {"recomposite": 1.0}
    item = MattingTrainTransform(chart.size, backgrounds=tmp_path, **options)(
        person(chart, False, soft=3.0), np.random.default_rng(0)
    )
    assert item["valid"].all()
    assert (item["image"][:, item["alpha"][0] == 0].T == [10, 40, 220]).all()
    # The estimate is close to the colours that the picture was made of, rim included.
    alpha = item["alpha"][0]
    straight = (item["foreground"] / np.maximum(alpha, 1e-3)).transpose(1, 2, 0)
    true = chart.image() / 255
    error = np.abs(straight - true)[alpha > 0.3]
    assert error.max() < 0.08 and error.mean() < 0.005


def test_foreground_estimation(chart):
    sample = person(chart, False, soft=3.0)
    estimate = estimate_foreground(sample["image"], sample["alpha"])
    alpha, true = sample["alpha"], chart.image().astype(float)
    np.testing.assert_array_equal(estimate[alpha == 255], sample["image"][alpha == 255])
    assert (estimate[alpha == 0] == 0).all()
    rim = (alpha > 25) & (alpha < 255)
    before = np.abs(sample["image"][rim] - true[rim]).mean()
    after = np.abs(estimate[rim] - true[rim]).mean()
    assert before > 20 and after < 6
    assert (estimate_foreground(sample["image"], np.zeros_like(alpha)) == 0).all()


def test_premultiplication_and_compositing():
    rng = np.random.default_rng(0)
    colours, behind = rng.integers(0, 256, (2, 20, 30, 3), np.uint8)
    alpha = np.tile(np.r_[0, 0, np.linspace(1, 254, 26).astype(int), 255, 255].astype(np.uint8), (20, 1))
    multiplied = premultiply(colours, alpha)
    np.testing.assert_array_equal(multiplied, np.rint(colours * (alpha[..., None] / 255.0)))
    again = straighten(multiplied, alpha).astype(int)
    enough = alpha > 127
    assert np.abs(again - colours)[enough].max() <= 1 and (again[alpha == 0] == 0).all()
    blended = composite(colours, alpha, behind)
    np.testing.assert_array_equal(blended[:, :2], behind[:, :2])
    np.testing.assert_array_equal(blended[:, -2:], colours[:, -2:])
    # Half of white light over black is not grey 128 but 188.
    half = composite(np.full((1, 1, 3), 255, np.uint8), np.array([[128]], np.uint8), np.zeros((1, 1, 3), np.uint8))
    assert half.tolist() == [[[188, 188, 188]]]


def test_the_persons_window_has_the_pictures_aspect_and_up_to_a_tenth_around(chart):
    """The disc has a box of 90 x 90 (its edge is soft to 45 pixels): margins 0 to 9, aspect 4:5."""
    transform = MattingTrainTransform(SIZE, **PLAIN | {"person": 1.0})
    heights, aspects = [], []
    for seed in range(200):
        inverse = np.linalg.inv(transform(person(chart), np.random.default_rng(seed))["crop"].astype(float))
        width, height = 96 * inverse[0, 0], 128 * inverse[1, 1]
        heights.append(height)
        aspects.append(width / height)
        assert inverse[0, 2] <= 58 - 44 and inverse[1, 2] <= 80 - 44
    np.testing.assert_allclose(aspects, 120 / 150, rtol=1e-5)
    # The width decides: 90 to 108 pixels, times 5/4.
    assert 88 * 1.25 <= min(heights) < 93 * 1.25 and 103 * 1.25 < max(heights) <= 108 * 1.25


def test_published_probabilities_and_layout(chart):
    assert MattingTrainTransform.published == {
        "composite": 1.0, "recomposite": 0.0, "person": 0.5, "resize": 1.0, "crop": 0.5, "rotate": 0.5, "flip": 0.5,
        "jpeg": 0.5, "photometric": 0.5,
    }  # fmt: skip
    item = MattingTrainTransform(SIZE)(person(chart), np.random.default_rng(3))
    layout = {name: (value.dtype, value.shape) for name, value in item.items() if name != "key"}
    assert layout == {
        "image": (np.uint8, (3, *SIZE)),
        "alpha": (np.float32, (1, *SIZE)),
        "foreground": (np.float32, (3, *SIZE)),
        "valid": (np.bool_, (1, *SIZE)),
        "crop": (np.float32, (3, 3)),
        "source_size": (np.int64, (2,)),
    }
    assert all(value.flags.c_contiguous for value in item.values() if isinstance(value, np.ndarray))


def test_nobody_in_the_picture_is_a_sample_too(chart):
    sample = person(chart, False) | {"alpha": np.zeros(chart.size, np.uint8)}
    for seed in range(10):
        item = MattingTrainTransform(SIZE)(sample, np.random.default_rng(seed))
        assert (item["alpha"] == 0).all() and (item["foreground"] == 0).all() and item["valid"].all()


def test_evaluation_keeps_source_size(chart):
    transform = MattingEvalTransform(SIZE)
    for known in (True, False):
        sample = person(chart, known)
        item = transform(sample)
        np.testing.assert_allclose(item["alpha"][0], sample["alpha"] / 255, atol=1e-6)
        assert item["image"].shape == (3, *SIZE) and item["source_size"].tolist() == [150, 120]
        if known:
            expected = sample["foreground"] * (sample["alpha"][..., None] / 255**2)
            np.testing.assert_allclose(item["foreground"].transpose(1, 2, 0), expected, atol=1e-6)
            assert item["valid"].all()
        else:
            np.testing.assert_array_equal(item["valid"][0], (sample["alpha"] >= 254) | (sample["alpha"] == 0))
    assert set(transform({"key": "p", "image": sample["image"]})) == {"key", "image", "crop", "source_size"}


def test_a_cutout_is_scored_over_a_background_that_its_key_decides(chart, tmp_path):
    sample, transform = person(chart), MattingEvalTransform(chart.size)
    first, second, other = transform(sample), transform(sample), transform(sample | {"key": "another"})
    np.testing.assert_array_equal(first["image"], second["image"])
    hidden = sample["alpha"] == 0
    assert (first["image"][:, hidden] != other["image"][:, hidden]).mean() > 0.9
    assert (first["image"][:, hidden] != sample["image"].transpose(2, 0, 1)[:, hidden]).mean() > 0.9
    shown = sample["alpha"] == 255
    np.testing.assert_array_equal(first["image"][:, shown], sample["image"].transpose(2, 0, 1)[:, shown])
    cv2.imwrite(str(tmp_path / "blue.png"), np.full((40, 60, 3), (220, 40, 10), np.uint8))
    image = MattingEvalTransform(chart.size, tmp_path)(sample)["image"]
    assert (image[:, hidden].T == [10, 40, 220]).all()
