"""What a step of pretraining costs, against torch's counter and against what autograd keeps."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from s2kit.planning import numerics, pretraining_flops
from s2kit.planning.pretraining import pretraining_activations, pretraining_parts
from s2kit.pretraining import Pretraining, module

OPTIONS = {
    "arch": "sapiens2_nano",
    "image_size": (64, 48),
    "backbone": {"patch_size": 8, "embed_dim": 64, "num_heads": 2, "depth": 3, "mlp_dim": 128},
    "decoder": {"dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 96},
    "head": {"hidden_dim": 48, "bottleneck_dim": 24, "prototypes": 200},
}


def counted(monkeypatch, **options) -> tuple[float, Pretraining]:
    """FLOPs per picture that torch counts in a step on two pictures, colour changes left out."""
    monkeypatch.setattr(module, "change_colours", lambda crops, changes: crops)
    values = {**OPTIONS, **options}
    values["backbone"] = {**OPTIONS["backbone"], **options.get("backbone", {})}
    task = Pretraining(**values).train()
    height, width = task.image_size
    batch = {"image": torch.zeros(2, 3, height, width, dtype=torch.uint8), "key": ["a", "b"], "seed": [0, 1]}
    batch = task.draw_views({**batch, "size": torch.tensor([[height, width]] * 2)}, training=True)
    with FlopCounterMode(display=False) as counter:
        task.training_losses(batch)["loss"].backward()
    return counter.get_total_flops() / 2, task


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"contrast": 0.0, "koleo": 0.0},
        {"reconstruction": 0.0},
        {"local_views": 0},
        {"backbone": {"checkpointing": "full"}},
        {"backbone": {"window_tokenizer_depth": 1, "patch_size": 4, "window_size": 2}},
    ],
)
def test_flops_of_a_step_agree_with_torchs_counter(monkeypatch, options):
    torch.manual_seed(0)
    expected, task = counted(monkeypatch, **options)
    flops = pretraining_flops(task)
    # The regulariser's products of [cls] tokens are the rest.
    assert flops.hardware == pytest.approx(expected, rel=5e-3)
    parts = pretraining_parts(task)
    assert parts.teacher.backward == 0 and (parts.teacher.forward > 0) == (options.get("contrast") != 0.0)
    assert flops.model == task.flops().model


def test_what_a_step_keeps_is_planned():
    """Storages that autograd saves in a step of four pictures, without parameters."""
    torch.manual_seed(0)
    task = Pretraining(**OPTIONS).train()
    image = torch.zeros(4, 3, 64, 48, dtype=torch.uint8)
    batch = {"image": image, "key": list("abcd"), "seed": [0, 1, 2, 3], "size": torch.tensor([[64, 48]] * 4)}
    batch = task.draw_views(batch, training=True)
    own = {p.untyped_storage().data_ptr() for p in task.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        task.training_losses(batch)["loss"]
    kept = pretraining_activations(task, 4, numerics("32-true", "cpu"))
    assert kept.backbone + kept.head + kept.loss == pytest.approx(sum(saved.values()), rel=0.1)
