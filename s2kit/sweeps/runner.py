"""Runs the trials of a sweep, here and in other processes at once, and goes on where it was interrupted.

Two ways were weighed. One is Optuna's own: ``study.optimize`` with ``GridSampler`` and heartbeats. It counts a point as
taken whatever became of it, so that interrupted ones would never be finished; processes that begin together may take
the same point; and which of a trial's steps were done it does not know. The other way, taken here: a folder a trial
tells what was done, and a lock of the operating system on it tells whether somebody is at it. The lock ends with the
last process that holds it, however that ends, and a step's process holds it as well: where the sweep is killed and a
training lives on, nobody starts a second one in its folder. Optuna keeps the record (``s2kit.sweeps.study``).
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from data_modules.locking import hold_alone
from s2kit.errors import UserError
from s2kit.sweeps.compute import Budget
from s2kit.sweeps.config import Step, Sweep, Trial, base_placeholders, contents_of, fill
from s2kit.sweeps.processes import STOPPED, Processes, reason_of
from s2kit.sweeps.state import State
from s2kit.sweeps.study import Study

#: Seconds between two looks whether another process has finished the set-up.
PATIENCE = 2.0


class StepFailed(Exception):
    """A step ended with an error; the text is its reason."""


class Interrupted(Exception):
    """A step was stopped from outside; its trial can go on."""


class InUse(Exception):
    """Another process, or another thread, holds a folder."""


@dataclass
class Runner:
    """Runs a sweep.

    Attributes:
        sweep, budget, processes: See there.
        retry: Whether failed trials are run again.
        only: Axis -> values; trials of others are not run.
        say: Prints a line.
    """

    sweep: Sweep
    budget: Budget
    processes: Processes
    retry: bool = False
    only: Mapping[str, Collection[str]] = field(default_factory=dict)
    say: Callable[[str], None] = print
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self, limit: int | None = None, jobs: int = 1) -> None:
        """Run up to ``limit`` trials, ``jobs`` at a time, that are neither finished nor another process's.

        Raises:
            UserError: The set-up failed, or a trial was begun with other commands.
            KeyboardInterrupt: The steps were asked to stop, and have.
        """
        self.prepare()
        left = threading.Semaphore(len(self.sweep.trials()) if limit is None else limit)
        with ThreadPoolExecutor(jobs) as pool:
            workers = [pool.submit(self._work, left) for _ in range(jobs)]
            try:
                wait(workers, return_when=FIRST_EXCEPTION)
            except BaseException:
                self.processes.stop()
                raise
            finally:
                # The pool's end waits for the trials that are under way.
                self._stop.set()
        interrupted = [worker.result() for worker in workers]
        if any(interrupted):
            raise KeyboardInterrupt

    def _work(self, left: threading.Semaphore) -> bool:
        """Run trials until there are none left; tell whether a step was stopped from outside."""
        study = Study(self.sweep)
        try:
            for trial in self._wanted():
                if self._stop.is_set() or not left.acquire(blocking=False):
                    break
                if not self._try(trial, study):
                    left.release()
        except Interrupted:
            self._stop.set()
            return True
        return False

    def _wanted(self) -> list[Trial]:
        return [
            trial
            for trial in self.sweep.trials()
            if all(trial.point[axis] in values for axis, values in self.only.items())
        ]

    # ------------------------------------------------------------------------------------------------ set-up

    def prepare(self) -> None:
        """Make the folder and the study, check what is there, and run the set-up, which others wait for."""
        self.sweep.folder.mkdir(parents=True, exist_ok=True)
        with self._waiting() as lock:
            study = Study(self.sweep)
            for trial in self.sweep.trials():
                state = State.read(trial)
                self._check_commands(trial, state)
                if state.values:
                    study.enter_finished(trial, state.values)
            for step in self.sweep.setup:
                self._set_up(step, lock)

    @contextmanager
    def _waiting(self) -> Iterator[IO[str] | None]:
        said = False
        with ExitStack() as stack:
            while True:
                try:
                    lock = stack.enter_context(held(self.sweep.folder))
                    break
                except InUse:
                    if not said:
                        self.say("another process is at the set-up; waiting for it")
                    said = True
                    time.sleep(PATIENCE)
            yield lock

    def _set_up(self, step: Step, lock: IO[str] | None) -> None:
        command = shlex.join(words := fill(step.command, base_placeholders(self.sweep), str(self.sweep.path)))
        done, log = self.sweep.folder / f".{step.name}.done", self.sweep.folder / f"{step.name}.log"
        if done.is_file() and done.read_text() == command:
            return
        self.say(f"{step.name}: python -m s2kit {command}")
        code = self.processes.run(words, log, lock)
        if code in STOPPED:
            raise KeyboardInterrupt
        if code:
            raise UserError(f"the set-up {step.name} failed: {reason_of(log, code)} (see {log})")
        done.write_text(command)

    def _check_commands(self, trial: Trial, state: State) -> None:
        """Refuse to mix results of different commands in one table; what failed may be mended and run again."""
        for step in trial.steps():
            before = state.commands.get(step.name)
            if before is None or (state.status == "failed" and step.name not in state.done):
                continue
            if before != (now := shlex.join(self.words(trial, step))):
                raise UserError(
                    f"{trial.folder} was begun with another command of {step.name}: {before!r}, and now it would be "
                    f"{now!r}. Give the sweep another folder, or delete that one"
                )
            if state.contents.get(step.name, now_said := contents_of(self.words(trial, step))) != now_said:
                raise UserError(
                    f"{trial.folder}: a config that {step.name} names says something else than when it was begun: "
                    f"{now!r}. Give the sweep another folder, or delete that one"
                )

    # ------------------------------------------------------------------------------------------------ a trial

    def words(self, trial: Trial, step: Step) -> list[str]:
        """Return a step's command."""
        steps = self.budget.steps(trial)
        return trial.words(step.command, **({} if steps is None else {"steps": str(steps)}))

    def _try(self, trial: Trial, study: Study) -> bool:
        """Run a trial unless it is finished or somebody is at it; tell whether it was run."""
        trial.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                lock = stack.enter_context(held(trial.folder))
            except InUse:
                return False
            state = State.read(trial)
            if state.status == "finished" or (state.status == "failed" and not self.retry):
                return False
            state.failed = None
            entry = study.begin(trial)
            try:
                for step in trial.steps():
                    if step.name not in state.done:
                        self._run_step(trial, step, state, lock)
                state.values = collect(trial)
            except StepFailed as failure:
                state.failed = str(failure)
                state.write(trial)
                study.fail(entry, state.failed)
                self.say(f"{trial.name}: failed: {failure}")
                return True
            state.write(trial)
            study.finish(entry, state.values)
            self.say(f"{trial.name}: " + ", ".join(f"{name} {value:.4g}" for name, value in state.values.items()))
            return True

    def _run_step(self, trial: Trial, step: Step, state: State, lock: IO[str] | None) -> None:
        words = self.words(trial, step)
        command, before = shlex.join(words), state.commands.get(step.name)
        state.commands[step.name], state.contents[step.name] = command, contents_of(words)
        state.write(trial)
        goes_on = step.resume is not None and before == command and trial.path(step.resume[0]).is_file()
        if goes_on:
            words = [*words, *trial.words(step.resume[1])]
        elif step.folder is not None:
            shutil.rmtree(trial.path(step.folder), ignore_errors=True)
        self.say(f"{trial.name}: {step.name} {'goes on' if goes_on else 'begins'}")
        log = trial.folder / f"{step.name}.log"
        started = time.monotonic()
        code = self.processes.run(words, log, lock)
        state.seconds[step.name] = round(state.seconds.get(step.name, 0.0) + time.monotonic() - started, 1)
        if code == 0:
            state.done.append(step.name)
        state.write(trial)
        if code in STOPPED:
            raise Interrupted
        if code:
            raise StepFailed(f"{step.name}: {reason_of(log, code)}")


@contextmanager
def held(folder: Path) -> Iterator[IO[str] | None]:
    """Hold a folder; give the open lock, for processes that shall hold it too.

    Raises:
        InUse: Somebody else does.
    """
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(hold_alone(folder / ".lock", folder))
        except RuntimeError:
            raise InUse from None
        yield lock


def collect(trial: Trial) -> dict[str, float]:
    """Return the results of a trial whose steps are done.

    Raises:
        StepFailed: One is not where the sweep says, or is no finite number.
    """
    values = {}
    for result in trial.sweep.results:
        path = trial.path(result.file)
        try:
            value = json.loads(path.read_text())
            for key in result.key:
                value = value[key]
            values[result.name] = float(value)
            if not math.isfinite(values[result.name]):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError):
            raise StepFailed(f"result {result.name}: {path} has no finite number {'/'.join(result.key)}") from None
    return values
