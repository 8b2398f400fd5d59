"""LightningDataModules of s2kit and all that feeds them: shards, transforms, synthetic humans.

The modules are resolved on first use, so that a process that only renders or reads shards does not import Lightning.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "AlbedoDataModule": "data_modules.albedo",
    "MattingDataModule": "data_modules.matting",
    "NormalsDataModule": "data_modules.normals",
    "PointmapDataModule": "data_modules.pointmap",
    "PoseDataModule": "data_modules.pose",
    "PretrainingDataModule": "data_modules.pretraining",
    "SegmentationDataModule": "data_modules.segmentation",
}

__all__ = [
    "AlbedoDataModule",
    "MattingDataModule",
    "NormalsDataModule",
    "PointmapDataModule",
    "PoseDataModule",
    "PretrainingDataModule",
    "SegmentationDataModule",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'data_modules' has no attribute {name!r}; it has {', '.join(__all__)}")
