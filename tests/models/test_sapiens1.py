"""The first generation: published keys and counts, patch padding, positions, and loading its files (spec 9.1, 9.2)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from s2kit.models import create_backbone
from s2kit.models.checkpoints import WeightsError, load_weights
from s2kit.models.sapiens1 import SAPIENS1, fit_positions, grid_of, resize_positions, sine_positions

# (1024 x 768 without class token, 1024 x 1024 with one)
PARAMETERS = {
    "sapiens_0.3b": (306_244_608, 307_295_232),
    "sapiens_0.6b": (634_597_120, 635_910_400),
    "sapiens_1b": (1_139_163_648, 1_140_739_584),
    "sapiens_2b": (2_131_943_040, 2_133_912_960),
}
SMALL = {"embed_dim": 16, "depth": 3, "num_heads": 2, "mlp_dim": 32}


def small(image_size=(64, 48), **overrides):
    torch.manual_seed(0)
    return create_backbone("sapiens_0.3b", image_size, **{**SMALL, **overrides}).eval()


class Model(torch.nn.Module):
    name = "normals"
    image_size = (64, 48)

    def __init__(self, **overrides) -> None:
        super().__init__()
        self.backbone = small(**overrides)
        self.decode_head = torch.nn.Conv2d(16, 3, 1)


@pytest.mark.parametrize("name", SAPIENS1)
def test_published_keys_and_counts(name, first_generation_keys, describe):
    with torch.device("meta"):
        pretrained = create_backbone(name, (1024, 1024), class_token=True)
        of_task = create_backbone(name)
    assert sorted(describe(pretrained)) == sorted(first_generation_keys[name])
    counts = tuple(sum(p.numel() for p in model.parameters()) for model in (of_task, pretrained))
    assert counts == PARAMETERS[name]


def test_layer_by_layer():
    """Against functional calls in the order of spec 9.1, with the padding of the pose models."""
    model = small(patch_padding=2)
    weights = model.state_dict()
    x = torch.randn(2, 3, 64, 48)

    def linear(x, key):
        return F.linear(x, weights[f"{key}.weight"], weights[f"{key}.bias"])

    def norm(x, key):
        return F.layer_norm(x, (16,), weights[f"{key}.weight"], weights[f"{key}.bias"], eps=1e-6)

    padded = F.pad(x, (2, 2, 2, 2))
    tokens = F.conv2d(
        padded, weights["patch_embed.projection.weight"], weights["patch_embed.projection.bias"], stride=16
    )
    assert tokens.shape == (2, 16, 4, 3)
    tokens = tokens.flatten(2).transpose(1, 2) + weights["pos_embed"]
    for i in range(3):
        y = norm(tokens, f"layers.{i}.ln1")
        q, k, v = (
            part.view(2, 12, 2, 8).transpose(1, 2) for part in linear(y, f"layers.{i}.attn.qkv").chunk(3, dim=-1)
        )
        y = ((q @ k.transpose(-1, -2)) / math.sqrt(8)).softmax(-1) @ v
        tokens = tokens + linear(y.transpose(1, 2).reshape(2, 12, 16), f"layers.{i}.attn.proj")
        y = F.gelu(linear(norm(tokens, f"layers.{i}.ln2"), f"layers.{i}.ffn.layers.0.0"))
        tokens = tokens + linear(y, f"layers.{i}.ffn.layers.1")
    expected = norm(tokens, "ln1").transpose(1, 2).reshape(2, 16, 4, 3)
    with torch.no_grad():
        output = model(x)
        maps = model.intermediate(x, [-1, 0])
    torch.testing.assert_close(output.patches, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.cls, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps[0], expected, rtol=1e-4, atol=1e-5)
    assert maps[1].shape == (2, 16, 4, 3)
    assert output.registers.shape == (2, 0, 16)


def test_the_padding_moves_each_patch_by_two_pixels():
    model, padded = small(), small(patch_padding=2)
    x = torch.randn(1, 3, 64, 48)
    moved = F.pad(x, (2, 0, 2, 0))[:, :, :64, :48]
    with torch.no_grad():
        torch.testing.assert_close(padded.patch_embed.projection(x), model.patch_embed.projection(moved))
        assert (padded(x).patches - model(x).patches).abs().max() > 1e-2
    with pytest.raises(ValueError, match="patch_padding must be from 0 to below half the patch, 8"):
        small(patch_padding=8)


def test_sine_positions():
    """Rows vary slowest; blocks of sines and cosines of the row, then of the column; raw indices (spec 9.2)."""
    table = sine_positions((4, 3), 16).reshape(4, 3, 16)
    j = torch.arange(4) / 4
    for row, column in ((0, 0), (3, 1), (2, 2)):
        angles = [index * 10000.0**-j for index in (row, column)]
        expected = torch.cat([angles[0].sin(), angles[0].cos(), angles[1].sin(), angles[1].cos()])
        torch.testing.assert_close(table[row, column], expected)
    model = small(class_token=True)
    assert torch.equal(model.pos_embed[0, 0], torch.zeros(16))
    torch.testing.assert_close(model.pos_embed[0, 1:], sine_positions((4, 3), 16))


@pytest.mark.parametrize(
    ("length", "expected"),
    [(4097, ((64, 64), True)), (4096, ((64, 64), False)), (3072, ((64, 48), False)), (3073, ((64, 48), True))],
)
def test_the_grid_of_a_table(length, expected):
    assert grid_of(length) == expected


def test_a_table_that_is_no_grid():
    with pytest.raises(ValueError, match="7 entries is no square and no 4:3 grid"):
        grid_of(7)


def test_resizing_is_bicubic():
    """Against the cubic kernel with a = -0.75 by hand, along the axis that changes."""
    torch.manual_seed(0)
    table = torch.randn(1, 64, 2)
    resized = resize_positions(table, (8, 8), (8, 6)).reshape(8, 6, 2)
    source = (3 + 0.5) * 8 / 6 - 0.5  # pixel centres, edges aligned
    taps = torch.arange(math.floor(source) - 1, math.floor(source) + 3)
    x = (source - taps).abs()
    near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
    weights = torch.where(x <= 1, near, far)
    expected = (table.reshape(8, 8, 2)[:, taps] * weights[:, None]).sum(dim=1)
    torch.testing.assert_close(resized[:, 3], expected, rtol=1e-4, atol=1e-5)
    assert resize_positions(table, (8, 8), (8, 8)) is table


def test_a_pretrained_file_loads_into_a_tasks_backbone(tmp_path):
    """Square positions with a class token: the token is dropped, the table resized; all other bits stay."""
    source = small((64, 64), class_token=True)
    torch.nn.init.normal_(source.pos_embed)
    content = {"meta": {"epoch": 1600}, "state_dict": {f"backbone.{k}": v for k, v in source.state_dict().items()}}
    torch.save(content, tmp_path / "sapiens.pth")
    model = Model()
    assert not load_weights(model, tmp_path / "sapiens.pth")
    expected = resize_positions(source.pos_embed[:, 1:], (4, 4), (4, 3))
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, expected if name == "pos_embed" else source.state_dict()[name]), name


def test_the_whole_file_there_and_back_bit_for_bit(tmp_path):
    from s2kit.models.checkpoints import read_checkpoint

    source = small((64, 64), class_token=True)
    save_file(dict(source.state_dict()), tmp_path / "a.safetensors")
    found = read_checkpoint(tmp_path / "a.safetensors")
    assert found.layout == "first_generation"
    other = small((64, 64), class_token=True)
    other.load_state_dict(fit_positions(found.state, other), strict=True)
    for name, value in source.state_dict().items():
        assert torch.equal(found.state[name], value)
        assert torch.equal(other.state_dict()[name], value)


def test_a_task_file_gives_its_backbone_and_what_does_not_fit_is_said(tmp_path, tiny_model, capsys):
    source = small()
    state = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    save_file(state | {"decode_head.conv_seg.weight": torch.ones(28, 16, 1, 1)}, tmp_path / "seg.safetensors")
    model = Model()
    assert not load_weights(model, tmp_path / "seg.safetensors")
    assert torch.equal(model.backbone.layers[2].attn.qkv.weight, source.layers[2].attn.qkv.weight)
    with pytest.raises(WeightsError, match="holds a backbone of the first generation, another architecture"):
        load_weights(tiny_model("normals"), tmp_path / "seg.safetensors")
    with pytest.raises(WeightsError, match=r"of the first generation; 12 unexpected \(layers\.2\."):
        load_weights(Model(depth=2), tmp_path / "seg.safetensors")
    assert "layers.2.attn.qkv.weight" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="the file has no class token; set class_token to false"):
        load_weights(Model(class_token=True), tmp_path / "seg.safetensors")


def test_other_image_sizes_and_wrong_ones():
    model = small()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 96, 32)).patches.shape == (1, 16, 6, 2)
    with pytest.raises(ValueError, match=r"multiples of the patch size 16, got 65 x 48 \(nearest: 64 x 48\)"):
        model(torch.randn(1, 3, 65, 48))
    with pytest.raises(ValueError, match=r"expected images of shape \(B, 3, H, W\)"):
        model(torch.randn(1, 4, 64, 48))
    with pytest.raises(TypeError, match="uint8"):
        model(torch.zeros(1, 3, 64, 48, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"unknown backbone 'sapiens_9b'"):
        create_backbone("sapiens_9b")
    with pytest.raises(ValueError, match="unknown field rope_dtype for sapiens_1b; fields: embed_dim"):
        create_backbone("sapiens_1b", rope_dtype="float32")


def test_a_task_takes_one_and_decays_its_layers(tmp_path):
    from s2kit.optim import layer_multiplier
    from s2kit.tasks import NormalsTask

    task = NormalsTask(
        arch="sapiens_0.3b",
        image_size=(64, 48),
        backbone={**SMALL, "patch_padding": 2},
        head={"upsample_channels": (8, 6, 4, 4), "conv_channels": (5,)},
    )
    assert task(torch.randn(1, 3, 64, 48)).shape == (1, 3, 64, 48)
    assert layer_multiplier("backbone.layers.1.ln1.weight", 3, 0.5) == 0.25
    assert layer_multiplier("backbone.pos_embed", 3, 0.5) == 0.0625
    assert layer_multiplier("backbone.ln1.weight", 3, 0.5) == 1.0
