"""Keeping memory that was freed: pages that the system hands out anew cost more than decoding into them."""

import ctypes
import os
from contextlib import suppress

#: Allocations from here on, in bytes, would be mapped one by one; free memory above the second goes back to the system.
MAP_FROM = 1 << 30
KEEP_FREE = 1 << 30

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory(worker: int = 0) -> None:
    """Make this process keep up to a gibibyte of freed memory for what it allocates next.

    By default glibc maps every array of some megabytes anew and gives it back when it is freed; a loader's process
    allocates the same sizes over and over, and would spend a third of its time on empty pages. Does nothing with other
    C libraries, and where ``MALLOC_MMAP_THRESHOLD_`` or ``MALLOC_TRIM_THRESHOLD_`` is set.

    Args:
        worker: Not used; so that it serves as a ``worker_init_fn``.
    """
    if {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        library.mallopt(_M_MMAP_THRESHOLD, MAP_FROM)
        library.mallopt(_M_TRIM_THRESHOLD, KEEP_FREE)
