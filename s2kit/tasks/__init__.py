"""LightningModules, one a task."""

from s2kit.tasks.base import Task
from s2kit.tasks.loading import TASKS, load_task
from s2kit.tasks.normals import NormalsTask
from s2kit.tasks.pose import PoseTask

__all__ = ["TASKS", "NormalsTask", "PoseTask", "Task", "load_task"]
