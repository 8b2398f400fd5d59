"""A progress bar with rate and remaining time on the error stream; in a log, a line now and then."""

import sys
import time
from types import TracebackType
from typing import Any, Self

#: Seconds between two lines where there is no terminal.
PACE = 30.0


class ProgressBar:
    """Use as a context; ``advance`` as work is done.

    Args:
        label: What is counted.
        total: How much there is; None where it is not known.
        done: How much was done before.
        shown: Whether to draw anything.
    """

    def __init__(self, label: str, total: int | None, done: int = 0, shown: bool = True) -> None:
        self._label, self._total, self._done, self._shown = label, total, done, shown
        self._bar: Any = None
        self._lines = False
        self._began = self._said = time.monotonic()
        self._new = 0

    def __enter__(self) -> Self:
        if not self._shown:
            return self
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if not console.is_terminal:
            self._lines = True  # a log is no place for a bar
            return self
        columns = [TextColumn(self._label), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console)
        self._bar.start()
        self._task = self._bar.add_task("", total=self._total, completed=self._done, rate="starting")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, count: int = 1) -> None:
        """Count ``count`` more as done."""
        if self._bar:
            speed = self._bar.tasks[0].speed
            self._bar.update(self._task, advance=count, rate=f"{speed:.3g}/s" if speed else "")
        elif self._lines:
            self._new += count
            now = time.monotonic()
            if now - self._said >= PACE:
                self._said = now
                of = "" if self._total is None else f" of {self._total}"
                rate = self._new / (now - self._began)
                print(f"{self._label}: {self._done + self._new}{of}, {rate:.3g}/s", file=sys.stderr, flush=True)
