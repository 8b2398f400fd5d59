import numpy as np
import pytest

from data_modules.synth.rasterizer import coverage, first_depth, pixel_rays, rasterize

SIZE = (40, 30)
INTRINSICS = np.array([[33.0, 0, 14.2], [0, 31.0, 21.7], [0, 0, 1]])


def centres(size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.stack([x.ravel(), y.ravel()], axis=1)


def cast(triangles: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moller-Trumbore for every ray and triangle: nearest triangle (-1: none), its depth, its barycentrics."""
    rays = pixel_rays(points, INTRINSICS)[:, None]
    a, b, c = (triangles[None, :, k] for k in range(3))
    p = np.cross(rays, c - a)
    det = (p * (b - a)).sum(-1)
    u = (p * -a).sum(-1) / det
    q = np.cross(-a, b - a)
    v = (q * rays).sum(-1) / det
    depth = (q * (c - a)).sum(-1) / det
    hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (depth > 0.02)
    depth = np.where(hit, depth, np.inf)
    nearest = depth.argmin(axis=1)
    rows = np.arange(len(points))
    weights = np.stack([1 - u - v, u, v], -1)[rows, nearest]
    return np.where(hit.any(axis=1), nearest, -1), depth[rows, nearest], weights


@pytest.fixture
def soup() -> np.ndarray:
    """Triangles of all sizes that overlap, pierce one another, leave the image and cross the near plane."""
    rng = np.random.default_rng(3)
    centre = rng.uniform([-1.2, -1.2, 0.3], [1.2, 1.2, 4.0], (120, 1, 3))
    return centre + rng.normal(0, 1, (120, 3, 3)) * rng.choice([0.05, 0.3, 1.0], (120, 1, 1))


def test_rasterize_agrees_with_ray_casting(soup: np.ndarray) -> None:
    triangle, depth, weights = cast(soup, centres(SIZE))
    hits = rasterize(soup, INTRINSICS, SIZE)
    assert (soup[:, :, 2] < 0.02).any(axis=1).sum() > 2
    seen = np.full(SIZE[0] * SIZE[1], -1)
    seen[hits.pixels] = hits.triangle
    np.testing.assert_array_equal(seen, triangle)
    np.testing.assert_allclose(hits.depth, depth[hits.pixels], rtol=1e-6)
    np.testing.assert_allclose(hits.barycentric, weights[hits.pixels], atol=1e-6)


def test_first_depth_agrees_with_ray_casting_at_any_point(soup: np.ndarray) -> None:
    points = np.random.default_rng(0).uniform([0, 0], [SIZE[1], SIZE[0]], (200, 2))
    _, depth, _ = cast(soup, points)
    np.testing.assert_allclose(first_depth(soup, INTRINSICS, points), depth, rtol=1e-6)
    assert np.isinf(depth).any() and np.isfinite(depth).any()


def test_coverage_is_the_mean_of_four_by_four_points(soup: np.ndarray) -> None:
    fine = INTRINSICS * [[4], [4], [1]]
    hits = rasterize(soup, fine, (SIZE[0] * 4, SIZE[1] * 4))
    mask = np.zeros(SIZE[0] * SIZE[1] * 16)
    mask[hits.pixels] = 1
    expected = mask.reshape(SIZE[0], 4, SIZE[1], 4).mean(axis=(1, 3))
    np.testing.assert_allclose(coverage(soup, INTRINSICS, SIZE), expected, atol=1e-6)


def test_no_crack_between_triangles_that_share_edges() -> None:
    rng = np.random.default_rng(1)
    steps = np.linspace(-3, 3, 25)
    x, y = np.meshgrid(steps, steps)
    grid = np.stack([x, y, 2 + 0.3 * rng.random(x.shape)], -1)
    grid[1:-1, 1:-1, :2] += rng.uniform(-0.1, 0.1, (23, 23, 2))
    a, b, c, d = grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]
    triangles = np.concatenate([np.stack([a, b, c], -2).reshape(-1, 3, 3), np.stack([a, c, d], -2).reshape(-1, 3, 3)])
    assert len(rasterize(triangles, INTRINSICS, SIZE).pixels) == SIZE[0] * SIZE[1]
    assert coverage(triangles, INTRINSICS, SIZE).min() == 1


def test_a_floor_that_runs_under_the_camera_is_cut_at_the_near_plane() -> None:
    floor = np.array([[[-9, 1, -5], [9, 1, -5], [9, 1, 9]], [[-9, 1, -5], [9, 1, 9], [-9, 1, 9]]], float)
    hits = rasterize(floor, INTRINSICS, SIZE)
    y = hits.pixels // SIZE[1] + 0.5
    np.testing.assert_allclose(hits.depth, INTRINSICS[1, 1] / (y - INTRINSICS[1, 2]), rtol=1e-9)
    assert (y > INTRINSICS[1, 2]).all() and y.max() == SIZE[0] - 0.5


def test_nothing_ahead_gives_no_pixels() -> None:
    behind = np.array([[[-1, -1, -2], [1, -1, -2], [0, 1, -2]]], float)
    assert len(rasterize(behind, INTRINSICS, SIZE).pixels) == 0
    assert coverage(behind, INTRINSICS, SIZE).max() == 0
