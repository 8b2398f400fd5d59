"""Transformer layers of Sapiens2 (spec 1.4, 1.5); attribute names are the official state-dict keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend

from s2kit.models.recompute import recompute
from s2kit.models.rope import RotaryTables, rotate

NORM_EPS = 1e-6


def _cpu_groups() -> bool:
    """Whether this torch has a fused kernel for grouped queries on the CPU."""
    q, kv = (torch.zeros(1, heads, 1, 8, device="cpu") for heads in (2, 1))
    return torch._fused_sdp_choice(q, kv, kv, enable_gqa=True) != SDPBackend.MATH.value


CPU_GROUPS = _cpu_groups()


class _CpuRMSNorm(torch.autograd.Function):
    """RMSNorm over the last axis in float32 that keeps its input and one number a vector.

    The CPU has no kernel for it: torch's own takes it apart, keeps the normalised values as well, and takes twice as
    long forward and backward.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        product = gradient * normed
        of_weight = product.flatten(0, -2).sum(dim=0)
        along = product.mul_(weight).mean(dim=-1, keepdim=True)
        return normed.mul_(-along).addcmul_(gradient, weight).mul_(scale), of_weight, None


class RMSNorm(nn.RMSNorm):
    """RMSNorm over the last axis, the same as torch's; in float32 training on the CPU faster and with less kept."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        plain = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
        trains = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if plain and trains and not torch.compiler.is_compiling():
            return _CpuRMSNorm.apply(x, weight, self.eps)
        return super().forward(x)


class LayerScale(nn.Module):
    """Learned factor per channel on a residual branch."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.init = init
        self.weight = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class DropPath(nn.Module):
    """Drops a residual branch for whole samples with probability `rate` while training.

    Kept samples are scaled by 1 / (1 - rate), so the expected value stays.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.active = rate > 0.0
        # A tensor, so that one compiled block serves all blocks, whose rates differ; on the CPU, which goes along with
        # any device as a scalar does.
        self._keep = torch.tensor(1.0 - rate, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        if not (self.active and self.training):
            return x
        kept = torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), device=x.device) < self._keep
        return x * (kept / self._keep).to(x.dtype)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def _folded_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`grouped_attention` by the plain kernels: without a mask, a group of query heads is the same as one head with
    that many times the queries."""
    batch, heads, length, dim = q.shape
    kv_heads = k.shape[1]
    folded = q.reshape(batch, kv_heads, heads // kv_heads * length, dim)
    return F.scaled_dot_product_attention(folded, k, v).reshape(batch, heads, length, dim)


def grouped_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention where query heads share key and value heads without copying those.

    q is (B, H, N, d); k and v are (B, H_kv, N, d); query heads j * H / H_kv ... (j + 1) * H / H_kv - 1 use
    key and value head j. Returns (B, H, N, d).
    """
    if q.shape[1] == k.shape[1]:
        return F.scaled_dot_product_attention(q, k, v)
    # CUDA's fused grouped kernels are for half precision, the CPU's came after torch 2.7; without one, torch repeats
    # the keys and writes out the N x N matrix.
    if CPU_GROUPS if q.device.type == "cpu" else q.dtype in (torch.float16, torch.bfloat16):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return _folded_attention(q, k, v)


class Attention(nn.Module):
    """Self-attention with optional query-key norm, grouped key-value heads and LayerScale (spec 1.5).

    `layer_scale_init=None` leaves LayerScale out, `qk_norm=False` the two norms, as the window tokenizer does.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        qk_norm: bool = True,
        layer_scale_init: float | None = 1e-4,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads or num_heads
        self.head_dim = dim // num_heads
        kv_dim = self.num_kv_heads * self.head_dim
        self.wq = nn.Linear(dim, dim)
        self.wk = nn.Linear(dim, kv_dim)
        self.wv = nn.Linear(dim, kv_dim)
        self.q_norm = RMSNorm(self.head_dim, eps=NORM_EPS) if qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, eps=NORM_EPS) if qk_norm else None
        self.proj = nn.Linear(dim, dim)
        self.gamma = None if layer_scale_init is None else LayerScale(dim, layer_scale_init)

    def forward(self, x: Tensor, rope: RotaryTables | None = None) -> Tensor:
        """x (B, N, D) and the rotary tables of its N tokens, or None for no rotation. Returns (B, N, D)."""
        batch, length, dim = x.shape
        q, k, v = self.project(x, rope)
        x = grouped_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = self.proj(x.transpose(1, 2).reshape(batch, length, dim))
        return x if self.gamma is None else self.gamma(x)

    def project(self, x: Tensor, rope: RotaryTables | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, N, H, d), keys and values (B, N, H_kv, d), normed and rotated, of tokens (B, N, D)."""
        batch, length, _ = x.shape
        device = x.device.type
        # The meta device has no autocast, and asking for it is an error there.
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            # Once: each of the three layers would cast it anew and keep its copy for the backward pass.
            x = x.to(torch.get_autocast_dtype(device))
        q = self.wq(x).view(batch, length, self.num_heads, self.head_dim)
        k = self.wk(x).view(batch, length, self.num_kv_heads, self.head_dim)
        v = self.wv(x).view(batch, length, self.num_kv_heads, self.head_dim)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        # A norm or a rotation may have promoted q and k above the precision that v has under autocast.
        q, k = q.to(v.dtype), k.to(v.dtype)
        return q, k, v


class _GatedSiLU(torch.autograd.Function):
    """SiLU(a) * b of the halves of a tensor, keeping nothing but that tensor.

    The same operations in the same order as autograd's, but SiLU(a) is computed again in the backward pass instead of
    kept: an eighth of a block's activations.
    """

    @staticmethod
    def forward(halves: Tensor) -> Tensor:
        gate, value = halves.chunk(2, dim=-1)
        return F.silu(gate).mul_(value)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> Tensor:
        (halves,) = ctx.saved_tensors
        gate, value = halves.chunk(2, dim=-1)
        result = torch.empty_like(halves)
        of_gate, of_value = result.chunk(2, dim=-1)
        of_value.copy_(gradient).mul_(value)
        of_gate.copy_(torch.ops.aten.silu_backward(of_value, gate))
        of_value.copy_(F.silu(gate).mul_(gradient))
        return result


def gated_silu(halves: Tensor) -> Tensor:
    """SiLU(a) * b, (..., F), of the halves a and b of a tensor (..., 2 F)."""
    if halves.requires_grad and torch.is_grad_enabled():
        return _GatedSiLU.apply(halves)
    gate, value = halves.chunk(2, dim=-1)
    return F.silu(gate).mul_(value)


class SwiGLU(nn.Module):
    """Gated feed-forward layer: w3(SiLU(a) * b), where a and b are the halves of w12(x)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden_dim)
        self.w3 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and not torch.is_grad_enabled() and _is_plain(self.w12):
            # Two products into half the room each: memory of the size of both is mapped anew for every block, which
            # takes the CPU longer than the second product's start (3 % of this layer at 768 channels and more).
            (gate, value), biases = self.w12.weight.chunk(2), self.w12.bias.chunk(2)
            return self.w3(F.silu(F.linear(x, gate, biases[0])).mul_(F.linear(x, value, biases[1])))
        return self.w3(gated_silu(self.w12(x)))


