"""Hair: a cap grown from the scalp, and what hangs from it (curtain, tail, bun)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from data_modules.synth import classes
from data_modules.synth.dressing import grid_mesh
from data_modules.synth.garments import Garment
from data_modules.synth.posed import PosedBody, find_anchors, head_vertices
from data_modules.synth.regions import HEAD_AXIS, Regions, hairline_height, load_regions
from data_modules.synth.types import Material, Mesh

# Share of each style for (masculine, feminine); mean thickness of the cap in metres.
STYLES: dict[str, tuple[float, float, float]] = {
    "bald": (0.12, 0.01, 0.0),
    "stubble": (0.12, 0.02, 0.0),
    "short": (0.5, 0.12, 0.016),
    "volume": (0.12, 0.15, 0.042),
    "bob": (0.04, 0.2, 0.022),
    "long": (0.05, 0.26, 0.02),
    "bun": (0.02, 0.12, 0.012),
    "ponytail": (0.03, 0.12, 0.012),
}
LENGTHS = {"bob": (0.80, 0.72), "long": (0.68, 0.45)}


@dataclass(frozen=True)
class HairStyle:
    """A style, its cap (None for a bare scalp), and how low hanging hair reaches on the template."""

    name: str
    cap: Garment | None
    end: float = 0.0


def sample_hair(regions: Regions, rng: np.random.Generator, gender: float, hat: str | None) -> HairStyle:
    """Draw a style; below a hat the cap lies flat."""
    shares = np.array([(1 - gender) * m + gender * f for m, f, _ in STYLES.values()])
    name = str(rng.choice(list(STYLES), p=shares / shares.sum()))
    depth = STYLES[name][2] * float(rng.uniform(0.6, 1.5))
    lift = float(rng.uniform(-0.006, 0.012))
    end = float(rng.uniform(*sorted(LENGTHS[name]))) if name in LENGTHS else 0.0
    if name in ("bald", "stubble"):
        return HairStyle(name, None)
    if hat is not None:
        depth = min(depth, 0.006)
    field = hair_field(regions, lift)
    ramp = np.clip(field / (0.03 + 2 * depth), 0, 1)
    thickness = 0.0025 + depth * ramp * ramp * (3 - 2 * ramp)
    cap = Garment(
        "hair",
        "hair",
        field,
        classes.HAIR,
        thickness.astype(np.float32),
        14,
        0.25 * depth,
        zone="head",
        clearance=0.9,
    )
    return HairStyle(name, cap, end)


def hair_field(regions: Regions, lift: float = 0.0) -> np.ndarray:
    """(V,) metres above the hairline raised by `lift`; negative off the head."""
    above = regions.points[:, 1] - hairline_height(regions.points) - lift
    return np.where(regions.is_group("head", "neck") & ~regions.eye, above, -1.0).astype(np.float32)


def hanging_hair(style: HairStyle, body: PosedBody, rng: np.random.Generator, material: Material) -> list[Mesh]:
    """The meshes that hang from the cap, none for short styles."""
    if style.name in LENGTHS:
        return [_curtain(style, body, rng, material)]
    if style.name == "bun":
        height = float(rng.uniform(0.9, 1.02))
        return [_bun(body, height, float(rng.uniform(0.028, 0.042)), material)]
    if style.name == "ponytail":
        return [_tail(body, rng, material)]
    return []


@functools.lru_cache(maxsize=1)
def _back_profile() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Heights, angles, and how far head, neck and back reach there from the head's axis, on the template."""
    regions = load_regions()
    points = regions.points[regions.is_group("head", "neck", "torso")]
    heights, angles = np.linspace(0.42, 1.0, 30), np.deg2rad(np.linspace(60, 300, 33))
    around = np.arctan2(points[:, 0], points[:, 2] - HEAD_AXIS)
    radius = np.hypot(points[:, 0], points[:, 2] - HEAD_AXIS)
    profile = np.zeros((len(heights), len(angles)))
    for row, height in enumerate(heights):
        near = np.abs(points[:, 1] - height) < 0.025
        for column, angle in enumerate(angles):
            turn = np.abs(np.angle(np.exp(1j * (around - angle))))
            chosen = near & (turn < 0.2)
            profile[row, column] = radius[chosen].max() if chosen.any() else 0.06
    return heights, angles, profile


