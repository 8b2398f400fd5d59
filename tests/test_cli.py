"""The command line, driven in-process: what each command leaves behind, and what each mistake says."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file

import s2kit
from data_modules.shards import ShardDataset
from s2kit.cli import main


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a temporary folder, so that nothing is left in the clone."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(experiments: Path) -> list[str]:
    return ["--config", str(experiments / "normals.yaml")]


@pytest.fixture(scope="session")
def run(tmp_path_factory, experiments, tiny_normals) -> Path:
    """The run folder of a tiny ``fit``."""
    folder = tmp_path_factory.mktemp("runs")
    code = main(["fit", "--config", str(experiments / "normals.yaml"), *tiny_normals, f"--run.folder={folder}"])
    assert code == 0
    return folder / "normals" / "version_0"


def error_of(capsys: pytest.CaptureFixture, args: list[str], code: int) -> str:
    """Run ``args``, which must end with ``code``, and return the one line of the error."""
    assert main(args) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("s2kit: error:")]
    assert len(lines) == 1
    return lines[0]


# ---------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("args", [[], ["--help"]])
def test_overview_lists_every_command(args, capsys):
    assert main(args) == 0
    text = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "data"):
        assert f"\n  {command} " in text
    assert "python -m s2kit fit --config experiments/normals.yaml" in text


def test_overview_does_not_import_torch():
    code = "import sys; from s2kit.cli import main; main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"s2kit {s2kit.__version__}\n"


def test_help_of_fit_starts_with_a_usage_that_one_can_copy(capsys):
    assert main(["fit", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m s2kit fit --config FILE")
    assert text.index("--model.help") < text.index("--trainer.max_steps")


def test_print_config_resolves_to_a_config_that_runs(config, capsys, tmp_path):
    assert main(["fit", *config, "--model.lr", "0.25", "--print_config"]) == 0
    text = capsys.readouterr().out
    resolved = yaml.safe_load(text)
    assert resolved["model"]["init_args"]["lr"] == 0.25
    assert resolved["model"]["class_path"] == "s2kit.tasks.NormalsTask"
    (tmp_path / "again.yaml").write_text(text)
    assert main(["fit", "--config", str(tmp_path / "again.yaml"), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == resolved


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("/a", "/a"),
        ("[/a, /b]", ["/a", "/b"]),
        (
            "[{path: /a, weight: 3}, {path: s3://b/c}]",
            [{"path": "/a", "weight": 3.0}, {"path": "s3://b/c", "weight": 1.0}],
        ),
    ],
)
def test_shard_sets_are_given_as_a_path_or_a_list(given, resolved, config, capsys, tmp_path):
    (tmp_path / "overlay.yaml").write_text(f"data: {{init_args: {{val: {given}}}}}\n")
    args = ["fit", *config, "--config", str(tmp_path / "overlay.yaml"), f"--data.train={given}", "--print_config"]
    assert main(args) == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    assert data["train"] == data["val"] == resolved


def test_overlays_merge_key_by_key_with_options_between(config, capsys, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {init_args: {weight_decay: 0.5}}\ntrainer: {max_steps: 7}\n")
    args = ["fit", *config, "--model.arch", "sapiens2_0.1b", "--config", str(overlay), "--print_config"]
    assert main(args) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    model = resolved["model"]["init_args"]
    assert (model["arch"], model["weight_decay"], model["schedule"]) == ("sapiens2_0.1b", 0.5, "cosine")
    assert resolved["trainer"]["max_steps"] == 7


# ---------------------------------------------------------------------------------------------------- running


def test_fit_leaves_the_run_folder_that_the_readme_promises(run):
    assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["max_steps"] == 2
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert list(run.glob("events.out.tfevents.*"))
    columns = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "val/mean", "step"} <= set(columns)
    panel = cv2.imread(str(run / "panels" / "test_step000002.png"))
    assert panel is not None
    assert panel.shape[1] > 4 * 190  # four pictures of 192 x 256 side by side


def test_model_json_says_what_the_model_is_and_how_it_scored(run):
    model = json.loads((run / "model.json").read_text())
    assert (model["task"], model["arch"], model["image_size"]) == ("normals", "sapiens2_nano", [32, 32])
    assert model["frame"] == "x right, y up, z to the camera"
    assert 0 < model["metrics"]["test/mean"] < 180
    assert 0 < model["metrics"]["test/baseline_mean"] < 90
    state = load_file(run / "weights.safetensors")
    assert {name.split(".")[0] for name in state} == {"backbone", "decode_head"}
    assert "decode_head.conv_normal.weight" in state


def test_weights_and_checkpoint_predict_alike_and_at_the_pictures_size(run):
    picture = np.random.default_rng(0).integers(0, 255, (37, 53, 3), np.uint8)
    from_weights, from_checkpoint = (
        s2kit.load_task("normals", path).predict(picture)[0]
        for path in (run / "weights.safetensors", next((run / "checkpoints").glob("step*.ckpt")))
    )
    assert from_weights.shape == (37, 53, 3)
    np.testing.assert_allclose(np.linalg.norm(from_weights, axis=-1), 1, atol=1e-5)
    np.testing.assert_array_equal(from_weights, from_checkpoint)


def test_weights_score_in_test_as_they_did_after_fit(run, config, tiny_normals, tmp_path, capsys):
    weights = f"--model.weights={run / 'weights.safetensors'}"
    assert main(["test", *config, *tiny_normals, weights, f"--run.folder={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    metrics = json.loads((run / "model.json").read_text())["metrics"]
    row = next(line for line in printed.splitlines() if " mean " in line)
    values = [float(word) for word in row.replace("│", " ").split() if word.replace(".", "").isdigit()]
    assert values == [round(metrics["test/mean"], 2), round(metrics["test/baseline_mean"], 2)]


def test_validate_reads_a_checkpoint(run, config, tiny_normals, tmp_path):
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    assert main(["validate", *config, *tiny_normals, checkpoint, f"--run.folder={tmp_path}"]) == 0


def test_a_run_goes_on_from_its_last_checkpoint(run, config, tiny_normals, tmp_path, capsys):
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    args = ["fit", *config, *tiny_normals, checkpoint, "--trainer.max_steps=3", f"--run.folder={tmp_path}"]
    assert main(args) == 0
    steps = [row.split(",") for row in (tmp_path / "normals" / "version_0" / "metrics.csv").read_text().splitlines()]
    column = steps[0].index("step")
    assert {int(row[column]) for row in steps[1:]} <= {2, 3}


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_fast_dev_run_leaves_nothing(command, config, tiny_normals, tmp_path, picture_folder):
    (picture_folder / "broken.jpg").unlink()
    options = [*tiny_normals, "--trainer.fast_dev_run=true", f"--data.predict_path={picture_folder}"]
    if command == "predict":
        options.append(f"--predictions.folder={tmp_path / 'predictions'}")
    assert main([command, *config, *options]) == 0
    assert not (tmp_path / "runs").exists()


def test_predict_writes_every_picture_and_reports_the_broken_one(
    run, config, tiny_normals, tmp_path, picture_folder, capsys
):
    out = tmp_path / "out"
    args = ["predict", *config, *tiny_normals, f"--model.weights={run / 'weights.safetensors'}"]
    args += [f"--data.predict_path={picture_folder}", f"--predictions.folder={out}", f"--run.folder={tmp_path}"]
    message = error_of(capsys, args, code=1)
    assert str(picture_folder / "broken.jpg") in message
    sizes = {path.stem: np.load(path).shape for path in out.glob("*.npy")}
    assert sizes == {"wide": (50, 70, 3), "tall": (70, 50, 3), "gray": (50, 70, 3), "alpha": (50, 70, 3)}
    for path in out.glob("*.npy"):
        np.testing.assert_allclose(np.linalg.norm(np.load(path), axis=-1), 1, atol=1e-4)
        assert cv2.imread(str(path.with_suffix(".png"))).shape == sizes[path.stem]


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.lr", "fast"], ["--model.lr", "expected float", "'fast'"]),
        (["--model.schedule", "zigzag"], ["--model.schedule", "'linear', 'cosine', 'constant'", "zigzag"]),
        (["--model.wieght_decay", "1"], ["--model.wieght_decay", "no such option", "did you mean", "weight_decay"]),
        (["--trainer.max_stepz", "1"], ["--trainer.max_stepz", "max_steps"]),
        (["--data.synth.trian", "1"], ["--data.synth.trian", "train"]),
        (["--data.train", "[{path: a, wieght: 2}]"], ["wieght", "no such option", "did you mean weight"]),
        (["--model.class_path", "s2kit.tasks.Poses"], ["s2kit.tasks.Poses"]),
        (["--model.lr"], ["--model.lr: no value given"]),
    ],
)
def test_a_wrong_option_is_named_with_what_would_be_right(options, words, config, capsys):
    message = error_of(capsys, ["fit", *config, *options], code=2)
    assert all(word in message for word in words), message


def test_a_wrong_key_in_a_file_is_named_with_its_file(config, capsys, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data: {init_args: {synth: {trian: 3}}}\n")
    message = error_of(capsys, ["fit", *config, "--config", str(path)], code=2)
    assert f"{path}, data.init_args.synth.trian: there is no such option; did you mean train" in message


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (["normals.yaml"], "pose.yaml sets model.init_args.sigma, which NormalsTask does not have: lay it over "),
        ([], "lay"),
    ],
)
def test_an_overlay_over_another_task_says_where_it_belongs(first, words, capsys, experiments, monkeypatch):
    monkeypatch.chdir(experiments.parent)
    files = [f"experiments/{name}" for name in [*first, "paper/pose.yaml"]]
    message = error_of(capsys, ["fit", *(word for file in files for word in ("--config", file))], code=2)
    assert words in message and message.endswith("lay it over experiments/pose.yaml")


def test_broken_yaml_is_named_with_its_line(capsys, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("model:\n  lr: [1\n")
    assert f"{path}, line " in error_of(capsys, ["fit", "--config", str(path)], code=2)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["fitt"], 2, ["fitt", "fit, validate, test, predict"]),
        (["fit"], 2, ["model", "data", "--config experiments/normals.yaml"]),
        (["fit", "--config", "nowhere.yaml"], 2, ["nowhere.yaml", "no file"]),
    ],
)
def test_mistakes_without_a_config(args, code, words, capsys):
    if args == ["fitt"]:
        assert main(args) == code
        message = capsys.readouterr().err
    else:
        message = error_of(capsys, args, code)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model.arch=sapiens2_9b"], ["sapiens2_9b", "sapiens2_nano"]),
        (["--model.weights=nowhere.safetensors"], ["nowhere.safetensors", "no such file"]),
        (["--ckpt_path=nowhere.ckpt"], ["nowhere.ckpt", "no such checkpoint"]),
        (["--data.root=nowhere"], ["data.root=nowhere", "train, val, test"]),
        (["--model.warmup_steps=-1"], ["warmup_steps=-1", "2 steps"]),
        (["--data.batch_size=100"], ["data.batch_size"]),
        (["--trainer.max_steps=-1"], ["trainer.max_steps"]),
    ],
)
def test_a_failure_is_one_line(options, words, config, tiny_normals, capsys, tmp_path):
    args = ["fit", *config, *tiny_normals, f"--run.folder={tmp_path}", *options]
    message = error_of(capsys, args, code=1)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("package", ["mitsuba", "anny"])
def test_a_missing_extra_is_named_before_anything_is_rendered(package, config, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    args = ["fit", *config, f"--data.synth.cache={tmp_path / 'cache'}", f"--run.folder={tmp_path}"]
    message = error_of(capsys, args, code=1)
    assert f"'{package}'" in message
    assert 'pip install "s2kit[synth]"' in message


def test_weights_of_another_task_are_refused(run, config, tiny_normals, capsys, tmp_path):
    state = load_file(run / "weights.safetensors")
    pose = {name.replace("conv_normal", "conv_pose"): value for name, value in state.items()}
    save_file(pose, tmp_path / "pose.safetensors")
    args = ["test", *config, *tiny_normals, f"--model.weights={tmp_path / 'pose.safetensors'}"]
    message = error_of(capsys, args, code=1)
    assert "pose.safetensors: holds a model for pose, but this is the task normals" in message


def test_weights_of_another_size_are_refused_with_what_differs(run, config, tiny_normals, capsys):
    args = ["test", *config, *tiny_normals, f"--model.weights={run / 'weights.safetensors'}"]
    args.append("--model.backbone={embed_dim: 32, depth: 2, num_heads: 2, mlp_dim: 32}")
    message = error_of(capsys, args, code=1)
    assert "of another shape" in message
    assert "backbone.cls_token [1, 1, 16] for [1, 1, 32]" in message


def test_a_checkpoint_of_another_task_is_refused(run, config, tiny_normals, capsys, tmp_path):
    import torch

    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {name.replace("conv_normal", "conv_seg"): value for name, value in state.items()}
    torch.save(checkpoint, tmp_path / "other.ckpt")
    message = error_of(capsys, ["test", *config, *tiny_normals, f"--ckpt_path={tmp_path / 'other.ckpt'}"], code=1)
    assert "holds a model for segmentation, but this is the task normals" in message


def test_traceback_is_shown_when_asked_for(config, tiny_normals, capsys):
    assert main(["fit", *config, *tiny_normals, "--data.root=nowhere", "--traceback"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_predict_without_pictures_says_so(run, config, tiny_normals, capsys, tmp_path):
    weights = f"--model.weights={run / 'weights.safetensors'}"
    base = ["predict", *config, *tiny_normals, weights, f"--run.folder={tmp_path}"]
    assert "--data.predict_path" in error_of(capsys, base, code=1)
    (tmp_path / "empty").mkdir()
    message = error_of(capsys, [*base, f"--data.predict_path={tmp_path / 'empty'}"], code=1)
    assert str(tmp_path / "empty") in message
    assert not (tmp_path / "normals").exists()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_untrained_model_is_not_scored(command, config, tiny_normals, capsys):
    message = error_of(capsys, [command, *config, *tiny_normals], code=1)
    assert f"{command} needs a trained model: give --model.weights or --ckpt_path" in message


def test_a_finished_run_is_not_overwritten(run, config, tiny_normals, capsys):
    args = ["fit", *config, *tiny_normals, f"--run.folder={run.parent.parent}", "--run.version=version_0"]
    message = error_of(capsys, args, code=1)
    assert f"{run} holds a run already" in message


def test_resuming_a_run_by_name_keeps_its_log(config, tiny_normals, tmp_path):
    base = ["fit", *config, *tiny_normals, f"--run.folder={tmp_path}", "--run.version=mine"]
    assert main(base) == 0
    assert main([*base, "--ckpt_path=last", "--trainer.max_steps=3"]) == 0
    before, after = (
        list(csv.DictReader((tmp_path / "normals" / "mine" / name).open()))
        for name in ("metrics_until_1.csv", "metrics.csv")
    )
    assert before[0]["step"] == "0"
    assert {row["step"] for row in after} <= {"2", "3"}
    seen = [[float(row["data/samples_seen"]) for row in rows if row["data/samples_seen"]] for rows in (before, after)]
    assert seen == [[2, 4], [6]]


def test_resuming_what_is_not_there_is_refused(config, tiny_normals, tmp_path, capsys):
    args = ["fit", *config, *tiny_normals, f"--run.folder={tmp_path}", "--run.version=v7", "--ckpt_path=last"]
    message = error_of(capsys, args, code=1)
    assert "--ckpt_path last: there is no" in message
    assert "--run.version" in message
    last = tmp_path / "normals" / "version_3" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    assert error_of(capsys, args, code=1).endswith("--run.version NAME; there are version_3")


def test_a_run_says_what_it_begins_with(config, tiny_normals, tmp_path, capsys):
    args = ["fit", *config, *tiny_normals, f"--run.folder={tmp_path}", "--trainer.max_steps=1", "--run.test=false"]
    assert main([*args, "--run.version=first"]) == 0
    assert "begins with" not in capsys.readouterr().out
    weights = tmp_path / "normals" / "first"
    assert main([*args, f"--model.weights={weights}"]) == 0
    assert f"begins with {weights}: backbone and head\n" in capsys.readouterr().out


def test_weights_given_as_a_checkpoint_are_told_apart(run, config, tiny_normals, capsys):
    message = error_of(capsys, ["test", *config, *tiny_normals, f"--ckpt_path={run / 'weights.safetensors'}"], code=1)
    assert "give them as --model.weights" in message


def test_a_run_on_a_training_set_alone_keeps_its_last_step_and_exports(
    config, tiny_normals, synth_cache, capsys, tmp_path, monkeypatch
):
    import torch
    from lightning.pytorch.trainer.connectors import checkpoint_connector

    remarks = []  # Lightning's, about what was not given
    monkeypatch.setattr(checkpoint_connector.log, "info", remarks.append)
    train = next((synth_cache / "synth").glob("train-*"))
    own = [option for option in tiny_normals if not option.startswith("--data.synth")]
    args = [*config, *own, f"--data.train={train}", f"--run.folder={tmp_path}", "--trainer.max_steps=3"]
    assert main(["fit", *args, "--checkpoint.every_n_steps=2"]) == 0
    run = tmp_path / "normals" / "version_0"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert remarks == []
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    for name, value in load_file(run / "weights.safetensors").items():
        assert torch.equal(value, checkpoint["state_dict"][name]), name
    assert "test set" not in capsys.readouterr().out
    again = ["fit", *args, "--trainer.max_steps=5", "--run.version=version_0", "--ckpt_path=last"]
    assert main(again) == 0
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 5


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    import torch

    from s2kit.callbacks import AtomicCheckpointIO

    path, writer = tmp_path / "folder" / "last.ckpt", AtomicCheckpointIO()
    writer.save_checkpoint({"step": 1}, path)

    def fail(checkpoint, file) -> None:
        file.write(b"half of it")
        raise OSError("the disk is full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="the disk is full"):
        writer.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_a_failure_of_the_system_names_the_file_in_words():
    from s2kit.cli import one_line

    assert one_line(FileNotFoundError(2, "No such file or directory", "people")) == "people: no such file or directory"
    assert one_line(OSError("the disk is full")) == "the disk is full"


def test_a_run_that_does_not_begin_leaves_no_folder(config, tiny_normals, capsys, tmp_path):
    args = ["fit", *config, *tiny_normals, f"--run.folder={tmp_path}", "--model.warmup_steps=-1"]
    assert "warmup_steps=-1" in error_of(capsys, args, code=1)
    assert not (tmp_path / "normals").exists()


def test_a_first_try_shorter_than_the_warmup_runs(config, tiny_normals, tmp_path):
    """The experiments warm up for 50 steps, and the first that anybody tries is a run of 20."""
    args = ["fit", *config, *tiny_normals, f"--run.folder={tmp_path}", "--model.warmup_steps=50", "--model.lr=1e-3"]
    args += ["--trainer.max_steps=8", "--trainer.val_check_interval=8", "--run.test=false"]
    said = "model.warmup_steps=50 is no less than the run's 8 steps: the warm-up takes 4"
    with pytest.warns(UserWarning, match=re.escape(said)):
        assert main(args) == 0
    assert (tmp_path / "normals" / "version_0" / "weights.safetensors").exists()


def test_warnings_to_the_user_are_one_line():
    from s2kit.lightning_cli import one_line_warning

    assert one_line_warning("too short", UserWarning, "base.py", 3) == "s2kit: warning: too short\n"
    assert "base.py:3: DeprecationWarning: old" in one_line_warning("old", DeprecationWarning, "base.py", 3)


def test_the_first_line_says_what_follows_from_the_arch():
    from s2kit.tasks import NormalsTask

    small = {"backbone": {"embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 32, "patch_size": 16}}
    words = "lr 1e-4, layer decay 0.8, gradient clipped at 2"
    head = {"upsample_channels": [8] * 4, "conv_channels": [8]}
    task = NormalsTask(arch="sapiens2_0.4b", image_size=(32, 32), lr=1e-4, head=head, **small)
    assert task.summary().endswith(f"of them trained; {words}") and words not in task.summary(training=False)
    task.hparams.lr, task.hparams.arch = None, "sapiens2_1b"
    assert task.summary().endswith("lr 5e-4, layer decay 0.9, gradient clipped at 4")


def test_weights_may_be_read_by_whom_the_umask_says(run):
    modes = {name: (run / name).stat().st_mode for name in ("weights.safetensors", "model.json")}
    assert modes["weights.safetensors"] == modes["model.json"]


def test_a_stop_before_the_first_checkpoint_has_nothing_to_go_on_from(config, tiny_normals, capsys, tmp_path):
    from s2kit.tasks import NormalsTask

    def stop(*_):
        raise KeyboardInterrupt

    args = ["fit", *config, *tiny_normals, f"--run.folder={tmp_path}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NormalsTask, "training_step", stop)
        assert main(args) == 130
    out = capsys.readouterr().out
    assert "nothing to go on from" in out and "to go on: " not in out


def test_a_set_at_a_url_is_a_value_and_not_fetched_as_a_config(config, tiny_normals, capsys, tmp_path):
    import http.server
    import threading

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/tests"
        args = ["fit", *config, *tiny_normals, f"--run.folder={tmp_path}", f"--data.train={url}"]
        message = error_of(capsys, args, code=1)
    finally:
        server.shutdown()
    assert message.startswith(f"s2kit: error: {url}/manifest.json")


@pytest.mark.parametrize("option", ["--data.batch_size=0", "--data.num_workers=-1"])
def test_numbers_that_cannot_be_are_named(option, config, tiny_normals, capsys, tmp_path):
    message = error_of(capsys, ["fit", *config, *tiny_normals, f"--run.folder={tmp_path}", option], code=1)
    assert option.removeprefix("--") in message


def test_a_run_on_damaged_samples_alone_names_them_and_keeps_their_list(
    config, tiny_normals, synth_cache, capsys, tmp_path
):
    source = next((synth_cache / "synth").glob("train-*"))
    shutil.copytree(source, tmp_path / "train")
    for tar in (tmp_path / "train").glob("*.tar"):
        tar.write_bytes(tar.read_bytes()[:-4096])
    own = [option for option in tiny_normals if not option.startswith("--data.synth")]
    args = [*config, *own, f"--data.train={tmp_path / 'train'}", f"--run.folder={tmp_path}", "--trainer.max_steps=20"]
    message = error_of(capsys, ["fit", *args], code=1)
    assert "16 of 16 training samples could not be used" in message
    run = tmp_path / "normals" / "version_0"
    listed = [json.loads(line)["key"] for line in (run / "bad_samples.jsonl").read_text().splitlines()]
    samples = ShardDataset(source)
    assert len(listed) == 16 and set(listed) == {samples.key(index) for index in range(len(samples))}
    assert not (run / "weights.safetensors").exists()
