"""A plan: what a training step of a task costs in FLOPs, memory and time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from s2kit.planning.activations import Activations, activations
from s2kit.planning.flops import Flops, task_flops
from s2kit.planning.memory import Memory, Parameters, Strategy, largest_batch, memory_per_device, step_numerics
from s2kit.planning.numerics import Numerics


def count_parameters(backbone: nn.Module, head: nn.Module) -> Parameters:
    """Counts of a task's parameters; the modules may be on the meta device."""
    parts = [backbone, head]
    every = [p for part in parts for p in part.parameters()]
    config = getattr(backbone, "config", None)
    # A transformer of timm is wrapped, as `model`.
    blocks = getattr(backbone, "blocks", None) or getattr(getattr(backbone, "model", None), "blocks", [])
    again: set[int] = set()
    if getattr(config, "checkpointing", "none") != "none":
        again = {id(p) for block in blocks for p in block.parameters()}
    if getattr(backbone, "tokenizer", None) is not None:
        again |= {id(p) for p in backbone.tokenizer.parameters()}
    products = [
        module.weight
        for part in parts
        for module in part.modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    ]
    units = [*(blocks or [backbone]), head]
    return Parameters(
        total=sum(p.numel() for p in every),
        trained=sum(p.numel() for p in every if p.requires_grad),
        cast=sum(p.numel() for p in products if p.requires_grad and id(p) not in again),
        cast_in_forward=sum(p.numel() for p in products if p.requires_grad),
        largest_unit=max(sum(p.numel() for p in unit.parameters()) for unit in units),
    )


#: Of a part that a model does not have.
NOTHING = Flops(0.0)


@dataclass(frozen=True)
class Plan:
    """What a training step costs.

    Attributes:
        parameters: counts; `backbone_parameters` and `head_parameters` are those of the parts.
        backbone, head, teacher: FLOPs per image; only a pretraining has a teacher.
        batch: images per device of `memory`.
        memory: of one device, in bytes.
        largest: images per device that fit; `largest_memory` is theirs, None if not even one fits.
        limit: bytes of a device.
        peak: FLOP/s of a device.
        utilisation: share of the peak that is reached, with what checkpointing computes again counted as work.
    """

    parameters: Parameters
    backbone_parameters: int
    head_parameters: int
    backbone: Flops
    head: Flops
    strategy: Strategy
    batch: int
    memory: Memory
    largest: int
    largest_memory: Memory | None
    limit: float
    peak: float
    utilisation: float
    teacher: Flops = NOTHING
    teacher_parameters: int = 0

    @property
    def flops(self) -> Flops:
        return self.backbone + self.head + self.teacher

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.limit

    def seconds(self, batch: int) -> float:
        """Time of the forward and backward pass of `batch` images on one device, recomputation included."""
        return batch * (self.flops.model + self.flops.recomputed) / (self.peak * self.utilisation)

    @property
    def mfu(self) -> float:
        """Share of the peak that goes into the model's own FLOPs: less than `utilisation` with checkpointing."""
        return self.utilisation * self.flops.model / (self.flops.model + self.flops.recomputed)

    def _case(self, batch: int, memory: Memory) -> dict[str, Any]:
        seconds = self.seconds(batch)
        return {
            "batch_per_device": batch,
            "batch_total": batch * self.strategy.devices,
            "memory_bytes": {**asdict(memory), "total": memory.total},
            "fits": memory.total <= self.limit,
            "step_seconds": seconds,
            "images_per_second": batch * self.strategy.devices / seconds,
        }

    def as_dict(self) -> dict[str, Any]:
        """The plan in plain numbers: counts, FLOPs per image, bytes and seconds."""
        flops = {
            name: {**asdict(part), "model": part.model, "hardware": part.hardware}
            for name, part in (
                ("backbone", self.backbone),
                ("head", self.head),
                *([("teacher", self.teacher)] if self.teacher_parameters else []),
                ("total", self.flops),
            )
        }
        largest = None if self.largest_memory is None else self._case(self.largest, self.largest_memory)
        return {
            "parameters": {
                "backbone": self.backbone_parameters,
                "head": self.head_parameters,
                **({"teacher": self.teacher_parameters} if self.teacher_parameters else {}),
                "total": self.parameters.total,
                "trained": self.parameters.trained,
            },
            "flops_per_image": flops,
            "strategy": str(self.strategy),
            "devices": self.strategy.devices,
            "device_memory_bytes": self.limit,
            "peak_flops": self.peak,
            "utilisation": self.utilisation,
            "mfu": self.mfu,
            "configured": self._case(self.batch, self.memory),
            "largest": largest,
        }


def make_plan(
    backbone: nn.Module,
    head: nn.Module,
    image_size: tuple[int, int],
    batch: int,
    strategy: Strategy,
    how: Numerics,
    limit: float,
    peak: float,
    utilisation: float,
) -> Plan:
    """Plan the training of a task; nothing is allocated if the modules are on the meta device.

    Args:
        backbone, head: of the task.
        image_size: (height, width) of the images.
        batch: images per device.
        strategy: layout over the devices.
        how: precision and kind of device.
        limit: bytes of a device.
        peak: FLOP/s of a device at that precision.
        utilisation: share of the peak that is reached, in (0, 1], checkpointing's recomputation counted as work.
    """
    first, second = task_flops(backbone, head, image_size)
    return complete_plan(
        lambda images: activations(backbone, head, image_size, images, step_numerics(strategy, how)),
        batch,
        strategy,
        how,
        limit,
        peak,
        utilisation,
        parameters=count_parameters(backbone, head),
        backbone_parameters=sum(p.numel() for p in backbone.parameters()),
        head_parameters=sum(p.numel() for p in head.parameters()),
        backbone=first,
        head=second,
    )


def complete_plan(
    kept: Callable[[int], Activations],
    batch: int,
    strategy: Strategy,
    how: Numerics,
    limit: float,
    peak: float,
    utilisation: float,
    parameters: Parameters,
    **parts: Any,
) -> Plan:
    """The plan of a model whose activations for a number of images `kept` tells; `parts` are the other fields."""

    def memory(images: int) -> Memory:
        return memory_per_device(parameters, strategy, how, kept(images))

    largest = largest_batch(lambda images: memory(images).total <= limit)
    return Plan(
        parameters=parameters,
        strategy=strategy,
        batch=batch,
        memory=memory(batch),
        largest=largest,
        largest_memory=memory(largest) if largest else None,
        limit=limit,
        peak=peak,
        utilisation=utilisation,
        **parts,
    )
