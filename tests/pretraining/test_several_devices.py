"""The whole step on one device, on two by DDP and on two by FSDP2: losses, gradients, teacher, checkpoints, export.

Two ranks of two pictures must do what one rank of four does. The nearest-neighbour regulariser is defined over each
rank's own batch, so the one rank takes it over the two halves of its batch.
"""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import ranks_run
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule

from s2kit.pretraining import Pretraining
from s2kit.tasks import NormalsTask

pytestmark = pytest.mark.skipif(
    not hasattr(FSDPModule, "set_reshard_after_forward"), reason="FSDP2Strategy needs torch 2.8 or newer"
)

PROGRAM = Path(__file__).with_name("ranks_run.py")
TWO = {"size": 2, "ranks": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, dict]:
    """What runs of four steps recorded: name -> losses, gradients and states; ``folder`` is where they lie."""
    folder = tmp_path_factory.mktemp("ranks")

    def options(name: str, **values) -> tuple[str, dict]:
        return str(folder / name), {"steps": 4, **values}

    def of(name: str) -> dict[str, str]:
        return {"start_from": str(folder / name / "step2.ckpt")}

    sinkhorn = {"task": {"centring": "sinkhorn"}, "steps": 2}
    backbone = ranks_run.TASK["backbone"]
    frozen = {"weight_decay": 0.1, "final_weight_decay": 0.3, "final_teacher_momentum": 1.0}
    frozen = {"task": {**frozen, "backbone": {**backbone, "frozen_stages": 1}}}
    windows = {**backbone, "patch_size": 4, "window_tokenizer_depth": 1, "checkpointing": "full"}
    windows = {"task": {"backbone": windows, "image_size": (64, 48)}, "steps": 2}
    groups = [
        [
            options("one", size=4),
            options("one_sinkhorn", size=4, **sinkhorn),
            options("one_schedules", size=4, **frozen),
            options("one_windows", size=4, **windows),
        ],
        [
            options("ddp", strategy="ddp", **TWO),
            options("ddp_sinkhorn", strategy="ddp", **TWO, **sinkhorn),
            options("ddp_empty", strategy="ddp", empty=[1, 1], **TWO),
            options("fsdp", strategy="fsdp2", **TWO),
            options("fsdp_sinkhorn", strategy="fsdp2", **TWO, **sinkhorn),
            options("fsdp_schedules", strategy="fsdp2", **TWO, **frozen),
            options("fsdp_windows", strategy="fsdp2", **TWO, **windows),
            options("ddp_windows", strategy="ddp", **TWO, **windows),
            options("fsdp_empty", strategy="fsdp2", empty=[1, 1], **TWO),
            options("fsdp_bf16", strategy="fsdp2", precision="bf16-mixed", **TWO),
            options("fsdp_from_fsdp", strategy="fsdp2", **of("fsdp"), **TWO),
            options("fsdp_from_one", strategy="fsdp2", **of("one"), **TWO),
            options("ddp_from_fsdp", strategy="ddp", **of("fsdp"), **TWO),
        ],
        [options("one_from_fsdp", size=4, **of("fsdp")), options("one_bf16", size=4, precision="bf16-mixed")],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), json.dumps(groups)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    found = {path.name: torch.load(path / "recorded.pt") for path in folder.iterdir()}
    return {**found, "folder": folder}


def compare_steps(first: dict, second: dict, steps: int) -> None:
    """Losses to 1e-5, gradients to 1e-5 of the largest in their tensor."""
    assert len(first["losses"]) == len(second["losses"]) == steps >= 2
    for step in range(steps):
        losses = first["losses"][step]
        assert {"train/loss", "train/reconstruction", "train/contrast", "train/koleo"} <= losses.keys()
        for name in ("loss", "reconstruction", "contrast", "koleo", "gradient_norm", "gradient_norm/decoder"):
            tolerance = {"rel": 1e-5} if "norm" in name else {"abs": 1e-5, "rel": 0}
            expected = pytest.approx(losses[f"train/{name}"], **tolerance)
            assert second["losses"][step][f"train/{name}"] == expected, (step, name)
        assert first["gradients"][step].keys() == second["gradients"][step].keys()
        for name, value in first["gradients"][step].items():
            difference = (second["gradients"][step][name] - value).abs().max()
            # What is less than this is rounding: keys that are not normed need no bias.
            assert difference <= 1e-5 * value.abs().max().clamp(min=1e-4), (step, name)


@pytest.mark.parametrize(
    "pair",
    [
        ("one", "ddp"),
        ("one", "fsdp"),
        ("one_sinkhorn", "ddp_sinkhorn"),
        ("one_sinkhorn", "fsdp_sinkhorn"),
        ("one_schedules", "fsdp_schedules"),
        ("one_windows", "fsdp_windows"),
        ("one_windows", "ddp_windows"),
        ("ddp_empty", "fsdp_empty"),
    ],
)
def test_two_ranks_do_what_one_does_with_both_their_samples(runs, pair):
    first, second = (runs[name] for name in pair)
    compare_steps(first, second, len(first["losses"]))
    for name, value in first["states"][-1].items():
        torch.testing.assert_close(second["states"][-1][name], value, atol=1e-6, rtol=0, msg=name)
    assert any("centre" in name for name in first["states"][-1]) == ("sinkhorn" not in pair[0])


