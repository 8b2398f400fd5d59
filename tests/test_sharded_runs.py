"""The command line with FSDP2 on two processes: fit, validation, test, export, resume."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from s2kit.tasks import load_task

pytestmark = pytest.mark.skipif(
    not hasattr(FSDPModule, "set_reshard_after_forward"), reason="FSDP2Strategy needs torch 2.8 or newer"
)


def s2kit(*words: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "s2kit", *words, "--traceback"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.mark.parametrize("experiment", ["normals", pytest.param("pretrain", marks=pytest.mark.slow)])
def test_a_run_on_two_processes_leaves_what_one_on_one_leaves(experiment, experiments, tiny_normals, tmp_path):
    """Three test pictures one at a time: the ranks have two batches and one."""
    tiny = [option for option in tiny_normals if experiment == "normals" or not option.startswith("--model")]
    if experiment == "pretrain":
        tiny += ["--model.image_size=[32, 24]", "--model.warmup_steps=1"]
    config = ["--config", str(experiments / f"{experiment}.yaml")]
    words = [*config, "--config", str(experiments / "strategies" / "fsdp2.yaml"), *tiny, "--data.batch_size=1"]
    words += ["--trainer.devices=2", f"--run.folder={tmp_path}", "--run.version=two"]
    output = s2kit("fit", *words)
    run = tmp_path / experiment / "two"
    assert output.count("run folder:") == 1
    metrics = json.loads((run / "model.json").read_text())["metrics"]
    assert metrics and all(value == value for value in metrics.values())
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    assert all(type(value) is torch.Tensor for value in last["state_dict"].values())
    best = torch.load(next((run / "checkpoints").glob("step*.ckpt")), weights_only=True)["state_dict"]
    prefix = "teacher.backbone." if experiment == "pretrain" else ""
    exported = load_file(run / "weights.safetensors")
    assert exported and all(torch.equal(value, best[prefix + name]) for name, value in exported.items())
    if experiment == "normals":
        task = load_task("normals", run / "weights.safetensors")
        assert all(torch.equal(value, exported[name]) for name, value in task.state_dict().items())
    # One process goes on where the two stopped, and scores what they scored.
    single = [*config, *tiny, "--data.batch_size=1", f"--run.folder={tmp_path}"]
    checkpoint = next((run / "checkpoints").glob("step*.ckpt"))
    s2kit("test", *single, "--run.version=one", f"--ckpt_path={checkpoint}")
    with (tmp_path / experiment / "one" / "metrics.csv").open() as file:
        scored = {name: float(value) for name, value in [*csv.DictReader(file)][-1].items() if name.startswith("test/")}
    assert scored == pytest.approx(metrics, rel=1e-4) and len(scored) > 2
    s2kit("fit", *single, "--run.version=two", "--ckpt_path=last", "--trainer.max_steps=3")
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
