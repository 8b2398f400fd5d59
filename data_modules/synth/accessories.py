"""Hats, glasses, teeth and belts: drawn beside the template, fitted to the person, carried by a bone."""

from __future__ import annotations

import functools

import numpy as np

from data_modules.synth import classes
from data_modules.synth.dressing import grid_mesh
from data_modules.synth.garments import Garment
from data_modules.synth.materials import plain
from data_modules.synth.posed import PosedBody, find_anchors, head_vertices
from data_modules.synth.regions import HEAD_AXIS, Regions, load_regions
from data_modules.synth.types import Material, Mesh

HATS = ("beanie", "cap", "brim")


def sample_hat(rng: np.random.Generator) -> str | None:
    """The kind of hat, or None for the many who wear none."""
    return str(rng.choice(HATS)) if rng.random() < 0.2 else None


def hat_garment(regions: Regions, rng: np.random.Generator, kind: str) -> Garment:
    """The crown of a hat, above a plane that rises to the front."""
    _, y, z = regions.points.T
    edge = {"beanie": 0.945, "cap": 0.955, "brim": 0.952}[kind] + 0.1 * (z - HEAD_AXIS)
    field = np.where(regions.is_group("head") & ~regions.eye, y - edge, -1.0)
    ramp = np.clip(field / 0.05, 0, 1)
    height = {"beanie": 0.012, "cap": 0.012, "brim": 0.035}[kind] * float(rng.uniform(0.7, 1.3))
    return Garment(
        "hat",
        "hat",
        field.astype(np.float32),
        classes.APPAREL,
        (0.011 + height * ramp).astype(np.float32),
        20,
        0.002 if kind == "beanie" else 0.0,
        zone="head",
    )


def hat_brim(kind: str, body: PosedBody, rng: np.random.Generator, material: Material) -> list[Mesh]:
    """The peak of a cap or the brim of a hat; a beanie has none."""
    if kind == "beanie":
        return []
    width = float(rng.uniform(0.055, 0.08)) if kind == "cap" else float(rng.uniform(0.04, 0.085))
    angles = np.deg2rad(np.linspace(-62, 62, 25)) if kind == "cap" else np.linspace(0, 2 * np.pi, 48, endpoint=False)
    steps = np.linspace(0, 1, 6)
    head = load_regions().points[head_vertices()]
    near = head[np.abs(head[:, 1] - 0.96) < 0.02]
    spokes = np.stack([np.sin(angles), np.cos(angles)], 1)
    inner = ((near[:, [0, 2]] - [0, HEAD_AXIS]) @ spokes.T).max(axis=0) + 0.004
    fade = np.cos(angles * np.pi / (2 * angles[-1])) ** 0.5 if kind == "cap" else np.ones_like(angles)
    radius = inner + width * steps[:, None] * np.nan_to_num(fade)
    points = np.empty((len(steps), len(angles), 3), np.float32)
    points[..., 0], points[..., 2] = radius * spokes[:, 0], HEAD_AXIS + radius * spokes[:, 1]
    droop = (0.25 if kind == "cap" else rng.uniform(0.0, 0.45)) * width * steps[:, None] ** 1.5
    points[..., 1] = 0.958 + 0.1 * (points[..., 2] - HEAD_AXIS) - droop
    # Turned over, so that the upper side is the outer one.
    return [_on_head("hat_brim", points[::-1], body, classes.APPAREL, material, closed=kind == "brim")]


