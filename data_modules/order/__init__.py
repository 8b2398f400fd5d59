"""Which sample comes when: pure functions of (sizes, seed, number), without state. See docs/data.md.

What each rank takes of it is in ``data_modules.order.ranks``, which needs torch; the rest needs numpy alone.
"""

from data_modules.order.mixture import Mixture
from data_modules.order.permutation import derive_key, permute, unpermute
from data_modules.order.sample_order import SampleOrder
from data_modules.order.shards import ShardOrder

__all__ = [
    "Mixture",
    "SampleOrder",
    "ShardOrder",
    "derive_key",
    "permute",
    "unpermute",
]
