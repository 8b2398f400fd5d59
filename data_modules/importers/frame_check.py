"""Do normals fit the frame that they are said to be in? Nothing in a file of normals says it, so the data must.

A surface that the camera sees faces the camera, which gives the sign of z; and at the outline of a body its normals
point away from the body, which gives the signs of x and y.
"""

from __future__ import annotations

import cv2
import numpy as np

from data_modules.shards.format import NORMALS_FRAMES

#: Mean of n times the direction that is expected, below which a sign is not told from the data.
_CLEAR = 0.1


def axis_agreement(normals: np.ndarray, valid: np.ndarray) -> np.ndarray | None:
    """Return how far each axis agrees with the kit's frame, -1 to 1; None where the picture has no outline.

    Args:
        normals: float (H, W, 3).
        valid: bool (H, W), where they are defined.

    Returns:
        Mean of n_x and n_y along the outward direction of the outline (y up), and of n_z.
    """
    height, width = valid.shape
    scale = max(1, round(max(height, width) / 512))
    normals, valid = normals[::scale, ::scale], valid[::scale, ::scale]
    soft = cv2.GaussianBlur(valid.astype(np.float32), (0, 0), 2)
    outward_x = -cv2.Sobel(soft, cv2.CV_32F, 1, 0)
    outward_y = cv2.Sobel(soft, cv2.CV_32F, 0, 1)  # rows grow downwards, the kit's y upwards
    rim = valid & (cv2.erode(valid.astype(np.uint8), np.ones((3, 3)), borderValue=1) == 0)
    if rim.sum() < 32:
        return None
    length = np.hypot(outward_x, outward_y)[rim] + 1e-9
    along_x = (normals[rim][:, 0] * outward_x[rim] / length).mean()
    along_y = (normals[rim][:, 1] * outward_y[rim] / length).mean()
    return np.array([along_x, along_y, normals[valid][:, 2].mean()])


def check_frame(agreements: list[np.ndarray], frame: str) -> str | None:
    """Return why normals are not in ``frame``, or None.

    Args:
        agreements: ``axis_agreement`` of several samples, of normals already turned from ``frame`` to the kit's.
        frame: What they are said to be.
    """
    if not agreements:
        return None
    mean = np.mean(agreements, axis=0)
    wrong = [axis for axis, value in zip("xyz", mean) if value < -_CLEAR]
    if not wrong:
        return None
    seen = np.array(NORMALS_FRAMES[frame]) * np.where(mean < 0, -1, 1)
    fitting = [name for name, signs in NORMALS_FRAMES.items() if tuple(signs) == tuple(seen)]
    advice = f"they look like {fitting[0]!r}" if fitting else "no frame that the kit knows has such signs"
    reasons = {
        "x": "at the left and right outline they point into the body",
        "y": "at the upper and lower outline they point into the body",
        "z": "they face away from the camera",
    }
    return f"the normals are not in the frame {frame!r}: {' and '.join(reasons[axis] for axis in wrong)}; {advice}"
