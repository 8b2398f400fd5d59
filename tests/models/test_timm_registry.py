"""Sapiens2 in timm's registry: what timm's users expect of a vision transformer."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

import s2kit
from s2kit.models import SAPIENS2, create_backbone
from s2kit.optim import layer_multiplier

assert s2kit  # its import is what registers the models

TINY = {"embed_dim": 16, "depth": 4, "num_heads": 2, "mlp_dim": 24}


def tiny(name: str = "sapiens2_0.4b", image_size: tuple[int, int] = (64, 48), **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, img_size=image_size, **{**TINY, **options}).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "code",
    [
        "import s2kit, sys; assert not {'torch', 'timm'} & set(sys.modules); from timm.models import create_model",
        "import timm, s2kit",
        "import s2kit.models.timm_models",
    ],
)
def test_registers_whichever_is_imported_first_and_imports_nothing_itself(code):
    check = f"{code}; import timm; assert sorted(timm.list_models('sapiens2*')) == {sorted(SAPIENS2)}"
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_every_listed_name_makes_its_size():
    names = timm.list_models("sapiens2*")
    assert set(names) == set(timm.list_models("sapiens2*", include_tags=True)) == set(SAPIENS2)
    for name in names:
        model = timm.create_model(name, device="meta")
        with torch.device("meta"):
            expected = create_backbone(name)
        assert {k: v.shape for k, v in model.state_dict().items()} == {
            k: v.shape for k, v in expected.state_dict().items()
        }
        assert model.num_features == SAPIENS2[name].embed_dim
        assert model.pretrained_cfg["input_size"] == (3, *SAPIENS2[name].image_size)


def test_timms_words_are_understood(images):
    model = tiny(num_classes=5, global_pool="avg", drop_path_rate=0.3, in_chans=4, drop_rate=0.1, dynamic_img_size=True)
    assert model.config.drop_path == 0.3
    assert model.config.image_size == (64, 48)
    assert model(torch.randn(2, 4, 64, 48)).shape == (2, 5)
    assert tiny(image_size=64).config.image_size == (64, 64)
    assert tiny(dtype=torch.float64).cls_token.dtype == torch.float64
    with pytest.raises(ValueError, match="unknown field patch_drop_rate"):
        tiny(patch_drop_rate=0.1)


def test_a_wrong_size_lists_the_right_ones():
    with pytest.raises(ValueError, match=r"sapiens2_0\.1b, sapiens2_0\.4b, sapiens2_0\.8b"):
        timm.create_model("sapiens2_0.7b")


def test_outputs_are_those_of_our_backbone(images):
    torch.manual_seed(0)
    ours = create_backbone("sapiens2_0.4b", (64, 48), **TINY).eval()
    model = tiny()
    model.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(model.forward_features(images), ours.forward_tokens(images))
    assert torch.equal(model(images), ours(images).cls)
    assert torch.equal(model.pool(model.forward_features(images), "avg"), ours(images).patches.mean(dim=(2, 3)))
    taken = model.get_intermediate_layers(images, [1, -1], reshape=True)
    assert torch.equal(taken[0], ours.intermediate(images, [1])[0])
    normed = model.get_intermediate_layers(images, 1, reshape=True, norm=True)
    assert torch.equal(normed[0], ours.intermediate(images, [-1])[0])


def test_features_only(images):
    features = tiny(features_only=True)
    assert features.feature_info.channels() == [16, 16, 16]
    assert features.feature_info.reduction() == [16, 16, 16]
    assert features.feature_info.module_name() == ["blocks.1", "blocks.2", "blocks.3"]
    whole = tiny()
    for got, want in zip(features(images), whole.get_intermediate_layers(images, 3, reshape=True), strict=True):
        assert got.shape == (2, 16, 4, 3)
        assert torch.equal(got, want)
    fewer = tiny(features_only=True, out_indices=[0, -2])
    assert len(fewer.model.blocks) == 3  # what no output needs is gone
    for got, want in zip(fewer(images), whole.get_intermediate_layers(images, [0, 2], reshape=True), strict=True):
        assert torch.equal(got, want)


def test_intermediates_in_every_form(images):
    model = tiny()
    tokens, maps = model.forward_intermediates(images, indices=2, norm=True)
    assert torch.equal(tokens, model.forward_features(images))
    assert torch.equal(maps[-1].flatten(2).transpose(1, 2), tokens[:, 9:])
    pairs = model.get_intermediate_layers(images, [3], return_prefix_tokens=True, norm=True)
    assert torch.equal(torch.cat(pairs[0][::-1], dim=1), tokens)
    found = model.forward_intermediates(images, [3], output_dict=True, return_prefix_tokens=True, output_fmt="NLC")
    assert {name: len(value) for name, value in found.items()} == {
        "image_intermediates": 1,
        "image_intermediates_prefix": 1,
        "image_features": 2,
    }
    assert len(model.forward_intermediates(images, intermediates_only=True)) == 4
    model.blocks[3].forward = None
    assert len(model.forward_intermediates(images, [1], stop_early=True, intermediates_only=True)) == 1
    for wrong in ([4], 5, 0, []):
        with pytest.raises(IndexError, match="blocks of 4"):
            model.forward_intermediates(images, wrong)


def test_classifier(images):
    model = tiny(num_classes=7)
    assert model.get_classifier().out_features == 7
    assert model(images).shape == (2, 7)
    assert model.forward_head(model.forward_features(images), pre_logits=True).shape == (2, 16)
    model.reset_classifier(3, "avgmax")
    assert model(images).shape == (2, 3)
    model.reset_classifier(0, "")
    assert model(images).shape == (2, 9 + 12, 16)
    with pytest.raises(ValueError, match="global_pool must be one of"):
        model.reset_classifier(0, "map")


def test_group_matcher_gives_the_published_multipliers():
    from timm.models import group_parameters

    model = tiny(num_classes=3, window_tokenizer_depth=1, image_size=(64, 128))
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    last = max(layers.values())
    assert last == 4 + 1
    for name, _ in model.named_parameters():
        assert 0.5 ** (last - layers[name]) == layer_multiplier(f"backbone.{name}", 4, 0.5), name
    assert model.no_weight_decay() == {"tokenizer.local_pos_embed"}


def test_grad_checkpointing_recomputes_and_changes_nothing(images):
    gradients, calls = [], []
    for enable in (False, True):
        model = tiny(num_classes=2).train()
        model.set_grad_checkpointing(enable)
        model.blocks[1].ffn.register_forward_pre_hook(lambda *_: calls.append(1))
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert len(calls) == 1 + 2
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_weights_come_from_a_file_with_official_names(images, tmp_path):
    torch.manual_seed(5)
    ours = create_backbone("sapiens2_0.4b", (64, 48), **TINY).eval()
    path = tmp_path / "official.safetensors"
    save_file(ours.state_dict(), path)
    by_path = tiny(checkpoint_path=str(path))
    by_overlay = tiny(pretrained=True, pretrained_cfg_overlay={"file": str(path)})
    for model in (by_path, by_overlay):
        assert torch.equal(model.forward_features(images), ours.forward_tokens(images))
    features = tiny(pretrained=True, pretrained_cfg_overlay={"file": str(path)}, features_only=True, out_indices=[-2])
    assert torch.equal(features(images)[0], ours.intermediate(images, [-2])[0])


def test_pretrained_says_where_weights_come_from():
    with pytest.raises(RuntimeError, match=r"Sapiens2 License.*huggingface\.co/facebook.*checkpoint_path='FILE"):
        timm.create_model("sapiens2_0.4b", pretrained=True)
