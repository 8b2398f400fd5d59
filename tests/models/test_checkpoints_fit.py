"""Loading weights into a task: the table of what does not fit, the likely reason, and no dependence on casts."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from safetensors.torch import save_file

from s2kit.models import create_backbone
from s2kit.models.checkpoints import WeightsError, load_weights, to_huggingface
from s2kit.models.checkpoints.fit import Mismatch


def save(module_or_state, path):
    state = module_or_state if isinstance(module_or_state, dict) else module_or_state.state_dict()
    save_file({name: value.detach().clone() for name, value in state.items()}, path)
    return path


def refusal(model, path, capsys) -> tuple[str, str]:
    """The one line of the error, and the table on standard error."""
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(WeightsError) as caught:
        load_weights(model, path)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value), f"{name} was changed"
    assert "\n" not in str(caught.value)
    return str(caught.value), capsys.readouterr().err


def test_a_table_merges_equal_blocks():
    mismatch = Mismatch(
        missing=["a.weight"],
        unexpected=[f"blocks.{i}.x.{leaf}" for leaf in ("weight", "bias") for i in (0, 1, 2, 7, 11)],
        shapes=[(f"backbone.blocks.{i}.y", (2, 3), (3, 2)) for i in range(10)],
        types=[("n", "int8", "float32")],
        shape_of={"a.weight": (4,)} | {f"blocks.{i}.x.weight": (1, 2) for i in range(12)},
        reason="because",
    )
    assert mismatch.table("file and model:").splitlines() == [
        "file and model:",
        "entry                       in the file  in the model",
        "1 missing",
        "  a.weight                  -            [4]",
        "10 unexpected",
        "  blocks.0-2,7,11.x.weight  [1, 2]       -",
        "  blocks.0-2,7,11.x.bias                 -",
        "10 of another shape",
        "  backbone.blocks.0-9.y     [2, 3]       [3, 2]",
        "1 of another type",
        "  n                         int8         float32",
        "likely reason: because",
    ]
    assert mismatch.describe() == (
        "1 missing (a.weight); 10 unexpected (blocks.0.x.weight, blocks.1.x.weight, blocks.2.x.weight, ...); 10 of "
        "another shape (backbone.blocks.0.y [2, 3] for [3, 2], backbone.blocks.1.y [2, 3] for [3, 2], "
        "backbone.blocks.2.y [2, 3] for [3, 2], ...); 1 of another type (n int8 for float32)"
    )


def test_another_size_is_told_by_name(tiny_model, tmp_path, capsys, monkeypatch):
    """Real sizes, on meta: a file of 0.4b for a model of 0.8b."""
    from s2kit.models.checkpoints import fit, read_checkpoint

    model = tiny_model("normals")
    source = save(model, tmp_path / "a.safetensors")
    checkpoint = read_checkpoint(source)
    with torch.device("meta"):
        checkpoint.state = create_backbone("sapiens2_0.4b").state_dict()
        model.backbone = create_backbone("sapiens2_0.8b")
    with pytest.raises(WeightsError, match=r"another size: the file holds sapiens2_0\.4b, the model is sapiens2_0\.8b"):
        fit.fit_checkpoint(model, checkpoint)
    table = capsys.readouterr().err
    assert "blocks.24-31.attn.wq.weight" in table
    assert re.search(r"\n  cls_token +\[1, 1, 1024\] +\[1, 1, 1280\]\n", table)
    assert "blocks.8-15.attn.wk.weight" in table


def test_the_4k_variant_is_told_by_its_tokenizer(tiny_model, tmp_path, capsys):
    from s2kit.models.checkpoints import fit, read_checkpoint

    model = tiny_model("normals")
    checkpoint = read_checkpoint(save(model, tmp_path / "a.safetensors"))
    with torch.device("meta"):
        checkpoint.state = create_backbone("sapiens2_1b_4k").state_dict()
        model.backbone = create_backbone("sapiens2_1b")
    with pytest.raises(WeightsError, match="another size: the file holds sapiens2_1b_4k, the model is sapiens2_1b"):
        fit.fit_checkpoint(model, checkpoint)
    assert "58 unexpected" in capsys.readouterr().err


def test_sizes_of_ones_own_are_told_by_their_fields(tiny_model, tmp_path, capsys):
    model = tiny_model("normals")
    source = save(model, tmp_path / "a.safetensors")
    options = {"embed_dim": 16, "depth": 16, "num_heads": 2, "mlp_dim": 24}
    model.backbone = create_backbone("sapiens2_nano", **options)
    line, table = refusal(model, source, capsys)
    assert "another size: the file's backbone has depth 18 (the model: 16), mlp_dim 32 (the model: 24)" in line
    assert "backbone.blocks.16-17.ln1.weight" in table
    assert table.count("likely reason") == 1


def test_another_task(tiny_model, tmp_path, capsys):
    source = save(tiny_model("albedo"), tmp_path / "albedo.safetensors")
    line, table = refusal(tiny_model("normals"), source, capsys)
    assert line == (f"{source}: holds a model for albedo, but this is the task normals (strict: false takes what fits)")
    assert "likely reason: another task: the file is for albedo, the model for normals" in table
    assert "decode_head.conv_normal.weight" in table
    assert "decode_head.conv_albedo.weight" in table


def test_another_set_of_outputs_and_another_head(tiny_model, tmp_path, capsys):
    source = save(tiny_model("pose", out_channels=133), tmp_path / "pose133.safetensors")
    line, table = refusal(tiny_model("pose"), source, capsys)
    assert "another set of outputs (keypoints or classes): 133 in the file, 308 in the model" in line
    assert "decode_head.conv_pose.weight  [133, 5, 1, 1]  [308, 5, 1, 1]" in table
    source = save(tiny_model("pose", conv_channels=(7, 5)), tmp_path / "pose_other.safetensors")
    line, _ = refusal(tiny_model("pose"), source, capsys)
    assert "another head: conv_channels [7, 5] in the file, [6, 5] in the model" in line


def test_another_image_size(tiny_model, tmp_path, capsys):
    """Only the pointmap head depends on it."""
    source = save(tiny_model("pointmap", image_size=(320, 192)), tmp_path / "pointmap.safetensors")
    line, _ = refusal(tiny_model("pointmap"), source, capsys)
    assert "another image size: the scale branch of a pointmap head fits one size only" in line
    assert "(256, 192)" in line


def test_one_shard_and_a_damaged_name(tiny_model, tmp_path, capsys):
    model = tiny_model("normals")
    state = dict(model.state_dict())
    half = dict(list(state.items())[:40])
    line, _ = refusal(model, save(half, tmp_path / "model-00001-of-00002.safetensors"), capsys)
    assert "this is one shard of several; give their folder or index" in line
    renamed = {name.replace("blocks.3.ln1", "blocks.3.lo1"): value for name, value in state.items()}
    line, _ = refusal(model, save(renamed, tmp_path / "a.safetensors"), capsys)
    assert "1 missing (backbone.blocks.3.ln1.weight); 1 unexpected (backbone.blocks.3.lo1.weight)" in line
    other = {"features.0.weight": torch.ones(3)}
    line, _ = refusal(model, save(other, tmp_path / "b.safetensors"), capsys)
    assert "the names follow no layout of Sapiens2" in line


def test_not_strict_prints_the_same_table_and_takes_what_fits(tiny_model, tmp_path, capsys):
    other = tiny_model("albedo")
    source = save(other, tmp_path / "albedo.safetensors")
    model = tiny_model("normals")
    _, strict = refusal(model, source, capsys)
    before = copy.deepcopy(model.state_dict())
    mismatch = load_weights(model, source, strict=False)
    assert capsys.readouterr().err == strict
    assert "decode_head.conv_normal.weight" in mismatch.missing
    assert "decode_head.conv_albedo.weight" in mismatch.unexpected
    for name, value in model.state_dict().items():
        source_of = other.state_dict() if name in other.state_dict() else before
        assert torch.equal(value, source_of[name]), name


def test_one_process_of_many_prints_the_table(tiny_model, tmp_path, capsys, monkeypatch):
    source = save(tiny_model("albedo"), tmp_path / "albedo.safetensors")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert refusal(tiny_model("normals"), source, capsys)[1] == ""


def test_other_rotary_periods_are_refused(tiny_model, tmp_path, capsys):
    model = tiny_model("normals")
    state = dict(model.state_dict()) | {"backbone.rope_embed.periods": torch.tensor([1.0, 2.0])}
    with pytest.raises(WeightsError, match=r"a\.safetensors does not fit .*made with periods \[1\.0, 2\.0\]") as caught:
        load_weights(model, save(state, tmp_path / "a.safetensors"))
    assert "\n" not in str(caught.value)


def test_a_pretrainings_other_parts_stay_out(tiny_model, tmp_path, capsys):
    model = tiny_model("normals")
    backbone = {f"teacher.backbone.{name}": value for name, value in model.backbone.state_dict().items()}
    extra = {"teacher.projection_head.0.weight": torch.ones(3), "student.backbone.cls_token": torch.ones(1, 1, 16)}
    torch.save({"state_dict": backbone | extra}, tmp_path / "pretraining.ckpt")
    fresh = tiny_model("normals")
    head = copy.deepcopy(fresh.decode_head.state_dict())
    assert not load_weights(fresh, tmp_path / "pretraining.ckpt")
    assert capsys.readouterr().err == ""
    for name, value in fresh.backbone.state_dict().items():
        assert torch.equal(value, model.backbone.state_dict()[name]), name
    for name, value in fresh.decode_head.state_dict().items():
        assert torch.equal(value, head[name]), name


def test_weights_of_timm_fill_one_of_its_models(tiny_model, tmp_path):
    timm = pytest.importorskip("timm")
    options = {"embed_dim": 16, "depth": 2, "num_heads": 2}
    model = tiny_model("normals")
    model.backbone = create_backbone("timm/vit_tiny_patch16_224", (64, 48), **options)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=(64, 48), **options)
    load_weights(model, save(source, tmp_path / "vit.safetensors"))
    for name, value in source.state_dict().items():
        assert torch.equal(model.backbone.state_dict()["model." + name], value), name


# ---------------------------------------------------------------------------------------------------- casts


def tokens(model) -> torch.Tensor:
    image = torch.linspace(-2, 2, 3 * 64 * 48).reshape(1, 3, 64, 48)
    with torch.no_grad():
        return model.backbone.float().forward_tokens(image)


CASTS = {
    "none": lambda model: model,
    "float": lambda model: model.float(),
    "bfloat16": lambda model: model.bfloat16(),
    "half": lambda model: model.half(),
    "double": lambda model: model.double(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("cast", CASTS)
def test_loading_does_not_depend_on_casts(cast, dtype, tiny_model, tmp_path):
    """Of the model before the load, or of the whole file, periods included; the rotary tables stay what they are."""
    torch.manual_seed(0)
    source = tiny_model("normals")
    with torch.no_grad():
        for value in source.parameters():  # numbers that every type holds exactly
            value.copy_((value * 64).round() / 64)
    path = save({name: value.to(dtype) for name, value in source.state_dict().items()}, tmp_path / "a.safetensors")
    model = CASTS[cast](tiny_model("normals"))
    own = next(model.parameters()).dtype
    assert not load_weights(model, path)
    assert next(model.parameters()).dtype == own
    assert model.backbone.rope_embed.periods.dtype == torch.bfloat16
    assert torch.equal(model.backbone.rope_embed.periods, source.backbone.rope_embed.periods)
    assert torch.equal(tokens(model), tokens(source))


def test_loading_into_a_compiled_model_and_from_one(tiny_model, tmp_path):
    source, model = tiny_model("normals"), tiny_model("normals")
    compiled = torch.compile(source, backend="eager")
    path = save(compiled, tmp_path / "a.safetensors")
    assert not load_weights(model, path)
    assert torch.equal(tokens(model), tokens(source))
    inside = tiny_model("normals")
    inside.backbone.blocks[3] = torch.compile(inside.backbone.blocks[3], backend="eager")
    torch.save(inside.state_dict(), tmp_path / "b.pth")
    assert any("_orig_mod" in name for name in inside.state_dict())
    assert not load_weights(model, tmp_path / "b.pth")
    assert torch.equal(tokens(model), tokens(inside))


@pytest.mark.parametrize("precision", ["32-true", "16-true", "bf16-true", "64-true", "bf16-mixed"])
def test_a_precision_plugin_changes_nothing_but_the_weights_type(precision, tmp_path):
    """Under each of Lightning's precisions a task takes an official file, and its rotary rule is the release's."""
    from lightning import Trainer

    from s2kit.tasks import NormalsTask

    options = {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "rope_dtype": "bfloat16"}
    head = {"upsample_channels": (8, 6, 4, 4), "conv_channels": (6, 5)}
    fields = {"arch": "sapiens2_nano", "image_size": (64, 48), "backbone": options, "head": head}
    source = NormalsTask(**fields)
    path = save(source, tmp_path / "a.safetensors")
    trainer = Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
    with trainer.strategy.model_sharded_context(), trainer.precision_plugin.module_init_context():
        task = NormalsTask(**fields, weights=str(path))
    task = trainer.precision_plugin.convert_module(task)
    for (name, value), expected in zip(task.named_parameters(), source.parameters()):
        assert torch.equal(value, expected.to(value.dtype)), name
    assert task.backbone.rope_embed.periods.dtype == torch.bfloat16
    tables = [model.backbone.rope_embed(4, 3, 9, torch.device("cpu")) for model in (task, source)]
    for ours, expected in zip(*tables):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, expected)


def test_the_ports_files_load_into_a_task(tiny_model, tmp_path):
    source, model = tiny_model("matting"), tiny_model("matting")
    for module_names in (False, True):
        state, _ = to_huggingface(source.state_dict(), source.backbone.config, module_names)
        assert not load_weights(model, save(state, tmp_path / "model.safetensors"))
        for name, value in source.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name
        torch.nn.init.zeros_(model.backbone.blocks[3].ffn.w12.weight)
