"""``python -m s2kit convert``: every layout there and back bit for bit, what goes with weights, and each mistake."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from s2kit.cli import main
from s2kit.models import SAPIENS2, create_backbone, create_head
from s2kit.models.checkpoints import Checkpoint, WeightsError, read_checkpoint, read_state_dict
from s2kit.models.checkpoints.describe import describe_config
from s2kit.models.heads import HEADS
from s2kit.tasks import NormalsTask, load_task

FIELDS = {
    "arch": "sapiens2_nano",
    "image_size": (64, 48),
    "backbone": {"embed_dim": 16, "depth": 18, "num_heads": 2, "mlp_dim": 32, "rope_dtype": "bfloat16"},
    "head": {"upsample_channels": (8, 6, 4, 4), "conv_channels": (5,)},
    "lr": 0.125,
}


@pytest.fixture(scope="module")
def task() -> NormalsTask:
    torch.manual_seed(0)
    return NormalsTask(**FIELDS).eval()


@pytest.fixture
def official(task, tmp_path) -> Path:
    """A task's file as one downloads it, with the license beside it."""
    folder = tmp_path / "official"
    folder.mkdir()
    save_file(dict(task.state_dict()), folder / "sapiens2_tiny_normal.safetensors")
    (folder / "LICENSE.md").write_text("Sapiens2 License, whole text")
    return folder / "sapiens2_tiny_normal.safetensors"


def convert(source, layout: str, out: Path, *options: str) -> Path:
    assert main(["convert", str(source), "--to", layout, "--out", str(out), *options]) == 0
    return out


def assert_same(found: dict, expected: dict) -> None:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


def error_of(capsys, *args: str) -> str:
    code = main(["convert", *map(str, args)])
    lines = capsys.readouterr().err.splitlines()
    assert code in (1, 2)
    return lines[-1]


# ---------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("first", ["official", "huggingface", "lightning"])
@pytest.mark.parametrize("second", ["official", "huggingface", "lightning"])
@pytest.mark.parametrize("shards", [False, True])
def test_there_and_back_bit_for_bit(first, second, shards, official, task, tmp_path):
    options = ("--shard-size", "0.00002") if shards else ()
    there = convert(official, first, tmp_path / "there", *options)
    back = convert(there, second, tmp_path / "back", *options)
    whole = convert(back, "official", tmp_path / "whole")
    assert_same(load_file(whole / "weights.safetensors"), dict(task.state_dict()))
    assert read_checkpoint(there).layout == ("huggingface" if first == "huggingface" else first)
    sharded = shards and first != "lightning"
    assert len(list(there.glob("*-of-*.safetensors"))) == (15 if sharded else 0)


@pytest.mark.parametrize("layout", ["official", "huggingface"])
def test_a_backbone_there_and_back(layout, official, task, tmp_path):
    there = convert(official, layout, tmp_path / "there", "--backbone")
    state = read_state_dict(there)
    assert_same(state, dict(task.backbone.state_dict()))
    assert json.loads((there / "model.json").read_text())["task"] is None
    again = convert(there, "official", tmp_path / "again")
    assert_same(load_file(again / "weights.safetensors"), dict(task.backbone.state_dict()))


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_first_generation_there_and_back(wrapped, tmp_path, capsys):
    model = create_backbone("sapiens_0.3b", (64, 64), embed_dim=16, depth=2, num_heads=2, mlp_dim=32, class_token=True)
    state = dict(model.state_dict())
    if wrapped:
        content = {"state_dict": {f"backbone.{name}": value for name, value in state.items()}, "meta": {"epoch": 1}}
        content["state_dict"]["decode_head.conv_seg.bias"] = torch.ones(3)
        torch.save(content, tmp_path / "a.pth")
    else:
        save_file(state, tmp_path / "a.safetensors")
    source = tmp_path / ("a.pth" if wrapped else "a.safetensors")
    out = convert(source, "official", tmp_path / "out")
    text = capsys.readouterr().out
    assert "first generation" in text
    assert "positions of 4 x 4 patches with class token" in text
    assert ("set aside:  1 entries" in text) == wrapped
    assert_same(load_file(out / "weights.safetensors"), state)
    assert_same(read_state_dict(out), state)
    assert "a first-generation backbone has no huggingface layout" in error_of(
        capsys, source, "--to", "huggingface", "--out", tmp_path / "x"
    )


