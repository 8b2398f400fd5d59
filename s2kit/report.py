"""Metrics as a table in the terminal."""

from rich.console import Console
from rich.table import Table

from s2kit.tasks import Task


def print_metrics(task: Task, metrics: dict[str, float]) -> None:
    """Print a table of metrics, each beside its trivial baseline where the task computes one.

    Args:
        task: Says its metrics' units by ``metric_units`` (name -> unit).
        metrics: ``stage/name`` -> value; ``stage/baseline_name`` is the value of the trivial baseline.
    """
    stage = next(iter(metrics), "/").split("/")[0]
    values = {name.split("/", 1)[1]: value for name, value in metrics.items()}
    has_baseline = any(name.startswith("baseline_") for name in values)
    table = Table(title=f"{task.name}: {stage} set")
    table.add_column("metric")
    table.add_column("model", justify="right")
    if has_baseline:
        table.add_column(task.baseline_title, justify="right")
    table.add_column("unit")
    for name, value in values.items():
        if name.startswith("baseline_"):
            continue
        baseline = values.get(f"baseline_{name}")
        cells = [name, f"{value:.2f}"]
        if has_baseline:
            cells.append("" if baseline is None else f"{baseline:.2f}")
        table.add_row(*cells, task.metric_units.get(name, ""))
    Console().print(table)
