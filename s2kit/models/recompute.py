"""Activation checkpointing of a block: what the backward pass finds in memory and what it computes again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

CHECKPOINTING = ("none", "full", "selective")


def _operators(*names: str) -> frozenset[Any]:
    """The default overloads of those of the named ATen operators that this torch has."""
    return frozenset(getattr(torch.ops.aten, name).default for name in names if hasattr(torch.ops.aten, name))


_PRODUCTS = _operators("mm", "addmm", "bmm", "baddbmm")
_ATTENTION = _operators(
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable",
)


def _policy(context: Any, operator: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
    if operator in _ATTENTION:
        return CheckpointPolicy.MUST_SAVE
    if operator in _PRODUCTS:
        left, right = arguments[-2:]
        # The narrow end of the feed-forward layer is a block's last product: the backward pass never reads what it
        # gives, and so never computes it again either.
        narrows = left.shape[-1] > 2 * right.shape[-1]
        return CheckpointPolicy.PREFER_RECOMPUTE if narrows else CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


def recompute(function: Callable[..., Tensor], mode: str, *arguments: Any) -> Tensor:
    """Calls a function so that its backward pass computes again what it needs.

    Args:
        function: what to call; its random numbers are the same both times.
        mode: "full" keeps the arguments alone; "selective" keeps the outputs of matrix products and of attention as
            well, and computes again what lies between them: norms, rotations, activations, residuals.
        arguments: of the function.
    """
    if mode == "full":
        return checkpoint(function, *arguments, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(function, *arguments, use_reentrant=False, context_fn=contexts)
