"""Shoes: a tube over the foot with a flat sole, since a shell grown from bare toes would show every one of them."""

from __future__ import annotations

import numpy as np

from data_modules.synth import classes
from data_modules.synth.dressing import grid_mesh
from data_modules.synth.posed import PosedBody
from data_modules.synth.regions import load_regions
from data_modules.synth.types import Material, Mesh

ROWS, COLUMNS = 26, 32


def build_shoe(
    body: PosedBody, side: str, top: float, depth: float, sole: float, point: float, material: Material
) -> Mesh:
    """A shoe on one foot.

    Args:
        side: "L" or "R".
        top: height on the template that the shoe's body reaches at the ankle.
        depth: metres of leather outside the foot.
        sole: metres below the foot.
        point: metres that the toe cap stands out before the toes.
    """
    regions = load_regions()
    chosen = (regions.points[:, 1] < top) & (regions.side == (1 if side == "L" else -1))
    ankle = body.joint(f"foot.{side}", reference=True)
    ahead = body.joint(f"toe3-1.{side}", reference=True) - ankle
    heading = np.arctan2(ahead[0], ahead[2])
    cosine, sine = np.cos(heading), np.sin(heading)
    straight = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]], np.float32)
    foot = (body.reference[chosen] - ankle) @ straight.T
    grid = _tube(foot, depth, sole, point)
    posed = body.carry(grid.reshape(-1, 3) @ straight + ankle, {f"foot.{side}": 1.0}).reshape(grid.shape)
    name = {"L": "left_shoe", "R": "right_shoe"}[side]
    return grid_mesh(name, posed, classes.SHOE[side], material, closed=True)


def _tube(foot: np.ndarray, depth: float, sole: float, point: float) -> np.ndarray:
    """(ROWS, COLUMNS, 3) from toe to heel around (N, 3) points of a foot that looks along +z."""
    floor, back, front = foot[:, 1].min(), foot[:, 2].min() - depth, foot[:, 2].max() + depth + point
    # Rows lie closer at both ends, where the tube closes.
    rows = (back + front) / 2 + (front - back) / 2 * np.cos(np.linspace(0.02, np.pi - 0.02, ROWS))
    angle = np.linspace(0, 2 * np.pi, COLUMNS, endpoint=False)
    spokes = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    centre, radius = np.empty((ROWS, 2)), np.empty((ROWS, COLUMNS))
    for row, z in enumerate(rows):
        inner = np.clip(z, foot[:, 2].min() + 0.02, foot[:, 2].max() - 0.02)
        section = foot[np.abs(foot[:, 2] - inner) < 0.014][:, :2]
        low, high = section.min(axis=0), section.max(axis=0)
        centre[row] = (low[0] + high[0]) / 2, floor + 0.4 * max(high[1] - floor, 0.045)
        radius[row] = ((section - centre[row]) @ spokes.T).max(axis=0)
    for _ in range(3):
        for values in (centre, radius):
            values[1:-1] = (values[:-2] + 2 * values[1:-1] + values[2:]) / 4
    along = np.abs(rows - (back + front) / 2) / ((front - back) / 2)
    cap = (1 - along**6) ** 0.4
    reach = (radius + depth) * cap[:, None]
    grid = np.empty((ROWS, COLUMNS, 3), np.float32)
    grid[..., :2] = centre[:, None] + reach[..., None] * spokes
    grid[..., 2] = rows[:, None]
    # The under half becomes a wall and a flat sole.
    under = grid[..., 1] < floor + 0.012
    grid[..., 1] = np.where(under, floor - sole * np.minimum(1, 3 * cap)[:, None], grid[..., 1])
    return grid
