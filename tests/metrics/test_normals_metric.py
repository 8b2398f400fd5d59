"""Metrics of normals: the release's numbers (spec 10.4), pooling over batches and processes, the baseline."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from s2kit.metrics import ConstantNormalBaseline, NormalsMetric
from s2kit.metrics.normals import best_constant_normal, octahedral_cells

KEYS = ["mean", "median", "rmse", "within_5", "within_11.25", "within_22.5", "within_30"]


def wave(frequency: float, channels: int, height: int = 24, width: int = 18) -> torch.Tensor:
    i = torch.arange(2 * channels * height * width, dtype=torch.float64)
    return torch.sin(frequency * i).float().reshape(2, channels, height, width)


def tilted(degrees: list[float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Prediction, target (0, 0, 1) and mask of one row of pixels with these errors."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    prediction = torch.stack([angles.sin(), torch.zeros_like(angles), angles.cos()]).reshape(1, 3, 1, -1)
    target = torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1).expand(1, 3, 1, len(degrees))
    return prediction, target, torch.ones(1, 1, 1, len(degrees), dtype=torch.bool)


def test_published_numbers():
    metric = NormalsMetric()
    metric.update(wave(0.37, 3), wave(0.53, 3), wave(0.91, 1) > -0.3)
    results = metric.compute()
    expected = [92.990212, 97.25, 110.838962, 5.009634, 9.826590, 18.304432, 23.892100]
    assert list(results) == KEYS
    assert [value.item() for value in results.values()] == pytest.approx(expected, rel=1e-5)
    assert all(value.ndim == 0 and value.dtype == torch.float32 for value in results.values())


def test_known_angles():
    """Thresholds are strict, the median is its bin's centre, lengths do not matter."""
    prediction, target, valid = tilted([0.0, 4.0, 11.0, 22.4, 29.0, 179.9, 90.0])
    metric = NormalsMetric()
    metric.update(prediction * torch.linspace(0.1, 5, 7), target, valid)
    results = metric.compute()
    angles = torch.tensor([0.0, 4.0, 11.0, 22.4, 29.0, 179.9, 90.0], dtype=torch.float64)
    assert results["mean"].item() == pytest.approx(angles.mean().item(), abs=1e-4)
    assert results["rmse"].item() == pytest.approx(angles.square().mean().sqrt().item(), abs=1e-4)
    assert results["median"].item() == 22.25
    within = [results[key].item() for key in KEYS[3:]]
    assert within == pytest.approx([100 * n / 7 for n in (2, 3, 4, 5)])


def test_only_valid_pixels_count():
    prediction, target, valid = tilted([10.0, 90.0])
    valid[..., 1] = False
    prediction[..., 1] = math.nan
    metric = NormalsMetric()
    metric.update(prediction, target, valid)
    assert metric.compute()["mean"].item() == pytest.approx(10.0, abs=1e-4)


def test_zero_vectors_are_90_degrees_off():
    prediction, target, valid = tilted([0.0])
    metric = NormalsMetric()
    metric.update(torch.zeros_like(prediction), target, valid)
    assert metric.compute()["mean"].item() == pytest.approx(90.0)


def test_pooled_over_pixels_not_over_images():
    metric = NormalsMetric()
    for degrees in ([10.0], [40.0] * 3):
        metric.update(*tilted(degrees))
    assert metric.compute()["mean"].item() == pytest.approx(32.5, abs=1e-4)
    metric.reset()
    metric.update(*tilted([20.0]))
    assert metric.compute()["mean"].item() == pytest.approx(20.0, abs=1e-4)


def test_nothing_is_nan_and_nan_is_not_hidden():
    metric = NormalsMetric()
    prediction, target, valid = tilted([10.0, 20.0])
    metric.update(prediction, target, torch.zeros_like(valid))
    assert all(value.isnan() for value in metric.compute().values())
    metric.reset()
    prediction[0, 0, 0, 1] = math.nan
    metric.update(prediction, target, valid)
    assert all(value.isnan() for value in metric.compute().values())


def test_sums_stay_exact_for_a_billion_pixels():
    """Adding one pixel to 10^10 others changes the sums by that pixel, whatever dtype the module was cast to."""
    metric = NormalsMetric()
    torch.nn.Module().add_module("metric", metric)
    metric.update(*tilted([50.0] * 1000))
    for name in ("count", "angle_sum", "square_sum", "histogram", "below"):
        setattr(metric, name, getattr(metric, name) * 10**7)
    before = metric.angle_sum.clone()
    parent = torch.nn.ModuleList([metric]).to(torch.bfloat16)
    metric = parent[0]
    metric.update(*tilted([60.0]))
    assert metric.count.item() == 10**10 + 1
    assert (metric.angle_sum - before).item() * 2.0**-20 == pytest.approx(60.0, abs=1e-5)
    results = metric.compute()
    assert results["mean"].item() == pytest.approx(50.0, rel=1e-6)
    assert results["rmse"].item() == pytest.approx(50.0, rel=1e-6)


def test_sizes_must_agree():
    prediction, target, valid = tilted([1.0, 2.0])
    with pytest.raises(ValueError, match=r"prediction \(1, 3, 1, 1\) and target \(1, 3, 1, 2\) must have one size"):
        NormalsMetric().update(prediction[..., :1], target, valid)
    with pytest.raises(ValueError, match=r"valid \(B, 1, H, W\) of one size, got \(1, 3, 1, 2\) and \(1, 1, 2\)"):
        NormalsMetric().update(prediction, target, valid[0])
    with pytest.raises(ValueError, match="of one size"):
        ConstantNormalBaseline().update(target, valid[..., :1])


