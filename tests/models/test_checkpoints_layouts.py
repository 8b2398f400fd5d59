"""Layouts: told apart by content, unwrapped, and there and back bit for bit, for tiny models and every real size."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from s2kit.models import SAPIENS2, create_backbone, create_head
from s2kit.models.checkpoints import (
    WeightsError,
    from_huggingface,
    identify,
    read_checkpoint,
    task_of,
    to_huggingface,
)
from s2kit.models.checkpoints.layouts import interpret

TASKS = ("pose", "segmentation", "normals", "pointmap", "albedo", "matting")
PORTED = tuple(task for task in TASKS if task != "albedo")
SIZES = tuple(name for name in SAPIENS2 if name != "sapiens2_nano")


def assert_same(found: dict, expected: dict) -> None:
    """The same names in the same order, with the same types, shapes and bits."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        if not value.is_meta:
            assert torch.equal(found[name], value), name


@cache
def meta_state(arch: str, task: str | None) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        if task is None:
            return dict(create_backbone(arch).state_dict())
        backbone, head = meta_state(arch, None), create_head(task, arch).state_dict()
    return {f"backbone.{k}": v for k, v in backbone.items()} | {f"decode_head.{k}": v for k, v in head.items()}


# ---------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("module_names", [False, True])
@pytest.mark.parametrize("task", [None, *PORTED])
def test_tiny_models_to_hugging_face_and_back(task, module_names, tiny_model):
    model = tiny_model(task or "normals")
    state = model.state_dict() if task else model.backbone.state_dict()
    there, config = to_huggingface(state, model.backbone.config, module_names)
    assert not any(name.endswith("periods") for name in there)
    assert_same(from_huggingface(there, config), state)
    # Without its config the class is told from the head's shapes.
    assert_same(from_huggingface(there), state)


@pytest.mark.parametrize("task", [None, *PORTED])
@pytest.mark.parametrize("arch", SIZES)
def test_every_real_size_to_hugging_face_and_back_by_names_and_shapes(arch, task):
    state = meta_state(arch, task)
    if arch == "sapiens2_1b_4k":
        with pytest.raises(WeightsError, match="no window tokenizer"):
            to_huggingface(state, SAPIENS2[arch])
        return
    for module_names in (False, True):
        there, config = to_huggingface(state, SAPIENS2[arch], module_names)
        assert len(there) == len(state) - 1 + (2 * SAPIENS2[arch].depth if module_names else 0)
        assert_same(from_huggingface(there, config), state)


def test_float32_periods_come_back_as_such(tiny_model):
    """config.json says the rotary rule of a model of ours, for which the port has no field."""
    model = create_backbone("sapiens2_nano", embed_dim=16, depth=2, num_heads=2, mlp_dim=32)
    there, config = to_huggingface(model.state_dict(), model.config)
    back = from_huggingface(there, config)
    assert back["rope_embed.periods"].dtype == torch.float32
    assert_same(back, model.state_dict())


def test_what_the_port_does_not_have_is_refused_with_the_reason(tiny_model):
    model = tiny_model("albedo")
    with pytest.raises(WeightsError, match=r"has no albedo model; it has: pose, segmentation, normals"):
        to_huggingface(model.state_dict(), model.backbone.config)
    with pytest.raises(WeightsError, match=r"gate_proj\.weight has no other half"):
        from_huggingface(
            {"embeddings.patch_embeddings.weight": torch.ones(1), "model.layer.0.mlp.gate_proj.weight": torch.ones(1)}
        )
    with pytest.raises(WeightsError, match="Sapiens2ForDancing"):
        names = {"model.embeddings.patch_embeddings.weight": torch.ones(1)}
        from_huggingface(names, {"architectures": ["Sapiens2ForDancing"]})


