"""Metrics, one file a task."""

from s2kit.metrics.normals import ConstantNormalBaseline, NormalsMetric
from s2kit.metrics.pose import PoseMetric

__all__ = ["ConstantNormalBaseline", "NormalsMetric", "PoseMetric"]
