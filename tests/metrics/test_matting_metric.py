"""Metrics of matting: the field's four errors against plain NumPy, known cases, and the box that is all foreground."""

import math
from collections import deque

import numpy as np
import pytest
import torch

from s2kit.metrics import MattingMetric
from s2kit.metrics.matting import box_alpha, connection_levels, connectivity_error, gradient_length


@pytest.fixture
def alphas() -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth (2, 30, 26), with soft rims, holes and a detached part; steps of 1 / 255."""
    y, x = np.mgrid[:30, :26]
    rng = np.random.default_rng(0)
    truth = np.stack([np.clip((9 - np.hypot(y - cy, x - 12)) / 4 + 0.5, 0, 1) for cy in (13, 16)])
    prediction = np.clip(truth + rng.normal(0, 0.15, truth.shape), 0, 1)
    prediction[0, 2:6, 18:24] = 0.85
    prediction[1, 14:17, 10:13] = 0.2
    return tuple(np.round(255 * m) / 255 for m in (prediction, truth))


def planes(maps: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(maps)[:, None].float()


def score(prediction, alpha, *labels) -> dict[str, float]:
    metric = MattingMetric()
    metric.update(prediction, alpha, *labels)
    return {name: value.item() for name, value in metric.compute().items()}


def test_sad_mse_and_the_releases_error(alphas):
    results = score(*map(planes, alphas))
    error = alphas[0] - alphas[1]
    assert results["sad"] == pytest.approx(np.abs(error).sum() / 2 / 1000, rel=1e-5)
    assert results["mse"] == pytest.approx((error**2).mean() * 1000, rel=1e-5)
    assert results["alpha_mae"] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    assert "foreground_l1" not in results


def gradient_by_loops(alpha: np.ndarray) -> np.ndarray:
    """Gaussian gradient, sigma 1.4, by the sum over a 9 x 9 window of the map with its border repeated."""
    x = np.arange(-4, 5)
    smooth = np.exp(-(x**2) / (2 * 1.4**2))
    kernel = smooth[:, None] * (-x * smooth)[None]
    kernel /= np.sqrt((kernel**2).sum())
    padded = np.pad(alpha, 4, mode="edge")
    across, down = np.zeros(alpha.shape), np.zeros(alpha.shape)
    for i in range(9):
        for j in range(9):
            part = padded[i : i + alpha.shape[0], j : j + alpha.shape[1]]
            across += kernel[i, j] * part
            down += kernel[j, i] * part
    return np.sqrt(across**2 + down**2)


def test_gradient_error(alphas):
    for maps in zip(*alphas):
        for alpha in maps:
            np.testing.assert_allclose(gradient_length(alpha), gradient_by_loops(alpha), atol=1e-10)
    expected = sum(((gradient_by_loops(p) - gradient_by_loops(t)) ** 2).sum() for p, t in zip(*alphas)) / 2
    assert score(*map(planes, alphas))["gradient"] == pytest.approx(expected / 1000, rel=1e-5)


def largest_region(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected region of a mask, by breadth-first search."""
    best: list[tuple[int, int]] = []
    seen = ~mask
    for start in zip(*np.nonzero(mask)):
        if seen[start]:
            continue
        region, queue = [], deque([start])
        seen[start] = True
        while queue:
            y, x = queue.popleft()
            region.append((y, x))
            for ny, nx in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= ny < mask.shape[0] and 0 <= nx < mask.shape[1] and not seen[ny, nx]:
                    seen[ny, nx] = True
                    queue.append((ny, nx))
        if len(region) > len(best):
            best = region
    result = np.zeros_like(mask)
    result[tuple(np.array(best).T)] = True
    return result


def test_connectivity_error(alphas):
    total = 0.0
    for prediction, truth in zip(*alphas):
        levels = np.full(truth.shape, np.nan)
        for step in range(1, 11):
            outside = ~largest_region((prediction >= step / 10) & (truth >= step / 10))
            levels[outside & np.isnan(levels)] = (step - 1) / 10
        levels[np.isnan(levels)] = 1
        np.testing.assert_allclose(connection_levels(prediction, truth), levels)
        phi = [1 - np.where(m - levels >= 0.15, m - levels, 0) for m in (prediction, truth)]
        total += np.abs(phi[0] - phi[1]).sum()
    assert score(*map(planes, alphas))["connectivity"] == pytest.approx(total / 2 / 1000, rel=1e-5)


def test_a_detached_part_costs_its_area():
    truth = np.zeros((20, 20))
    truth[5:15, 3:10] = 1
    prediction = truth.copy()
    prediction[5:9, 14:18] = 1
    assert connectivity_error(prediction, truth) == pytest.approx(16)
    assert connectivity_error(truth, truth) == 0
    # Nothing in common, or nothing at all.
    assert connectivity_error(1 - truth, truth) == pytest.approx(400)
    assert connectivity_error(np.zeros((4, 4)), np.zeros((4, 4))) == 0


def test_foreground_where_it_is_known(alphas):
    alpha = planes(alphas[1])
    prediction = torch.cat([torch.full((2, 3, 30, 26), 0.25), planes(alphas[0])], dim=1)
    valid = alpha == 1
    foreground = torch.where(valid, 0.75, math.nan).expand(-1, 3, -1, -1)
    results = score(prediction, alpha, foreground, valid)
    assert results["foreground_l1"] == pytest.approx(0.5)
    assert results["sad"] == score(planes(alphas[0]), alpha)["sad"]


def test_pictures_of_other_sizes_are_averaged(alphas):
    metric = MattingMetric()
    small = planes(alphas[0][:, :15]), planes(alphas[1][:, :15])
    metric.update(*map(planes, alphas))
    metric.update(*small)
    whole, part = score(*map(planes, alphas)), score(*small)
    for name in ("sad", "mse", "gradient", "connectivity"):
        assert metric.compute()[name].item() == pytest.approx((whole[name] + part[name]) / 2, rel=1e-6)
    assert metric.compute()["alpha_mae"].item() == pytest.approx((2 * whole["alpha_mae"] + part["alpha_mae"]) / 3)


def test_the_box():
    alpha = torch.zeros(2, 1, 8, 9)
    alpha[0, 0, 2, 3], alpha[0, 0, 5, 6] = 0.1, 1.0
    expected = torch.zeros(2, 1, 8, 9)
    expected[0, 0, 2:6, 3:7] = 1
    assert torch.equal(box_alpha(alpha), expected)


def test_nothing_is_nan_and_nan_is_not_hidden(alphas):
    assert all(value.isnan() for value in MattingMetric().compute().values())
    prediction = planes(alphas[0])
    prediction[1, 0, 3, 4] = math.nan
    assert all(math.isnan(value) for value in score(prediction, planes(alphas[1])).values())


def test_sizes_must_agree(alphas):
    with pytest.raises(ValueError, match=r"prediction \(2, 1, 30, 25\) must be .* alpha \(2, 1, 30, 26\)"):
        score(planes(alphas[0])[..., 1:], planes(alphas[1]))
