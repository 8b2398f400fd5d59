"""Rotary embedding: the published rule and its checksums (spec 1.6), caching and augmentations."""

from __future__ import annotations

import copy
import hashlib
import math

import pytest
import torch

from s2kit.models.rope import CACHED_GRIDS, RotaryEmbedding, RotaryTables, rotate

CPU = torch.device("cpu")
CHECKSUMS = {
    64: ("15d28b627ca509fa5339bf80375fb47a36292e33e17f52d6db45cf572df1c372", 5.29296875, 129440.34375),
    80: ("8fc1eedf9ea342edcf5843b3a8f5e1301df7e91b2645f3656ee16a7d08447ffa", 2.8984375, 163237.937011719),
    76: ("a1e1584ad83dea8448ca09585f1e6bff1e38dcf14cbbccf60950e769e864a0d3", 5.033203125, 154899.34375),
}
PERIODS_64 = [1, 1.3359375, 1.78125, 2.375, 3.15625, 4.21875, 5.625, 7.5, 10, 13.3125, 17.75, 23.75]
PERIODS_64 += [31.625, 42.25, 56.25, 75]


@pytest.mark.parametrize("head_dim", CHECKSUMS)
def test_table_checksums(head_dim):
    sin, cos = RotaryEmbedding(head_dim).sin_cos(64, 48)
    digest = hashlib.sha256()
    for table in (sin, cos):
        assert table.shape == (3072, head_dim)
        digest.update(table.contiguous().view(torch.int16).numpy().tobytes())
    checksum, sin_sum, cos_sum = CHECKSUMS[head_dim]
    assert digest.hexdigest() == checksum
    assert float(sin.double().sum()) == pytest.approx(sin_sum)
    assert float(cos.double().sum()) == pytest.approx(cos_sum)


def test_periods_and_coordinates():
    rope = RotaryEmbedding(64)
    assert rope.periods.tolist() == PERIODS_64
    assert rope._axis(64, 64)[:2].tolist() == [-0.984375, -0.953125]
    columns = [-0.98046875, -0.9375, -0.89453125, -0.85546875, -0.8125, -0.76953125]
    assert rope._axis(48, 48)[:6].tolist() == columns


def test_periods_from_their_range():
    rope = RotaryEmbedding(16, "float32", base=None, min_period=2.0, max_period=54.0)
    torch.testing.assert_close(rope.periods, torch.tensor([2.0, 6.0, 18.0, 54.0]))


@pytest.mark.parametrize(
    "options",
    [
        {"base": None},
        {"base": 100.0, "min_period": 1.0, "max_period": 9.0},
        {"base": None, "min_period": 1.0},
        {"base": 100.0, "min_period": 1.0},
        {"dtype": "bf16"},
        {"normalize": "mean"},
        {"jitter": 0.5},
        {"rescale": 0.0},
    ],
)
def test_wrong_options(options):
    with pytest.raises(ValueError):
        RotaryEmbedding(64, **options)
    with pytest.raises(ValueError, match="multiple of 4"):
        RotaryEmbedding(66)


@pytest.mark.parametrize(("normalize", "rows", "columns"), [("min", 2, 2), ("max", 4, 4), ("separate", 4, 2)])
def test_normalize(normalize, rows, columns):
    """Angles of the first period on both axes: 2 pi (2 (i + 0.5) / divisor - 1)."""
    rope = RotaryEmbedding(4, "float32", normalize=normalize)
    sin, _ = rope.sin_cos(4, 2)
    sin = sin.reshape(4, 2, 4)
    for i in range(4):
        for j in range(2):
            expected = [math.sin(2 * math.pi * (2 * (k + 0.5) / n - 1)) for k, n in ((i, rows), (j, columns))]
            torch.testing.assert_close(sin[i, j], torch.tensor(expected * 2), rtol=0, atol=1e-5)


def test_rotation_formula_and_prefix():
    """Element i pairs with i + d / 2, each product and sum rounded to bfloat16; prefix tokens are only rounded."""
    torch.manual_seed(0)
    rope = RotaryEmbedding(64)
    x = torch.randn(2, 9 + 12, 3, 64)
    rotated = rotate(x, rope(4, 3, 9, CPU))
    sin, cos = (table[:, None] for table in rope.sin_cos(4, 3))
    low = x.bfloat16()
    first, second = low[:, 9:].chunk(2, dim=-1)
    expected = torch.cat(
        [
            first * cos[..., :32] - second * sin[..., :32],
            second * cos[..., 32:] + first * sin[..., 32:],
        ],
        dim=-1,
    )
    assert rotated.dtype == torch.bfloat16
    assert torch.equal(rotated[:, :9], low[:, :9])
    assert torch.equal(rotated[:, 9:], expected)