def test_names_in_the_ports_memory():
    """A sample of the port's names, as its modules list them."""
    state = meta_state("sapiens2_0.4b", "pointmap")
    there, config = to_huggingface(state, SAPIENS2["sapiens2_0.4b"], module_names=True)
    shapes = {name: tuple(value.shape) for name, value in there.items()}
    assert shapes["model.embeddings.register_tokens"] == (1, 8, 1024)
    assert shapes["model.model.layer.8.attention.k_proj.weight"] == (512, 1024)
    assert shapes["model.model.layer.23.mlp.up_proj.bias"] == (4096,)
    assert shapes["model.model.layer.0.layer_scale1.lambda1"] == (1024,)
    assert shapes["model.norm.weight"] == (1024,)
    assert shapes["decode_head.upsample_layers.1.convolution.weight"] == (3072, 1536, 3, 3)
    assert shapes["decode_head.predictor.weight"] == (3, 16, 1, 1)
    assert shapes["scale_head.predictor.block2.layers.0.weight"] == (128, 512)
    assert config["architectures"] == ["Sapiens2ForPointmapEstimation"]
    assert config["num_key_value_heads_per_layer"] == [16] * 8 + [8] * 8 + [16] * 8
    assert config["head_config"] == {
        "model_type": "sapiens2_head",
        "upsample_out_channels": [1536, 768, 512, 256],
        "upsample_kernel_sizes": [3, 3, 3, 3],
        "use_pixel_shuffle": True,
        "conv_out_channels": [64, 32, 16],
        "conv_kernel_sizes": [3, 3, 3],
        "scale_conv_out_channels": [1536, 512, 128],
        "scale_conv_kernel_sizes": [1, 1, 1],
        "scale_final_input_size": 6144,
        "scale_final_hidden_sizes": [512, 128],
    }


def test_gate_comes_before_up(tiny_model):
    """The port's two matrices are the first and the second half of ours, and not the other way round."""
    model = tiny_model("pose")
    there, _ = to_huggingface(model.state_dict(), model.backbone.config, module_names=True)
    ours = model.backbone.blocks[3].ffn.w12.weight
    assert torch.equal(there["model.model.layer.3.mlp.gate_proj.weight"], ours[:32])
    assert torch.equal(there["model.model.layer.3.mlp.up_proj.weight"], ours[32:])


# ---------------------------------------------------------------------------------------------------- detection


@pytest.mark.parametrize("arch", SIZES)
def test_every_real_size_is_told_from_its_shapes(arch):
    for task in (None, *TASKS):
        state = meta_state(arch, task)
        found = identify(state)
        assert (found.arch, found.overrides, found.known) == (arch, {}, True)
        assert task_of(state) == task


def test_sizes_of_ones_own_and_variants_are_told_with_their_fields():
    own = {"embed_dim": 32, "depth": 20, "num_heads": 2, "mlp_dim": 48, "full_attention_ends": 3, "num_kv_heads": 1}
    cases = [
        ("sapiens2_nano", own | {"num_registers": 4, "patch_size": 8, "rope_dtype": "bfloat16"}),
        ("sapiens2_0.4b", {"full_attention_ends": 12}),
        ("sapiens2_0.4b", {"num_kv_heads": 4, "full_attention_ends": 6}),
        ("sapiens2_0.1b", {"in_channels": 4, "rope_dtype": "float32"}),
    ]
    for arch, overrides in cases:
        with torch.device("meta"):
            state = create_backbone(arch, **overrides).state_dict()
        found = identify(state)
        with torch.device("meta"):
            again = create_backbone(found.arch, **found.overrides).state_dict()
        assert found.arch == arch
        assert_same(again, state)


def test_the_rotary_rule_survives_a_cast_of_the_file(make_tiny):
    state = {name: value.float() for name, value in make_tiny().state_dict().items()}
    assert identify(state).overrides["rope_dtype"] == "bfloat16"
    state = {name: value.float() for name, value in make_tiny(rope_dtype="float32").state_dict().items()}
    assert "rope_dtype" not in identify(state).overrides  # float32 is the rule of sapiens2_nano


def _wrap(state: dict, how: str) -> dict:
    prefixed = {
        "ddp": "module.",
        "compiled": "_orig_mod.",
        "encoder": "encoder.",
    }
    if how in prefixed:
        return {prefixed[how] + name: value for name, value in state.items()}
    if how == "blocks compiled":
        return {name.replace("blocks.1.", "blocks.1._orig_mod."): value for name, value in state.items()}
    if how == "student and teacher":
        wrong = {f"student.backbone.{name}": torch.zeros_like(value) for name, value in state.items()}
        right = {f"teacher.backbone.{name}": value for name, value in state.items()}
        return {"state_dict": wrong | right, "epoch": 3}
    if how == "two dicts":
        wrong = {f"module.backbone.{name}": torch.zeros_like(value) for name, value in state.items()}
        return {"student": wrong, "teacher": {f"backbone.{name}": v for name, v in state.items()}, "iteration": 7}
    if how == "nested":
        return {"model": {"state_dict": {f"module.{name}": value for name, value in state.items()}}, "meta": {}}
    return {how: state, "optimizer": {"state": {}}, "epoch": 1}


