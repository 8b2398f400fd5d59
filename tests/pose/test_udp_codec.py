"""The heatmap codec: the release's numbers (spec 10.3), exact places, borders, flips."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch

from s2kit.pose import decode_heatmaps, default_sigma, encode_heatmaps
from s2kit.pose.udp import flip_heatmaps

IMAGE, MAP = (1024, 768), (256, 192)
#: Spec 10.3, in pixels whose centres are at integers.
PUBLISHED = [((100.3, 200.7), 225.280548), ((767, 1023), 64.074821), ((0.4, 0.2), 65.262146)]
DECODED = [(100.43076, 200.89619), (770.01047, 1026.00784), (-2.01047, -2.00784)]


def encoded(points, visibility=1.0):
    keypoints = torch.tensor([points], dtype=torch.float32) + 0.5
    return encode_heatmaps(keypoints, torch.full(keypoints.shape[:2], visibility), IMAGE, MAP)


def test_published_numbers():
    maps, weights = encoded([*(point for point, _ in PUBLISHED), (5000, 5)])
    assert maps.shape == (1, 4, 256, 192)
    assert weights.tolist() == [[1, 1, 1, 0]]
    sums = [value for _, value in PUBLISHED]
    assert maps.sum(dim=(2, 3))[0].tolist() == pytest.approx([*sums, 0], rel=1e-5)
    assert maps[0, 0].max().item() == pytest.approx(0.99998182, rel=1e-6)
    keypoints, scores = decode_heatmaps(maps, IMAGE)
    # The release's pixels: centres at integers, and stretched by W / (W - 1).
    published = (keypoints[0, :3] - 0.5) * torch.tensor([768 / 767, 1024 / 1023])
    np.testing.assert_allclose(published, DECODED, rtol=1e-5, atol=2e-4)
    assert scores[0, :3].tolist() == pytest.approx(maps.amax(dim=(2, 3))[0, :3].tolist())


def written_out(heatmap: np.ndarray) -> np.ndarray:
    """The cell of a map's maximum by spec 4.2.3, step by step for one map."""
    height, width = heatmap.shape
    y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
    padded = np.zeros((height + 10, width + 10), np.float32)
    padded[5:-5, 5:-5] = heatmap
    blurred = cv2.GaussianBlur(padded, (11, 11), 0)[5:-5, 5:-5]
    blurred = blurred * heatmap.max() / blurred.max()
    f = np.pad(np.log(np.clip(blurred, 1e-3, 50)).astype(np.float64), 1, mode="edge")
    x, y = x + 1, y + 1
    gradient = np.array([f[y, x + 1] - f[y, x - 1], f[y + 1, x] - f[y - 1, x]]) / 2
    dxy = 0.5 * (
        f[y + 1, x + 1] - f[y, x + 1] - f[y + 1, x] + 2 * f[y, x] - f[y, x - 1] - f[y - 1, x] + f[y - 1, x - 1]
    )
    dxx, dyy = f[y, x + 1] - 2 * f[y, x] + f[y, x - 1], f[y + 1, x] - 2 * f[y, x] + f[y - 1, x]
    hessian = np.array([[dxx, dxy], [dxy, dyy]]) + np.finfo(np.float32).eps * np.eye(2)
    return np.array([x - 1, y - 1]) - np.linalg.inv(hessian) @ gradient


def test_decoding_of_any_map_step_by_step():
    """Smooth random maps, whose maxima are neither round nor alone."""
    rng = np.random.default_rng(3)
    maps = np.stack([cv2.GaussianBlur(rng.random((40, 30), np.float32), (0, 0), 2.5) ** 4 * 20 for _ in range(24)])
    cells = np.stack([written_out(heatmap) for heatmap in maps])
    keypoints, scores = decode_heatmaps(torch.from_numpy(maps).reshape(2, 12, 40, 30), (157, 117))
    expected = cells * [116 / 29, 156 / 39] + 0.5
    np.testing.assert_allclose(keypoints.reshape(-1, 2), expected, atol=2e-2)
    np.testing.assert_allclose(scores.reshape(-1), maps.max(axis=(1, 2)))
    assert np.abs(cells - np.round(cells)).max() > 0.3


@pytest.mark.parametrize(
    ("image", "heatmap"), [((1024, 768), (256, 192)), ((128, 96), (32, 24)), ((128, 96), (64, 48))]
)
def test_a_round_trip_gives_the_same_pixels(image, heatmap):
    """Away from the border, to a hundredth of a cell, on every size; the first and last pixel map to themselves."""
    rng = np.random.default_rng(0)
    sigma = default_sigma(heatmap)
    cell = image[1] / heatmap[1]
    margin = (6 + 4 * sigma) * cell
    low, high = np.full(2, min(margin, image[1] / 2 - 1)), np.array(image[::-1]) - min(margin, image[1] / 2 - 1)
    points = torch.tensor(rng.uniform(low, high, (1, 50, 2)), dtype=torch.float32)
    maps, weights = encode_heatmaps(points, torch.ones(1, 50), image, heatmap)
    keypoints, _ = decode_heatmaps(maps, image)
    assert weights.min() == 1
    assert (keypoints - points).abs().max().item() < 0.05 * cell


