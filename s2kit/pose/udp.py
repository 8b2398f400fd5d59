"""From keypoints to heatmaps and back by unbiased data processing (UDP; spec 4.2.3), in batches and on any device.

Keypoints are continuous pixels of the network's input: the centre of pixel (row i, column j) is (j + 0.5, i + 0.5).
The codec maps the centres of the input's first and last pixel to those of the heatmap's first and last cell, so a
heatmap's cell c lies at pixel c (W - 1) / (w - 1) + 0.5. The release keeps pixel centres at integers and multiplies a
decoded cell by W / (w - 1) instead, which cancels against the W - 1 of its crops; with crops that are exact in
continuous pixels, as all here are, that is the same place in the picture.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Share of a heatmap's width that the published standard deviation (6 cells of 192) is.
SIGMA_SHARE = 6 / 192
#: A map is zero further than this many standard deviations from its peak.
WINDOW_SIGMAS = 3
#: The Gaussian that maps are blurred with before the sub-cell step (OpenCV's standard deviation for 11 cells).
BLUR_KERNEL = 11
#: Range of the blurred map before its logarithm.
CLIP = (1e-3, 50.0)
#: Values of maps that are blurred at a time: bounds the memory of a decoding.
_BLUR_CHUNK = 2**26


def default_sigma(heatmap_size: tuple[int, int]) -> float:
    """The published standard deviation in cells, 6 for a map (256, 192), scaled with the width; at least 1."""
    return max(1.0, SIGMA_SHARE * heatmap_size[1])


def cell_steps(image_size: tuple[int, int], heatmap_size: tuple[int, int]) -> tuple[float, float]:
    """Pixels per cell along x and y."""
    if min(*image_size, *heatmap_size) < 2:
        raise ValueError(f"image_size {image_size} and heatmap_size {heatmap_size} must be at least 2 x 2")
    return (image_size[1] - 1) / (heatmap_size[1] - 1), (image_size[0] - 1) / (heatmap_size[0] - 1)


def encode_heatmaps(
    keypoints: Tensor,
    visibility: Tensor,
    image_size: tuple[int, int],
    heatmap_size: tuple[int, int],
    sigma: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Gaussian heatmaps about the exact places of keypoints.

    Args:
        keypoints: (B, K, 2) x, y in pixels of the network's input; where `visibility` is 0 they do not matter, not
            even NaN.
        visibility: (B, K); above 0 is labelled.
        image_size, heatmap_size: (height, width) in pixels and in cells.
        sigma: standard deviation in cells; None is `default_sigma`.

    Returns:
        float32 maps (B, K, h, w) in 0..1, zero further than three sigma from the nearest cell, and float32 weights
        (B, K): 1, or 0 where not labelled or where the whole of that window lies outside.
    """
    height, width = heatmap_size
    sigma = default_sigma(heatmap_size) if sigma is None else float(sigma)
    labelled = visibility > 0
    steps = keypoints.new_tensor(cell_steps(image_size, heatmap_size), dtype=torch.float32)
    cells = (torch.where(labelled[..., None], keypoints.float(), 0.5) - 0.5) / steps
    # The window is centred on a whole cell, found as the release does: towards zero.
    middle = torch.trunc(cells + 0.5)
    radius = int(WINDOW_SIGMAS * sigma)
    size = cells.new_tensor([width, height])
    inside = ((middle + radius >= 0) & (middle - radius < size)).all(dim=-1)
    weights = (labelled & inside).float()

    def profile(axis: int, length: int) -> Tensor:
        position = torch.arange(length, device=cells.device, dtype=cells.dtype)
        values = torch.exp(-(position - cells[..., axis, None]).square() / (2 * sigma**2))
        return values * ((position - middle[..., axis, None]).abs() <= radius)

    x, y = profile(0, width), profile(1, height)
    return (y * weights[..., None])[..., :, None] * x[..., None, :], weights


