"""Images without labels for pretraining: folders, and lists as CSV, JSONL or Parquet."""

from __future__ import annotations

import csv
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from data_modules.images import EXTENSIONS
from data_modules.importers.base import (
    Importer,
    ImportFailedError,
    RejectedError,
    Source,
    files_below,
    key_of,
    printable,
)
from data_modules.importers.pictures import load_picture, make_members

LISTS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_IMAGE_COLUMNS = ("image", "file", "path", "file_name", "filename", "image_path")


@dataclass(frozen=True)
class PlainRecord:
    """An image file, or its bytes, and what else a list says of it."""

    key: str
    file: str
    meta: dict[str, Any]
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class FolderImporter(Importer):
    """All pictures of a folder and its sub-folders, in the order of their names.

    Attributes:
        folder: The folder.
        min_side: Pictures whose shorter side has fewer pixels are left out.
        decode: Decode each picture once, to find damage; otherwise only headers are read.
    """

    name = "folder"

    folder: Path
    min_side: int = 1
    decode: bool = True

    def scan(self) -> Source:
        files = _peeked(files_below(self.folder))
        if files is None:
            raise ImportFailedError(f"{self.folder}: no pictures in it ({', '.join(EXTENSIONS)})")
        return Source(_named(files))

    def sample(self, record: PlainRecord) -> dict[str, bytes]:
        return _plain_sample(record, self.folder, self.min_side, self.decode)


@dataclass(frozen=True)
class ListImporter(Importer):
    """The pictures that a list names.

    A list is CSV or TSV with a header, JSONL with an object a line, or Parquet. Its other columns are kept in `meta`.
    In Parquet the image may also be its bytes, or a struct of `bytes` and `path` as the `datasets` library writes it.

    Attributes:
        path: The list.
        root: Folder that its paths are relative to; the list's own by default.
        image_column: Column of the image; by default the first of image, file, path, file_name, filename, image_path.
        key_column: Column of the key; by default a sample's key is the number of its row.
        min_side: Pictures whose shorter side has fewer pixels are left out.
        decode: Decode each picture once, to find damage; otherwise only headers are read.
    """

    name = "list"

    path: Path
    root: Path | None = None
    image_column: str | None = None
    key_column: str | None = None
    min_side: int = 1
    decode: bool = True

    def scan(self) -> Source:
        if not self.path.is_file():
            raise ImportFailedError(f"{self.path}: no such list")
        rows = _peeked(_read_rows(self.path))
        if rows is None:
            raise ImportFailedError(f"{self.path}: the list has no rows")
        return Source(self._records(rows))

    def sample(self, record: PlainRecord) -> dict[str, bytes]:
        return _plain_sample(record, self.root or self.path.parent, self.min_side, self.decode)

    def _records(self, rows: Iterable[dict[str, Any]]) -> Iterator[PlainRecord]:
        for number, row in enumerate(rows):
            column = self.image_column or next((name for name in _IMAGE_COLUMNS if name in row), None)
            if column is None or column not in row:
                raise ImportFailedError(
                    f"{self.path}: row {number} has no column {column or 'image'}; its columns are "
                    f"{', '.join(map(str, row)) or 'none'}; name the image's with --image-column"
                )
            value, data = row[column], None
            if isinstance(value, dict):
                value, data = value.get("path") or f"row {number}", value.get("bytes")
            elif isinstance(value, bytes):
                value, data = f"row {number}", value
            if not isinstance(value, str) or not value:
                raise ImportFailedError(f"{self.path}: row {number}, {column}: {value!r} is no path of an image")
            meta = {str(name): _jsonable(cell) for name, cell in row.items() if name not in (column, self.key_column)}
            yield PlainRecord(self._key(number, row), value, meta, data)

    def _key(self, number: int, row: dict[str, Any]) -> str:
        if self.key_column is None:
            return f"{number:09d}"
        value = row.get(self.key_column)
        if value is None or str(value).strip() in ("", "."):
            raise ImportFailedError(f"{self.path}: row {number} has no {self.key_column}, which is to be its key")
        # A key is no file name: what follows a dot in it belongs to it.
        return key_of(f"{value}.key")


def _plain_sample(record: PlainRecord, root: Path, min_side: int, decode: bool) -> dict[str, bytes]:
    picture = load_picture(root / record.file, decode, record.data)
    if min(picture.size) < min_side:
        raise RejectedError(
            f"{root / record.file}: {picture.size[0]} x {picture.size[1]} pixels; the shorter side must have {min_side}"
        )
    return make_members(record.key, picture, {"meta": {"file": printable(record.file), **record.meta}})


def _peeked(values: Iterator[Any]) -> Iterator[Any] | None:
    """The same values, or None if there are none; what is wrong with the first comes out at once."""
    first = next(values, None)
    return None if first is None else itertools.chain([first], values)


def _named(files: Iterable[PurePosixPath]) -> Iterator[PlainRecord]:
    """Records with unique keys: where names differ in the extension alone, it becomes a part of the key."""
    for _, group in itertools.groupby(files, key=lambda path: path.parent):
        siblings = list(group)
        stems = Counter(path.stem for path in siblings)
        for path in siblings:
            alone = stems[path.stem] == 1
            # The dot before the extension is escaped, as no dot of a stem can be.
            yield PlainRecord(key_of(path if alone else f"{path}.key"), str(path), {})


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    kind = path.suffix.lower()
    if kind not in LISTS:
        raise ImportFailedError(f"{path}: a list's name ends in {', '.join(LISTS)}")
    if kind == ".parquet":
        yield from _read_parquet(path)
        return
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from _read_json_lines(path, file) if kind in (".jsonl", ".ndjson") else _read_csv(path, file, kind)
    except UnicodeDecodeError as error:
        raise ImportFailedError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None


def _read_json_lines(path: Path, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ImportFailedError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ImportFailedError(f"{path}, line {number}: a {type(row).__name__}, each line must be an object")
        yield row


def _read_csv(path: Path, lines: Iterable[str], kind: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(lines, delimiter="\t" if kind == ".tsv" else ",")
    for row in reader:
        if None in row or None in row.values():
            raise ImportFailedError(f"{path}, line {reader.line_num}: not as many columns as the header")
        yield row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow.parquet as parquet
        from pyarrow.lib import ArrowException
    except ImportError:
        raise ImportFailedError(f"{path}: Parquet needs the package pyarrow: pip install 's2kit[parquet]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (ArrowException, OSError) as error:
        raise ImportFailedError(f"{path}: not readable as Parquet ({' '.join(str(error).split())})") from None


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _jsonable(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(entry) for entry in value]
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    return str(value)
