"""Pooled sums: exact for any number of values, alike on one rank and on two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from s2kit.metrics.pooled import PooledMetric, from_fixed, to_fixed

RANDOM_BATCHES = """
import json, torch
from s2kit import metrics

def draw(number):
    generator = torch.Generator().manual_seed(number)
    shape = 1 + number, 3, 20, 14
    first, second = torch.rand(2, *shape, generator=generator)
    valid = torch.rand(shape[0], 1, *shape[2:], generator=generator) > 0.3
    labels = (valid * 4 * first[:, :1]).long()[:, 0]
    return first, second, valid, labels, second[:, 0, 0, 0] + 0.5

def pooled(batches):
    kinds = {
        "albedo": metrics.AlbedoMetric(),
        "matting": metrics.MattingMetric(),
        "pointmap": metrics.PointmapMetric(),
        "mean": metrics.MeanPointmapBaseline(),
        "segmentation": metrics.SegmentationMetric(("background", "skin", "hair", "hat")),
    }
    for number in batches:
        first, second, valid, labels, scale = draw(number)
        kinds["albedo"].update(first, second, valid)
        kinds["matting"].update(torch.cat([first, first[:, :1]], dim=1), second[:, :1], second, valid)
        kinds["pointmap"].update(first, scale, second, scale.flip(0), valid)
        kinds["mean"].update(second, scale, valid)
        kinds["segmentation"].update(labels.roll(1, dims=-1), labels)
    values = {kind: {n: v.item() for n, v in metric.compute().items()} for kind, metric in kinds.items()}
    return json.dumps(values)
"""
PROCESS = """
import sys, torch.distributed as dist
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
for shares in json.loads(sys.argv[3]):
    print(pooled(shares[rank]))
dist.destroy_process_group()
"""


#: Batches of different sizes divided three to two, and all on one rank.
SHARES = [[[0, 2, 4], [1, 3]], [[0, 1, 2, 3, 4], []]]


def test_two_processes_agree_with_one(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANDOM_BATCHES + PROCESS, str(rank), str(tmp_path / "store"), json.dumps(SHARES)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    lines = [output.splitlines()[-len(SHARES) :] for output in outputs]
    scope: dict = {}
    exec(RANDOM_BATCHES, scope)
    single = json.loads(scope["pooled"](range(5)))
    assert json.loads(scope["pooled"]([0, 2, 4]))["albedo"] != single["albedo"]
    mean = single.pop("mean")
    for first, second in zip(*lines):
        assert first == second
        result = json.loads(first)
        # The samples behind the mean pointmap are joined in another order.
        assert result.pop("mean") == pytest.approx(mean, rel=1e-6)
        assert result == single


def test_fixed_point_keeps_twelve_digits_after_the_point():
    values = torch.tensor([0.0, 1e-9, -1e-9, 3.25, -3.75, 123456.789012, 1e15], dtype=torch.float64)
    torch.testing.assert_close(from_fixed(to_fixed(values)), values, rtol=0, atol=1e-12)
    assert from_fixed(to_fixed(torch.tensor(1e300, dtype=torch.float64))).item() == 2.0**52


class Mean(PooledMetric):
    sums: ClassVar[dict[str, tuple[int, ...]]] = {"count": (), "value": (2,)}

    def update(self, values: torch.Tensor) -> None:
        self.add(count=torch.ones(values.shape[1]), value=values)

    def compute(self) -> dict[str, torch.Tensor]:
        first, second = self.total("value") / self.total("count")
        return self.results({"first": first, "second": second}, self.total("count"))


def test_one_value_still_counts_beside_ten_billion_whatever_the_module_was_cast_to():
    metric = Mean()
    metric.update(torch.tensor([[50.0] * 1000, [1e-7] * 1000], dtype=torch.float64))
    for name in ("count", "value"):
        setattr(metric, name, getattr(metric, name) * 10**7)
    metric = torch.nn.ModuleList([metric]).to(torch.bfloat16)[0]
    before = metric.total("value")
    metric.update(torch.tensor([[60.0], [0.25]], dtype=torch.float64))
    assert metric.total("count").item() == 10**10 + 1
    assert (metric.total("value") - before).tolist() == pytest.approx([60, 0.25], abs=1e-4)
    results = metric.compute()
    assert results["first"].item() == pytest.approx(50, rel=1e-6)
    assert results["second"].item() == pytest.approx(1e-7, rel=1e-3)
    metric.update(torch.tensor([[float("nan")], [1.0]]))
    assert all(value.isnan() for value in metric.compute().values())
