"""Classes of whole pictures, from what the generator of synthetic humans wrote down of each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Quarters that a person is seen from: the azimuth is 0 in front of the person and grows to the person's left.
VIEWS = ("front", "left", "back", "right")


def picture_classes(meta: dict[str, Any]) -> dict[str, str]:
    """Return the classes of a synthetic sample.

    Args:
        meta: The sample's field ``meta``, as ``data_modules.synth`` writes it.

    Returns:
        ``action``: the pose of the generator's table that it began from (27 of them; the mirrored one counts as the
        same); ``garment``: what is worn below, length included; ``view``: the quarter that the person is seen from.

    Raises:
        ValueError: ``meta`` does not say so: the sample is not synthetic.
    """
    try:
        person = meta["person"]
        quarter = round(meta["camera"]["azimuth_degrees"] / 90) % 4
        return {
            "action": person["pose"]["base"],
            "garment": person["garments"]["bottom"],
            "view": VIEWS[quarter],
        }
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"the sample's meta has no entry {error}: probes by class need pictures of data synth"
        ) from None


def number_classes(train: Sequence[str], held_out: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the classes of training and held-out pictures as numbers, int64 (N,) and (M,).

    A class that no training picture shows has -1, which no classifier tells.
    """
    numbers = {name: number for number, name in enumerate(sorted(set(train)))}
    return tuple(torch.tensor([numbers.get(name, -1) for name in names]) for names in (train, held_out))
