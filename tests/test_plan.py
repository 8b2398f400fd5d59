"""``python -m s2kit plan``: its FLOPs against torch's counter, its activations against what autograd keeps."""

import gc
import json
import resource
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from s2kit.callbacks import Throughput
from s2kit.cli import main
from s2kit.errors import UserError
from s2kit.models import backbone_config, create_backbone, create_head
from s2kit.models.heads import HEADS
from s2kit.planning import (
    Activations,
    Parameters,
    Strategy,
    backbone_flops,
    count_parameters,
    largest_batch,
    memory_per_device,
    numerics,
    peak_tflops,
    task_flops,
)
from s2kit.planning.activations import backbone_bytes
from s2kit.planning.flops import module_flops
from s2kit.planning.memory import CONTEXT, DEEPSPEED_BUCKET, FRAGMENTATION, GIB, step_numerics
from s2kit.planning.trace import trace_module
from s2kit.tools.plan import strategy_of

TINY = {"depth": 6, "full_attention_ends": 2, "embed_dim": 96, "num_heads": 4, "mlp_dim": 384}
#: How far an estimate of what is kept may be off: the promise is 15 %.
TOLERANCE = 0.05

# ------------------------------------------------------------------------------------------------------ FLOPs


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("sapiens2_nano", {}),
        ("sapiens2_0.1b", {}),
        ("sapiens2_1b", {"depth": 18}),  # two grouped blocks between the full ones
        ("sapiens2_1b_4k", {"depth": 2}),
    ],
)
def test_forward_flops_agree_with_torchs_counter(arch, options):
    with torch.device("meta"):
        backbone = create_backbone(arch, **options).eval()
    image = torch.empty(1, 3, *backbone.config.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(image)
    assert backbone_flops(backbone.config).forward == pytest.approx(counter.get_total_flops(), rel=1e-2)


@pytest.mark.parametrize(("size", "tflop"), [("0.1b", 1.051), ("0.4b", 3.367), ("0.8b", 6.569), ("1b", 11.296)])
def test_flops_of_the_family_are_those_of_the_specification(size, tflop):
    assert backbone_flops(backbone_config(f"sapiens2_{size}")).forward == pytest.approx(tflop * 1e12, rel=1e-3)


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
@pytest.mark.parametrize(
    "options",
    [{}, {"frozen_stages": 3}, {"window_tokenizer_depth": 2, "depth": 2, "full_attention_ends": 1}],
    ids=["plain", "frozen", "tokenizer"],
)
def test_flops_of_a_training_step_agree_with_torchs_counter(checkpointing, options):
    options = {**TINY, **options, "image_size": (128, 64), "checkpointing": checkpointing}
    backbone = create_backbone("sapiens2_nano", **options).train()
    with FlopCounterMode(display=False) as counter:
        backbone(torch.zeros(2, 3, 128, 64)).patches.sum().backward()
    assert 2 * backbone_flops(backbone.config).hardware == pytest.approx(counter.get_total_flops(), rel=1e-2)


def tiny_head(task: str) -> tuple[nn.Module, tuple[int, int]]:
    """A head on 96 channels and its token grid."""
    grid = (16, 12)
    options = {"image_size": (256, 192)} if task == "pointmap" else {}
    return create_head(task, "sapiens2_nano", 96, **options), grid


@pytest.mark.parametrize("task", HEADS)
def test_head_flops_agree_with_torchs_counter(task):
    head, grid = tiny_head(task)
    features = torch.zeros(1, 96, *grid, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        output = head(features)
        forward = counter.get_total_flops()
        sum(part.sum() for part in ([output] if isinstance(output, Tensor) else output)).backward()
    flops = module_flops(head, (1, 96, *grid))
    assert flops.forward == pytest.approx(forward, rel=1e-2)
    assert flops.hardware == pytest.approx(counter.get_total_flops(), rel=1e-2)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_flops_of_a_timm_transformer_agree_with_torchs_counter(checkpointing):
    options = {"image_size": (64, 48), "checkpointing": checkpointing}
    backbone = create_backbone("timm/vit_tiny_patch16_224", **options).train()
    with FlopCounterMode(display=False) as counter:
        output = backbone(torch.zeros(1, 3, 64, 48))
    flops, head = task_flops(backbone, nn.Conv2d(192, 2, 1), (64, 48))
    assert flops.forward == pytest.approx(counter.get_total_flops(), rel=1e-2)
    assert output.patches.shape[2:] == (4, 3)
    assert head.forward == 2 * 192 * 2 * 4 * 3
    assert flops.recomputed == (flops.forward if checkpointing == "full" else 0)


# ------------------------------------------------------------------------------------------------ activations


class AliveStorages(TorchDispatchMode):
    """Remembers the storages that operations make: selective checkpointing keeps tensors where no hook sees them."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        self.made += [weakref.ref(t.untyped_storage()) for t in tree_leaves(output) if isinstance(t, Tensor)]
        return output

    def bytes(self) -> dict[int, int]:
        gc.collect()
        alive = [storage for reference in self.made if (storage := reference()) is not None]
        return {storage._cdata: storage.nbytes() for storage in alive}


def kept_bytes(run: Callable[[], list[Tensor]], parameters: Iterable[Tensor], hooks: bool = True) -> int:
    """Bytes of the distinct storages that a forward pass keeps for its backward pass, parameters left out.

    Args:
        run: the forward pass; returns its outputs.
        parameters: what is left out.
        hooks: ask autograd what it saves; else count what operations made and is still there, but is not an output.
    """
    found: dict[int, int] = {}
    hold: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        hold.append(tensor)
        found[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    if hooks:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run()
        outside = []
    else:
        with AliveStorages() as storages:
            outside = run()
        found = storages.bytes()
    for tensor in (*outside, *parameters):
        found.pop(tensor.untyped_storage()._cdata, None)
    return sum(found.values())


def backbone_case(precision: str, checkpointing: str, **options) -> tuple[float, float]:
    """Measured and estimated bytes that a tiny backbone keeps, without copies of weights."""
    options = {**TINY, "image_size": (128, 96), **options}
    backbone = create_backbone("sapiens2_nano", checkpointing=checkpointing, **options).train()
    image = torch.randn(2, 3, *backbone.config.image_size)
    if precision == "bf16-true":
        backbone, image = backbone.bfloat16(), image.bfloat16()

    def run() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            return [backbone(image * 1).patches]

    run()  # the rotary tables, which stay, are made once
    measured = kept_bytes(run, backbone.parameters(), hooks=checkpointing != "selective")
    if precision == "bf16-mixed":
        measured -= 2 * count_parameters(backbone, nn.Identity()).cast
    estimated = backbone_bytes(backbone.config, backbone.config.image_size, 2, numerics(precision, "cpu"))
    return measured, estimated


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_backbone_keeps_what_the_plan_says(precision, checkpointing):
    measured, estimated = backbone_case(precision, checkpointing)
    assert estimated == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [
        {"window_tokenizer_depth": 2, "image_size": (256, 192)},
        {"frozen_stages": 4},
        {"embed_dim": 64, "mlp_dim": 128, "rope_dtype": "bfloat16"},
        {"image_size": (256, 256), "depth": 2, "full_attention_ends": 8},
    ],
    ids=["tokenizer", "frozen", "narrow", "large image"],
)
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
def test_backbone_of_other_shapes_keeps_what_the_plan_says(options, checkpointing):
    measured, estimated = backbone_case("bf16-mixed", checkpointing, **options)
    assert estimated == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("task", HEADS)
def test_head_keeps_what_the_plan_says(task, precision):
    head, (height, width) = tiny_head(task)
    tokens = torch.randn(2, 9 + height * width, 96)
    if precision == "bf16-true":
        head, tokens = head.bfloat16(), tokens.bfloat16()
    tokens.requires_grad_(True)

    def run() -> list[Tensor]:
        features = (tokens * 1)[:, 9:].reshape(2, height, width, 96).permute(0, 3, 1, 2)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            output = head(features)
        return [output] if isinstance(output, Tensor) else list(output)

    measured = kept_bytes(run, head.parameters())
    if precision == "bf16-mixed":
        measured -= 2 * count_parameters(nn.Identity(), head).cast
    estimated = trace_module(head, (2, 96, height, width), numerics(precision, "cpu")).kept
    assert estimated == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="the operators of CUDA are not in this build of torch")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("options", [{}, {"embed_dim": 304}], ids=["head of 24", "head of 76, padded"])
def test_backbone_keeps_on_a_gpu_what_the_plan_says(precision, options, monkeypatch):
    """Runs CUDA's operators on tensors without memory; the choice of the attention kernel alone is made here."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    def fused(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool = False) -> Tensor:
        if q.dtype == torch.float32:
            assert not enable_gqa
            return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0]
        channels = q.shape[-1]
        q, k, v = (nn.functional.pad(t, (0, -channels % 8)) if channels % 8 else t for t in (q, k, v))
        q, k, v = (t.to(torch.bfloat16) for t in (q, k, v))
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0][..., :channels]

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", fused)
    options = {**TINY, "image_size": (128, 96), **options}
    monkeypatch.setattr(torch.__future__, "get_swap_module_params_on_conversion", lambda: False)
    default = torch.bfloat16 if precision == "bf16-true" else torch.float32
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(default)
        try:
            with torch.device("cuda"):
                backbone = create_backbone("sapiens2_nano", **options).train()
                image = torch.randn(2, 3, *backbone.config.image_size)
        finally:
            torch.set_default_dtype(torch.float32)

        def run() -> list[Tensor]:
            torch.set_autocast_dtype("cuda", torch.bfloat16)
            torch.set_autocast_enabled("cuda", precision == "bf16-mixed")
            try:
                return [backbone(image).patches]
            finally:
                torch.set_autocast_enabled("cuda", False)
                torch.clear_autocast_cache()

        run()
        measured = kept_bytes(run, backbone.parameters())
    if precision == "bf16-mixed":
        measured -= 2 * count_parameters(backbone, nn.Identity()).cast
    estimated = backbone_bytes(backbone.config, backbone.config.image_size, 2, numerics(precision, "cuda"))
    assert estimated == pytest.approx(measured, rel=TOLERANCE)


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
    assert step_numerics(Strategy("fsdp2", 2), mixed).stream == 2
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
    backbone, (head, _) = create_backbone("sapiens2_nano", embed_dim=96, image_size=(256, 192)), tiny_head("normals")
    task = SimpleNamespace(backbone=backbone, decode_head=head, image_size=(256, 192))
    throughput = Throughput()
    device = SimpleNamespace(type="cpu")
    trainer = SimpleNamespace(world_size=4, strategy=SimpleNamespace(root_device=device))
    assert throughput._compute_rate(trainer, 100.0) == {}
    throughput.setup(trainer, task, "fit")
    flops = sum(part.forward + part.backward for part in task_flops(backbone, head, (256, 192)))
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
    assert "600 steps take" in text
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
        (["--model.image_size", "[100,96]"], 1, "multiples of the patch size 16, got 100 x 96"),
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
