"""Colours, blur and noise have the published parameters."""

import cv2
import numpy as np
import pytest

from data_modules.transforms import photometric


class Scripted:
    """A generator that returns what it is told."""

    def __init__(self, chances, uniforms, hue=0):
        self.chances, self.uniforms, self.hue = np.array(chances), list(uniforms), hue

    def random(self, count):
        assert count == len(self.chances)
        return self.chances

    def uniform(self, low, high):
        value = self.uniforms.pop(0)
        assert low <= value <= high
        return value

    def integers(self, low, high):
        assert (low, high) == (-18, 19)
        return self.hue


def picture(seed: int = 0, size=(40, 50)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def clipped(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255)


def test_brightness_and_contrast_are_clipped_in_between():
    image = picture()
    changed = photometric.distort_colours(image, Scripted([0, 0, 0, 1, 1], [30.0, 0.5, 1.0]))
    np.testing.assert_array_equal(changed, clipped(clipped(image + 30.0) * 0.5))
    assert changed.dtype == np.uint8


@pytest.mark.parametrize("first", [True, False])
def test_contrast_before_or_after_saturation_and_hue(first):
    image = picture()
    changed = photometric.distort_colours(image, Scripted([1, 0, 1 - first, 0, 0], [0.0, 1.5, 1.3], hue=-18))
    expected = clipped(image * 1.5).astype(np.uint8) if first else image
    hsv = cv2.cvtColor(expected, cv2.COLOR_RGB2HSV).astype(int)
    hsv[..., 0] = (hsv[..., 0] - 18) % 180
    hsv[..., 1] = clipped(hsv[..., 1] * 1.3)
    expected = cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
    expected = expected if first else clipped(expected * 1.5).astype(np.uint8)
    np.testing.assert_array_equal(changed, expected)


def test_each_colour_change_has_one_half():
    """Nothing at all happens in 1 of 16, and grey stays grey: saturation and hue leave it."""
    image, count = np.full((2, 2, 3), 90, np.uint8), 3000
    same = 0
    for seed in range(count):
        changed = photometric.distort_colours(image, np.random.default_rng(seed))
        assert (changed == changed[0, 0, 0]).all()
        same += changed[0, 0, 0] == 90
    # Without brightness and contrast: 1/4; and a little by rounding (below half a level: 1/64 of brightness).
    assert same / count == pytest.approx(0.25 + 0.25 / 64, abs=0.036)


def test_noise_is_normal_with_the_drawn_variance():
    image = np.full((256, 256, 3), 120, np.uint8)
    for seed in range(4):
        variance = np.random.default_rng(seed).uniform(5, 20)
        noise = photometric.add_noise(image, np.random.default_rng(seed)).astype(float) - 120
        assert noise.mean() == pytest.approx(0, abs=0.04)
        assert noise.var() == pytest.approx(variance + 1 / 12, rel=0.02)  # 1/12: rounding to integers
        assert (noise**4).mean() / noise.var() ** 2 == pytest.approx(3, abs=0.1)
        assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02
        assert abs(np.corrcoef(noise[:, 1:].ravel(), noise[:, :-1].ravel())[0, 1]) < 0.02


def test_noise_is_clipped_not_wrapped():
    black = photometric.add_noise(np.zeros((64, 64, 3), np.uint8), np.random.default_rng(0))
    white = photometric.add_noise(np.full((64, 64, 3), 255, np.uint8), np.random.default_rng(0))
    assert 0 < black.max() < 25 and 230 < white.min() < 255


def test_blur_spreads_three_pixels_and_keeps_the_sum():
    dot = np.zeros((7, 7, 3), np.uint8)
    dot[3, 3] = 255
    deviation = np.random.default_rng(5).uniform(0.1, 2)
    blurred = photometric.blur(dot, np.random.default_rng(5)).astype(float)
    assert (blurred[:2] == 0).all() and (blurred[:, 5:] == 0).all()
    weight = np.exp(-1 / (2 * deviation**2))
    assert blurred[3, 2, 0] / blurred[3, 3, 0] == pytest.approx(weight, abs=0.05)
    assert blurred[..., 0].sum() == pytest.approx(255, abs=8)


def test_solarise_inverts_above_128():
    values = np.array([[[0, 127, 128], [129, 200, 255]]], np.uint8)
    np.testing.assert_array_equal(photometric.solarise(values), [[[0, 127, 128], [126, 55, 0]]])


def test_down_up_sample_loses_detail_and_keeps_size_and_place():
    rows = np.linspace(0, 250, 64)[:, None, None]
    smooth = np.broadcast_to(rows, (64, 48, 3)).round().astype(np.uint8)
    detail = picture(size=(64, 48))
    for seed in range(30):
        coarse = photometric.down_up_sample(detail, np.random.default_rng(seed))
        assert coarse.shape == detail.shape and coarse.dtype == np.uint8
        horizontal = np.abs(np.diff(coarse.astype(int), axis=1)).mean()
        assert horizontal < 0.95 * np.abs(np.diff(detail.astype(int), axis=1)).mean()
        kept = photometric.down_up_sample(smooth, np.random.default_rng(seed)).astype(int)
        assert abs((kept - smooth)[10:-10].mean()) < 22  # nearest moves by up to half of a coarse pixel
    assert photometric.down_up_sample(np.zeros((1, 1, 3), np.uint8), np.random.default_rng(0)).shape == (1, 1, 3)


def test_a_drawn_distortion_treats_pictures_alike():
    distort = photometric.draw_distortion(np.random.default_rng(5))
    first, second = picture(0), picture(1)
    np.testing.assert_array_equal(distort(first), photometric.distort_colours(first, np.random.default_rng(5)))
    both = np.concatenate([first, second])
    np.testing.assert_array_equal(distort(both), np.concatenate([distort(first), distort(second)]))
    assert not np.array_equal(distort(first), first)


def test_blurs_take_squares_of_3_to_7_pixels():
    dot, edge = np.zeros((21, 21, 3), np.uint8), np.zeros((21, 21, 3), np.uint8)
    dot[10, 10] = 245
    edge[:, 8:10] = 200  # two columns wide: a median over 5 pixels removes it, one over 3 does not
    sides, kept = set(), set()
    for seed in range(40):
        blurred = photometric.box_blur(dot, np.random.default_rng(seed))
        side = int(np.sqrt((blurred[..., 0] > 0).sum()))
        sides.add(side)
        assert abs(int(blurred[10, 10, 0]) - 245 / side**2) <= 0.5
        kept.add(bool(photometric.median_blur(edge, np.random.default_rng(seed))[10, 8, 0]))
    assert sides == {3, 5, 7} and kept == {True, False}


def test_one_hole_of_20_to_40_percent_of_each_side():
    image, sizes, corners = np.full((100, 50, 3), 9, np.uint8), [], []
    for seed in range(400):
        hole = (photometric.cut_hole(image, np.random.default_rng(seed)) == 0).all(axis=2)
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        assert hole.sum() == len(rows) * len(columns)  # one rectangle
        sizes.append((len(rows), len(columns)))
        corners.append((rows[0], columns[0], rows[-1], columns[-1]))
    sizes, corners = np.array(sizes), np.array(corners)
    assert sizes.min(axis=0).tolist() == [20, 10] and sizes.max(axis=0).tolist() == [40, 20]
    assert corners[:, :2].min(axis=0).tolist() == [0, 0] and corners[:, 2:].max(axis=0).tolist() == [99, 49]
    assert (image == 9).all()


def test_jpeg_of_quality_30_to_60():
    image = cv2.GaussianBlur(picture(size=(64, 64)), (0, 0), 3)
    errors = []
    for seed in range(60):
        changed = photometric.compress(image, np.random.default_rng(seed))
        assert changed.shape == image.shape and changed.dtype == np.uint8
        errors.append(np.abs(changed.astype(int) - image).mean())
    assert min(errors) > 0 and max(errors) < 6 and max(errors) > 1.15 * min(errors)
    # Colours keep their channels: JPEG treats blue worse than green, but does not swap them.
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 255
    assert np.abs(photometric.compress(red, np.random.default_rng(0)).astype(int) - red).max() < 12
