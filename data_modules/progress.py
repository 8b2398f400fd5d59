"""A progress bar with rate and remaining time on the error stream, where that is a terminal."""

from types import TracebackType
from typing import Any, Self


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

    def __enter__(self) -> Self:
        if not self._shown:
            return self
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        if not console.is_terminal:
            return self  # a log is no place for a bar
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
