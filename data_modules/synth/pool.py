"""Rendering processes: start them, hand out sample numbers, notice when one fails or dies."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data_modules.synth.variants import child_environment
from data_modules.synth.worker import Settings

_MODULE = "data_modules.synth.worker"
_LOG_TAIL = 600


class Pool:
    """Processes that write samples into a staging folder; use as a context, which ends them.

    Args:
        settings: of the set.
        staging: folder for finished samples and the processes' logs.
        backgrounds: folder of the user's images, or None.
        workers: number of processes.
    """

    def __init__(self, settings: Settings, staging: Path, backgrounds: Path | None, workers: int) -> None:
        self._job = {
            "settings": settings.to_json(),
            "staging": str(staging),
            "backgrounds": str(backgrounds) if backgrounds else None,
        }
        self._staging = staging
        self._count = workers
        self._processes: list[subprocess.Popen[str]] = []
        self._answers: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()

    def __enter__(self) -> Pool:
        # The first one prepares what all read (see `body.prepare`); the others start when it is ready.
        self._start(0)
        return self

    def __exit__(self, *unused: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            process.stdin.close()

    def run(self, indices: Iterable[int]) -> Iterator[int]:
        """Make these samples; yield the number of each as it is finished, in any order.

        Raises:
            RuntimeError: a sample failed, or a process died; the message names the sample.
        """
        waiting = iter(indices)
        busy: dict[int, int | None] = {0: None}
        while busy:
            number, answer = self._next_answer()
            if answer is None:
                if number in busy:
                    raise RuntimeError(self._obituary(number, busy[number]))
                continue
            if "error" in answer:
                raise self._failure(answer)
            if "index" in answer:
                yield answer["index"]
            elif number == 0:
                for other in range(1, self._count):
                    self._start(other)
                    busy[other] = None
            busy[number] = next(waiting, None)
            if busy[number] is None:
                del busy[number]
            self._send(number, busy.get(number))

    def _start(self, number: int) -> None:
        with open(self._log(number), "wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(),
                text=True,
                encoding="utf-8",
            )
        self._processes.append(process)
        self._write(process, json.dumps(self._job))
        threading.Thread(target=self._listen, args=(number, process), daemon=True).start()

    def _listen(self, number: int, process: subprocess.Popen[str]) -> None:
        with process.stdout as lines:
            for line in lines:
                self._answers.put((number, json.loads(line)))
        self._answers.put((number, None))

    def _next_answer(self) -> tuple[int, dict[str, Any] | None]:
        while True:
            try:
                # A wait without limit would not see Ctrl-C on Windows.
                return self._answers.get(timeout=1.0)
            except queue.Empty:
                continue

    def _send(self, number: int, index: int | None) -> None:
        if index is not None:
            self._write(self._processes[number], str(index))

    @staticmethod
    def _write(process: subprocess.Popen[str], line: str) -> None:
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except OSError:
            # It is dead; its end comes as an answer and is reported there, with the reason.
            return

    def _log(self, number: int) -> Path:
        return self._staging / f"worker-{number}.log"

    def _failure(self, answer: dict[str, Any]) -> RuntimeError:
        where = "starting up" if answer["index"] is None else f"sample {answer['index']}"
        error = RuntimeError(f"a rendering process failed at {where}: {answer['error']}")
        error.add_note(answer["traceback"])
        return error

    def _obituary(self, number: int, index: int | None) -> str:
        code = self._processes[number].wait()
        reason = f"signal {-code}" if code < 0 else f"exit code {code}"
        if code == -9:
            reason += ", which is often a lack of memory: try fewer workers"
        where = "while starting up" if index is None else f"at sample {index}"
        log = self._log(number).read_text("utf-8", "replace")[-_LOG_TAIL:].strip()
        return f"a rendering process died {where} ({reason}){': ' + log if log else ''}"
