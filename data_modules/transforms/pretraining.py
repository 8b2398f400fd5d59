"""From a raw sample to an item for pretraining: the picture alone, in a canvas of fixed size."""

import zlib
from typing import Any

import numpy as np

from data_modules.transforms.checks import SampleRejected, check_sample, to_planes
from data_modules.transforms.geometry import scale_matrix, warp_image


class PretrainTransform:
    """The picture in the upper left corner of a canvas, shrunk where it does not fit and never enlarged.

    Random crops and colours are made on the device, from ``size`` pixels: so the worker only decodes and shrinks, all
    pictures of a batch have one shape, and no crop shows padding.

    Args:
        canvas: (height, width) in pixels.
        min_side: Pictures with a shorter side are rejected.
    """

    def __init__(self, canvas: tuple[int, int] = (1024, 768), *, min_side: int = 16) -> None:
        self.canvas, self.min_side = (int(canvas[0]), int(canvas[1])), min_side

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Make an item of a raw sample with ``image``; nothing is random yet but ``seed``.

        Returns:
            ``image`` uint8 (3, h, w), 0 beside the picture; ``size`` int64 (2,), height and width of the picture in the
            canvas, from its corner; ``crop`` float32 (3, 3) source pixel -> canvas pixel; ``source_size`` int64 (H, W);
            ``key``; ``seed`` int, which decides its crops and masks on the device: drawn from ``rng``, or without one
            from the key.

        Raises:
            SampleRejected: If the picture is too small.
            ValueError: If ``image`` has a wrong type or shape.
        """
        height, width = check_sample(sample)
        if min(height, width) < self.min_side:
            raise SampleRejected(
                sample["key"], f"its picture has {height} x {width} pixels, a side of {self.min_side} is the least"
            )
        scale = min(1.0, self.canvas[0] / height, self.canvas[1] / width)
        inner = (max(1, round(height * scale)), max(1, round(width * scale)))
        matrix = scale_matrix(inner[1] / width, inner[0] / height)
        image = np.zeros((3, *self.canvas), np.uint8)
        image[:, : inner[0], : inner[1]] = to_planes(warp_image(sample["image"], matrix, inner))
        return {
            "key": sample["key"],
            "image": image,
            "size": np.array(inner, np.int64),
            "crop": matrix.astype(np.float32),
            "source_size": np.array((height, width), np.int64),
            "seed": zlib.crc32(sample["key"].encode()) if rng is None else int(rng.integers(2**63)),
        }
