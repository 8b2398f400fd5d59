"""Angular error of surface normals, pooled over all pixels (spec 6.3), and what a constant normal would reach.

All states are int64 sums: they are exact for billions of pixels, do not depend on the order of batches and ranks,
and a precision plugin that casts a model to bfloat16 leaves them alone.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

THRESHOLDS = (5.0, 11.25, 22.5, 30.0)
BIN_DEGREES = 0.5
NORMALIZE_EPS = 1e-6
# Fixed-point units of the sums: room for more than 10^10 pixels, and far finer than any printed digit.
ANGLE_UNIT = 2.0**-20
SQUARE_UNIT = 2.0**-13
VECTOR_UNIT = 2.0**-28
DIRECTION_CELLS = 128


def _check_shapes(target: Tensor, valid: Tensor) -> None:
    if target.ndim != 4 or target.shape[1] != 3 or valid.shape != (len(target), 1, *target.shape[2:]):
        raise ValueError(
            f"expected normals (B, 3, H, W) and valid (B, 1, H, W) of one size, got {tuple(target.shape)} and "
            f"{tuple(valid.shape)}"
        )


def _select(normals: Tensor, valid: Tensor) -> Tensor:
    """Valid pixels as unit vectors (n, 3), float64."""
    return F.normalize(normals.permute(0, 2, 3, 1)[valid[:, 0].bool()].double(), dim=-1, eps=NORMALIZE_EPS)


class NormalsMetric(Metric):
    """Mean, median and RMS angular error in degrees, and per cent of pixels below four angles.

    The median is the centre of its 0.5 degree histogram bin, as in the release. If any valid pixel is not finite,
    in the prediction or in the target, or if there was none, every result is NaN.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    count: Tensor
    nonfinite: Tensor
    angle_sum: Tensor
    square_sum: Tensor
    histogram: Tensor
    below: Tensor

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        bins = round(180 / BIN_DEGREES)
        shapes = {"count": (), "nonfinite": (), "angle_sum": (), "square_sum": ()}
        for name, shape in {**shapes, "histogram": (bins,), "below": (len(THRESHOLDS),)}.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Adds the valid pixels of a batch.

        Args:
            prediction: normals (B, 3, H, W), of any length; a zero vector counts as 90 degrees off.
            target: normals (B, 3, H, W).
            valid: bool (B, 1, H, W).

        Raises:
            ValueError: the three are not of one size.
        """
        _check_shapes(target, valid)
        if prediction.shape != target.shape:
            raise ValueError(
                f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have one size: resize "
                "the prediction before"
            )
        cosine = (_select(prediction, valid) * _select(target, valid)).sum(dim=-1).clamp(-1.0, 1.0)
        angle = torch.rad2deg(torch.acos(cosine))
        finite = angle.isfinite()
        self.count += angle.numel()
        self.nonfinite += (~finite).sum()
        angle = angle[finite]
        self.angle_sum += (angle.sum() / ANGLE_UNIT).round().long()
        self.square_sum += (angle.square().sum() / SQUARE_UNIT).round().long()
        bins = (angle / BIN_DEGREES).long().clamp(max=len(self.histogram) - 1)
        self.histogram += torch.bincount(bins, minlength=len(self.histogram))
        self.below += torch.stack([(angle < threshold).sum() for threshold in THRESHOLDS])

    def compute(self) -> dict[str, Tensor]:
        """Scalars mean, median, rmse (degrees), within_5, within_11.25, within_22.5, within_30 (per cent)."""
        count = self.count.double()
        median_bin = (self.histogram.cumsum(0) * 2 < self.count).sum()
        results = {
            "mean": self.angle_sum * ANGLE_UNIT / count,
            "median": (median_bin + 0.5) * BIN_DEGREES,
            "rmse": (self.square_sum * SQUARE_UNIT / count).sqrt(),
        }
        for threshold, below in zip(THRESHOLDS, self.below):
            results[f"within_{threshold:g}"] = 100 * below / count
        bad = (self.nonfinite > 0) | (self.count == 0)
        return {name: torch.where(bad, math.nan, value).float() for name, value in results.items()}


def octahedral_cells(vectors: Tensor, cells: int) -> Tensor:
    """Index (n,), from 0 to cells^2 - 1, of the octahedral-map cell that each vector (n, 3) points into."""
    x, y, z = (vectors / vectors.abs().sum(dim=-1, keepdim=True)).unbind(-1)
    folded_x = (1 - y.abs()) * torch.where(x < 0, -1.0, 1.0)
    folded_y = (1 - x.abs()) * torch.where(y < 0, -1.0, 1.0)
    u, v = torch.where(z < 0, folded_x, x), torch.where(z < 0, folded_y, y)
    columns, rows = (((axis + 1) / 2 * cells).long().clamp(0, cells - 1) for axis in (u, v))
    return rows * cells + columns


def _mean_angle(candidates: Tensor, directions: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean angle in radians from each candidate (m, 3) to the directions (n, 3); weights sum to 1."""
    return torch.cat([torch.acos((part @ directions.T).clamp(-1.0, 1.0)) @ weights for part in candidates.split(256)])


