"""Order of samples: complete, disjoint over ranks, a function of seed and epoch."""

import numpy as np
import pytest

from data_modules.sampling import EpochSampler, RankSlice


def epoch_of(sampler: EpochSampler, epoch: int) -> list[tuple[int, int]]:
    sampler.set_epoch(epoch)
    return list(sampler)


def test_an_epoch_holds_every_sample_once_over_the_ranks():
    drawn = [epoch_of(EpochSampler(12, 2, seed=3, rank=rank, world_size=3), 5) for rank in range(3)]
    assert sorted(index for part in drawn for index, _ in part) == list(range(12))
    assert sorted(number for part in drawn for _, number in part) == list(range(60, 72))
    assert [len(part) for part in drawn] == [4, 4, 4]


def test_order_differs_between_epochs_and_repeats_with_the_seed():
    first, second = (epoch_of(EpochSampler(50, 5, seed=1), epoch) for epoch in (0, 1))
    assert [i for i, _ in first] != [i for i, _ in second]
    assert first == epoch_of(EpochSampler(50, 5, seed=1), 0)
    assert first != epoch_of(EpochSampler(50, 5, seed=2), 0)


def test_an_incomplete_batch_is_left_to_another_epoch():
    sampler = EpochSampler(11, 4)
    assert len(sampler) == 8
    left_out = [set(range(11)) - {i for i, _ in epoch_of(sampler, epoch)} for epoch in range(20)]
    assert all(len(part) == 3 for part in left_out)
    assert len(set().union(*left_out)) == 11


def test_a_set_smaller_than_a_batch_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"3 samples.*batch of 8.*lower data.batch_size to 3"):
        EpochSampler(3, 8)


def test_evaluation_ranks_share_the_set_without_repeats():
    parts = [list(RankSlice(7, rank, 3)) for rank in range(3)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(7))
    assert [len(RankSlice(7, rank, 3)) for rank in range(3)] == [3, 2, 2]
