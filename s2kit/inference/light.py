"""sRGB-encoded values and linear light: float in 0..1, any shape, torch-free."""

import numpy as np


def to_linear(encoded: np.ndarray) -> np.ndarray:
    """Decode sRGB values to linear light (IEC 61966-2-1)."""
    encoded = np.clip(encoded, 0.0, 1.0)
    return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def to_srgb(light: np.ndarray) -> np.ndarray:
    """Encode linear light as sRGB values."""
    light = np.clip(light, 0.0, 1.0)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def to_bytes(encoded: np.ndarray) -> np.ndarray:
    """Round sRGB values in 0..1 to uint8."""
    return np.rint(np.clip(encoded, 0.0, 1.0) * 255).astype(np.uint8)


def relight(albedo: np.ndarray, normals: np.ndarray, light: tuple[float, float, float], ambient: float) -> np.ndarray:
    """Shade a matt surface by one distant light and an even one, in linear light.

    Args:
        albedo: (H, W, 3) in 0..1, sRGB-encoded.
        normals: (H, W, 3) unit vectors, x right, y up, z to the camera.
        light: Direction to the light in the same frame, of any length.
        ambient: Share of the even light.

    Returns:
        (H, W, 3) in 0..1, sRGB-encoded. A surface that faces the light has the albedo's own colour.
    """
    direction = np.asarray(light, np.float64) / np.linalg.norm(light)
    shading = ambient + (1 - ambient) * np.clip(normals @ direction, 0.0, None)
    return to_srgb(to_linear(albedo) * shading[..., None])


def straight(premultiplied: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Divide colours (H, W, 3) by coverage (H, W), both in 0..1; 0 where nothing is covered."""
    return np.clip(premultiplied / np.maximum(alpha, 1e-3)[..., None], 0.0, 1.0) * (alpha > 0)[..., None]


def composite(premultiplied: np.ndarray, alpha: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Lay a foreground over a background in linear light, as a lens does.

    Args:
        premultiplied: (H, W, 3) in 0..1: sRGB-encoded colours times coverage.
        alpha: (H, W) coverage in 0..1.
        background: (H, W, 3) or (3,) in 0..1, sRGB-encoded.

    Returns:
        (H, W, 3) in 0..1, sRGB-encoded.
    """
    share = alpha[..., None]
    return to_srgb(to_linear(straight(premultiplied, alpha)) * share + to_linear(background) * (1 - share))
