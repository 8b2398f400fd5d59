"""Pictures as foreground over background: premultiplication, blending, and the foreground's colour at soft rims."""

import cv2
import numpy as np

#: Coverage from which a pixel counts as wholly covered, of 255: 0.996 (release, matting 12).
OPAQUE = 254

_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _rim(alpha: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.nonzero((alpha > 0) & (alpha < 255))


def _encode(light: np.ndarray) -> np.ndarray:
    """Turn linear light in 0..1 into sRGB in 0..255, rounded."""
    return np.rint(255 * np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055))


def premultiply(foreground: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Multiply straight colours uint8 (H, W, 3) by coverage uint8 (H, W), rounded."""
    result = cv2.copyTo(foreground, (alpha > 0).view(np.uint8))
    rim = _rim(alpha)
    result[rim] = np.rint(result[rim] * (alpha[rim][:, None] / 255))
    return result


def straighten(premultiplied: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Undo ``premultiply``, as well as 8 bits allow; 0 where alpha is 0."""
    result = cv2.copyTo(premultiplied, (alpha > 0).view(np.uint8))
    rim = _rim(alpha)
    result[rim] = np.minimum(np.rint(result[rim] * (255 / alpha[rim][:, None])), 255)
    return result


def composite(foreground: np.ndarray, alpha: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Lay straight colours over a background, in linear light, as a lens does.

    Args:
        foreground: (H, W, 3) uint8 sRGB, any value where alpha is 0.
        alpha: (H, W) uint8.
        background: (H, W, 3) uint8 sRGB.

    Returns:
        (H, W, 3) uint8 sRGB, the background itself where alpha is 0, the foreground itself where it is 255.
    """
    result = background.copy()
    cv2.copyTo(foreground, (alpha == 255).view(np.uint8), result)
    rim = _rim(alpha)
    share = alpha[rim][:, None] / np.float32(255)
    result[rim] = _encode(_LINEAR[foreground[rim]] * share + _LINEAR[background[rim]] * (1 - share))
    return result


def estimate_foreground(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Estimate the straight foreground colour of a picture whose coverage is known, at its soft rim.

    Blur-fusion (Forte, Approximate Fast Foreground Colour Estimation, ICIP 2021), in linear light as ``composite``:
    local means of foreground and background weighted by coverage, then corrected such that both blend to the picture;
    first with a wide window, then with a narrow one.

    Args:
        image: (H, W, 3) uint8 sRGB.
        alpha: (H, W) uint8.

    Returns:
        (H, W, 3) uint8 sRGB: the picture itself where alpha is 255, and 0 where it is 0.
    """
    result = cv2.copyTo(image, (alpha == 255).view(np.uint8))
    soft = (alpha > 0) & (alpha < 255)
    rows, columns = np.flatnonzero(soft.any(axis=1)), np.flatnonzero(soft.any(axis=0))
    if not len(rows):
        return result
    # Only the surroundings of soft pixels matter, as far as the windows reach.
    wide, narrow = max(3, round(min(image.shape[:2]) * 0.09) | 1), 7
    y0, x0 = max(0, rows[0] - wide), max(0, columns[0] - wide)
    part = (slice(y0, rows[-1] + 1 + wide), slice(x0, columns[-1] + 1 + wide))
    share, light = alpha[part].astype(np.float32)[..., None] / 255, cv2.LUT(image[part], _LINEAR)
    front, back = light, light
    for side in (wide, narrow):
        front, back = _fuse(light, front, back, share, side)
    result[part][soft[part]] = _encode(front[soft[part]])
    return result


def _fuse(
    image: np.ndarray, front: np.ndarray, back: np.ndarray, share: np.ndarray, side: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return better colours (H, W, 3) float32 of foreground and background; ``share`` is (H, W, 1)."""

    def mean(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
        total = cv2.blur(weight, (side, side))[..., None]
        return cv2.blur(values * weight, (side, side)) / (total + 1e-5)

    front_mean, back_mean = mean(front, share), mean(back, 1 - share)
    corrected = front_mean + share * (image - share * front_mean - (1 - share) * back_mean)
    return np.clip(corrected, 0, 1), back_mean
