"""A finished run's weights for others: ``weights.safetensors`` and ``model.json``."""

import json
import math
import os
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from s2kit.models.checkpoints.describe import FORMAT
from s2kit.models.checkpoints.writing import write_notice
from s2kit.strategies.fsdp2 import gather
from s2kit.tasks import Task
from s2kit.version import __version__


def describe_task(task: Task, metrics: dict[str, float] | None = None) -> dict[str, Any]:
    """Return what ``model.json`` says: all that ``load_task`` needs to rebuild the task, and how it scored."""
    return {
        "format": FORMAT,
        "s2kit": __version__,
        "task": task.name,
        "arch": task.hparams.arch,
        "image_size": list(task.image_size),
        "frame": getattr(task, "frame", None),
        "weights_from": task.weights_from,
        "config": dict(task.hparams),
        # JSON knows no NaN, which is what a metric without anything to score is.
        "metrics": {name: value if math.isfinite(value) else None for name, value in (metrics or {}).items()},
        "parameters": sum(parameter.numel() for parameter in task.parameters()),
    }


def export_task(task: Task, folder: str | Path, metrics: dict[str, float] | None = None) -> Path:
    """Write ``weights.safetensors`` (published keys ``backbone.*``, ``decode_head.*``) and ``model.json``.

    What was trained from others' weights gets a notice on the terms of Sapiens2, too. Where the model is sharded all
    ranks must call this; rank 0 writes.

    Returns:
        The path of the weights.
    """
    weights = Path(folder) / "weights.safetensors"
    exported = gather(task.exported_state(), keep=task.global_rank == 0)
    if task.global_rank:
        return weights
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in exported.items()}
    temporary = weights.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    # safetensors lets only its owner read a file; a new empty one has the mode that the umask says.
    temporary.touch()
    mode = temporary.stat().st_mode
    save_file(state, temporary, metadata={"format": "pt", "task": task.name})
    temporary.chmod(mode)
    os.replace(temporary, weights)
    if task.weights_from is not None and not task.weights_from.startswith("timm/"):
        write_notice(folder)
    (folder / "model.json").write_text(json.dumps(describe_task(task, metrics), indent=2) + "\n")
    return weights
