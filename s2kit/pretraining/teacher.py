"""The teacher: an exponential moving average of the student, which no gradient reaches."""

from __future__ import annotations

import copy

import torch
from torch import nn


def make_teacher(student: nn.Module) -> nn.Module:
    """Return a copy of ``student`` in evaluation mode that does not train."""
    return copy.deepcopy(student).requires_grad_(False).eval()


def check_alike(teacher: nn.Module, student: nn.Module) -> None:
    """Check that two modules have the same entries of the same shapes, types and layouts over devices.

    Averaging a sharded student into a teacher that is sharded another way would mix parts that do not belong together.

    Raises:
        RuntimeError: They differ; the text names the first entry.
    """
    first, second = dict(teacher.named_parameters()), dict(student.named_parameters())
    if first.keys() != second.keys():
        raise RuntimeError(f"teacher and student differ in {sorted(first.keys() ^ second.keys())[0]}")
    for name, value in first.items():
        other = second[name]
        ours, theirs = (
            (
                type(p.data).__name__,
                tuple(p.shape),
                p.dtype,
                getattr(p, "placements", None),
                getattr(p, "device_mesh", None),
            )
            for p in (value, other)
        )
        if ours != theirs:
            raise RuntimeError(f"teacher and student are not laid out alike: {name} is {ours} and {theirs}")


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher: ``momentum`` of itself and the rest of the student; buffers are copied.

    Shard by shard where parameters are sharded: both must be sharded alike (``check_alike``).
    """
    for module in (*teacher.modules(), *student.modules()):
        # FSDP2 keeps the outermost module gathered after a forward pass that no backward pass follows.
        if hasattr(module, "reshard"):
            module.reshard()
    averages, values = list(teacher.parameters()), list(student.parameters())
    local = [p.to_local() if hasattr(p, "to_local") else p for p in (*averages, *values)]
    # What was frozen from the start is equal, and stays so.
    torch._foreach_lerp_(local[: len(averages)], local[len(averages) :], 1 - momentum)
    for average, value in zip(teacher.buffers(), student.buffers()):
        average.copy_(value)
