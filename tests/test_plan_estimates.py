"""FLOPs of the plan against torch's counter, activations against what autograd keeps."""

import gc
import weakref
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from s2kit.models import backbone_config, create_backbone, create_head
from s2kit.models.heads import HEADS
from s2kit.planning import (
    backbone_flops,
    count_parameters,
    numerics,
    task_flops,
)
from s2kit.planning.activations import backbone_bytes
from s2kit.planning.flops import module_flops
from s2kit.planning.trace import trace_module

TINY = {"depth": 6, "full_attention_ends": 2, "embed_dim": 96, "num_heads": 4, "mlp_dim": 384}
#: How far an estimate of what is kept may be off: the promise is 15 %.
TOLERANCE = 0.05
#: Which of timm's layers checkpointing runs again is not followed closer than this.
TRACED_STEP = 0.1

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
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone = create_backbone(arch, **options).eval()
        backbone(torch.empty(1, 3, *backbone.config.image_size))
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


#: Backbones without formulas of their own, which are followed layer by layer.
TRACED = {
    "timm/vit_tiny_patch16_224": {},
    "timm/vit_small_patch16_dinov3": {},
    "sapiens_0.3b": {"depth": 4, "embed_dim": 192, "num_heads": 4, "mlp_dim": 768},
}


@pytest.mark.parametrize("arch", TRACED)
def test_flops_of_other_backbones_agree_with_torchs_counter(arch):
    backbone = create_backbone(arch, image_size=(128, 96), **TRACED[arch]).train()
    with FlopCounterMode(display=False) as counter:
        features = backbone(torch.zeros(1, 3, 128, 96)).patches
        forward = counter.get_total_flops()
        features.sum().backward()
    flops, head = task_flops(backbone, nn.Conv2d(features.shape[1], 2, 1), (128, 96))
    assert flops.forward == pytest.approx(forward, rel=1e-2)
    assert flops.hardware == pytest.approx(counter.get_total_flops(), rel=1e-2)
    assert head.forward == 2 * features.shape[1] * 2 * 8 * 6


@pytest.mark.parametrize("options", [{"checkpointing": "full"}, {"frozen_stages": 6}], ids=str)
def test_flops_of_a_timm_transformer_partly_frozen_or_checkpointed(options):
    backbone = create_backbone("timm/vit_tiny_patch16_224", image_size=(64, 48), **options).train()
    with FlopCounterMode(display=False) as counter:
        backbone(torch.zeros(1, 3, 64, 48)).patches.sum().backward()
    flops, _ = task_flops(backbone, nn.Identity(), (64, 48))
    assert flops.hardware == pytest.approx(counter.get_total_flops(), rel=TRACED_STEP)


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


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("arch", TRACED)
def test_other_backbones_keep_what_the_plan_says(arch, precision):
    backbone = create_backbone(arch, image_size=(128, 96), **TRACED[arch]).train()
    image = torch.randn(2, 3, 128, 96)

    def run() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            return [backbone(image * 1).patches]

    measured = kept_bytes(run, backbone.parameters())
    if precision == "bf16-mixed":
        measured -= 2 * count_parameters(backbone, nn.Identity()).cast
    estimated = trace_module(backbone, (2, 3, 128, 96), numerics(precision, "cpu"), of_features=False).kept
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
