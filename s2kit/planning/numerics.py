"""What a precision means in bytes: of weights, of matrix products, of the residual stream, of norms."""

from __future__ import annotations

from dataclasses import dataclass

import torch

#: Precisions of Lightning, and their older names.
PRECISIONS = {
    "32-true": "32-true",
    "32": "32-true",
    "bf16-mixed": "bf16-mixed",
    "bf16": "bf16-mixed",
    "16-mixed": "16-mixed",
    "16": "16-mixed",
    "bf16-true": "bf16-true",
    "16-true": "16-true",
}


@dataclass(frozen=True)
class Numerics:
    """Bytes per element in a training step.

    Attributes:
        precision: Lightning's name.
        device: "cuda" or "cpu"; they keep different tensors for the backward pass of a norm.
        weights: of a parameter.
        compute: of what linear layers, convolutions and attention take and give.
        stream: of the residual stream.
        autocast: whether weights and inputs are cast on the way into each product.
        fused_norm: whether torch's RMSNorm is one kernel, which keeps its input, or several operations in float32,
            which keep the input in float32 and the normalised values.
    """

    precision: str
    device: str
    weights: int
    compute: int
    stream: int
    autocast: bool
    fused_norm: bool

    def norm(self, elements: float, rows: float, width: int) -> float:
        """Bytes kept by the backbone's RMSNorm (`s2kit.models.layers`), its input included.

        Args:
            elements: numbers of the input, in `rows` vectors.
            rows: vectors.
            width: bytes of an input number.
        """
        if self.device == "cpu" and width == self.weights == 4:
            return 4 * elements + 4 * rows  # written for this case: it keeps its input
        return self.torch_norm(elements, rows, width)

    def torch_norm(self, elements: float, rows: float, width: int) -> float:
        """The same of torch's RMSNorm."""
        if not self.fused_norm:
            return (4 + 4) * elements + 4 * rows
        # Autocast runs the fused norm in float32: a narrower input is copied, and the copy is kept.
        return (4 if self.autocast else width) * elements + 4 * rows

    def norm_output(self, width: int) -> int:
        """Bytes of a number that RMSNorm gives for one of `width` bytes."""
        return 4 if self.fused_norm and self.autocast else width


def numerics(precision: str | int | None = "32-true", device: str = "cuda") -> Numerics:
    """The bytes of a precision of Lightning's Trainer, such as "bf16-mixed".

    Raises:
        ValueError: a precision that is not planned for; the message lists those that are.
    """
    name = PRECISIONS.get(str(precision or "32-true"))
    if name is None:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    half, mixed = not name.startswith("32"), name.endswith("mixed")
    # A build of torch for CUDA has the kernel whether or not there is a GPU; torch 2.7 has none.
    fused = device == "cuda" and hasattr(torch.ops.aten, "_fused_rms_norm")
    return Numerics(
        precision=name,
        device=device,
        weights=4 if mixed or not half else 2,
        compute=2 if half else 4,
        stream=4 if mixed or not half else 2,
        autocast=mixed,
        fused_norm=fused,
    )
