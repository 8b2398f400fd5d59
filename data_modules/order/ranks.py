"""What each rank takes: sample numbers in training, a slice of the set in evaluation."""

from collections.abc import Iterator

from torch.utils.data import DistributedSampler


class RankNumbers(DistributedSampler):
    """The sample numbers of one rank in an epoch of training, from ``start`` on.

    Step t takes the ``world_size * batch_size`` numbers from ``start + t * world_size * batch_size`` on, and each rank
    a contiguous part of them. So ``start``, which all ranks share, is all that a resumed run needs, and it may have
    another number of ranks or another batch size.

    It is a ``DistributedSampler`` because Lightning and others leave these alone instead of putting their own in place.

    Args:
        epoch_samples: Numbers that make an epoch; those that do not fill a batch on every rank are left to the next.
        batch_size: Samples per batch and rank.
        rank: This process's rank.
        world_size: Number of ranks.

    Raises:
        ValueError: If an epoch is smaller than one batch over all ranks.
    """

    def __init__(self, epoch_samples: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(epoch_samples), world_size, rank, shuffle=False)
        self.step = batch_size * world_size
        if epoch_samples < self.step:
            raise ValueError(
                f"the training set has {epoch_samples} samples, fewer than one batch of {batch_size} on each of "
                f"{world_size} devices: lower data.batch_size to {epoch_samples // world_size} or less, or add samples"
            )
        self.batch_size = batch_size
        self.batches = epoch_samples // self.step
        self.start = 0

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        first = self.start + self.rank * self.batch_size
        for batch in range(first, first + self.batches * self.step, self.step):
            yield from range(batch, batch + self.batch_size)


class RankSlice(DistributedSampler):
    """Every ``world_size``-th sample from ``rank`` on: each evaluated exactly once, none repeated to pad a rank."""

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        super().__init__(range(size), world_size, rank, shuffle=False)
        self.indices = range(rank, size, world_size)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
