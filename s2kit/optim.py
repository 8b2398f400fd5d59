"""Optimiser groups and learning-rate schedules (release, optimisation)."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Literal

from torch import nn

#: Values that follow from the size of the backbone (release, optimisation: per task and size).
LAYER_DECAY = {
    "sapiens2_0.4b": 0.80,
    "sapiens2_0.8b": 0.85,
    "sapiens2_1b": 0.90,
    "sapiens2_1b_4k": 0.90,
    "sapiens2_5b": 0.94,
}
DEFAULT_LR = 5e-4
GRADIENT_CLIP = {"sapiens2_0.4b": 2.0}
DEFAULT_GRADIENT_CLIP = 4.0

#: What a backbone has before its first block: ours, and timm's further ones.
EMBEDDINGS = "cls_token|storage_tokens|patch_embed|tokenizer|reg_token|dist_token|pos_embed|norm_pre"

Schedule = Literal["linear", "cosine", "constant"]


def layer_multiplier(name: str, depth: int, decay: float) -> float:
    """Return the learning-rate multiplier of a parameter under layer-wise decay.

    Tokens, embeddings of patches and positions, and window tokenizer get ``decay ** (depth + 1)``, block ``i`` gets
    ``decay ** (depth - i)``, the final norm and the head 1 (release, optimisation).

    Args:
        name: The parameter's name in a task (``backbone.blocks.3.ln1.weight``; a transformer of timm has its own names
            behind ``backbone.model.``).
        depth: Number of blocks of the backbone.
        decay: The factor from one layer to the next, in (0, 1].
    """
    if match := re.match(r"backbone\.(?:model\.)?(?:blocks|layers)\.(\d+)\.", name):
        return decay ** (depth - int(match[1]))
    if re.match(rf"backbone\.(?:model\.)?({EMBEDDINGS})", name):
        return decay ** (depth + 1)
    return 1.0


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether weight decay applies: not to vectors, biases and position embeddings; to the 3-D tokens it does."""
    return parameter.ndim > 1 and not name.endswith(".bias") and "pos_embed" not in name


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    lr: float,
    weight_decay: float,
    layer_decay: float,
    depth: int,
    decays: Callable[[str, nn.Parameter], bool] = is_decayed,
) -> list[dict]:
    """Group trainable parameters by learning rate and weight decay.

    Returns:
        Groups for a torch optimiser, each with ``params``, ``names``, ``lr`` and ``weight_decay``. Of a group all
        parameters decay or none does, also where ``weight_decay`` is 0: a schedule may raise it.
    """
    groups: dict[tuple[float, bool], dict] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        group_lr = lr * layer_multiplier(name, depth, layer_decay)
        decayed = decays(name, parameter)
        options = {"lr": group_lr, "weight_decay": weight_decay if decayed else 0.0}
        group = groups.setdefault((group_lr, decayed), {"params": [], "names": [], **options})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def learning_rate_factor(
    total_steps: int,
    warmup_steps: int = 500,
    schedule: Schedule = "linear",
    warmup_start: float = 1e-3,
    final: float = 0.0,
) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the optimiser step.

    Linear warm-up from ``warmup_start`` to 1 over ``warmup_steps``, then linear or cosine to ``final`` at
    ``total_steps``, or constant (release, optimisation: linear).

    Raises:
        ValueError: If the warm-up is not shorter than the whole.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps={warmup_steps} must be at least 0 and below the run's {total_steps} steps")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return warmup_start + (1 - warmup_start) * step / warmup_steps
        progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
        if schedule == "linear":
            return 1 - (1 - final) * progress
        if schedule == "cosine":
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        return 1.0

    return factor
