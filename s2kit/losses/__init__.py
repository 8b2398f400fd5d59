"""Losses, one file a task."""

from s2kit.losses.albedo import AlbedoLoss
from s2kit.losses.matting import MattingLoss
from s2kit.losses.normals import NormalsLoss
from s2kit.losses.pointmap import PointmapLoss
from s2kit.losses.pose import PoseLoss
from s2kit.losses.segmentation import SegmentationLoss

__all__ = ["AlbedoLoss", "MattingLoss", "NormalsLoss", "PointmapLoss", "PoseLoss", "SegmentationLoss"]
