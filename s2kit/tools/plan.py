"""``python -m s2kit plan``: what a training run costs, before it is started."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import warnings
from importlib import import_module
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from s2kit.errors import UserError
from s2kit.planning import Memory, Plan, Strategy, make_plan, make_pretraining_plan, numerics
from s2kit.planning.memory import GIB
from s2kit.pretraining import Pretraining
from s2kit.tools.arguments import OneLineParser

#: FLOP/s of an H100 or H200: dense bfloat16, and float32 without TF32, which s2kit does not turn on.
DEFAULT_PEAKS = {2: 989.0, 4: 67.0}

_DESCRIPTION = """\
Say what training by a config costs: parameters, FLOPs per image, memory per device, the largest batch that fits, and
the time of a step. Nothing is allocated or downloaded; no GPU is needed.

  python -m s2kit plan --config experiments/normals.yaml --model.arch sapiens2_1b --model.image_size [1024,768]
  python -m s2kit plan --config experiments/normals.yaml --devices 8 --memory 80 --trainer.precision bf16-mixed

--config and every option of fit (--model.*, --data.*, --trainer.*) work as for fit, and merge in the same order.
"""


def main(args: list[str]) -> int:
    """Print the plan of a run; return the exit code.

    Raises:
        UserError: what the user can mend, in one line.
        SystemExit: of the parsers, code 2, for wrong usage.
    """
    options, words = _parser().parse_known_args(args)
    _check(options)
    config = read_config(words)
    trainer = config.trainer
    how = numerics(trainer.precision, "cpu" if trainer.accelerator == "cpu" else "cuda")
    strategy = strategy_of(trainer, options.devices)
    task = build_task(config.model)
    peak = options.peak_tflops or DEFAULT_PEAKS[how.compute]
    batch = config.data.init_args.batch_size
    device = {"limit": options.memory * GIB, "peak": peak * 1e12, "utilisation": options.mfu}
    if not isinstance(task, Pretraining):
        plan = make_plan(task.backbone, task.decode_head, task.image_size, batch, strategy, how, **device)
    else:
        plan = make_pretraining_plan(task, batch, strategy, how, **device)
    backbone_config = getattr(task.backbone, "config", None)
    about = {
        "task": task.name,
        "arch": task.hparams.arch,
        "image_size": list(task.image_size),
        "precision": how.precision,
        "checkpointing": getattr(backbone_config, "checkpointing", "none"),
    }
    steps = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
    accumulate = trainer.accumulate_grad_batches or 1
    if options.json:
        print(json.dumps({**about, "max_steps": steps, "accumulate_grad_batches": accumulate, **plan.as_dict()}))
    else:
        of_peak = "" if options.peak_tflops else f" (an H100 or H200, dense, {8 * how.compute} bits)"
        print_plan(plan, {**about, "of_peak": of_peak}, steps, accumulate)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m s2kit plan",
        usage="python -m s2kit plan --config FILE [--config FILE ...] [options] [any option of fit]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--devices", type=int, metavar="N", help="GPUs in all (default: trainer.devices x trainer.num_nodes)"
    )
    parser.add_argument(
        "--memory", type=float, default=80.0, metavar="GIB", help="memory of a GPU in GiB (default: 80)"
    )
    parser.add_argument(
        "--mfu",
        type=float,
        default=0.4,
        metavar="SHARE",
        help="share of the peak that the GPU reaches (default: 0.4); what checkpointing computes again counts as work, "
        "so that the MFU in the usual sense, which is then printed, is lower",
    )
    parser.add_argument(
        "--peak-tflops",
        type=float,
        metavar="T",
        help="peak of a GPU in TFLOP/s (default: an H100's: 989 in 16 bits, 67 in float32 without TF32)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object: counts, FLOPs, bytes, seconds")
    return parser


def _check(options: argparse.Namespace) -> None:
    for name, value, good in (
        ("--devices", options.devices, options.devices is None or options.devices >= 1),
        ("--memory", options.memory, options.memory > 0),
        ("--mfu", options.mfu, 0 < options.mfu <= 1),
        ("--peak-tflops", options.peak_tflops, options.peak_tflops is None or options.peak_tflops > 0),
    ):
        if not good:
            right = "above 0 and at most 1" if name == "--mfu" else "above 0"
            raise UserError(f"{name} must be {right}, got {value}")


# ---------------------------------------------------------------------------------------------------- the config


class _ParsedError(Exception):
    """Raised when the config is read, to leave LightningCLI before it builds anything."""


def read_config(words: list[str]) -> Any:
    """Return the config that ``fit`` would run with these words.

    The words go through the very parser of ``fit``. (Merging the YAML files here would save Lightning's import, some
    five seconds, but be a second set of rules for overlays, links, defaults and mistakes, right only by luck.)

    Raises:
        SystemExit: code 2, after one line that says what is wrong.
    """
    from s2kit.lightning_cli import QUIET, S2kitCLI

    for pattern in QUIET:
        warnings.filterwarnings("ignore", pattern)

    class ConfigOnly(S2kitCLI):
        def before_instantiate_classes(self) -> None:
            found.append(self.config["fit"])
            raise _ParsedError

    found: list[Any] = []
    with contextlib.suppress(_ParsedError):
        # The seed is not needed; setting it would print a line.
        ConfigOnly(["fit", *words, "--seed_everything=false"], "plan")
    return found[0]


def build_task(model: Any) -> Any:
    """Build the task of a config on the meta device, without its weights."""
    module, _, name = model.class_path.rpartition(".")
    arguments = {**model.init_args.as_dict(), "weights": None}
    with torch.device("meta"):
        task = getattr(import_module(module), name)(**arguments)
    if not (hasattr(task, "backbone") and (hasattr(task, "decode_head") or isinstance(task, Pretraining))):
        raise UserError(
            f"model.class_path {model.class_path}: plan knows pretraining, and tasks with a backbone and a decode_head"
        )
    return task


def device_count(trainer: Any) -> int:
    """Devices in all that a trainer's config asks for; "auto" counts as one a node."""
    devices, nodes = trainer.devices, int(trainer.num_nodes or 1)
    if isinstance(devices, list | tuple):
        return len(devices) * nodes
    text = str(devices)
    if "," in text:
        return len([part for part in text.split(",") if part.strip()]) * nodes
    return max(1, int(text)) * nodes if text.lstrip("-").isdigit() else nodes


