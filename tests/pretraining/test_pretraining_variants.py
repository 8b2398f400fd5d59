"""Pretraining beyond its plain form: at 4K scaled down, from weights at another size, by schedules."""

import math

import pytest
import ranks_run
import torch
from safetensors.torch import save_file

from s2kit.models import create_backbone, layers
from s2kit.pretraining import Pretraining


def step_of(task: Pretraining, pictures: int = 2) -> dict[str, torch.Tensor]:
    height, width = task.image_size
    items = [ranks_run.item(number, (height + 8, width + 8)) for number in range(pictures)]
    batch = task.draw_views(ranks_run.collate_training(items), training=True)
    losses = task.train().training_losses(batch)
    losses["loss"].backward()
    return losses


@pytest.mark.parametrize("contrast", [0.0, 0.4])
def test_4k_scaled_down_runs_the_same_code_with_activation_checkpointing(contrast):
    """Windows of 4 x 4 patches first, then masking, then the trunk; half the resolution is reconstructed."""
    backbone = {"patch_size": 4, "embed_dim": 32, "num_heads": 2, "depth": 3, "mlp_dim": 64, "full_attention_ends": 1}
    backbone |= {"window_tokenizer_depth": 2, "checkpointing": "full"}
    options = {**ranks_run.TASK, "image_size": (128, 96), "backbone": backbone, "contrast": contrast, "koleo": contrast}
    torch.manual_seed(0)
    task = Pretraining(**options)
    assert task.grid == (8, 6) and task.patch_pixels == 8 and task.decoder.pixels.out_features == 8 * 8 * 3
    assert all(block.checkpointing == "full" for block in (*task.backbone.blocks, *task.decoder.blocks))
    sizes = []
    handle = task.backbone.blocks[0].register_forward_hook(lambda m, a, output: sizes.append(output.shape[1]))
    losses = step_of(task)
    handle.remove()
    # A quarter of 48 windows and the nine other tokens; the local crops of 12 windows whole, and only for the contrast.
    assert sizes == ([12 + 9, 12 + 9] if contrast else [12 + 9])
    checkpointed = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    assert checkpointed["backbone.tokenizer.blocks.0.ffn.w3.weight"].abs().sum() > 0
    torch.manual_seed(0)
    plain = Pretraining(**{**options, "backbone": {**backbone, "checkpointing": "none"}})
    torch.testing.assert_close(step_of(plain)["loss"], losses["loss"])
    for name, parameter in plain.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, checkpointed[name], atol=1e-6, rtol=1e-4)


def test_at_4k_no_pixel_of_a_hidden_window_reaches_the_student():
    backbone = {
        "patch_size": 4,
        "embed_dim": 32,
        "num_heads": 2,
        "depth": 2,
        "mlp_dim": 64,
        "window_tokenizer_depth": 1,
    }
    task = Pretraining(**{**ranks_run.TASK, "image_size": (64, 48), "backbone": backbone, "contrast": 0, "koleo": 0})
    keep = torch.tensor([[1, 5, 6]])
    image = torch.randn(1, 3, 64, 48)
    hidden = torch.ones(12, dtype=torch.bool)
    hidden[keep[0]] = False
    pixels = hidden.view(1, 1, 4, 3).repeat_interleave(16, 2).repeat_interleave(16, 3)
    changed = torch.where(pixels, torch.randn_like(image), image)
    task.eval()
    torch.testing.assert_close(task(changed, keep), task(image, keep))


def test_it_goes_on_from_a_backbone_at_another_resolution_with_a_frozen_prefix(tmp_path):
    """Student and teacher begin with the file's weights; what is frozen stays, in both."""
    torch.manual_seed(3)
    fields = {**ranks_run.TASK["backbone"], "depth": 3}
    source = create_backbone("sapiens2_nano", (32, 24), **fields)
    save_file(source.state_dict(), tmp_path / "backbone.safetensors")
    options = {**ranks_run.TASK, "image_size": (64, 48), "backbone": {**fields, "frozen_stages": 1}}
    task = Pretraining(**options, weights=str(tmp_path / "backbone.safetensors"))
    for part in (task.backbone, task.teacher["backbone"]):
        for name, value in source.state_dict().items():
            assert torch.equal(part.state_dict()[name], value), name
    for name, value in task.head.state_dict().items():
        assert torch.equal(task.teacher["head"].state_dict()[name], value), name
    step_of(task)
    frozen = ("backbone.patch_embed.", "backbone.blocks.0.", "backbone.cls_token", "backbone.storage_tokens")
    for name, parameter in task.named_parameters():
        trains = not name.startswith((*frozen, "teacher."))
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == trains, name


