"""From a file to a task that predicts."""

from pathlib import Path
from typing import Any

from s2kit.models.checkpoints import WeightsError, read_model_json, read_state_dict, task_of
from s2kit.tasks.base import Task
from s2kit.tasks.normals import NormalsTask

#: Tasks by name.
TASKS: dict[str, type[Task]] = {NormalsTask.name: NormalsTask}


def load_task(name: str, path: str | Path, **overrides: Any) -> Task:
    """Load a trained task for prediction.

    Args:
        name: ``normals``.
        path: A run's ``weights.safetensors`` (with ``model.json`` beside it) or ``.ckpt``. A file of weights without
            ``model.json`` needs ``arch`` and ``image_size`` among ``overrides``.
        **overrides: Fields of the task that differ from the file's, such as ``image_size``.

    Returns:
        The task in evaluation mode; ``task.predict(images)`` runs it.

    Raises:
        ValueError: If there is no such task, or the file holds another one.
        FileNotFoundError: If there is no such file.
        s2kit.models.checkpoints.WeightsError: If the file is no model, or does not fit.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task {name!r}; choose from: {', '.join(TASKS)}")
    path = Path(path)
    if path.suffix == ".ckpt":
        found = task_of(read_state_dict(path))
        if found != name:
            raise WeightsError(
                f"{path}: holds a model for {found or 'no known task'}, but the task asked for is {name}"
            )
        return TASKS[name].load_from_checkpoint(path, map_location="cpu", **overrides).eval()
    config = (read_model_json(path) or {}).get("config", {})
    if not config and not {"arch", "image_size"} <= set(overrides):
        raise WeightsError(f"{path}: there is no model.json beside it, so say arch= and image_size=")
    return TASKS[name](**{**config, **overrides}, weights=str(path)).eval()