RANDOM_BATCHES = """
import json, torch
from s2kit.metrics import ConstantNormalBaseline, NormalsMetric

def pooled(batches):
    metrics = NormalsMetric(), ConstantNormalBaseline()
    for batch in batches:
        generator = torch.Generator().manual_seed(batch)
        prediction, target = torch.randn(2, 1 + batch, 3, 8, 7, generator=generator)
        target[:, 2] += 1
        valid = torch.rand(1 + batch, 1, 8, 7, generator=generator) > 0.3
        metrics[0].update(prediction, target, valid)
        metrics[1].update(target, valid)
    return json.dumps([{key: value.tolist() for key, value in metric.compute().items()} for metric in metrics])
"""
PROCESS = """
import sys, torch.distributed as dist
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
print(pooled(range(rank, 5, 2)))
dist.destroy_process_group()
"""


def test_two_processes_agree_with_one(tmp_path):
    """Five batches of different sizes, divided three to two."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANDOM_BATCHES + PROCESS, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    first, second = (json.loads(output.splitlines()[-1]) for output in outputs)
    scope: dict = {}
    exec(RANDOM_BATCHES, scope)
    single = json.loads(scope["pooled"](range(5)))
    assert first == second == single
    assert json.loads(scope["pooled"](range(0, 5, 2))) != single


def brute_force(vectors: torch.Tensor) -> float:
    """Least mean angle in degrees over 40,000 directions and then over a finer set about the best of them."""
    i = torch.arange(40_000, dtype=torch.float64) + 0.5
    z, turn = 1 - 2 * i / len(i), math.pi * (1 + 5**0.5) * i
    radius = (1 - z**2).sqrt()
    candidates = torch.stack([radius * turn.cos(), radius * turn.sin(), z], dim=-1)

    def errors(candidates):
        return torch.acos((candidates @ vectors.T).clamp(-1, 1)).mean(dim=1).rad2deg()

    best = candidates[errors(candidates).argmin()]
    noise = torch.randn(20_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return errors(F.normalize(best + 0.01 * noise, dim=1)).min().item()


@pytest.mark.parametrize(
    ("centre", "spread"),
    [((0.0, 0.0, 1.0), 0.4), ((0.6, -0.3, 0.7), 1.0), ((0.0, 0.0, 0.0), 1.0), ((-1.0, 0.1, -0.2), 0.1)],
)
def test_best_constant_against_brute_force(centre, spread):
    generator = torch.Generator().manual_seed(5)
    vectors = torch.tensor(centre) + spread * torch.randn(400, 3, generator=generator)
    unit = F.normalize(vectors.double(), dim=1)
    metric = ConstantNormalBaseline()
    metric.update(vectors.T.reshape(1, 3, 20, 20), torch.ones(1, 1, 20, 20, dtype=torch.bool))
    result = metric.compute()
    expected = brute_force(unit)
    assert result["mean"].item() == pytest.approx(expected, abs=0.05)
    normal = result["normal"].double()
    assert normal.norm().item() == pytest.approx(1, abs=1e-6)
    reached = torch.acos((unit @ normal).clamp(-1, 1)).mean().rad2deg().item()
    assert reached == pytest.approx(expected, abs=0.05)


def test_baseline_is_the_median_not_the_mean():
    """Two thirds of the pixels point one way: that is the best constant, and the error is the rest's."""
    prediction, _, valid = tilted([0.0] * 20 + [60.0] * 10)
    metric = ConstantNormalBaseline()
    metric.update(prediction, valid)
    result = metric.compute()
    assert result["mean"].item() == pytest.approx(20.0, abs=0.01)
    torch.testing.assert_close(result["normal"], torch.tensor([0.0, 0.0, 1.0]), rtol=0, atol=1e-3)


def test_baseline_has_the_best_of_several_minima():
    """Clusters on opposite sides: the larger one wins, and the metric agrees with itself."""
    directions = F.normalize(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.1, -1.0], [1.0, 0.0, 0.1]]).double(), dim=1)
    normal, angle = best_constant_normal(directions, torch.tensor([0.3, 0.6, 0.1], dtype=torch.float64))
    torch.testing.assert_close(normal, directions[1], rtol=0, atol=1e-3)
    expected = 0.3 * math.acos(directions[0] @ directions[1]) + 0.1 * math.acos(directions[2] @ directions[1])
    assert angle.item() == pytest.approx(expected, abs=1e-4)


def test_baseline_without_pixels_and_with_bad_targets():
    metric = ConstantNormalBaseline()
    target = torch.zeros(1, 3, 1, 2)
    target[0, 2, 0, 0] = 1
    metric.update(target, torch.zeros(1, 1, 1, 2, dtype=torch.bool))
    assert metric.compute()["mean"].isnan()
    with pytest.raises(ValueError, match="1 valid target normals are zero or not finite"):
        metric.update(target, torch.ones(1, 1, 1, 2, dtype=torch.bool))


def test_octahedral_cells_are_small_and_cover_the_sphere():
    """Vectors of one cell lie close together, and equal directions share a cell."""
    vectors = F.normalize(torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)).double(), dim=1)
    cells = octahedral_cells(vectors, 16)
    assert cells.unique().numel() == 256
    for cell in range(256):
        inside = vectors[cells == cell]
        assert torch.acos((inside @ inside.T).clamp(-1, 1)).max().rad2deg() < 29
    assert torch.equal(octahedral_cells(3 * vectors, 16), cells)
