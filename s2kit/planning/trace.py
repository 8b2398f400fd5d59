"""What the layers of a module take, give and keep, found by running it on the meta device: nothing is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from s2kit.planning.numerics import Numerics, numerics

_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
_KEEP_INPUT = (nn.SiLU, nn.GELU, nn.ReLU)
_KEEP_OUTPUT = (nn.Sigmoid, nn.Softmax, nn.Tanh)
_CHANNEL_NORMS = (nn.InstanceNorm2d, nn.BatchNorm2d, nn.GroupNorm)


@dataclass
class Trace:
    """Of one pass over a module.

    Attributes:
        flops: of its products, attention included; forward.
        attention_flops: of attention alone.
        kept: bytes kept for the backward pass, without weights and their copies.
        largest: bytes of the input and output of the layer where they are most, the least room that it works in.
        output_shape, output_bytes: of what it returns: the shape of its feature map or first tensor, the bytes of all.
    """

    flops: float = 0.0
    attention_flops: float = 0.0
    kept: float = 0.0
    largest: float = 0.0
    output_shape: tuple[int, ...] = ()
    output_bytes: float = 0.0
    _seen: set[int] = field(default_factory=set)


def product_flops(module: nn.Module, given: Tensor, returned: Tensor) -> float:
    """Multiply-adds of a linear layer or convolution, times 2."""
    per_output = module.weight[0].numel()
    if isinstance(module, nn.ConvTranspose2d):
        # Each input number meets the whole kernel, once for each output channel of its group.
        return 2.0 * given.numel() * per_output
    return 2.0 * returned.numel() * per_output


class _Walker(TorchFunctionMode):
    """Follows tensors through layers with the width in bytes that they would have in training."""

    def __init__(self, how: Numerics) -> None:
        super().__init__()
        self.how = how
        self.trace = Trace()
        self.widths: dict[int, int] = {}
        self.alive: list[Tensor] = []

    @staticmethod
    def _storage(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def width(self, tensor: Tensor) -> int:
        return self.widths.get(self._storage(tensor), self.how.compute)

    def give(self, tensor: Tensor, width: int) -> None:
        """Remember the width of a tensor; it must stay alive, or another would take its storage's number."""
        self.widths[self._storage(tensor)] = width
        self.alive.append(tensor)

    def keep(self, tensor: Tensor, width: int | None = None) -> None:
        """Count a tensor as kept, once; one of another width than asked is copied."""
        if width is not None and width != self.width(tensor):
            self.trace.kept += tensor.numel() * width
            return
        storage = self._storage(tensor)
        if storage not in self.trace._seen:
            self.trace._seen.add(storage)
            self.trace.kept += tensor.untyped_storage().nbytes() / tensor.element_size() * self.width(tensor)

    def work(self, *tensors: Tensor) -> None:
        self.trace.largest = max(self.trace.largest, sum(t.numel() * self.width(t) for t in tensors))

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is nn.functional.scaled_dot_product_attention:
            return self.attention(*args[:3])
        return function(*args, **(kwargs or {}))

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Fused attention (B, H, N, d): keeps its inputs, its output and a number a row."""
        flops = 2.0 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * (q.shape[3] + v.shape[3])
        self.trace.flops += flops
        self.trace.attention_flops += flops
        output = q.new_empty((*q.shape[:3], v.shape[3]))
        self.give(output, self.how.compute)
        for tensor in (q, k, v, output):
            self.keep(tensor, self.how.compute)
        self.trace.kept += 4 * q[..., 0].numel()
        return output

    def hook(self, module: nn.Module, args: tuple, output: Any) -> None:
        """The rule of a layer: what it keeps, and the width of what it gives."""
        if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return
        given, how = args[0], self.how
        width = self.width(given)
        if isinstance(module, _PRODUCTS):
            self.trace.flops += product_flops(module, given, output)
            self.keep(given, how.compute)
            width = how.compute
        elif isinstance(module, nn.RMSNorm | nn.LayerNorm):
            if how.fused_norm and not how.autocast:
                self.keep(given)
                self.trace.kept += 4 * given.numel() / given.shape[-1]
            else:
                self.trace.kept += how.norm(given.numel(), given.numel() / given.shape[-1], width)
            width = how.norm_output(width)
        elif isinstance(module, _CHANNEL_NORMS):
            self.keep(given)
            self.trace.kept += 8 * given.shape[0] * given.shape[1]
        elif isinstance(module, _KEEP_INPUT):
            self.keep(given)
        elif any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            self.keep(given)  # a factor per channel and the like
        if output is given:
            return
        self.give(output, width)
        if isinstance(module, _KEEP_OUTPUT):
            self.keep(output)
        self.work(given, output)


def trace_module(module: nn.Module, shape: tuple[int, ...], how: Numerics | None = None) -> Trace:
    """Run a module on an input of a shape, on the meta device, whatever device its weights are on.

    Args:
        module: a head or a backbone of the usual layers: linear, convolutions, norms, activations, fused attention.
        shape: of its input, batch first.
        how: the precision; only what it keeps depends on it.
    """
    how = how or numerics()
    walker = _Walker(how)
    leaves = [part for part in module.modules() if not list(part.children())]
    hooks = [part.register_forward_hook(walker.hook) for part in leaves]
    state = {
        name: torch.empty(tensor.shape, dtype=torch.float32, device="meta").requires_grad_(tensor.requires_grad)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    x = torch.empty(shape, device="meta")
    walker.give(x, how.stream)
    try:
        with walker, torch.compiler.set_stance("force_eager"):
            output = torch.func.functional_call(module, state, (x,))
    finally:
        for hook in hooks:
            hook.remove()
    tensors = [output] if isinstance(output, Tensor) else [t for t in output if isinstance(t, Tensor)]
    walker.trace.output_shape = tuple(getattr(output, "patches", tensors[0]).shape)
    walker.trace.output_bytes = sum(t.numel() * walker.width(t) for t in tensors)
    return walker.trace
