"""FLOPs of a pretraining's step, counted as it runs."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from s2kit.pretraining import Pretraining


def pretraining_flops(task: Pretraining) -> float:
    """Return the FLOPs of one picture in a training step: student, teacher, decoder, heads and all views, forward and
    backward; 2 per multiply-add of linear layers, convolutions and attention.

    A step is taken on two pictures, so that no term is left out for want of a second one.
    """
    pictures = 2
    height, width = task.image_size
    batch = {
        "key": [str(number) for number in range(pictures)],
        "image": torch.zeros(pictures, 3, height, width, dtype=torch.uint8),
        "size": torch.tensor([[height, width]] * pictures),
        "seed": list(range(pictures)),
    }
    task.train()
    with FlopCounterMode(display=False) as counter:
        task.training_losses(task.draw_views(batch, training=True))["loss"].backward()
    return counter.get_total_flops() / pictures
