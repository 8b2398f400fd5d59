"""Tables of a sweep: mean and spread of each result, and the mean rank."""

from __future__ import annotations

import csv
import io
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from s2kit.report import show
from s2kit.sweeps.config import Sweep
from s2kit.sweeps.state import State

RANK = "mean rank"


@dataclass(frozen=True)
class Cell:
    """Mean of a result over the values of the averaged axis, its standard deviation (None of one), and how many."""

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        return show(self.mean) + ("" if self.deviation is None else f" ± {show(self.deviation)}")


def group_name(sweep: Sweep, point: dict[str, str]) -> str:
    """Return the name of a trial's row: its values of all axes but the averaged one."""
    axes = [axis for axis in sweep.grid if axis != sweep.average] or list(sweep.grid)
    return point[axes[0]] if len(axes) == 1 else ", ".join(f"{axis} {point[axis]}" for axis in axes)


def read_values(sweep: Sweep) -> dict[str, dict[str, dict[str, float]]]:
    """Return the results of finished trials: row -> value of the averaged axis -> result -> number."""
    values: dict[str, dict[str, dict[str, float]]] = {}
    for trial in sweep.trials():
        row = values.setdefault(group_name(sweep, trial.point), {})
        state = State.read(trial)
        if state.values:
            row[trial.point.get(sweep.average, "")] = state.values
    return values


def ranks(numbers: dict[str, float], higher_is_better: bool) -> dict[str, float]:
    """Return the rank of each, 1 for the best; equal numbers share the mean of their ranks."""
    sign = -1 if higher_is_better else 1
    return {
        name: 1
        + sum(sign * other < sign * value for other in numbers.values())
        + (sum(other == value for other in numbers.values()) - 1) / 2
        for name, value in numbers.items()
    }


def mean_ranks(sweep: Sweep) -> dict[str, dict[str, float]]:
    """Return the rank of each row averaged over the ranked results: row -> value of the averaged axis -> mean rank.

    Only values of the averaged axis for which every row is finished count: ranks among fewer say something else.
    """
    values = read_values(sweep)
    complete = [key for key in next(iter(values.values())) if all(key in row for row in values.values())]
    found: dict[str, dict[str, float]] = {row: {} for row in values}
    for key in complete:
        by_result = [
            ranks({row: values[row][key][result.name] for row in values}, result.higher_is_better)
            for result in sweep.results
            if result.ranked
        ]
        for row in values:
            found[row][key] = statistics.fmean(part[row] for part in by_result)
    return found


def summarise(sweep: Sweep) -> dict[str, dict[str, Cell]]:
    """Return row -> result (and ``RANK``) -> cell; what has no number yet is left out."""
    rank = mean_ranks(sweep)
    rows: dict[str, dict[str, Cell]] = {}
    for row, by_key in read_values(sweep).items():
        columns = {result.name: [numbers[result.name] for numbers in by_key.values()] for result in sweep.results}
        columns[RANK] = list(rank[row].values())
        rows[row] = {name: _cell(numbers) for name, numbers in columns.items() if numbers}
    return rows


def _cell(numbers: list[float]) -> Cell:
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Cell(statistics.fmean(numbers), deviation, len(numbers))


def columns(sweep: Sweep) -> list[str]:
    """Return the titles of the table's columns: the results with an arrow to the better side, and the mean rank."""
    return [f"{result.name} {'↑' if result.higher_is_better else '↓'}" for result in sweep.results] + [f"{RANK} ↓"]


def markdown(sweep: Sweep) -> str:
    """Return the table as Markdown, the best mean of each column bold."""
    rows = summarise(sweep)
    names = [*(result.name for result in sweep.results), RANK]
    higher = [*(result.higher_is_better for result in sweep.results), False]
    axes = [axis for axis in sweep.grid if axis != sweep.average] or list(sweep.grid)
    lines = [f"| {', '.join(axes)} | {' | '.join(columns(sweep))} | n |", "|---" * (len(names) + 2) + "|"]
    for row, cells in rows.items():
        texts = []
        for name, is_higher in zip(names, higher):
            means = [other[name].mean for other in rows.values() if name in other]
            best = (max if is_higher else min)(means, default=None)
            cell = cells.get(name)
            texts.append("-" if cell is None else f"**{cell}**" if cell.mean == best else str(cell))
        count = max((cell.count for cell in cells.values()), default=0)
        lines.append(f"| {row} | {' | '.join(texts)} | {count} |")
    return "\n".join(lines) + "\n"


def trials_csv(sweep: Sweep) -> str:
    """Return every trial as a line of CSV: its point, status, reason, seconds of its steps and results."""
    steps, results = [step.name for step in sweep.steps], [result.name for result in sweep.results]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*sweep.grid, "status", "reason", *(f"{name}, s" for name in steps), *results])
    for trial in sweep.trials():
        state = State.read(trial)
        seconds = [state.seconds.get(name, "") for name in steps]
        numbers = [state.values.get(name, "") for name in results]
        writer.writerow([*trial.point.values(), state.status, state.failed or "", *seconds, *numbers])
    return text.getvalue()


def summary_csv(sweep: Sweep) -> str:
    """Return the table as CSV: of each result its mean, standard deviation and number of trials."""
    names = [*(result.name for result in sweep.results), RANK]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", *(f"{name} {part}" for name in names for part in ("mean", "deviation", "n"))])
    for row, cells in summarise(sweep).items():
        found = [cells.get(name) for name in names]
        parts = [
            [cell.mean, "" if cell.deviation is None else cell.deviation, cell.count] if cell else ["", "", 0]
            for cell in found
        ]
        writer.writerow([row, *(value for part in parts for value in part)])
    return text.getvalue()


def write_tables(sweep: Sweep) -> list[Path]:
    """Write ``table.md``, ``table.csv`` and ``trials.csv`` into the sweep's folder; return their paths."""
    texts = {"table.md": markdown(sweep), "table.csv": summary_csv(sweep), "trials.csv": trials_csv(sweep)}
    for name, text in texts.items():
        temporary = sweep.folder / f".{name}.{os.getpid()}.tmp"
        temporary.write_text(text)
        os.replace(temporary, sweep.folder / name)
    return [sweep.folder / name for name in texts]
