"""The order of training samples: the sample at number n is a function of the sets, the seed and n."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_modules.order.mixture import Mixture
from data_modules.order.shards import ShardOrder


class SampleOrder:
    """Sends a number n >= 0 to (set, index in the set), for one set or a weighted mixture of several.

    Nothing is remembered between calls but tables that can be computed again, with one entry a shard: the cost does not
    depend on n, and the memory not on the number of samples. Draw k of a set belongs to its epoch ``k // size``, and in
    each of its epochs every sample of the set comes exactly once, in a mixture as well.

    Args:
        sets: For each set, the number of samples in each of its shards.
        weights: Share of the draws of each set, in any unit; by default equal shares. They are kept to 1 in 10 000.
        seed: Seed of the order.
        block: Shards whose samples are mixed with each other (see ``ShardOrder``).

    Attributes:
        epoch_samples: Numbers that make an epoch: the size of all sets together. For a single set each sample once; in
            a mixture those of a set come more than once if its weight is above its share of the samples, and not all of
            them if it is below.

    Raises:
        ValueError: A set is empty, weights and sets do not fit, or the seed is negative.
    """

    def __init__(
        self,
        sets: Sequence[Sequence[int] | np.ndarray],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        block: int = 8,
    ) -> None:
        weights = [1.0] * len(sets) if weights is None else [float(weight) for weight in weights]
        if not sets or len(weights) != len(sets):
            raise ValueError(f"{len(sets)} sets and {len(weights)} weights: there must be one weight for each set")
        if seed < 0:
            raise ValueError(f"seed={seed}: must not be negative")
        self.sets = [ShardOrder(counts, seed, number, block) for number, counts in enumerate(sets)]
        self.mixture = Mixture(weights, seed)
        self.epoch_samples = sum(part.size for part in self.sets)

    def __getitem__(self, number: int) -> tuple[int, int]:
        """Return (set, index in the set) of ``number``."""
        sets, indices = self.batch(np.array([number], np.int64))
        return int(sets[0]), int(indices[0])

    def batch(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return sets (n,) and indices in the sets (n,), int64, of ``numbers`` (n,).

        Raises:
            IndexError: A number is negative.
        """
        numbers = np.asarray(numbers, np.int64)
        if numbers.size and numbers.min() < 0:
            raise IndexError(f"sample number {numbers.min()}: numbers start at 0")
        if len(self.sets) == 1:
            return np.zeros_like(numbers), self.sets[0].indices(numbers)
        sets, draws = self.mixture.locate(numbers)
        indices = np.empty_like(draws)
        for name in np.unique(sets):
            chosen = sets == name
            indices[chosen] = self.sets[name].indices(draws[chosen])
        return sets, indices

    def numbers(self, name: int, indices: np.ndarray, epoch: int = 0) -> np.ndarray:
        """Return the numbers (n,) at which set ``name`` shows ``indices`` (n,) in its ``epoch``: inverts ``batch``."""
        draws = self.sets[name].draws(indices, epoch)
        return draws if len(self.sets) == 1 else self.mixture.numbers(name, draws)

    def describe(self) -> dict[str, Any]:
        """Return what the order depends on, as plain values: equal descriptions mean equal orders."""
        return {
            "version": 1,
            "seed": self.sets[0].seed,
            "block": self.sets[0].block,
            "samples": [part.size for part in self.sets],
            "shares": self.mixture.shares.tolist(),
        }
