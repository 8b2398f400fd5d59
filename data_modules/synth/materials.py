"""Procedural materials: linear reflectance textures of skin, hair, eyes and cloth."""

from __future__ import annotations

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


def sample_cloth(rng: np.random.Generator) -> tuple[Material, dict[str, object]]:
    """A random cloth and its description."""
    hue, saturation, value = rng.random(), rng.beta(1.5, 2.0), rng.beta(1.6, 1.6)
    channels = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    color = srgb_to_linear(value * (1 - saturation * (1 - channels)) * 0.9 + 0.03)
    roughness = float(rng.uniform(0.35, 0.95))
    return plain(color, roughness, 0.2), {"pattern": "plain", "roughness": round(roughness, 3)}