def _sphere(count: int) -> Tensor:
    """`count` evenly spread unit vectors (a Fibonacci lattice)."""
    i = torch.arange(count, dtype=torch.float64) + 0.5
    z, turn = 1 - 2 * i / count, math.pi * (1 + 5**0.5) * i
    radius = (1 - z.square()).sqrt()
    return torch.stack([radius * turn.cos(), radius * turn.sin(), z], dim=-1)


def _around(centre: Tensor, radius: float) -> Tensor:
    """`centre` (3,) and a 7 x 7 grid of unit vectors up to `radius` radians from it along two tangents."""
    axis = torch.eye(3, dtype=centre.dtype)[centre.abs().argmin()]
    first = F.normalize(torch.linalg.cross(centre, axis), dim=0)
    second = torch.linalg.cross(centre, first)
    steps = torch.linspace(-radius, radius, 7, dtype=centre.dtype).tan()
    grid = centre + steps[:, None, None] * first + steps[None, :, None] * second
    return F.normalize(torch.cat([centre[None], grid.reshape(-1, 3)]), dim=-1)


def best_constant_normal(directions: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The unit vector of least weighted mean angle to unit `directions` (n, 3), and that angle in radians.

    The mean angle can have several minima on the sphere, so the best few of an even spread of candidates are each
    refined by a grid that shrinks around its best point.
    """
    candidates = torch.cat([_sphere(1000), F.normalize(weights @ directions, dim=0)[None]])
    start = _mean_angle(candidates, directions, weights).topk(4, largest=False).indices
    best, least = candidates[start[0]], torch.tensor(math.inf, dtype=torch.float64)
    for centre in candidates[start]:
        radius = math.radians(6)
        while radius > math.radians(0.005):
            around = _around(centre, radius)
            angles = _mean_angle(around, directions, weights)
            centre, angle = around[angles.argmin()], angles.min()
            radius /= 2
        if angle < least:
            best, least = centre, angle
    return best, least


class ConstantNormalBaseline(Metric):
    """The constant normal that fits the targets best: what a model that ignores the image can reach.

    Keeps a histogram over directions with the sum of the vectors in each cell of an octahedral map, so it is pooled
    over batches and ranks by a sum. Good to about 0.01 degree.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    cell_counts: Tensor
    cell_vectors: Tensor

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        cells = DIRECTION_CELLS**2
        self.add_state("cell_counts", torch.zeros(cells, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("cell_vectors", torch.zeros(cells, 3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, target: Tensor, valid: Tensor) -> None:
        """Adds the valid pixels of target normals (B, 3, H, W); valid is bool (B, 1, H, W).

        Raises:
            ValueError: the two are not of one size, or a valid target is zero or not finite.
        """
        _check_shapes(target, valid)
        vectors = _select(target, valid)
        wrong = ~((vectors.norm(dim=-1) - 1).abs() < 1e-3)
        if wrong.any():
            raise ValueError(f"{int(wrong.sum())} valid target normals are zero or not finite")
        cells = octahedral_cells(vectors, DIRECTION_CELLS)
        self.cell_counts += torch.bincount(cells, minlength=len(self.cell_counts))
        self.cell_vectors.index_add_(0, cells, (vectors / VECTOR_UNIT).round().long())

    def compute(self) -> dict[str, Tensor]:
        """ "mean": the pooled mean angular error in degrees of the best constant; "normal": that unit vector (3,).

        Both are NaN if there was no valid pixel.
        """
        used = self.cell_counts > 0
        device = self.cell_counts.device
        if not used.any():
            return {
                "mean": torch.tensor(math.nan, device=device),
                "normal": torch.full((3,), math.nan, device=device),
            }
        weights = self.cell_counts[used].double().cpu()
        directions = F.normalize(self.cell_vectors[used].double().cpu(), dim=-1)
        normal, angle = best_constant_normal(directions, weights / weights.sum())
        return {"mean": torch.rad2deg(angle).float().to(device), "normal": normal.float().to(device)}
