"""What autocast must not touch: it would round coordinates, distances and sums to half precision without a word."""

import pytest
import torch
from torch.nn import functional as F

from s2kit.losses.contrast import SoftmaxCentring, contrast_loss
from s2kit.losses.koleo import koleo_loss
from s2kit.pretraining.looks import feature_colours
from s2kit.pretraining.views import crop_and_resize
from s2kit.probing.knn import knn_predict


def alike(size: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Vectors that differ little, as class tokens do early in training."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size[-1], generator=generator) + 0.02 * torch.randn(size, generator=generator)


def crops() -> torch.Tensor:
    image = torch.arange(1024.0).view(1, 1, 1024, 1).expand(1, 3, 1024, 768)
    return crop_and_resize(image, torch.tensor([[30.5, 100.25, 700.75, 993.0]]), torch.tensor([True]), (1024, 768))


def koleo_gradient() -> torch.Tensor:
    embeddings = alike((32, 64)).requires_grad_()
    return torch.autograd.grad(koleo_loss(embeddings), embeddings)[0]


def contrast() -> torch.Tensor:
    student = alike((6, 8, 1024), 1)
    return contrast_loss(student, F.softmax(20 * alike((2, 8, 1024), 2), dim=-1))


def neighbours() -> torch.Tensor:
    features = alike((300, 64), 3)
    return knn_predict(features[:200], torch.arange(200), features[200:], k=1).float()


def colours() -> torch.Tensor:
    return feature_colours(alike((2, 8, 6, 16), 5).permute(0, 3, 1, 2))


@pytest.mark.parametrize("compute", [crops, koleo_gradient, contrast, neighbours, colours])
def test_nothing_changes_under_bfloat16(compute):
    expected = compute()
    with torch.autocast("cpu", torch.bfloat16):
        found = compute()
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_meta_device_has_no_autocast_and_needs_none():
    images, boxes = torch.empty(2, 3, 16, 12, device="meta"), torch.empty(2, 4, device="meta")
    assert crop_and_resize(images, boxes, torch.empty(2, device="meta").bool(), (8, 6)).shape == (2, 3, 8, 6)


def test_logits_that_are_not_finite_leave_the_running_mean_as_it_was():
    centring = SoftmaxCentring(5).train()
    centring(torch.randn(4, 5), 0.1)
    before = centring.centre.clone()
    centring(torch.tensor([[0.0, 1.0, float("nan"), 0.0, 0.0]]), 0.1)
    assert torch.equal(centring.centre, before)
    centring(torch.ones(4, 5), 0.1)
    torch.testing.assert_close(centring.centre, 0.9 * before + 0.1)
