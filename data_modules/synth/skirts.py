"""Skirts: a tube hung around hips and legs in the reference pose, carried by pelvis and legs, kept off the legs."""

from __future__ import annotations

import numpy as np

from data_modules.synth.dressing import grid_mesh
from data_modules.synth.posed import PosedBody
from data_modules.synth.regions import load_regions
from data_modules.synth.types import Material, Mesh

ROWS, COLUMNS = 26, 72


def build_skirt(
    name: str,
    body: PosedBody,
    rng: np.random.Generator,
    waist: float,
    hem: float,
    flare: float,
    face_class: int,
    material: Material,
    offset: float = 0.012,
) -> Mesh:
    """A skirt from height `waist` to height `hem` of the template.

    Args:
        flare: metres that the hem stands out from the widest part of the hips.
        offset: metres from the body at the waist.
    """
    regions = load_regions()
    trunk = regions.is_group("torso", "upper_leg", "lower_leg")
    template = regions.points[trunk]
    person = body.reference[trunk]
    heights = np.linspace(waist, hem, ROWS)
    angles = np.linspace(0, 2 * np.pi, COLUMNS, endpoint=False)
    spokes = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    centre = body.joint("root", reference=True)[[0, 2]]
    profile = np.stack([_support(person, template, height, spokes, centre) for height in heights])
    # Cloth falls from the widest place above: a skirt never follows the body back in.
    profile = np.maximum.accumulate(profile, axis=0)
    below = np.linspace(0, 1, ROWS)[:, None]
    pleats = rng.integers(7, 15)
    waves = np.cos(pleats * angles + rng.uniform(0, 6)) + 0.5 * np.cos(2.3 * pleats * angles)
    radius = profile + offset + flare * below**1.2 + 0.25 * flare * below**2 * waves[None]
    level = np.array([_person_height(person, template, height) for height in heights])
    grid = np.empty((ROWS, COLUMNS, 3), np.float32)
    grid[..., [0, 2]] = centre + radius[..., None] * spokes
    grid[..., 1] = level[:, None]
    posed = _carry(body, grid.reshape(-1, 3), np.repeat(heights, COLUMNS)).reshape(grid.shape)
    for _ in range(2):
        posed = _keep_off_legs(body, posed)
        posed[1:] = _smooth_rows(posed)[1:]
    return grid_mesh(name, _keep_off_legs(body, posed), face_class, material, closed=True)


def _support(person, template, height: float, spokes: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """(C,) how far the body reaches in each direction near a height: the support function of its section."""
    near = np.abs(template[:, 1] - height) < 0.03
    reach = ((person[near][:, [0, 2]] - centre) @ spokes.T).max(axis=0)
    # The support function of an ellipse is a little wider than the ellipse; trim towards the section.
    return reach * 0.99


def _person_height(person, template, height: float) -> float:
    """The height on the person of a height on the template."""
    near = np.argsort(np.abs(template[:, 1] - height))[:12]
    return float(height + (person[near, 1] - template[near, 1]).mean())


def _carry(body: PosedBody, points: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Skin the tube: pelvis at the top, both thighs below the hips, shins below the knees, blended across."""
    hip, knee = (load_regions().joints[n][1] for n in ("upperleg01.L", "lowerleg01.L"))
    leg = np.clip((hip + 0.06 - heights) / 0.17, 0, 1)
    leg = leg * leg * (3 - 2 * leg)
    shin = np.clip((knee + 0.08 - heights) / 0.16, 0, 1) * leg
    across = np.clip(0.5 + points[:, 0] / 0.24, 0, 1)
    across = across * across * (3 - 2 * across)
    weights = {"root": 1 - leg}
    for side, share in (("L", across), ("R", 1 - across)):
        weights[f"upperleg01.{side}"] = (leg - shin) * share
        weights[f"lowerleg01.{side}"] = shin * share
    return body.carry(points, weights)


def _keep_off_legs(body: PosedBody, grid: np.ndarray, margin: float = 0.012) -> np.ndarray:
    """Push points out of the capsules of thighs and shins."""
    points = grid.reshape(-1, 3).copy()
    for side in ("L", "R"):
        for start, end in (("upperleg01", "lowerleg01"), ("lowerleg01", "foot")):
            first, last = (body.joint(f"{name}.{side}") for name in (start, end))
            radii = _limb_radii(body, side, start, end)
            axis = last - first
            along = np.clip((points - first) @ axis / (axis @ axis), 0, 1)
            nearest = first + along[:, None] * axis
            away = points - nearest
            distance = np.linalg.norm(away, axis=1)
            radius = np.interp(along, np.linspace(0, 1, len(radii)), radii) + margin
            push = np.maximum(radius - distance, 0)
            points += away / np.maximum(distance, 1e-6)[:, None] * push[:, None]
    return points.reshape(grid.shape)


def _limb_radii(body: PosedBody, side: str, start: str, end: str) -> np.ndarray:
    """(5,) radius of a leg's part along its length, measured in the reference pose."""
    regions = load_regions()
    first, last = (body.joint(f"{name}.{side}", reference=True) for name in (start, end))
    group = "upper_leg" if start == "upperleg01" else "lower_leg"
    points = body.reference[regions.is_group(group) & (regions.side == (1 if side == "L" else -1))]
    axis = last - first
    along = (points - first) @ axis / (axis @ axis)
    distance = np.linalg.norm(points - first - along[:, None] * axis, axis=1)
    stations = np.linspace(0, 1, 5)
    radii = [distance[np.abs(along - s) < 0.15] for s in stations]
    return np.array([np.quantile(r, 0.85) if len(r) else 0.05 for r in radii])


def _smooth_rows(grid: np.ndarray) -> np.ndarray:
    """Each point towards the mean of its four neighbours; the last row is free."""
    around = (np.roll(grid, 1, axis=1) + np.roll(grid, -1, axis=1)) / 2
    below = np.concatenate([grid[1:], grid[-1:]])
    above = np.concatenate([grid[:1], grid[:-1]])
    return 0.5 * grid + 0.25 * around + 0.25 * (above + below) / 2