def test_local_crops_are_half_as_large_or_as_large_as_is_said():
    assert Pretraining(**{**ranks_run.TASK, "image_size": (128, 96)}).local_size == (64, 48)
    task = Pretraining(**ranks_run.TASK, local_size=(8, 24))
    batch = task.draw_views(ranks_run.batches(1, 2)[0], training=True)
    assert task.local_views(batch).shape == (8, 3, 8, 24)
    with pytest.raises(ValueError, match="multiples of the patch size 8, got 8 x 20"):
        Pretraining(**ranks_run.TASK, local_size=(8, 20))


class Fixed:
    """A trainer of a known step and length."""

    def __init__(self, step: int, steps: int) -> None:
        self.global_step, self.max_steps = step, steps


def test_schedules_follow_half_a_cosine_over_optimiser_steps():
    task = Pretraining(**ranks_run.TASK)
    task._trainer = Fixed(0, 11)
    values = [task.scheduled(0.992, 1.0, step) for step in range(13)]
    assert values[0] == 0.992 and values[10:] == pytest.approx([1.0] * 3)
    assert values[5] == pytest.approx(0.996) and values == sorted(values)
    assert values[3] == pytest.approx(1.0 - 0.008 * 0.5 * (1 + math.cos(math.pi * 0.3)))
    assert task.scheduled(0.05, None, 7) == 0.05


def test_accumulated_batches_are_one_step_of_every_schedule(tmp_path, monkeypatch):
    """Temperature, weight decay, learning rate and teacher move with the optimiser, not with the batches."""
    seen = []
    original = Pretraining.teacher_probabilities

    def probabilities(task, views, step, counts=True):
        decay = [group["weight_decay"] for group in task.trainer.optimizers[0].param_groups]
        seen.append((step, task.trainer.optimizers[0].param_groups[0]["lr"], tuple(decay)))
        return original(task, views, step, counts)

    monkeypatch.setattr(Pretraining, "teacher_probabilities", probabilities)
    task = {"weight_decay": 0.1, "final_weight_decay": 0.3, "final_teacher_momentum": 1.0}
    recorder = ranks_run.train(tmp_path, 3, 2, accumulate=2, task=task)
    assert [step for step, _, _ in seen] == [0, 0, 1, 1, 2, 2]
    assert seen[0][1] == seen[1][1] != seen[2][1] == seen[3][1]
    # What the last step left in the groups is seen by the next one's batches; groups without decay stay without.
    assert [sorted(set(decay)) for _, _, decay in seen[::2]] == [
        pytest.approx([0.0, 0.1]),
        pytest.approx([0.0, 0.1]),
        pytest.approx([0.0, 0.2]),
    ]
    states, name = recorder.states[1::2], "backbone.blocks.0.attn.wq.weight"
    for step, momentum in ((1, 0.875), (2, 1.0)):
        expected = momentum * states[step - 1][f"teacher.{name}"] + (1 - momentum) * states[step][name]
        torch.testing.assert_close(states[step][f"teacher.{name}"], expected, atol=1e-7, rtol=1e-6)
    assert len({tuple(state[name].flatten()[:3].tolist()) for state in recorder.states}) == 4


@pytest.mark.parametrize("tokenizer", [None, 1])
def test_what_is_visible_is_computed_as_in_the_full_pass_with_the_rest_hidden_from_attention(monkeypatch, tokenizer):
    fields = {"patch_size": 4, "embed_dim": 32, "num_heads": 4, "depth": 3, "mlp_dim": 64, "full_attention_ends": 1}
    torch.manual_seed(0)
    backbone = create_backbone("sapiens2_nano", (64, 48), **fields, window_tokenizer_depth=tokenizer).eval()
    grid = backbone.grid_size(64, 48)
    images = torch.randn(2, 3, 64, 48)
    keep = torch.stack([torch.randperm(grid[0] * grid[1])[:5] for _ in range(2)])
    with torch.no_grad():
        found = backbone.forward_visible(images, keep)
    shown = torch.zeros(2, grid[0] * grid[1] + 9, dtype=torch.bool)
    shown[:, :9] = True
    shown.scatter_(1, keep + 9, True)

    def attention(q, k, v):
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        mask = shown[:, None, None] if k.shape[2] == shown.shape[1] else None  # windows see themselves
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    monkeypatch.setattr(layers, "grouped_attention", attention)
    with torch.no_grad():
        full = backbone.forward_tokens(images)
    torch.testing.assert_close(found.cls, full[:, 0], atol=1e-5, rtol=1e-5)
    expected = full[:, 9:].gather(1, keep[..., None].expand(-1, -1, 32))
    torch.testing.assert_close(found.tokens, expected, atol=1e-5, rtol=1e-5)
