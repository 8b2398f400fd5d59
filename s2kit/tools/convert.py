"""``python -m s2kit convert``: say what weights are, and write them in another layout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2kit.errors import UserError
from s2kit.tools.arguments import OneLineParser

if TYPE_CHECKING:
    from torch import Tensor

    from s2kit.models.checkpoints import Checkpoint

_DESCRIPTION = """\
Say what weights are, and write them in another layout. The names and the container change, the numbers do not: there
and back gives the same bits.

  python -m s2kit convert weights.safetensors                              what is it?
  python -m s2kit convert hf://facebook/sapiens2-normal-0.4b --to lightning --out converted
  python -m s2kit convert runs/normals/version_0 --to huggingface --out for_the_hub

SOURCE is a file, a folder, an index of shards, or hf://owner/name[@revision]; its layout is told from its content.
"""
_LAYOUTS = {
    "official": "the published names in weights.safetensors, with model.json",
    "huggingface": "model.safetensors and config.json for the transformers port (5 and later)",
    "lightning": "model.ckpt, a checkpoint of this kit that its tasks load (weights only: it resumes no run)",
}
_TYPES = ("float32", "bfloat16", "float16")


def main(args: list[str]) -> int:
    """Run ``convert``; return the exit code.

    Raises:
        UserError: what the user can mend, in one line.
        SystemExit: of argparse, code 2, for wrong usage.
    """
    parser = _parser()
    options = parser.parse_args(args)
    if (options.to is None) != (options.out is None):
        parser.error("--to and --out belong together; with neither, the weights are described")
    try:
        return _convert(options)
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(" ".join(str(error).split())) from error


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m s2kit convert", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE", help="the weights")
    layouts = "; ".join(f"{name}: {what}" for name, what in _LAYOUTS.items())
    parser.add_argument("--to", choices=_LAYOUTS, help=layouts)
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder for the weights and what goes with them")
    parser.add_argument("--backbone", action="store_true", help="only the backbone, without the task's head")
    parser.add_argument(
        "--dtype", choices=_TYPES, help="cast the weights; the default keeps every bit (the rotary periods are kept)"
    )
    parser.add_argument(
        "--shard-size", type=float, metavar="GB", help="spread safetensors over files of at most so many 10^9 bytes"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    return parser


def _convert(options: argparse.Namespace) -> int:
    from s2kit.models.checkpoints import check_finite, read_checkpoint
    from s2kit.models.checkpoints.writing import check_new, write_terms

    if options.shard_size is not None and options.shard_size <= 0:
        raise UserError(f"--shard-size must be above 0, got {options.shard_size:g}")
    if options.out is not None:
        check_new(options.out, options.overwrite)
    checkpoint = read_checkpoint(options.source)
    if options.to is None:
        print(describe(checkpoint))
        check_finite(checkpoint.state, options.source)
        return 0
    check_finite(checkpoint.state, options.source)
    _prepare(checkpoint, options)
    options.out.mkdir(parents=True, exist_ok=True)
    written = _WRITERS[options.to](checkpoint, options)
    ours = checkpoint.weights_from is None
    terms = write_terms(checkpoint.source.folder, options.out, notice=not ours)
    print(describe(checkpoint))
    shards = [path for path in written if "-of-" in path.name]
    names = [path.name for path in written if path not in shards] + [f"{len(shards)} shards"] * bool(shards)
    print(f"{'written:':<12}{options.out}: {', '.join(names)}")
    if not ours:
        print(
            "Official Sapiens2 weights, their conversions and what is trained from them stay under the Sapiens2 "
            f"License; keep its text and {', '.join(terms)} with them."
        )
    return 0


def _prepare(checkpoint: Checkpoint, options: argparse.Namespace) -> None:
    """Keep what can be written: a whole task, or a backbone under its bare names; and cast it if asked."""
    import torch

    if checkpoint.layout == "unknown":
        names = ", ".join(list(checkpoint.state)[:3])
        raise UserError(f"{options.source}: its names ({names}, ...) follow no layout of Sapiens2")
    state = checkpoint.state
    first = checkpoint.layout == "first_generation"
    if first and options.to != "official":
        raise UserError(f"{options.source}: a first-generation backbone has no {options.to} layout; say --to official")
    if options.backbone or first or checkpoint.is_backbone:
        prefix = "backbone." if any(name.startswith("backbone.") for name in state) else ""
        kept = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        checkpoint.set_aside += tuple(name for name in state if not name.startswith(prefix))
        if options.backbone:
            checkpoint.model_json, checkpoint.hyper_parameters = {}, _backbone_only(checkpoint)
        checkpoint.state = kept
    if options.dtype is not None:
        dtype = getattr(torch, options.dtype)
        checkpoint.state = {
            name: value.to(dtype) if value.is_floating_point() and not name.endswith("periods") else value
            for name, value in checkpoint.state.items()
        }


def _backbone_only(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a task's description says about its backbone."""
    from s2kit.models.checkpoints.describe import describe_config

    if checkpoint.layout == "first_generation":
        return {}
    config = describe_config(checkpoint)
    return {name: config[name] for name in ("arch", "image_size", "backbone") if config.get(name) is not None}


# ---------------------------------------------------------------------------------------------------- layouts


