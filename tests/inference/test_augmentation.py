"""Mirrors and scales at test time: of a network that is always right they change nothing, for every task."""

import numpy as np
import pytest
import torch

from s2kit.inference.augmentation import predict_output, scaled_size
from s2kit.tasks import PointmapTask

DENSE = {"NormalsOracle": 0.02, "AlbedoOracle": 0.01, "MattingOracle": 0.01, "PointmapOracle": 0.02}


def values_of(prediction) -> np.ndarray:
    return getattr(prediction, "points", prediction)


def test_scaled_inputs_have_whole_tokens():
    assert scaled_size((1024, 768), 0.75, 16) == (768, 576)
    assert scaled_size((64, 48), 1.25, 8) == (80, 64)
    assert scaled_size((64, 48), 0.1, 16) == (16, 16)


def truth_of(name: str, picture: np.ndarray) -> np.ndarray:
    r, g, b = (picture[..., channel] / 255 for channel in range(3))
    if name == "NormalsOracle":
        normals = np.stack([2 * b - 1, 2 * g - 1, np.ones_like(r)], axis=-1)
        return normals / np.linalg.norm(normals, axis=-1, keepdims=True)
    if name == "PointmapOracle":
        return np.stack([b - 0.5, g - 0.5, 1 + r], axis=-1)
    return np.stack([r, g, b] if name == "AlbedoOracle" else [r, g, b, g], axis=-1)


@pytest.mark.parametrize("size", [(96, 72), (80, 130)])
@pytest.mark.parametrize("name", DENSE)
def test_mirrors_and_scales_change_nothing_of_a_dense_answer(oracles, name, size):
    picture = oracles.ramps(*size)
    task = oracles.make(getattr(oracles, name))
    task.size = size
    truth = truth_of(name, picture)
    inner = np.s_[3:-3, 3:-3]  # the padding of the input shines through into the last pixels
    for options in ({}, {"flip": True}, {"scales": (0.75, 1, 1.5)}, {"flip": True, "scales": (0.5, 1.25)}):
        found = values_of(task.predict(picture, **options)[0])
        assert np.abs(found - truth)[inner].max() < DENSE[name], options
    plain, mirrored = (values_of(task.predict(picture, flip=flip)[0]) for flip in (False, True))
    np.testing.assert_allclose(plain, mirrored, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"scales": (0.75, 1, 1.5)}, {"flip": True, "scales": (1.25,)}])
def test_mirrors_and_scales_keep_left_and_right_apart(oracles, options):
    picture = oracles.ramps(96, 72)
    task = oracles.make(oracles.SegmentationOracle)
    found = task.predict(picture, **options)[0]
    red = picture[..., 0] / 255
    sure = np.abs(red - 0.5) > 0.03
    truth = np.where(red > 0.5, task.classes.ids["Left_Hand"], task.classes.ids["Right_Hand"])
    assert sure.mean() > 0.8
    np.testing.assert_array_equal(found[sure], truth[sure])


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"scales": (0.75, 1, 1.3)}, {"flip": True, "scales": (1.4,)}])
def test_mirrors_and_scales_keep_keypoints_in_their_place(oracles, options):
    """Scaled inputs of 8-pixel tokens have another aspect than the base's, which must not move a keypoint."""
    picture = oracles.ramps(130, 110)
    picture[..., :2] = 0
    picture[30:46, 60:76, 0] = 255
    picture[70:86, 24:40, 1] = 255
    task = oracles.make(oracles.PoseOracle)
    (people,) = task.predict(picture, boxes=np.array([[10, 5, 95, 120]]), **options)
    assert people.shape == (1, 17, 3)
    left, right = (people[0, task.keypoint_set.ids[name]] for name in ("left_eye", "right_eye"))
    # Network pixels are 2.4 of the picture's.
    np.testing.assert_allclose(left[:2], [68, 38], atol=0.5)
    np.testing.assert_allclose(right[:2], [32, 78], atol=0.5)


def test_heatmaps_of_two_sizes_lie_over_each_other(oracles):
    """Each cell of the larger one holds its own place, in the larger input's pixels; a change of aspect included."""
    task, sample = oracles.make(oracles.PoseOracle), {"key": "", "image": oracles.ramps(64, 48)}
    base = task.picture_transform()(sample)
    item = task.scaled_item(sample, base, (80, 64))
    x = torch.arange(32) * 63 / 31 + 0.5
    found = task.rescale(x.expand(1, 1, 40, 32), {}, torch.zeros(1, 1, 32, 24), {})
    moved = item["crop"].astype(float) @ np.linalg.inv(base["crop"].astype(float))
    place = torch.arange(24) * 47 / 23 + 0.5
    truth = moved[0, 0] * place + moved[0, 2]
    torch.testing.assert_close(found, truth.float().expand(1, 1, 32, 24), atol=1e-3, rtol=0)


def test_the_points_of_other_sizes_need_no_scale(oracles):
    task = oracles.make(PointmapTask)
    image = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        plain, alone, larger = task(image), task.forward_scaled(image), task.forward_scaled(torch.randn(2, 3, 96, 72))
    assert torch.equal(plain.pointmap, alone.pointmap)
    assert alone.scale.isnan().all()
    assert larger.pointmap.shape == (2, 3, 96, 72)


def test_all_passes_count_alike(oracles):
    """The mean over sizes and mirrors, by hand."""
    task = oracles.make(oracles.AlbedoOracle)
    task.answer = lambda rgb, sign: rgb * 0 + rgb.shape[-1] + (sign < 0)[:, None] * 6.0
    wide = torch.arange(48, dtype=torch.uint8).expand(1, 3, 64, 48)
    base = {"image": wide, "crop": torch.eye(3)[None], "source_size": torch.tensor([[64, 48]])}
    double = {
        "image": wide.repeat_interleave(2, 2).repeat_interleave(2, 3),
        "crop": torch.diag(torch.tensor([2.0, 2, 1])),
    }
    double = {**base, **double, "crop": double["crop"][None]}
    with torch.no_grad():
        found = predict_output(task, [base, double], flip=True)
    torch.testing.assert_close(found, torch.full_like(found, (48 + 54 + 96 + 102) / 4))