@pytest.mark.parametrize("name", ["one", "ddp", "fsdp", "fsdp_empty"])
def test_the_teacher_is_the_average_of_the_students_of_that_run(runs, name):
    states = runs[name]["states"]
    parts = [key for key in states[0] if key.startswith(("backbone.", "head."))]
    assert len(parts) > 30
    for before, after in pairwise(states):
        for key in parts:
            expected = 0.75 * before[f"teacher.{key}"] + 0.25 * after[key]
            torch.testing.assert_close(after[f"teacher.{key}"], expected, atol=1e-7, rtol=1e-6, msg=key)
            assert before[key].ndim == 1 or (after[key] != before[key]).any(), key


def test_a_rank_without_samples_adds_nothing(runs):
    """Step 1 has the two samples of rank 0 alone: half of their gradient, and a centre that only they moved."""
    empty, whole = runs["ddp_empty"], runs["ddp"]
    torch.testing.assert_close(empty["states"][0]["centring.centre"], whole["states"][0]["centring.centre"])
    assert (empty["states"][1]["centring.centre"] - whole["states"][1]["centring.centre"]).abs().max() > 1e-6
    moved = empty["states"][1]["centring.centre"] - empty["states"][0]["centring.centre"]
    assert moved.abs().max() > 1e-6


@pytest.mark.parametrize("name", ["fsdp_from_fsdp", "fsdp_from_one", "ddp_from_fsdp", "one_from_fsdp"])
def test_a_run_goes_on_under_any_strategy_from_a_checkpoint_of_any(runs, name):
    """Steps 3 and 4 of the resumed run are those of the run that was not interrupted."""
    resumed, whole = runs[name], runs["one" if "one" in name else "fsdp"]
    assert len(resumed["losses"]) == 2 and resumed["states"][-1].keys() == whole["states"][-1].keys()
    for key, value in whole["states"][-1].items():
        torch.testing.assert_close(resumed["states"][-1][key], value, atol=1e-6, rtol=0, msg=key)
    for before, now in zip(whole["losses"][2:], resumed["losses"]):
        assert now["train/loss"] == pytest.approx(before["train/loss"], abs=1e-5)


def test_a_sharded_runs_checkpoint_is_one_file_as_of_one_device(runs):
    files = {name: runs["folder"] / name / "step4.ckpt" for name in ("one", "fsdp")}
    saved = {name: torch.load(path, weights_only=True) for name, path in files.items()}
    assert saved["one"]["state_dict"].keys() == saved["fsdp"]["state_dict"].keys()
    for name, value in saved["fsdp"]["state_dict"].items():
        assert type(value) is torch.Tensor and value.shape == saved["one"]["state_dict"][name].shape
    first, second = (saved[name]["optimizer_states"][0] for name in ("one", "fsdp"))
    assert first["state"].keys() == second["state"].keys()
    for number, entries in first["state"].items():
        for name, value in entries.items():
            torch.testing.assert_close(second["state"][number][name], value, atol=1e-5, rtol=0)
    assert [g["params"] for g in first["param_groups"]] == [g["params"] for g in second["param_groups"]]
    rebuilt = Pretraining.load_from_checkpoint(files["fsdp"])
    for name, value in rebuilt.state_dict().items():
        assert torch.equal(value, saved["fsdp"]["state_dict"][name]), name


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_the_teacher_is_exported_whole_and_a_task_takes_it(runs, name):
    state, last = load_file(runs["folder"] / name / "weights.safetensors"), runs[name]["states"][-1]
    assert {f"teacher.backbone.{key}" for key in state} == {key for key in last if key.startswith("teacher.backbone.")}
    for key, value in state.items():
        assert torch.equal(value, last[f"teacher.backbone.{key}"])
    options = json.loads((runs["folder"] / name / "model.json").read_text())["config"]
    fields = {key: options[key] for key in ("arch", "image_size", "backbone")}
    head = {"upsample_channels": [8, 8, 8], "conv_channels": [8]}
    task = NormalsTask(**fields, head=head, weights=str(runs["folder"] / name / "weights.safetensors"))
    assert all(torch.equal(value, state[key]) for key, value in task.backbone.state_dict().items())


def test_bfloat16_is_gathered_and_trains_as_on_one_device(runs):
    for step in range(2):
        first, second = (runs[name]["losses"][step] for name in ("one_bf16", "fsdp_bf16"))
        for name in ("loss", "reconstruction", "contrast"):
            assert second[f"train/{name}"] == pytest.approx(first[f"train/{name}"], rel=0.01)
    assert all(value.dtype == torch.float32 for value in runs["fsdp_bf16"]["gradients"][0].values())
