"""LightningModules, one a task."""

from s2kit.tasks.base import Task
from s2kit.tasks.loading import TASKS, load_task
from s2kit.tasks.normals import NormalsTask

__all__ = ["TASKS", "NormalsTask", "Task", "load_task"]
