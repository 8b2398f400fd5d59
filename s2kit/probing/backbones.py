"""The backbone that is probed: of a file of weights, or with random weights."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from s2kit.models import create_backbone
from s2kit.models.checkpoints import fit_checkpoint, read_checkpoint
from s2kit.models.checkpoints.describe import describe_config
from s2kit.tasks.base import overrides_for


def load_backbone(path: str | Path, image_size: tuple[int, int] | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Load the backbone of weights in any layout: a backbone's, a task's (without its head) or a pretraining's.

    Args:
        path: See docs/checkpoints.md.
        image_size: (height, width) in pixels; by default what the weights say.

    Returns:
        The backbone in evaluation mode, and ``arch``, ``image_size`` and ``backbone`` (overrides) as a task takes them.

    Raises:
        FileNotFoundError: There is no such file.
        WeightsError: The weights cannot be read, or are no backbone's.
    """
    checkpoint = read_checkpoint(path)
    checkpoint.state = {name: value for name, value in checkpoint.state.items() if not name.startswith("decode_head.")}
    fields = describe_config(checkpoint)
    backbone, fields = random_backbone(fields, image_size)
    fit_checkpoint(nn.ModuleDict({"backbone": backbone}), checkpoint)
    return backbone, fields


def random_backbone(
    fields: dict[str, Any], image_size: tuple[int, int] | None = None, seed: int = 0
) -> tuple[nn.Module, dict[str, Any]]:
    """Build a backbone with random weights.

    Args:
        fields: ``arch``, ``image_size`` and ``backbone`` of a task; others are ignored.
        image_size: In place of theirs.
        seed: Of the weights.

    Returns:
        As ``load_backbone``.
    """
    size = tuple(int(side) for side in image_size or fields["image_size"])
    options = overrides_for(fields["arch"], fields.get("backbone"))
    # What only training is concerned with would make evaluation slower, or fetch weights.
    options = {
        name: value
        for name, value in options.items()
        if name not in ("checkpointing", "drop_path", "frozen_stages") and not name.startswith("pretrained")
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = create_backbone(fields["arch"], image_size=size, **options)
    backbone.requires_grad_(False).eval()
    return backbone, {"arch": fields["arch"], "image_size": size, "backbone": options}