def _write_official(checkpoint: Checkpoint, options: argparse.Namespace) -> list[Path]:
    from s2kit.models.checkpoints.describe import describe_model
    from s2kit.models.checkpoints.writing import write_json, write_safetensors

    paths = write_safetensors(checkpoint.state, options.out, "weights", {}, _shard_bytes(options))
    write_json(options.out / "model.json", describe_model(checkpoint))
    return [*paths, options.out / "model.json"]


def _write_huggingface(checkpoint: Checkpoint, options: argparse.Namespace) -> list[Path]:
    from s2kit.models.checkpoints import to_huggingface
    from s2kit.models.checkpoints.describe import describe_config, describe_model
    from s2kit.models.checkpoints.writing import write_json, write_safetensors
    from s2kit.models.sapiens2 import backbone_config

    fields = describe_config(checkpoint)
    config = backbone_config(fields["arch"], tuple(fields["image_size"]), **(fields.get("backbone") or {}))
    state, config_json = to_huggingface(checkpoint.state, config)
    paths = write_safetensors(state, options.out, "model", {}, _shard_bytes(options))
    jsons = {
        "config.json": config_json,
        "preprocessor_config.json": _preprocessor(config.image_size),
        "model.json": describe_model(checkpoint),
    }
    for name, content in jsons.items():
        write_json(options.out / name, content)
    return [*paths, *(options.out / name for name in jsons)]


def _preprocessor(image_size: tuple[int, int]) -> dict[str, Any]:
    """Return the port's ``preprocessor_config.json``: a resized image with the ImageNet mean and standard deviation."""
    return {
        "image_processor_type": "Sapiens2ImageProcessor",
        "do_resize": True,
        "size": {"height": image_size[0], "width": image_size[1]},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


def _write_lightning(checkpoint: Checkpoint, options: argparse.Namespace) -> list[Path]:
    import lightning
    import torch

    from s2kit.models.checkpoints import task_of
    from s2kit.models.checkpoints.describe import describe_config
    from s2kit.models.checkpoints.writing import in_one_step

    if task_of(checkpoint.state) is None:
        raise UserError(
            f"{options.source}: a backbone alone; a Lightning checkpoint is a task's. Train one from it with "
            f"--model.weights {options.source}"
        )
    # No optimizer_states and no loops: asked to resume from it, Lightning says that it holds the model only.
    content = {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": checkpoint.state,
        "hparams_name": "kwargs",
        "hyper_parameters": describe_config(checkpoint),
        "s2kit": {"frame": checkpoint.known_frame, "weights_from": checkpoint.weights_from},
    }
    path = options.out / "model.ckpt"
    in_one_step(path, lambda temporary: torch.save(content, temporary))
    return [path]


_WRITERS = {"official": _write_official, "huggingface": _write_huggingface, "lightning": _write_lightning}


def _shard_bytes(options: argparse.Namespace) -> int | None:
    return None if options.shard_size is None else int(options.shard_size * 1e9)


# ---------------------------------------------------------------------------------------------------- description


def describe(checkpoint: Checkpoint) -> str:
    """Return a few lines: layout, size, task, numbers and types, and what was left out."""
    from s2kit.models.checkpoints import identify, task_of
    from s2kit.models.checkpoints.describe import count_parameters, image_size_of

    identity = identify(checkpoint.state)
    wrapped = f", inside {' '.join(checkpoint.wrapping)}" if checkpoint.wrapping else ""
    shards = f", {len(checkpoint.source.files)} shards" if checkpoint.source.shard_of else ""
    lines = {"layout": f"{checkpoint.layout.replace('_', ' ')}{wrapped}{shards}"}
    if identity is not None:
        height, width = image_size_of(checkpoint, identity)
        lines["backbone"] = f"{identity} at {height} x {width}"
        lines["task"] = task_of(checkpoint.state) or "none, a backbone alone"
        lines["frame"] = checkpoint.known_frame or "the task's own"
    elif checkpoint.layout == "first_generation":
        lines["backbone"] = _first_generation(checkpoint.state)
    lines["parameters"] = f"{count_parameters(checkpoint.state):,} in {len(checkpoint.state)} entries"
    types = sorted({str(value.dtype).removeprefix("torch.") for value in checkpoint.state.values()})
    lines["types"] = ", ".join(types)
    if checkpoint.set_aside:
        lines["set aside"] = f"{len(checkpoint.set_aside)} entries outside of it ({checkpoint.set_aside[0]}, ...)"
    return "\n".join(f"{name + ':':<12}{value}" for name, value in lines.items())


def _first_generation(state: dict[str, Tensor]) -> str:
    from s2kit.models.sapiens1 import SAPIENS1, grid_of

    prefix = "backbone." if "backbone.pos_embed" in state else ""
    _, length, dim = state[prefix + "pos_embed"].shape
    name = next((name for name, config in SAPIENS1.items() if config.embed_dim == dim), f"{dim} channels")
    (rows, columns), has_class = grid_of(length)
    return (
        f"{name}, positions of {rows} x {columns} patches {'with' if has_class else 'without'} class token "
        "(patch_padding is in no file: 2 for pose and normals models, see docs/checkpoints.md)"
    )
