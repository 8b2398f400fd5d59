"""Which sample comes when: a pure function of (seed, epoch, rank), without state."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields ``(index, number)``: which sample, and its number since the start of training.

    The number seeds the sample's augmentation, so a sample looks different in every epoch and the same in a repeated
    run, whatever the number of workers. Every epoch is a fresh permutation, split over ranks; the last samples that do
    not fill a batch on every rank are left out of that epoch.

    Args:
        size: Number of samples in the set.
        batch_size: Samples per batch and rank.
        seed: Seed of the order.
        rank: This process's rank.
        world_size: Number of ranks.

    Raises:
        ValueError: If the set is smaller than one batch over all ranks.
    """

    def __init__(self, size: int, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        chunk = batch_size * world_size
        if size < chunk:
            raise ValueError(
                f"the training set has {size} samples, fewer than one batch of {batch_size} on each of {world_size} "
                f"devices: lower data.batch_size to {size // world_size} or less, or add samples"
            )
        self.size, self.seed, self.rank, self.world_size = size, seed, rank, world_size
        self.used = size // chunk * chunk
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.used // self.world_size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        for position in range(self.rank, self.used, self.world_size):
            yield int(order[position]), self.epoch * self.used + position


class RankSlice(Sampler[int]):
    """Every ``world_size``-th sample from ``rank`` on: each evaluated exactly once, none repeated to pad a rank."""

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = range(rank, size, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
