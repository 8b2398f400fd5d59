"""Task heads: from the backbone's feature map to the task's output. Keys as in the official files."""

from __future__ import annotations

from torch import nn

from s2kit.models.heads.pixel_shuffle import AlbedoHead, MattingHead, NormalHead

HEADS: dict[str, type[nn.Module]] = {"normals": NormalHead, "albedo": AlbedoHead, "matting": MattingHead}


def create_head(task: str, arch: str, in_channels: int | None = None, **overrides) -> nn.Module:
    """Makes the head of a task for a backbone size.

    Args:
        task: "normals", "albedo" or "matting".
        arch: the backbone's name, which gives the channels.
        in_channels: channels of the feature map; None is the size's own embed_dim.
        overrides: the head's other arguments, such as `upsample_channels`.

    Raises:
        ValueError: an unknown task or size; the message lists the right ones.
    """
    if task not in HEADS:
        raise ValueError(f"no head for task {task!r}; known: {', '.join(HEADS)}")
    return HEADS[task].for_arch(arch, in_channels, **overrides)


__all__ = ["HEADS", "AlbedoHead", "MattingHead", "NormalHead", "create_head"]
