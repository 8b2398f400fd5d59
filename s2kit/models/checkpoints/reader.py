"""From what a user names to weights under the official names, with all that is known about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from s2kit.models.checkpoints.errors import WeightsError
from s2kit.models.checkpoints.files import read_file
from s2kit.models.checkpoints.huggingface import OWN
from s2kit.models.checkpoints.layouts import Content, interpret, unwrap
from s2kit.models.checkpoints.locate import Source, locate, read_json

#: The frame of official files: as published, and not documented.
PUBLISHED = "published"


@dataclass
class Checkpoint(Content):
    """Weights and where they are from; see `Content`.

    Attributes:
        source: where they are.
        metadata: of safetensors.
        model_json: our ``model.json`` beside them, or empty.
    """

    source: Source = field(default_factory=lambda: Source("", (), Path()))
    metadata: dict[str, str] = field(default_factory=dict)
    model_json: dict[str, Any] = field(default_factory=dict)

    @property
    def known_frame(self) -> str | None:
        """The frame of its vectors: as our files say, "published" for official ones; None is the task's own."""
        if self.model_json:
            return self.model_json.get("frame")
        if self.layout == "lightning" or "task" in self.metadata:
            return self.said.get("frame") or self.metadata.get("frame")
        return None if OWN in self.config else PUBLISHED

    @property
    def weights_from(self) -> str | None:
        """Whose weights these are, or were trained from: None if this kit trained them from random ones.

        Files that do not say it (official ones, and those of other programs) count as from themselves.
        """
        for said in (self.model_json, self.said):
            if "weights_from" in said:
                return said["weights_from"]
        name = self.source.name
        return name if name.startswith("hf://") else Path(name).name


def read_checkpoint(source: str | Path) -> Checkpoint:
    """Read weights from a file, a folder, a set of shards or the hub, in any layout; see docs/checkpoints.md.

    Raises:
        FileNotFoundError: If there is nothing at a path.
        WeightsError: If they cannot be found or read, or hold no state dict; the text is one line.
    """
    located = locate(source)
    config = read_config_json(located.folder)
    if located.shard_of:
        content, metadata = _read_shards(located), {}
    else:
        content, metadata = read_file(located.files[0])
    found = interpret(content, located.name, config)
    model_json = read_model_json(located.files[0]) or {}
    return Checkpoint(**vars(found), source=located, metadata=metadata, model_json=model_json)


def _read_shards(source: Source) -> dict[str, Tensor]:
    """Join the shards of an index; every entry must be in the shard that the index says."""
    merged: dict[str, Tensor] = {}
    for path in source.files:
        state, _ = unwrap(read_file(path)[0], str(path))
        wrong = [name for name in state if source.shard_of.get(name) != path.name]
        if wrong:
            says = source.shard_of.get(wrong[0])
            raise WeightsError(
                f"{path}: holds {wrong[0]}, which the index {f'places in {says}' if says else 'does not name'}"
            )
        merged.update(state)
    lost = [name for name in source.shard_of if name not in merged]
    if lost:
        where = source.folder / source.shard_of[lost[0]]
        raise WeightsError(f"{where}: lacks {lost[0]}, which the index places there ({len(lost)} such entries)")
    return {name: merged[name] for name in source.shard_of}


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read weights of any layout and return them under the official names; see `read_checkpoint`."""
    return read_checkpoint(path).state


def read_config_json(folder: Path) -> dict[str, Any]:
    """Return a Sapiens2 model's ``config.json`` in a folder; empty if there is none, or one of something else."""
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else {}
    return config if isinstance(config, dict) and config.get("model_type") == "sapiens2" else {}


def read_model_json(weights: str | Path) -> dict[str, Any] | None:
    """Return the ``model.json`` beside a file of weights (or in a folder), or None if there is none.

    Raises:
        WeightsError: If it is not a JSON object.
    """
    weights = Path(weights)
    path = (weights if weights.is_dir() else weights.parent) / "model.json"
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: not a description of a model, which is a JSON object")
    return content


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Check that every weight is a finite number.

    Raises:
        WeightsError: If one is not; the text names the first entry and how many there are.
    """
    bad = [name for name, value in state.items() if not _is_finite(value)]
    if not bad:
        return
    first = state[bad[0]]
    count = int((~torch.isfinite(first.float())).sum())
    kind = "NaN" if torch.isnan(first.float()).any() else "infinite"
    others = f", and {len(bad) - 1} more entries are not finite" if len(bad) > 1 else ""
    raise WeightsError(f"{source}: {bad[0]} has {count} of {first.numel()} values {kind} or not finite{others}")


def _is_finite(value: Tensor) -> bool:
    if value.is_meta or not value.is_floating_point() or value.numel() == 0:
        return True
    if value.dtype.itemsize == 1:  # 8-bit floats have no minimum and maximum
        value = value.float()
    low, high = torch.aminmax(value)
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
