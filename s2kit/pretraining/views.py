"""The views of a picture: which crops, masks and colours, and cutting them on the device in one resampling."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from s2kit.precision import without_autocast
from s2kit.pretraining.colours import ColourChanges
from s2kit.pretraining.masking import random_mask, visible_indices

#: Attempts at a crop that lies in the picture before the largest one of its aspect is taken.
ATTEMPTS = 10


def random_box(
    size: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw the box of a random-resized crop.

    Args:
        size: (height, width) of the picture in pixels.
        scale: Range of the crop's area as a share of the picture's, evenly.
        aspect: Range of width / height in pixels, evenly in its logarithm.
        rng: Decides it.

    Returns:
        float64 (4,): left, top, right, bottom in pixels, inside of the picture.
    """
    height, width = size
    for _ in range(ATTEMPTS):
        area = rng.uniform(*scale) * height * width
        ratio = math.exp(rng.uniform(*np.log(aspect)))
        box_width, box_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if box_width <= width and box_height <= height:
            break
    else:
        # The picture is too narrow or too flat for such crops: the largest of the middle aspect.
        ratio = math.sqrt(aspect[0] * aspect[1])
        box_width = min(width, height * ratio)
        box_height = box_width / ratio
    left, top = rng.uniform(0, width - box_width), rng.uniform(0, height - box_height)
    return np.array([left, top, left + box_width, top + box_height])


def centre_box(size: tuple[int, int], aspect: float) -> np.ndarray:
    """Return the largest box of width / height ``aspect`` in the middle of a picture, (4,) as ``random_box``."""
    height, width = size
    box_width = min(width, height * aspect)
    box_height = box_width / aspect
    left, top = (width - box_width) / 2, (height - box_height) / 2
    return np.array([left, top, left + box_width, top + box_height])


def crop_and_resize(images: Tensor, boxes: Tensor, flips: Tensor, size: Sequence[int]) -> Tensor:
    """Cut a box out of each image and scale it to ``size``, bilinearly; colours are not touched.

    Args:
        images: (B, C, H, W), uint8 or floating point.
        boxes: (B, 4) left, top, right, bottom in pixels; pixel j covers [j, j + 1).
        flips: bool (B,), mirrored from left to right.
        size: (height, width) of the crops.

    Returns:
        (B, C, h, w) float32, in the images' range.
    """
    height, width = images.shape[-2:]
    images = images.float()
    boxes = boxes.to(images.device, torch.float32)
    left, top, right, bottom = boxes.unbind(1)
    sign = torch.where(flips.to(images.device), -1.0, 1.0)
    # Output coordinates run from -1 to 1 over the crop, input coordinates over the whole image.
    theta = torch.zeros(len(images), 2, 3, device=images.device)
    theta[:, 0, 0] = sign * (right - left) / width
    theta[:, 0, 2] = (left + right) / width - 1
    theta[:, 1, 1] = (bottom - top) / height
    theta[:, 1, 2] = (top + bottom) / height - 1
    # The coordinates come out of a matrix product: in bfloat16 they would be off by up to 4 pixels at 4K.
    with without_autocast(images):
        grid = F.affine_grid(theta, [len(images), images.shape[1], *size], align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class MultiCrop:
    """Draws the views of pictures, each from a generator of its own: (seed of the sample, number of the view).

    Attributes:
        image_size, local_size: (height, width) of global and local crops in pixels.
        grid: (height, width) of a global crop in patches.
        views, local_views: Crops of a picture.
        crop_scale, local_scale: Range of the area as a share of the picture's.
        crop_aspect: Range of the factor on ``image_size``'s aspect.
        flip: Probability of mirroring.
        mask_ratio, blockwise: See ``random_mask``.
        colours: Of the local crops.
    """

    image_size: tuple[int, int]
    local_size: tuple[int, int]
    grid: tuple[int, int]
    views: int
    local_views: int
    crop_scale: tuple[float, float]
    local_scale: tuple[float, float]
    crop_aspect: tuple[float, float]
    flip: float
    mask_ratio: float
    blockwise: float
    colours: ColourChanges

    @property
    def aspect(self) -> float:
        """Width / height of a crop."""
        return self.image_size[1] / self.image_size[0]

    def draw(self, sizes: Sequence[tuple[int, int]], seeds: Sequence[int]) -> dict[str, Tensor]:
        """Draw the views of a batch, view by view.

        Args:
            sizes: (height, width) in pixels of each of B pictures.
            seeds: Of each.

        Returns:
            ``boxes`` float32 (V B, 4), ``flips`` bool (V B,), ``masked`` bool (V B, h w) and ``keep`` int64 (V B, K) of
            the global crops; ``local_boxes``, ``local_flips`` and ``local_colours`` (see ``ColourChanges.draw``).
        """
        drawn: dict[str, list] = {
            name: [] for name in ("boxes", "flips", "local_boxes", "local_flips", "local_colours")
        }
        masks = []
        for view in range(self.views + self.local_views):
            prefix = "" if view < self.views else "local_"
            for size, seed in zip(sizes, seeds):
                rng = np.random.default_rng([seed, view])
                drawn[f"{prefix}boxes"].append(self._box(size, self.local_scale if prefix else self.crop_scale, rng))
                drawn[f"{prefix}flips"].append(rng.random() < self.flip)
                if prefix:
                    drawn["local_colours"].append(self.colours.draw(rng))
                else:
                    masks.append(random_mask(self.grid, self.mask_ratio, rng, self.blockwise))
        tensors = {name: torch.from_numpy(np.array(values)) for name, values in drawn.items()}
        return {**_single(tensors), **_masks(masks)}

    def draw_centre(self, sizes: Sequence[tuple[int, int]], seeds: Sequence[int]) -> dict[str, Tensor]:
        """Draw one view of a picture: the largest crop in the middle, not mirrored; ``boxes`` to ``keep`` as above."""
        masks = [
            random_mask(self.grid, self.mask_ratio, np.random.default_rng([seed, 0]), self.blockwise) for seed in seeds
        ]
        boxes = np.array([centre_box(size, self.aspect) for size in sizes])
        return {**_single({"boxes": torch.from_numpy(boxes)}), "flips": torch.zeros(len(seeds)).bool(), **_masks(masks)}

    def _box(self, size: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
        return random_box(size, scale, (self.aspect * self.crop_aspect[0], self.aspect * self.crop_aspect[1]), rng)


def _single(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def _masks(masks: Sequence[np.ndarray]) -> dict[str, Tensor]:
    stacked = np.stack(masks)
    return {
        "masked": torch.from_numpy(stacked).flatten(1),
        "keep": torch.from_numpy(visible_indices(stacked)),
    }
