"""Files of weights: what is in them, whether they fit, and loading them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

#: The last layer of each published head, which tells the task of a file.
TASK_OF_LAYER = {
    "conv_pose": "pose",
    "conv_seg": "segmentation",
    "conv_normal": "normals",
    "conv_pointmap": "pointmap",
    "conv_albedo": "albedo",
    "conv_matting": "matting",
}


class WeightsError(ValueError):
    """A file of weights that cannot be read or does not fit; the text says which file, what is wrong and why."""


@dataclass
class Mismatch:
    """How a state dict differs from a module's: names, and (name, shape in the file, shape in the module)."""

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes)

    def describe(self, limit: int = 3) -> str:
        """Return one line with counts and the first ``limit`` entries of each kind."""
        shapes = [f"{name} {list(there)} for {list(here)}" for name, there, here in self.shapes]
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "of another shape": shapes}
        return "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:limit])}{', ...' if len(names) > limit else ''})"
            for kind, names in kinds.items()
            if names
        )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a ``.safetensors`` file, or a pickled state dict or Lightning checkpoint (with ``weights_only=True``).

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If it is not a file of weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: the file is empty")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise WeightsError(f"{path}: not a readable file of weights ({_first_line(error)})") from error
    except Exception as error:  # torch.load raises pickle's own errors, and others for hostile files
        raise WeightsError(f"{path}: not a file of weights ({_first_line(error)})") from error
    for key in ("state_dict", "model", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path}: holds no state dict")
    return content


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def task_of(state: dict[str, Any]) -> str | None:
    """Return the task whose head is in ``state``, by the name of its last layer; None for a backbone's file."""
    for name in state:
        for layer, task in TASK_OF_LAYER.items():
            if name.startswith(f"decode_head.{layer}."):
                return task
    return None


def compare(state: dict[str, Tensor], module: nn.Module) -> Mismatch:
    """Compare ``state`` with the entries of ``module``."""
    own = module.state_dict()
    return Mismatch(
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        shapes=[
            (name, tuple(state[name].shape), tuple(own[name].shape))
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    )


def load_weights(module: nn.Module, path: str | Path, strict: bool = True) -> Mismatch:
    """Load a file into a task (``backbone`` and ``decode_head``).

    A file with the bare keys of a backbone fills the backbone and leaves the head as it is.

    Args:
        module: The task; its ``name`` is compared with the file's task.
        path: A task's or a backbone's file, safetensors or pickled, also a Lightning checkpoint.
        strict: Whether a missing, unexpected or wrongly shaped entry is an error; otherwise what fits is loaded.

    Returns:
        What did not fit.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If it cannot be read, belongs to another task, or does not fit under ``strict``.
    """
    state = read_state_dict(path)
    expected, found = getattr(module, "name", None), task_of(state)
    if found is not None and expected is not None and found != expected:
        raise WeightsError(f"{path}: holds a model for {found}, but this is the task {expected}")
    is_backbone = not any(name.startswith("backbone.") for name in state)
    target = module.backbone if is_backbone else module
    mismatch = compare(state, target)
    if mismatch and strict:
        raise WeightsError(f"{path} does not fit {_describe(module)}: {mismatch.describe()}")
    wrong = {name for name, _, _ in mismatch.shapes}
    target.load_state_dict({name: value for name, value in state.items() if name not in wrong}, strict=False)
    return mismatch


def _describe(module: nn.Module) -> str:
    hparams = getattr(module, "hparams", {})
    return f"{hparams.get('arch', type(module).__name__)} at {tuple(getattr(module, 'image_size', ()))}"


def read_model_json(weights: str | Path) -> dict[str, Any] | None:
    """Return the ``model.json`` beside a file of weights, or None if there is none.

    Raises:
        WeightsError: If it is not JSON.
    """
    path = Path(weights).parent / "model.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise WeightsError(f"{path}: not valid JSON ({error})") from error
