"""A z-buffer in numpy: which triangle each pixel centre sees, exactly, and how much of each pixel is covered.

The labels come from here and not from the path tracer, whose extra channels are jittered and averaged over a
pixel. Triangles become spans of one pixel row each, and spans become pixels, so no candidate pixel is tested
in vain. Span ends of an edge that two triangles share are computed from the same numbers in the same order, so
no crack opens between them.

Frames: camera points are x right, y down, z forward, metres; pixel (row i, column j) covers
[j, j + 1) x [i, i + 1) and its centre is (j + 0.5, i + 0.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEAR = 0.02
_CHUNK_SPANS = 1 << 18
_CHUNK_PIXELS = 1 << 21


@dataclass(frozen=True)
class Hits:
    """What the covered pixels of an image see; the rows of all arrays belong together.

    Args:
        pixels: (N,) int64 flat pixel indices (row * width + column), ascending.
        triangle: (N,) int64 index into the rows of `triangles`.
        barycentric: (N, 3) float64 weights of the three vertices in space (perspective-correct).
        depth: (N,) float64 metres along z.
    """

    pixels: np.ndarray
    triangle: np.ndarray
    barycentric: np.ndarray
    depth: np.ndarray


def rasterize(triangles: np.ndarray, intrinsics: np.ndarray, image_size: tuple[int, int]) -> Hits:
    """Return what is seen through each pixel centre.

    Args:
        triangles: (F, 3, 3) camera points: triangle, vertex, xyz. Both sides of a triangle are seen.
        intrinsics: (3, 3) of the pixel frame above, no skew.
        image_size: (height, width).
    """
    height, width = image_size
    triangles = np.asarray(triangles, np.float64)
    corners, owner = _clip_near(triangles)
    best = np.zeros(height * width)
    seen = np.full(height * width, -1, np.int64)
    for rows, left, right, index in _spans(_project(corners, intrinsics), image_size):
        planes = _inverse_depth_planes(triangles[owner[index]], intrinsics)
        for pixels, columns, span in _span_pixels(rows, left, right, width):
            triangle = owner[index[span]]
            a, b, c, least, largest = planes[:, span]
            inverse_depth = a * (columns + 0.5) + b * (rows[span] + 0.5) + c
            inverse_depth = np.clip(inverse_depth, least, largest)
            _keep_nearest(best, seen, pixels, inverse_depth, triangle)
    pixels = np.flatnonzero(seen >= 0)
    triangle = seen[pixels]
    points = np.stack([pixels % width + 0.5, pixels // width + 0.5], axis=1)
    barycentric, depth = intersect(triangles[triangle], intrinsics, points)
    return Hits(pixels, triangle, barycentric, depth)


def coverage(triangles: np.ndarray, intrinsics: np.ndarray, image_size: tuple[int, int], grid: int = 4) -> np.ndarray:
    """Return the covered share of each pixel, (H, W) float32 in [0, 1], from grid x grid points of a pixel."""
    height, width = image_size
    fine = np.array(intrinsics, np.float64)
    fine[:2] *= grid
    fine_size = (height * grid, width * grid)
    corners, _ = _clip_near(np.asarray(triangles, np.float64))
    steps = np.zeros(fine_size[0] * (fine_size[1] + 1), np.int32)
    for rows, left, right, _ in _spans(_project(corners, fine), fine_size):
        start = rows * (fine_size[1] + 1)
        np.add.at(steps, start + left, 1)
        np.add.at(steps, start + right, -1)
    covered = np.cumsum(steps.reshape(fine_size[0], -1), axis=1, out=steps.reshape(fine_size[0], -1))
    inside = (covered[:, :-1] > 0).reshape(height, grid, width, grid)
    return inside.mean(axis=(1, 3), dtype=np.float32)


def intersect(triangles: np.ndarray, intrinsics: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Meet the ray of each pixel point with the plane of its triangle.

    Args:
        triangles: (N, 3, 3) camera points.
        points: (N, 2) pixel coordinates x, y.

    Returns:
        (N, 3) barycentric weights, clipped to the triangle, and (N,) depth of the point that they give.
    """
    rays = pixel_rays(points, intrinsics)
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    weights = np.stack([_dot(rays, _cross(p, q)) for p, q in ((b, c), (c, a), (a, b))], axis=1)
    total = weights.sum(axis=1, keepdims=True)
    # Seen exactly from the side the plane has no single point; the first vertex stands for it.
    flat = np.abs(total) < 1e-18
    weights = np.where(flat, [1.0, 0.0, 0.0], weights / np.where(flat, 1.0, total))
    weights = np.clip(weights, 0.0, 1.0)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights, _dot(weights, triangles[:, :, 2])


