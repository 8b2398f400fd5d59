"""Linear regression and classification on features, solved in closed form."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: Strengths of the penalty to choose from, per sample; features have variance 1 by then.
STRENGTHS = tuple(10.0**exponent for exponent in range(-5, 3))


@torch.no_grad()
def fit_ridge(
    train_features: Tensor, train_values: Tensor, strengths: Sequence[float] = STRENGTHS
) -> tuple[Tensor, Tensor]:
    """Fit a ridge regression on standardised features.

    The strength is the one of least squared leave-one-out error, which the singular values give in closed form:
    (y - prediction) / (1 - leverage) is the error at a sample that was left out.

    Args:
        train_features: (N, D) floating point, N at least 2.
        train_values: (N, C); labels as one-hot rows.
        strengths: To choose from.

    Returns:
        Weight float64 (D, C) and bias float64 (C,): ``features @ weight + bias`` are the values told.

    Raises:
        ValueError: There are fewer than two training features.
    """
    if len(train_features) < 2:
        raise ValueError(f"a linear probe needs at least two training features, got {len(train_features)}")
    x, y = train_features.double(), train_values.double()
    mean, share = x.mean(dim=0), y.mean(dim=0)
    scale = x.std(dim=0, correction=0)
    # What is the same in all pictures says nothing; divided by its rounding error it would.
    scale = torch.where(scale > 1e-6 * (1 + mean.abs()), scale, torch.inf)
    left, values, right = torch.linalg.svd((x - mean) / scale, full_matrices=False)
    told = left.T @ (y - share)
    best = None
    for strength in strengths:
        shrink = values.square() / (values.square() + len(x) * strength)
        leverage = 1 / len(x) + (left.square() * shrink).sum(dim=1, keepdim=True)
        error = ((y - share - left @ (shrink[:, None] * told)) / (1 - leverage).clamp(min=1e-9)).square().mean()
        if best is None or error < best[0]:
            best = error, strength
    inverse = values / (values.square() + len(x) * best[1])
    weight = right.T @ (inverse[:, None] * told) / scale[:, None]
    return weight, share - mean @ weight


def linear_probe(train_features: Tensor, train_labels: Tensor, features: Tensor, labels: Tensor) -> float:
    """Return the share of ``features`` (M, D) whose class (M,) a ridge regression tells, in %; see ``fit_ridge``.

    Two ways were weighed: steps of L-BFGS on the cross-entropy, and this. Ridge regression has no learning rate and no
    number of steps, gives the same on every run, chooses its one number itself, and costs one decomposition (N D^2), so
    that it can run in the middle of a pretraining.

    Raises:
        ValueError: There are fewer than two training features.
    """
    weight, bias = fit_ridge(train_features, F.one_hot(train_labels))
    return 100 * float(((features.double() @ weight + bias).argmax(dim=1) == labels).double().mean())