def test_a_run_keeps_its_fields_frame_and_scores(task, tmp_path):
    """From our own run through each layout: the task that comes out is the one that went in."""
    from s2kit.export import export_task

    export_task(task, tmp_path / "run", {"test/mean": 12.5})
    source = tmp_path / "run"
    for layout in ("huggingface", "lightning", "official"):
        source = convert(source, layout, tmp_path / layout)
        again = load_task("normals", source)
        assert {name: again.hparams[name] for name in ("lr", "arch")} == {"lr": 0.125, "arch": "sapiens2_nano"}
        assert tuple(again.image_size) == (64, 48)
        assert again.frame == "x right, y up, z to the camera"
        assert_same(dict(again.state_dict()), dict(task.state_dict()))
    description = json.loads((tmp_path / "huggingface" / "model.json").read_text())
    assert description["metrics"] == {"test/mean": 12.5}


def test_a_lightning_checkpoint_is_one(official, task, tmp_path, experiments):
    out = convert(official, "lightning", tmp_path / "out")
    again = NormalsTask.load_from_checkpoint(out / "model.ckpt", map_location="cpu")
    assert_same(dict(again.state_dict()), dict(task.state_dict()))


def test_a_trainer_tests_a_converted_checkpoint(official, tmp_path, experiments, tiny_normals, capsys):
    out = convert(official, "lightning", tmp_path / "out")
    model = [
        "--model.image_size=[64, 48]",
        "--model.backbone={embed_dim: 16, depth: 18, num_heads: 2, mlp_dim: 32, rope_dtype: bfloat16}",
        "--model.head={upsample_channels: [8, 6, 4, 4], conv_channels: [5]}",
    ]
    args = ["--config", str(experiments / "normals.yaml"), *tiny_normals, *model, f"--run.folder={tmp_path}"]
    args.append(f"--ckpt_path={out / 'model.ckpt'}")
    assert main(["test", *args]) == 0
    capsys.readouterr()
    assert main(["fit", *args]) == 1  # it resumes no run
    assert "contains only the model" in capsys.readouterr().err


