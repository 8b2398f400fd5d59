"""``python -m s2kit plan``: memory of each strategy, the command and its mistakes, the rate in the log line."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from s2kit.callbacks import Throughput
from s2kit.cli import main
from s2kit.errors import UserError
from s2kit.models import create_backbone, create_head
from s2kit.planning import (
    Activations,
    Parameters,
    Strategy,
    largest_batch,
    memory_per_device,
    numerics,
    peak_tflops,
    task_flops,
)
from s2kit.planning.memory import CONTEXT, DEEPSPEED_BUCKET, FRAGMENTATION, GIB, step_numerics
from s2kit.tools.plan import strategy_of

# ------------------------------------------------------------------------------------------- memory of the state

COUNT = Parameters(
    total=1000 * 10**6, trained=800 * 10**6, cast=700 * 10**6, cast_in_forward=900 * 10**6, largest_unit=10**7
)
NOTHING = Activations(0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("strategy", "precision", "expected"),
    [
        # weights, copies, gradients, optimiser, communication, in bytes per million
        (Strategy("single"), "32-true", (4000, 0, 3200, 6400, 0)),
        (Strategy("single"), "bf16-true", (2000, 0, 1600, 3200, 0)),
        (Strategy("ddp", 8), "bf16-mixed", (4000, 1400, 3200, 6400, 3200)),
        (Strategy("ddp", 8, bucket_views=True), "32-true", (4000, 0, 3200, 6400, 0)),
        (Strategy("fsdp2", 8), "bf16-mixed", (500, 0, 400, 800, (2 * 2 + 4) * 10)),
        (Strategy("deepspeed", 8, 1), "bf16-mixed", (2000, 0, 1600, 16 * 100, 2 * 2 * 200)),
        (Strategy("deepspeed", 8, 2), "bf16-mixed", (2000, 0, 200, 16 * 100, 2 * 2 * 200)),
        (Strategy("deepspeed", 8, 3), "bf16-mixed", (250, 0, 200, 16 * 100, 2 * 2 * 200 + 2 * 2 * 10)),
        (Strategy("deepspeed", 8, 3), "32-true", (500, 0, 400, 8 * 100, 2 * 4 * 200 + 2 * 4 * 10)),
    ],
    ids=str,
)
def test_state_of_each_strategy(strategy, precision, expected):
    assert DEEPSPEED_BUCKET == 200 * 10**6
    memory = memory_per_device(COUNT, strategy, numerics(precision), NOTHING)
    parts = (memory.weights, memory.copies, memory.gradients, memory.optimiser, memory.communication)
    assert parts == tuple(1e6 * part for part in expected)
    # Copies of checkpointed blocks pass; they take part in the room of the backward pass.
    room = 2 * 200e6 if parts[1] else 0
    assert memory.activations.workspace == room
    assert memory.total == pytest.approx(CONTEXT + (1 + FRAGMENTATION) * (sum(parts) + room))


def test_what_shards_has_a_narrow_stream_in_mixed_precision():
    mixed = numerics("bf16-mixed")
    assert (mixed.weights, mixed.compute, mixed.stream, mixed.autocast) == (4, 2, 4, True)
    assert step_numerics(Strategy("ddp", 2), mixed) == mixed
    assert step_numerics(Strategy("fsdp2", 2), mixed) == mixed
    assert not step_numerics(Strategy("deepspeed", 2, 2), mixed).autocast
    whole = numerics("32-true")
    assert step_numerics(Strategy("deepspeed", 2, 2), whole) == step_numerics(Strategy("fsdp2", 2), whole) == whole


@pytest.mark.parametrize(("limit", "expected"), [(0, 0), (1, 1), (2, 2), (37, 37), (10**9, 65536)])
def test_largest_batch_is_the_last_that_fits(limit, expected):
    assert largest_batch(lambda batch: batch <= limit) == expected


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla T4", None),
        ("NVIDIA A1000", None),
    ],
)
def test_peaks_are_found_by_the_devices_name(name, peak):
    assert peak_tflops(name) == peak


def test_throughput_says_tflops_and_mfu(monkeypatch):
    backbone = create_backbone("sapiens2_nano", embed_dim=96, image_size=(256, 192))
    head = create_head("normals", "sapiens2_nano", 96)
    parts = task_flops(backbone, head, (256, 192))
    task = SimpleNamespace(flops=lambda: parts[0] + parts[1])
    throughput = Throughput()
    device = SimpleNamespace(type="cpu")
    trainer = SimpleNamespace(world_size=4, strategy=SimpleNamespace(root_device=device))
    assert throughput._compute_rate(trainer, 100.0) == {}
    throughput.setup(trainer, task, "fit")
    flops = sum(part.forward + part.backward for part in parts)
    assert throughput._compute_rate(trainer, 100.0) == {"tflops": pytest.approx(25 * flops / 1e12)}
    device.type = "cuda"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert throughput._compute_rate(trainer, 100.0)["mfu"] == pytest.approx(25 * flops / 989e12)


# ------------------------------------------------------------------------------------------------ the command

LARGE = ["--model.arch", "sapiens2_1b", "--model.image_size", "[1024,768]", "--trainer.precision", "bf16-mixed"]


@pytest.fixture
def config(experiments: Path) -> list[str]:
    return ["plan", "--config", str(experiments / "normals.yaml")]


def plan_of(capsys: pytest.CaptureFixture, args: list[str]) -> dict:
    assert main([*args, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def test_plan_counts_the_published_normals_model(config, capsys):
    plan = plan_of(capsys, [*config, *LARGE, "--data.batch_size", "1", "--peak-tflops", "1000", "--mfu", "0.5"])
    assert plan["parameters"] == {
        "backbone": 1_455_474_176,
        "head": 1_539_334_307 - 1_455_474_176,
        "total": 1_539_334_307,
        "trained": 1_539_334_307,
    }
    assert plan["flops_per_image"]["backbone"]["forward"] == pytest.approx(11.296e12, rel=1e-3)
    configured, largest = plan["configured"], plan["largest"]
    assert configured["memory_bytes"]["weights"] == 4 * 1_539_334_307
    seconds = plan["flops_per_image"]["total"]["model"] / 0.5e15
    assert configured["step_seconds"] == pytest.approx(seconds)
    assert configured["images_per_second"] == pytest.approx(1 / seconds)
    assert largest["memory_bytes"]["total"] <= 80 * GIB
    per_image = (configured["memory_bytes"]["total"] - largest["memory_bytes"]["total"]) / (
        1 - largest["batch_per_device"]
    )
    assert largest["memory_bytes"]["total"] + per_image > 80 * GIB


def test_checkpointing_takes_time_and_gives_room(config, capsys):
    plans = {
        mode: plan_of(capsys, [*config, *LARGE, f"--model.backbone.checkpointing={mode}"])
        for mode in ("none", "selective", "full")
    }
    batches = [plan["largest"]["batch_per_device"] for plan in plans.values()]
    assert batches == sorted(batches)
    assert batches[0] < batches[1] < batches[2]
    assert plans["none"]["mfu"] == plans["selective"]["mfu"] == 0.4
    assert 0.3 < plans["full"]["mfu"] < 0.34
    assert plans["full"]["configured"]["step_seconds"] > 1.2 * plans["none"]["configured"]["step_seconds"]


def test_configs_merge_as_in_fit(config, capsys, tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("model: {init_args: {arch: sapiens2_0.4b, backbone: {checkpointing: full}}}\n")
    second.write_text(
        "trainer:\n  precision: bf16-mixed\n  devices: 4\n  num_nodes: 2\n  strategy:\n"
        "    class_path: lightning.pytorch.strategies.ModelParallelStrategy\n"
        "    init_args: {data_parallel_size: 8, tensor_parallel_size: 1}\n"
        "data: {init_args: {batch_size: 3}}\n"
    )
    args = [*config, "--config", str(first), "--model.arch", "sapiens2_0.1b", "--config", str(second)]
    plan = plan_of(capsys, args)
    assert (plan["arch"], plan["image_size"], plan["checkpointing"]) == ("sapiens2_0.1b", [128, 96], "full")
    assert (plan["strategy"], plan["devices"], plan["precision"]) == ("fsdp2", 8, "bf16-mixed")
    assert plan["configured"]["batch_total"] == 24
    assert plan_of(capsys, [*args, "--devices", "2"])["devices"] == 2


def test_table_says_all_of_it(config, capsys):
    assert main([*config, *LARGE, "--devices", "8", "--memory", "80", "--data.batch_size", "64"]) == 0
    text = capsys.readouterr().out
    for words in ("sapiens2_1b at 1024 x 768, bf16-mixed, ddp on 8 devices", "1,455.47", "gradients", "optimiser"):
        assert words in text
    assert "Batch 64 does not fit; the largest that does is" in text
    assert "1300 steps take" in text
    assert main([*config, *LARGE, "--memory", "8"]) == 0
    assert "Not even one image fits" in capsys.readouterr().out


def test_the_largest_model_is_planned_in_seconds_without_being_allocated(experiments):
    words = ["--config", str(experiments / "normals.yaml"), "--model.arch=sapiens2_5b", "--model.image_size=[1024,768]"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "s2kit", "plan", *words], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5,316.36" in done.stdout
    # Seconds of a core, which do not depend on what else the machine does; 5B in float32 would be 20 GiB.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 10
    assert after.ru_maxrss < 3 * 2**20


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--memory", "0"], 1, "--memory must be above 0"),
        (["--mfu", "1.5"], 1, "--mfu must be above 0 and at most 1, got 1.5"),
        (["--devices", "0"], 1, "--devices must be above 0"),
        (["--devices", "many"], 2, "argument --devices: invalid int value: 'many'"),
        (["--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["--model.arch", "sapiens2_2b"], 1, "unknown backbone 'sapiens2_2b'"),
        (["--model.image_size", "[100,96]"], 1, "multiples of the patch size 8, got 100 x 96"),
        (["--model.backbone.checkpointing", "most"], 1, "checkpointing must be one of"),
        (["--model.archh", "x"], 2, "there is no such option; did you mean arch"),
        (["--trainer.precision", "64-true"], 1, "precision must be one of 32-true"),
        (["--trainer.strategy", "xla"], 1, "trainer.strategy xla: plan knows auto, ddp, fsdp2"),
        (["--trainer.strategy", "deepspeed_stage_3_offload"], 1, "offloading to the host is not planned for"),
    ],
)
def test_mistakes_are_one_line(config, args, code, words, capsys):
    assert main([*config, *args]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("s2kit: error:")
    assert words in lines[0]


def test_without_a_config_the_mistake_is_said(capsys):
    assert main(["plan"]) == 2
    assert "name a config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "devices", "expected"),
    [
        ("auto", None, Strategy("single", 1)),
        ("auto", 4, Strategy("ddp", 4)),
        ("ddp_find_unused_parameters_true", 2, Strategy("ddp", 2)),
        ("fsdp2", 8, Strategy("fsdp2", 8)),
        ("deepspeed", 8, Strategy("deepspeed", 8, 2)),
        ("deepspeed_stage_3", 8, Strategy("deepspeed", 8, 3)),
        ("single_device", None, Strategy("single", 1)),
    ],
)
def test_strategies_by_name(name, devices, expected):
    assert strategy_of(SimpleNamespace(strategy=name, devices="auto", num_nodes=1), devices) == expected


def test_strategies_by_class():
    views = SimpleNamespace(class_path="lightning.pytorch.strategies.DDPStrategy", init_args={})
    trainer = SimpleNamespace(strategy=views, devices=4, num_nodes=2)
    assert strategy_of(trainer, None) == Strategy("ddp", 8)
    views.init_args = {"gradient_as_bucket_view": True}
    assert strategy_of(trainer, None) == Strategy("ddp", 8, bucket_views=True)
    trainer.strategy = SimpleNamespace(
        class_path="lightning.pytorch.strategies.DeepSpeedStrategy", init_args={"stage": 3}
    )
    assert strategy_of(trainer, None) == Strategy("deepspeed", 8, 3)
    trainer.strategy.init_args = {"stage": 3, "offload_optimizer": True}
    with pytest.raises(UserError, match="offloading"):
        strategy_of(trainer, None)
