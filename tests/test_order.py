"""The order of samples: complete, repeatable, invertible, as fast and small for a billion samples as for a hundred."""

import json
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from data_modules.order import Mixture, SampleOrder, ShardOrder, derive_key, permute, unpermute
from data_modules.order.mixture import PERIOD
from data_modules.order.ranks import RankNumbers, RankSlice

# ---------------------------------------------------------------------------------------------------- permutation


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 15, 16, 17, 63, 64, 65, 1000, 9999, 10_000])
def test_a_permutation_takes_every_place_once_and_is_undone(size):
    for number in range(3):
        key = derive_key("test", size, number)
        places = permute(np.arange(size), size, key)
        assert sorted(places.tolist()) == list(range(size))
        np.testing.assert_array_equal(unpermute(places, size, key), np.arange(size))


def test_a_permutation_is_the_same_everywhere():
    """Written down once: a change of any of these numbers would change the order of every run that is resumed."""
    assert int(derive_key(0, 0, 0, "shards")) == 10997976352743656696
    assert permute(np.arange(10), 10, derive_key("a")).tolist() == [0, 4, 5, 7, 2, 8, 1, 6, 9, 3]
    order = SampleOrder([[5, 3, 4, 2], [7, 9]], [3, 1], seed=2, block=2)
    assert [order[n] for n in (0, 1, 2, 3, 4, 10**12)] == [(1, 15), (0, 13), (1, 0), (0, 8), (1, 7), (1, 14)]


def test_every_order_of_a_few_samples_is_equally_likely():
    """Chi-square over all 120 orders of five samples; 119 degrees of freedom, 99.9 % of chance is below 173."""
    trials = 24_000
    keys = np.array([derive_key("order", number) for number in range(trials)])
    places = np.stack([permute(np.full(trials, i), 5, keys) for i in range(5)])
    _, counts = np.unique(places, axis=1, return_counts=True)
    assert len(counts) == 120
    assert ((counts - trials / 120) ** 2 / (trials / 120)).sum() < 173


def test_neighbours_are_torn_apart():
    size = 100_000
    places = permute(np.arange(size), size, derive_key("far"))
    # The distance of two random places is size / 3 on average.
    assert np.abs(np.diff(places)).mean() == pytest.approx(size / 3, rel=0.01)
    assert abs(np.corrcoef(np.arange(size), places)[0, 1]) < 0.01


def test_each_element_has_its_own_size_and_key():
    sizes = np.array([1, 7, 7, 1000])
    keys = np.array([derive_key(i) for i in range(4)])
    values = np.array([0, 6, 6, 512])
    together = permute(values, sizes, keys)
    assert together.tolist() == [int(permute(np.array([v]), s, k)[0]) for v, s, k in zip(values, sizes, keys)]
    assert together[1] != together[2] or sizes[1] != sizes[2]


# ---------------------------------------------------------------------------------------------------- one set

COUNTS = [5, 0, 3, 11, 1, 7, 2, 0, 13, 4]


@pytest.mark.parametrize("block", [1, 3, 8, 100])
def test_an_epoch_holds_every_sample_once(block):
    order = ShardOrder(COUNTS, seed=3, block=block)
    size = sum(COUNTS)
    drawn = order.indices(np.arange(4 * size)).reshape(4, size)
    for epoch, indices in enumerate(drawn):
        assert sorted(indices.tolist()) == list(range(size))
        np.testing.assert_array_equal(order.draws(indices, epoch), epoch * size + np.arange(size))
    assert len({tuple(indices) for indices in drawn.tolist()}) == 4


def test_a_block_holds_whole_shards():
    order = ShardOrder([10] * 12, seed=1, block=3)
    shards = order.indices(np.arange(120)) // 10
    for block in shards.reshape(4, 30):
        assert sorted(Counter(block.tolist()).values()) == [10, 10, 10]
        assert (np.diff(block) != 0).mean() > 0.4  # mixed, not shard after shard
    assert sorted(np.unique(shards.reshape(4, 30)[:, 0])) != [0, 3, 6, 9]


