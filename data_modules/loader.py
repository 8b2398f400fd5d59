"""A loader that goes on exactly where a run stopped."""

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from data_modules.order.ranks import RankNumbers
from s2kit.errors import UserError


class ResumableLoader(DataLoader):
    """Loads the samples of numbers 0, 1, 2, ... of a stateless order; its whole state is how many were handed out.

    Each pass over the loader is an epoch: ``len(loader)`` batches from where the last one ended. What does not fill a
    batch comes first in the next epoch; nothing is left out and nothing repeated. Batches that workers have prefetched
    but nobody was given do not count, so nothing is lost when a run stops, and it can go on with another number of
    workers or ranks, or another batch size.

    Lightning saves the state with its own loop, but does not load it where a run that counts epochs stopped between two
    of them, or where something asked for the number of steps before; so ``TaskDataModule`` keeps it as well.
    torchdata's StatefulDataLoader is not used: it keeps a snapshot of every worker and refuses another number of them,
    and an order without state has nothing to take a snapshot of.

    Args:
        dataset: Indexed by sample number, without bounds; its length is the number of samples of an epoch.
        batch_size: Samples per batch and rank.
        identity: What decides which sample a number means, as plain values (see ``TrainingSamples.identity``).
        rank: This process's rank.
        world_size: Number of ranks.
        allow_changed: Whether to load a state of another identity.
        unfinished: Says how many of the batches handed out last must not count because training on them did not finish.
        **options: Passed to ``DataLoader``.

    Attributes:
        samples_seen: Samples handed out to all ranks since the start of training; equal on all ranks.

    Raises:
        ValueError: If an epoch is smaller than one batch over all ranks.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        identity: dict[str, Any],
        rank: int = 0,
        world_size: int = 1,
        allow_changed: bool = False,
        unfinished: Callable[[], int] | None = None,
        **options: Any,
    ) -> None:
        sampler = RankNumbers(len(dataset), batch_size, rank, world_size)
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, **options)
        self.identity, self.allow_changed, self.unfinished = identity, allow_changed, unfinished
        self.samples_seen = self._loaded = 0

    def __iter__(self) -> Iterator[Any]:
        start = self.samples_seen
        # Workers start now, not with the first batch.
        return self._count(self._batches_from(start), start)

    def _batches_from(self, start: int) -> Iterator[Any]:
        self.sampler.start = start
        return super().__iter__()

    def _count(self, batches: Iterator[Any], start: int) -> Iterator[Any]:
        if start != self.samples_seen:
            # Strategies that restore after the set-up make Lightning load the state after it called iter().
            start = self.samples_seen
            batches = self._batches_from(start)
        for number, batch in enumerate(batches, 1):
            self.samples_seen = start + number * self.sampler.step
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return ``samples_seen`` and what it refers to, as plain values."""
        given = (self.samples_seen - self._loaded) // self.sampler.step
        unfinished = min(self.unfinished(), given) if self.unfinished else 0
        return {"samples_seen": self.samples_seen - unfinished * self.sampler.step, **self.identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after ``state``: from the next iterator on, or in one that has not been used yet.

        Raises:
            UserError: The state belongs to other data, another mixture or another seed, and ``allow_changed`` is off.
        """
        difference = "" if self.allow_changed else describe_difference(self.identity, state)
        if difference:
            raise UserError(
                f"the checkpoint was written with other data: {difference}. Which samples remained cannot be told; "
                "give the same data and seed, or go on all the same with data.allow_changed=true"
            )
        self.samples_seen = self._loaded = int(state["samples_seen"])


def describe_difference(identity: dict[str, Any], state: dict[str, Any]) -> str:
    """Return in words what differs between this loader's ``identity`` and a saved ``state``; empty if nothing does."""
    for name in ("version", "seed", "block"):
        if identity.get(name) != state.get(name):
            return f"{name} is {identity.get(name)} and was {state.get(name)}"
    now, before = len(identity["digests"]), len(state.get("digests", []))
    if now != before:
        return f"there are {now} sets of samples and were {before}"
    for number in range(now):
        which = "the set" if now == 1 else f"set {number + 1} of {now}"
        for name, title in (("samples", "samples"), ("shares", "draws in 10 000")):
            if identity[name][number] != state[name][number]:
                return f"{which} has {identity[name][number]} {title} and had {state[name][number]}"
        if identity["digests"][number] != state["digests"][number]:
            return f"{which} has the digest {identity['digests'][number]} and had {state['digests'][number]}"
    return ""
