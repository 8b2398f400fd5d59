"""All labels of a raw sample move together, and left and right swap in a mirrored picture."""

import numpy as np
import pytest

from data_modules.transforms import geometry as g
from data_modules.transforms import warp_sample
from s2kit.schemas import load_class_list, load_keypoint_set


def full_sample(sphere) -> dict:
    sample = sphere.sample()
    parts = load_class_list(29)
    labels = np.full(sphere.size, 255, np.uint8)
    labels[sample["alpha"] > 0] = parts.ids["Left_Hand"]
    labels[:77][sample["alpha"][:77] > 0] = parts.ids["Torso"]
    keypoints, visibility = np.full((308, 2), np.nan, np.float32), np.zeros(308, np.uint8)
    points = load_keypoint_set(308)
    keypoints[points.ids["left_wrist"]], visibility[points.ids["left_wrist"]] = (30.5, 80.5), 2
    keypoints[points.ids["nose"]], visibility[points.ids["nose"]] = (58.5, 40.5), 1
    keypoints[points.ids["right_ankle"]], visibility[points.ids["right_ankle"]] = (10.5, 150.5), 2
    return sample | {
        "albedo": sample["image"],
        "parts": labels,
        "keypoints": keypoints,
        "visibility": visibility,
        "meta": {"licence": "CC0"},
    }


def test_a_flip_swaps_left_and_right(sphere):
    sample, parts, points = full_sample(sphere), load_class_list(29), load_keypoint_set(308)
    flipped = warp_sample(sample, g.flip_matrix(128), (160, 128))
    assert set(flipped) == set(sample) and flipped["meta"] == {"licence": "CC0"}
    np.testing.assert_array_equal(flipped["image"], sample["image"][:, ::-1])
    np.testing.assert_array_equal(flipped["depth"], sample["depth"][:, ::-1])
    np.testing.assert_array_equal(flipped["normals"], sample["normals"][:, ::-1] * np.float32([-1, 1, 1]))
    mirrored = sample["parts"][:, ::-1]
    expected = np.where(mirrored == parts.ids["Left_Hand"], parts.ids["Right_Hand"], mirrored)
    np.testing.assert_array_equal(flipped["parts"], expected)
    right, left = points.ids["right_wrist"], points.ids["left_wrist"]
    np.testing.assert_allclose(flipped["keypoints"][right], [128 - 30.5, 80.5])
    assert flipped["visibility"][right] == 2 and flipped["visibility"][left] == 0
    np.testing.assert_allclose(flipped["keypoints"][points.ids["nose"]], [128 - 58.5, 40.5])
    assert flipped["visibility"][points.ids["nose"]] == 1
    x0, y0, x1, y1 = sample["box"]
    np.testing.assert_allclose(flipped["box"], [128 - x1, y0, 128 - x0, y1], rtol=1e-6)
    twice = warp_sample(flipped, g.flip_matrix(128), (160, 128))
    for name in ("image", "parts", "normals", "visibility", "box", "intrinsics"):
        np.testing.assert_allclose(twice[name], sample[name], rtol=1e-6)


def test_rotation_and_scale_do_not_swap(sphere, centres):
    sample, points = full_sample(sphere), load_keypoint_set(308)
    matrix = g.scale_matrix(1.5, 1.5) @ g.rotation_matrix(20, (64, 80))
    warped = warp_sample(sample, matrix, (240, 192))
    assert set(np.unique(warped["parts"])) == set(np.unique(sample["parts"]))
    wrist = points.ids["left_wrist"]
    np.testing.assert_allclose(warped["keypoints"][wrist], g.map_points(np.array([30.5, 80.5]), matrix), rtol=1e-5)
    shown = sphere.warped(matrix, (240, 192))
    inner = np.linalg.norm(centres((240, 192)) - shown.centre, axis=-1) < 0.8 * shown.radius
    assert np.abs(warped["normals"] - shown.normals(centres((240, 192))))[inner].max() < 0.03
    assert set(np.unique(warped["depth"])) == {0, 3}  # never a blend of person and nothing
    assert 0 < ((warped["alpha"] > 0) & (warped["alpha"] < 255)).sum() < 1500  # but the coverage's rim is


def test_what_leaves_the_picture(sphere):
    sample, points = full_sample(sphere), load_keypoint_set(308)
    warped = warp_sample(sample, g.translation_matrix(-50, -20), (100, 100))
    for name in ("left_wrist", "right_ankle", "left_eye"):  # moved out, moved out, never labelled
        assert warped["visibility"][points.ids[name]] == 0
        np.testing.assert_array_equal(warped["keypoints"][points.ids[name]], [0, 0])
    np.testing.assert_allclose(warped["keypoints"][points.ids["nose"]], [8.5, 20.5])
    assert (warped["parts"][:, 78:] == 255).all() and (warped["image"][:, 78:] == 0).all()
    np.testing.assert_allclose(warped["box"], [0, 76.9 - 45 - 20, 58.3 + 45 - 50, 100], rtol=1e-5)
    np.testing.assert_allclose(warped["intrinsics"][:2, 2], [11, 63])
    assert (warp_sample(sample, g.translation_matrix(-500, 0), (100, 100))["box"] == 0).all()


def test_unknown_and_misfitting_fields_are_errors(sphere):
    sample = sphere.sample()
    with pytest.raises(KeyError, match="no rule for warping 'flow'"):
        warp_sample(sample | {"flow": np.zeros((160, 128, 2))}, np.eye(3), (160, 128))
    with pytest.raises(ValueError, match=r"'depth' has size \(80, 64\)"):
        warp_sample(sample | {"depth": np.zeros((80, 64), np.float32)}, np.eye(3), (160, 128))
