"""Metrics of pointmaps: the release's numbers (spec 10.4), alignment against least squares, the mean pointmap."""

import math

import numpy as np
import pytest
import torch

from s2kit.metrics import MeanPointmapBaseline, PointmapMetric
from s2kit.metrics.alignment import align, depth_errors, relative_depth_errors
from s2kit.metrics.pointmap import sobel_normals

DEPTH = torch.tensor([0.0, 0.0, 3.0]).view(1, 3, 1, 1)


@pytest.fixture
def maps(wave) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    prediction, target = (wave(f, 2, 3, 24, 18) + DEPTH for f in (0.37, 0.53))
    return prediction, target, wave(0.91, 2, 1, 24, 18) > -0.3


@pytest.fixture
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """Points of a slanted, wavy surface (1, 3, 40, 30) seen with a focal length of 40 pixels; and all valid."""
    u, v = np.meshgrid(np.arange(30) + 0.5 - 15, np.arange(40) + 0.5 - 20)
    depth = 2 + 0.01 * u + 0.3 * np.sin(v / 6) * np.cos(u / 5)
    points = np.stack([u * depth / 40, v * depth / 40, depth])[None].astype(np.float32)
    return torch.from_numpy(points), torch.ones(1, 1, 40, 30, dtype=torch.bool)


def score(prediction, target, valid, scale=None, target_scale=None, **options) -> dict[str, float]:
    ones = torch.ones(len(target))
    metric = PointmapMetric(**options)
    metric.update(
        prediction, ones if scale is None else scale, target, ones if target_scale is None else target_scale, valid
    )
    return {name: value.item() for name, value in metric.compute().items()}


