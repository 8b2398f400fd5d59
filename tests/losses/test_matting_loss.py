"""Losses of matting: the release's numbers (spec 12), the pyramid, and what is never hidden."""

import math

import pytest
import torch
import torch.nn.functional as F

from s2kit.losses import MattingLoss
from s2kit.losses.matting import double, halve, laplacian_loss, laplacian_pyramid, sobel_loss, sobel_magnitude


@pytest.fixture
def foregrounds(wave) -> tuple[torch.Tensor, torch.Tensor]:
    return 0.5 + 0.4 * wave(0.37, 1, 3, 64, 48), 0.5 + 0.4 * wave(0.53, 1, 3, 64, 48)


@pytest.fixture
def valid(wave) -> torch.Tensor:
    return wave(0.91, 1, 1, 64, 48) > -0.3


@pytest.fixture
def small(wave) -> tuple[torch.Tensor, ...]:
    """Prediction, alpha, foreground and mask of 8 x 6 pixels."""
    prediction = 0.5 + 0.4 * wave(0.37, 2, 4, 8, 6)
    alpha, foreground = 0.5 + 0.4 * wave(0.67, 2, 1, 8, 6), 0.5 + 0.4 * wave(0.53, 2, 3, 8, 6)
    return prediction.requires_grad_(), alpha, foreground, wave(0.91, 2, 1, 8, 6) > -0.3


def test_published_numbers(foregrounds, valid):
    guess, truth = foregrounds
    for mask, l1, gradient, laplacian in (
        (torch.ones_like(valid), 0.32431015, 1.03976989, 0.21905763),
        (valid, 0.19497779, 0.62191015, 0.13353989),
    ):
        assert sobel_loss(guess, truth, mask).item() == pytest.approx(gradient, rel=1e-5)
        assert laplacian_loss(guess, truth, mask).item() == pytest.approx(laplacian, rel=1e-5)
        prediction, alpha = torch.cat([guess, guess[:, :1]], dim=1), truth[:, :1]
        losses = MattingLoss()(prediction, alpha, truth, mask)
        assert losses["foreground_l1"].item() == pytest.approx(l1, rel=1e-5)
        if mask.all():
            assert losses["foreground_gradient"].item() == pytest.approx(gradient, rel=1e-5)
            assert losses["foreground_laplacian"].item() == pytest.approx(laplacian, rel=1e-5)


def test_alpha_does_not_see_the_mask(small):
    prediction, alpha, foreground, valid = small
    full, none = (MattingLoss()(prediction, alpha, foreground, mask) for mask in (valid | True, valid & False))
    for term in ("l1", "gradient", "laplacian"):
        assert full[f"alpha_{term}"] == none[f"alpha_{term}"] > 0
        assert none[f"foreground_{term}"] == 0
    assert full["loss"].item() == pytest.approx(sum(v.item() for n, v in full.items() if n != "loss"), rel=1e-6)


def test_the_sobel_gradient_of_a_ramp():
    ramp = torch.arange(7.0).expand(1, 1, 5, 7) * 0.1
    assert sobel_magnitude(ramp)[0, 0, :, 1:-1].numpy() == pytest.approx(8 * 0.1, rel=1e-5)


@pytest.mark.parametrize("size", [(12, 9), (9, 12), (3, 4), (64, 48)])
def test_halving_and_doubling_against_a_convolution(size):
    row = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = torch.outer(row, row).expand(2, 1, 5, 5)
    image = torch.rand(1, 2, *size, generator=torch.Generator().manual_seed(0))
    small = F.conv2d(F.pad(image, [2] * 4, mode="reflect"), kernel, groups=2)[:, :, ::2, ::2]
    torch.testing.assert_close(halve(image), small)
    spread = torch.zeros(1, 2, *size)
    spread[:, :, ::2, ::2] = small
    large = F.conv2d(F.pad(4 * spread, [2] * 4, mode="reflect"), kernel, groups=2)
    torch.testing.assert_close(double(small, size), large)


def test_the_pyramid_restores_the_image():
    """Each level is what is lost, so enlarging and adding from the coarsest on gives the image back."""
    image = torch.rand(1, 2, 37, 20, generator=torch.Generator().manual_seed(0))
    pyramid = laplacian_pyramid(image)
    assert [tuple(level.shape[2:]) for level in pyramid] == [(37, 20), (19, 10), (10, 5), (5, 3), (3, 2)]
    restored = pyramid.pop()
    while pyramid:
        level = pyramid.pop()
        restored = level + double(restored, tuple(level.shape[2:]))
    torch.testing.assert_close(restored, image)
    # A constant has nothing to lose.
    assert all(level.abs().max() < 1e-6 for level in laplacian_pyramid(torch.ones(1, 1, 32, 32))[:-1])
    assert len(laplacian_pyramid(torch.ones(1, 1, 6, 6))) == 3


@pytest.mark.parametrize("filler", [-1000.0, math.nan, math.inf])
def test_foregrounds_outside_the_mask_do_not_matter(small, filler):
    prediction, alpha, foreground, valid = small
    expected = MattingLoss()(prediction, alpha, foreground, valid)["loss"]
    filled = torch.where(valid, foreground, filler)
    assert MattingLoss()(prediction, alpha, filled, valid)["loss"].item() == expected.item()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_prediction_is_never_hidden(small, value):
    prediction, alpha, foreground, valid = small
    for b, _, i, j in [valid.nonzero()[0].tolist(), (~valid).nonzero()[0].tolist()]:
        for channel in (1, 3):
            broken = prediction.detach().clone()
            broken[b, channel, i, j] = value
            assert not MattingLoss()(broken, alpha, foreground, valid)["loss"].isfinite()


def test_perfect_prediction_is_zero(small):
    _, alpha, foreground, valid = small
    perfect = torch.cat([foreground, alpha], dim=1)
    assert MattingLoss()(perfect, alpha, foreground, valid | True)["loss"].item() == 0


def test_gradients(small):
    prediction, alpha, foreground, valid = (part[:1] for part in small)
    point = prediction.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: MattingLoss()(x, alpha, foreground, valid)["loss"], [point])


def test_half_precision_autocast_and_other_sizes(small):
    prediction, alpha, foreground, valid = small
    low = prediction.detach().bfloat16()
    expected = MattingLoss()(low.float(), alpha, foreground, valid)["loss"]
    assert MattingLoss()(low, alpha, foreground, valid)["loss"] == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert MattingLoss()(low, alpha, foreground, valid)["loss"] == expected
    part = prediction.detach()[:, :, :4, :3]
    resized = F.interpolate(part, (8, 6), mode="bilinear", align_corners=False)
    one, other = (MattingLoss()(x, alpha, foreground, valid)["loss"] for x in (part, resized))
    assert one == other


def test_errors(small):
    prediction, alpha, foreground, valid = small
    with pytest.raises(ValueError, match=r"form must be one of \['release'\], got 'paper'"):
        MattingLoss("paper")
    with pytest.raises(ValueError, match=r"foreground \(B, 3, H, W\) and valid \(B, 1, H, W\), got \(2, 1, 8, 6\)"):
        MattingLoss()(prediction, alpha, foreground, valid[:, 0])
    with pytest.raises(ValueError, match=r"prediction \(B, 4, h, w\)"):
        MattingLoss()(prediction[:, :3], alpha, foreground, valid)