def test_the_order_depends_on_the_seed_and_on_the_set():
    def first(**options) -> list[int]:
        return ShardOrder([10] * 12, **options).indices(np.arange(60)).tolist()

    assert first(seed=1) == first(seed=1)
    assert len({tuple(first(seed=seed, name=name)) for seed in range(3) for name in range(3)}) == 9


def test_a_set_without_samples_is_refused():
    with pytest.raises(ValueError, match="set 4 has no samples"):
        ShardOrder([0, 0], name=4)
    with pytest.raises(ValueError, match="block=0"):
        ShardOrder([3], block=0)


# ---------------------------------------------------------------------------------------------------- mixtures


def test_every_period_of_a_mixture_holds_exactly_its_shares():
    mixture = Mixture([2, 1, 0.5], seed=5)
    assert mixture.shares.tolist() == [5714, 2857, 1429]  # 10 000 times 4/7, 2/7, 1/7: the last has the largest rest
    sets, draws = mixture.locate(np.arange(3 * PERIOD))
    for period in range(3):
        assert np.bincount(sets[period * PERIOD : (period + 1) * PERIOD]).tolist() == [5714, 2857, 1429]
    for name in range(3):
        np.testing.assert_array_equal(draws[sets == name], np.arange(3 * mixture.shares[name]))
        np.testing.assert_array_equal(mixture.numbers(name, draws[sets == name]), np.flatnonzero(sets == name))
    assert not np.array_equal(sets[:PERIOD], sets[PERIOD : 2 * PERIOD])


def test_a_mixture_is_mixed_at_every_scale():
    sets, _ = Mixture([1, 1], seed=0).locate(np.arange(PERIOD))
    hundreds = sets.reshape(-1, 100).mean(1)
    assert 0.2 < hundreds.min() < hundreds.max() < 0.8


def test_a_set_of_a_mixture_goes_through_its_own_epochs():
    """Draw k of a set is sample k % size of its epoch k // size, whatever the others do."""
    counts = [[4, 6], [30, 20, 1], [3]]
    order = SampleOrder(counts, [1, 5, 2.5], seed=9)
    assert order.epoch_samples == 64
    sets, indices = order.batch(np.arange(2000))
    for name, size in enumerate((10, 51, 3)):
        drawn = indices[sets == name]
        for epoch in range(len(drawn) // size):
            part = drawn[epoch * size : (epoch + 1) * size]
            assert sorted(part.tolist()) == list(range(size))
            found = order.numbers(name, part, epoch)
            assert [order[int(n)] for n in found] == [(name, int(i)) for i in part]


def test_weights_that_cannot_be_kept_are_refused():
    with pytest.raises(ValueError, match=r"weights \[1.0, 0.0\]: each must be a positive number"):
        SampleOrder([[3], [3]], [1, 0])
    with pytest.raises(ValueError, match="weight 1e-05 of set 1 comes to less than 1 in 10000 draws"):
        SampleOrder([[3], [3]], [1, 1e-5])
    with pytest.raises(ValueError, match="2 sets and 1 weights"):
        SampleOrder([[3], [3]], [1])
    with pytest.raises(ValueError, match="seed=-1"):
        SampleOrder([[3]], seed=-1)
    with pytest.raises(IndexError, match="sample number -1"):
        SampleOrder([[3]])[-1]


def test_an_order_reaches_other_processes_as_it_is():
    order = SampleOrder([[4, 6], [30, 20, 1]], [1, 5], seed=9)
    numbers = np.arange(300)
    before = order.batch(numbers)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(order)).batch(numbers), before)


