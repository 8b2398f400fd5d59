"""Losses of albedo: the release's numbers (spec 10.2), the paper's terms, and what is never hidden."""

import math

import pytest
import torch
import torch.nn.functional as F

from s2kit.losses import AlbedoLoss

ALL = {"low_frequency": 1.0}


@pytest.fixture
def prediction(wave) -> torch.Tensor:
    return (0.5 + 0.4 * wave(0.37, 2, 3, 8, 6)).requires_grad_()


@pytest.fixture
def target(wave) -> torch.Tensor:
    return 0.5 + 0.4 * wave(0.53, 2, 3, 8, 6)


@pytest.fixture
def valid(wave) -> torch.Tensor:
    return wave(0.91, 2, 1, 8, 6) > -0.3


def test_published_numbers(prediction, target, valid):
    losses = AlbedoLoss(weights=ALL, low_frequency_factor=2)(prediction, target, valid)
    weighted = {"l1": 2.11371398, "gradient": 2.16616488}
    expected = {name: value / 2 for name, value in weighted.items()}
    expected |= {"chromaticity": 0.47627366, "low_frequency": 0.3100839}
    assert {name: losses[name].item() for name in expected} == pytest.approx(expected, rel=1e-5)
    total = sum(weighted.values()) + 0.47627366
    assert AlbedoLoss()(prediction, target, valid)["loss"].item() == pytest.approx(total, rel=1e-5)
    assert "low_frequency" not in AlbedoLoss()(prediction, target, valid)


def test_the_papers_terms_pixel_by_pixel(prediction, target, valid):
    p, g = prediction.detach().double(), target.double()
    squares, steps, means = 0.0, {2: [], 3: []}, []
    for b, _, i, j in valid.nonzero().tolist():
        squares += float((p - g)[b, :, i, j].square().sum())
        for axis, (y, x) in {2: (i + 1, j), 3: (i, j + 1)}.items():
            if y < 8 and x < 6 and valid[b, 0, y, x]:
                steps[axis].append(float(((p - g)[b, :, y, x] - (p - g)[b, :, i, j]).square().sum()))
    for b in range(2):
        inside = valid[b, 0]
        means.append(float((p[b][:, inside].mean(dim=1) - g[b][:, inside].mean(dim=1)).square().sum()))
    losses = AlbedoLoss("paper")(prediction, target, valid)
    assert losses["l2"].item() == pytest.approx(squares / int(valid.sum()), rel=1e-5)
    assert losses["gradient"].item() == pytest.approx(sum(sum(s) / len(s) for s in steps.values()), rel=1e-5)
    assert losses["mean_colour"].item() == pytest.approx(sum(means) / 2, rel=1e-4)
    total = losses["l2"] + losses["gradient"] + losses["mean_colour"]
    assert losses["loss"].item() == pytest.approx(total.item(), rel=1e-6)


def test_perfect_prediction_is_zero(target, valid):
    for loss in (AlbedoLoss(weights=ALL), AlbedoLoss("paper")):
        assert loss(target, target, valid)["loss"].item() == 0


def test_an_image_without_valid_pixels_does_not_count_in_the_mean_colour(prediction, target, valid):
    valid[1] = False
    both = AlbedoLoss("paper")(prediction, target, valid)["mean_colour"]
    alone = AlbedoLoss("paper")(prediction[:1], target[:1], valid[:1])["mean_colour"]
    assert both.item() == pytest.approx(alone.item(), rel=1e-6)


@pytest.mark.parametrize("loss", [AlbedoLoss(weights=ALL), AlbedoLoss("paper")], ids=["release", "paper"])
class TestMasks:
    @pytest.mark.parametrize("filler", [-1000.0, math.nan, math.inf])
    def test_targets_outside_the_mask_do_not_matter(self, prediction, target, valid, filler, loss):
        expected = loss(prediction, target, valid)["loss"]
        assert loss(prediction, torch.where(valid, target, filler), valid)["loss"].item() == expected.item()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_bad_prediction_is_never_hidden(self, prediction, target, valid, value, loss):
        for b, _, i, j in [valid.nonzero()[0].tolist(), (~valid).nonzero()[0].tolist()]:
            broken = prediction.detach().clone()
            broken[b, 1, i, j] = value
            assert not loss(broken, target, valid)["loss"].isfinite()
            assert not loss(broken, target, torch.zeros_like(valid))["loss"].isfinite()

    def test_empty_mask_gives_a_zero_that_depends_on_the_prediction(self, prediction, target, valid, loss):
        losses = loss(prediction, target, torch.zeros_like(valid))
        assert all(value.item() == 0 for value in losses.values())
        losses["loss"].backward()
        assert torch.equal(prediction.grad, torch.zeros_like(prediction))

    def test_gradients(self, prediction, target, valid, loss):
        point = prediction.detach().double().requires_grad_()
        assert torch.autograd.gradcheck(lambda x: loss(x, target, valid)["loss"], [point])

    def test_half_precision_and_other_sizes(self, prediction, target, valid, loss):
        low = prediction.detach().bfloat16()
        assert loss(low, target, valid)["loss"].dtype == torch.float32
        assert loss(low, target, valid)["loss"] == loss(low.float(), target, valid)["loss"]
        small = prediction.detach()[:, :, :4, :3]
        resized = F.interpolate(small, (8, 6), mode="bilinear", align_corners=False)
        assert loss(small, target, valid)["loss"] == loss(resized, target, valid)["loss"]


def test_errors(prediction, target, valid):
    with pytest.raises(ValueError, match=r"form must be one of \['paper', 'release'\], got 'l1'"):
        AlbedoLoss("l1")
    with pytest.raises(ValueError, match=r"unknown terms \['l1'\]; the paper form has"):
        AlbedoLoss("paper", weights={"l1": 1.0})
    with pytest.raises(ValueError, match=r"valid \(B, 1, H, W\), got .*\(2, 8, 6\)"):
        AlbedoLoss()(prediction, target, valid[:, 0])
