"""The reconstruction loss of masked pretraining (paper section 1)."""

from __future__ import annotations

from torch import Tensor

from s2kit.losses.masked import at_least_float32

#: Added to a patch's variance, in squared units of normalised colour: flat patches are not blown up to noise.
VARIANCE_EPS = 1e-6


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, h w, P P C): patches row by row, in each its pixels row by row, colours innermost."""
    batch, channels, height, width = images.shape
    x = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Undo ``patchify``: (B, h w, P P C) and the grid (h, w) -> (B, C, H, W)."""
    x = patches.unflatten(1, grid).unflatten(3, (patch, patch, -1))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def normalised_patches(images: Tensor, patch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return each patch normalised by its own mean and variance (over pixels and colours), and the two.

    Returns:
        (B, h w, P P C), then mean and standard deviation (B, h w, 1): ``target * deviation + mean`` are the pixels.
    """
    patches = patchify(images.float(), patch)
    mean = patches.mean(dim=-1, keepdim=True)
    deviation = (patches.var(dim=-1, correction=0, keepdim=True) + VARIANCE_EPS).sqrt()
    return (patches - mean) / deviation, mean, deviation


def reconstruction_loss(prediction: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    """Return the squared error, averaged over each masked patch and over all of them.

    Args:
        prediction: (B, N, P P C).
        target: The same, of ``normalised_patches``.
        masked: bool (B, N), true where a patch was hidden; only these count.
    """
    error = (at_least_float32(prediction) - target).square().mean(dim=-1)
    # A product, not a selection: shapes stay static, and a batch without a masked patch has loss 0.
    return (error * masked).sum() / masked.sum().clamp(min=1)