# ---------------------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize(("ranks", "batch_size"), [(1, 1), (3, 2), (4, 5)])
def test_ranks_share_the_numbers_without_gaps(ranks, batch_size):
    samplers = [RankNumbers(100, batch_size, rank, ranks) for rank in range(ranks)]
    for sampler in samplers:
        sampler.start = 40
    parts = [list(sampler) for sampler in samplers]
    steps = 100 // (ranks * batch_size)
    assert [len(sampler) for sampler in samplers] == [steps * batch_size] * ranks == [len(part) for part in parts]
    taken = np.array(parts).reshape(ranks, steps, batch_size).transpose(1, 0, 2)
    np.testing.assert_array_equal(taken.ravel(), 40 + np.arange(steps * ranks * batch_size))


def test_a_set_smaller_than_a_batch_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"3 samples.*batch of 8.*lower data.batch_size to 3"):
        RankNumbers(3, 8)


def test_evaluation_ranks_share_the_set_without_repeats():
    parts = [list(RankSlice(7, rank, 3)) for rank in range(3)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(7))
    assert [len(RankSlice(7, rank, 3)) for rank in range(3)] == [3, 2, 2]


def test_an_epoch_over_1024_ranks_covers_a_scaled_down_set_exactly_once():
    """Every number of the epoch that each rank takes, and every sample behind them."""
    order = SampleOrder([np.full(1000, 41)], seed=7)
    taken = np.concatenate([np.fromiter(RankNumbers(41_000, 4, rank, 1024), int) for rank in range(1024)])
    rest = np.arange(len(taken), 41_000)  # does not fill a batch on every rank: the next epoch begins with it
    assert len(rest) == 41_000 % 4096
    _, indices = order.batch(np.concatenate([taken, rest]))
    assert (np.bincount(indices, minlength=41_000) == 1).all()


LARGE = """
import json, time
import numpy as np
from data_modules.order import SampleOrder

def memory():
    # The peak of this program in MiB. getrusage would include that of the process which started it.
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

rng = np.random.default_rng(0)
counts = rng.integers(9_000, 11_001, 100_000)
counts[-1] += 10**9 - counts.sum()
assert counts.min() > 0 and counts.sum() == 10**9
order = SampleOrder([counts], seed=11)
start = time.perf_counter()
order[5 * 10**8]
jump = time.perf_counter() - start
start = time.perf_counter()
order.batch(np.arange(5 * 10**8 + 8, 5 * 10**8 + 72))
batch = time.perf_counter() - start

# Ranks and steps at random: each takes its own numbers, whose samples lead back to them.
ranks, size = 1024, 8
step, rank, place = (rng.integers(0, limit, 20_000) for limit in (10**9 // (ranks * size), ranks, size))
numbers = step * ranks * size + rank * size + place
_, indices = order.batch(numbers)
assert (order.numbers(0, indices) == numbers).all()
assert len(np.unique(indices)) == len(np.unique(numbers))
# Samples at random: each is at one number of the epoch, and it is the sample there.
chosen = np.unique(rng.integers(0, 10**9, 20_000))
numbers = order.numbers(0, chosen)
assert 0 <= numbers.min() and numbers.max() < 10**9 and len(np.unique(numbers)) == len(chosen)
assert (order.batch(numbers)[1] == chosen).all()
later = order.numbers(0, chosen, epoch=3)
assert (later // 10**9 == 3).all() and (order.batch(later)[1] == chosen).all()

mixed = SampleOrder([counts, counts[:7]], [0.9, 0.1], seed=1)
sets, indices = mixed.batch(np.arange(5 * 10**8, 5 * 10**8 + 1000))
for name in range(2):
    for n in np.flatnonzero(sets == name)[:20]:
        epoch = int(mixed.mixture.locate(np.array([5 * 10**8 + n]))[1][0]) // mixed.sets[name].size
        assert mixed.numbers(name, indices[n : n + 1], epoch)[0] == 5 * 10**8 + n
print(json.dumps({"jump": jump, "batch": batch, "memory": memory()}))
"""


def test_a_billion_samples_in_a_hundred_thousand_shards():
    """Inverted by samples; a jump to the middle takes milliseconds, and the process stays below 200 MB."""
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["jump"] < 0.5  # about 0.02 s on a free core
    assert measured["batch"] < 0.1
    assert measured["memory"] < 200