def test_published_numbers(maps):
    results = score(*maps, interior_normals=False)
    expected = {
        "l2": 1.5355946,
        "mae_x": 0.9036699,
        "mae_y": 0.8572019,
        "mae_z": 0.7778167,
        "rmse": 1.7878500,
        "within_0.05": 1.54143,
        "within_0.1": 2.89017,
        "within_0.2": 5.97303,
    }
    assert {name: results[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    # These waves hardly span a surface: the angles are those of rounding errors, and vary with the processor.
    assert results["normal_mean"] == pytest.approx(87.671792, abs=1.5)
    assert results["normal_rmse"] == pytest.approx(91.896637, abs=1.5)


def test_normals_against_a_convolution(scene):
    points = scene[0][0].permute(1, 2, 0).numpy()
    smooth, slope = np.array([1, 4, 6, 4, 1.0]), np.array([-1, -2, 0, 2, 1.0])
    padded = np.pad(points.astype(np.float64), ((2, 2), (2, 2), (0, 0)), mode="reflect")
    right, down = np.zeros_like(points), np.zeros_like(points)
    for i in range(5):
        for j in range(5):
            part = padded[i : i + 40, j : j + 30]
            right += smooth[i] * slope[j] * part
            down += slope[i] * smooth[j] * part
    expected = np.cross(right, down)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True) + 1e-6
    normals = sobel_normals(points)
    # Mirrored at the border, the points have no slope there.
    assert np.abs(np.linalg.norm(normals[1:-1, 1:-1], axis=-1) - 1).max() < 1e-5
    np.testing.assert_allclose(normals[1:-1, 1:-1], expected[1:-1, 1:-1], atol=1e-4)


def test_known_errors(scene):
    points, valid = scene
    results = score(points * 2, points, valid, torch.tensor([3.0]), torch.tensor([1.5]))
    distance = points[0].double().norm(dim=0)
    assert results["metric_l2"] == pytest.approx(distance.mean().item(), rel=1e-6)
    assert results["metric_rmse"] == pytest.approx(distance.square().mean().sqrt().item(), rel=1e-6)
    # Canonical: 6 times the points against 1.5 times.
    assert results["l2"] == pytest.approx(4.5 * distance.mean().item(), rel=1e-6)
    assert results["mae_z"] == pytest.approx(4.5 * points[0, 2].double().mean().item(), rel=1e-6)
    assert results["scale_error"] == pytest.approx(100)
    assert (results["abs_rel"], results["delta_1.25"]) == pytest.approx((1, 0))
    assert (results["scale_abs_rel"], results["scale_delta_1.25"]) == pytest.approx((0, 100), abs=1e-6)
    assert results["scale_l2"] == pytest.approx(0, abs=1e-6)
    # The shape is right, so the normals are.
    assert results["normal_mean"] == pytest.approx(0, abs=0.1)
    shifted = score(points * 2 + torch.tensor([0.1, 0.2, 0.5]).view(1, 3, 1, 1), points, valid)
    assert shifted["affine_l2"] == pytest.approx(0, abs=1e-6)
    assert shifted["affine_abs_rel"] == pytest.approx(0, abs=1e-6)
    assert shifted["scale_l2"] > 0.05


@pytest.mark.parametrize("shift", [False, True])
def test_alignment_against_least_squares(shift):
    rng = np.random.default_rng(0)
    prediction = rng.normal(size=(50, 3))
    target = 1.7 * prediction + [0.3, -0.2, 2] + 0.3 * rng.normal(size=(50, 3))
    columns = [prediction.reshape(-1, 1)]
    if shift:
        columns.append(np.tile(np.eye(3), (50, 1)))
    matrix = np.hstack(columns)
    best = (matrix @ np.linalg.lstsq(matrix, target.ravel(), rcond=None)[0]).reshape(50, 3)
    result = align(torch.from_numpy(prediction), torch.from_numpy(target), shift)
    np.testing.assert_allclose(result.numpy(), best, atol=1e-10)


def test_alignment_of_nothing_and_of_a_constant():
    assert align(torch.zeros(0, 3), torch.zeros(0, 3), True).shape == (0, 3)
    target = torch.rand(7, 1, generator=torch.Generator().manual_seed(0))
    aligned = align(torch.full((7, 1), 5.0), target, True)
    torch.testing.assert_close(aligned, target.double().mean().expand(7, 1))


def test_depth_errors_of_known_depths():
    errors, right = depth_errors(torch.tensor([1.0, 2.6, 1.5, -1.0]), torch.tensor([1.0, 2.0, 2.0, 1.0]))
    assert errors.tolist() == pytest.approx([0, 0.3, 0.25, 2])
    assert right.tolist() == [True, False, False, False]


def test_relative_depth_of_other_models(scene):
    """A model that answers depth, or inverse depth, up to a factor and a shift is not punished for either."""
    depth = scene[0][0, 2]
    everywhere = scene[1][0, 0]
    for prediction, space in ((0.3 * depth - 5, "depth"), (7 / depth + 2, "disparity")):
        errors, right = relative_depth_errors(prediction, depth, everywhere, space)
        assert errors.max().item() < 1e-5
        assert right.all()
    errors, _ = relative_depth_errors(7 / depth + 2, depth, everywhere, "depth")
    assert errors.mean().item() > 1e-3


def test_normals_at_a_silhouette_count_on_request(scene):
    points, valid = scene
    valid = valid.clone()
    valid[..., 15:] = False
    # What is behind the silhouette is no part of the answer.
    prediction = torch.where(valid, points, 50.0)
    assert score(prediction, points * valid, valid)["normal_mean"] == pytest.approx(0, abs=0.05)
    assert score(prediction, points * valid, valid, interior_normals=False)["normal_mean"] > 1


def test_only_valid_pixels_count_and_nan_is_not_hidden(maps):
    prediction, target, valid = maps
    whole = score(prediction, target, valid)
    filled = score(torch.where(valid, prediction, math.nan), torch.where(valid, target, math.nan), valid)
    assert {n: filled[n] for n in filled if "normal" not in n} == {n: whole[n] for n in whole if "normal" not in n}
    assert all(math.isnan(value) for value in score(prediction, target, valid & False).values())
    b, _, i, j = valid.nonzero()[0].tolist()
    prediction[b, 2, i, j] = math.inf
    assert all(math.isnan(value) for value in score(prediction, target, valid).values())


def test_the_baseline_is_the_mean_pointmap(wave):
    """On pictures of the grid's size it is the mean of the maps, scored by the metric itself."""
    target = wave(0.53, 3, 3, 24, 18) + DEPTH
    scales = torch.tensor([0.5, 1.0, 2.0])
    everywhere = torch.ones(3, 1, 24, 18, dtype=torch.bool)
    baseline = MeanPointmapBaseline()
    for i in range(3):
        baseline.update(target[i : i + 1], scales[i : i + 1], everywhere[i : i + 1])
    results = {name: value.item() for name, value in baseline.compute().items()}
    mean = target.mean(dim=0, keepdim=True).expand_as(target)
    canonical = target * scales.view(3, 1, 1, 1)
    mean_canonical = canonical.mean(dim=0, keepdim=True).expand_as(target)
    expected = score(mean_canonical, canonical, everywhere)
    metric = score(mean, target, everywhere, scales.mean().expand(3), scales)
    of_metric = {"metric_l2", "metric_rmse", "scale_error", "abs_rel", "delta_1.25"}
    for name in results:
        own = name in of_metric or name.startswith(("scale_", "affine_"))
        assert results[name] == pytest.approx((metric if own else expected)[name], rel=1e-5), name
    assert set(metric) - set(results) == {name for name in metric if name.startswith("normal_")}


def test_the_baseline_takes_any_size_and_counts_valid_cells_only(scene):
    points, valid = scene
    baseline = MeanPointmapBaseline()
    assert all(math.isnan(value.item()) for value in baseline.compute().values())
    baseline.reset()
    half = valid.clone()
    half[..., :15] = False
    baseline.update(torch.where(half, points, math.nan), torch.ones(1), half)
    baseline.update(points[:, :, ::2, ::2], torch.ones(1), half[:, :, ::2, ::2])
    values = {name: value.item() for name, value in baseline.compute().items()}
    assert 0 < values["metric_l2"] < 0.05


def test_mixed_precision_does_not_reach_the_metric(maps):
    expected = score(*maps, interior_normals=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert score(*maps, interior_normals=False) == expected


def test_sizes_must_agree(maps):
    prediction, target, valid = maps
    with pytest.raises(ValueError, match=r"prediction \(2, 3, 24, 17\) and target \(2, 3, 24, 18\)"):
        score(prediction[..., 1:], target, valid)
    with pytest.raises(ValueError, match=r"scales must be \(2,\), one a picture, got \(2, 1\) and \(2,\)"):
        score(prediction, target, valid, torch.ones(2, 1))
