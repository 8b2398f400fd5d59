"""From a file to a task that predicts."""

from pathlib import Path
from typing import Any

from s2kit.models.checkpoints import Checkpoint, WeightsError, fit_checkpoint, read_checkpoint, task_of
from s2kit.models.checkpoints.describe import describe_config
from s2kit.tasks.albedo import AlbedoTask
from s2kit.tasks.base import Task
from s2kit.tasks.matting import MattingTask
from s2kit.tasks.normals import NormalsTask
from s2kit.tasks.pointmap import PointmapTask
from s2kit.tasks.pose import PoseTask
from s2kit.tasks.segmentation import SegmentationTask

#: Tasks by name.
TASKS: dict[str, type[Task]] = {
    task.name: task for task in (PoseTask, SegmentationTask, NormalsTask, PointmapTask, AlbedoTask, MattingTask)
}


def load_task(name: str | None, path: str | Path, **overrides: Any) -> Task:
    """Load a trained task for prediction.

    The backbone's size, the head's channels and the image size are what ``model.json``, the checkpoint or
    ``config.json`` say; without any of them the first two are told from the shapes, and the image size is the one that
    the size was made for.

    Args:
        name: A name of ``TASKS``, such as ``normals``; None takes the task that the file is for.
        path: Weights in any layout: a file, a run's folder, a checkpoint, or ``hf://owner/name[@revision]``; see
            docs/checkpoints.md.
        **overrides: Fields of the task that differ from the file's, such as ``image_size``; ``strict=False`` takes
            what fits.

    Returns:
        The task in evaluation mode; ``task.predict(images)`` runs it. Its ``frame`` is that of the weights:
        "published" for official ones, whose vectors are passed on as they are.

    Raises:
        ValueError: If there is no such task, or the file holds another one.
        FileNotFoundError: If there is no such file.
        s2kit.models.checkpoints.WeightsError: If the file is no model, or does not fit.
    """
    if name is not None and name not in TASKS:
        raise ValueError(f"there is no task {name!r}; choose from: {', '.join(TASKS)}")
    checkpoint = read_checkpoint(path)
    strict = overrides.pop("strict", True)
    task = TASKS[_task_name(name, checkpoint, strict)](**{**describe_config(checkpoint), **overrides})
    fit_checkpoint(task, checkpoint, strict)
    return task.eval()


def _task_name(name: str | None, checkpoint: Checkpoint, strict: bool) -> str:
    """Return the task to build, and refuse what holds another or none."""
    path, found = checkpoint.source.name, task_of(checkpoint.state)
    if found is None and (strict or name is None):
        raise WeightsError(f"{path}: holds no head of a known task{_instead(checkpoint)}")
    if name is not None and found != name and strict:
        raise WeightsError(f"{path}: holds a model for {found}, but the task asked for is {name}")
    if (name or found) not in TASKS:
        raise WeightsError(f"{path}: holds a model for {found}, which is no task yet; there are: {', '.join(TASKS)}")
    return name or found


def _instead(checkpoint: Checkpoint) -> str:
    if checkpoint.layout == "unknown":
        return ", and its names follow no layout of Sapiens2"
    return ", but a backbone alone: train a task from it with --model.weights"
