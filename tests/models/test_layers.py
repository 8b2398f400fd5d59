"""Attention, feed-forward and residual layers against their formulas (spec 1.4, 1.5)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from s2kit.models import layers
from s2kit.models.layers import Attention, Block, DropPath, LayerScale, SwiGLU


def _qkv(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 6, 9, 8).to(dtype), torch.randn(2, 3, 9, 8).to(dtype), torch.randn(2, 3, 9, 8).to(dtype)


@pytest.mark.parametrize("attention", [layers.grouped_attention, layers._folded_attention])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_attention_is_repeated_keys_and_values(attention, dtype):
    q, k, v = _qkv(dtype)
    weights = (q @ k.repeat_interleave(2, dim=1).transpose(2, 3) / 8**0.5).softmax(dim=-1)
    expected = weights @ v.repeat_interleave(2, dim=1)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(attention(q, k, v), expected, rtol=0, atol=tolerance)


def test_grouped_attention_trains_and_copies_no_keys(monkeypatch):
    """The gradient of a shared key head is the sum over its query heads, and SDPA sees three heads, not six."""
    q, k, v = (tensor.requires_grad_() for tensor in _qkv())
    seen = []
    real = F.scaled_dot_product_attention

    def spy(q, k, v, **options):
        seen.append((k.shape[1], options))
        return real(q, k, v, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    layers.grouped_attention(q, k, v).square().sum().backward()
    assert seen == [(3, {"enable_gqa": True} if layers.CPU_GROUPS else {})]
    got = k.grad.clone()
    k.grad = None
    real(q, k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)).square().sum().backward()
    torch.testing.assert_close(got, k.grad, rtol=1e-4, atol=1e-5)


def test_attention_formula():
    torch.manual_seed(0)
    attention = Attention(16, num_heads=2, layer_scale_init=0.5)
    with torch.no_grad():
        attention.q_norm.weight.uniform_(0.5, 2)
    x = torch.randn(2, 5, 16)

    def heads(tensor):
        return tensor.reshape(2, 5, 2, 8).transpose(1, 2)

    def normed(tensor, weight):
        return tensor / (tensor.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight

    q = normed(heads(attention.wq(x)), attention.q_norm.weight)
    k = normed(heads(attention.wk(x)), 1.0)
    mixed = (q @ k.transpose(2, 3) / 8**0.5).softmax(dim=-1) @ heads(attention.wv(x))
    expected = 0.5 * attention.proj(mixed.transpose(1, 2).reshape(2, 5, 16))
    torch.testing.assert_close(attention(x), expected, rtol=0, atol=1e-5)


def test_plain_attention_has_no_norms_and_no_scale():
    attention = Attention(16, 2, qk_norm=False, layer_scale_init=None)
    assert {key.split(".")[0] for key in attention.state_dict()} == {"wq", "wk", "wv", "proj"}


def test_swiglu_gates_with_the_first_half():
    layer = SwiGLU(4, 6)
    x = torch.randn(3, 4)
    first, second = layer.w12(x)[:, :6], layer.w12(x)[:, 6:]
    torch.testing.assert_close(layer(x), layer.w3(first * first.sigmoid() * second))


def test_drop_path():
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 3)
    layer = DropPath(0.25)
    dropped = layer(x)
    kept = dropped[:, 0, 0] != 0
    assert torch.equal(dropped, torch.where(kept[:, None, None], 1 / 0.75, 0.0).expand_as(x))
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert layer.eval()(x) is x
    assert DropPath(0.0).train()(x) is x


def test_block_drops_whole_branches():
    torch.manual_seed(0)
    block = Block(8, 2, 16, drop_path=0.99)
    x = torch.randn(2, 3, 8)
    outputs = [block(x) for _ in range(5)]
    assert any(torch.equal(output[0], x[0]) for output in outputs)
    assert not torch.equal(block.eval()(x), x)


def test_initial_values():
    """Spec 1.7: normal(0, 0.02), biases 0, norms 1, LayerScale as asked."""
    torch.manual_seed(0)
    block = Block(128, 4, 256, layer_scale_init=1e-4)
    block.apply(layers.init_weights)
    assert block.ffn.w12.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert block.attn.wq.bias.abs().max() == 0
    assert torch.equal(block.ln1.weight, torch.ones(128))
    assert torch.equal(block.attn.gamma.weight, torch.full((128,), 1e-4))
    assert torch.equal(LayerScale(3, 2.0)(torch.ones(3)), torch.full((3,), 2.0))
