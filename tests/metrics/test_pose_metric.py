"""The metric of top-down pose: known answers, the mean pose, parts, two processes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from s2kit.metrics.pose import PoseMetric, image_number
from s2kit.schemas import load_keypoint_set


def persons(count: int, points: int = 17, seed: int = 0) -> dict:
    """Persons of 100 x 200 pixels, each in an image of its own, all labelled, predicted without error."""
    generator = torch.Generator().manual_seed(seed)
    low = 300 * torch.rand(count, 1, 2, generator=generator)
    keypoints = low + torch.tensor([100.0, 200.0]) * torch.rand(count, points, 2, generator=generator)
    return {
        "predicted": torch.cat([keypoints, torch.full((count, points, 1), 0.9)], dim=-1),
        "keypoints": keypoints,
        "visibility": torch.full((count, points), 2),
        "boxes": torch.cat([low, low + torch.tensor([100.0, 200.0])], dim=1).flatten(1),
        "areas": torch.full((count,), 8000.0),
        "sides": torch.tensor([[150.0, 250.0]]).expand(count, 2),
        "images": [f"image{seed}_{i}" for i in range(count)],
    }


def metric_of(batch: dict, points: int = 17, **options) -> dict[str, float]:
    metric = PoseMetric(load_keypoint_set(points), **options)
    metric.update(**batch)
    return {name: value.item() for name, value in metric.compute().items()}


def test_perfect_predictions():
    results = metric_of(persons(6, 308), 308)
    whole = ["AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L"]
    parts = [f"{name}/{part}" for part in load_keypoint_set(308).groups for name in ("AP", "AR")]
    names = [*whole, *parts, "PCK", "OKS"]
    assert list(results) == names + [f"baseline_{name}" for name in names]
    assert {results[name] for name in names} - {100.0} == set() or math.isnan(results["AP_L"])
    assert math.isnan(results["AP_L"]) and results["AP_M"] == 100  # 8000 square pixels are medium
    assert results["baseline_PCK"] < 30


def test_oks_and_pck_of_known_errors():
    batch = persons(2)
    sigmas = torch.tensor(load_keypoint_set(17).sigmas)
    # The first person's keypoints at the distance of OKS exp(-1/2), the second's one keypoint just too far for PCK.
    batch["predicted"] = batch["predicted"].double()
    batch["predicted"][0, :, 1] += 2 * sigmas * math.sqrt(8000)
    batch["predicted"][1, 3, 0] += 0.0501 * 150
    batch["predicted"][1, 4, 0] += 0.0499 * 150
    results = metric_of(batch)
    second = [0.0, 0.0, 0.0, 0.0501 * 150, 0.0499 * 150] + 12 * [0.0]
    oks = np.mean([math.exp(-(d**2) / (2 * 8000 * (2 * s) ** 2)) for d, s in zip(second, sigmas.tolist())])
    assert results["OKS"] == pytest.approx(50 * (math.exp(-0.5) + oks), abs=1e-4)
    right = [1 + (2 * s * math.sqrt(8000) <= 0.05 * 250) for s in sigmas.tolist()]
    right[3] -= 1
    assert results["PCK"] == pytest.approx(100 * np.mean(right) / 2, abs=1e-4)


def test_unlabelled_keypoints_and_persons_do_not_count():
    batch = persons(3)
    batch["visibility"][0, 5] = batch["visibility"][2] = 0
    batch["predicted"][0, 5] += 500
    batch["predicted"][2, :, :2] -= 5000
    batch["images"][2] = batch["images"][1]
    results = metric_of(batch)
    assert results["OKS"] == results["PCK"] == 100
    assert results["AR"] == 100
    batch["visibility"][:] = 0
    assert all(math.isnan(value) for value in metric_of(batch).values())


def test_the_mean_pose_is_the_baseline():
    """Persons of one pose in boxes of any size are found by it without error; of two poses it is between them."""
    pose = torch.rand(17, 2, generator=torch.Generator().manual_seed(1))
    batch = persons(8)
    size = torch.linspace(40, 300, 8)[:, None, None] * torch.tensor([0.5, 1.0])
    low = batch["boxes"][:, None, :2]
    batch["boxes"] = torch.cat([low, low + size], dim=-1).flatten(1)
    batch["areas"] = size.prod(dim=-1)[:, 0]
    batch["sides"] = size[:, 0]
    batch["keypoints"] = low + size * pose
    results = metric_of(batch)
    assert results["baseline_AP"] == results["baseline_PCK"] == 100
    assert results["baseline_OKS"] == pytest.approx(100, abs=1e-3)
    batch["keypoints"][::2, :, 0] += 0.16 * size[::2, :, 0]
    results = metric_of(batch)
    assert results["baseline_PCK"] == 0
    assert "baseline_AP" not in metric_of(batch, baseline=False)


def test_doubles_in_an_image_are_suppressed():
    """Two labelled persons at one place: both predictions are of the better one."""
    batch = persons(2)
    for name in ("keypoints", "boxes"):
        batch[name][1] = batch[name][0]
    batch["images"] = ["a", "a"]
    batch["predicted"][1] = batch["predicted"][0]
    assert metric_of(batch)["AR"] == 50
    assert metric_of(batch, nms=None)["AR"] == 100


def test_predictions_that_are_not_finite_are_wrong():
    batch = persons(2)
    batch["predicted"][0] = math.nan
    results = metric_of(batch)
    assert results["OKS"] == results["PCK"] == 50
    assert results["AR"] == 50


def test_numbers_of_images_and_names():
    assert image_number(17) == 17
    assert image_number("a") == image_number("a") != image_number("b")
    assert -(2**63) <= image_number("picture.jpg") < 2**63


def test_errors():
    batch = persons(2)
    with pytest.raises(ValueError, match=r"2 persons with 308 keypoints \(keypoints_308\), got predicted \(2, 17, 3\)"):
        PoseMetric(load_keypoint_set(308)).update(**batch)
    batch["areas"][1] = 0
    with pytest.raises(ValueError, match="image 'image0_1': a person's area must be positive"):
        PoseMetric(load_keypoint_set(17)).update(**batch)


BATCHES = """
import json, torch
from s2kit.metrics.pose import PoseMetric
from s2kit.schemas import load_keypoint_set