def strategy_of(trainer: Any, devices: int | None) -> Strategy:
    """Return the layout that ``trainer.strategy`` names.

    Raises:
        UserError: for one that is not planned for.
    """
    devices = devices or device_count(trainer)
    given = trainer.strategy
    name = given if isinstance(given, str) else getattr(given, "class_path", type(given).__name__)
    options = {} if isinstance(given, str) else dict(getattr(given, "init_args", None) or {})
    word = name.rpartition(".")[2].lower().replace("_", "")
    if "offload" in word or options.get("offload_optimizer") or options.get("offload_parameters"):
        raise UserError(f"trainer.strategy {name}: offloading to the host is not planned for")
    if word == "auto":
        return Strategy("single" if devices == 1 else "ddp", devices)
    if "deepspeed" in word:
        stage = int(word[-1]) if word[-1].isdigit() else int(options.get("stage", 2))
        if stage == 0:
            return Strategy("ddp", devices)
        return Strategy("deepspeed", devices, stage)
    if "fsdp" in word or "modelparallel" in word:
        return Strategy("fsdp2", devices)
    if "ddp" in word:
        return Strategy("ddp", devices, bucket_views=bool(options.get("gradient_as_bucket_view")))
    if "singledevice" in word:
        return Strategy("single", devices)
    raise UserError(
        f"trainer.strategy {name}: plan knows auto, ddp, fsdp2 (ModelParallelStrategy, FSDPStrategy) and deepspeed "
        "stages 1 to 3"
    )


# ---------------------------------------------------------------------------------------------------- the report


def _rows(memory: Memory) -> list[tuple[str, float]]:
    kept = memory.activations
    return [
        ("weights", memory.weights),
        ("16-bit copies of weights", memory.copies),
        ("gradients", memory.gradients),
        ("optimiser (AdamW)", memory.optimiser),
        ("communication", memory.communication),
        ("images and labels", kept.batch),
        ("activations of the backbone", kept.backbone),
        ("activations of the head", kept.head),
        ("output and loss", kept.loss),
        ("room of the backward pass", kept.workspace),
        ("context and fragmentation", memory.reserve),
    ]


