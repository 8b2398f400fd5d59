"""Losses of normals: the release's numbers (spec 10.2), both forms, and what is never hidden."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from s2kit.losses import NormalsLoss


def wave(frequency: float, channels: int, height: int = 8, width: int = 6) -> torch.Tensor:
    i = torch.arange(2 * channels * height * width, dtype=torch.float64)
    return torch.sin(frequency * i).float().reshape(2, channels, height, width)


@pytest.fixture
def prediction() -> torch.Tensor:
    return wave(0.37, 3).requires_grad_()


@pytest.fixture
def target() -> torch.Tensor:
    return wave(0.53, 3)


@pytest.fixture
def valid() -> torch.Tensor:
    return wave(0.91, 1) > -0.3


def test_published_numbers(prediction, target, valid):
    assert int(valid.sum()) == 58
    losses = NormalsLoss()(prediction, target, valid)
    assert losses["l1"].item() == pytest.approx(2.64214253, rel=1e-5)
    assert losses["cosine"].item() == pytest.approx(1.16988659, rel=1e-5)
    assert losses["gradient"].item() == pytest.approx(13.53852844, rel=1e-5)
    total = 10 * 1.16988659 + 2.64214253 + 10 * 13.53852844
    assert losses["loss"].item() == pytest.approx(total, rel=1e-5)


def test_terms_pixel_by_pixel(prediction, target, valid):
    """Both forms against loops over pixels."""
    p, g = prediction.detach().double(), target.double()
    cosine = l1 = l2 = 0.0
    steps = {2: [], 3: []}
    for b, _, i, j in valid.nonzero().tolist():
        a, c = p[b, :, i, j], g[b, :, i, j]
        cosine += 1 - float(a @ c / (a.norm() * c.norm()))
        l1 += float((a - c).abs().sum())
        l2 += float((a - c).square().sum())
        for axis, (y, x) in {2: (i + 1, j), 3: (i, j + 1)}.items():
            if y < 8 and x < 6 and valid[b, 0, y, x]:
                steps[axis].append(float((p[b, :, y, x] - a - g[b, :, y, x] + c).square().sum()))
    gradient = sum(sum(values) / len(values) for values in steps.values())
    release = NormalsLoss("release")(prediction, target, valid)
    paper = NormalsLoss("paper")(prediction, target, valid)
    assert release["cosine"].item() == pytest.approx(cosine / 58, rel=1e-5)
    assert release["l1"].item() == pytest.approx(l1 / 58, rel=1e-5)
    assert release["gradient"].item() == pytest.approx(gradient, rel=1e-5)
    assert paper["l2"].item() == pytest.approx(l2 / 58, rel=1e-5)
    assert paper["loss"].item() == pytest.approx(cosine / 58 + l2 / 58 + gradient, rel=1e-5)
    assert set(paper) == {"loss", "cosine", "l2", "gradient"}


def test_weights_and_errors(prediction, target, valid):
    losses = NormalsLoss("paper", weights={"gradient": 0.0, "l2": 3.0})(prediction, target, valid)
    assert losses["loss"].item() == pytest.approx((losses["cosine"] + 3 * losses["l2"]).item())
    with pytest.raises(ValueError, match=r"form must be one of \['paper', 'release'\], got 'release2'"):
        NormalsLoss("release2")
    with pytest.raises(ValueError, match=r"unknown terms \['l2'\]; the release form has"):
        NormalsLoss(weights={"l2": 1.0})
    with pytest.raises(ValueError, match=r"valid \(B, 1, H, W\), got .*\(2, 8, 6\)"):
        NormalsLoss()(prediction, target, valid[:, 0])


def test_perfect_prediction_is_zero(target, valid):
    unit = F.normalize(target, dim=1)
    for form in ("release", "paper"):
        losses = NormalsLoss(form)(unit, unit, valid)
        assert losses["loss"].item() == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize("filler", [-1000.0, math.nan, math.inf])
@pytest.mark.parametrize("form", ["release", "paper"])
def test_targets_outside_the_mask_do_not_matter(prediction, target, valid, filler, form):
    expected = NormalsLoss(form)(prediction, target, valid)["loss"]
    expected.backward()
    gradient = prediction.grad.clone()
    prediction.grad = None
    filled = torch.where(valid, target, filler)
    loss = NormalsLoss(form)(prediction, filled, valid)["loss"]
    loss.backward()
    assert loss.item() == expected.item()
    assert torch.equal(prediction.grad, gradient)
    assert (prediction.grad * ~valid).abs().max() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("form", ["release", "paper"])
def test_a_bad_prediction_is_never_hidden(prediction, target, valid, value, form):
    """Not inside the mask, not outside it, and not if the mask is empty."""
    for b, _, i, j in [valid.nonzero()[0].tolist(), (~valid).nonzero()[0].tolist()]:
        broken = prediction.detach().clone()
        broken[b, 1, i, j] = value
        terms = NormalsLoss(form)(broken, target, valid)
        assert not any(term.isfinite() for term in terms.values())
        assert not NormalsLoss(form)(broken, target, torch.zeros_like(valid))["loss"].isfinite()
    broken = target.clone()
    b, _, i, j = valid.nonzero()[0].tolist()
    broken[b, 1, i, j] = math.nan
    assert NormalsLoss(form)(prediction, broken, valid)["loss"].isnan()


@pytest.mark.parametrize("form", ["release", "paper"])
def test_empty_mask_gives_a_zero_that_depends_on_the_prediction(prediction, target, valid, form):
    losses = NormalsLoss(form)(prediction, target, torch.zeros_like(valid))
    assert all(value.item() == 0 for value in losses.values())
    losses["loss"].backward()
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


def test_one_valid_pixel(prediction, target):
    """Sums are divided by 1, and by at least 1 where no two neighbours are valid."""
    valid = torch.zeros(2, 1, 8, 6, dtype=torch.bool)
    valid[1, 0, 3, 2] = True
    losses = NormalsLoss()(prediction, target, valid)
    difference = (prediction - target)[1, :, 3, 2]
    assert losses["l1"].item() == pytest.approx(difference.abs().sum().item(), rel=1e-6)
    assert losses["gradient"].item() == 0


def test_half_precision_is_computed_in_float32(prediction, target, valid):
    low = prediction.detach().bfloat16()
    loss = NormalsLoss()(low, target, valid)["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == NormalsLoss()(low.float(), target, valid)["loss"].item()


def test_other_sizes_are_resized(prediction, target, valid):
    small = wave(0.37, 3, 4, 3)
    resized = F.interpolate(small, (8, 6), mode="bilinear", align_corners=False)
    assert NormalsLoss()(small, target, valid)["loss"] == NormalsLoss()(resized, target, valid)["loss"]


@pytest.mark.parametrize("form", ["release", "paper"])
def test_gradients(prediction, target, valid, form):
    point = prediction.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: NormalsLoss(form)(x, target, valid)["loss"], [point])