def pooled(batches):
    metric = PoseMetric(load_keypoint_set(133))
    for batch in batches:
        generator = torch.Generator().manual_seed(batch)
        count = 1 + batch
        keypoints = 200 * torch.rand(count, 133, 2, generator=generator)
        noise = torch.rand(count, 1, 1, generator=generator) * torch.randn(count, 133, 2, generator=generator)
        scores = (4 * torch.rand(count, 1, 1, generator=generator)).round().expand(count, 133, 1) / 4
        metric.update(
            torch.cat([keypoints + 3 * noise, scores], dim=-1), keypoints,
            torch.randint(0, 3, (count, 133), generator=generator), torch.tensor([[0, 0, 200, 200]]).repeat(count, 1),
            3000 + 20000 * torch.rand(count, generator=generator), torch.full((count, 2), 250.0),
            [f"{batch}-{i // 2}" for i in range(count)],
        )
    return json.dumps({name: value.item() for name, value in metric.compute().items()})
"""
PROCESS = """
import sys, torch.distributed as dist
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
print(pooled(range(rank, 5, 2)))
dist.destroy_process_group()
"""


def test_two_processes_agree_with_one(tmp_path):
    """Five batches of different sizes, divided three to two; confidences tie."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BATCHES + PROCESS, str(rank), str(tmp_path / "store")],
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
    exec(BATCHES, scope)
    single = json.loads(scope["pooled"](range(5)))
    assert first == second == single
    assert 1 < single["AP"] < 99
    assert json.loads(scope["pooled"](range(0, 5, 2))) != single
