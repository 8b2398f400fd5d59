"""The folder of a prediction: its options, what is done, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from s2kit.errors import UserError
from s2kit.inference.fetching import is_url

OPTIONS = "options.json"


class OutputFolder:
    """Where a run writes, and from which the same command goes on.

    ``options.json`` says how it was made, and ``done.jsonl`` (``done_2of4.jsonl`` of a part) has a line for each
    picture and video that is finished: where it is, what its outputs are called, and which there are.

    Args:
        path: The folder; it is made.
        options: Plain values that decide what is written; they must be those of the folder.
        part: (I, N): this process does the I-th of N parts.
        restart: Whether to forget what was done, and take other options.

    Raises:
        UserError: If the folder was made with other options, or another process is writing the same part.
    """

    def __init__(
        self, path: str | Path, options: dict[str, Any], part: tuple[int, int] = (1, 1), restart: bool = False
    ) -> None:
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        mark = "" if part[1] == 1 else f"_{part[0]}of{part[1]}"
        self._partial = f".partial{mark}-"
        self._file = (self.path / f"done{mark}.jsonl").open("a+b", buffering=0)
        self._lock(self._file, mark)
        options = json.loads(json.dumps(options))
        if restart:
            for file in self.path.glob("done*.jsonl") if part[1] == 1 else [self.path / f"done{mark}.jsonl"]:
                os.truncate(file, 0)
        else:
            self._check(options)
        self.replace(OPTIONS, (json.dumps(options, indent=2) + "\n").encode())
        for left in self.path.glob(f"{self._partial}*"):
            shutil.rmtree(left, ignore_errors=True)
        #: By source and name: its stamp, and its files.
        self._done: dict[str, dict[str, tuple[Any, list[str]]]] = {}
        for file in sorted(self.path.glob("done*.jsonl")):
            for source, name, stamp, files in _entries(file):
                self._done.setdefault(_same_place(source), {})[name] = (stamp, files)
        self._end_line()

    def _lock(self, file: BinaryIO, mark: str) -> None:
        with contextlib.suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                what = "it" if not mark else "this part of it"
                raise UserError(f"--out {self.path}: another process is writing {what}") from None
            except OSError:
                pass  # a file system without locks

    def _check(self, options: dict[str, Any]) -> None:
        path = self.path / OPTIONS
        try:
            before = json.loads(path.read_text())
        except FileNotFoundError:
            return
        except (OSError, ValueError):
            raise UserError(f"{path} is damaged: give --restart, or another --out") from None
        for name in {**before, **options}:
            if before.get(name) != options.get(name):
                raise UserError(
                    f"--out {self.path} was made with {name}={json.dumps(before.get(name))}, now it is "
                    f"{json.dumps(options.get(name))}: give another folder, or --restart to do all of it anew"
                )

    def _end_line(self) -> None:
        """End a line that an interruption tore."""
        size = self._file.seek(0, os.SEEK_END)
        if size:
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def is_done(self, source: str, name: str, stamp: Any) -> bool:
        """Tell whether a source was finished under this name, is still what it was then, and its files are there."""
        before, files = self._done.get(_same_place(source), {}).get(name, (None, None))
        return files is not None and before == stamp and all((self.path / file).exists() for file in files)

    def note(self, source: str, name: str, stamp: Any, files: Iterable[str] = ()) -> None:
        """Note that a source is finished, and which files (or folders) of this one it has, by relative paths."""
        source, files = _same_place(source), sorted(files)
        line = json.dumps({"source": source, "name": name, "stamp": stamp, "files": files})
        self._file.write(line.encode() + b"\n")
        self._done.setdefault(source, {})[name] = (stamp, files)

    def names_of(self, source: str) -> list[str]:
        """Return the names under which a source was finished here: one, or several if it was given several times."""
        return list(self._done.get(_same_place(source), ()))

    def names(self) -> list[str]:
        """Return the names of all that is finished here, sorted."""
        return sorted({name for names in self._done.values() for name in names})

    @contextlib.contextmanager
    def stage(self) -> Iterator[Path]:
        """Give a folder whose files come into this one, by the same relative names, when the block ends normally."""
        folder = Path(tempfile.mkdtemp(prefix=self._partial, dir=self.path))
        try:
            yield folder
            for place, _, names in os.walk(folder):
                target = self.path / Path(place).relative_to(folder)
                if names:
                    target.mkdir(parents=True, exist_ok=True)
                for name in names:
                    os.replace(Path(place) / name, target / name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def replace(self, name: str, content: bytes) -> None:
        """Write a file in one step."""
        with self.stage() as stage:
            (stage / name).write_bytes(content)

    def close(self) -> None:
        """Let go of the folder."""
        self._file.close()


def _same_place(source: str) -> str:
    """Return a file's absolute path, so that it is one source however it is given; an address as it is."""
    return source if is_url(source) else os.path.abspath(source)


def _entries(path: Path) -> Iterator[tuple[str, str, Any, list[str]]]:
    with path.open("rb") as lines:
        for line in lines:
            # A torn line is as if it were not there: its picture is done again.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                yield entry["source"], entry["name"], entry["stamp"], entry.get("files", [])
