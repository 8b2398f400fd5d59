"""Which set each draw of a mixture comes from."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from data_modules.order.permutation import derive_key, permute

#: Draws in which every set gets its share exactly; the resolution of weights.
PERIOD = 10_000


def largest_remainder(weights: Sequence[float], total: int) -> np.ndarray:
    """Split ``total`` into whole numbers in proportion to ``weights``: what rounding down leaves goes to the largest
    remainders, of equal ones to the first."""
    exact = np.asarray(weights, np.float64) / np.sum(weights) * total
    shares = np.floor(exact).astype(np.int64)
    left = total - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:left]] += 1
    return shares


class Mixture:
    """Sends number n to (set, how many draws of that set came before).

    Each period of ``PERIOD`` numbers holds every set exactly as often as its weight says, in an order that is permuted
    anew; so the draws of a set before n follow from n alone.

    Args:
        weights: Share of the draws of each set, in any unit.
        seed: Seed of the order.

    Raises:
        ValueError: A weight is not a positive number, or so small that a period has no draw for it.
    """

    def __init__(self, weights: Sequence[float], seed: int = 0) -> None:
        if not all(np.isfinite(weight) and weight > 0 for weight in weights):
            raise ValueError(f"weights {list(weights)}: each must be a positive number; leave out a set of weight 0")
        self.seed = seed
        self.shares = largest_remainder(weights, PERIOD)
        if self.shares.min() == 0:
            number = int(self.shares.argmin())
            raise ValueError(
                f"weight {weights[number]:g} of set {number} comes to less than 1 in {PERIOD} draws: "
                "raise it or leave the set out"
            )
        self._ends = np.cumsum(self.shares)
        self._period = lru_cache(maxsize=2)(self._make_period)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_period"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._period = lru_cache(maxsize=2)(self._make_period)

    def _make_period(self, period: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the set of each place, the earlier places of that set, and the places sorted by set."""
        slots = permute(np.arange(PERIOD), PERIOD, derive_key(self.seed, "mixture", period))
        sets = np.searchsorted(self._ends, slots, "right")
        places = np.argsort(sets, kind="stable")
        earlier = np.empty(PERIOD, np.int64)
        earlier[places] = np.arange(PERIOD) - (self._ends - self.shares)[sets[places]]
        return sets, earlier, places

    def locate(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sets (n,) of ``numbers`` (n,), and how many draws of these sets come before."""
        periods, places = np.divmod(numbers, PERIOD)
        sets, draws = np.empty_like(places), np.empty_like(places)
        for period in np.unique(periods):
            chosen = periods == period
            of_place, earlier, _ = self._period(int(period))
            sets[chosen] = of_place[places[chosen]]
            draws[chosen] = period * self.shares[sets[chosen]] + earlier[places[chosen]]
        return sets, draws

    def numbers(self, name: int, draws: np.ndarray) -> np.ndarray:
        """Return the numbers of the given ``draws`` (n,) of set ``name``: the inverse of ``locate``."""
        periods, rest = np.divmod(np.asarray(draws, np.int64), self.shares[name])
        first = self._ends[name] - self.shares[name]
        numbers = np.empty_like(periods)
        for period in np.unique(periods):
            chosen = periods == period
            numbers[chosen] = period * PERIOD + self._period(int(period))[2][first + rest[chosen]]
        return numbers
