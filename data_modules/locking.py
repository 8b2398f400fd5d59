"""Hold a folder alone."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def hold_alone(lock: Path, folder: Path) -> Iterator[IO[str] | None]:
    """Hold the file ``lock``; the operating system lets go of it when the process ends, however it ends.

    A child process that inherits the open file, which is given, holds it too.

    Args:
        lock: Made if needed, in an existing folder.
        folder: What is held, for the error.

    Raises:
        RuntimeError: Another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        # Windows has no such lock: there, two calls at once are the caller's to avoid.
        yield None
        return
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"another process is making a set in {folder}; wait for it or choose another folder"
            ) from None
        yield file