def sample_glasses(body: PosedBody, rng: np.random.Generator) -> tuple[list[Mesh], str]:
    """Glasses or sunglasses, of round or angular frames, and which."""
    dark = rng.random() < 0.4
    frame = plain(np.full(3, rng.choice([0.01, 0.03, 0.25])) * rng.uniform(0.5, 1.2, 3), rng.uniform(0.15, 0.5), 0.5)
    lens = plain(np.full(3, 0.008), 0.06, 0.6)
    width, height = float(rng.uniform(0.022, 0.027)), float(rng.uniform(0.016, 0.023))
    corner = float(rng.uniform(2.0, 4.5))
    thickness = float(rng.uniform(0.001, 0.0022))
    front = 0.152
    meshes = []
    angle = np.linspace(0, 2 * np.pi, 36, endpoint=False)
    shape = np.stack(
        [
            np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** (2 / corner) * width,
            np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / corner) * height,
        ],
        axis=1,
    )
    for sign, side in ((1, "left"), (-1, "right")):
        centre = np.array([0.033 * sign, 0.9, front])
        rim = centre + np.stack([shape[:, 0], shape[:, 1], -0.12 * np.abs(shape[:, 0] + 0.033 * sign) - 0 * angle], 1)
        rim = np.concatenate([rim, rim[:1]])
        meshes.append(_tube(f"{side}_rim", rim, thickness, body, frame))
        hinge = centre + np.array([width * sign, height * 0.3, -0.007])
        ear = np.array([0.078 * sign, 0.906, 0.03])
        bend = ear + np.array([0.001 * sign, -0.025, -0.02])
        meshes.append(_tube(f"{side}_temple", np.array([hinge, ear, bend]), thickness, body, frame))
        if dark:
            shrink = np.linspace(1.0, 0.05, 5)[:, None, None]
            disc = rim[:-1].mean(axis=0) + shrink * (rim[None, :-1] - rim[:-1].mean(axis=0))
            meshes.append(_on_head(f"{side}_lens", disc[::-1], body, classes.EYEGLASS, lens, closed=True))
    bridge = np.array([[0.033 - width, 0.903, front], [0.0, 0.907, front + 0.005], [width - 0.033, 0.903, front]])
    meshes.append(_tube("bridge", bridge, thickness, body, frame))
    return meshes, "sunglasses" if dark else "glasses"


def teeth(body: PosedBody, rng: np.random.Generator) -> list[Mesh]:
    """Two arches behind the lips: the upper goes with the nose, the lower with the chin, as a jaw does."""
    regions = load_regions()
    points = regions.points
    nose, chin = _jaw_anchors()
    enamel = plain(np.array([0.62, 0.56, 0.45]) * rng.uniform(0.7, 1.1), 0.2, 0.5)
    angle = np.linspace(-1.25, 1.25, 22)
    result = []
    for name, ids, top, bottom, anchors in (
        ("upper_teeth", classes.UPPER_TEETH, 0.8365, 0.8275, nose),
        ("lower_teeth", classes.LOWER_TEETH, 0.8275, 0.8195, chin),
    ):
        arch = np.stack([0.022 * np.sin(angle), 0 * angle, 0.108 + 0.04 * np.cos(angle)], axis=1)
        grid = np.stack([arch + np.array([0, height, 0]) for height in np.linspace(top, bottom, 4)])
        shift = body.points[anchors].mean(axis=0)
        origin = points[anchors].mean(axis=0)
        turn = body.turns[_head_bone()]
        scale = float(np.ptp(body.reference[nose], axis=0).max() / np.ptp(points[nose], axis=0).max())
        posed = (grid - origin).reshape(-1, 3) * scale @ turn.T + shift
        result.append(grid_mesh(name, posed.reshape(grid.shape).astype(np.float32), ids, enamel))
    return result


def _head_bone() -> int:
    from data_modules.synth.rig import load_rig

    return load_rig().bone["head"]


@functools.lru_cache(maxsize=1)
def _jaw_anchors() -> tuple[np.ndarray, np.ndarray]:
    """Vertices of the bridge of the nose, and of the chin."""
    x, y, z = load_regions().points.T
    nose = np.flatnonzero((np.abs(x) < 0.014) & (y > 0.872) & (y < 0.9) & (z > 0.13))
    chin = np.flatnonzero((np.abs(x) < 0.02) & (y > 0.775) & (y < 0.8) & (z > 0.12))
    return nose, chin


def _on_head(
    name: str, points: np.ndarray, body: PosedBody, ids: int, material: Material, closed: bool = False
) -> Mesh:
    flat = points.reshape(-1, 3).astype(np.float32)
    fitted = body.fit(flat, find_anchors(flat, head_vertices(), 24))
    posed = body.carry(fitted, {"head": 1.0}).reshape(points.shape)
    return grid_mesh(name, posed, ids, material, closed=closed)


def _tube(name: str, path: np.ndarray, radius: float, body: PosedBody, material: Material) -> Mesh:
    """A thin tube along a path on the head."""
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    first = np.cross(along, [0.3, 0.2, 0.93])
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    angle = np.linspace(0, 2 * np.pi, 6, endpoint=False)
    ring = np.cos(angle)[None, :, None] * first[:, None] + np.sin(angle)[None, :, None] * second[:, None]
    return _on_head(name, path[:, None] - radius * ring[:, ::-1], body, classes.EYEGLASS, material, closed=True)
