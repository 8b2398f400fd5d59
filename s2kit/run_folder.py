"""Where a run keeps its files: ``runs/<experiment>/<version>/``."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass
class RunConfig:
    """Names the folder that holds everything a run writes.

    Args:
        folder: The folder above all experiments.
        experiment: Name of the experiment; by default the stem of the first ``--config`` file.
        version: Name of this run; by default the next free ``version_N``.
        test: Whether ``fit`` ends with a test of the best checkpoint.
    """

    folder: str = "runs"
    experiment: str | None = None
    version: str | None = None
    test: bool = True


def next_version(experiment_folder: Path) -> str:
    """Return ``version_N`` with N one above the largest that exists in ``experiment_folder``."""
    taken = [
        int(match[1])
        for path in (experiment_folder.iterdir() if experiment_folder.is_dir() else ())
        if (match := re.fullmatch(r"version_(\d+)", path.name))
    ]
    return f"version_{max(taken, default=-1) + 1}"


def run_folder(config: RunConfig, default_experiment: str) -> Path:
    """Return the folder of a run, which need not exist yet."""
    experiment = Path(config.folder) / (config.experiment or default_experiment)
    return experiment / (config.version or next_version(experiment))
