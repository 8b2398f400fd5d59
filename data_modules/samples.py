"""Samples of shard sets as a task sees them: decoded, transformed, and the bad ones told apart."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from data_modules.images import ImageError
from data_modules.order import SampleOrder
from data_modules.shards import ShardDataset, ShardError
from data_modules.transforms import SampleRejected


class TrainingSamples(Dataset[dict[str, Any]]):
    """Training samples by their number since the start of training; the number decides the augmentation too.

    Args:
        sets: The shard sets to draw from.
        transform: ``transform(sample, rng) -> item``.
        weights: Share of the draws of each set, in any unit; by default equal shares.
        seed: Seed of order and augmentation.
        block: Shards whose samples are mixed with each other.

    Attributes:
        ahead: How much later than a batch's numbers those of the next one are that this process is asked for; its
            samples are fetched from remote sets while this batch is decoded. 0 for not knowing.
    """

    def __init__(
        self,
        sets: Sequence[ShardDataset],
        transform: Callable[..., dict],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        block: int = 8,
    ) -> None:
        self.sets, self.transform, self.seed = list(sets), transform, seed
        self.order = SampleOrder([part.counts for part in self.sets], weights, seed, block)
        self.ahead = 0

    def __len__(self) -> int:
        return self.order.epoch_samples

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return the item of sample ``number`` >= 0, in whichever epoch; ``key`` and ``rejected`` (the reason) for one
        that is damaged or that the task cannot learn from.

        Raises:
            data_modules.shards.StorageError: Its shard is gone or out of reach, which says nothing about the sample.
        """
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return the items of several numbers, for which the order is computed at once."""
        numbers = list(numbers)
        sets, indices = self.order.batch(np.asarray(numbers))
        self._prefetch(sets, indices)
        if self.ahead and any(part.folder.is_remote for part in self.sets):
            self._prefetch(*self.order.batch(np.asarray(numbers) + self.ahead))
        return [self._item(self.sets[part], int(index), number) for part, index, number in zip(sets, indices, numbers)]

    def _prefetch(self, sets: np.ndarray, indices: np.ndarray) -> None:
        for number, part in enumerate(self.sets):
            part.prefetch(indices[sets == number].tolist())

    def _item(self, samples: ShardDataset, index: int, number: int) -> dict[str, Any]:
        try:
            return self.transform(samples[index], np.random.default_rng([self.seed, number]))
        except SampleRejected as error:
            return {"key": error.key, "rejected": error.reason}
        except (ShardError, ImageError) as error:
            return {"key": _key(samples, index), "rejected": f"unreadable: {error}"}

    def identity(self) -> dict[str, Any]:
        """Return what decides which sample a number means, as plain values: to be saved and compared."""
        return {**self.order.describe(), "digests": [part.digest for part in self.sets]}


def _key(samples: ShardDataset, index: int) -> str:
    try:
        return samples.key(index)
    except ShardError:
        return f"number {index}"  # the index that holds the keys is what cannot be read


class EvaluationSamples(Dataset[dict[str, Any]]):
    """Every sample of shard sets, one set after the other; one that cannot be read is an error."""

    def __init__(self, sets: Sequence[ShardDataset], transform: Callable[[dict], dict]) -> None:
        self.sets, self.transform = list(sets), transform
        self.ends = np.cumsum([len(part) for part in self.sets])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        samples, own = self._find(index)
        return self.transform(samples[own])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several items; those of remote sets are fetched at the same time."""
        for samples, own in map(self._find, indices):
            samples.prefetch([own])
        return [self[index] for index in indices]

    def _find(self, index: int) -> tuple[ShardDataset, int]:
        part = int(np.searchsorted(self.ends, index, "right"))
        samples = self.sets[part]
        return samples, index - int(self.ends[part]) + len(samples)