def _memory_table(plan: Plan) -> Table:
    cases = [(f"batch {plan.batch}", plan.memory)]
    if plan.largest_memory is not None and plan.largest != plan.batch:
        cases.append((f"batch {plan.largest}, the largest", plan.largest_memory))
    # A small model's parts would all be 0.00 GiB.
    unit, size_of = ("GiB", GIB) if plan.memory.total >= 4 * GIB else ("MiB", GIB / 1024)
    table = Table(title=f"memory per device, {unit} of {plan.limit / size_of:,.0f}", title_justify="left")
    table.add_column("")
    for title, _ in cases:
        table.add_column(title, justify="right")
    for position, (name, size) in enumerate(_rows(plan.memory)):
        sizes = [_rows(memory)[position][1] for _, memory in cases]
        if size or any(sizes):
            table.add_row(name, *(f"{part / size_of:,.2f}" for part in sizes))
    table.add_section()
    table.add_row("total", *(f"{memory.total / size_of:,.2f}" for _, memory in cases))
    return table


def _flops_table(plan: Plan) -> Table:
    table = Table(title="parameters and FLOPs (2 per multiply-add, attention included)", title_justify="left")
    unit, size = ("T", 1e12) if plan.flops.forward >= 1e11 else ("G", 1e9)
    for column in ("", "parameters, M", f"forward, {unit}/image", "backward", "recomputed"):
        table.add_column(column, justify="right" if column else "left")
    parts = (
        ("backbone", plan.backbone_parameters, plan.backbone),
        ("head", plan.head_parameters, plan.head),
        *([("teacher", plan.teacher_parameters, plan.teacher)] if plan.teacher_parameters else []),
        ("total", plan.parameters.total, plan.flops),
    )
    for name, count, flops in parts:
        if name == "total":
            table.add_section()
        values = (flops.forward, flops.backward, flops.recomputed)
        table.add_row(name, f"{count / 1e6:,.2f}", *(f"{value / size:.3f}" for value in values))
    return table


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.3g} s"


def print_plan(plan: Plan, about: dict[str, Any], steps: int | None, accumulate: int) -> None:
    """Print a plan as two tables and a few lines."""
    console = Console(file=sys.stdout, highlight=False)
    height, width = about["image_size"]
    devices = plan.strategy.devices
    console.print(
        f"{about['task']}: {about['arch']} at {height} x {width}, {about['precision']}, {plan.strategy} on {devices} "
        f"device{'s' * (devices > 1)}, checkpointing {about['checkpointing']}, {plan.parameters.trained / 1e6:,.2f} M "
        "parameters trained",
        soft_wrap=True,
    )
    console.print(_flops_table(plan))
    console.print(_memory_table(plan))
    if plan.largest_memory is None:
        console.print(
            "Not even one image fits. What helps: --model.backbone.checkpointing full, --trainer.precision bf16-mixed, "
            "sharding over more devices.",
            soft_wrap=True,
        )
    elif not plan.fits:
        console.print(f"Batch {plan.batch} does not fit; the largest that does is {plan.largest}.")
    else:
        console.print(f"The largest batch per device that fits is {plan.largest}.")
    batch = plan.batch if plan.fits or not plan.largest else plan.largest
    seconds = accumulate * plan.seconds(batch)
    images = accumulate * batch * devices
    again = "" if plan.mfu == plan.utilisation else f" (MFU {plan.mfu:.1%}, as checkpointing computes again)"
    line = (
        f"At {plan.utilisation:.0%} of {plan.peak / 1e12:g} TFLOP/s{about['of_peak']}{again}, a step of {images:,} "
        f"image{'s' * (images > 1)}, {batch} at a time on a device, takes {_duration(seconds)}: "
        f"{images / seconds:.1f} images/s"
    )
    console.print(line + (f"; {steps} steps take {_duration(steps * seconds)}." if steps else "."), soft_wrap=True)
    console.print("Communication, validation and waiting for data come on top.")
