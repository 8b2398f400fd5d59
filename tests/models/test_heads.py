"""Pixel-shuffle heads: published keys and counts (spec 2.3, 2.5, 2.7, 12), layers, initial values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from s2kit.models import AlbedoHead, NormalHead, create_backbone, create_head
from s2kit.models.heads.pixel_shuffle import ChannelRMSNorm

SIZES = ("0.4b", "0.8b", "1b", "5b")
CASES = [(task, size) for task in ("normals", "albedo") for size in SIZES] + [("matting", "1b")]
# Backbone and head together (spec 2.7, 12).
TOTALS = {
    ("normals", "0.4b"): 453_357_731,
    ("normals", "0.8b"): 884_577_443,
    ("normals", "1b"): 1_539_334_307,
    ("normals", "5b"): 5_316_358_275,
    ("albedo", "0.4b"): 453_360_531,
    ("albedo", "0.8b"): 884_580_499,
    ("albedo", "1b"): 1_539_337_619,
    ("albedo", "5b"): 5_316_147_155,
    ("matting", "1b"): 1_539_334_324,
}
SMALL = {"in_channels": 8, "upsample_channels": (8, 6, 6, 4), "conv_channels": (4, 5)}


@pytest.mark.parametrize(("task", "size"), CASES)
def test_published_keys_and_counts(task, size, head_keys, describe):
    with torch.device("meta"):
        head = create_head(task, f"sapiens2_{size}")
        backbone = create_backbone(f"sapiens2_{size}")
    section = f"{'normal' if task == 'normals' else task} {size}"
    assert sorted(describe(head, "decode_head.")) == sorted(head_keys[section])
    count = sum(p.numel() for module in (head, backbone) for p in module.parameters())
    assert count == TOTALS[task, size]


@pytest.mark.parametrize("task", ["normals", "albedo", "matting"])
@pytest.mark.parametrize("arch", ["sapiens2_nano", "sapiens2_0.1b", "sapiens2_1b_4k"])
def test_sizes_without_a_published_head_have_one(task, arch):
    with torch.device("meta"):
        head = create_head(task, arch)
        features = create_backbone(arch).embed_dim
    output = head(torch.empty(1, features, 3, 2, device="meta"))
    assert output.shape == (1, 4 if task == "matting" else 3, 48, 32)


def test_normal_head_layer_by_layer():
    """Against functional calls in the order of spec 2.3."""
    torch.manual_seed(0)
    head = NormalHead(**SMALL)
    x = torch.randn(2, 8, 3, 2)
    weights = head.state_dict()

    def conv(x, key, padding=1):
        return F.conv2d(x, weights[f"{key}.weight"], weights[f"{key}.bias"], padding=padding)

    def activate(x):
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        return x * x.sigmoid()

    expected = activate(conv(x, "input_conv.0"))
    for i in range(4):
        expected = activate(F.pixel_shuffle(conv(expected, f"upsample_blocks.{i}.0"), 2))
    for i in (0, 3):
        expected = activate(conv(expected, f"conv_layers.{i}"))
    expected = conv(expected, "conv_normal", padding=0)
    assert head(x).shape == (2, 3, 48, 32)
    torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.eval()(x), expected, rtol=1e-4, atol=1e-4)


def test_albedo_head_normalises_channels_at_each_pixel():
    torch.manual_seed(0)
    norm = ChannelRMSNorm(5)
    with torch.no_grad():
        norm.norm.weight.uniform_(0.5, 2)
    x = torch.randn(2, 5, 3, 4)
    scale = (x.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt() * norm.norm.weight[:, None, None]
    torch.testing.assert_close(norm(x), x * scale)
    head = AlbedoHead(**SMALL)
    assert head(torch.randn(1, 8, 1, 1)).shape == (1, 3, 16, 16)
    assert not any(isinstance(module, torch.nn.InstanceNorm2d) for module in head.modules())


def test_matting_is_between_0_and_1():
    head = create_head("matting", "sapiens2_nano", **SMALL)
    output = head(50 * torch.randn(1, 8, 2, 2))
    assert output.shape == (1, 4, 32, 32)
    assert 0 <= output.min() < 0.1 and 0.9 < output.max() <= 1


def test_initial_values():
    """Kaiming-normal over the fan-out with ReLU's gain (spec 2.6)."""
    torch.manual_seed(0)
    head = create_head("albedo", "sapiens2_nano")
    for conv in (head.input_conv[0], head.upsample_blocks[0][0], head.conv_albedo):
        fan_out = conv.weight.shape[0] * conv.weight[0, 0].numel()
        expected = (2 / fan_out) ** 0.5
        assert conv.weight.std().item() == pytest.approx(expected, rel=0.35 if conv is head.conv_albedo else 0.03)
        assert conv.bias.abs().max() == 0
    assert torch.equal(head.input_conv[1].norm.weight, torch.ones(192))


def test_overrides_and_errors():
    head = create_head("normals", "sapiens2_nano", in_channels=32, upsample_channels=(16, 8, 8, 8))
    assert head(torch.randn(1, 32, 1, 2)).shape == (1, 3, 16, 32)
    with pytest.raises(ValueError, match="no head for task 'depth'; known: normals, albedo, matting"):
        create_head("depth", "sapiens2_1b")
    with pytest.raises(ValueError, match=r"no NormalHead for 'sapiens2_2b'; known: sapiens2_0.1b"):
        create_head("normals", "sapiens2_2b")
