"""Small rotation helpers: 3 x 3 float64 matrices, angles in degrees."""

from __future__ import annotations

import numpy as np


def unit(vector: np.ndarray) -> np.ndarray:
    """The vectors (..., 3) at length 1; a zero vector stays zero."""
    vector = np.asarray(vector, np.float64)
    return vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-12)


def turn(axis: np.ndarray, degrees: float) -> np.ndarray:
    """Rotation about an axis by the right-hand rule (Rodrigues' formula)."""
    x, y, z = unit(axis)
    angle = np.deg2rad(degrees)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)


def euler(x: float, y: float, z: float) -> np.ndarray:
    """First about x (bend forward), then about z (to the person's right), then about y (turn to the left)."""
    return turn([0, 1, 0], y) @ turn([0, 0, 1], z) @ turn([1, 0, 0], x)


def frame(direction: np.ndarray, pole: np.ndarray) -> np.ndarray:
    """Orthonormal columns: the direction, the part of the pole across it, and their cross product."""
    first = unit(direction)
    second = np.asarray(pole, np.float64) - first * np.dot(first, pole)
    if np.linalg.norm(second) < 1e-6:
        second = np.eye(3)[np.argmin(np.abs(first))]
        second = second - first * np.dot(first, second)
    second = unit(second)
    return np.stack([first, second, np.cross(first, second)], axis=1)


def power(rotation: np.ndarray, exponent: float) -> np.ndarray:
    """The same axis, the angle times the exponent."""
    angle = np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))
    axis = np.array(
        [
            rotation[2, 1] - rotation[1, 2],
            rotation[0, 2] - rotation[2, 0],
            rotation[1, 0] - rotation[0, 1],
        ]
    )
    if np.linalg.norm(axis) < 1e-9:
        return np.eye(3)
    return turn(axis, np.rad2deg(angle) * exponent)


def swing(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The smallest rotation that takes one direction to another."""
    start, end = unit(start), unit(end)
    axis = np.cross(start, end)
    sine = np.linalg.norm(axis)
    if sine < 1e-9:
        return np.eye(3) if start @ end > 0 else turn(frame(start, [0.3, 0.5, 0.8])[:, 1], 180)
    return turn(axis, np.rad2deg(np.arctan2(sine, start @ end)))
