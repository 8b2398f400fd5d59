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
_KEEP_INPUT_FUNCTIONS = (nn.functional.silu, nn.functional.gelu, nn.functional.relu)
_MULTIPLY = (torch.mul, torch.multiply, Tensor.mul, Tensor.multiply, Tensor.__mul__, Tensor.__rmul__)
_KEEP_OUTPUT = (nn.Sigmoid, nn.Softmax, nn.Tanh)
_CHANNEL_NORMS = (nn.InstanceNorm2d, nn.BatchNorm2d, nn.GroupNorm)


@dataclass
class Trace:
    """Of one pass over a module.

    Attributes:
        flops: of its products, attention included; forward.
        backward_flops: of the gradients of weights and inputs that need one.
        rescored_flops: of the scores that fused attention computes again for its gradients.
        kept: bytes kept for the backward pass, without weights and their copies.
        largest: bytes of the input and output of the layer where they are most, the least room that it works in.
        output_shape, output_bytes: of what it returns: the shape of its feature map or first tensor, the bytes of all.
    """

    flops: float = 0.0
    backward_flops: float = 0.0
    rescored_flops: float = 0.0
    kept: float = 0.0
    largest: float = 0.0
    output_shape: tuple[int, ...] = ()
    output_bytes: float = 0.0
    _seen: set[int] = field(default_factory=set)


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among arguments, and in their lists and tuples."""
    found = []
    for value in values:
        found += [value] if isinstance(value, Tensor) else _tensors(value) if isinstance(value, list | tuple) else []
    return found


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
        return self.widths.get(self._storage(tensor), self.how.weights)

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
        kwargs = kwargs or {}
        if function is nn.functional.scaled_dot_product_attention:
            return self.attention(*args[:3], *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))
        output = function(*args, **kwargs)
        given = _tensors([*args, *kwargs.values()])
        if function in _MULTIPLY and len(given) == 2:
            # The gradient of each factor needs the other.
            for factor, other in (given, given[::-1]):
                if other.requires_grad:
                    self.keep(factor)
        elif function in _KEEP_INPUT_FUNCTIONS and given[0].requires_grad:
            self.keep(given[0])
        if isinstance(output, Tensor) and given and self._storage(output) not in self.widths:
            # Between layers the widest wins, as torch promotes; a layer's own rule comes after.
            self.give(output, max(self.width(tensor) for tensor in given))
        return output

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Fused attention (B, H, N, d): keeps its inputs, its output and a number a row."""
        flops = 2.0 * q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * (q.shape[3] + v.shape[3])
        self.trace.flops += flops
        # The fused kernels lay it out as (B, N, H, d), so that the heads join without a copy.
        output = q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3])).transpose(1, 2)
        self.give(output, self.how.compute)
        if any(tensor.requires_grad for tensor in (q, k, v)):
            output.requires_grad_(True)
            self.trace.backward_flops += 2 * flops
            self.trace.rescored_flops += flops / 2
            for tensor in (q, k, v, output):
                self.keep(tensor, self.how.compute)
            self.trace.kept += 4 * q[..., 0].numel()
        return output

    def hook(self, module: nn.Module, args: tuple, output: Any) -> None:
        """The rule of a layer: what it keeps, and the width of what it gives."""
        if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            return
        given, width = args[0], self.width(args[0])
        if isinstance(module, _PRODUCTS):
            flops = product_flops(module, given, output)
            self.trace.flops += flops
            self.trace.backward_flops += flops * (module.weight.requires_grad + given.requires_grad)
            width = self.how.compute
        elif isinstance(module, nn.LayerNorm):
            # Autocast runs it in float32 on a GPU.
            width = 4 if self.how.autocast and self.how.device == "cuda" else width
        elif isinstance(module, nn.RMSNorm):
            width = self.how.norm_output(width)
        if output.requires_grad:
            self.keep_of(module, given)
        if output is given:
            return
        self.give(output, width)
        if isinstance(module, _KEEP_OUTPUT) and output.requires_grad:
            self.keep(output)
        self.work(given, output)

    def keep_of(self, module: nn.Module, given: Tensor) -> None:
        """What a layer whose output has a gradient keeps of its input."""
        how, width = self.how, self.width(given)
        rows = given.numel() / given.shape[-1]
        if isinstance(module, _PRODUCTS):
            if module.weight.requires_grad:
                self.keep(given, how.compute)
        elif isinstance(module, nn.LayerNorm):
            self.keep(given, 4 if how.autocast and how.device == "cuda" else None)
            self.trace.kept += 8 * rows
        elif isinstance(module, nn.RMSNorm) and how.fused_norm:
            self.keep(given, 4 if how.autocast else None)
            self.trace.kept += 4 * rows
        elif isinstance(module, nn.RMSNorm):
            self.trace.kept += how.torch_norm(given.numel(), rows, width)
        elif isinstance(module, _CHANNEL_NORMS):
            self.keep(given)
            self.trace.kept += 8 * given.shape[0] * given.shape[1]
        elif isinstance(module, _KEEP_INPUT) or any(p.requires_grad for p in module.parameters(recurse=False)):
            self.keep(given)  # activations; a factor per channel and the like


def trace_module(
    module: nn.Module, shape: tuple[int, ...], how: Numerics | None = None, of_features: bool = True
) -> Trace:
    """Run a module on an input of a shape, on the meta device, whatever device its weights are on.

    Args:
        module: a head or a backbone of the usual layers: linear, convolutions, norms, activations, fused attention.
        shape: of its input, batch first.
        how: the precision; only what it keeps depends on it.
        of_features: whether its input has a gradient, as a feature map has and an image has not.
    """
    how = how or numerics()
    walker = _Walker(how)
    leaves = [part for part in module.modules() if not list(part.children())]
    hooks = [part.register_forward_hook(walker.hook) for part in leaves]
    state = {
        name: torch.empty(tensor.shape, dtype=torch.float32, device="meta").requires_grad_(tensor.requires_grad)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    }
    x = torch.empty(shape, device="meta", requires_grad=of_features)
    walker.give(x, how.stream)
    try:
        with torch.enable_grad(), walker, torch.compiler.set_stance("force_eager"):
            output = torch.func.functional_call(module, state, (x,))
    finally:
        for hook in hooks:
            hook.remove()
    tensors = _tensors([output])
    walker.trace.output_shape = tuple(getattr(output, "patches", tensors[0]).shape)
    walker.trace.output_bytes = sum(t.numel() * walker.width(t) for t in tensors)
    return walker.trace
