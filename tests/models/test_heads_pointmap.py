"""The pointmap head: the scale branch, its one image size, initial values (spec 2.4, 2.6)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from s2kit.models import NormalHead, PointmapHead, create_head

SMALL = {"upsample_channels": (8, 6, 6, 4), "conv_channels": (4, 5)}
TINY = {**SMALL, "scale_channels": (6, 5, 4), "scale_hidden": (7, 3), "image_size": (256, 192)}


def test_dense_branch_is_the_normals_heads():
    torch.manual_seed(0)
    head, normal = PointmapHead(8, **TINY), NormalHead(8, **SMALL)
    dense = {key.replace("pointmap", "normal"): value for key, value in head.state_dict().items() if "scale" not in key}
    normal.load_state_dict(dense)
    x = torch.randn(2, 8, 16, 12)
    output = head(x)
    assert output.pointmap.shape == (2, 3, 256, 192)
    torch.testing.assert_close(output.pointmap, normal(x), rtol=0, atol=1e-5)


def test_scale_branch_layer_by_layer():
    """Three 1 x 1 convolutions of stride 2, flattened channel by channel, and three linear layers (spec 2.4)."""
    torch.manual_seed(0)
    head = PointmapHead(8, **TINY)
    weights = {key: torch.randn_like(value) for key, value in head.state_dict().items()}
    head.load_state_dict(weights)
    features = torch.randn(2, 8, 16, 12)
    x = features
    for i in (0, 3, 6):
        weight, bias = (weights[f"scale_conv_layers.{i}.{kind}"] for kind in ("weight", "bias"))
        x = torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], x[:, :, ::2, ::2]) + bias[:, None, None]
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
        x = x * x.sigmoid()
    x = torch.cat([x[:, channel].reshape(2, -1) for channel in range(4)], dim=1)
    assert x.shape == (2, 4 * 2 * 2)
    for i in (1, 3, 5):
        x = F.linear(x, weights[f"scale_final_layer.{i}.weight"], weights[f"scale_final_layer.{i}.bias"])
        x = x * x.sigmoid() if i < 5 else x
    scale = head(features).scale
    assert scale.shape == (2, 1)
    torch.testing.assert_close(scale, x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(head.eval()(features[:1]).scale, x[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("image_size", "grid", "inputs"),
    [((1024, 768), (64, 48), 48), ((512, 384), (32, 24), 12), ((256, 192), (16, 12), 4), ((272, 16), (17, 1), 3)],
)
def test_scale_branch_fits_the_image_size(image_size, grid, inputs):
    """Each convolution rounds the resolution up, so 17 tokens leave 3 cells."""
    head = PointmapHead(8, **{**TINY, "image_size": image_size})
    assert head.grid == grid
    assert head.scale_final_layer[1].in_features == 4 * inputs
    assert head(torch.randn(1, 8, *grid)).scale.shape == (1, 1)


def test_sizes_come_from_the_backbone():
    with torch.device("meta"):
        heads = {arch: create_head("pointmap", arch) for arch in ("sapiens2_0.4b", "sapiens2_1b_4k", "sapiens2_nano")}
    assert {arch: head.grid for arch, head in heads.items()} == {
        "sapiens2_0.4b": (64, 48),
        "sapiens2_1b_4k": (64, 48),
        "sapiens2_nano": (16, 12),
    }
    assert heads["sapiens2_1b_4k"].image_size == (4096, 3072)


def test_another_feature_map_names_the_size_the_head_is_for():
    head = PointmapHead(8, **TINY)
    with pytest.raises(ValueError, match=r"built for images of 256 x 192 \(16 x 12 tokens\).* map of 32 x 24"):
        head(torch.randn(1, 8, 32, 24))
    # The same number of cells remains after rounding, and still it is another picture.
    with pytest.raises(ValueError, match="map of 15 x 12"):
        head(torch.randn(1, 8, 15, 12))


@pytest.mark.parametrize(
    ("image_size", "message"),
    [
        ((128, 128), r"image_size 128 x 128 is too small .* halves the 8 x 8 tokens 3 times.* at least 144 pixels"),
        ((1000, 768), "image_size of the pointmap head must be multiples of the stride 16, got 1000 x 768"),
        ((0, 768), "multiples of the stride 16, got 0 x 768"),
    ],
)
def test_impossible_sizes_stop_at_construction(image_size, message):
    with pytest.raises(ValueError, match=message):
        create_head("pointmap", "sapiens2_nano", image_size=image_size)


def test_weights_for_another_size_name_both_sizes():
    with torch.device("meta"):
        published = create_head("pointmap", "sapiens2_0.4b").state_dict()
        head = create_head("pointmap", "sapiens2_0.4b", image_size=(512, 384))
    with pytest.raises(RuntimeError, match=r"built for images of 512 x 384 \(32 x 24 tokens\).* 1024 x 768, have 6144"):
        head.load_state_dict(published, assign=True)


def test_initial_values():
    """Linear layers: Kaiming-normal over the fan-in with gain 1; convolutions as everywhere (spec 2.6)."""
    torch.manual_seed(0)
    head = create_head("pointmap", "sapiens2_nano", image_size=(1024, 768))
    first = head.scale_final_layer[1]
    assert first.weight.std().item() == pytest.approx(first.in_features**-0.5, rel=0.02)
    assert first.bias.abs().max() == 0
    assert head.scale_conv_layers[0].weight.std().item() == pytest.approx((2 / 96) ** 0.5, rel=0.02)
    assert head.input_conv[0].weight.std().item() == pytest.approx((2 / (192 * 9)) ** 0.5, rel=0.02)
