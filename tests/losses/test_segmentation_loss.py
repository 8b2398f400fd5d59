"""Losses of segmentation: the release's numbers (spec 10.2), both normalisations, labels that are no class."""

import math

import pytest
import torch
import torch.nn.functional as F

from s2kit.losses import SegmentationLoss
from s2kit.losses.segmentation import published_class_weights
from s2kit.schemas import load_class_list

WEIGHTS = [0.1, 10.0, 3.0, 2.0, 1.0]


@pytest.fixture
def logits(wave) -> torch.Tensor:
    return 2 * wave(0.29, 2, 5, 8, 6)


@pytest.fixture
def labels() -> torch.Tensor:
    labels = (7 * torch.arange(2 * 8 * 6)) % 5
    labels[:3] = 255
    return labels.reshape(2, 8, 6)


def test_published_numbers(logits, labels):
    losses = SegmentationLoss(WEIGHTS)(logits, labels)
    assert losses["cross_entropy"].item() == pytest.approx(7.41804314, rel=1e-5)
    assert losses["dice"].item() == pytest.approx(0.71528769, rel=1e-5)
    assert losses["loss"].item() == pytest.approx(7.41804314 + 0.71528769, rel=1e-5)
    plain = SegmentationLoss([1.0] * 5)(logits, labels)
    assert plain["cross_entropy"].item() == pytest.approx(2.32719946, rel=1e-5)


def test_dice_class_by_class(logits, labels):
    p = logits.double().softmax(dim=1)
    expected = []
    for image in range(2):
        used = labels[image] != 255
        scores = []
        for c in range(1, 5):
            g = labels[image] == c
            overlap = float((p[image, c] * g).sum())
            size = float((p[image, c] * used).square().sum()) + float(g.sum())
            if g.any():
                scores.append((2 * overlap + 1e-3) / (size + 1e-3))
        expected.append(1 - sum(scores) / len(scores))
    loss = SegmentationLoss(WEIGHTS)(logits, labels)["dice"].item()
    assert loss == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_dice_counts_an_image_without_foreground_as_zero(logits, labels):
    background = torch.stack([labels[0], torch.zeros_like(labels[1])])
    both = SegmentationLoss(WEIGHTS)(logits, background)["dice"]
    alone = SegmentationLoss(WEIGHTS)(logits[:1], labels[:1])["dice"]
    assert both.item() == pytest.approx(alone.item() / 2, rel=1e-6)


def test_the_usual_cross_entropy_divides_by_the_weights(logits, labels):
    expected = F.cross_entropy(logits, labels, torch.tensor(WEIGHTS), ignore_index=255)
    for loss in (SegmentationLoss(WEIGHTS, "paper"), SegmentationLoss(WEIGHTS, normalize="weights")):
        assert loss(logits, labels)["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("value", [5, -1, 254])
def test_a_label_that_is_no_class_is_an_error(logits, labels, value):
    labels[1, 2, 3] = value
    with pytest.raises(ValueError, match=f"the value {value}; the model has classes 0 to 4, and 255 is ignored"):
        SegmentationLoss(WEIGHTS)(logits, labels)


@pytest.mark.parametrize("form", ["release", "paper"])
def test_nothing_labelled_gives_a_zero_that_depends_on_the_logits(logits, labels, form):
    logits.requires_grad_()
    losses = SegmentationLoss(WEIGHTS, form)(logits, torch.full_like(labels, 255))
    assert all(value.item() == 0 for value in losses.values())
    losses["loss"].backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_ignored_pixels_have_no_gradient(logits, labels):
    logits.requires_grad_()
    SegmentationLoss(WEIGHTS)(logits, labels)["loss"].backward()
    size = logits.grad.abs().sum(dim=1)
    assert size[0].flatten()[:3].max() == 0
    assert size[0].flatten()[3:].min() > 0


def test_a_bad_prediction_is_never_hidden(logits, labels):
    """Not even where the label is ignored."""
    for position in ((0, 2, 0, 0), (0, 2, 4, 4)):
        for value in (math.nan, math.inf):
            broken = logits.clone()
            broken[position] = value
            assert not SegmentationLoss(WEIGHTS)(broken, labels)["loss"].isfinite()


@pytest.mark.parametrize("form", ["release", "paper"])
def test_gradients(logits, labels, form):
    small = logits[:, :, :3, :3].double().requires_grad_()
    loss = SegmentationLoss(WEIGHTS, form)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels[:, :3, :3])["loss"], [small])


def test_half_precision_and_other_sizes(logits, labels):
    low = logits.bfloat16()
    loss = SegmentationLoss(WEIGHTS)
    assert loss(low, labels)["loss"].dtype == torch.float32
    assert loss(low, labels)["loss"] == loss(low.float(), labels)["loss"]
    small = logits[:, :, :4, :3]
    resized = F.interpolate(small, (8, 6), mode="bilinear", align_corners=False)
    assert loss(small, labels)["loss"] == loss(resized, labels)["loss"]


def test_the_published_class_weights():
    weights = [0.1, 10, 10, 3, 2, 4, 4, 2, 2, 6, 10, 3, 3, 1, 4, 4, 2, 2, 6, 10, 3, 3, 1, 1, 10, 10, 10, 10, 10]
    names = load_class_list(29).names
    assert published_class_weights(names) == weights
    # The older list is the same without Eyeglass.
    assert published_class_weights([name for name in names if name != "Eyeglass"]) == weights[:2] + weights[3:]
    assert published_class_weights(["Background", "Hair", "Skirt"]) == [1.0, 1.0, 1.0]


def test_errors():
    with pytest.raises(ValueError, match="form must be one of"):
        SegmentationLoss(WEIGHTS, "focal")
    with pytest.raises(ValueError, match=r"unknown terms \['focal'\]"):
        SegmentationLoss(WEIGHTS, weights={"focal": 1.0})
    with pytest.raises(ValueError, match="normalize must be 'pixels' or 'weights', got 'sum'"):
        SegmentationLoss(WEIGHTS, normalize="sum")
    with pytest.raises(ValueError, match="two or more numbers of at least 0"):
        SegmentationLoss([1.0, -1.0])
    with pytest.raises(ValueError, match=r"logits \(B, 5, h, w\) and labels \(B, H, W\), got \(2, 4, 8, 6\)"):
        SegmentationLoss(WEIGHTS)(torch.zeros(2, 4, 8, 6), torch.zeros(2, 8, 6, dtype=torch.int64))
