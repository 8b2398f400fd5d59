"""All heads: published keys and counts (spec 2, 12); layers and initial values of the pixel-shuffle heads."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from s2kit.models import SAPIENS2, AlbedoHead, MattingHead, NormalHead, create_backbone, create_head, list_backbones
from s2kit.models.heads import HEADS
from s2kit.models.heads.pixel_shuffle import ChannelRMSNorm

SIZES = ("0.4b", "0.8b", "1b", "5b")
TASKS = ("pose", "segmentation", "normals", "pointmap", "albedo")
CASES = [(task, size) for task in TASKS for size in SIZES] + [("matting", "1b")]
#: Names of the tasks in the published key lists, where they differ from ours.
PUBLISHED = {"segmentation": "seg", "normals": "normal"}
# Backbone and head together (spec 2.7, 12).
TOTALS = {
    ("pose", "0.4b"): 425_677_364,
    ("pose", "0.8b"): 848_704_820,
    ("pose", "1b"): 1_519_780_148,
    ("pose", "5b"): 5_120_198_644,
    ("segmentation", "0.4b"): 406_601_693,
    ("segmentation", "0.8b"): 827_531_997,
    ("segmentation", "1b"): 1_470_819_805,
    ("segmentation", "5b"): 5_089_588_637,
    ("normals", "0.4b"): 453_357_731,
    ("normals", "0.8b"): 884_577_443,
    ("normals", "1b"): 1_539_334_307,
    ("normals", "5b"): 5_316_358_275,
    ("pointmap", "0.4b"): 528_675_364,
    ("pointmap", "0.8b"): 967_366_180,
    ("pointmap", "1b"): 1_629_594_148,
    ("pointmap", "5b"): 5_348_345_860,
    ("albedo", "0.4b"): 453_360_531,
    ("albedo", "0.8b"): 884_580_499,
    ("albedo", "1b"): 1_539_337_619,
    ("albedo", "5b"): 5_316_147_155,
    ("matting", "1b"): 1_539_334_324,
}
# Heads alone, in millions as spec 2.1-2.5 and 12 give them.
HEAD_MILLIONS = {
    "pose": ("30.226996", "34.421300", "64.305972", "53.295668"),
    "segmentation": ("11.15", "13.25", "15.35", "22.69"),
    "normals": ("57.91", "70.29", "83.86", "249.46"),
    "pointmap": ("133.2", "153.1", "174.1", "281.4"),
    "albedo": ("57.91", "70.30", "83.86", "249.24"),
}
# Output channels, and how much finer than the token grid the output is.
OUTPUTS = {
    "pose": (308, 4),
    "segmentation": (29, 16),
    "normals": (3, 16),
    "pointmap": (3, 16),
    "albedo": (3, 16),
    "matting": (4, 16),
}
SMALL = {"in_channels": 8, "upsample_channels": (8, 6, 6, 4), "conv_channels": (4, 5)}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("task", "size"), CASES)
def test_published_keys_and_counts(task, size, head_keys, describe):
    with torch.device("meta"):
        head = create_head(task, f"sapiens2_{size}")
        backbone = create_backbone(f"sapiens2_{size}")
    assert sorted(describe(head, "decode_head.")) == sorted(head_keys[f"{PUBLISHED.get(task, task)} {size}"])
    assert count(head) + count(backbone) == TOTALS[task, size]
    if task == "matting":
        assert count(head) == 83_860_148
    if task in HEAD_MILLIONS:
        published = HEAD_MILLIONS[task][SIZES.index(size)]
        assert f"{count(head) / 1e6:.{len(published.split('.')[1])}f}" == published


@pytest.mark.parametrize("task", HEADS)
@pytest.mark.parametrize("arch", list_backbones())
def test_every_size_has_every_head(task, arch):
    """Also the sizes without a published head; the output's size at the size's own image, without computing it."""
    with torch.device("meta"):
        head = create_head(task, arch)
    config = SAPIENS2[arch]
    height, width = (side // config.stride for side in config.image_size)
    output = head(torch.empty(1, config.embed_dim, height, width, device="meta"))
    output = output.pointmap if task == "pointmap" else output
    channels, factor = OUTPUTS[task]
    assert output.shape == (1, channels, factor * height, factor * width)


@pytest.mark.parametrize("task", HEADS)
def test_nano_heads_cost_less_than_the_backbone(task):
    """The small heads are for CPUs: at most 0.8 of the backbone's multiply-adds at 256 x 192, and under 2.5 M."""
    backbone, head = create_backbone("sapiens2_nano").eval(), create_head(task, "sapiens2_nano").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as of_backbone:
        features = backbone(torch.zeros(1, 3, 256, 192)).patches
    with torch.no_grad(), FlopCounterMode(display=False) as of_head:
        head(features)
    assert of_head.get_total_flops() < 0.8 * of_backbone.get_total_flops()
    assert count(head) < 2.5e6


@pytest.mark.parametrize(
    ("kind", "last"), [(NormalHead, "conv_normal"), (AlbedoHead, "conv_albedo"), (MattingHead, "conv_matting")]
)
def test_pixel_shuffle_heads_layer_by_layer(kind, last):
    """Against functional calls in the order of spec 2.3, 2.5 and 12; of the albedo head there is no port to hold to."""
    torch.manual_seed(0)
    head = kind(**SMALL)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 2)
    x = torch.randn(2, 8, 3, 2)
    weights = head.state_dict()

    def conv(x, key, padding=1):
        return F.conv2d(x, weights[f"{key}.weight"], weights[f"{key}.bias"], padding=padding)

    def activate(x, key):
        if kind is AlbedoHead:
            x = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * weights[f"{key}.norm.weight"].view(-1, 1, 1)
        else:
            x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        return x * x.sigmoid()

    expected = activate(conv(x, "input_conv.0"), "input_conv.1")
    for i in range(4):
        expected = activate(F.pixel_shuffle(conv(expected, f"upsample_blocks.{i}.0"), 2), f"upsample_blocks.{i}.2")
    for i in (0, 3):
        expected = activate(conv(expected, f"conv_layers.{i}"), f"conv_layers.{i + 1}")
    expected = conv(expected, last, padding=0)
    expected = expected.sigmoid() if kind is MattingHead else expected
    assert head(x).shape == (2, 4 if kind is MattingHead else 3, 48, 32)
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
    known = "pose, segmentation, normals, pointmap, albedo, matting"
    with pytest.raises(ValueError, match=f"no head for task 'depth'; known: {known}"):
        create_head("depth", "sapiens2_1b")
    with pytest.raises(ValueError, match=r"NormalHead has no field width, wings; fields: upsample_channels, conv_cha"):
        create_head("normals", "sapiens2_nano", wings=2, width=3)
    with pytest.raises(ValueError, match="out_channels must be at least 1, got 0"):
        create_head("normals", "sapiens2_nano", out_channels=0)
    with pytest.raises(ValueError, match=r"no NormalHead for 'sapiens2_2b'; known: sapiens2_0.1b"):
        create_head("normals", "sapiens2_2b")