def test_values_of_a_map():
    """The Gaussian about the exact place, cut to a window of whole cells."""
    maps, _ = encode_heatmaps(torch.tensor([[[20.3, 31.0]]]), torch.tensor([[2]]), (64, 64), (32, 32), sigma=1.5)
    cell = 63 / 31
    x, y = (20.3 - 0.5) / cell, (31.0 - 0.5) / cell
    rows, columns = np.mgrid[:32, :32]
    expected = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 1.5**2))
    expected[(np.abs(columns - int(x + 0.5)) > 4) | (np.abs(rows - int(y + 0.5)) > 4)] = 0
    np.testing.assert_allclose(maps[0, 0], expected, atol=1e-6)


def test_windows_left_of_the_map_are_centred_towards_zero():
    """As in the release: of -0.7 the window's middle is cell 0, so cell 4 is within a radius of 4."""
    x = -0.7 * 63 / 31 + 0.5
    maps, _ = encode_heatmaps(torch.tensor([[[x, 30.0]]]), torch.tensor([[2]]), (64, 64), (32, 32), sigma=1.5)
    columns = maps[0, 0].amax(dim=0)
    assert columns[4] > 0
    assert columns[5:].abs().max() == 0


def test_what_is_not_labelled_or_far_outside_has_no_weight():
    keypoints = torch.tensor([[[math.nan, 3.0], [30.0, 30.0], [-40.0, 30.0], [-3.0, 30.0]]])
    maps, weights = encode_heatmaps(keypoints, torch.tensor([[0, 1, 2, 2]]), (64, 64), (32, 32), sigma=2)
    assert weights.tolist() == [[0, 1, 0, 1]]
    assert maps.isfinite().all()
    assert maps[0, [0, 2]].abs().max() == 0
    # Just outside: what reaches in is supervised.
    assert 0 < maps[0, 3].max() < 1


def test_maps_without_a_peak():
    maps = torch.zeros(1, 4, 16, 12)
    maps[0, 1] = -1.0
    maps[0, 1, 5, 7] = -0.5
    maps[0, 2, 3, 3] = math.nan
    maps[0, 3, 3, 3] = math.inf
    keypoints, scores = decode_heatmaps(maps, (64, 48))
    assert scores[0, :2].tolist() == [0, 0]
    assert keypoints[0, 0].tolist() == [0.5, 0.5]
    assert keypoints[0, 1].tolist() == pytest.approx([7 * 47 / 11 + 0.5, 5 * 63 / 15 + 0.5])
    assert keypoints[0, 2:].isnan().all() and scores[0, 2:].isnan().all()


def test_mirrored_maps_are_those_of_mirrored_keypoints():
    flip_map = torch.tensor([0, 2, 1])
    points = torch.tensor([[[30.0, 20.0], [11.7, 40.2], [50.1, 33.3]]])
    mirrored = points[:, flip_map].clone()
    mirrored[..., 0] = 64 - mirrored[..., 0]
    maps, _ = encode_heatmaps(points, torch.ones(1, 3), (64, 64), (32, 32))
    of_mirror, _ = encode_heatmaps(mirrored, torch.ones(1, 3), (64, 64), (32, 32))
    torch.testing.assert_close(flip_heatmaps(of_mirror, flip_map), maps, rtol=0, atol=1e-5)


def test_batches_are_decoded_as_their_parts(monkeypatch):
    maps = torch.rand(3, 5, 16, 12, generator=torch.Generator().manual_seed(0))
    whole = decode_heatmaps(maps, (64, 48))
    monkeypatch.setattr("s2kit.pose.udp._BLUR_CHUNK", 2 * 16 * 12)
    parts = decode_heatmaps(maps, (64, 48))
    for one, other in zip(whole, parts):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    empty, scores = decode_heatmaps(maps[:0], (64, 48))
    assert empty.shape == (0, 5, 2) and scores.shape == (0, 5)


def test_errors():
    with pytest.raises(ValueError, match="blur_kernel must be odd, got 4"):
        decode_heatmaps(torch.zeros(1, 1, 4, 4), (8, 8), blur_kernel=4)
    with pytest.raises(ValueError, match="at least 2 x 2"):
        decode_heatmaps(torch.zeros(1, 1, 1, 4), (8, 8))
