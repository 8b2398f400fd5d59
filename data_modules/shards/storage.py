"""Where the files of a shard set lie: a folder on disk, or any fsspec URL, read in parts with retries."""

import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from data_modules.shards.format import MANIFEST_NAME, ShardError, manifest_path
from s2kit.errors import UserError

T = TypeVar("T")

#: Attempts at each request, and seconds before the second; the pause doubles, up to ``MAX_PAUSE``, give or take half.
ATTEMPTS, FIRST_PAUSE, MAX_PAUSE = 6, 0.25, 10.0
#: Seconds after which a request for a part of a file counts as failed.
TIMEOUT = 60.0
#: Members of a sample that are at most this many bytes apart come by one request.
_GAP = 1 << 18
#: Errors of a request that another attempt will not mend.
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ImportError)
_NO_PARTS = (
    "sends {} bytes when asked for {}: the server cannot send parts of a file; fetch shards whole, with data.cache "
    "(docs/data.md)"
)
_TEMPORARY_STATUS = (408, 425, 429)
_jitter = random.SystemRandom()


class StorageError(UserError):
    """A file of a shard set is missing or out of reach. Unlike a bad sample this stops a training run."""


class OpenFile(Protocol):
    """A file that is read in parts. It closes with the last reference: another thread may still be reading."""

    #: Bytes; None where this is not known without another request.
    size: int | None

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the bytes of each (offset, size); fewer only where a local file ends before.

        Raises:
            StorageError: They cannot be had.
        """

    def renew(self) -> None:
        """Forget what may be damaged, as its content was not what it had to be: the next read fetches it again."""


class Folder(Protocol):
    """The place of a set's files."""

    #: Whether reading takes so long that it is worth to begin before the data are needed.
    is_remote: bool

    def where(self, name: str) -> str:
        """Return the path or URL of file ``name``, for errors."""

    def read_all(self, name: str) -> bytes:
        """Return a whole file.

        Raises:
            StorageError: It is missing or cannot be read.
        """

    def open(self, entry: dict[str, Any]) -> OpenFile:
        """Open a shard, given its entry in the manifest.

        Raises:
            StorageError: It is missing or cannot be read.
        """


def open_source(source: str | Path, options: dict[str, Any] | None = None) -> tuple[Folder, str]:
    """Return the folder of a shard set, and the name of its manifest.

    Args:
        source: A folder, a manifest (``*.json``), or an fsspec URL of either: ``s3://``, ``https://``, ``hf://``, ...
        options: For the file system of a URL, see ``fsspec.filesystem``; credentials and endpoints rather belong into
            the environment or the configuration of fsspec.
    """
    text = str(source)
    if "://" not in text:
        path = manifest_path(source)
        return LocalFolder(path.parent), path.name
    if text.startswith("file://"):
        return open_source(text.removeprefix("file://"))
    text = text.rstrip("/")
    url, _, name = text.rpartition("/") if text.endswith(".json") else (text, "/", MANIFEST_NAME)
    return RemoteFolder(url, options), name


