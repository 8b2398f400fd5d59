"""The inputs of the release's numbers (spec 10.2)."""

from collections.abc import Callable

import pytest
import torch


@pytest.fixture(scope="session")
def wave() -> Callable[..., torch.Tensor]:
    """``wave(frequency, *shape)``: the sine of frequency times the flat index, float32."""

    def make(frequency: float, *shape: int) -> torch.Tensor:
        i = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        return torch.sin(frequency * i).float().reshape(shape)

    return make
