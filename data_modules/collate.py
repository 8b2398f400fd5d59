"""Items (numpy) to batches (torch)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of items.

    Arrays whose shapes agree over the batch are stacked to a tensor ``(B, ...)``; labels that keep their own source
    size in evaluation become a list of B tensors; everything else becomes a list. What only some items have, such as
    the intrinsics of one of the sets of a mixture, is left out.
    """
    batch: dict[str, Any] = {}
    for name in items[0]:
        if not all(name in item for item in items):
            continue
        values = [item[name] for item in items]
        if not isinstance(values[0], np.ndarray):
            batch[name] = values
            continue
        tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in values]
        same = all(tensor.shape == tensors[0].shape for tensor in tensors)
        # In a worker this stacks into shared memory at once, where torch.stack would be followed by a copy into it.
        batch[name] = default_collate(tensors) if same else tensors
    return batch


def _collate_good(items: Sequence[dict[str, Any]], mark: str) -> dict[str, Any]:
    good = [item for item in items if mark not in item]
    batch = collate(good) if good else {"key": []}
    batch[mark] = [(item["key"], item[mark]) for item in items if mark in item]
    return batch


def collate_training(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of the usable items; the others are listed under ``rejected`` as (key, reason)."""
    return _collate_good(items, "rejected")


def collate_pictures(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Make a batch of the readable pictures; the others are listed under ``error`` as (path, reason)."""
    return _collate_good(items, "error")
