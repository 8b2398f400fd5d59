"""Metrics, one file a task."""

from s2kit.metrics.normals import ConstantNormalBaseline, NormalsMetric

__all__ = ["ConstantNormalBaseline", "NormalsMetric"]
