"""The backbone against the release: keys, counts, and outputs of the tiny model (spec 1.2, 1.8, 10.1)."""

from __future__ import annotations

import pytest
import torch

from s2kit.models import SAPIENS2, create_backbone

PARAMETERS = {
    "sapiens2_0.1b": 113_993_472,
    "sapiens2_0.4b": 395_450_368,
    "sapiens2_0.8b": 814_283_520,
    "sapiens2_1b": 1_455_474_176,
    "sapiens2_1b_4k": 1_606_588_928,
    "sapiens2_5b": 5_066_902_976,
}
ENTRIES = {
    "sapiens2_0.1b": 210,
    "sapiens2_0.4b": 414,
    "sapiens2_0.8b": 550,
    "sapiens2_1b": 686,
    "sapiens2_1b_4k": 744,
    "sapiens2_5b": 958,
}
OUTPUTS = {"plain": ((64, 48), 6.442270, 1150.701222), "plain_res": ((96, 80), -88.409153, 2225.207679)}


@pytest.mark.parametrize("name", PARAMETERS)
def test_keys_shapes_dtypes_and_order(name, backbone_keys, describe):
    with torch.device("meta"):
        model = create_backbone(name)
    assert describe(model) == backbone_keys[name]
    assert len(backbone_keys[name]) == ENTRIES[name]
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_nano_is_small_and_the_table_is_complete():
    model = create_backbone("sapiens2_nano")
    assert 4_000_000 < sum(p.numel() for p in model.parameters()) < 6_000_000
    assert set(SAPIENS2) == {*PARAMETERS, "sapiens2_nano"}


@pytest.mark.parametrize("case", OUTPUTS)
def test_tiny_outputs(case, make_tiny, wave_image, published_outputs):
    size, total, absolute = OUTPUTS[case]
    model = make_tiny()
    assert [block.attn.num_kv_heads for block in model.blocks] == [4] * 8 + [2] * 2 + [4] * 8
    with torch.no_grad():
        tokens = model.forward_tokens(wave_image(*size))
    torch.testing.assert_close(tokens, published_outputs[case], rtol=0, atol=1e-3)
    assert float(tokens.double().sum()) == pytest.approx(total, abs=0.05)
    assert float(tokens.double().abs().sum()) == pytest.approx(absolute, rel=1e-4)


def test_float32_rope_is_another_model(make_tiny, wave_image, published_outputs):
    """The tolerance above can tell the two rules apart."""
    with torch.no_grad():
        tokens = make_tiny(rope_dtype="float32").forward_tokens(wave_image(64, 48))
    assert (tokens - published_outputs["plain"]).abs().max() > 5e-3


@pytest.mark.parametrize("cast", ["float", "double", "half", "bfloat16", "to_float16"])
def test_casting_the_module_does_not_touch_the_rotary_rule(cast, make_tiny, wave_image):
    model = make_tiny()
    periods = model.rope_embed.periods.clone()
    tables = model.rope_embed(4, 3, 9, torch.device("cpu"))
    model._modules["rope_embed"]._cache.clear()
    _ = model.to(torch.float16) if cast == "to_float16" else getattr(model, cast)()
    assert model.rope_embed.periods.dtype == torch.bfloat16
    assert torch.equal(model.rope_embed.periods, periods)
    for before, after in zip(tables, model.rope_embed(4, 3, 9, torch.device("cpu"))):
        assert after.dtype == torch.bfloat16
        assert torch.equal(before, after)


def test_outputs_survive_float_and_double(make_tiny, wave_image, published_outputs):
    model = make_tiny().float()
    with torch.no_grad():
        tokens = model.forward_tokens(wave_image(64, 48))
        wide = model.double().forward_tokens(wave_image(64, 48).double())
    torch.testing.assert_close(tokens, published_outputs["plain"], rtol=0, atol=1e-3)
    torch.testing.assert_close(wide.float(), published_outputs["plain"], rtol=0, atol=3e-3)


def test_autocast_keeps_the_tables(make_tiny, wave_image, published_outputs):
    model = make_tiny()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tokens = model.forward_tokens(wave_image(64, 48))
        cos = model.rope_embed(4, 3, 9, torch.device("cpu")).cos
    fresh = make_tiny().rope_embed(4, 3, 9, torch.device("cpu")).cos
    assert torch.equal(cos, fresh)
    expected = published_outputs["plain"]
    assert (tokens.float() - expected).norm() < 0.04 * expected.norm()
