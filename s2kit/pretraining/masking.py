"""Which patches of a view are masked (paper section 1): an exact number of them, in blocks or patch by patch."""

import math

import numpy as np

#: Sides of a block, in patches: its area is drawn from this share of the grid, its aspect (height / width) log-evenly
#: from this range. Neither is stated in the paper; these are BEiT's (Bao et al., 2022).
BLOCK_AREA = (0.02, 0.15)
BLOCK_ASPECT = (0.3, 1 / 0.3)


def masked_count(grid: tuple[int, int], ratio: float) -> int:
    """Return how many patches of a (height, width) grid are masked: at least one, and never all.

    Raises:
        ValueError: ``ratio`` is not between 0 and 1, or the grid has fewer than two patches.
    """
    patches = grid[0] * grid[1]
    if not 0 < ratio < 1:
        raise ValueError(f"mask_ratio must be above 0 and below 1, got {ratio}")
    if patches < 2:
        raise ValueError(f"a grid of {grid[0]} x {grid[1]} patches leaves nothing to see or nothing to mask")
    return min(max(1, round(ratio * patches)), patches - 1)


def random_mask(
    grid: tuple[int, int], ratio: float, rng: np.random.Generator, blockwise_probability: float = 0.4
) -> np.ndarray:
    """Draw a mask.

    Args:
        grid: (height, width) in patches.
        ratio: Share of the patches that is masked; the number is the same in every call (see ``masked_count``), so
            that shapes are static.
        rng: Decides it.
        blockwise_probability: How often the mask is made of blocks; else each patch is drawn on its own.

    Returns:
        bool (height, width), true where masked.
    """
    count = masked_count(grid, ratio)
    if rng.random() >= blockwise_probability:
        mask = np.zeros(grid[0] * grid[1], bool)
        mask[rng.permutation(mask.size)[:count]] = True
        return mask.reshape(grid)
    return _blocks(grid, count, rng)


def _blocks(grid: tuple[int, int], count: int, rng: np.random.Generator) -> np.ndarray:
    """Lay blocks until at least ``count`` patches lie under them, then take back the last block's surplus."""
    height, width = grid
    mask = np.zeros(grid, bool)
    masked = 0
    while masked < count:
        area = rng.uniform(*BLOCK_AREA) * height * width
        aspect = math.exp(rng.uniform(*np.log(BLOCK_ASPECT)))
        rows = min(max(1, round(math.sqrt(area * aspect))), height)
        columns = min(max(1, round(math.sqrt(area / aspect))), width)
        # Blocks may hang over the border: inside of it only, they would hardly ever reach the corners.
        top, left = rng.integers(1 - rows, height), rng.integers(1 - columns, width)
        block = mask[max(0, top) : top + rows, max(0, left) : left + columns]
        new = np.argwhere(~block)
        surplus = masked + len(new) - count
        if surplus > 0:
            # The block stays one piece: what is left out are its last rows.
            new = new[: len(new) - surplus]
        block[new[:, 0], new[:, 1]] = True
        masked += len(new)
    return mask


def visible_indices(masks: np.ndarray) -> np.ndarray:
    """Return the row-major indices of the patches that are seen, int64 (B, K), of masks (B, h, w) of one count."""
    flat = ~masks.reshape(len(masks), -1)
    return np.nonzero(flat)[1].reshape(len(masks), -1).astype(np.int64)
