"""Sums that are pooled over pixels, batches and ranks without loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

_FRACTION = 2.0**40
_LIMIT = 2.0**52


def to_fixed(values: Tensor) -> Tensor:
    """Values (...) of float64 as whole part and fraction (..., 2) of int64; beyond +-2^52 they saturate."""
    values = values.clamp(-_LIMIT, _LIMIT)
    whole = values.floor()
    return torch.stack([whole, ((values - whole) * _FRACTION).round()], dim=-1).long()


def from_fixed(parts: Tensor) -> Tensor:
    """Values (...) of float64 of sums of `to_fixed`'s (..., 2)."""
    return parts[..., 0].double() + parts[..., 1].double() / _FRACTION


class PooledMetric(Metric):
    """A metric whose states are sums over everything that it has seen.

    They are int64: they do not depend on the order of batches and ranks, and a precision plugin that casts a model to
    bfloat16 leaves them alone. A value that is not finite is counted, and makes every result NaN.
    """

    is_differentiable = False
    full_state_update = False

    #: Name of each sum -> its shape.
    sums: ClassVar[Mapping[str, tuple[int, ...]]]
    nonfinite: Tensor

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.add_state("nonfinite", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        for name, shape in self.sums.items():
            self.add_state(name, torch.zeros(*shape, 2, dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, **values: Tensor) -> None:
        """Adds to each named sum the total of its values (..., n) over the last axis."""
        for name, parts in values.items():
            parts = parts.double()
            finite = parts.isfinite()
            self.nonfinite += (~finite).sum()
            total = torch.where(finite, parts, 0.0).sum(dim=-1)
            setattr(self, name, getattr(self, name) + to_fixed(total))

    def total(self, name: str) -> Tensor:
        """The sum `name`, float64."""
        return from_fixed(getattr(self, name))

    def results(self, values: Mapping[str, Tensor], count: Tensor) -> dict[str, Tensor]:
        """Values as float32 scalars; all NaN if nothing was counted or something was not finite."""
        bad = (self.nonfinite > 0) | (count == 0)
        return {name: torch.where(bad, math.nan, value).float() for name, value in values.items()}
