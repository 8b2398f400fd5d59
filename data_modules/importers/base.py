"""What an importer is: a list of light records, and a function that makes a sample of each."""

from __future__ import annotations

import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from data_modules.images import EXTENSIONS
from s2kit.errors import UserError


class ImportFailedError(UserError):
    """A source that cannot be imported; the text names the file and what would be right."""


class RejectedError(Exception):
    """One sample that is left out; the text says why. The others go on."""


@dataclass(frozen=True)
class Source:
    """What an importer found.

    Attributes:
        records: One a sample, each with a unique ``key``; an iterator where there may be more than memory holds.
        total: Their number; None where it is not known.
        info: Keys for the manifest, such as ``schemas``.
        notes: Lines to tell the user, such as what was left out and why.
        files: Small files to put beside the manifest, name -> content, such as the user's own schema.
    """

    records: Iterable[Any]
    total: int | None = None
    info: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)


class Importer(ABC):
    """Reads one layout. A subclass is a frozen dataclass of plain values: it travels to working processes.

    Attributes:
        name: What the command line and the manifest call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def scan(self) -> Source:
        """List what there is, the same every time, and check what concerns all of it.

        Raises:
            ImportFailedError: Files are missing, or the labels contradict their schema.
        """

    @abstractmethod
    def sample(self, record: Any) -> dict[str, bytes]:
        """Return the members of a record's sample, extension -> bytes.

        Raises:
            RejectedError: It cannot be used.
        """


def digest_of(records: Sequence[Any]) -> str:
    """Return a fingerprint of records: an interrupted import goes on only with what it began with."""
    digest = blake2b(digest_size=16)
    for record in records:
        digest.update(pickle.dumps(record, protocol=5))
    return digest.hexdigest()


def key_of(path: str | PurePosixPath) -> str:
    """Return the key of a file by its path in the source: the path without extension, what a key may not hold as %XX.

    Different stems have different keys: ``day 1/a.b.jpg`` -> ``day 1/a%2Eb``.
    """
    parts = PurePosixPath(str(path).replace("\\", "/")).with_suffix("").parts
    kept = [part for part in parts if part not in ("/", ".")]
    return "/".join("".join(map(_escape, part)) for part in kept)


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python gives a byte of a file's name that is not UTF-8
        return f"%{code - 0xDC00:02X}"
    return f"%{code:02X}" if character in ".%\\" or code < 32 or code == 127 else character


def printable(text: str) -> str:
    """Return a text that UTF-8 can hold: bytes of a file's name that it cannot are written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def files_below(folder: Path, extensions: Sequence[str] = EXTENSIONS) -> Iterator[PurePosixPath]:
    """Yield the files of these extensions (in any case) in a folder and its sub-folders, relative to it, by name.

    Hidden files and folders are passed over. Only one folder's names are in memory at a time.

    Raises:
        ImportFailedError: There is no such folder.
    """
    if not folder.is_dir():
        raise ImportFailedError(f"{folder}: no such folder")
    yield from _walk(folder, PurePosixPath(), tuple(extensions), frozenset({os.path.realpath(folder)}))


def _walk(
    folder: Path, relative: PurePosixPath, extensions: tuple[str, ...], above: frozenset[str]
) -> Iterator[PurePosixPath]:
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif os.path.splitext(entry.name)[1].lower() in extensions:
                files.append(entry.name)
    yield from (relative / name for name in sorted(files))
    for name in sorted(folders):
        real = os.path.realpath(folder / name)
        if real not in above:  # a link to a folder above would never end
            yield from _walk(folder / name, relative / name, extensions, above | {real})


def first_folder(root: Path, *candidates: str, what: str) -> Path:
    """Return the first of ``candidates`` that is a folder of ``root``.

    Raises:
        ImportFailedError: None of them is.
    """
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    raise ImportFailedError(f"{root}: no folder of {what}; it should be called {' or '.join(candidates)}")


def by_stem(folder: Path, extensions: Sequence[str], ending: str = "") -> dict[str, str]:
    """Return a folder's files by their path without extension and without ``ending``: {"a/x": "a/x_seg.png"}.

    Raises:
        ImportFailedError: There is no such folder, or two files have the same stem.
    """
    found: dict[str, str] = {}
    for path in files_below(folder, extensions):
        stem = str(path.with_suffix(""))
        if not stem.endswith(ending):
            continue
        stem = stem.removesuffix(ending)
        if stem in found:
            raise ImportFailedError(f"{folder}: {found[stem]} and {path} have the same name but for the extension")
        found[stem] = str(path)
    return found


def unmatched(what: str, stems: Sequence[str]) -> tuple[str, ...]:
    """Return the note on pictures that have no label, none if all have."""
    if not stems:
        return ()
    return (f"{len(stems)} pictures have no {what} and are left out (first: {stems[0]})",)