def pixel_rays(points: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(N, 2) pixel coordinates -> (N, 3) directions with z = 1."""
    x = (points[:, 0] - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (points[:, 1] - intrinsics[1, 2]) / intrinsics[1, 1]
    return np.stack([x, y, np.ones_like(x)], axis=1)


def first_depth(triangles: np.ndarray, intrinsics: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(N,) depth of the first surface through each pixel point (x, y); inf where there is none."""
    corners, owner = _clip_near(np.asarray(triangles, np.float64))
    pixels = _project(corners, intrinsics)
    x, y = pixels[..., 0].T, pixels[..., 1].T
    left, right = np.minimum(np.minimum(x[0], x[1]), x[2]), np.maximum(np.maximum(x[0], x[1]), x[2])
    top, bottom = np.minimum(np.minimum(y[0], y[1]), y[2]), np.maximum(np.maximum(y[0], y[1]), y[2])
    nearest = np.full(len(points), np.inf)
    for i, point in enumerate(np.asarray(points, np.float64)):
        near = np.flatnonzero((left <= point[0]) & (right >= point[0]) & (top <= point[1]) & (bottom >= point[1]))
        near = near[_contains(pixels[near], point)]
        if len(near):
            rows = triangles[owner[near]].astype(np.float64)
            _, depth = intersect(rows, intrinsics, np.broadcast_to(point, (len(near), 2)))
            nearest[i] = depth.min()
    return nearest


def _contains(triangles: np.ndarray, point: np.ndarray) -> np.ndarray:
    edges = np.roll(triangles, -1, axis=1) - triangles
    to_point = point - triangles
    side = edges[..., 0] * to_point[..., 1] - edges[..., 1] * to_point[..., 0]
    return (side >= 0).all(axis=1) | (side <= 0).all(axis=1)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, 3) cross product; numpy's own takes several times as long."""
    (ax, ay, az), (bx, by, bz) = a.T, b.T
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", a, b)


def _project(corners: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(F, 3, 3) camera points before the near plane -> (F, 3, 2) pixel coordinates."""
    scale = np.array([intrinsics[0, 0], intrinsics[1, 1]], np.float64)
    return corners[..., :2] / corners[..., 2:] * scale + intrinsics[:2, 2]


def _inverse_depth_planes(triangles: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """(5, F): 1 / depth of a triangle's plane is a x + b y + c at pixel x, y; then its least and largest value.

    The bounds hold a triangle that is seen from the side, whose plane gives any depth at all, between its own
    vertices.
    """
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    normal = _cross(b - a, c - a)
    offset = _dot(normal, a)
    flat = np.abs(offset) < 1e-18
    nx, ny, nz = np.where(flat, 0.0, normal.T / np.where(flat, 1.0, offset))
    nx, ny = nx / intrinsics[0, 0], ny / intrinsics[1, 1]
    z = np.maximum(triangles[:, :, 2], NEAR)
    bounds = 1 / z.max(axis=1), 1 / z.min(axis=1)
    return np.stack([nx, ny, nz - nx * intrinsics[0, 2] - ny * intrinsics[1, 2], *bounds])


def _clip_near(triangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut off what lies before the near plane; return the pieces and the row that each came from."""
    before = triangles[:, :, 2] < NEAR
    if not before.any():
        return triangles, np.arange(len(triangles))
    count = before.sum(axis=1)
    whole = np.flatnonzero(count == 0)
    pieces, owners = [triangles[whole]], [whole]
    for lost in (1, 2):
        rows = np.flatnonzero(count == lost)
        if not len(rows):
            continue
        # Turn the vertex that is alone on its side to the front, keeping the winding.
        alone = np.argmax(before[rows] == (lost == 1), axis=1)
        order = (alone[:, None] + np.arange(3)) % 3
        p, q, r = np.moveaxis(np.take_along_axis(triangles[rows], order[..., None], axis=1), 1, 0)
        pq, pr = _cut(p, q), _cut(p, r)
        if lost == 2:
            pieces.append(np.stack([p, pq, pr], axis=1))
            owners.append(rows)
        else:
            pieces += [np.stack([pq, q, r], axis=1), np.stack([pq, r, pr], axis=1)]
            owners += [rows, rows]
    return np.concatenate(pieces), np.concatenate(owners)


def _cut(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    t = (NEAR - p[:, 2:]) / (q[:, 2:] - p[:, 2:])
    point = p + t * (q - p)
    point[:, 2] = NEAR
    return point


def _spans(corners: np.ndarray, image_size: tuple[int, int]):
    """Yield (row, first column, column after the last, triangle) arrays for all (triangle, row) pairs.

    A pixel belongs to a triangle whose interior holds its centre; a centre exactly on an edge belongs to the
    triangle on the right of that edge (or below it, if it is level).
    """
    height, width = image_size
    x, y = corners[..., 0].T, corners[..., 1].T
    first = np.clip(np.ceil(np.minimum(np.minimum(y[0], y[1]), y[2]) - 0.5), 0, height).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(np.maximum(y[0], y[1]), y[2]) - 0.5), 0, height).astype(np.int64)
    left_end = np.ceil(np.minimum(np.minimum(x[0], x[1]), x[2]) - 0.5)
    right_end = np.ceil(np.maximum(np.maximum(x[0], x[1]), x[2]) - 0.5)
    drawn = np.flatnonzero((last > first) & (right_end > np.maximum(left_end, 0)) & (left_end < width))
    count = (last - first)[drawn]
    first = first[drawn]
    low, middle, high = _sorted_by_y(corners[drawn])
    for group in _groups(count, _CHUNK_SPANS):
        index = np.repeat(group, count[group])
        rows = first[index] + _ramp(count[group])
        y = rows + 0.5
        upper = y < middle[index, 1]
        long_x = _edge_x(low[index], high[index], y)
        start = np.where(upper[:, None], low[index], middle[index])
        end = np.where(upper[:, None], middle[index], high[index])
        short_x = _edge_x(start, end, y)
        left = np.clip(np.ceil(np.minimum(long_x, short_x) - 0.5), 0, width).astype(np.int64)
        right = np.clip(np.ceil(np.maximum(long_x, short_x) - 0.5), 0, width).astype(np.int64)
        filled = right > left
        yield rows[filled], left[filled], right[filled], drawn[index[filled]]


