"""Run a function over many jobs in processes that start clean, end with their parent and never wait for one another."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import wait as wait_for_any
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

#: Jobs that wait per process: enough that none idles, few enough that an endless source of jobs stays where it is.
_AHEAD = 2


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def run_parallel(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """Yield ``function(job)`` of every job, in the order in which they finish.

    Args:
        function: Of a module, so that another process finds it.
        jobs: Taken as they are needed, so there may be more than memory holds.
        workers: Number of processes; 1 works in this one.

    Raises:
        RuntimeError: A process was killed, as by the operating system when memory ran out.
        Exception: Whatever ``function`` raised; the other jobs are then dropped.
    """
    if workers <= 1:
        yield from map(function, jobs)
        return
    context = _context()
    rest = iter(jobs)
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    try:
        running: set[Future[Result]] = {executor.submit(function, job) for job in islice(rest, workers * _AHEAD)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            running |= {executor.submit(function, job) for job in islice(rest, len(done))}
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise RuntimeError(
            "a working process was killed, perhaps because memory ran out; try again with fewer --workers"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    # Not "fork": a copy of a process with threads (OpenMP's, a progress bar's) may hang.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_modules.packing"])
    return context


def _begin() -> None:
    import cv2

    cv2.setNumThreads(1)  # the processes are the parallelism
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # the parent says that it was interrupted
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for_any([parent.sentinel])
        os._exit(1)
