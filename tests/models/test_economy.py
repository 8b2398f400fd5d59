"""Options that save memory or time change neither losses nor gradients; and each saves what it says."""

from __future__ import annotations

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from s2kit.models import Sapiens2, create_backbone
from s2kit.models.layers import Block, RMSNorm, SwiGLU, _CpuRMSNorm, gated_silu
from s2kit.models.rope import RotaryEmbedding

# Blocks 1 and 2 are grouped; the feed-forward layer is as wide as in the published sizes, 4 D.
TINY = {"embed_dim": 32, "depth": 4, "num_heads": 4, "mlp_dim": 128, "full_attention_ends": 1}
CASES = {
    "plain": {},
    "drop_path": {"drop_path": 0.5},
    "bfloat16_rope": {"rope_dtype": "bfloat16"},
    "frozen": {"frozen_stages": 2, "drop_path": 0.5},
    "windows": {"window_tokenizer_depth": 1, "window_size": 2, "patch_size": 8},
}


def tiny(**overrides) -> Sapiens2:
    torch.manual_seed(0)
    return create_backbone("sapiens2_nano", (32, 48), **{**TINY, **overrides}).train()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))


def step(model: nn.Module, images: torch.Tensor, autocast: bool = False) -> tuple[torch.Tensor, list]:
    """Loss and gradients of a training step."""
    torch.manual_seed(3)
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        output = model(images)
        loss = output.patches.float().square().mean() + output.cls.float().mean()
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]


def assert_equal(found: tuple, expected: tuple, exact: bool = True) -> None:
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(found[0], expected[0], **tolerance)
    for a, b in zip(found[1], expected[1], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, **tolerance)


# ------------------------------------------------------------------------------------------------ checkpointing


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("mode", ["full", "selective"])
@pytest.mark.parametrize("case", CASES)
def test_checkpointing_gives_the_same_loss_and_gradients(case, mode, autocast, images):
    expected = step(tiny(**CASES[case]), images, autocast)
    assert_equal(step(tiny(**CASES[case], checkpointing=mode), images, autocast), expected)


def test_visible_tokens_train_alike_under_checkpointing(images):
    keep = torch.tensor([[5, 0, 3], [1, 2, 4]])
    results = []
    for mode in ("none", "full", "selective"):
        model = tiny(checkpointing=mode)
        loss = model.forward_visible(images, keep).tokens.square().mean()
        loss.backward()
        results.append((loss.detach(), [parameter.grad for parameter in model.parameters()]))
    assert_equal(results[1], results[0])
    assert_equal(results[2], results[0])


def operations(mode: str, images: torch.Tensor) -> int:
    """FLOPs of the matrix products and of attention in one training step."""
    model = tiny(checkpointing=mode)
    counter = FlopCounterMode(display=False)
    with counter:
        step(model, images)
    return counter.get_total_flops()


def test_selective_computes_no_product_twice_and_full_computes_all_of_them(images):
    none, full, selective = (operations(mode, images) for mode in ("none", "full", "selective"))
    model = tiny()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(images)
    embedding = 2 * 2 * 6 * 32 * 3 * 16 * 16
    last = 4 * 2 * 2 * 15 * 128 * 32  # each block's last product: the backward pass never asks for it
    assert selective == none
    assert full == none + counter.get_total_flops() - embedding - last


