"""Models in plain PyTorch: the Sapiens2 backbone and the task heads."""

from s2kit.models.heads import (
    AlbedoHead,
    HeatmapHead,
    MattingHead,
    NormalHead,
    PointmapHead,
    PointmapOutput,
    SegmentationHead,
    create_head,
)
from s2kit.models.sapiens2 import (
    SAPIENS2,
    BackboneOutput,
    Sapiens2,
    Sapiens2Config,
    VisibleOutput,
    backbone_config,
    create_backbone,
    list_backbones,
)

__all__ = [
    "SAPIENS2",
    "AlbedoHead",
    "BackboneOutput",
    "HeatmapHead",
    "MattingHead",
    "NormalHead",
    "PointmapHead",
    "PointmapOutput",
    "Sapiens2",
    "Sapiens2Config",
    "SegmentationHead",
    "VisibleOutput",
    "backbone_config",
    "create_backbone",
    "create_head",
    "list_backbones",
]
