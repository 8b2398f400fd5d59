"""The nearest-neighbour entropy regulariser (Sablayrolles et al., 2019; paper section 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from s2kit.losses.masked import at_least_float32
from s2kit.precision import without_autocast

#: Added to a distance before its logarithm: two equal embeddings are no infinite loss.
DISTANCE_EPS = 1e-8


def koleo_loss(embeddings: Tensor) -> Tensor:
    """Return minus the mean logarithm of the distance of each embedding to its nearest neighbour in the batch.

    Args:
        embeddings: (B, D) of one view of different pictures, of any length; they are brought to the unit sphere.

    Returns:
        A scalar; 0, with a gradient of 0, for a batch of one, which has no neighbour.
    """
    if len(embeddings) < 2:
        return at_least_float32(embeddings).sum() * 0.0
    unit = F.normalize(at_least_float32(embeddings), dim=-1, eps=1e-8)
    with torch.no_grad(), without_autocast(unit):
        likeness = unit @ unit.T
        nearest = likeness.fill_diagonal_(-2).argmax(dim=1)
    # The square root's slope is infinite at 0: the distance of equal embeddings must not reach it.
    distance = ((unit - unit[nearest]).square().sum(-1) + DISTANCE_EPS**2).sqrt()
    return -(distance + DISTANCE_EPS).log().mean()