class _Kept:
    """Bytes of distinct tensors that autograd keeps, without parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.storages: dict[int, int] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    def bytes(self, run) -> int:
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
            kept = run()
        assert kept is not None
        return sum(self.storages.values())


def test_the_gated_layer_keeps_no_silu():
    layer = SwiGLU(32, 128)
    x = torch.randn(2, 15, 32, requires_grad=True)
    tokens = 2 * 15 * 4
    # Its input D, w12's output 2 F, and the product F that w3 takes.
    assert _Kept(layer).bytes(lambda: layer(x)) == tokens * (32 + 2 * 128 + 128)


def test_the_gated_layer_gives_the_same_without_gradients_and_still_calls_hooks():
    torch.manual_seed(0)
    layer, x = SwiGLU(32, 128), torch.randn(2, 15, 32)
    expected = layer(x)
    a, b = layer.w12(x).chunk(2, dim=-1)
    torch.testing.assert_close(expected, layer.w3(a * torch.sigmoid(a) * b))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            halved = layer(x)
            assert halved.dtype == torch.bfloat16
        torch.testing.assert_close(halved.float(), expected, atol=2e-2, rtol=2e-2)
        seen = []
        layer.w12.register_forward_hook(lambda module, given, output: seen.append(tuple(output.shape)))
        torch.testing.assert_close(layer(x), expected)
    assert seen == [(2, 15, 256)]


@pytest.mark.parametrize("shape", [(2, 5, 12), (2, 5, 3, 12), (4, 12)])
def test_the_norm_is_torchs_and_keeps_its_input_alone(shape):
    torch.manual_seed(0)
    norm, reference = RMSNorm(12, eps=1e-6), nn.RMSNorm(12, eps=1e-6)
    with torch.no_grad():
        reference.weight.uniform_(0.5, 2)
        norm.load_state_dict(reference.state_dict())
    x = torch.randn(shape, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    gradient = torch.randn(shape)
    output, expected = norm(x), reference(other)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(norm(x.detach().requires_grad_(False)), expected)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), expected)
    output.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(x.grad, other.grad)
    torch.testing.assert_close(norm.weight.grad, reference.weight.grad)
    assert _Kept(norm).bytes(lambda: norm(x)) == 4 * x.numel() + 4 * x.numel() // 12
    wide = [value.detach().double().requires_grad_() for value in (x, norm.weight)]
    assert torch.autograd.gradcheck(lambda *values: _CpuRMSNorm.apply(*values, 1e-6), wide)


def test_autocast_casts_the_projections_input_once():
    block = Block(32, 4, 128)
    kept = _Kept(block)
    x = torch.randn(2, 15, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        kept.bytes(lambda: block.attn.wq(x))
        one = len(kept.storages)
        kept = _Kept(block)
        kept.bytes(lambda: block.attn(x))
    half_inputs = [size for size in kept.storages.values() if size == 2 * 15 * 32 * 2]
    assert one == 1 + 1  # the weight's and the input's copies
    # The input once, q and k before and after the norm and the cast, v, attention's output, proj's output.
    assert len(half_inputs) <= 7


def test_gated_silu_has_the_right_gradient_in_every_setting():
    halves = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gated_silu, (halves,))
    gate, value = halves.detach().chunk(2, dim=-1)
    expected = gate * gate.sigmoid() * value
    torch.testing.assert_close(gated_silu(halves), expected)
    untracked = halves.detach().clone()
    torch.testing.assert_close(gated_silu(untracked), expected)
    assert torch.equal(untracked, halves.detach())  # the caller's tensor stays as it was
    with torch.no_grad():
        torch.testing.assert_close(gated_silu(halves), expected)


def test_set_checkpointing_switches_and_refuses(images):
    model = tiny()
    model.set_checkpointing("selective")
    assert {block.checkpointing for block in model.blocks} == {"selective"}
    with pytest.raises(ValueError, match=r"one of \('none', 'full', 'selective'\), got 'some'"):
        model.set_checkpointing("some")


# ------------------------------------------------------------------------------------------------ compilation


@pytest.fixture
def counter(monkeypatch):
    """Blocks compile with a backend that counts the graphs and runs them as they are."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: real(self, backend=counter, **options))
    yield counter
    torch._dynamo.reset()


@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_compiled_blocks_give_the_same_loss_and_gradients(mode, counter, images):
    expected = step(tiny(), images)
    found = step(tiny(compile=True, checkpointing=mode), images)
    assert_equal(found, expected, exact=False)
    assert counter.frame_count == 2  # one graph without a break for each kind of block, grouped or not


def test_one_graph_serves_blocks_of_all_drop_path_rates(counter, images):
    model = tiny(compile=True, drop_path=0.5, depth=8)
    assert len({block.drop_path.rate for block in model.blocks}) == 8
    assert torch.isfinite(step(model, images)[0])
    assert counter.frame_count == 3  # the first block, which drops nothing; the grouped ones; the last


def test_copies_of_a_compiled_model_are_compiled(counter, images):
    model = tiny(compile=True).eval()
    expected = tiny().eval()(images).patches
    assert list(model.state_dict()) == list(tiny().state_dict())
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(block._compiled_call_impl is not None for block in each.blocks)
        torch.testing.assert_close(each(images).patches, expected)


@pytest.mark.slow  # the default compiler builds C++ code
@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_the_default_compiler_agrees(mode, images):
    torch._dynamo.reset()
    found = step(tiny(compile=True, checkpointing=mode), images)
    assert_equal(found, step(tiny(), images), exact=False)


# ------------------------------------------------------------------------------------------------ freezing, copies


@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_frozen_stages_do_not_move(mode, images):
    model = tiny(frozen_stages=2, checkpointing=mode)
    task = nn.ModuleDict({"backbone": model})
    task.eval()
    task.train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    step(model, images)
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    frozen = ("cls_token", "storage_tokens", "patch_embed.", "blocks.0.", "blocks.1.")
    assert moved == {name for name in before if not name.startswith(frozen)}
    assert [block.training for block in model.blocks] == [False, False, True, True]


class _Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*arguments, **(options or {}))


def test_a_block_joins_and_repeats_nothing():
    """Keys and values are not repeated for grouped queries, and RoPE does not cut the prefix off and join it again."""
    block = Block(32, 4, 128, num_kv_heads=2)
    rope = RotaryEmbedding(8, "float32")(2, 3, 9, torch.device("cpu"))
    seen = _Operators()
    with torch.no_grad(), seen:
        block(torch.randn(2, 15, 32), rope)
    assert not {"cat", "stack", "repeat", "repeat_interleave", "expand", "index_select", "slice_scatter"} & set(
        seen.names
    )
    attention = [name for name in seen.names if "attention" in name]
    assert attention == ["_scaled_dot_product_flash_attention_for_cpu"]
