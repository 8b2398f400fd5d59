"""Task heads: from the backbone's feature map to the task's output. Keys as in the official files."""

from __future__ import annotations

from s2kit.models.heads.base import TaskHead
from s2kit.models.heads.heatmap import HeatmapHead
from s2kit.models.heads.pixel_shuffle import AlbedoHead, MattingHead, NormalHead
from s2kit.models.heads.pointmap import PointmapHead, PointmapOutput
from s2kit.models.heads.segmentation import SegmentationHead
from s2kit.models.sapiens2 import FIRST_GENERATION_PREFIX, TIMM_PREFIX

HEADS: dict[str, type[TaskHead]] = {
    "pose": HeatmapHead,
    "segmentation": SegmentationHead,
    "normals": NormalHead,
    "pointmap": PointmapHead,
    "albedo": AlbedoHead,
    "matting": MattingHead,
}

#: Channels from which such a transformer gets the head of the published sizes; below, that of sapiens2_nano.
WIDE = 384


def create_head(task: str, arch: str, in_channels: int | None = None, **overrides) -> TaskHead:
    """Makes the head of a task for a backbone size.

    Args:
        task: "pose", "segmentation", "normals", "pointmap", "albedo" or "matting".
        arch: the backbone's name, which gives the channels; a transformer of timm ("timm/<name>") or of the first
            generation ("sapiens_<size>") gets those of the size of ours that is about as wide, so that a comparison
            differs in the backbone alone.
        in_channels: channels of the feature map; None is the size's own embed_dim.
        overrides: the head's other arguments, such as `upsample_channels`, and `image_size` for the pointmap head,
            which fits one size only.

    Raises:
        ValueError: an unknown task, size or argument (the message lists the right ones), or a value that cannot be.
    """
    if task not in HEADS:
        raise ValueError(f"no head for task {task!r}; known: {', '.join(HEADS)}")
    if arch.startswith((TIMM_PREFIX, FIRST_GENERATION_PREFIX)):
        if in_channels is None:
            raise ValueError(f"the head of {arch} needs in_channels, the backbone's embed_dim")
        arch = "sapiens2_0.4b" if in_channels >= WIDE else "sapiens2_nano"
    return HEADS[task].for_arch(arch, in_channels, **overrides)


__all__ = [
    "HEADS",
    "AlbedoHead",
    "HeatmapHead",
    "MattingHead",
    "NormalHead",
    "PointmapHead",
    "PointmapOutput",
    "SegmentationHead",
    "TaskHead",
    "create_head",
]
