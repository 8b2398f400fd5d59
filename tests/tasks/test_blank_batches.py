"""What a rank adds to a step for which it has no sample: nothing, while every weight takes part."""

import pytest
import torch

from s2kit import tasks
from s2kit.pretraining import Pretraining

BACKBONE = {"patch_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 2, "mlp_dim": 64}
NAMES = ["PoseTask", "SegmentationTask", "NormalsTask", "PointmapTask", "AlbedoTask", "MattingTask"]


@pytest.mark.parametrize("name", [*NAMES, "Pretraining"])
def test_a_blank_picture_gives_every_trained_weight_a_gradient_of_zero(name):
    kind = Pretraining if name == "Pretraining" else getattr(tasks, name)
    torch.manual_seed(0)
    task = kind(arch="sapiens2_nano", image_size=(160, 128), backbone=BACKBONE).train()
    centre = None if name != "Pretraining" else task.centring.centre.clone()
    loss = task.blank_loss()
    assert loss.item() == 0
    loss.backward()
    for key, parameter in task.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and not parameter.grad.any(), key
    assert centre is None or torch.equal(task.centring.centre, centre)
