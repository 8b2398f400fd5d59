"""The heads of pose and segmentation: layers, overrides, initial values (spec 2.1, 2.2, 2.6)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from s2kit.models import HeatmapHead, SegmentationHead, create_head
from s2kit.models.heads.base import deconv_block


def activate(x: torch.Tensor) -> torch.Tensor:
    """InstanceNorm and SiLU, written out."""
    x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    return x * x.sigmoid()


@pytest.mark.parametrize(
    ("head_class", "upsample", "conv"), [(HeatmapHead, (8, 6), (5, 4, 3)), (SegmentationHead, (8, 6, 5, 4), (4, 3))]
)
def test_layer_by_layer(head_class, upsample, conv):
    """Against functional calls in the order of spec 2.1 and 2.2."""
    torch.manual_seed(0)
    head = head_class(7, upsample, conv, out_channels=9)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    weights = head.state_dict()
    x = torch.randn(2, 7, 4, 3)
    expected = x
    for i in range(len(upsample)):
        expected = F.conv_transpose2d(expected, weights[f"deconv_layers.{3 * i}.weight"], stride=2, padding=1)
        expected = activate(expected)
    for i in range(len(conv)):
        key = f"conv_layers.{3 * i}"
        expected = activate(F.conv2d(expected, weights[f"{key}.weight"], weights[f"{key}.bias"]))
    last = head_class.output_name
    expected = F.conv2d(expected, weights[f"{last}.weight"], weights[f"{last}.bias"])
    factor = 2 ** len(upsample)
    assert expected.shape == (2, 9, 4 * factor, 3 * factor)
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-4)
    # Statistics come from each image, at test as in training, and from no other image of the batch.
    torch.testing.assert_close(head.eval()(x[:1]), expected[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernel_size", [2, 3, 4])
def test_every_deconvolution_doubles_the_size(kernel_size):
    deconv, _, _ = deconv_block(3, 5, kernel_size)
    assert deconv(torch.randn(1, 3, 4, 7)).shape == (1, 5, 8, 14)
    assert deconv.weight.shape[2:] == (kernel_size, kernel_size) and deconv.bias is None


def test_the_last_layer_starts_small_on_request():
    """All other layers keep the release's initial values."""
    heads = []
    for output_std in (None, 0.01):
        torch.manual_seed(0)
        heads.append(create_head("pose", "sapiens2_0.4b", 32, upsample_channels=(64,), output_std=output_std))
    usual, small = (head.state_dict() for head in heads)
    assert small["conv_pose.weight"].std().item() == pytest.approx(0.01, rel=0.05)
    assert usual["conv_pose.weight"].std().item() == pytest.approx((2 / 308) ** 0.5, rel=0.05)
    assert all(torch.equal(usual[name], small[name]) for name in usual if name != "conv_pose.weight")
    with pytest.raises(ValueError, match="output_std must be positive, got 0"):
        create_head("pose", "sapiens2_0.4b", 32, output_std=0)


def test_overrides_and_errors():
    options = {"upsample_channels": (6, 5, 4), "conv_channels": (4,), "out_channels": 17}
    head = create_head("pose", "sapiens2_1b", 12, upsample_kernel_size=2, conv_kernel_size=3, **options)
    assert head(torch.randn(1, 12, 4, 3)).shape == (1, 17, 32, 24)
    assert head.conv_layers[0].weight.shape == (4, 4, 3, 3)
    with pytest.raises(ValueError, match="upsample_kernel_size must be 2, 3 or 4, got 5"):
        create_head("pose", "sapiens2_nano", upsample_kernel_size=5)
    with pytest.raises(ValueError, match="conv_kernel_size must be odd, got 2"):
        create_head("segmentation", "sapiens2_nano", conv_kernel_size=2)
    with pytest.raises(ValueError, match=r"HeatmapHead has no field image_size; fields: upsample_channels"):
        create_head("pose", "sapiens2_nano", image_size=(64, 48))


def test_pose_initial_values():
    """Kaiming-normal over the fan-out; of a transposed convolution that is in_channels x kernel area."""
    torch.manual_seed(0)
    head = create_head("pose", "sapiens2_nano")
    for deconv, fan_out in ((head.deconv_layers[0], 192 * 16), (head.deconv_layers[3], 96 * 16)):
        assert deconv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
    assert head.conv_layers[0].weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
    assert head.conv_pose.weight.std().item() == pytest.approx((2 / 308) ** 0.5, rel=0.05)
    assert head.conv_pose.bias.abs().max() == 0


def test_segmentation_deconvolutions_keep_torchs_initial_values():
    """Torch draws them uniformly within 1 / sqrt(out_channels x kernel area) (spec 2.6)."""
    torch.manual_seed(0)
    head = create_head("segmentation", "sapiens2_nano")
    for deconv, out_channels in ((head.deconv_layers[0], 96), (head.deconv_layers[3], 48)):
        bound = (out_channels * 16) ** -0.5
        assert deconv.weight.abs().max() <= bound
        assert deconv.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert head.conv_layers[0].weight.std().item() == pytest.approx((2 / 16) ** 0.5, rel=0.1)
    first = head.deconv_layers[0].weight.clone()
    head.reset_parameters()
    assert not torch.equal(head.deconv_layers[0].weight, first)
