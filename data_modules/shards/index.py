"""The index beside a tar: where each member of each sample lies, and its crc32.

Little-endian, every section 8-byte aligned, so that it is read (or mapped) with numpy and nothing is parsed:

==========  ============  ==================================================================================
 bytes       what          content
==========  ============  ==================================================================================
 64          header        ``<8sIIQQQIIII8x``: magic ``S2KINDEX``, version, crc32 of all that follows it,
                           bytes of the tar, samples S, members M, bytes of the keys, bytes of the extensions,
                           number of extensions, 0
 8 * (S+1)   ``first``     uint64; the members of sample i are rows first[i] to first[i+1]
 8 * (S+1)   ``key_end``   uint64; key i is key bytes key_end[i] to key_end[i+1]
 24 * M      ``members``   offset of the content in the tar uint64, size uint64, crc32 uint32, extension
                           uint32 (its number in the list)
 padded      keys          UTF-8, one after the other
 padded      extensions    UTF-8, separated by line feeds
 4 * S       ``people``    uint32, padded; people described in sample i (since version 2)
==========  ============  ==================================================================================
"""

import os
import re
import shlex
import struct
import tarfile
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from data_modules.shards.format import INDEX_SUFFIX, ShardError, split_member_name
from data_modules.shards.records import count_people, parse_loosely

INDEX_VERSION = 2
MAX_JSON, MAX_HEADER = 1 << 26, 1 << 14
MEMBER = np.dtype([("offset", "<u8"), ("size", "<u8"), ("crc32", "<u4"), ("extension", "<u4")])

_MAGIC = b"S2KINDEX"
_HEADER = struct.Struct("<8sIIQQQIIII8x")
_CRC_END = 16
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and what is not UTF-8
_CHUNK = 1 << 20


class Entry(NamedTuple):
    """One member of a sample: its extension, and offset and size of its content in the tar, in bytes."""

    extension: str
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class ShardIndex:
    """The samples of one tar. The arrays may be views of a mapped file.

    Attributes:
        tar_bytes: Size of the tar.
        first: uint64 (S + 1,), rows of ``members`` per sample.
        key_end: uint64 (S + 1,), bytes of ``keys`` per sample.
        members: ``MEMBER`` (M,).
        keys: The keys' bytes.
        extensions: The list that ``members["extension"]`` counts in.
        people: uint32 (S,), people that the ``json`` member of each sample describes; None in an index of version 1.
    """

    tar_bytes: int
    first: np.ndarray
    key_end: np.ndarray
    members: np.ndarray
    keys: bytes
    extensions: tuple[str, ...]
    people: np.ndarray | None

    def __len__(self) -> int:
        return len(self.first) - 1

    def key(self, number: int) -> str:
        """Return the key of sample ``number`` of this shard."""
        return self.keys[int(self.key_end[number]) : int(self.key_end[number + 1])].decode(errors="backslashreplace")

    def entries(self, number: int, wanted: Container[str] | None = None) -> list[Entry]:
        """Return the members of sample ``number`` of this shard, only those of the ``wanted`` extensions if given."""
        rows = self.members[int(self.first[number]) : int(self.first[number + 1])].tolist()
        names = self.extensions
        return [
            Entry(names[e], start, size, crc) for start, size, crc, e in rows if wanted is None or names[e] in wanted
        ]

    @cached_property
    def first_person(self) -> np.ndarray:
        """int64 (S + 1,), people in the samples before each; (1,) in an index of version 1."""
        people = np.zeros(0, np.uint32) if self.people is None else self.people
        return np.concatenate([[0], np.cumsum(people, dtype=np.int64)])

    def find(self, number: int, per_person: bool) -> tuple[int, int | None]:
        """Return the number of the sample that item ``number`` of this shard is, and of the person in it."""
        if not per_person:
            return number, None
        sample = int(np.searchsorted(self.first_person, number, "right")) - 1
        return sample, number - int(self.first_person[sample])

    def to_bytes(self) -> bytes:
        """Return the index file's content."""
        extensions = "\n".join(self.extensions).encode()
        body = b"".join(
            [
                self.first.astype("<u8").tobytes(),
                self.key_end.astype("<u8").tobytes(),
                self.members.astype(MEMBER).tobytes(),
                _pad(self.keys),
                _pad(extensions),
                _pad(self.people.astype("<u4").tobytes()),
            ]
        )
        counts = (len(self), len(self.members), len(self.keys), len(extensions), len(self.extensions), 0)
        data = bytearray(_HEADER.pack(_MAGIC, INDEX_VERSION, 0, self.tar_bytes, *counts) + body)
        struct.pack_into("<I", data, _CRC_END - 4, zlib.crc32(memoryview(data)[_CRC_END:]))
        return bytes(data)


