"""Arguments of the tools: mistakes end in one line and exit code 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> None:
        self.exit(2, f"s2kit: error: {message}\n")


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a type for whole numbers in a range."""
    return _number(int, "a whole number", least, most)


def real(least: float, most: float | None = None) -> Callable[[str], float]:
    """Return a type for numbers in a range."""
    return _number(float, "a number", least, most)


def _number(kind: type, what: str, least: float, most: float | None) -> Callable[[str], int | float]:
    limits = f"{what} from {least}" + (f" to {most}" if most is not None else "")

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (least <= value and (most is None or value <= most)):
            raise argparse.ArgumentTypeError(f"must be {limits}, got {text!r}")
        return value

    return parse
