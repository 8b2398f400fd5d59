"""Masks of pretraining: exact counts, both kinds, their distribution."""

import numpy as np
import pytest

from s2kit.pretraining.masking import masked_count, random_mask, visible_indices


@pytest.mark.parametrize("grid", [(64, 48), (16, 12), (3, 5), (1, 2), (7, 1)])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75, 0.99])
@pytest.mark.parametrize("blockwise", [0.0, 1.0])
def test_the_number_of_masked_patches_is_exact(grid, ratio, blockwise):
    count = masked_count(grid, ratio)
    assert 1 <= count <= grid[0] * grid[1] - 1
    for seed in range(20):
        mask = random_mask(grid, ratio, np.random.default_rng(seed), blockwise)
        assert mask.shape == grid
        assert mask.sum() == count


def test_three_quarters_of_the_published_grid_are_2304_patches():
    assert masked_count((64, 48), 0.75) == 2304


def test_a_seed_means_a_mask():
    first, again = (random_mask((16, 12), 0.75, np.random.default_rng([5, 0])) for _ in range(2))
    other = random_mask((16, 12), 0.75, np.random.default_rng([5, 1]))
    assert (first == again).all()
    assert (first != other).any()


def edges(mask: np.ndarray) -> int:
    """Pairs of neighbours of which one is masked."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def test_two_of_five_masks_are_made_of_blocks_and_every_patch_is_masked_as_often():
    grid, ratio, total = (32, 24), 0.75, 2000
    masks = np.stack([random_mask(grid, ratio, np.random.default_rng(seed)) for seed in range(total)])
    # Of single patches each of the 1480 pairs of neighbours differs with probability 2 * 0.75 * 0.25; blocks hang
    # together.
    counts = np.array([edges(mask) for mask in masks])
    pairs = 31 * 24 + 32 * 23
    expected = 2 * 0.75 * 0.25 * pairs * 768 / 767
    single = np.abs(counts - expected) < 6 * np.sqrt(pairs * 0.375 * 0.625)
    assert counts[~single].max() < 0.6 * expected
    # 3.5 standard deviations of a binomial around 0.6.
    assert abs(single.mean() - 0.6) < 3.5 * np.sqrt(0.6 * 0.4 / total)
    share = masks[single].mean(axis=0)
    assert np.abs(share - ratio).max() < 5 * np.sqrt(ratio * (1 - ratio) / single.sum())
    blocks = masks[~single].mean(axis=0)
    assert blocks.mean() == pytest.approx(ratio)
    assert np.abs(blocks - ratio).max() < 0.1


def test_visible_patches_are_those_not_masked_in_order():
    masks = np.array([[[1, 0, 1], [0, 1, 1]], [[0, 0, 1], [1, 1, 1]]], bool)
    indices = visible_indices(masks)
    assert indices.dtype == np.int64
    assert indices.tolist() == [[1, 3], [0, 1]]


@pytest.mark.parametrize(("grid", "ratio"), [((4, 4), 0.0), ((4, 4), 1.0), ((1, 1), 0.5)])
def test_nothing_to_see_or_to_mask_is_refused(grid, ratio):
    with pytest.raises(ValueError, match=r"mask_ratio|nothing to see"):
        masked_count(grid, ratio)