def _blur(maps: Tensor, kernel_size: int) -> Tensor:
    """Blur maps (N, h, w), zero outside, and scale each so that its maximum stays."""
    sigma = 0.3 * ((kernel_size - 1) * 0.5 - 1) + 0.8
    position = torch.arange(kernel_size, device=maps.device, dtype=maps.dtype) - (kernel_size - 1) / 2
    kernel = torch.exp(-position.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    pad, count = kernel_size // 2, len(maps)
    # As channels of one picture: seven times as fast on a CPU as a picture each.
    blurred = F.conv2d(maps[None], kernel.view(1, 1, -1, 1).expand(count, 1, -1, 1), padding=(pad, 0), groups=count)
    blurred = F.conv2d(blurred, kernel.view(1, 1, 1, -1).expand(count, 1, 1, -1), padding=(0, pad), groups=count)[0]
    return blurred * (maps.amax(dim=(1, 2)) / blurred.amax(dim=(1, 2)))[:, None, None]


def _sub_cell_steps(maps: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Newton's step (N, 2) towards the maximum of the logarithm of maps (N, h, w) from the cells (x, y).

    Values are clipped, and beyond the edges they are those of the edges.
    """
    height, width = maps.shape[1:]
    row = torch.arange(len(maps), device=maps.device)

    def at(dx: int, dy: int) -> Tensor:
        return maps[row, (y + dy).clamp(0, height - 1), (x + dx).clamp(0, width - 1)].clamp(*CLIP).log()

    centre, left, right, up, down = at(0, 0), at(-1, 0), at(1, 0), at(0, -1), at(0, 1)
    dx, dy = (right - left) / 2, (down - up) / 2
    # The release's epsilon on the diagonal keeps a flat map's inverse finite.
    eps = torch.finfo(torch.float32).eps
    dxx, dyy = right - 2 * centre + left + eps, down - 2 * centre + up + eps
    dxy = (at(1, 1) - right - down + 2 * centre - left - up + at(-1, -1)) / 2
    determinant = dxx * dyy - dxy * dxy
    return torch.stack([dxy * dy - dyy * dx, dxy * dx - dxx * dy], dim=-1) / determinant[:, None]


@torch.no_grad()
def decode_heatmaps(
    heatmaps: Tensor, image_size: tuple[int, int], blur_kernel: int = BLUR_KERNEL
) -> tuple[Tensor, Tensor]:
    """Keypoints at the maxima of heatmaps, to a fraction of a cell (the release's "dark" step).

    Args:
        heatmaps: (B, K, h, w).
        image_size: (height, width) of the network's input.
        blur_kernel: side of the blur in cells, odd.

    Returns:
        float32 keypoints (B, K, 2), x, y in continuous pixels of the network's input, and scores (B, K), the maxima.
        A map without a positive value gives the place of its maximum, unrefined, and score 0; one that holds a value
        that is not finite gives NaN for both. The step is not limited, as in the release.
    """
    if blur_kernel < 1 or blur_kernel % 2 == 0:
        raise ValueError(f"blur_kernel must be odd, got {blur_kernel}")
    batch, count, height, width = heatmaps.shape
    maps = heatmaps.float().reshape(-1, height, width)
    # NaN is the maximum of what it is in; an infinity makes the blur NaN.
    scores, best = maps.flatten(1).max(dim=1)
    x, y = best % width, best // width
    chunk = max(1, _BLUR_CHUNK // (height * width))
    steps = []
    # Mixed precision would blur in half precision, and the step is a difference of nearly equal values.
    with torch.autocast(maps.device.type, enabled=False):
        for start in range(0, len(maps), chunk):
            part = slice(start, start + chunk)
            steps.append(_sub_cell_steps(_blur(maps[part], blur_kernel), x[part], y[part]))
    step = torch.cat(steps) if steps else maps.new_zeros(0, 2)
    cells = torch.stack([x, y], dim=-1) + torch.where(scores[:, None] > 0, step, 0.0)
    cells = torch.where(scores.isfinite()[:, None], cells, math.nan)
    scores = torch.where(scores.isfinite(), scores.clamp(min=0), math.nan)
    keypoints = cells * cells.new_tensor(cell_steps(image_size, (height, width))) + 0.5
    return keypoints.reshape(batch, count, 2), scores.reshape(batch, count)


def flip_heatmaps(heatmaps: Tensor, flip_map: Tensor) -> Tensor:
    """What the heatmaps (B, K, h, w) of mirrored pictures say about the pictures: mirrored, left and right swapped.

    Args:
        flip_map: int64 (K,), the keypoint that each becomes in a mirror.
    """
    return heatmaps.flip(-1)[:, flip_map]
