"""Whether self-distillation collapses: how much the assignments and the features still differ."""

import math

import torch
from torch import Tensor


@torch.no_grad()
def collapse_meters(teacher: Tensor, features: Tensor) -> dict[str, Tensor]:
    """Measure a batch.

    Args:
        teacher: Probabilities (..., P) of the teacher.
        features: [cls] embeddings (B, D) of the student for different pictures.

    Returns:
        ``mean_entropy``: entropy of the teacher's mean assignment, as a share of log P; near 0 where all samples fall
        on one prototype, unless Sinkhorn-Knopp spreads them: then it is 1 whatever happens. ``sample_entropy``: mean
        entropy of a sample's assignment, likewise; 1 where the teacher says nothing. ``information``: the first less
        the second, what an assignment tells of its sample; 0 where all samples have the same, be it one prototype or
        all of them, under either centring; at most log B / log P. ``effective_rank``: exponential of the entropy of
        the features' singular values (Roy and Vetterli, 2007), centred over the batch; 1 where they lie on a line, at
        most B - 1. ``feature_deviation``: mean standard deviation over the batch of the features brought to length
        sqrt(D); 0 where all are equal.
    """
    rows = teacher.float().flatten(0, -2)
    scale = math.log(rows.shape[1])
    x = torch.nn.functional.normalize(features.float(), dim=1) * math.sqrt(features.shape[1])
    values = torch.linalg.svdvals(x - x.mean(0))
    values = values / values.sum().clamp(min=1e-12)
    mean, sample = _entropy(rows.mean(0)) / scale, _entropy(rows).mean() / scale
    return {
        "mean_entropy": mean,
        "sample_entropy": sample,
        "information": mean - sample,
        "effective_rank": _entropy(values).exp(),
        "feature_deviation": x.std(0, correction=0).mean(),
    }


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)
