"""Parts of a computation that mixed precision must not touch."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Return a context in which products of tensors on ``x``'s device keep the precision of the tensors.

    Autocast rounds the input of every matrix product to half precision, be it declared float32: coordinates of pixels,
    small distances and sums over many prototypes are then wrong without a word.
    """
    # The meta device has no autocast, and asking for it is an error there.
    available = torch.amp.is_autocast_available(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if available else nullcontext()