def test_the_port_loads_what_is_written(official, task, tmp_path):
    """`from_pretrained` of the transformers port takes the folder, whole and in shards, with nothing left over."""
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "Sapiens2ForNormalEstimation"):
        pytest.skip("this release of transformers has no Sapiens2")
    from s2kit.models.checkpoints import from_huggingface

    for name, options in (("whole", ()), ("sharded", ("--shard-size", "0.00002"))):
        out = convert(official, "huggingface", tmp_path / name, *options)
        kind = transformers.Sapiens2ForNormalEstimation
        model, info = kind.from_pretrained(out, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert_same(from_huggingface(model.state_dict(), model.config.to_dict()), dict(task.state_dict()))
        # And what it saves, under both of its sets of names, comes back to us.
        for number, original in enumerate((True, False)):
            saved = tmp_path / f"{name}{number}"
            model.save_pretrained(saved, save_original_format=original)
            assert_same(read_state_dict(saved), dict(task.state_dict()))
            assert load_task(None, saved).name == "normals"


# ---------------------------------------------------------------------------------------------------- what goes along


@pytest.mark.parametrize("layout", ["official", "huggingface", "lightning"])
def test_terms_and_checksums_go_with_the_weights(layout, official, tmp_path, capsys):
    out = convert(official, layout, tmp_path / "out")
    assert (out / "LICENSE.md").read_text() == "Sapiens2 License, whole text"
    notice = (out / "NOTICE-SAPIENS2.txt").read_text()
    assert "under the Sapiens2 License" in notice
    assert "keep the license and this notice beside them" in notice
    assert "stay under the Sapiens2 License" in capsys.readouterr().out
    for path in out.glob("*.safetensors"):
        said = path.with_name(path.name + ".sha256").read_text().split()
        assert said == [hashlib.sha256(path.read_bytes()).hexdigest(), path.name]
        assert path.stat().st_mode == (out / "NOTICE-SAPIENS2.txt").stat().st_mode
    assert not list(out.glob("*.tmp")) + list(out.glob(".*"))
    onward = convert(out, "official", tmp_path / "onward")
    assert (onward / "LICENSE.md").read_text() == "Sapiens2 License, whole text"


def test_weights_trained_here_from_nothing_get_no_notice(tmp_path, capsys):
    from s2kit.export import export_task

    export_task(NormalsTask(**FIELDS), tmp_path / "run")
    source = tmp_path / "run"
    for layout in ("lightning", "huggingface", "official"):
        source = convert(source, layout, tmp_path / layout)
        assert not (source / "NOTICE-SAPIENS2.txt").exists()
        assert load_task("normals", source).weights_from is None
    assert "Sapiens2 License" not in capsys.readouterr().out


def test_what_was_trained_from_official_weights_keeps_the_notice(official, tmp_path):
    from s2kit.export import export_task

    task = NormalsTask(**FIELDS, weights=str(official))
    assert (task.weights_from, task.frame) == (official.name, "published")
    checkpoint: dict = {}
    task.on_fit_start()  # from here on the data's frame is learned
    task.on_save_checkpoint(checkpoint)
    again = NormalsTask(**FIELDS)
    again.on_load_checkpoint(checkpoint)
    assert (again.weights_from, again.frame) == (official.name, NormalsTask.frame)
    export_task(again, tmp_path / "run")
    assert "Sapiens2 License" in (tmp_path / "run" / "NOTICE-SAPIENS2.txt").read_text()
    out = convert(tmp_path / "run", "lightning", tmp_path / "out")
    assert (out / "NOTICE-SAPIENS2.txt").exists()
    third = load_task("normals", out)
    assert (third.weights_from, third.frame) == (official.name, NormalsTask.frame)


def test_a_flip_in_a_converted_file_is_noticed(official, tmp_path):
    out = convert(official, "official", tmp_path / "out")
    data = bytearray((out / "weights.safetensors").read_bytes())
    data[-40] ^= 1
    (out / "weights.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="damaged, or another version: its SHA-256 is"):
        read_state_dict(out)


def test_official_files_say_published_as_their_frame(official, tmp_path):
    assert (
        json.loads((convert(official, "official", tmp_path / "a") / "model.json").read_text())["frame"] == "published"
    )
    for layout in ("official", "huggingface", "lightning"):
        assert load_task("normals", convert(official, layout, tmp_path / f"to_{layout}")).frame == "published"
    assert load_task("normals", official).frame == "published"


def test_a_cast_is_asked_for(official, task, tmp_path):
    out = convert(official, "official", tmp_path / "out", "--dtype", "bfloat16")
    for name, value in load_file(out / "weights.safetensors").items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, task.state_dict()[name].bfloat16())


def test_description(official, capsys):
    assert main(["convert", str(official)]) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["layout"].strip() == "official"
    assert "embed_dim 16, depth 18" in lines["backbone"]
    assert lines["task"].strip() == "normals"
    assert lines["types"].strip() == "bfloat16, float32"
    count = sum(p.numel() for p in NormalsTask(**FIELDS).parameters())
    assert lines["parameters"].strip() == f"{count:,} in {len(load_file(official))} entries"


# ---------------------------------------------------------------------------------------------------- loading


def test_a_task_is_found_by_content_alone(official, task):
    """No model.json: size, head and task from the shapes, the image size from the size's table or what is said."""
    again = load_task(None, official)
    assert isinstance(again, NormalsTask)
    assert again.image_size == (256, 192)
    assert again.backbone.config.rope_dtype == "bfloat16"
    again = load_task("normals", official, image_size=(64, 48))
    picture = np.random.default_rng(0).integers(0, 255, (37, 53, 3), np.uint8)
    np.testing.assert_array_equal(again.predict(picture)[0], task.predict(picture)[0])


def test_the_image_size_of_a_hugging_face_folder(official, tmp_path):
    out = convert(official, "huggingface", tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "model.json").unlink()
    config["image_size"] = [96, 64]
    (out / "config.json").write_text(json.dumps(config))
    assert load_task("normals", out).image_size == (96, 64)


@pytest.mark.parametrize("image_size", [(1024, 768), (256, 192), (640, 480)])
def test_the_image_size_of_a_pointmap_head(image_size):
    with torch.device("meta"):
        backbone = create_backbone("sapiens2_0.4b").state_dict()
        head = create_head("pointmap", "sapiens2_0.4b", image_size=image_size).state_dict()
    state = {f"backbone.{k}": v for k, v in backbone.items()} | {f"decode_head.{k}": v for k, v in head.items()}
    config = describe_config(Checkpoint(state, "official"))
    assert config == {"arch": "sapiens2_0.4b", "image_size": list(image_size)}


@pytest.mark.parametrize("arch", [name for name in SAPIENS2 if name not in ("sapiens2_nano", "sapiens2_1b_4k")])
@pytest.mark.parametrize("name", HEADS)
def test_every_published_task_needs_its_size_only(arch, name):
    """No field is told to differ from what the size and the task have, so that ``arch`` says it all."""
    with torch.device("meta"):
        backbone, head = create_backbone(arch).state_dict(), create_head(name, arch).state_dict()
    state = {f"backbone.{k}": v for k, v in backbone.items()} | {f"decode_head.{k}": v for k, v in head.items()}
    assert describe_config(Checkpoint(state, "official")) == {"arch": arch, "image_size": [1024, 768]}


def test_entries_that_share_memory(task, tmp_path):
    """As a pickle may hold them: tied entries, and views of one tensor."""
    whole = torch.arange(2 * 16.0)
    state = dict(task.state_dict())
    for number in range(4):
        state[f"backbone.blocks.{number}.ln1.weight"] = whole[:16] if number < 3 else whole[16:]
    torch.save(state, tmp_path / "views.pth")
    out = convert(tmp_path / "views.pth", "official", tmp_path / "out")
    assert_same(load_file(out / "weights.safetensors"), state)


def test_a_backbone_and_another_task_are_refused_as_tasks(official, task, tmp_path):
    out = convert(official, "official", tmp_path / "out", "--backbone")
    with pytest.raises(WeightsError, match=r"but a backbone alone: train a task from it with --model\.weights"):
        load_task("normals", out)
    state = {name.replace("conv_normal", "conv_pose"): value for name, value in task.state_dict().items()}
    save_file(state, tmp_path / "pose.safetensors")
    with pytest.raises(WeightsError, match="holds a model for pose, but the task asked for is normals"):
        load_task("normals", tmp_path / "pose.safetensors")
    loaded = load_task("normals", tmp_path / "pose.safetensors", strict=False, **{"head": FIELDS["head"]})
    assert torch.equal(loaded.backbone.cls_token, task.backbone.cls_token)


@pytest.mark.parametrize("layout", ["official", "huggingface", "lightning"])
def test_weights_of_the_command_line(layout, official, task, tmp_path, experiments, tiny_normals, capsys):
    """``--model.weights`` takes a folder of any layout; what does not fit is a table and one line, or a table only."""
    out = convert(official, layout, tmp_path / "out")
    args = ["validate", "--config", str(experiments / "normals.yaml"), *tiny_normals, f"--run.folder={tmp_path}"]
    args += [f"--model.weights={out}"]
    capsys.readouterr()
    assert main(args) == 1
    errors = capsys.readouterr().err
    assert errors.count("s2kit: error:") == 1
    assert "likely reason: another size: the file's backbone has depth 18 (the model: 2)" in errors
    table = errors.partition("s2kit: error:")[0]
    assert main([*args, "--model.strict=false"]) == 0
    assert capsys.readouterr().err.startswith(table)


# ---------------------------------------------------------------------------------------------------- mistakes


def test_mistakes(official, tmp_path, capsys):
    out = tmp_path / "out"
    assert "no such file of weights" in error_of(capsys, "gone.pth")
    assert "--to and --out belong together" in error_of(capsys, official, "--to", "official")
    assert "invalid choice: 'onnx'" in error_of(capsys, official, "--to", "onnx", "--out", out)
    assert "is not empty; name another folder, or say --overwrite" in error_of(
        capsys, official, "--to", "official", "--out", official.parent
    )
    assert "is a file; name a folder" in error_of(capsys, official, "--to", "official", "--out", official)
    assert "--shard-size must be above 0" in error_of(
        capsys, official, "--to", "official", "--out", out, "--shard-size", "0"
    )
    save_file({"features.0.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    assert "its names (features.0.weight, ...) follow no layout of Sapiens2" in error_of(
        capsys, tmp_path / "other.safetensors", "--to", "official", "--out", out
    )
    assert "a backbone alone; a Lightning checkpoint is a task's" in error_of(
        capsys, convert(official, "official", tmp_path / "backbone", "--backbone"), "--to", "lightning", "--out", out
    )
    state = load_file(official)
    state["backbone.cls_token"][0, 0, 3] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    for args in ((), ("--to", "official", "--out", out)):
        text = error_of(capsys, tmp_path / "nan.safetensors", *args)
        assert "nan.safetensors: backbone.cls_token has 1 of 16 values NaN" in text


def test_writing_over_a_folder_is_asked_for(official, task, tmp_path):
    out = convert(official, "official", tmp_path / "out")
    convert(official, "official", out, "--overwrite")
    convert(out, "official", out, "--overwrite")
    assert_same(load_file(out / "weights.safetensors"), dict(task.state_dict()))


def test_whole_and_sharded_weights_never_lie_side_by_side(official, task, tmp_path):
    out = convert(official, "official", tmp_path / "out")
    (out / "weights_of_mine.safetensors").write_bytes(b"kept")
    convert(official, "official", out, "--overwrite", "--shard-size", "0.00002")
    assert not (out / "weights.safetensors").exists()
    assert not (out / "weights.safetensors.sha256").exists()
    assert len(list(out.glob("weights-*-of-*.safetensors"))) == 15
    assert_same(read_state_dict(out), dict(task.state_dict()))
    convert(official, "official", out, "--overwrite")
    assert {path.name for path in out.glob("*.safetensors*")} == {
        "weights.safetensors",
        "weights.safetensors.sha256",
        "weights_of_mine.safetensors",
    }
