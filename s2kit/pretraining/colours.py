"""Colour changes of local views on their device, each decided by the view's own generator."""

from typing import NamedTuple

import kornia
import numpy as np
import torch
from torch import Tensor

#: Pixels of the blur's kernel.
BLUR_KERNEL = 9


class ColourChanges(NamedTuple):
    """How often and how strongly colours change; the strengths are DINO's (Caron et al., 2021).

    Attributes:
        jitter: Probability of the four changes that follow, together.
        brightness, contrast, saturation: Factors are drawn from 1 - s to 1 + s.
        hue: Turns are drawn from -h to h of the circle.
        grayscale, blur, solarise: Probabilities.
        sigma: Range of the blur's standard deviation in pixels.
    """

    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    blur: float = 0.5
    solarise: float = 0.2
    sigma: tuple[float, float] = (0.1, 2.0)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return what happens to one view, float64 (7,): three factors, turn in radians, gray, sigma or 0, solarise."""
        strengths = np.array([self.brightness, self.contrast, self.saturation, 2 * np.pi * self.hue])
        change = rng.uniform(-strengths, strengths) * (rng.random() < self.jitter)
        gray, blurred, solarised = rng.random(3) < (self.grayscale, self.blur, self.solarise)
        sigma = rng.uniform(*self.sigma) if blurred else 0.0
        return np.array([*(1 + change[:3]), change[3], gray, sigma, solarised])


def change_colours(images: Tensor, changes: Tensor) -> Tensor:
    """Change the colours of each image as drawn.

    Args:
        images: float (B, 3, H, W) RGB in 0..1.
        changes: (B, 7) of ``ColourChanges.draw``.

    Returns:
        (B, 3, H, W) in 0..1.
    """
    changes = changes.to(images)
    brightness, contrast, saturation, turn, gray, sigma, solarised = changes.unbind(1)
    x = (images * brightness.view(-1, 1, 1, 1)).clamp(0, 1)
    x = kornia.enhance.adjust_contrast_with_mean_subtraction(x, contrast).clamp(0, 1)
    x = kornia.enhance.adjust_saturation_with_gray_subtraction(x, saturation).clamp(0, 1)
    x = torch.where(_rows(turn != 0), kornia.enhance.adjust_hue(x, turn), x)
    x = torch.where(_rows(gray > 0), kornia.color.rgb_to_grayscale(x).expand_as(x), x)
    spread = sigma.clamp(min=0.1)[:, None].expand(-1, 2)
    x = torch.where(_rows(sigma > 0), kornia.filters.gaussian_blur2d(x, (BLUR_KERNEL, BLUR_KERNEL), spread), x)
    return torch.where(_rows(solarised > 0) & (x >= 0.5), 1 - x, x)


def _rows(condition: Tensor) -> Tensor:
    return condition.view(-1, 1, 1, 1)
