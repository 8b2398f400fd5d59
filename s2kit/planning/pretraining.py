"""What a step of the joint pretraining costs: its student, its teacher, its decoder and its [cls] head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from s2kit.planning.activations import (
    Activations,
    BlockShape,
    backbone_bytes,
    backbone_workspace,
    block_bytes,
    block_workspace,
)
from s2kit.planning.flops import Flops, backbone_flops, block_flops, token_count
from s2kit.planning.memory import Parameters, Strategy, step_numerics
from s2kit.planning.numerics import Numerics
from s2kit.planning.plan import Plan, complete_plan, count_parameters

#: Maps of the logits' size in float32 that the contrast keeps or works in: logits over temperature, their
#: log-softmax, its gradient, and the teacher's probabilities of the global crops among them.
LOGIT_MAPS = 4
#: Maps of the target's size in float32: its difference from the prediction, and the gradients of both.
TARGET_MAPS = 3


@dataclass(frozen=True)
class PretrainingFlops:
    """FLOPs per picture of the parts of a step.

    Attributes:
        globals: the student on what it sees of the global crops.
        locals: the student on the local crops.
        decoder: of the reconstruction.
        head: the student's [cls] head, the contrast and the regulariser among it.
        teacher: the teacher on the whole global crops, and its head.
    """

    globals: Flops
    locals: Flops
    decoder: Flops
    head: Flops
    teacher: Flops

    @property
    def total(self) -> Flops:
        return self.globals + self.locals + self.decoder + self.head + self.teacher


def _crops(task: Any) -> tuple[int, int, int]:
    """Global crops, local crops that are computed, and patches of a global crop that the student sees."""
    from s2kit.pretraining.masking import masked_count

    options = task.hparams
    local = options.local_views if options.contrast else 0
    patches = task.grid[0] * task.grid[1]
    return options.views, local, patches - masked_count(task.grid, options.mask_ratio)


def _linear_flops(layers: list[nn.Linear], rows: float, trained: bool = True) -> Flops:
    forward = sum(2.0 * rows * layer.in_features * layer.out_features for layer in layers)
    return Flops(forward, 2 * forward if trained else 0.0)


def _decoder_flops(task: Any, visible: int) -> Flops:
    decoder, patches = task.decoder, task.grid[0] * task.grid[1]
    total = _linear_flops([decoder.embed], 1 + visible) + _linear_flops([decoder.pixels], patches)
    for block in decoder.blocks:
        total += block_flops(
            1 + patches,
            decoder.embed.out_features,
            decoder.embed.out_features,
            block.ffn.w3.in_features,
            checkpointing=block.checkpointing,
        )
    return total


def _head_layers(head: nn.Module) -> list[nn.Linear]:
    return [module for module in head.modules() if isinstance(module, nn.Linear)]


def pretraining_parts(task: Any) -> PretrainingFlops:
    """FLOPs per picture of each part of a step of a ``Pretraining``, which may be on the meta device.

    Cutting and colouring the crops is left out, as all elementwise work is.
    """
    views, local, visible = _crops(task)
    config, none = task.backbone.config, Flops(0.0)
    decoder = head = teacher = none
    if task.hparams.reconstruction:
        decoder = _decoder_flops(task, visible) * views
    if task.hparams.contrast:
        layers = _head_layers(task.head)
        pairs = 2.0 * views * (views + local) * layers[-1].out_features
        head = _linear_flops(layers, views + local) + Flops(pairs, pairs)
        whole = backbone_flops(config, task.image_size)
        teacher = Flops(views * whole.forward) + _linear_flops(layers, views, trained=False)
    return PretrainingFlops(
        globals=backbone_flops(config, task.image_size, visible) * views,
        locals=backbone_flops(config, task.local_size) * local if local else none,
        decoder=decoder,
        head=head,
        teacher=teacher,
    )


def pretraining_flops(task: Any) -> Flops:
    """FLOPs per picture of a whole step of a ``Pretraining``: student, teacher, decoder, head, local crops."""
    return pretraining_parts(task).total


def _decoder_blocks(task: Any, batch: float) -> list[BlockShape]:
    decoder, patches = task.decoder, task.grid[0] * task.grid[1]
    return [
        BlockShape(
            batch * (1 + patches),
            decoder.embed.out_features,
            block.attn.num_heads,
            block.attn.num_heads,
            block.ffn.w3.in_features,
            layer_scale=False,
        )
        for block in decoder.blocks
    ]


def pretraining_activations(task: Any, batch: int, how: Numerics) -> Activations:
    """Activation memory of a step of a ``Pretraining`` on one device, for ``batch`` pictures.

    ``backbone`` is the student on all crops; ``head`` the decoder and the [cls] head. The teacher keeps nothing; it
    runs first, so that the room it works in is free again when the student's activations come.
    """
    views, local, visible = _crops(task)
    config, size = task.backbone.config, task.image_size
    patches, pixels = task.grid[0] * task.grid[1], size[0] * size[1]
    crops = views * batch
    kept = backbone_bytes(config, size, crops, how, visible)
    room = backbone_workspace(config, size, crops, how, visible)
    # The canvas as it came, crops as they were cut and as the backbone takes them.
    given = batch * 3 * pixels + 2 * 4 * 3 * crops * pixels
    if local:
        shape = (task.local_size, local * batch)
        kept += backbone_bytes(config, shape[0], shape[1], how)
        room = max(room, backbone_workspace(config, shape[0], shape[1], how))
        given += 2 * 4 * 3 * shape[1] * shape[0][0] * shape[0][1]
    on_head = loss = 0.0
    if task.hparams.reconstruction:
        decoder, mode = task.decoder, task.decoder.blocks[0].checkpointing
        blocks = _decoder_blocks(task, crops)
        dim = decoder.embed.out_features
        on_head += sum(block_bytes(block, how, mode) for block in blocks)
        on_head += how.compute * crops * ((1 + visible) * config.embed_dim + 2 * patches * dim)
        loss += TARGET_MAPS * 4 * crops * patches * decoder.pixels.out_features
        again = block_bytes(blocks[0], how) - block_bytes(blocks[0], how, mode)
        # The decoder's backward pass comes first, while all is kept; the backbone's when the decoder's is gone.
        room = max(block_workspace(blocks[0], how) + again, room - on_head - loss)
    if task.hparams.contrast:
        logits = (views + local) * batch * _head_layers(task.head)[-1].out_features
        loss += LOGIT_MAPS * 4 * logits
        whole = BlockShape(
            crops * token_count(config, size), config.embed_dim, config.num_heads, config.num_heads, config.mlp_dim
        )
        alone = how.compute * whole.tokens * 3 * whole.mlp_dim + 2 * how.stream * whole.tokens * whole.dim
        room = max(room, alone - kept - on_head - loss)
    return Activations(given, kept, on_head, loss, room)


def _count(task: Any) -> Parameters:
    """Counts of parameters; those of the teacher are among the total and train no more than they are cast."""
    parts = nn.ModuleList([getattr(task, name) for name in ("decoder", "head") if hasattr(task, name)])
    student = count_parameters(task.backbone, parts)
    every = sum(parameter.numel() for parameter in task.parameters())
    units = [*task.backbone.blocks, *getattr(getattr(task, "decoder", None), "blocks", [])]
    units += [getattr(task, "head", None), getattr(task.backbone, "tokenizer", None)]
    sizes = [sum(p.numel() for p in unit.parameters()) for unit in units if unit is not None]
    return Parameters(every, student.trained, student.cast, student.cast_in_forward, max(sizes))


def make_pretraining_plan(
    task: Any,
    batch: int,
    strategy: Strategy,
    how: Numerics,
    limit: float,
    peak: float,
    utilisation: float,
) -> Plan:
    """Plan a ``Pretraining``; nothing is allocated if it is on the meta device. See ``make_plan``.

    The plan's ``backbone`` is the student on all crops, its ``head`` the decoder and the [cls] head.
    """
    parts = pretraining_parts(task)
    inside = step_numerics(strategy, how)

    def size(*names: str) -> int:
        return sum(p.numel() for name in names for p in getattr(task, name, nn.Module()).parameters())

    return complete_plan(
        lambda images: pretraining_activations(task, images, inside),
        batch,
        strategy,
        how,
        limit,
        peak,
        utilisation,
        parameters=_count(task),
        backbone_parameters=size("backbone"),
        head_parameters=size("decoder", "head"),
        backbone=parts.globals + parts.locals,
        head=parts.decoder + parts.head,
        teacher=parts.teacher,
        teacher_parameters=size("teacher"),
    )
