"""Metrics, one file a task."""

from s2kit.metrics.albedo import AlbedoMetric
from s2kit.metrics.matting import MattingMetric
from s2kit.metrics.normals import ConstantNormalBaseline, NormalsMetric
from s2kit.metrics.pointmap import MeanPointmapBaseline, PointmapMetric
from s2kit.metrics.pose import PoseMetric
from s2kit.metrics.segmentation import SegmentationMetric

__all__ = [
    "AlbedoMetric",
    "ConstantNormalBaseline",
    "MattingMetric",
    "MeanPointmapBaseline",
    "NormalsMetric",
    "PointmapMetric",
    "PoseMetric",
    "SegmentationMetric",
]