def test_products_depend_on_offsets_only():
    torch.manual_seed(0)
    rope = RotaryEmbedding(32, "float32")
    q, k = torch.randn(2, 1, 1, 1, 32).expand(2, 1, 30, 1, 32)
    tables = rope(5, 6, 0, CPU)
    products = (rotate(q, tables)[0, :, 0] @ rotate(k, tables)[0, :, 0].T).reshape(5, 6, 5, 6)
    torch.testing.assert_close(products[0, 0, 2, 3], products[2, 2, 4, 5])
    assert abs(products[0, 0, 2, 3] - products[0, 0, 3, 2]) > 1e-3


def test_tables_are_cached_and_bounded():
    rope = RotaryEmbedding(16)
    first = rope(4, 3, 9, CPU)
    assert rope(4, 3, 9, CPU) is first
    assert rope(3, 4, 9, CPU) is not first
    for height in range(1, CACHED_GRIDS + 10):
        rope(height, 2, 9, CPU)
    assert len(rope._cache) == CACHED_GRIDS


def test_tables_made_in_inference_mode_can_train():
    """A validation pass under inference mode fills the cache that the next training step reads."""
    rope = RotaryEmbedding(16, "float32")
    with torch.inference_mode():
        rope(2, 2, 1, CPU)
    x = torch.randn(1, 5, 1, 16, requires_grad=True)
    rotate(x, rope(2, 2, 1, CPU)).sum().backward()
    assert x.grad is not None


def test_periods_of_another_rule_are_refused():
    state = RotaryEmbedding(64, base=1000.0).state_dict()
    with pytest.raises(RuntimeError, match=r"periods: the file was made with periods .*base 100"):
        RotaryEmbedding(64).load_state_dict(state)
    widened = {"periods": RotaryEmbedding(64).periods.float()}
    model = RotaryEmbedding(64)
    model.load_state_dict(widened)
    assert model.periods.tolist() == PERIODS_64
    RotaryEmbedding(64, "float32").load_state_dict(widened)


def test_unfilled_memory_gets_the_rule():
    with torch.device("meta"):
        rope = RotaryEmbedding(64)
    assert rope.periods.is_meta
    assert rope.to_empty(device="cpu").periods.tolist() == PERIODS_64


def _coordinates(rope: RotaryEmbedding) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column coordinates of a 2 x 2 grid's far corner, read back from the angles of long periods."""
    sin, _ = rope.sin_cos(2, 2, augment=True)
    angles = sin.asin() * 1000.0 / (2 * math.pi)
    return angles[3, 0], angles[3, 1]


def _drawn(**options) -> torch.Tensor:
    torch.manual_seed(0)
    rope = RotaryEmbedding(4, "float32", base=None, min_period=1000.0, max_period=1000.0, **options)
    return torch.stack([torch.stack(_coordinates(rope)) for _ in range(200)])


def test_shift_jitter_and_rescale():
    """Undisturbed, both coordinates of the corner are 0.5."""
    torch.testing.assert_close(_drawn(), torch.full((200, 2), 0.5), rtol=1e-3, atol=0)
    shifts = _drawn(shift=0.2) - 0.5
    assert 0.18 < shifts.abs().max() < 0.201
    assert shifts.mean().abs() < 0.03
    assert (shifts[:, 0] - shifts[:, 1]).abs().max() > 0.1
    factors = (_drawn(jitter=2.0) / 0.5).log2()
    assert 0.9 < factors.abs().max() < 1.001
    assert (factors[:, 0] - factors[:, 1]).abs().max() > 0.5
    factors = (_drawn(rescale=2.0) / 0.5).log2()
    assert 0.9 < factors.abs().max() < 1.001
    torch.testing.assert_close(factors[:, 0], factors[:, 1], rtol=1e-3, atol=1e-4)


def test_augmentation_only_while_training():
    rope = RotaryEmbedding(16, shift=0.5)
    plain = RotaryEmbedding(16)(3, 3, 1, CPU)
    rope.train()
    assert not torch.equal(rope(3, 3, 1, CPU).cos, rope(3, 3, 1, CPU).cos)
    assert torch.equal(rope.eval()(3, 3, 1, CPU).cos, plain.cos)


def test_copies():
    rope = RotaryEmbedding(16)
    rope(2, 2, 1, CPU)
    assert torch.equal(copy.deepcopy(rope)(2, 2, 1, CPU).sin, rope(2, 2, 1, CPU).sin)
    assert isinstance(rope(2, 2, 1, CPU), RotaryTables)