def _sorted_by_y(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(F, 3, 2) -> three (F, 2) arrays of corners from the least y to the greatest."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    for _ in range(2):
        swap = (a[:, 1] > b[:, 1])[:, None]
        a, b = np.where(swap, b, a), np.where(swap, a, b)
        swap = (b[:, 1] > c[:, 1])[:, None]
        b, c = np.where(swap, c, b), np.where(swap, b, c)
    return a, b, c


def _edge_x(start: np.ndarray, end: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x where the edge from start (upper end) to end crosses the level y."""
    rise = end[:, 1] - start[:, 1]
    t = (y - start[:, 1]) / np.where(rise > 0, rise, 1.0)
    return start[:, 0] + np.clip(t, 0.0, 1.0) * (end[:, 0] - start[:, 0])


def _span_pixels(rows: np.ndarray, left: np.ndarray, right: np.ndarray, width: int):
    """Yield (flat pixel, column, span) arrays, one row a covered pixel, in bounded portions."""
    length = right - left
    for group in _groups(length, _CHUNK_PIXELS):
        span = np.repeat(group, length[group])
        columns = left[span] + _ramp(length[group])
        yield rows[span] * width + columns, columns, span


def _groups(sizes: np.ndarray, limit: int):
    """Yield index ranges whose sizes add up to about `limit` at most (a single larger item stays whole)."""
    bucket = (np.cumsum(sizes) - sizes) // limit
    edges = np.flatnonzero(np.diff(bucket, prepend=-1)) if len(sizes) else np.zeros(0, np.int64)
    for start, stop in zip(edges, np.append(edges[1:], len(sizes))):
        yield np.arange(start, stop)


def _ramp(counts: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1]) - np.repeat(ends - counts, counts)


def _keep_nearest(best, seen, pixels, inverse_depth, triangle) -> None:
    """Enter candidates into the z-buffer; of equal depths the first entered stays."""
    nearer = np.flatnonzero(inverse_depth > best[pixels])
    pixels, inverse_depth, triangle = pixels[nearer], inverse_depth[nearer], triangle[nearer]
    np.maximum.at(best, pixels, inverse_depth)
    winner = np.flatnonzero(inverse_depth == best[pixels])[::-1]
    seen[pixels[winner]] = triangle[winner]
