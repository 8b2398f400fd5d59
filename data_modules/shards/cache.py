"""Whole shards of a remote set kept on disk, up to a size, shared by all processes of a machine."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_modules.shards.format import ShardError
from data_modules.shards.storage import LocalFile, OpenFile, RemoteFolder, StorageError
from s2kit.errors import UserError

_PART = 1 << 24
_CONNECTIONS = 4
_ABANDONED = 3600.0  # seconds after which a download that nobody continues may go


@dataclass
class ShardCache:
    """Where whole shards of remote sets are kept.

    Args:
        folder: On a fast disk; made if needed. Several sets and processes may share it.
        max_bytes: How much it may hold. The shards that were used longest ago give way. It must have room for the
            shards that are open at once: those of a block for each set, twice.
    """

    folder: str
    max_bytes: int = 100 * 2**30


class CachedFolder:
    """A remote folder whose shards are fetched whole on first use. Manifest and indices are read where they are.

    Args:
        remote: The folder.
        cache: Where to keep its shards.
    """

    is_remote = True

    def __init__(self, remote: RemoteFolder, cache: ShardCache) -> None:
        self.remote, self.cache = remote, cache
        self.folder = Path(cache.folder).expanduser()

    def where(self, name: str) -> str:
        return self.remote.where(name)

    def read_all(self, name: str) -> bytes:
        return self.remote.read_all(name)

    def open(self, entry: dict[str, Any]) -> OpenFile:
        return CachedFile(self, entry)

    def path(self, entry: dict[str, Any]) -> Path:
        """Return where a shard lies once it is here. A changed shard, or one of another set, has another name."""
        if not entry.get("sha256"):
            raise ShardError(f"{self.where(entry['name'])}: the manifest has no sha256 of it; use make_manifest")
        origin = hashlib.sha256(self.where(entry["name"]).encode()).hexdigest()[:16]
        return self.folder / f"{origin}-{entry['sha256'][:16]}-{entry['name']}"

    def get(self, entry: dict[str, Any]) -> LocalFile:
        """Open a shard, fetching it if it is not here.

        Raises:
            StorageError: It cannot be fetched or kept.
            ShardError: What is fetched is not what the manifest says, twice.
        """
        path = self.path(entry)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # One process fetches a shard; those that need it too wait here.
            with _locked(path.with_name(path.name + ".lock")):
                if not path.exists() or path.stat().st_size != entry["bytes"]:
                    self._fetch(entry, path)
                os.utime(path)
                return LocalFile(path)
        except OSError as error:
            raise StorageError(f"{path}: cannot be kept ({error})") from None

    def drop(self, entry: dict[str, Any]) -> None:
        """Remove a shard, so that it is fetched again."""
        self.path(entry).unlink(missing_ok=True)

    def _fetch(self, entry: dict[str, Any], path: Path) -> None:
        temporary = path.with_name(path.name + ".part")
        for attempt in (1, 2):
            self._make_room(temporary, entry["bytes"])
            try:
                self._download(entry, temporary)
                found = _sha256(temporary)
                if found == entry["sha256"]:
                    os.replace(temporary, path)
                    return
            finally:
                temporary.unlink(missing_ok=True)
            if attempt == 2:
                raise ShardError(
                    f"{self.where(entry['name'])}: its sha256 is {found}, the manifest says {entry['sha256']}: the "
                    "shard is damaged, or the manifest is of another one"
                )

    def _download(self, entry: dict[str, Any], target: Path) -> None:
        name, size = entry["name"], entry["bytes"]
        parts = [(start, min(start + _PART, size)) for start in range(0, size, _PART)]
        with open(target, "r+b") as file, ThreadPoolExecutor(_CONNECTIONS) as pool:

            def fetch(part: tuple[int, int]) -> None:
                # The whole file, where this is all: that also works with servers that cannot send parts.
                data = self.remote.fetch(name, None if part == (0, size) else part, size)
                os.pwrite(file.fileno(), data, part[0])

            for _ in pool.map(fetch, parts):
                pass

    def _make_room(self, temporary: Path, size: int) -> None:
        """Remove what was used longest ago until ``size`` more bytes fit, and take these."""
        if size > self.cache.max_bytes:
            raise UserError(
                f"cache.max_bytes is {self.cache.max_bytes}, less than the {size} bytes of one shard, "
                f"{temporary.name}; raise it, or leave the cache out to read parts of shards"
            )
        with _locked(self.folder / "room.lock"):
            files = []
            for path in self.folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    state = path.stat()
                    if path.suffix in (".tar", ".part") and path != temporary:
                        files.append((state.st_mtime, state.st_size, path))
            total, now = sum(size for _, size, _ in files), time.time()
            for used, bytes_, path in sorted(files):
                if total + size <= self.cache.max_bytes:
                    break
                if path.suffix == ".tar" or now - used > _ABANDONED:
                    # Processes that have it open go on reading it.
                    path.unlink(missing_ok=True)
                    total -= bytes_
            with open(temporary, "wb") as file:
                file.truncate(size)


class CachedFile:
    """A shard of a ``CachedFolder``, here."""

    def __init__(self, folder: CachedFolder, entry: dict[str, Any]) -> None:
        self.folder, self.entry = folder, entry
        self._file = folder.get(entry)

    @property
    def size(self) -> int:
        return self._file.size

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        return self._file.read(ranges)

    def renew(self) -> None:
        self.folder.drop(self.entry)
        self._file = self.folder.get(self.entry)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the file ``path`` alone among processes and threads, waiting for it."""
    try:
        import fcntl
    except ImportError:
        # Without such a lock two processes may fetch the same shard at once; the last one stays.
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            # Closing is not enough: a process forked meanwhile has the file open, and the lock with it.
            fcntl.flock(file, fcntl.LOCK_UN)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