def _curtain(style: HairStyle, body: PosedBody, rng: np.random.Generator, material: Material) -> Mesh:
    """Hair that falls from the sides and the back of the head over neck and shoulders."""
    heights, angles, profile = _back_profile()
    rows = 22
    levels = np.linspace(0.955, style.end, rows)
    reach = np.stack([np.interp(levels, heights, column) for column in profile.T], axis=1)
    # Hair bridges the hollow of the neck: it falls straight from the widest place above.
    falling = np.maximum.accumulate(reach * np.where(levels > 0.74, 1.0, 0.0)[:, None], axis=0) * 0.93
    limit = np.where(np.abs(angles - np.pi) < 1.1, 0.2, 0.12)
    radius = np.minimum(np.maximum(falling, np.minimum(reach, limit) + 0.004), limit)
    strands = np.cos(angles * rng.integers(14, 24) + rng.uniform(0, 6)) * 0.003
    radius = radius + 0.012 + strands + 0.008 * np.linspace(0, 1, rows)[:, None] * rng.uniform(0, 1)
    points = np.empty((rows, len(angles), 3), np.float32)
    points[..., 0] = radius * np.sin(angles)
    points[..., 2] = HEAD_AXIS + radius * np.cos(angles)
    points[..., 1] = levels[:, None] + 0.006 * rng.normal(0, 1, len(angles)) * np.linspace(0, 1, rows)[:, None] ** 3
    flat = points.reshape(-1, 3)
    fitted = body.fit(flat, find_anchors(flat, head_vertices()))
    trunk = np.clip((0.84 - flat[:, 1]) / 0.16, 0, 1) * 0.85
    posed = _keep_off_back(body, body.carry(fitted, {"head": 1 - trunk, "spine01": trunk}))
    return grid_mesh("hanging_hair", posed.reshape(points.shape), classes.HAIR, material)


def _keep_off_back(body: PosedBody, points: np.ndarray, margin: float = 0.035) -> np.ndarray:
    """Lift hair that would lie inside the shoulders or the back, clothes included."""
    regions = load_regions()
    trunk = np.flatnonzero(regions.is_group("torso", "upper_arm") & (regions.points[:, 1] > 0.4))
    skin, normals = body.points[trunk], body.normals[trunk]
    low = np.flatnonzero(points[:, 1] < body.joint("head")[1])
    nearest = ((points[low, None] - skin[None]) ** 2).sum(axis=2).argmin(axis=1)
    out = ((points[low] - skin[nearest]) * normals[nearest]).sum(axis=1)
    near = np.linalg.norm(points[low] - skin[nearest], axis=1) < 0.12
    lifted = points.copy()
    lifted[low] += normals[nearest] * (np.maximum(margin - out, 0) * near)[:, None]
    return lifted


def _bun(body: PosedBody, height: float, size: float, material: Material) -> Mesh:
    """A ball of hair at the back of the head."""
    heights, _, profile = _back_profile()
    back = float(np.interp(height, heights, profile[:, profile.shape[1] // 2]))
    centre = np.array([0, height, HEAD_AXIS - back - 0.45 * size])
    return _place(body, "hair_bun", centre + size * _sphere(), material)


def _tail(body: PosedBody, rng: np.random.Generator, material: Material) -> Mesh:
    """A tapered tube from the back of the head."""
    length, start = float(rng.uniform(0.15, 0.35)), float(rng.uniform(0.9, 0.98))
    heights, _, profile = _back_profile()
    back = float(np.interp(start, heights, profile[:, profile.shape[1] // 2]))
    s = np.linspace(0, 1, 14)
    centre = np.stack([0 * s, start + 0.02 * np.sin(s * 3) - length * s**1.3, HEAD_AXIS - back - 0.055 * np.sqrt(s)], 1)
    size = 0.012 + 0.016 * np.sin(np.pi * np.clip(s * 0.9 + 0.08, 0, 1))
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    ring = np.stack([np.sin(angles), 0 * angles, np.cos(angles)], 1)
    return _place(body, "hair_tail", centre[:, None] + size[:, None, None] * ring[None], material)


def _sphere(rows: int = 9, columns: int = 16) -> np.ndarray:
    """(rows, columns, 3) unit sphere as a closed grid from top to bottom."""
    polar = np.linspace(0.02, np.pi - 0.02, rows)[:, None]
    angle = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None]
    return np.stack([np.sin(polar) * np.sin(angle), np.cos(polar) + 0 * angle, np.sin(polar) * np.cos(angle)], -1)


def _place(body: PosedBody, name: str, points: np.ndarray, material: Material) -> Mesh:
    """A closed grid drawn beside the template's head, carried by the person's head."""
    flat = points.reshape(-1, 3).astype(np.float32)
    fitted = body.fit(flat, find_anchors(flat, head_vertices()))
    posed = body.carry(fitted, {"head": 1.0}).reshape(points.shape)
    return grid_mesh(name, posed, classes.HAIR, material, closed=True)