def index_path(tar_path: str | Path) -> Path:
    """Return where the index of a tar lies: ``shard.tar`` -> ``shard.tar.index``."""
    return Path(f"{tar_path}{INDEX_SUFFIX}")


def build_index(tar_bytes: int, samples: list[tuple[str, list[Entry]]], people: list[int]) -> ShardIndex:
    """Return the index of ``samples`` (key, entries), in the order of the tar, with ``people`` in each."""
    extensions = tuple(sorted({entry.extension for _, entries in samples for entry in entries}))
    number = {extension: n for n, extension in enumerate(extensions)}
    rows = [(e.offset, e.size, e.crc32, number[e.extension]) for _, entries in samples for e in entries]
    keys = [key.encode() for key, _ in samples]
    return ShardIndex(
        tar_bytes,
        np.cumsum([0, *(len(entries) for _, entries in samples)]).astype("<u8"),
        np.cumsum([0, *map(len, keys)]).astype("<u8"),
        np.array(rows, MEMBER),
        b"".join(keys),
        extensions,
        np.array(people, "<u4"),
    )


def read_index(path: str | Path) -> ShardIndex:
    """Read an index file, see ``parse_index``.

    Raises:
        ShardError: It is missing, cannot be read or used.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ShardError(f"{path}: no such file; make it with index_tar({str(path.with_suffix(''))!r})") from None
    except OSError as error:
        raise ShardError(f"{path}: not readable ({error})") from None
    return parse_index(data, path)


def parse_index(data: bytes, path: str | Path) -> ShardIndex:
    """Check an index file's content against its own checksum.

    Args:
        data: The content.
        path: Where it comes from, for errors.

    Raises:
        ShardError: It is of another kind or a newer version, cut off or damaged, or points out of its tar.
    """
    if len(data) < _HEADER.size or data[:8] != _MAGIC:
        raise ShardError(f"{path}: not the index of a shard; make it again with index_tar")
    _, version, crc, tar_bytes, samples, members, key_bytes, ext_bytes, ext_count, _ = _HEADER.unpack_from(data)
    if not 1 <= version <= INDEX_VERSION:
        raise ShardError(
            f"{path}: index version {version}, this s2kit reads versions up to {INDEX_VERSION}; update s2kit"
        )
    sizes = [
        8 * (samples + 1),
        8 * (samples + 1),
        MEMBER.itemsize * members,
        _padded(key_bytes),
        _padded(ext_bytes),
        _padded(4 * samples) if version > 1 else 0,
    ]
    if len(data) != _HEADER.size + sum(sizes) or zlib.crc32(memoryview(data)[_CRC_END:]) != crc:
        raise ShardError(f"{path}: the index is cut off or damaged; make it again with index_tar")
    starts = np.cumsum([_HEADER.size, *sizes]).tolist()
    text = data[starts[4] : starts[4] + ext_bytes].decode(errors="backslashreplace")
    index = ShardIndex(
        tar_bytes,
        np.frombuffer(data, "<u8", samples + 1, starts[0]),
        np.frombuffer(data, "<u8", samples + 1, starts[1]),
        np.frombuffer(data, MEMBER, members, starts[2]),
        data[starts[3] : starts[3] + key_bytes],
        tuple(text.split("\n")) if ext_count else (),
        np.frombuffer(data, "<u4", samples, starts[5]) if version > 1 else None,
    )
    _check(index, path, ext_count)
    return index


def index_tar(path: str | Path) -> Path:
    """Index a tar that any program wrote, reading it once from front to end, and return the index's path.

    Members of a sample must follow one another, as the webdataset package demands; its rule splits the names
    (the key ends at the first dot after the last slash). Folders are passed over, and files without a dot or
    whose name begins with one.

    Raises:
        ShardError: The tar is missing, compressed, cut off, or holds links, devices, absolute paths, ``..``, or
            a sample whose members are apart or repeat.
    """
    path = Path(path)
    samples: list[tuple[str, list[Entry]]] = []
    people: list[int] = []
    seen: set[str] = set()
    try:
        with open(path, "rb") as file:
            for key, entry, record in _scan(path, file):
                if not samples or samples[-1][0] != key:
                    if key in seen:
                        raise ShardError(
                            f"{path}: the members of sample {key!r} do not follow one another; sort the tar: "
                            f"{sort_command(path)}"
                        )
                    seen.add(key)
                    samples.append((key, []))
                    people.append(0)
                entries = samples[-1][1]
                if any(other.extension == entry.extension for other in entries):
                    raise ShardError(f"{path}: sample {key!r} has two members {entry.extension!r}")
                entries.append(entry)
                if record is not None:
                    people[-1] = count_people(parse_loosely(record))
            tar_bytes = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise ShardError(f"{path}: no such file") from None
    except (OSError, ValueError, OverflowError, RecursionError, tarfile.TarError) as error:
        # tarfile trusts the numbers in a header, and follows chains of headers as deep as they go.
        raise ShardError(f"{path}: not a readable tar ({type(error).__name__}: {error})") from None
    target = index_path(path)
    replace_file(target, build_index(tar_bytes, samples, people).to_bytes())
    return target


def sort_command(path: Path) -> str:
    """Return the line for a shell that writes a tar anew, its members sorted by name: then samples stand together."""
    tar, beside = shlex.quote(str(path)), shlex.quote(f"{path}.sorted")
    return (
        f"mkdir unpacked && tar -xf {tar} -C unpacked && "
        f"tar -cf {beside} --sort=name -C unpacked . && mv {beside} {tar}"
    )


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` under a temporary name in the same folder, then move it into place."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class _HeaderFile:
    """What tarfile reads headers from. Its time grows with the square of a header's size, so large ones are refused."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes, more than {MAX_HEADER}")
        return self._read(size)


