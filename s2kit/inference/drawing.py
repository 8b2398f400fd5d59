"""Results as pictures: uint8 (H, W, 3) RGB."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

#: Angular errors from this on are drawn in the last colour of the scale.
MAX_ERROR_DEGREES = 60.0
TITLE_HEIGHT = 22


def draw_normals(normals: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Draw unit normals ``(H, W, 3)`` as RGB = (n + 1) / 2, black where ``valid`` (H, W) is false.

    In the kit's frame red grows to the right, green upwards and blue towards the camera.
    """
    picture = np.clip((normals + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
    if valid is not None:
        picture[~valid] = 0
    return picture


def draw_heat(values: np.ndarray, limit: float, valid: np.ndarray | None = None) -> np.ndarray:
    """Draw values ``(H, W)`` from 0 (dark) to ``limit`` (bright), black where ``valid`` is false."""
    scaled = np.clip(values / limit * 255, 0, 255).astype(np.uint8)
    picture = cv2.cvtColor(cv2.applyColorMap(scaled, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    if valid is not None:
        picture[~valid] = 0
    return picture


def angular_error(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the angle in degrees between unit vectors ``(..., 3)``."""
    return np.degrees(np.arccos(np.clip((first * second).sum(-1), -1, 1)))


def fit_height(picture: np.ndarray, height: int) -> np.ndarray:
    """Scale a picture to ``height``, keeping its shape."""
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    shrinks = height < picture.shape[0]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST)


def with_title(picture: np.ndarray, title: str) -> np.ndarray:
    """Put ``title`` on a strip above the picture."""
    strip = np.full((TITLE_HEIGHT, picture.shape[1], 3), 32, np.uint8)
    scale = min(
        0.45,
        0.45 * picture.shape[1] / max(1, cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)[0][0]),
    )
    cv2.putText(strip, title, (3, 15), cv2.FONT_HERSHEY_SIMPLEX, scale, (235, 235, 235), 1, cv2.LINE_AA)
    return np.vstack([strip, picture])


def grid(rows: Sequence[dict[str, np.ndarray]], height: int) -> np.ndarray:
    """Lay out rows of titled pictures, all scaled to ``height``, left-aligned on a dark ground."""
    drawn = [np.hstack([with_title(fit_height(p, height), title) for title, p in row.items()]) for row in rows]
    width = max(row.shape[1] for row in drawn)
    return np.vstack([np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=16) for row in drawn])


def write_image(path: str | Path, picture: np.ndarray) -> None:
    """Write an RGB or RGBA ``picture`` to ``path`` (the format follows from the suffix), making its folder.

    Raises:
        OSError: If it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    order = cv2.COLOR_RGBA2BGRA if picture.shape[-1] == 4 else cv2.COLOR_RGB2BGR
    done, data = cv2.imencode(path.suffix, cv2.cvtColor(picture, order))
    if not done:
        raise OSError(f"{path}: cannot encode a picture as {path.suffix}")
    path.write_bytes(data.tobytes())
