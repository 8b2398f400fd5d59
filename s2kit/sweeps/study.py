"""The record of a sweep in Optuna: a trial a point of the grid, in SQLite."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from importlib import import_module
from typing import Any

from s2kit.errors import UserError
from s2kit.sweeps.config import Sweep, Trial

INSTALL_HINT = 'pip install "s2kit[sweep]"'


def import_optuna() -> Any:
    """Return the package optuna.

    Raises:
        UserError: It, or what its SQLite needs, is not installed; the text says how to install it.
    """
    try:
        # Optuna imports SQLAlchemy on first use only, where the error would not say what to install.
        optuna, _ = import_module("optuna"), import_module("sqlalchemy")
    except ImportError as error:
        raise UserError(f"sweep needs the package {error.name}, which is not installed: {INSTALL_HINT}") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _sampler_of(optuna: Any, point: dict[str, str]) -> Any:
    """Return a sampler that gives one point."""

    class PointSampler(optuna.samplers.BaseSampler):
        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> str:
            return point[param_name]

    return PointSampler()


class Study:
    """Writes what happens to trials into ``<folder>/study.db``, for ``optuna-dashboard`` and Optuna's own functions.

    It is a record and decides nothing (see ``s2kit.sweeps.runner``): it can be deleted, and finished trials are
    entered again. A sweep whose grid has grown goes on in a study of its own in the same file, because Optuna wants the
    choices of a parameter to stay as they are.
    """

    def __init__(self, sweep: Sweep) -> None:
        optuna = self.optuna = import_optuna()
        axes = {axis: list(values) for axis, values in sweep.grid.items()}
        digest = hashlib.sha256(json.dumps([axes, [result.name for result in sweep.results]]).encode()).hexdigest()[:6]
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{sweep.folder / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
        )
        directions = ["maximize" if result.higher_is_better else "minimize" for result in sweep.results]
        self.distributions = {
            axis: optuna.distributions.CategoricalDistribution(values) for axis, values in axes.items()
        }
        self.study = optuna.create_study(
            storage=storage, study_name=f"{sweep.name}-{digest}", directions=directions, load_if_exists=True
        )
        self.study.set_user_attr("results", [result.name for result in sweep.results])

    def _of(self, trial: Trial) -> list[Any]:
        return [entry for entry in self.study.get_trials(deepcopy=False) if entry.params == trial.point]

    def begin(self, trial: Trial) -> Any:
        """Enter a trial as running, and what is left running of it, as interrupted; return the entry."""
        state = self.optuna.trial.TrialState
        for entry in self._of(trial):
            if entry.state == state.RUNNING:
                with suppress(ValueError):
                    self.study.tell(entry.number, state=state.FAIL)
        self.study.sampler = _sampler_of(self.optuna, trial.point)
        entry = self.study.ask(self.distributions)
        entry.set_user_attr("name", trial.name)
        return entry

    def finish(self, entry: Any, values: dict[str, float]) -> None:
        """Enter a running trial's results."""
        self.study.tell(entry, list(values.values()))

    def fail(self, entry: Any, reason: str) -> None:
        """Enter why a running trial has none."""
        entry.set_user_attr("reason", reason)
        self.study.tell(entry, state=self.optuna.trial.TrialState.FAIL)

    def enter_finished(self, trial: Trial, values: dict[str, float]) -> None:
        """Enter a trial that was finished before, unless it is here."""
        state = self.optuna.trial.TrialState
        if any(entry.state == state.COMPLETE for entry in self._of(trial)):
            return
        self.study.add_trial(
            self.optuna.trial.create_trial(
                state=state.COMPLETE,
                params=trial.point,
                distributions=self.distributions,
                values=list(values.values()),
                user_attrs={"name": trial.name},
            )
        )
