"""Losses, one file a task."""

from s2kit.losses.normals import NormalsLoss

__all__ = ["NormalsLoss"]