class LocalFolder:
    """A folder on disk."""

    is_remote = False

    def __init__(self, path: Path) -> None:
        self.path = path

    def where(self, name: str) -> str:
        return str(self.path / name)

    def read_all(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise StorageError(
                f"{self.where(name)}: no such file; a shard set is a folder with {MANIFEST_NAME} and an index beside "
                "each tar, as `python -m s2kit data pack`, `data import` and `data index` make it" + self._hint()
            ) from None
        except OSError as error:
            raise StorageError(f"{self.where(name)}: not readable ({error})") from None

    def _hint(self) -> str:
        from data_modules.images import EXTENSIONS

        if not self.path.is_dir() or not any(path.suffix.lower() in EXTENSIONS for path in self.path.iterdir()):
            return ""
        return f". It holds pictures: `python -m s2kit data pack {self.path} --out SET` makes a set of them"

    def open(self, entry: dict[str, Any]) -> OpenFile:
        return LocalFile(self.path / entry["name"])


class LocalFile:
    """An open file of the local file system.

    Raises:
        StorageError: It is missing or cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = -1
        try:
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise StorageError(f"{path}: the shard is missing, although the manifest names it") from None
        except OSError as error:
            raise StorageError(f"{path}: not readable ({error})") from None
        self.size = os.fstat(self._file).st_size

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        try:
            # pread, not mmap: a file cut off under the reader is then a short read and not a fatal signal.
            return [os.pread(self._file, size, offset) for offset, size in ranges]
        except OSError as error:
            raise StorageError(f"{self.path}: not readable ({error})") from None

    def renew(self) -> None:
        """Nothing is kept here."""

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


class RemoteFolder:
    """A folder of any fsspec file system. It pickles and survives a fork: each process makes its own connections."""

    is_remote = True

    def __init__(self, url: str, options: dict[str, Any] | None = None) -> None:
        self.url, self.options = url, options or {}
        self._connected: tuple[int, Any, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connected": None}

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"

    def read_all(self, name: str) -> bytes:
        return self.fetch(name, None)

    def open(self, entry: dict[str, Any]) -> OpenFile:
        return RemoteFile(self, entry["name"], entry["bytes"])

    def fetch(self, name: str, part: tuple[int, int] | None, size: int | None = None) -> bytes:
        """Return the bytes of ``name`` from ``part[0]`` up to ``part[1]``, or all of them for None, after retries.

        Args:
            name: The file.
            part: What of it.
            size: How many bytes must come where ``part`` is None, if that is known.

        Raises:
            StorageError: The file is missing, there is no permission, or every attempt failed.
        """
        start, end = part or (None, None)
        size = end - start if part else size

        def attempt() -> bytes:
            system, root = self._connect()
            data = _cat(system, f"{root}/{name}", start, end)
            if size is None or len(data) == size:
                return data
            if part and len(data) > size and len(data) >= end:
                raise StorageError(f"{self.where(name)}: {_NO_PARTS.format(len(data), size)}")
            raise OSError(f"gave {len(data)} bytes instead of {size}: it is cut off, or another file")

        return with_retries(self.where(name), attempt)

    def _connect(self) -> tuple[Any, str]:
        if self._connected is None or self._connected[0] != os.getpid():
            import fsspec

            try:
                self._connected = (os.getpid(), *fsspec.core.url_to_fs(self.url, **self.options))
            except ValueError as error:
                raise UserError(f"{self.url}: {error}") from None
        return self._connected[1:]


class RemoteFile:
    """A file that is read by requests for parts of it."""

    size = None

    def __init__(self, folder: RemoteFolder, name: str, size: int) -> None:
        self.folder, self.name, self._end = folder, name, size

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        groups: list[list[int]] = []
        for offset, size in sorted(ranges):
            if groups and offset - groups[-1][1] <= _GAP:
                groups[-1][1] = max(groups[-1][1], offset + size)
            else:
                groups.append([offset, offset + size])
        parts = [(start, self.folder.fetch(self.name, (start, end))) for start, end in groups]
        found = []
        for offset, size in ranges:
            start, data = next((start, data) for start, data in reversed(parts) if start <= offset)
            found.append(data[offset - start : offset - start + size])
        return found

    def renew(self) -> None:
        """Nothing is kept here."""


def read_checked(folder: Folder, name: str, parse: Callable[[bytes], T]) -> T:
    """Return ``parse`` of a whole file; a remote one that is damaged is fetched once more.

    Raises:
        StorageError: It is missing or cannot be read.
        ShardError: Of ``parse``.
    """
    try:
        return parse(folder.read_all(name))
    except ShardError:
        if not folder.is_remote:
            raise
        return parse(folder.read_all(name))


def with_retries(where: str, call: Callable[[], T]) -> T:
    """Return ``call()``; after an error that may pass, wait and try again, longer each time.

    Raises:
        StorageError: The last attempt failed, or one in a way that another will not mend.
    """
    begin = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, FileNotFoundError):
                raise StorageError(f"{where}: there is no such file: it is gone, or never was there") from error
            status = getattr(error, "status", None)
            final = isinstance(status, int) and 400 <= status < 500 and status not in _TEMPORARY_STATUS
            if final or isinstance(error, _FINAL):
                raise StorageError(f"{where}: {type(error).__name__}: {reason}") from error
            if attempt == ATTEMPTS:
                seconds = time.monotonic() - begin
                raise StorageError(
                    f"{where}: cannot be read, {ATTEMPTS} attempts in {seconds:.0f} s failed; the last one: "
                    f"{type(error).__name__}: {reason}"
                ) from error
        time.sleep(min(MAX_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)) * (0.5 + _jitter.random()))
    raise AssertionError("the last attempt returns or raises")


def _cat(system: Any, path: str, start: int | None, end: int | None) -> bytes:
    from fsspec.asyn import AsyncFileSystem, sync

    if start == end and start is not None:
        return b""
    if isinstance(system, AsyncFileSystem) and system.async_impl:
        # As cat_file does, with a limit on the time.
        return bytes(sync(system.loop, system._cat_file, path, start=start, end=end, timeout=TIMEOUT))
    return bytes(system.cat_file(path, start=start, end=end))
