"""Whether weights fit a module, why they may not, and loading them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from s2kit.models.checkpoints.errors import WeightsError
from s2kit.models.checkpoints.identity import Identity, head_shapes, identify, task_of
from s2kit.models.checkpoints.reader import Checkpoint, check_finite, read_checkpoint
from s2kit.models.sapiens1 import Sapiens1, fit_positions
from s2kit.models.sapiens2 import SAPIENS2

#: Rows of one kind in a table.
MAX_ROWS = 60


@dataclass
class Mismatch:
    """How a state dict differs from a module's.

    Attributes:
        missing, unexpected: names, and their shapes.
        shapes: (name, shape in the file, shape in the module).
        types: (name, type in the file, type in the module) where a number would change its meaning.
        reason: why, as far as shapes tell.
        filled: the part of the module that the weights are for.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    types: list[tuple[str, str, str]] = field(default_factory=list)
    shape_of: dict[str, tuple[int, ...]] = field(default_factory=dict, repr=False)
    reason: str = ""
    filled: Literal["all", "backbone"] = "all"

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.shapes or self.types)

    def describe(self, limit: int = 3) -> str:
        """Return one line with counts and the first ``limit`` entries of each kind."""
        shapes = [f"{name} {list(there)} for {list(here)}" for name, there, here in self.shapes]
        types = [f"{name} {there} for {here}" for name, there, here in self.types]
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": shapes,
            "of another type": types,
        }
        return "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:limit])}{', ...' if len(names) > limit else ''})"
            for kind, names in kinds.items()
            if names
        )

    def table(self, title: str) -> str:
        """Return all entries as text, those of equal blocks in one row, with the likely reason."""
        rows: list[tuple[str, str, str]] = [("entry", "in the file", "in the model")]
        kinds = {
            "missing": [(name, "-", _text(self.shape_of.get(name))) for name in self.missing],
            "unexpected": [(name, _text(self.shape_of.get(name)), "-") for name in self.unexpected],
            "of another shape": [(name, _text(there), _text(here)) for name, there, here in self.shapes],
            "of another type": self.types,
        }
        for kind, entries in kinds.items():
            if not entries:
                continue
            rows.append((f"{len(entries)} {kind}", "", ""))
            merged = _merge_blocks(entries)
            rows += [("  " + name, there, here) for name, there, here in merged[:MAX_ROWS]]
            if len(merged) > MAX_ROWS:
                rows.append((f"  ... and {len(merged) - MAX_ROWS} more rows", "", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        reason = [f"likely reason: {self.reason}"] if self.reason else []
        return "\n".join([title, *lines, *reason])


def _text(shape: tuple[int, ...] | None) -> str:
    return "" if shape is None else "[" + ", ".join(str(side) for side in shape) + "]"


def _merge_blocks(entries: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Write entries that differ only in the block's number as one: ``blocks.8-31.attn.wk.weight``."""
    groups: dict[tuple, list[int]] = {}
    for name, there, here in entries:
        match = re.search(r"\b(?:blocks|layers|layer)\.(\d+)\.", name)
        pattern = (name[: match.start(1)], name[match.end(1) :]) if match else (name, "")
        groups.setdefault((pattern, there, here), []).append(int(match[1]) if match else -1)
    return [
        (pattern[0] + (_ranges(numbers) if numbers[0] >= 0 else "") + pattern[1], there, here)
        for (pattern, there, here), numbers in groups.items()
    ]


def _ranges(numbers: list[int]) -> str:
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def compare(state: Mapping[str, Tensor], module: nn.Module) -> Mismatch:
    """Compare ``state`` with the entries of ``module``."""
    own = module.state_dict()
    shared = [name for name in own if name in state]
    return Mismatch(
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        shapes=[
            (name, tuple(state[name].shape), tuple(own[name].shape))
            for name in shared
            if state[name].shape != own[name].shape
        ],
        types=[
            (name, str(state[name].dtype).removeprefix("torch."), str(own[name].dtype).removeprefix("torch."))
            for name in shared
            if state[name].is_floating_point() != own[name].is_floating_point()
        ],
        shape_of={name: tuple(value.shape) for part in (state, own) for name, value in part.items()},
    )


def load_weights(module: nn.Module, path: str | Path, strict: bool = True) -> Mismatch:
    """Load weights into a task (``backbone`` and ``decode_head``).

    Weights without a head fill the backbone and leave the head as it is; entries beside such a backbone, as a
    pretraining's decoder, are left out. What does not fit is printed as a table on standard error.

    Args:
        module: The task; its ``name`` is compared with the file's task.
        path: A file, a folder, or ``hf://owner/name[@revision]``, of any layout that `read_checkpoint` knows.
        strict: Whether a missing, unexpected or wrongly shaped entry is an error; otherwise what fits is loaded.

    Returns:
        What did not fit.

    Raises:
        FileNotFoundError: If there is no such file.
        WeightsError: If it cannot be read, holds a number that is not finite, belongs to another task, or does not fit
            under ``strict``.
    """
    return fit_checkpoint(module, read_checkpoint(path), strict)


def fit_checkpoint(module: nn.Module, checkpoint: Checkpoint, strict: bool = True) -> Mismatch:
    """Load weights that were read; see `load_weights`."""
    path = checkpoint.source.name
    check_finite(checkpoint.state, path)
    target, state = _target(module, checkpoint)
    mismatch = compare(state, target)
    mismatch.filled = "all" if target is module else "backbone"
    if mismatch:
        mismatch.reason = likely_reason(module, checkpoint, mismatch)
        if _is_first_process():
            print(mismatch.table(f"{path} and {_describe(module)}:"), file=sys.stderr)
        if strict:
            raise WeightsError(_one_line(module, checkpoint, mismatch))
    wrong = {name for name, _, _ in (*mismatch.shapes, *mismatch.types)}
    try:
        target.load_state_dict({name: value for name, value in state.items() if name not in wrong}, strict=False)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise WeightsError(f"{path} does not fit {_describe(module)}: {reason}") from error
    _pass_on(module, checkpoint)
    return mismatch


def _pass_on(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Tell a task what its weights say of themselves: whose they are and, with a head, the frame of its vectors."""
    if hasattr(module, "weights_from"):
        module.weights_from = checkpoint.weights_from
    if hasattr(module, "frame") and not checkpoint.is_backbone and checkpoint.known_frame is not None:
        module.frame = checkpoint.known_frame


def _target(module: nn.Module, checkpoint: Checkpoint) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the part of the module that the weights are for, and the weights under that part's names."""
    state = checkpoint.state
    if checkpoint.layout == "first_generation":
        if not isinstance(module.backbone, Sapiens1):
            raise WeightsError(
                f"{checkpoint.source.name}: holds a backbone of the first generation, another architecture than "
                f"{_describe(module)}; its sizes are sapiens_0.3b, sapiens_0.6b, sapiens_1b, sapiens_2b"
            )
        try:
            return module.backbone, fit_positions(_bare(state), module.backbone)
        except ValueError as error:
            raise WeightsError(f"{checkpoint.source.name}: {error}") from error
    if not checkpoint.is_backbone:
        return module, state
    state = _bare(state)
    own = module.backbone.state_dict()
    if not any(name in own for name in state) and all(name.startswith("model.") for name in own):
        # A file of timm's, for one of its models: as a backbone it has its entries behind "model.".
        state = {f"model.{name}": value for name, value in state.items()}
    return module.backbone, state


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a backbone's entries under their bare names, without what is beside it."""
    inside = {name: value for name, value in state.items() if name.startswith("backbone.")}
    return {name.removeprefix("backbone."): value for name, value in (inside or state).items()}


def _one_line(module: nn.Module, checkpoint: Checkpoint, mismatch: Mismatch) -> str:
    path, found, expected = checkpoint.source.name, task_of(checkpoint.state), getattr(module, "name", None)
    of_head = checkpoint.layout != "first_generation" and None not in (found, expected)
    if of_head and found != expected:
        return f"{path}: holds a model for {found}, but this is the task {expected} (strict: false takes what fits)"
    reason = f"{mismatch.reason}; " if mismatch.reason else ""
    return f"{path} does not fit {_describe(module)}: {reason}{mismatch.describe()} (strict: false takes what fits)"


def likely_reason(module: nn.Module, checkpoint: Checkpoint, mismatch: Mismatch) -> str:
    """Return why weights do not fit, told from names and shapes: another size, task, image size or set of outputs."""
    state, own = checkpoint.state, module.state_dict()
    if re.search(r"-\d+-of-\d+\.", checkpoint.source.name):
        return "this is one shard of several; give their folder or index"
    if checkpoint.layout == "unknown":
        return "the names follow no layout of Sapiens2: another architecture, or a damaged file"
    if checkpoint.layout == "first_generation":
        return "another size, or another depth, of the first generation"
    found, expected = task_of(state), getattr(module, "name", None) or task_of(own)
    if not checkpoint.is_backbone and found != expected:
        return f"another task: the file is for {found or 'no known task'}, the model for {expected}"
    theirs, ours = identify(state), identify(own)
    if theirs is not None and ours is not None and (reason := _size_reason(theirs, ours)):
        return reason
    if theirs is None and ours is not None:
        return "the file's backbone is incomplete or damaged"
    if not checkpoint.is_backbone:
        return _head_reason(head_shapes(state), head_shapes(own), module)
    return ""


def _size_reason(theirs: Identity, ours: Identity) -> str:
    """Return in what two backbones differ; empty if in nothing that names and shapes depend on."""
    if theirs.arch != ours.arch:
        return f"another size: the file holds {theirs}, the model is {ours}"
    usual = vars(SAPIENS2[ours.arch])
    first, second = {**usual, **theirs.overrides}, {**usual, **ours.overrides}
    differ = sorted(name for name in first if name != "rope_dtype" and first[name] != second[name])
    if not differ:
        return ""
    fields = ", ".join(f"{name} {first[name]} (the model: {second[name]})" for name in differ)
    return f"another size: the file's backbone has {fields}"


def _head_reason(theirs: dict[str, Any] | None, ours: dict[str, Any] | None, module: nn.Module) -> str:
    if theirs is None or ours is None:
        return ""
    if theirs["out_channels"] != ours["out_channels"]:
        return (
            f"another set of outputs (keypoints or classes): {theirs['out_channels']} in the file, "
            f"{ours['out_channels']} in the model"
        )
    if theirs.get("scale_inputs") != ours.get("scale_inputs"):
        size = tuple(getattr(module, "image_size", ()))
        return f"another image size: the scale branch of a pointmap head fits one size only, and the model's is {size}"
    for name in ("upsample_channels", "conv_channels", "scale_channels", "scale_hidden", "kernels"):
        if theirs.get(name) != ours.get(name):
            return f"another head: {name} {theirs.get(name)} in the file, {ours.get(name)} in the model"
    return ""


def _describe(module: nn.Module) -> str:
    hparams = getattr(module, "hparams", {})
    return f"{hparams.get('arch', type(module).__name__)} at {tuple(getattr(module, 'image_size', ()))}"


def _is_first_process() -> bool:
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