def _is_plain(layer: nn.Module) -> bool:
    """Whether calling a layer does nothing but its linear map, and may be left out."""
    hooked = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) is nn.Linear and not hooked and not torch.compiler.is_compiling()


class Block(nn.Module):
    """Pre-norm transformer layer: attention, then SwiGLU, each with a residual.

    Attributes:
        checkpointing: "none", or what `recompute` does in the backward pass of training: "full" or "selective".
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        num_kv_heads: int | None = None,
        qk_norm: bool = True,
        layer_scale_init: float | None = 1e-4,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.ln1 = RMSNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads, num_kv_heads, qk_norm, layer_scale_init)
        self.ln2 = RMSNorm(dim, eps=NORM_EPS)
        self.ffn = SwiGLU(dim, mlp_dim)
        self.drop_path = DropPath(drop_path)
        self.checkpointing = "none"

    def forward(self, x: Tensor, rope: RotaryTables | None = None) -> Tensor:
        """x (B, N, D) -> (B, N, D)."""
        # Inside the block, so that a compiler and a sharding strategy, which wrap the block, lie around it.
        if self.checkpointing == "none" or not (self.training and torch.is_grad_enabled()):
            return self._layers(x, rope)
        return recompute(self._layers, self.checkpointing, x, rope)

    def _layers(self, x: Tensor, rope: RotaryTables | None) -> Tensor:
        x = x + self.drop_path(self.attn(self.ln1(x), rope))
        return x + self.drop_path(self.ffn(self.ln2(x)))


def init_weights(module: nn.Module) -> None:
    """The official initialisation of one module (spec 1.7): normal(0, 0.02), biases 0, norms 1, LayerScale as set.

    The release truncates at +-2, a hundred standard deviations away, which is no truncation.
    """
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.RMSNorm):
        nn.init.ones_(module.weight)
    elif isinstance(module, LayerScale):
        nn.init.constant_(module.weight, module.init)
