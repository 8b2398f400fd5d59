"""Note what is done of a long reading of a set, so that the same command goes on after an interruption.

A journal is a hidden file beside the manifest, or in the cache folder where that one cannot be written. Each line is
the CRC-32 of what follows it, the stamp of a job, and its result as JSON: data, never code, because the file may have
come with a set from elsewhere. A line that is torn or damaged is as if it were not there.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import numpy as np

from data_modules.locations import cache_folder
from data_modules.shards.format import canonical_json
from data_modules.shards.index import index_path
from s2kit.version import __version__

Job = TypeVar("Job")
Result = TypeVar("Result")

_VERSION = 1


def stamp_shard(folder: Path, stated: dict[str, Any], *options: Any) -> str:
    """Return a digest of all that a result about a shard depends on.

    Args:
        folder: Of the set.
        stated: The shard's entry in the manifest: name, counts, size, checksums.
        options: Plain values for JSON, of the command.
    """
    tar = folder / stated["name"]
    return stamp(stated, _state(tar), _state(index_path(tar)), *options)


def stamp(*values: Any) -> str:
    """Return a digest of plain values for JSON and of the kit's version, whose successor may check other things."""
    return hashlib.blake2b(canonical_json([_VERSION, __version__, *values]), digest_size=16).hexdigest()


def _state(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    # The time of change, too: of a copy that keeps its times, nothing has been read yet.
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


@dataclass(frozen=True)
class Stamped(Generic[Job, Result]):
    """A function of a stamp and a job, which another process finds if it finds ``function``."""

    function: Callable[[Job], Result]

    def __call__(self, job: tuple[str, Job]) -> tuple[str, Result]:
        """Return the stamp and what ``function`` returns."""
        return job[0], self.function(job[1])


class Journal:
    """What is noted: see ``open_journal``."""

    def __init__(self, file: BinaryIO | None) -> None:
        self._file = file
        self._noted = dict(_read(file)) if file else {}

    def divide(
        self, jobs: Iterable[tuple[str, Job]], load: Callable[[Any], Result]
    ) -> tuple[list[Result], list[tuple[str, Job]]]:
        """Return the results that are noted, and the stamped jobs that are left to do."""
        results, rest = [], []
        for mark, job in jobs:
            if mark in self._noted:
                results.append(load(json.loads(self._noted[mark])))
            else:
                rest.append((mark, job))
        return results, rest

    def note(self, mark: str, plain: Any) -> None:
        """Write a line; where that fails, as on a full disk, the command goes on without a journal."""
        if self._file is None:
            return
        line = f"{mark} {json.dumps(plain, separators=(',', ':'))}".encode()
        try:
            self._file.write(b"%08x %s\n" % (zlib.crc32(line), line))
        except OSError:
            self._file = None


@contextlib.contextmanager
def open_journal(folder: Path, command: str, *, fresh: bool = False) -> Iterator[Journal]:
    """Open the journal of a command on a set; delete it when the block ends normally, keep it when it raises.

    While another process holds it, and where it can be written nowhere, nothing is taken over and nothing noted.

    Args:
        folder: Of the set.
        command: With the options that make it another one; a part of a file name.
        fresh: Take nothing over.
    """
    # In the cache folder the names of two sets' journals must differ.
    place = hashlib.blake2b(str(folder.absolute()).encode(), digest_size=8).hexdigest()
    for path in (folder / f".{command}.journal", cache_folder() / "journals" / f"{place}-{command}.journal"):
        file = _open(path)
        if file is not None:
            break
    if file is None or not _hold(file):
        yield Journal(None)
        return
    finished = False
    try:
        if fresh:
            file.truncate(0)
        yield Journal(file)
        finished = True
    finally:
        empty = not os.fstat(file.fileno()).st_size
        file.close()
        if finished or empty:
            with contextlib.suppress(OSError):
                path.unlink()


def _open(path: Path) -> BinaryIO | None:
    # A set from elsewhere may have a link there, to a file that is not to be written, or a pipe that never ends.
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.fdopen(os.open(path, flags, 0o644), "r+b", buffering=0)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    return None


def _hold(file: BinaryIO) -> bool:
    """Whether no other process has the journal; the operating system lets go of it when this one ends."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return False
    except OSError:
        return True  # a file system without locks
    return True


def _read(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Yield stamp and result of every sound line; end a torn last one, so that the next begins a line."""
    file.seek(0)
    line = b""
    with open(file.fileno(), "rb", closefd=False) as lines:
        for line in lines:
            crc, _, rest = line.rstrip(b"\n").partition(b" ")
            if line.endswith(b"\n") and crc == b"%08x" % zlib.crc32(rest):
                mark, _, plain = rest.partition(b" ")
                yield mark.decode(), plain
    if line and not line.endswith(b"\n"):
        with contextlib.suppress(OSError):
            file.write(b"\n")


def plain_array(array: np.ndarray) -> list[Any]:
    """Return an array of numbers as plain values for JSON, every bit of it."""
    return [array.dtype.str, list(array.shape), base64.b64encode(np.ascontiguousarray(array)).decode()]


def array_of(plain: list[Any]) -> np.ndarray:
    """Return the array that ``plain_array`` was given."""
    dtype, shape, data = plain
    return np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()
