"""Commands of a sweep, each in a process of its own."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

#: Exit codes of a process that was asked to stop: nobody's failure.
STOPPED = {130, 143, -signal.SIGINT, -signal.SIGTERM}


class Processes:
    """Runs commands of ``python -m s2kit`` for any number of threads.

    A process a command: its memory is given back, and what kills it, as too little memory does, leaves the sweep alive.

    Args:
        threads: Of each process; None for what the environment says.
    """

    def __init__(self, threads: int | None = None) -> None:
        self.threads = threads
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    def run(self, words: list[str], log: Path, lock: IO[str] | None) -> int:
        """Run a command, add what it prints to ``log``, and return its exit code; it holds ``lock`` while it lives."""
        environment = {**os.environ, **({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {})}
        with open(log, "a") as file:
            print(f"$ python -m s2kit {shlex.join(words)}", file=file, flush=True)
            process = subprocess.Popen(
                [sys.executable, "-m", "s2kit", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[lock.fileno()] if lock is not None else [],
                # Not the terminal's group: Ctrl-C would reach it twice, from there and by stop().
                process_group=0,
            )
        self._running.add(process)
        if self._stopped:  # meanwhile
            process.terminate()
        try:
            return process.wait()
        finally:
            self._running.discard(process)

    def stop(self) -> None:
        """Ask all running commands to stop, and those that begin after this.

        By SIGTERM: what a shell's script starts in the background ignores Ctrl-C's SIGINT, and so do its children.
        """
        self._stopped = True
        for process in list(self._running):
            process.terminate()


def reason_of(log: Path, code: int) -> str:
    """Return why a command failed: its own line for the user, else the last one that it printed."""
    if code < 0:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    start = max((number for number, line in enumerate(lines) if line.startswith("$ ")), default=-1)
    said = [line for line in lines[start + 1 :] if line.startswith("s2kit: error:")] or lines[start + 1 :][-1:]
    return re.sub(r"^s2kit: error: ", "", said[-1]) if said else f"exit code {code}, and it said nothing"
