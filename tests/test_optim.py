"""The numbers of the release's optimisation: layer-wise decay, weight decay, schedule."""

import pytest
import torch
from torch import nn

from s2kit.optim import LAYER_DECAY, is_decayed, layer_multiplier, learning_rate_factor, parameter_groups


@pytest.mark.parametrize(
    ("arch", "depth", "embedding", "first_block"),
    [
        ("sapiens2_0.4b", 24, 0.003778, 0.004722),
        ("sapiens2_0.8b", 32, 0.004686, 0.005513),
        ("sapiens2_1b", 40, 0.013303, 0.014781),
        ("sapiens2_5b", 56, 0.029396, 0.031272),
    ],
)
def test_layer_decay_gives_the_published_multipliers(arch, depth, embedding, first_block):
    decay = LAYER_DECAY[arch]
    for name in ("cls_token", "storage_tokens", "patch_embed.projection.weight", "tokenizer.w_cls"):
        assert layer_multiplier(f"backbone.{name}", depth, decay) == pytest.approx(embedding, abs=5e-7)
    assert layer_multiplier("backbone.blocks.0.attn.wq.weight", depth, decay) == pytest.approx(first_block, abs=5e-7)
    assert layer_multiplier(f"backbone.blocks.{depth - 1}.ln1.weight", depth, decay) == pytest.approx(decay)
    assert layer_multiplier("backbone.ln1.weight", depth, decay) == 1
    assert layer_multiplier("decode_head.conv_normal.weight", depth, decay) == 1


@pytest.mark.parametrize(
    ("step", "lr"), [(0, 5e-7), (250, 2.5025e-4), (500, 5e-4), (10250, 2.5e-4), (19999, 2.5641e-8)]
)
def test_linear_schedule_gives_the_published_rates(step, lr):
    assert 5e-4 * learning_rate_factor(20000)(step) == pytest.approx(lr, rel=1e-4)


def test_cosine_schedule_halves_at_the_middle_and_ends_at_zero():
    factor = learning_rate_factor(110, warmup_steps=10, schedule="cosine")
    assert factor(10) == 1
    assert factor(60) == pytest.approx(0.5)
    assert factor(110) == pytest.approx(0)


def test_a_warmup_as_long_as_the_run_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=500 must be at least 0 and below the run's 100 steps"):
        learning_rate_factor(100, warmup_steps=500)


@pytest.mark.parametrize(
    ("name", "shape", "decayed"),
    [
        ("backbone.cls_token", (1, 1, 8), True),
        ("backbone.blocks.0.attn.wq.weight", (8, 8), True),
        ("backbone.blocks.0.attn.wq.bias", (8,), False),
        ("backbone.blocks.0.ln1.weight", (8,), False),
        ("backbone.tokenizer.local_pos_embed", (1, 17, 8), False),
    ],
)
def test_weight_decay_spares_vectors_biases_and_position_embeddings(name, shape, decayed):
    assert is_decayed(name, nn.Parameter(torch.zeros(shape))) is decayed


def test_groups_hold_every_trainable_parameter_once():
    names = ["backbone.cls_token", "backbone.blocks.0.ln1.weight", "backbone.blocks.0.attn.wq.weight", "decode_head.w"]
    parameters = [(name, nn.Parameter(torch.zeros((2,) * (1 + (i != 1))))) for i, name in enumerate(names)]
    parameters[2][1].requires_grad_(False)
    groups = parameter_groups(parameters, lr=1.0, weight_decay=0.1, layer_decay=0.5, depth=1)
    found = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert found == {names[0]: (0.25, 0.1), names[1]: (0.5, 0.0), names[3]: (1.0, 0.1)}


def test_what_decays_has_groups_of_its_own_also_while_the_decay_is_0():
    layer = nn.Linear(2, 2)
    groups = parameter_groups(layer.named_parameters(), lr=1.0, weight_decay=0.0, layer_decay=1.0, depth=1)
    assert [(group["names"], group["weight_decay"]) for group in groups] == [(["weight"], 0.0), (["bias"], 0.0)]


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_ends_at_its_final_value(schedule):
    factor = learning_rate_factor(110, warmup_steps=10, schedule=schedule, final=1e-3)
    assert factor(10) == 1
    assert factor(60) == pytest.approx(0.5005)
    assert factor(110) == pytest.approx(1e-3)
