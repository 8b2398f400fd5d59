"""Samples that training had to leave out: counted by reason, listed in a file, and a limit on their share."""

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

FILE_NAME = "bad_samples.jsonl"
#: Fewer samples than these say nothing; so many bad ones without a good one stop a run at once.
FEW = 16

logger = logging.getLogger(__name__)


class BadSamples:
    """The samples that one process's loader could not use.

    Args:
        max_share: Share of the samples above which training stops.
        min_seen: Samples to have seen before the share says anything; at a run's end 16 will do.

    Attributes:
        seen: Samples that were asked for, good and bad.
        reasons: Number of bad samples by reason; numbers in a reason are replaced by ``N``.
    """

    def __init__(self, max_share: float = 0.1, min_seen: int = 200) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"data.max_bad_share={max_share}: must be a share between 0 and 1")
        self.max_share, self.min_seen = max_share, min_seen
        self.seen = 0
        self.reasons: Counter[str] = Counter()
        self.last = ("", "")
        self.path: Path | None = None
        self.rank = 0

    @property
    def count(self) -> int:
        """Number of bad samples."""
        return self.reasons.total()

    def metrics(self) -> dict[str, int]:
        """Return the counters as they are logged: of all bad samples, and by reason; empty while there are none."""
        if not self.count:
            return {}
        by_reason = {re.sub(r"\W+", "_", reason).strip("_"): count for reason, count in self.reasons.items()}
        return {"data/bad_samples": self.count} | {f"data/bad_samples/{name}": by_reason[name] for name in by_reason}

    def write_to(self, folder: Path | None, rank: int = 0) -> None:
        """List what comes from now on in ``folder`` / ``bad_samples.jsonl``, one line a sample; None lists nothing.

        Ranks share the file: each line is written at once, at the end.
        """
        self.path = None if folder is None else Path(folder) / FILE_NAME
        self.rank = rank

    def add(self, good: int, bad: Sequence[tuple[str, str]], step: int = 0) -> None:
        """Count a batch.

        Args:
            good: Number of usable samples.
            bad: (key, reason) of the others.
            step: Optimiser step, for the file.

        Raises:
            RuntimeError: The share of bad samples is above the limit.
        """
        self.seen += good + len(bad)
        if not bad:
            return
        self.reasons.update(kind_of(reason) for _, reason in bad)
        for key, reason in bad:
            logger.info("sample %s is left out: %s", key, reason)
        if self.path is not None:
            lines = ({"key": key, "reason": reason, "step": step, "rank": self.rank} for key, reason in bad)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self.last = bad[-1]
        # One in so many says nothing yet, but all of them do.
        if self.seen >= self.min_seen or (self.count == self.seen >= FEW):
            self.check()

    def check(self) -> None:
        """Check the share of bad samples among those seen so far.

        Raises:
            RuntimeError: It is above the limit.
        """
        if self.count > self.max_share * self.seen:
            key, reason = self.last
            raise RuntimeError(
                f"{self.count} of {self.seen} training samples could not be used, which is more than "
                f"data.max_bad_share={self.max_share:g}; the last one: {key}: {reason}"
            )


def kind_of(reason: str) -> str:
    """Return a reason without what is particular to one sample: the text up to a colon, numbers as ``N``."""
    return re.sub(r"\[[^\]]*\]|-?\d+(\.\d+)?", "N", reason.partition(":")[0])
