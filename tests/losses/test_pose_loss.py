"""Losses of heatmaps: the release's numbers (spec 10.2), both forms, and persons without labels."""

from __future__ import annotations

import math

import pytest
import torch

from s2kit.losses.pose import PoseLoss

WEIGHTS = torch.tensor([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])


def wave(frequency: float) -> torch.Tensor:
    return (0.5 * torch.sin(frequency * torch.arange(2 * 4 * 8 * 6, dtype=torch.float64))).float().reshape(2, 4, 8, 6)


def test_published_numbers():
    losses = PoseLoss()(wave(0.41), wave(0.23), WEIGHTS)
    assert losses["loss"].item() == pytest.approx(1.49597096, rel=1e-5)
    assert losses["mse"].item() == pytest.approx(0.149597096, rel=1e-5)
    hard = PoseLoss("paper", hard_keypoints=2)(wave(0.41), wave(0.23), WEIGHTS)
    assert hard["hard"].item() == pytest.approx(0.24692520, rel=1e-5)
    assert hard["loss"].item() == pytest.approx(2.4692520, rel=1e-5)


def test_hard_keypoints_keypoint_by_keypoint():
    weights = torch.tensor([[0.5, 2.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    prediction, target = wave(0.41), wave(0.23)
    expected = []
    for person in range(2):
        errors = [
            float(((weights[person, k] * (prediction[person, k] - target[person, k])) ** 2).mean()) for k in range(4)
        ]
        expected.append(sum(sorted(errors)[-3:]) / 3)
    loss = PoseLoss("paper", {"hard": 3.0}, hard_keypoints=3)(prediction, target, weights)
    assert loss["loss"].item() == pytest.approx(3 * sum(expected) / 2, rel=1e-5)
    every = PoseLoss("paper", hard_keypoints=308)(prediction, target, weights.clamp(max=1).round())
    release = PoseLoss()(prediction, target, weights.clamp(max=1).round())
    assert every["hard"].item() == pytest.approx(release["mse"].item(), rel=1e-6)


@pytest.mark.parametrize("form", ["release", "paper"])
def test_gradients(form):
    prediction = wave(0.41).double().requires_grad_()
    loss = PoseLoss(form, hard_keypoints=2)
    assert torch.autograd.gradcheck(lambda p: loss(p, wave(0.23), WEIGHTS)["loss"], prediction)


@pytest.mark.parametrize("form", ["release", "paper"])
def test_without_labels_the_loss_is_zero_and_has_a_gradient(form):
    prediction = wave(0.41).requires_grad_()
    loss = PoseLoss(form)(prediction, wave(0.23), torch.zeros(2, 4))["loss"]
    loss.backward()
    assert loss.item() == 0
    assert prediction.grad.abs().max() == 0


@pytest.mark.parametrize("form", ["release", "paper"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_prediction_that_is_not_finite_shows(form, value):
    prediction = wave(0.41)
    prediction[0, 1, 3, 3] = value
    assert not PoseLoss(form)(prediction, wave(0.23), WEIGHTS)["loss"].isfinite()


def test_half_precision_and_other_sizes():
    target = wave(0.23)
    exact = PoseLoss()(wave(0.41).bfloat16(), target, WEIGHTS)["loss"]
    assert exact.dtype == torch.float32
    assert exact.item() == pytest.approx(1.496, rel=0.02)
    small = torch.full((2, 4, 4, 3), 0.25)
    assert PoseLoss()(small, target, WEIGHTS)["mse"].item() == pytest.approx(
        PoseLoss()(torch.full((2, 4, 8, 6), 0.25), target, WEIGHTS)["mse"].item(), rel=1e-6
    )


def test_errors():
    with pytest.raises(ValueError, match=r"form must be one of \['paper', 'release'\], got 'ohkm'"):
        PoseLoss("ohkm")
    with pytest.raises(ValueError, match=r"unknown terms \['hard'\]; the release form has \['mse'\]"):
        PoseLoss(weights={"hard": 1.0})
    with pytest.raises(ValueError, match="hard_keypoints must be at least 1, got 0"):
        PoseLoss("paper", hard_keypoints=0)
    with pytest.raises(ValueError, match=r"weights \(B, K\), got .*\(2, 4, 8, 6\) and \(2, 3\)"):
        PoseLoss()(wave(0.41), wave(0.23), WEIGHTS[:, :3])
