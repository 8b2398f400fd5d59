"""``python -m s2kit sweep``: a grid of commands, restartable at any point, and its tables."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from s2kit.errors import UserError
from s2kit.sweeps.compute import Budget
from s2kit.sweeps.config import Sweep, read_sweep
from s2kit.sweeps.processes import Processes
from s2kit.sweeps.state import State
from s2kit.tools.arguments import OneLineParser, real, whole

_DESCRIPTION = """\
Run every point of a grid, each a few commands of s2kit, and tabulate the results. The config says which: see
experiments/sweeps/objective.yaml and docs/pretraining.md.

  python -m s2kit sweep --config experiments/sweeps/objective.yaml
  python -m s2kit sweep --config experiments/sweeps/objective.yaml --show

Stop it at any time (Ctrl-C, or a crash) and give the same command again: a finished trial is not run again, one that
was interrupted goes on where it was. Several processes may be at the same sweep at once. A trial that fails is recorded
with the reason, and the others go on.

  python -m s2kit sweep --flops-of fit --config ...    print the FLOPs of a training step of a command
"""


def main(args: list[str]) -> int:
    """Run or show a sweep; return the exit code: 1 if a trial failed.

    Raises:
        UserError: What the user can mend, in one line.
        KeyboardInterrupt: The sweep was stopped; its steps have stopped, too.
        SystemExit: Of the parser, code 2, for wrong usage.
    """
    if args[:1] == ["--flops-of"]:
        print(step_flops(args[1:]))
        return 0
    options = _parser().parse_args(args)
    sweep = read_sweep(options.config, options.folder, options.flops)
    budget = Budget(sweep, count_apart)
    if not options.show:
        from s2kit.sweeps.runner import Runner

        threads = options.threads
        if threads is None and "OMP_NUM_THREADS" not in os.environ:
            threads = max(1, (os.cpu_count() or 1) // options.jobs)
        only = chosen(sweep, options.only)
        runner = Runner(sweep, budget, Processes(threads), options.retry, only, lambda line: print(line, flush=True))
        with stopping_at_termination():
            try:
                runner.run(options.trials, options.jobs)
            except KeyboardInterrupt:
                print("stopped; to go on, give the same command again", flush=True)
                raise
    return report(sweep, budget)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog="python -m s2kit sweep",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="the sweep")
    parser.add_argument("--show", action="store_true", help="run nothing; say what is done and write the tables")
    parser.add_argument("--trials", type=whole(1), metavar="N", help="run at most so many trials now (default: all)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="AXIS=VALUE[,VALUE]", help="run the trials of these values alone"
    )
    parser.add_argument("--folder", metavar="DIR", help="in place of the config's folder")
    parser.add_argument("--flops", type=real(1), metavar="X", help="in place of the config's equal compute")
    parser.add_argument("--jobs", type=whole(1), default=1, metavar="N", help="trials at a time (default: 1)")
    parser.add_argument(
        "--threads", type=whole(1), metavar="N", help="of each command (default: OMP_NUM_THREADS, or the cores / jobs)"
    )
    parser.add_argument("--retry", action="store_true", help="run failed trials again")
    return parser


def chosen(sweep: Sweep, only: list[str]) -> dict[str, list[str]]:
    """Return axis -> values of ``AXIS=VALUE[,VALUE]``.

    Raises:
        UserError: The grid has no such axis or value.
    """
    found = {}
    for text in only:
        axis, _, values = text.partition("=")
        found[axis] = values.split(",")
        wrong = [value for value in found[axis] if value not in sweep.grid.get(axis, {})]
        if wrong:
            known = "; ".join(f"{name}={','.join(values)}" for name, values in sweep.grid.items())
            raise UserError(f"--only {text}: the grid has {known}")
    return found


@contextmanager
def stopping_at_termination() -> Iterator[None]:
    """Let SIGTERM, which clusters and ``kill`` send, stop the sweep as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def count_apart(words: list[str]) -> float:
    """Return ``step_flops``, counted in a process of its own: a sweep itself never loads torch."""
    command = [sys.executable, "-m", "s2kit", "sweep", "--flops-of", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"counting the FLOPs of {shlex.join(words)}: {lines[-1].removeprefix('s2kit: error: ')}")
    return float(done.stdout.split()[-1])


def step_flops(words: list[str]) -> float:
    """Return the FLOPs of a training step of ``fit`` with these words, as ``plan`` counts them: forward and backward of
    the whole batch, and of a pretraining the teacher, the decoder and all views.

    Raises:
        UserError: The words are no ``fit`` of a config.
    """
    from s2kit.planning import pretraining_flops, task_flops
    from s2kit.tools.plan import build_task, read_config

    if words[:1] != ["fit"]:
        raise UserError(f"equal: only fit has training steps that can be counted, not {' '.join(words[:1])}")
    config = read_config(words[1:])
    task = build_task(config.model)
    if hasattr(task, "decode_head"):
        picture = sum(part.hardware for part in task_flops(task.backbone, task.decode_head, task.image_size))
    else:
        picture = pretraining_flops(task).hardware
    return (config.trainer.accumulate_grad_batches or 1) * config.data.init_args.batch_size * picture


def report(sweep: Sweep, budget: Budget) -> int:
    """Print how far the sweep is and its table, write the tables and the curves; return 1 if a trial failed."""
    from s2kit.sweeps.curves import draw_curves
    from s2kit.sweeps.report import markdown, write_tables

    states = {trial.name: State.read(trial) for trial in sweep.trials()}
    counts: dict[str, int] = {}
    for state in states.values():
        counts[state.status] = counts.get(state.status, 0) + 1
    print(f"{sweep.name}: " + ", ".join(f"{count} {status}" for status, count in counts.items()))
    failed = {name: state.failed for name, state in states.items() if state.failed}
    for name, reason in failed.items():
        print(f"  {name}: {reason}")
    if not sweep.folder.is_dir():
        return 0
    files = write_tables(sweep)
    scale, title = _scale(sweep, budget)
    picture = draw_curves(sweep, scale, title)
    if picture is not None:
        files.append(sweep.folder / "curves.png")
        picture.save(files[-1])
    if counts.get("finished"):
        print(markdown(sweep), end="")
    print(f"written: {', '.join(str(path) for path in files)}")
    return int(bool(failed))


def _scale(sweep: Sweep, budget: Budget) -> tuple[dict[str, float] | None, str | None]:
    """Return what a step of each trial costs, in TFLOP, and the title of such an axis; with equal compute only."""
    if sweep.equal is None:
        return None, None
    begun = [trial for trial in sweep.trials() if State.read(trial).commands]
    steps = {trial.name: budget.steps(trial) for trial in begun}
    return {name: sweep.equal[1] / 1e12 / count for name, count in steps.items() if count}, "TFLOP of training"
