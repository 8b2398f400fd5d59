"""Unit vectors as two whole numbers, by a stereographic or an octahedral map; (0, 0) means no direction.

*Stereographic*: ``u = x / (1 + z)`` and ``v = y / (1 + z)``, each times 4095, rounded. The half that faces the camera
is the unit disc; the map is conformal, and coarsest at its centre: at most 0.02 degrees off, (0, 0, 1) itself 0.03. It
holds directions down to z = -0.597, where a code reaches 8159 and a predicted code just fits in 16 bits. The way back
is one division.

*Octahedral* (Cigolle et al. 2014, "A Survey of Efficient Representations for Independent Unit Vectors"): project on
``|x| + |y| + |z| = 1``, fold the half with z < 0 over the diagonals, keep x and y in ``2**bits - 1`` steps of -1 .. 1.
It holds all directions.
"""

import cv2
import numpy as np

from data_modules.shards.scratch import scratch

STEREOGRAPHIC_SCALE = 4095
#: The largest code whose prediction residual, four times that and 128, is below 2**15.
STEREOGRAPHIC_LIMIT = 8159

_STRIP = 1 << 16  # pixels per step of the way back: its few arrays then stay in the cache


def fold_stereographic(normals: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the stereographic codes of finite ``(H, W, 3)`` normals, two int32 ``(H, W)``; None if one is too far.

    The normals may have any length; (0, 0, 0) becomes (0, 0), and (0, 0, 1) itself (1, 0).
    """
    unit, inside = _normalise(normals, np.sqrt(np.square(normals, dtype=np.float64).sum(-1)))
    with np.errstate(divide="ignore", invalid="ignore"):
        u, v = (np.rint(unit[..., axis] * STEREOGRAPHIC_SCALE / (1 + unit[..., 2])) for axis in (0, 1))
    # (0, 0, -1) is 0 / 0 and fails the comparison.
    if not (np.maximum(np.abs(u), np.abs(v)) <= STEREOGRAPHIC_LIMIT).all():
        return None
    return _mark(u, v, inside)


def fold_octahedral(normals: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the octahedral codes of finite ``(H, W, 3)`` normals, two int32 ``(H, W)``; see ``fold_stereographic``."""
    half = (1 << (bits - 1)) - 1
    unit, inside = _normalise(normals, np.abs(normals).sum(-1, dtype=np.float64))
    x, y, z = np.moveaxis(unit, 2, 0)
    below = z < 0
    u = np.where(below, (1 - np.abs(y)) * np.copysign(1, x), x)
    v = np.where(below, (1 - np.abs(x)) * np.copysign(1, y), y)
    return _mark(np.rint(u * half), np.rint(v * half), inside)


def unfold_stereographic(u: np.ndarray, v: np.ndarray, out: np.ndarray) -> None:
    """Turn stereographic codes into unit vectors.

    Args:
        u: float32 (H + 1, W + 1), whole numbers behind a row and a column of zeros; overwritten, as is ``v``.
        v: The same for the second coordinate.
        out: float32 (H, W, 3) that takes the result.
    """
    scale = np.float32(STEREOGRAPHIC_SCALE)

    def unfold(x: np.ndarray, y: np.ndarray, z: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
        np.multiply(x, x, out=a)
        np.multiply(y, y, out=b)
        a += b
        np.add(a, scale * scale, out=b)
        np.divide(2 * scale, b, out=b)
        x *= b
        y *= b
        np.multiply(b, scale, out=z)
        z -= np.float32(1)
        # No direction: z is 1 there, and a is 0. Elsewhere a is at least 1.
        np.minimum(z, a, out=z)

    _in_strips(u, v, unfold, out)


def unfold_octahedral(u: np.ndarray, v: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Turn octahedral codes into unit vectors; arguments as for ``unfold_stereographic``."""
    half = np.float32((1 << (bits - 1)) - 1)

    def unfold(x: np.ndarray, y: np.ndarray, z: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
        np.abs(x, out=a)
        np.abs(y, out=b)
        a += b
        np.subtract(half, a, out=z)
        if z.min() < 0:
            fold = np.minimum(z, 0)
            x -= np.copysign(fold, x, out=b)
            y -= np.copysign(fold, y, out=b)
        length = x * x
        length += np.multiply(y, y, out=b)
        length += np.multiply(z, z, out=b)
        np.divide(1, np.sqrt(length, out=length), out=length)
        x *= length
        y *= length
        z *= length
        np.minimum(z, a, out=z)

    _in_strips(u, v, unfold, out)


def _in_strips(u: np.ndarray, v: np.ndarray, unfold, out: np.ndarray) -> None:
    width = u.shape[1]
    rows = max(1, _STRIP // width)
    for top in range(0, len(out), rows):
        # Strips of whole rows, with the column of zeros, are contiguous: numpy is fastest on these.
        x, y = (codes[top + 1 : top + 1 + rows].reshape(-1) for codes in (u, v))
        z, a, b = (scratch(name, x.shape) for name in ("z", "a", "b"))
        unfold(x, y, z, a, b)
        cv2.merge([array.reshape(-1, width)[:, 1:] for array in (x, y, z)], dst=out[top : top + rows])


def _normalise(normals: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    inside = length > 0
    return normals / np.where(inside, length, 1)[..., None], inside


def _mark(u: np.ndarray, v: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    u, v = u.astype(np.int32), v.astype(np.int32)
    u[inside & (u == 0) & (v == 0)] = 1
    return u, v
