"""sRGB and linear light, relighting, compositing: against known values."""

import numpy as np
import pytest

from s2kit.inference.light import composite, relight, straight, to_bytes, to_linear, to_srgb


def test_known_values_of_srgb():
    """Middle gray reflects 21.4 % of the light; below 0.04045 the curve is a line."""
    assert to_linear(np.array([0.0, 0.5, 1.0, 0.04])) == pytest.approx([0, 0.21404114, 1, 0.04 / 12.92])
    levels = np.arange(256) / 255
    np.testing.assert_allclose(to_srgb(to_linear(levels)), levels, atol=1e-7)
    assert (to_bytes(to_srgb(to_linear(levels))) == np.arange(256)).all()
    assert to_bytes(np.array([-1.0, 2.0])).tolist() == [0, 255]


def test_compositing_is_done_in_linear_light():
    """Half of white over black is 188 of 255, not 128."""
    half = composite(np.full((1, 1, 3), 0.5), np.full((1, 1), 0.5), np.zeros(3))
    assert to_bytes(half).ravel().tolist() == [188] * 3
    # Half of red over green.
    red = np.array([[[0.5, 0, 0]]])
    mixed = composite(red, np.full((1, 1), 0.5), np.array([0.0, 1.0, 0.0]))
    assert to_bytes(mixed).ravel().tolist() == [188, 188, 0]


def test_compositing_keeps_what_is_all_one_or_the_other():
    rng = np.random.default_rng(0)
    colours, background = rng.random((2, 4, 5, 3))
    alpha = np.zeros((4, 5))
    alpha[:2] = 1
    result = composite(colours * alpha[..., None], alpha, background)
    np.testing.assert_allclose(result[:2], colours[:2], atol=1e-7)
    np.testing.assert_allclose(result[2:], background[2:], atol=1e-7)


def test_straight_colours():
    alpha = np.array([[0.0, 0.25, 1.0]])
    colours = np.array([[[0.2, 0.4, 0.8]] * 3])
    np.testing.assert_allclose(straight(colours * alpha[..., None], alpha)[0, 1:], colours[0, 1:])
    assert straight(np.full((1, 1, 3), 0.3), np.zeros((1, 1))).max() == 0


def test_relighting():
    """A surface that faces the light has its own colour, one at 60 degrees half of the light, one turned away none."""
    albedo = np.full((1, 3, 3), 0.5)
    normals = np.array([[[1.0, 0, 0], [0.5, 0, 0.75**0.5], [-1.0, 0, 0]]])
    dark = relight(albedo, normals, (2.0, 0.0, 0.0), ambient=0.0)
    light = to_linear(0.5)
    assert dark[0, :, 0] == pytest.approx([0.5, float(to_srgb(light / 2)), 0])
    soft = relight(albedo, normals, (2.0, 0.0, 0.0), ambient=0.2)
    assert soft[0, :, 0] == pytest.approx([0.5, float(to_srgb(light * 0.6)), float(to_srgb(light * 0.2))])