def _scan(path: Path, file: BinaryIO) -> Iterator[tuple[str, Entry, bytes | None]]:
    """Yield the key, the entry, and for a ``json`` member the content of each member of a sample."""
    end = os.fstat(file.fileno()).st_size
    with tarfile.open(fileobj=_HeaderFile(file), mode="r:") as tar:
        for member in tar:
            name = member.name
            if name.startswith("/") or ".." in name.split("/") or "\\" in name:
                raise ShardError(f"{path}: member {name!r} leads out of the folder; such a tar is not read")
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise ShardError(f"{path}: member {name!r} is not a plain file (a link, a device or sparse)")
            key, extension = split_member_name(name) or ("", "")
            if _UNSAFE.search(name):
                raise ShardError(f"{path}: member {name!r} has a name with control characters or not in UTF-8")
            if not 0 <= member.size <= end - member.offset_data:
                raise ShardError(
                    f"{path}: member {name!r} says {member.size} bytes, more than there are; it is cut off"
                )
            is_json = extension == "json"
            if is_json and member.size > MAX_JSON:
                raise ShardError(f"{path}: member {name!r} has {member.size} bytes of JSON, more than {MAX_JSON}")
            crc, left, record = 0, member.size, b""
            file.seek(member.offset_data)
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    raise ShardError(f"{path}: ends inside of member {name!r}; the tar is cut off")
                crc, left = zlib.crc32(chunk, crc), left - len(chunk)
                if is_json:
                    record += chunk
            if key:
                yield key, Entry(extension, member.offset_data, member.size, crc), record if is_json else None
        # tarfile takes a damaged header for the end: a whole tar ends with a block of zeros.
        file.seek(tar.offset)
        last = file.read(tarfile.BLOCKSIZE)
    if last != bytes(tarfile.BLOCKSIZE):
        raise ShardError(f"{path}: no end mark after its last member; the tar is cut off or damaged")


def _check(index: ShardIndex, path: str | Path, extension_count: int) -> None:
    ends = index.members["offset"].astype(np.float64) + index.members["size"]
    sound = (
        len(index.extensions) == extension_count
        and index.first[0] == 0
        and int(index.first[-1]) == len(index.members)
        and int(index.key_end[-1]) == len(index.keys)
        and (index.first[1:] >= index.first[:-1]).all()
        and (index.key_end[1:] >= index.key_end[:-1]).all()
        and (index.members["extension"] < max(extension_count, 1)).all()
        and (ends <= index.tar_bytes).all()
    )
    if not sound:
        raise ShardError(f"{path}: the index contradicts itself; make it again with index_tar")


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def _pad(data: bytes) -> bytes:
    return data + bytes(_padded(len(data)) - len(data))