WRAPPINGS = ("state_dict", "model", "teacher", "module", "nested", "ddp", "compiled", "encoder", "blocks compiled")
WRAPPINGS += ("student and teacher", "two dicts")


@pytest.mark.parametrize("how", WRAPPINGS)
def test_wrappings_in_the_wild(how, make_tiny, tmp_path):
    state = make_tiny().state_dict()
    torch.save(_wrap(state, how), tmp_path / "file.pth")
    found = read_checkpoint(tmp_path / "file.pth")
    assert found.layout == "official"
    bare = {name.removeprefix("backbone."): value for name, value in found.state.items()}
    assert_same(bare, dict(state))
    assert bool(found.wrapping) == ("compiled" not in how)
    assert bool(found.set_aside) == (how == "student and teacher")


@pytest.mark.parametrize("how", ["ddp", "nested", "model"])
def test_wrapped_tasks_of_the_port_and_of_ours(how, tiny_model, tmp_path):
    model = tiny_model("segmentation")
    state = model.state_dict()
    torch.save(_wrap(state, how), tmp_path / "ours.pth")
    assert_same(read_checkpoint(tmp_path / "ours.pth").state, dict(state))
    there, _ = to_huggingface(state, model.backbone.config, module_names=True)
    torch.save(_wrap({name: value.clone() for name, value in there.items()}, how), tmp_path / "port.pth")
    found = read_checkpoint(tmp_path / "port.pth")
    assert found.layout == "huggingface"
    assert_same(found.state, dict(state))


def test_a_teacher_in_the_ports_names(make_tiny):
    model = make_tiny()
    there, _ = to_huggingface(model.state_dict(), model.config, module_names=True)
    both = {f"student.{name}": value * 0 for name, value in there.items()}
    both |= {f"teacher.{name}": value for name, value in there.items()}
    found = interpret({"state_dict": both}, "file")
    assert found.layout == "huggingface"
    assert_same(found.state, dict(model.state_dict()))


def test_the_layout_does_not_depend_on_the_files_name(make_tiny, tmp_path):
    state = dict(make_tiny().state_dict())
    save_file(state, tmp_path / "weights.pth")
    torch.save(state, tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        assert_same(read_checkpoint(tmp_path / name).state, state)


def test_files_without_periods_get_them_by_the_rule(make_tiny, tmp_path):
    state = dict(make_tiny().state_dict())
    save_file({name: value for name, value in state.items() if "periods" not in name}, tmp_path / "a.safetensors")
    found = read_checkpoint(tmp_path / "a.safetensors")
    assert_same(found.state, state)


@pytest.mark.parametrize("arch", ["sapiens_0.3b", "sapiens_0.6b", "sapiens_1b", "sapiens_2b"])
def test_the_first_generation_is_told_by_its_names(arch, first_generation_keys):
    names = [line.split(" ")[0] for line in first_generation_keys[arch]]
    state = {name: torch.empty(1, device="meta") for name in names}
    wrapped = {"meta": {"epoch": 1600}, "state_dict": {f"backbone.{name}": value for name, value in state.items()}}
    for content in (state, wrapped):
        found = interpret(content, "file")
        assert found.layout == "first_generation"
        assert [name.removeprefix("backbone.") for name in found.state] == names


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "an empty dict"),
        ([1, 2], "it is a list"),
        ({"epoch": 1, "optimizer": {"lr": 1}}, "its keys are 'epoch', 'optimizer'"),
        ({"state_dict": {"lr": 1.0}}, "its keys are 'lr' under state_dict"),
        (torch.ones(3), "it is a Tensor"),
    ],
)
def test_what_holds_no_state_dict_is_said_by_its_keys(content, words, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(WeightsError, match="holds no state dict") as caught:
        read_checkpoint(tmp_path / "file.pth")
    assert words in str(caught.value)
    assert str(tmp_path / "file.pth") in str(caught.value)
