"""Losses of matting on alpha and on the premultiplied foreground (spec matting 12)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2kit.losses.masked import form_weights, prepare, weighted_sum

FORMS = {
    "release": {f"{part}_{term}": 1.0 for part in ("alpha", "foreground") for term in ("l1", "gradient", "laplacian")}
}
SMOOTH, DIFFERENCE = (1.0, 2.0, 1.0), (-1.0, 0.0, 1.0)
SOBEL_EPS = 1e-6
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
LEVELS = 5
# The smallest side of a level that can be padded by reflection.
MIN_SIDE = 3


def _filter(image: Tensor, weights: Sequence[float], axis: int, stride: int = 1) -> Tensor:
    """Filter (B, C, H, W) along one axis, mirrored at the borders; every `stride`th result.

    By sums of slices: on a CPU they are many times as fast as a convolution of each channel by itself.
    """
    half, length = len(weights) // 2, image.shape[axis]
    padded = F.pad(image, (half, half, 0, 0) if axis == 3 else (0, 0, half, half), mode="reflect")
    taps = (slice(start, start + length, stride) for start in range(len(weights)))
    parts = (padded[..., tap] if axis == 3 else padded[..., tap, :] for tap in taps)
    return sum(weight * part for weight, part in zip(weights, parts) if weight)


def sobel_magnitude(image: Tensor) -> Tensor:
    """Length of the Sobel gradient of each channel, (B, C, H, W)."""
    across = _filter(_filter(image, DIFFERENCE, 3), SMOOTH, 2)
    down = _filter(_filter(image, SMOOTH, 3), DIFFERENCE, 2)
    return (across.square() + down.square() + SOBEL_EPS).sqrt()


def sobel_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """L1 between the lengths of the Sobel gradients, times the mask; mean over all elements."""
    return ((sobel_magnitude(prediction) - sobel_magnitude(target)) * valid).abs().mean()


def halve(image: Tensor) -> Tensor:
    """Blur (B, C, H, W) by the binomial filter and leave out every other row and column."""
    return _filter(_filter(image, BINOMIAL, 3, stride=2), BINOMIAL, 2, stride=2)


def double(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarge (B, C, h, w) twofold: zeros between pixels, blurred by the binomial filter, mirrored at the borders.

    Twice the filter is (1, 6, 1) / 8 at the pixels that were there, and (4, 4) / 8 between them.

    Args:
        image: the small image.
        size: (H, W) of the large one; rows and columns beyond it are left out.
    """
    for axis, length in ((3, size[1]), (2, size[0])):
        count = image.shape[axis]
        first = image.narrow(axis, 1, 1)
        # The pixel beyond the last is the last one itself where zeros end the row, else the one before it.
        last = image.narrow(axis, count - 1 if length % 2 == 0 else count - 2, 1)
        padded = torch.cat([first, image, last], dim=axis)
        here, after = padded.narrow(axis, 1, count), padded.narrow(axis, 2, count)
        at = (padded.narrow(axis, 0, count) + 6 * here + after) / 8
        pairs = torch.stack([at, (here + after) / 2], dim=axis + 1)
        image = pairs.flatten(axis, axis + 1).narrow(axis, 0, length)
    return image


def laplacian_pyramid(image: Tensor, levels: int = LEVELS) -> list[Tensor]:
    """What each halving of the resolution loses, finest first, and what is left after the last one.

    An image (B, C, H, W) that is too small for so many levels has fewer.
    """
    pyramid = []
    while len(pyramid) < levels - 1 and min(image.shape[2:]) >= MIN_SIDE:
        small = halve(image)
        pyramid.append(image - double(small, tuple(image.shape[2:])))
        image = small
    return [*pyramid, image]


def laplacian_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """L1 between Laplacian pyramids, the mask multiplied into both: sum of 2^level times the level's mean, / 5."""
    total = prediction.new_zeros(())
    for level, difference in enumerate(laplacian_pyramid(prediction - target)):
        mask = F.interpolate(valid.to(difference.dtype), difference.shape[2:], mode="nearest")
        total = total + 2**level * (difference * mask).abs().mean()
    return total / LEVELS


class MattingLoss(nn.Module):
    """Weighted sum of three terms, each for alpha (everywhere) and for the foreground (where it is known).

    Terms, each a mean over all elements, those that are not valid counting as 0:
        l1: absolute difference.
        gradient: absolute difference of the Sobel gradients' lengths, see `sobel_loss`.
        laplacian: see `laplacian_loss`.

    The last two see a pixel's neighbours: where a neighbour's foreground is not known, it is taken for 0.

    A prediction that is not finite gives a loss that is not finite.

    Args:
        form: "release", all six terms 1. The paper has no matting.
        weights: replaces the weights of some terms (`alpha_l1`, `foreground_gradient`, ...).
    """

    def __init__(self, form: str = "release", weights: dict[str, float] | None = None) -> None:
        super().__init__()
        self.form = form
        self.weights = form_weights(FORMS, form, weights)

    def forward(self, prediction: Tensor, alpha: Tensor, foreground: Tensor, valid: Tensor) -> dict[str, Tensor]:
        """The weighted sum "loss" and each term without its weight.

        Args:
            prediction: premultiplied foreground R, G, B and alpha (B, 4, H, W); one of another height and width is
                resized bilinearly. Computed in float32, or in float64 if it is.
            alpha: (B, 1, H, W) in 0..1.
            foreground: premultiplied (B, 3, H, W) in 0..1; values outside `valid` do not matter, not even NaN.
            valid: bool (B, 1, H, W), where the foreground is known. With no valid pixel its terms are zeros that depend
                on the prediction.

        Raises:
            ValueError: shapes that do not fit.
        """
        if alpha.ndim != 4 or alpha.shape != valid.shape or foreground.shape != (len(alpha), 3, *alpha.shape[2:]):
            raise ValueError(
                "expected alpha (B, 1, H, W), foreground (B, 3, H, W) and valid (B, 1, H, W), got "
                f"{tuple(alpha.shape)}, {tuple(foreground.shape)} and {tuple(valid.shape)}"
            )
        valid = valid.bool()
        target = torch.cat([torch.where(valid, foreground, 0.0), alpha], dim=1)
        prediction, target, everywhere = prepare(prediction, target, torch.ones_like(valid), channels=4)
        parts = {"alpha": (slice(3, 4), everywhere), "foreground": (slice(0, 3), valid)}
        terms = {}
        for part, (channels, mask) in parts.items():
            guess, truth = prediction[:, channels], target[:, channels]
            terms[f"{part}_l1"] = ((guess - truth) * mask).abs().mean()
            terms[f"{part}_gradient"] = sobel_loss(guess, truth, mask)
            terms[f"{part}_laplacian"] = laplacian_loss(guess, truth, mask)
        return weighted_sum(terms, self.weights)
