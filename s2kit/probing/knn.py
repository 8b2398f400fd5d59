"""Nearest neighbours: what is told from features without any training."""

import torch
from torch import Tensor
from torch.nn import functional as F

from s2kit.precision import without_autocast

#: Pictures that are compared with all training pictures at a time.
CHUNK = 1024


@torch.no_grad()
def knn_predict(
    train_features: Tensor, train_labels: Tensor, features: Tensor, k: int = 20, temperature: float = 0.07
) -> Tensor:
    """Return the class that the ``k`` nearest training features vote for.

    A neighbour of cosine similarity s votes with weight exp(s / temperature) (Wu et al., 2018; DINO's protocol).

    Args:
        train_features: (N, D) floating point, on the device of ``features``.
        train_labels: int64 (N,), from 0.
        features: (M, D).
        k: Neighbours that vote; at most N do.
        temperature: The lower, the more the nearest count.

    Returns:
        int64 (M,).

    Raises:
        ValueError: There is no training feature, or ``k`` or ``temperature`` is not positive.
    """
    if not len(train_features) or k < 1 or not temperature > 0:
        raise ValueError(
            f"{len(train_features)} training features, k={k}, temperature={temperature}: all must be positive"
        )
    bank = F.normalize(train_features.float(), dim=1)
    classes = int(train_labels.max()) + 1
    votes = []
    for part in features.split(CHUNK):
        with without_autocast(part):
            similarity, nearest = (F.normalize(part.float(), dim=1) @ bank.T).topk(min(k, len(bank)), dim=1)
        # Relative to the nearest, so that no exponential overflows; the order of the sums stays.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        count = weight.new_zeros(len(part), classes)
        votes.append(count.scatter_add_(1, train_labels[nearest], weight).argmax(dim=1))
    return torch.cat(votes) if votes else train_labels.new_zeros(0)


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    labels: Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Return the share of ``features`` whose class (M,) the nearest neighbours tell, in %; see ``knn_predict``."""
    return 100 * float((knn_predict(train_features, train_labels, features, k, temperature) == labels).double().mean())


def majority_accuracy(train_labels: Tensor, labels: Tensor) -> float:
    """Return the share of ``labels`` (M,) that are the most frequent of ``train_labels`` (N,), in %: what is right by
    knowing nothing of the picture."""
    return 100 * float((labels == torch.bincount(train_labels).argmax()).double().mean())
