"""The order of one shard set: shards permuted, and within blocks of shards the samples."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from data_modules.order.permutation import derive_key, permute, subkeys, unpermute


class _Epoch(NamedTuple):
    """One epoch of a set; arrays per shard, none per sample."""

    shards: np.ndarray  # (S,) which shard comes at each slot
    starts: np.ndarray  # (S + 1,) where each slot's samples begin
    blocks: np.ndarray  # (number of blocks + 1,) where each block's samples begin
    shard_key: np.uint64
    sample_key: np.uint64


class ShardOrder:
    """The order in which the samples of one set are drawn, epoch after epoch, each without replacement.

    In an epoch the shards are permuted; ``block`` neighbours in that order form a block, whose samples are permuted
    among themselves. So reads stay within a few shards at a time, and which shards these are changes with every epoch.

    Args:
        counts: Number of samples in each shard.
        seed: Seed of the order.
        name: Tells sets of one mixture apart.
        block: Shards in a block.

    Raises:
        ValueError: The set is empty, or ``block`` is not positive.
    """

    def __init__(self, counts: Sequence[int] | np.ndarray, seed: int = 0, name: int = 0, block: int = 8) -> None:
        self.counts = np.asarray(counts, np.int64)
        self.seed, self.name, self.block = seed, name, block
        self.first = np.concatenate([[0], np.cumsum(self.counts)])
        self.size = int(self.first[-1])
        if self.size == 0 or self.counts.min() < 0:
            raise ValueError(f"set {name} has no samples")
        if block < 1:
            raise ValueError(f"block={block}: the number of shards whose samples are mixed must be at least 1")
        # A batch touches at most two epochs of a set larger than it; a set in a mixture may be smaller.
        self._epoch = lru_cache(maxsize=4)(self._make_epoch)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_epoch"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._epoch = lru_cache(maxsize=4)(self._make_epoch)

    def _make_epoch(self, epoch: int) -> _Epoch:
        shard_key, sample_key = (derive_key(self.seed, self.name, epoch, part) for part in ("shards", "samples"))
        shards = permute(np.arange(len(self.counts)), len(self.counts), shard_key)
        starts = np.concatenate([[0], np.cumsum(self.counts[shards])])
        blocks = np.append(starts[: -1 : self.block], starts[-1])
        return _Epoch(shards, starts, blocks, shard_key, sample_key)

    def indices(self, draws: np.ndarray) -> np.ndarray:
        """Return the index in the set of each of its ``draws`` (n,), counted from the start of training."""
        epochs, positions = np.divmod(draws, self.size)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            indices[chosen] = self._locate(self._epoch(int(epoch)), positions[chosen])
        return indices

    def _locate(self, epoch: _Epoch, positions: np.ndarray) -> np.ndarray:
        block = np.searchsorted(epoch.blocks, positions, "right") - 1
        start = epoch.blocks[block]
        key = subkeys(epoch.sample_key, block)
        mixed = start + permute(positions - start, epoch.blocks[block + 1] - start, key)
        slot = np.searchsorted(epoch.starts, mixed, "right") - 1
        return self.first[epoch.shards[slot]] + mixed - epoch.starts[slot]

    def draws(self, indices: np.ndarray, epoch: int = 0) -> np.ndarray:
        """Return which draws of the set give ``indices`` (n,) in ``epoch``: the inverse of ``indices``."""
        indices = np.asarray(indices, np.int64)
        table = self._epoch(epoch)
        shard = np.searchsorted(self.first, indices, "right") - 1
        slot = unpermute(shard, len(self.counts), table.shard_key)
        mixed = table.starts[slot] + indices - self.first[shard]
        block = slot // self.block
        start = table.blocks[block]
        key = subkeys(table.sample_key, block)
        return epoch * self.size + start + unpermute(mixed - start, table.blocks[block + 1] - start, key)
