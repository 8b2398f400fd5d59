"""LightningModules, one a task."""

from s2kit.tasks.albedo import AlbedoTask
from s2kit.tasks.base import Task
from s2kit.tasks.loading import TASKS, load_task
from s2kit.tasks.matting import MattingTask
from s2kit.tasks.normals import NormalsTask
from s2kit.tasks.pointmap import PointmapTask
from s2kit.tasks.pose import PoseTask
from s2kit.tasks.segmentation import SegmentationTask

__all__ = [
    "TASKS",
    "AlbedoTask",
    "MattingTask",
    "NormalsTask",
    "PointmapTask",
    "PoseTask",
    "SegmentationTask",
    "Task",
    "load_task",
]
