"""Metrics of albedo: the release's numbers (spec 10.4), against plain loops, the mean colour, what is never hidden."""

import math

import numpy as np
import pytest
import torch

from s2kit.metrics import AlbedoMetric
from s2kit.metrics.albedo import masked_ssim


@pytest.fixture
def maps(wave) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    prediction, target = (0.5 + 0.4 * wave(f, 2, 3, 24, 18) for f in (0.37, 0.53))
    return prediction, target, wave(0.91, 2, 1, 24, 18) > -0.3


def score(*maps) -> dict[str, float]:
    metric = AlbedoMetric()
    metric.update(*maps)
    return {name: value.item() for name, value in metric.compute().items()}


def test_published_numbers(maps):
    expected = {"mae": 0.3384918, "rmse": 0.4128863, "psnr": 7.6833908, "ssim": -0.0484968, "gradient": 0.2610702}
    results = score(*maps)
    assert {name: results[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def test_ssim_window_by_window(maps):
    prediction, target, valid = (m.double().numpy() for m in maps)
    x = np.arange(-5, 6)
    window = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 1.5**2))
    window /= window.sum()
    pad = ((0, 0), (0, 0), (5, 5), (5, 5))
    prediction, target, valid = (np.pad(m, pad) for m in (prediction, target, valid))
    scores = []
    for b in range(2):
        for i in range(24):
            for j in range(18):
                weight = window * valid[b, 0, i : i + 11, j : j + 11]
                if weight.sum() <= 0.5:
                    continue
                weight = weight / weight.sum()
                channels = []
                for c in range(3):
                    p, t = (m[b, c, i : i + 11, j : j + 11] for m in (prediction, target))
                    mp, mt = (weight * p).sum(), (weight * t).sum()
                    vp, vt = (weight * (p - mp) ** 2).sum(), (weight * (t - mt) ** 2).sum()
                    cov = (weight * (p - mp) * (t - mt)).sum()
                    channels.append(
                        (2 * mp * mt + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mt**2 + 1e-4) * (vp + vt + 9e-4))
                    )
                scores.append(np.mean(channels))
    result = masked_ssim(*maps)
    assert len(result) == len(scores)
    np.testing.assert_allclose(result.numpy(), scores, atol=1e-4)


def test_a_perfect_prediction(maps):
    _, target, valid = maps
    results = score(target, target, valid)
    assert (results["mae"], results["rmse"], results["gradient"], results["psnr"]) == (0, 0, 0, math.inf)
    assert results["ssim"] == pytest.approx(1, abs=1e-6)


def test_the_baseline_is_the_mean_colour(maps):
    _, target, valid = maps
    target = (target * 255).round() / 255
    colour = target.permute(1, 0, 2, 3)[:, valid[:, 0]].mean(dim=1)
    constant = score(colour.view(1, 3, 1, 1).expand_as(target), target, valid)
    results = score(target, target, valid)
    for name in ("mae", "rmse", "psnr", "gradient"):
        assert results[f"baseline_{name}"] == pytest.approx(constant[name], rel=1e-5)
    metric = AlbedoMetric()
    metric.update(target, target, valid)
    torch.testing.assert_close(metric.mean_colour(), colour)


def test_mixed_precision_does_not_reach_the_metric(maps):
    expected = score(*maps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert score(*maps) == expected


def test_only_valid_pixels_count_and_all_are_pooled(maps):
    prediction, target, valid = maps
    whole = score(prediction, target, valid)
    outside = [torch.where(valid, m, math.nan) for m in (prediction, target)]
    assert score(*outside, valid) == whole
    metric = AlbedoMetric()
    for i in range(2):
        metric.update(prediction[i : i + 1], target[i : i + 1], valid[i : i + 1])
    parts = {name: value.item() for name, value in metric.compute().items()}
    assert parts == pytest.approx(whole, rel=1e-5)


def test_nothing_is_nan_and_nan_is_not_hidden(maps):
    prediction, target, valid = maps
    assert all(math.isnan(value) for value in score(prediction, target, valid & False).values())
    for which in (prediction, target):
        b, _, i, j = valid.nonzero()[0].tolist()
        which[b, 2, i, j] = math.nan
        assert all(math.isnan(value) for value in score(prediction, target, valid).values())


def test_sizes_must_agree(maps):
    prediction, target, valid = maps
    with pytest.raises(ValueError, match=r"prediction \(2, 3, 24, 17\) and target \(2, 3, 24, 18\)"):
        score(prediction[..., 1:], target, valid)
    with pytest.raises(ValueError, match=r"valid \(B, 1, H, W\), got \(2, 24, 18\)"):
        score(prediction, target, valid[:, 0])
