"""Procedural materials: linear reflectance textures of skin, hair, eyes and cloth."""

from __future__ import annotations

import cv2
import numpy as np

from data_modules.synth.types import Material


def srgb_to_linear(color) -> np.ndarray:
    """sRGB-encoded values in [0, 1] to linear reflectance (IEC 61966-2-1)."""
    color = np.asarray(color, np.float64)
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def plain(color, roughness: float, specular: float) -> Material:
    """A single linear colour."""
    return Material(np.clip(np.asarray(color, np.float32), 0, 1).reshape(1, 1, 3), float(roughness), float(specular))


# sRGB of the ten tones of the Monk Skin Tone scale, light to dark.
MONK_TONES = np.array(
    [
        [246, 237, 228],
        [243, 231, 219],
        [247, 234, 208],
        [234, 218, 186],
        [215, 189, 150],
        [160, 126, 86],
        [130, 92, 67],
        [96, 65, 52],
        [58, 49, 42],
        [41, 36, 32],
    ]
)


def skin_tone(position: float) -> np.ndarray:
    """Linear reflectance at a position 0 (lightest) to 9 (darkest) of the Monk scale."""
    tones = srgb_to_linear(MONK_TONES / 255)
    # Chart colours are swatches under studio light; skin itself reflects somewhat less and redder.
    tone = np.array([np.interp(position, np.arange(10), tones[:, c]) for c in range(3)])
    return np.clip(tone * [0.8, 0.68, 0.62], 0.01, 0.9)


HAIR_COLORS = {
    "black": (0.012, 0.010, 0.009),
    "dark_brown": (0.03, 0.018, 0.012),
    "brown": (0.08, 0.045, 0.025),
    "auburn": (0.13, 0.045, 0.02),
    "blond": (0.38, 0.26, 0.12),
    "grey": (0.3, 0.3, 0.3),
    "white": (0.65, 0.64, 0.62),
}


def hair_color_shares(tone: float) -> np.ndarray:
    """Shares of HAIR_COLORS for a Monk position: light hair is rare with dark skin, grey comes with any."""
    light = np.clip(1 - tone / 5, 0.01, 1)
    shares = np.array([0.3, 0.3, 0.05 + 0.3 * light, 0.2 * light, 0.35 * light, 0.12, 0.05])
    return shares / shares.sum()


def iris_shares(tone: float) -> np.ndarray:
    """Shares of the irises brown, dark brown, hazel, green, blue, grey for a Monk position."""
    light = np.clip(1 - tone / 5, 0.01, 1)
    shares = np.array([0.5, 0.5, 0.15 * light, 0.2 * light, 0.4 * light, 0.15 * light])
    return shares / shares.sum()


def hair_material(rng: np.random.Generator, color: np.ndarray, size: int = 128) -> Material:
    """Streaky hair of a linear colour."""
    streaks = cv2.resize(rng.normal(0, 1, (6, size)).astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR)
    texture = np.asarray(color) * np.clip(1 + 0.25 * streaks[..., None], 0.4, 1.8)
    return Material(np.clip(texture, 0, 1).astype(np.float32), float(rng.uniform(0.3, 0.6)), 0.4)


def linear_mix(texture: np.ndarray, color: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Lay a colour (3,) or texture (h, w, 3) over another by weights (h, w) in [0, 1]."""
    weight = np.asarray(weight)[..., None]
    return texture * (1 - weight) + np.asarray(color) * weight


def value_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """(size, size) smooth noise of about unit deviation with `cells` bumps along a side."""
    coarse = rng.normal(0, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def sample_color(rng: np.random.Generator) -> np.ndarray:
    """(3,) a linear cloth colour: any hue, from black and white to strong."""
    hue, saturation, value = rng.random(), rng.beta(1.3, 2.0), rng.beta(1.5, 1.4)
    channels = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return srgb_to_linear(np.clip(value * (1 - saturation * (1 - channels)) * 0.9 + 0.04, 0, 1))


PATTERNS = {"plain": 0.4, "stripes": 0.16, "checks": 0.12, "dots": 0.08, "print": 0.12, "melange": 0.12}


def sample_cloth(rng: np.random.Generator, size: int = 256) -> tuple[Material, dict[str, object]]:
    """A random cloth, plain, striped, checked, dotted, printed or melange, matt to glossy, and its description."""
    pattern = str(rng.choice(list(PATTERNS), p=list(PATTERNS.values())))
    roughness = float(rng.choice([rng.uniform(0.55, 0.95), rng.uniform(0.15, 0.5)], p=[0.75, 0.25]))
    specular = float(rng.uniform(0.1, 0.5))
    base = sample_color(rng)
    texture = base.reshape(1, 1, 3)
    if pattern != "plain":
        texture = base + (pattern_weight(rng, pattern, size)[..., None] * (sample_color(rng) - base))
        if pattern in ("checks", "print"):
            texture = linear_mix(texture, sample_color(rng), pattern_weight(rng, pattern, size) * 0.6)
    material = Material(np.clip(texture, 0, 1).astype(np.float32), roughness, specular)
    return material, {"pattern": pattern, "roughness": round(roughness, 3), "specular": round(specular, 3)}


#: Least distance of a cloth's mean colour from the skin's, in sRGB from 0 to 1: nearer, a tight top looks like skin.
SKIN_DISTANCE = 0.15


def distance_to_skin(cloth: Material, skin: np.ndarray) -> float:
    """Distance of a cloth's mean colour from a skin colour (3,), both linear, measured in gamma-encoded RGB."""
    mean = cloth.albedo.reshape(-1, 3).mean(0)
    return float(np.linalg.norm(mean ** (1 / 2.2) - np.asarray(skin) ** (1 / 2.2)))


def sample_cloth_unlike(rng: np.random.Generator, skin: np.ndarray) -> tuple[Material, dict[str, object]]:
    """A random cloth as ``sample_cloth`` makes it, whose colour stands off from ``skin`` (3,), linear."""
    while True:
        cloth, described = sample_cloth(rng)
        if distance_to_skin(cloth, skin) >= SKIN_DISTANCE:
            return cloth, described


def pattern_weight(rng: np.random.Generator, pattern: str, size: int) -> np.ndarray:
    """(size, size) weight 0..1 of a pattern's second colour."""
    axis = (np.arange(size) + 0.5) / size
    x, y = axis[None, :], axis[:, None]
    if pattern in ("stripes", "checks"):
        count, duty = rng.integers(8, 40), rng.uniform(0.15, 0.5)
        direction = y if rng.random() < 0.6 else x
        stripe = np.broadcast_to((direction * count) % 1 < duty, (size, size)).astype(np.float32)
        if pattern == "stripes":
            return stripe
        other = ((x if direction is y else y) * count) % 1 < duty
        return 0.5 * stripe + 0.5 * np.broadcast_to(other, (size, size))
    if pattern == "dots":
        count, radius = rng.integers(10, 30), rng.uniform(0.2, 0.4)
        shifted = x * count + 0.5 * (np.floor(y * count) % 2)
        return (np.hypot(shifted % 1 - 0.5, (y * count) % 1 - 0.5) < radius).astype(np.float32)
    if pattern == "print":
        noise = value_noise(rng, size, int(rng.integers(8, 36)))
        return (noise > rng.uniform(-0.3, 0.8)).astype(np.float32)
    if pattern == "melange":
        return np.clip(0.5 + 0.3 * value_noise(rng, size, size // 2) + 0.15 * value_noise(rng, size, 12), 0, 1)
    raise ValueError(f"pattern must be one of {sorted(PATTERNS)}, got {pattern!r}")
