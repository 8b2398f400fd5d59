"""Metrics as tables in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from s2kit.tasks import Task


def show(value: float | None) -> str:
    """Return a value with two decimals, four where it is below 1; nothing for None."""
    if value is None:
        return ""
    return f"{value:.2f}" if abs(value) >= 1 or value == 0 else f"{value:.4f}"


def print_metrics(task: Task, metrics: dict[str, float]) -> None:
    """Print a table of metrics, each beside its trivial baseline where the task computes one.

    What a task has for each class (or part) follows in a second table: a row a class, a column a metric.

    Args:
        task: Says its metrics' units by ``metric_units`` (name -> unit).
        metrics: ``stage/name`` -> value, ``stage/name/class`` for each class; ``stage/baseline_name`` and
            ``stage/baseline_name/class`` are the values of the trivial baseline.
    """
    stage = next(iter(metrics), "/").split("/")[0]
    values = {name.split("/", 1)[1]: value for name, value in metrics.items()}
    by_class = {name: value for name, value in values.items() if "/" in name}
    has_baseline = any(name.startswith("baseline_") for name in values)
    table = Table(title=f"{task.name}: {stage} set")
    table.add_column("metric")
    table.add_column("model", justify="right")
    if has_baseline:
        table.add_column(task.baseline_title, justify="right")
    table.add_column("unit")
    for name, value in values.items():
        if name.startswith("baseline_") or name in by_class:
            continue
        cells = [name, show(value)]
        if has_baseline:
            cells.append(show(values.get(f"baseline_{name}")))
        table.add_row(*cells, task.metric_units.get(name, ""))
    console = Console()
    console.print(table)
    if by_class:
        console.print(class_table(task, stage, by_class))


def class_table(task: Task, stage: str, values: dict[str, float]) -> Table:
    """Return a table of ``metric/class`` -> value: a row a class, a column a metric, in the order of ``values``."""
    names = list(dict.fromkeys(key.split("/", 1)[0] for key in values))
    table = Table(title=f"{task.name}: {stage} set, by {task.row_title}")
    table.add_column(task.row_title)
    for name in names:
        metric = name.removeprefix("baseline_")
        table.add_column(name if metric == name else f"{metric} of {task.baseline_title}", justify="right")
    for label in dict.fromkeys(key.split("/", 1)[1] for key in values):
        table.add_row(label, *(show(values.get(f"{name}/{label}")) for name in names))
    return table
