"""What every transform of a raw sample checks and converts."""

from collections.abc import Collection
from typing import Any

import cv2
import numpy as np

from s2kit.errors import UserError


class SampleRejected(UserError):
    """A sample has nothing to learn from, or labels that the task cannot read.

    In training the loader skips and counts it, and never puts another in its place; in evaluation it is an error.

    Attributes:
        key: The sample's key.
        reason: What is wrong with it.
    """

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        return f"sample {self.key!r} rejected: {self.reason}"


#: Maps of the image's height and width: type and channels (0: none).
MAPS = {
    "image": (np.uint8, 3),
    "alpha": (np.uint8, 0),
    "foreground": (np.uint8, 3),
    "normals": (np.float32, 3),
    "depth": (np.float32, 0),
    "albedo": (np.uint8, 3),
    "parts": (np.uint8, 0),
}


def check_sample(sample: dict[str, Any], required: Collection[str] = ()) -> tuple[int, int]:
    """Return the picture's (H, W) after checking that fields are there, and the shapes and types of all maps.

    Raises:
        SampleRejected: If the sample lacks a required field.
        ValueError: If a map has a wrong type or shape.
    """
    key, image = sample.get("key"), sample["image"]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"sample {key!r}: 'image' must be uint8 (H, W, 3), got {image.dtype} {image.shape}")
    for name in required:
        if name not in sample:
            raise SampleRejected(key, f"it has no {name!r}; it has {', '.join(sorted(set(sample) - {'key'}))}")
    for name, (dtype, channels) in MAPS.items():
        shape = image.shape[:2] + ((channels,) if channels else ())
        if name in sample and (sample[name].dtype != dtype or sample[name].shape != shape):
            raise ValueError(
                f"sample {key!r}: {name!r} must be {np.dtype(dtype)} {shape} like its image, "
                f"got {sample[name].dtype} {sample[name].shape}"
            )
    return image.shape[0], image.shape[1]


def step_probabilities(published: dict[str, float], changed: dict[str, float]) -> dict[str, float]:
    """Return the probability of every step: the published one where ``changed`` does not say another.

    Raises:
        ValueError: If ``changed`` names a step that is not there, or a value is no probability.
    """
    for name, value in changed.items():
        if name not in published:
            raise ValueError(f"{name}={value!r}: there is no such step; there are {', '.join(published)}")
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: it is a probability, from 0 to 1")
    return {**published, **changed}


def draw_steps(probability: dict[str, float], rng: np.random.Generator) -> dict[str, bool]:
    """Return which steps happen.

    All are drawn, and before anything else, so that another probability of one leaves the choice of the others.
    """
    return {name: bool(rng.random() < p) for name, p in probability.items()}


def to_planes(image: np.ndarray) -> np.ndarray:
    """Turn (h, w, 3) into contiguous (3, h, w)."""
    return np.stack(cv2.split(image))
