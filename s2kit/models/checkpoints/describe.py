"""What a task of this kit must be built with to take given weights, and the ``model.json`` that says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s2kit.models.checkpoints.errors import WeightsError
from s2kit.models.checkpoints.identity import Identity, head_shapes, identify, task_of
from s2kit.models.checkpoints.reader import Checkpoint
from s2kit.models.heads import HEADS
from s2kit.models.sapiens2 import SAPIENS2
from s2kit.version import __version__

#: Version of model.json's layout.
FORMAT = 1


def describe_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a task's fields for weights: what they say of themselves, else what their shapes say.

    Raises:
        WeightsError: If they say nothing and hold no complete Sapiens2 backbone.
    """
    said = checkpoint.hyper_parameters or checkpoint.model_json.get("config") or {}
    if "arch" in said:
        return {name: value for name, value in said.items() if not name.startswith("_")}
    identity = identify(checkpoint.state)
    if identity is None:
        raise WeightsError(
            f"{checkpoint.source.name}: holds no complete Sapiens2 backbone, and no model.json says what it is"
        )
    config: dict[str, Any] = {"arch": identity.arch, "image_size": list(image_size_of(checkpoint, identity))}
    if overrides := backbone_overrides(checkpoint, identity):
        config["backbone"] = overrides
    if head := head_overrides(checkpoint.state, identity):
        config["head"] = head
    return config


def backbone_overrides(checkpoint: Checkpoint, identity: Identity) -> dict[str, Any]:
    """Return the backbone's fields that differ from its size's: by shapes, and by a ``config.json``'s rotary fields."""
    overrides = dict(identity.overrides)
    base = checkpoint.config.get("rope_theta")
    if base is not None and base != SAPIENS2[identity.arch].rope_base:
        overrides["rope_base"] = float(base)
    return overrides


def image_size_of(checkpoint: Checkpoint, identity: Identity) -> tuple[int, int]:
    """Return the (height, width) that weights are for: as said beside them, else their size's own.

    The weights of a Sapiens2 backbone do not depend on it. The scale branch of a pointmap head does, but gives only
    the number of cells: the size's own (height, width) is taken where it has as many, else the one nearest to 4:3.
    """
    sources = (checkpoint.model_json, checkpoint.hyper_parameters, checkpoint.config)
    for said in (source.get("image_size") for source in sources):
        if isinstance(said, list | tuple) and len(said) == 2:
            return int(said[0]), int(said[1])
        if isinstance(said, int):
            return said, said
    config = SAPIENS2[identity.arch]
    fields = {**vars(config), **identity.overrides}
    stride = fields["patch_size"] * (fields["window_size"] if fields["window_tokenizer_depth"] else 1)
    own = config.image_size
    head = head_shapes(checkpoint.state)
    if head is None or head["task"] != "pointmap" or not head["scale_inputs"]:
        return own
    step = stride * 2 ** len(head["scale_channels"])
    cells = head["scale_inputs"] // head["scale_channels"][-1]
    if -(-own[0] // step) * -(-own[1] // step) == cells:
        return own
    return _size_of(cells, stride, step)


def _size_of(cells: int, stride: int, step: int) -> tuple[int, int]:
    """Return the (height, width) nearest to 4:3, as the published sizes are, that has so many cells of ``step``."""
    sizes = []
    for rows in (rows for rows in range(1, cells + 1) if cells % rows == 0):
        height, columns = rows * step, cells // rows
        width = round(height * 3 / 4 / stride) * stride
        sizes.append((height, min(max(width, (columns - 1) * step + stride), columns * step)))
    return min(sizes, key=lambda size: abs(size[0] / size[1] - 4 / 3))


def head_overrides(state: Mapping[str, Any], identity: Identity) -> dict[str, Any]:
    """Return the head's fields that differ from what its task has for the backbone's size."""
    head = head_shapes(state)
    if head is None or head["task"] not in HEADS:
        return {}
    kind = HEADS[head["task"]]
    usual: dict[str, Any] = kind.options_of(identity.arch) if identity.arch in kind.channels else {}
    found = {name: head[name] for name in ("upsample_channels", "conv_channels")}
    if head["out_channels"] != kind.default_out_channels:
        found["out_channels"] = head["out_channels"]
    if head["task"] == "pointmap":
        usual = {"scale_channels": (1536, 512, 128), "scale_hidden": (512, 128), **usual}
        found |= {name: head[name] for name in ("scale_channels", "scale_hidden")}
    return {name: value for name, value in found.items() if _differs(value, usual.get(name))}


def _differs(value: Any, usual: Any) -> bool:
    return usual is None or (list(value) != list(usual) if isinstance(value, list) else value != usual)


def describe_model(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the ``model.json`` for weights; what one beside them said is kept."""
    if checkpoint.model_json:
        return {**checkpoint.model_json, "weights_from": checkpoint.weights_from}
    config = describe_config(checkpoint) if checkpoint.layout not in ("first_generation", "unknown") else {}
    return {
        "format": FORMAT,
        "s2kit": __version__,
        "task": None if checkpoint.layout == "first_generation" else task_of(checkpoint.state),
        "arch": config.get("arch"),
        "image_size": list(config["image_size"]) if "image_size" in config else None,
        "frame": checkpoint.known_frame,
        "weights_from": checkpoint.weights_from,
        "config": config,
        "metrics": {},
        "parameters": count_parameters(checkpoint.state),
    }


def count_parameters(state: Mapping[str, Any]) -> int:
    """Return the number of trainable values in a state dict: the rotary periods are none."""
    return sum(value.numel() for name, value in state.items() if not name.endswith("rope_embed.periods"))
